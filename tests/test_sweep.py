import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
import yaml
from safetensors.torch import load_file
from tiny import tiny_values
from typer.testing import CliRunner

from rxtone import api
from rxtone.cli import app
from rxtone.config import check_recipe, load_recipe
from rxtone.confirmation import FoldJob, read_fold
from rxtone.errors import DataError, RecipeError, RunError
from rxtone.model.base import load_base
from rxtone.model.lora import adapted, adapter_state
from rxtone.run import read_json_lines
from rxtone.space import Space
from rxtone.study import StudyFolder, owned
from rxtone.study_storage import open_study
from rxtone.sweep import sweep
from rxtone.sweep_events import FoldDone, SweepDone, TrialEnded, TrialStarted, TrialStep
from rxtone.trials import cut_fold, open_bench, run_trial


def recipe(base, table, **groups):
    values = tiny_values(base, table)
    values["train"] |= {"num_train_epochs": 2}
    for group, changes in groups.items():
        values[group] = values.get(group, {}) | changes
    return check_recipe(values, "tiny")


def space(**changes):
    values = {
        "recipe": "tiny", "sampler": "grid", "pruner": "none", "confirm": None,
        "parameters": {"lora.r": [2, 4], "train.learning_rate": [0.001, 0.02]},
    }  # fmt: skip
    return Space.model_validate(values | changes)


def write_study(tmp_path, base, table, parameters, **changes):
    """A recipe and a space as files, for the command line."""
    values = tiny_values(base, table)
    values["train"] |= {"num_train_epochs": 2} | changes.pop("train", {})
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    spec = {"recipe": str(tmp_path / "tiny.yaml"), "sampler": "grid", "pruner": "none", "parameters": parameters}
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(spec | changes, sort_keys=False))
    return tmp_path / "space.yaml"


def command(*arguments):
    return [sys.executable, "-m", "rxtone", "sweep", *map(str, arguments)]


def test_a_grid_is_searched_confirmed_and_written(tiny_base, tiny_table, tmp_path):
    confirmed = {"top": 2, "folds": 3, "seeds": 2}
    events = list(sweep(space(confirm=confirmed), recipe(tiny_base, tiny_table), tmp_path / "study"))
    ended = [event for event in events if isinstance(event, TrialEnded)]
    assert [event.state for event in ended] == ["complete"] * 4
    assert len([event for event in events if isinstance(event, FoldDone)]) == 2 * 3 * 2
    (last,) = [event for event in events if isinstance(event, SweepDone)]

    table = pl.read_parquet(tmp_path / "study" / "trials.parquet")
    assert set(zip(table["lora.r"], table["train.learning_rate"], strict=True)) == {
        (2, 0.001), (2, 0.02), (4, 0.001), (4, 0.02)
    }  # fmt: skip
    assert table["epochs"].list.len().to_list() == [2] * 4
    assert [max(curve) for curve in table["epochs"]] == table["macro_f1"].to_list()
    trainable = dict(zip(table["lora.r"], table["trainable"], strict=True))
    assert trainable[4] == 2 * trainable[2]  # a rank twice as high has twice the parameters
    assert table["peak_memory_bytes"].min() > 10**7
    assert table["f1_neutral"].null_count() == 0

    best = last.record["settings"][0]
    screened = table.sort("macro_f1", "number", descending=[True, False])
    assert {row["trial"] for row in last.record["settings"]} == set(screened["number"][:2])
    assert best["mean"] == max(row["mean"] for row in last.record["settings"])
    assert len(best["runs"]) == 6
    assert sum(row["probability_best"] for row in last.record["settings"]) == pytest.approx(1)
    assert last.record["reviews"] == 204  # 240 rows without the 36 of the test
    text = (tmp_path / "study" / "best.yaml").read_text()
    assert f"# macro-F1 {best['mean']:.4f}" in text
    assert f"confirmed settings: {best['probability_best']:.2f}" in text
    chosen = load_recipe(tmp_path / "study" / "best.yaml")
    assert {"lora.r": chosen.lora.r, "train.learning_rate": chosen.train.learning_rate} == best["settings"]

    page = (tmp_path / "study" / "study.html").read_text()
    assert "<script" not in page
    assert "http" not in page.replace("http://www.w3.org", "").replace('http-equiv="Content', "")
    assert f"{best['mean']:.3f}" in page
    names = {path.name for path in (tmp_path / "study" / "trials" / "0000").iterdir()}
    assert names == {"config.yaml", "metrics.jsonl"}


def test_the_setting_to_be_beaten_is_confirmed_whatever_its_rank(tiny_base, tiny_table, tmp_path):
    quiet = {"lora.r": 2, "train.learning_rate": 0.000001}  # learns next to nothing, so it is never among the best
    parameters = {"lora.r": [2, 4], "train.learning_rate": [0.000001, 0.02]}
    asked = {"top": 1, "folds": 2, "seeds": 2, "against": quiet}
    events = sweep(space(parameters=parameters, confirm=asked), recipe(tiny_base, tiny_table), tmp_path / "study")
    *_, last = events
    best, beaten = last.record["settings"]
    assert beaten["settings"] == quiet
    assert beaten["trial"] == last.record["against"]
    assert beaten["gain"] is None
    low, high = best["gain"]
    assert 0 < low < best["mean"] - beaten["mean"] < high
    assert beaten["accuracy"] < best["accuracy"] <= 1
    assert set(best["ensemble"]) == {"macro_f1", "accuracy"}
    assert f"gain over trial {last.record['against']}" in (tmp_path / "study" / "study.html").read_text()

    none = space(parameters=parameters, confirm=asked | {"against": {"lora.r": 3}})
    with pytest.raises(RecipeError, match=r"confirm\.against: expected a point of the grid, got lora\.r=3"):
        list(sweep(none, recipe(tiny_base, tiny_table), tmp_path / "other"))
    with pytest.raises(ValueError, match=r"confirm\.against\.lora\.lora_alpha is not among the parameters"):
        space(confirm=asked | {"against": {"lora.lora_alpha": 8}})


@pytest.mark.parametrize("sampler", ["grid", "random"])
def test_the_setting_to_be_beaten_is_tried_first_however_few_are_tried(tiny_base, tiny_table, tmp_path, sampler):
    parameters = {"lora.r": [2, 3, 4], "train.learning_rate": [0.000001, 0.02]}
    asked = {"top": 1, "folds": 2, "seeds": 1, "against": {"lora.r": 3}}
    found = space(parameters=parameters, sampler=sampler, trials=1, confirm=asked)
    *_, last = sweep(found, recipe(tiny_base, tiny_table), tmp_path / "study")
    assert [one["settings"]["lora.r"] for one in last.record["settings"]] == [3]


def test_a_confirming_run_of_an_older_version_is_told(tmp_path):
    path = tmp_path / "0000-seed1-fold0of2.json"
    path.write_text('{"rows": [1], "true": [0], "predicted": [0], "macro_f1": 1.0, "seconds": 1.0}')
    with pytest.raises(RunError, match="fold0of2.json: written by an older rxtone, without probabilities; remove"):
        read_fold(FoldJob(None, 1, 0, 2, path))


def test_a_trial_equals_a_run_of_its_own_whatever_was_trained_before_it(tiny_base, tiny_table, tmp_path):
    bench = open_bench()
    plain = recipe(tiny_base, tiny_table, evaluation={"enabled": False, "reload_check": False})
    lora = {"variant": "pissa", "lora_dropout": 0.3}
    for name, own in (("first", recipe(tiny_base, tiny_table, lora=lora)),
                      ("second", recipe(tiny_base, tiny_table, lora={"variant": "dora"},
                                        train={"gradient_checkpointing": True, "engine": "reference"}))):  # fmt: skip
        (tmp_path / name).mkdir()
        list(run_trial(bench, own, tmp_path / name))
    (tmp_path / "trial").mkdir()
    *_, trained = run_trial(bench, plain, tmp_path / "trial")
    run = api.train(plain, out=tmp_path / "run")
    own, separate = (read_json_lines(path / "metrics.jsonl") for path in (tmp_path / "trial", run.path))
    assert [line.get("loss") for line in own] == [line.get("loss") for line in separate]
    scores = [line["validation_macro_f1"] for line in separate if "validation_macro_f1" in line]
    assert trained.macro_f1 == max(scores)
    assert load_recipe(tmp_path / "trial" / "config.yaml") == plain


@pytest.mark.parametrize("variant", ["lora", "dora", "pissa"])
def test_a_base_is_what_it_was_after_an_adapter(tiny_base, tiny_recipe, variant):
    model = load_base(str(tiny_base), precision="fp32").model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    lora = tiny_recipe.lora.model_copy(update={"variant": variant})
    with pytest.raises(ZeroDivisionError), adapted(model, lora, 1) as (wrapped, _):
        first = adapter_state(wrapped)
        raise ZeroDivisionError
    after = model.state_dict()
    assert list(after) == list(before)
    assert all((after[name] == before[name]).all() for name in before)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    with adapted(model, lora, 1) as (wrapped, _):
        assert all((adapter_state(wrapped)[name] == tensor).all() for name, tensor in first.items())


def test_a_setting_that_fails_is_recorded_and_the_study_goes_on(tiny_base, tiny_table, tmp_path):
    parameters = {"lora.target_modules": [["q", "v"], ["query"]]}
    events = list(sweep(space(parameters=parameters), recipe(tiny_base, tiny_table), tmp_path / "study"))
    states = {event.state: event.reason for event in events if isinstance(event, TrialEnded)}
    assert set(states) == {"complete", "failed"}
    assert "lora.target_modules: 'query' matches no linear layer of this base" in states["failed"]
    table = pl.read_parquet(tmp_path / "study" / "trials.parquet")
    assert table.filter(pl.col("state") == "failed")["reason"].item() == states["failed"]
    assert "matches no linear layer" in (tmp_path / "study" / "study.html").read_text()


def test_settings_that_all_fail_end_the_study(tiny_base, tiny_table, tmp_path):
    parameters = {"lora.target_modules": [["query"]], "lora.r": [1, 2, 3, 4, 5, 6]}
    with pytest.raises(RunError, match="the first 5 trials all failed, the last one: lora.target_modules: 'query'"):
        list(sweep(space(parameters=parameters), recipe(tiny_base, tiny_table), tmp_path / "study"))


def test_hopeless_settings_are_pruned_after_an_epoch(tiny_base, tiny_table, tmp_path):
    rates = [0.02, 0.019, 0.021, 0.018, 1e-9, 2e-9]
    searched = space(pruner="median", seed=27, parameters={"train.learning_rate": rates})  # the last two come last
    events = list(sweep(searched, recipe(tiny_base, tiny_table, train={"seed": 7}), tmp_path / "study"))
    assert len([event for event in events if isinstance(event, TrialEnded)]) == 6
    table = pl.read_parquet(tmp_path / "study" / "trials.parquet")
    pruned = table.filter(pl.col("state") == "pruned")
    assert pruned.height >= 1
    assert set(pruned["train.learning_rate"]) <= {1e-9, 2e-9}
    assert pruned["macro_f1"].null_count() == pruned.height
    assert pruned["epochs"].list.len().max() < 2


def test_settings_tried_before_are_not_trained_again(tiny_base, tiny_table, tmp_path):
    searched = space(sampler="random", trials=9, parameters={"lora.r": [2, 4]})
    events = list(sweep(searched, recipe(tiny_base, tiny_table, train={"max_steps": 1}), tmp_path / "study"))
    assert len([event for event in events if isinstance(event, TrialStarted)]) == 2  # there are no more
    assert pl.read_parquet(tmp_path / "study" / "trials.parquet").height == 2


def test_repeating_the_command_adds_nothing_and_more_trials_go_on(tiny_base, tiny_table, tmp_path):
    searched = space(sampler="tpe", trials=2, parameters={"train.learning_rate": {"log_uniform": [1e-4, 1e-1]}})
    own = recipe(tiny_base, tiny_table, train={"max_steps": 1})
    list(sweep(searched, own, tmp_path / "study"))
    first = pl.read_parquet(tmp_path / "study" / "trials.parquet")
    assert not [e for e in sweep(searched, own, tmp_path / "study") if isinstance(e, TrialStarted)]
    events = list(sweep(searched, own, tmp_path / "study", trials=4))
    assert len([e for e in events if isinstance(e, TrialStarted)]) == 2
    table = pl.read_parquet(tmp_path / "study" / "trials.parquet")
    assert table.head(2).equals(first)
    assert table["train.learning_rate"].n_unique() == 4


def test_sqlite_holds_the_study_too(tiny_base, tiny_table, tmp_path):
    url = f"sqlite:///{tmp_path / 'study.db'}"
    own = recipe(tiny_base, tiny_table, train={"max_steps": 1})
    list(sweep(space(), own, tmp_path / "study", storage=url, trials=1))
    events = list(sweep(space(), own, tmp_path / "study", storage=url))
    assert len([e for e in events if isinstance(e, TrialStarted)]) == 3
    assert not (tmp_path / "study" / "study.journal").exists()


def test_a_killed_study_goes_on_and_loses_and_repeats_nothing(tiny_base, tiny_table, tmp_path):
    rates = [0.001, 0.002, 0.003, 0.004, 0.005]
    file = write_study(tmp_path, tiny_base, tiny_table, {"train.learning_rate": rates},
                       confirm={"top": 2, "folds": 2, "seeds": 1}, train={"num_train_epochs": 4})  # fmt: skip
    out = tmp_path / "study"
    for moment in ("trials/0001/metrics.jsonl", "trials/0003/metrics.jsonl", "confirmation/*.json"):
        process = subprocess.Popen(command(file, "--out", out), stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 300
        while not list(out.glob(moment)) and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert list(out.glob(moment))
        (out / "study.journal.lock").symlink_to("study.journal")  # as if killed while it wrote
        with (out / "study.journal").open("ab") as journal:
            journal.write(b'{"op_code": 4, "wor')
        kept = {path.name: path.read_bytes() for path in out.glob("confirmation/*.json")}
    done = subprocess.run(command(file, "--out", out, "--json"), capture_output=True, text=True, check=True)
    assert {path.name: path.read_bytes() for path in out.glob("confirmation/*.json") if path.name in kept} == kept
    table = pl.read_parquet(out / "trials.parquet")
    assert table["state"].to_list() == ["complete"] * 5
    assert sorted(table["train.learning_rate"]) == rates
    assert len(json.loads(done.stdout)["settings"]) == 2
    # the re-queued trials end as undisturbed ones do
    whole = tmp_path / "whole"
    list(sweep(Space.model_validate(yaml.safe_load(file.read_text()) | {"confirm": None}),
               load_recipe(tmp_path / "tiny.yaml"), whole))  # fmt: skip
    columns = ["train.learning_rate", "macro_f1", "epochs"]
    undisturbed = pl.read_parquet(whole / "trials.parquet").select(columns).sort(columns[0])
    assert table.select(columns).sort(columns[0]).equals(undisturbed)
    store = open_study(StudyFolder(out), Space.model_validate(yaml.safe_load(file.read_text())),
                       load_recipe(tmp_path / "tiny.yaml")).store  # fmt: skip
    lost = [trial for trial in store.trials if "requeued" in trial.user_attrs]
    assert len(lost) == 2
    assert {trial.state.name for trial in lost} == {"FAIL"}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_study_that_is_told_to_stop_leaves_its_page(tiny_base, tiny_table, tmp_path, number, code):
    file = write_study(tmp_path, tiny_base, tiny_table, {"lora.r": [1, 2, 3]}, train={"num_train_epochs": 20})
    out = tmp_path / "study"
    process = subprocess.Popen(
        command(file, "--out", out), stderr=subprocess.PIPE, text=True,
        # What a shell does to a command in the background of a script; asked to stop, it stops all the same.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while not (out / "trials" / "0001" / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == code
    assert f"interrupted; what ended is kept in {out}, go on with the same command" in errors
    assert "Traceback" not in errors
    assert (out / "study.html").is_file()
    assert pl.read_parquet(out / "trials.parquet")["state"].to_list() == ["complete"]


def test_best_yaml_trains(tiny_base, tiny_table, tmp_path):
    own = recipe(tiny_base, tiny_table, train={"max_steps": 4})
    searched = space(confirm={"top": 1, "folds": 2, "seeds": 1}, parameters={"lora.r": [2]})
    list(sweep(searched, own, tmp_path / "study"))
    run = api.train(str(tmp_path / "study" / "best.yaml"), out=tmp_path / "run")
    assert json.loads((run.evaluation / "metrics.json").read_text())["split"] == "test"


def test_two_processes_do_not_work_on_one_study(tiny_base, tiny_table, tmp_path):
    folder = StudyFolder(tmp_path)
    with owned(folder), pytest.raises(RunError, match="another process works on this study"):
        list(sweep(space(), recipe(tiny_base, tiny_table), tmp_path))


def test_another_space_or_recipe_is_not_mixed_in(tiny_base, tiny_table, tmp_path):
    own = recipe(tiny_base, tiny_table, train={"max_steps": 1})
    list(sweep(space(parameters={"lora.r": [2]}), own, tmp_path / "study"))
    with pytest.raises(RunError, match=r"another space or recipe \(differs in parameters\)"):
        list(sweep(space(parameters={"lora.r": [4]}), own, tmp_path / "study"))
    with pytest.raises(RunError, match=r"differs in train\.max_steps"):
        changed = recipe(tiny_base, tiny_table, train={"max_steps": 2})
        list(sweep(space(parameters={"lora.r": [2]}), changed, tmp_path / "study"))


def test_a_study_of_an_older_recipe_goes_on(tiny_base, tiny_table, tmp_path):
    """A group that came to recipes later is missing in the study's own; its default is what was meant."""
    own, searched = recipe(tiny_base, tiny_table, train={"max_steps": 1}), space(parameters={"lora.r": [2]})
    list(sweep(searched, own, tmp_path / "study"))
    stored = StudyFolder(tmp_path / "study").recipe
    older = {key: group for key, group in yaml.safe_load(stored.read_text()).items() if key != "auxiliary"}
    del older["train"]["label_smoothing"]
    stored.write_text(yaml.safe_dump(older))
    events = list(sweep(searched, own, tmp_path / "study"))
    assert not [event for event in events if isinstance(event, TrialStarted)]


def test_bad_data_is_no_matter_of_a_trial(tiny_base, tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.csv"):
        list(sweep(space(), recipe(tiny_base, tmp_path / "nowhere.csv"), tmp_path / "study"))
    assert not (tmp_path / "study").exists()


def test_folds_hold_every_row_once_and_no_row_of_the_test(tiny_base, tiny_table):
    prepared = open_bench().prepared(recipe(tiny_base, tiny_table))
    cuts = [cut_fold(prepared, seed=3, fold=fold, of=4) for fold in range(4)]
    rows = sorted(review.row for _, held_out in cuts for review in held_out)
    assert rows == sorted(review.row for review in (*prepared.train, *prepared.validation))
    assert not set(rows) & {review.row for review in prepared.held_out}
    for rest, held_out in cuts:
        assert not {review.row for review in rest} & {review.row for review in held_out}


def test_stopping_early_leaves_the_bench_clean(tiny_base, tiny_table, tmp_path):
    own = recipe(tiny_base, tiny_table, lora={"variant": "pissa"})
    for event in (events := sweep(space(), own, tmp_path / "study")):
        if isinstance(event, TrialStep):
            break
    events.close()
    assert not list(Path(tmp_path / "study" / "trials").rglob("checkpoints"))
    assert (tmp_path / "study" / "study.html").is_file()


def test_the_adapter_of_a_trial_is_that_of_a_run(tiny_base, tiny_table, tmp_path):
    own = recipe(tiny_base, tiny_table, train={"max_steps": 5}, evaluation={"enabled": False, "reload_check": False})
    run = api.train(own, out=tmp_path / "run")
    state = {}
    bench = open_bench()
    (tmp_path / "trial").mkdir()
    for event in run_trial(bench, own, tmp_path / "trial"):
        if type(event).__name__ == "Trained":
            state = {n: p.detach().clone() for n, p in bench.base(own).model.named_parameters() if "lora_" in n}
    saved = load_file(run.adapter / "adapter_model.safetensors")
    assert len(state) == len(saved) > 0
    for name, tensor in saved.items():
        inner = name.removeprefix("base_model.model.").replace(".weight", ".default.weight")
        assert (state[inner] == tensor).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--engine", "dask"], "--engine: expected local or ray, got 'dask'"),
        (["--engine", "ray", "--together", "2"], "choose one of them"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    result = CliRunner().invoke(app, ["sweep", "quick", *options])
    assert isinstance(result.exception, RecipeError)
    assert message in str(result.exception)


def test_who_trains_together_on_a_cpu_is_told_that_it_is_slower():
    result = CliRunner().invoke(app, ["sweep", "no-such-space", "--together", "2"])
    assert "settings train faster one after another" in result.stderr
    assert isinstance(result.exception, RecipeError)


def test_a_storage_that_cannot_be_opened_is_told(tiny_base, tiny_table, tmp_path):
    with pytest.raises(RecipeError, match=r"--storage nonsense://x: cannot be opened: .* such as sqlite:///study\.db"):
        list(sweep(space(), recipe(tiny_base, tiny_table), tmp_path / "study", storage="nonsense://x"))


def test_a_folder_with_other_files_is_left_alone(tiny_base, tiny_table, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match="expected a new folder or a study, found other files"):
        list(sweep(space(), recipe(tiny_base, tiny_table), tmp_path))
    assert [path.name for path in tmp_path.iterdir() if path.name[0] != "."] == ["thesis.txt"]
