"""The command line as a user meets it: a real process for what a process decides, the app itself for the rest."""

import json
import shutil
import signal
import socket
import subprocess
import sys

import polars as pl
import pytest
import yaml
from tiny import tiny_values, write_tiny_table

from rxtone import api
from rxtone.config import check_recipe
from rxtone.training.checkpoint import newest_checkpoint


@pytest.fixture
def recipe_file(tiny_base, tiny_table, tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_values(tiny_base, tiny_table)))
    return path


def test_help_is_quick_and_loads_nothing_heavy():
    """0.3 s is the promise; here the imports are looked at, since a timed test would fail on a busy machine."""
    code = (
        "import sys; sys.argv = ['rxtone', '--help']\n"
        "from rxtone.cli import main\n"
        "try:\n    main()\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'peft', 'polars', 'numpy', 'scipy', 'sklearn', 'matplotlib', 'pydantic',\n"
        "         'gradio', 'ray'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "train" in done.stdout


def test_train_prints_a_table_of_figures_and_where_the_run_is(call, recipe_file, tmp_path):
    code, out, err = call("train", recipe_file, "--out", tmp_path / "run", "--set", "train.num_train_epochs=1")
    assert code == 0
    assert "this classifier" in out
    assert "majority" in out
    assert "reviews/s, peak memory" in out
    assert f"run: {tmp_path / 'run'}" in out
    assert "step 1/21" in err
    assert "mean training loss" in err
    assert "18 layers" in err


def test_evaluate_prints_json_for_scripts(call, tiny_run, tmp_path):
    table = write_tiny_table(tmp_path / "new.csv", n=30, seed=44)
    code, out, _ = call("evaluate", tiny_run, table, "--json")
    metrics = json.loads(out)
    assert (code, metrics["n"], metrics["split"], metrics["training_rows"]) == (0, 30, "test", 0)
    assert set(metrics["per_class"]) == {"positive", "neutral", "negative"}
    assert metrics["baselines"]["tfidf_fields"]["macro_f1"] > 0.5


def test_evaluate_fails_its_gate_after_it_has_printed_the_figures(call, tiny_run, tmp_path):
    table = write_tiny_table(tmp_path / "new.csv", n=30, seed=44)
    with table.open("a") as file:  # one text with two ratings: nobody labels both right
        file.write("10,great relief,no pain\n1,great relief,no pain\n")
    code, out, err = call("evaluate", tiny_run, table, "--json", "--min-macro-f1", "1")
    found = json.loads(out)["macro_f1"]
    assert found < 1
    assert (code, err.splitlines()[-1]) == (
        4, f"error: macro-F1 {found:.4f} on 32 reviews is below --min-macro-f1 1.0"
    )  # fmt: skip
    code, again, _ = call("evaluate", tiny_run, table, "--json", "--min-macro-f1", found)
    assert (code, json.loads(again)["macro_f1"]) == (0, found)


def test_an_adapter_without_its_records_is_not_said_to_be_tested(call, tiny_run, tiny_table, tmp_path):
    alone = shutil.copytree(tiny_run / "adapter", tmp_path / "alone")
    code, out, _ = call("evaluate", alone, tiny_table, "--json")
    metrics = json.loads(out)
    assert (code, metrics["training_rows"]) == (0, None)
    assert metrics["split"] == "no record of the training reviews, so perhaps not a test"


def test_evaluating_on_training_rows_is_never_called_a_test(call, tiny_run, tiny_table):
    code, out, _ = call("evaluate", tiny_run, tiny_table)
    assert code == 0
    assert "includes training reviews, not a test" in out
    assert "204 of these rows were trained on" in out


def test_baselines_are_unavailable_where_the_training_table_is_gone(call, tiny_run, tmp_path):
    table = write_tiny_table(tmp_path / "new.csv", n=30, seed=44)
    _, out, _ = call("evaluate", tiny_run / "adapter", table, "--json")
    assert "macro_f1" in json.loads(out)["baselines"]["majority"]
    import shutil

    alone = shutil.copytree(tiny_run / "adapter", tmp_path / "alone")
    _, out, _ = call("evaluate", alone, table, "--json")
    assert json.loads(out)["baselines"]["majority"]["unavailable"] == "the run's data.json is not beside the adapter"


def test_generation_is_a_mode_that_counts_invalid_outputs(call, tiny_run, tmp_path):
    table = write_tiny_table(tmp_path / "new.csv", n=9, seed=44)
    code, out, _ = call("evaluate", tiny_run, table, "--json", "--mode", "generate")
    metrics = json.loads(out)
    assert (code, metrics["mode"]) == (0, "generate")
    assert 0 <= metrics["invalid_rate"] <= 1


@pytest.mark.parametrize("suffix", ["parquet", "csv", "tsv", "jsonl"])
def test_predict_keeps_every_row_in_order(call, tiny_run, tiny_table, tmp_path, suffix):
    output = tmp_path / f"out.{suffix}"
    code, _, err = call("predict", tiny_run, tiny_table, "-o", output)
    read = {"parquet": pl.read_parquet, "csv": pl.read_csv, "jsonl": pl.read_ndjson,
            "tsv": lambda path: pl.read_csv(path, separator="\t")}[suffix]  # fmt: skip
    frame = read(output)
    assert (code, frame.height) == (0, 240)
    assert "240 rows" in err
    assert frame["benefits"].to_list() == pl.read_csv(tiny_table)["benefits"].to_list()
    sums = frame.select(pl.sum_horizontal("p_positive", "p_neutral", "p_negative")).to_series()
    assert (sums - 1).abs().max() < 1e-9
    assert set(frame["label"]) <= {"positive", "neutral", "negative"}


def test_predict_a_text(call, tiny_run):
    code, out, _ = call("predict", tiny_run, "--text", "great relief", "--json")
    (answer,) = json.loads(out)
    assert code == 0
    assert answer["score"] == answer["probabilities"][answer["label"]] == max(answer["probabilities"].values())
    assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-12)
    _, out, _ = call("predict", tiny_run, "--text", "great relief", "--text", "great " * 100)
    first, second = out.splitlines()
    assert first.startswith(answer["label"] + "\tpositive ")
    assert second.endswith("\t(cut to fit the prompt)")


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["train", "druglb"], 2, "Did you mean druglib?"),
        (["train", "druglib", "--resume"], 2, "say which run with --out"),
        (["train", "druglib", "--set", "lora.rank=3"], 2, "did you mean lora.r?"),
        (["predict", "RUN"], 2, "give either INPUT with -o OUTPUT, or --text TEXT"),
        (["predict", "RUN", "in.csv"], 2, "give either INPUT with -o OUTPUT, or --text TEXT"),
        (["predict", "RUN", "TABLE", "-o", "out.xls"], 2, "expected a name ending in"),
        (["predict", "RUN", "TABLE", "-o", "no/such/out.csv"], 2, "the folder no/such does not exist"),
        (["predict", "RUN", "nowhere.csv", "-o", "out.csv"], 3, "nowhere.csv"),
        (["predict", "nowhere", "--text", "x"], 1, "expected a run folder"),
        (["evaluate", "RUN", "TABLE", "--mode", "guess"], 2, "expected score or generate"),
        (["config", "show", "x"], 2, "expected a shipped recipe"),
        (["data", "fetch", "x"], 3, "x"),
    ],
)  # fmt: skip
def test_mistakes_have_one_message_and_their_exit_code(
    call, tiny_run, tiny_table, tmp_path, monkeypatch, arguments, code, reason
):
    monkeypatch.chdir(tmp_path)
    filled = [str({"RUN": tiny_run, "TABLE": tiny_table}.get(argument, argument)) for argument in arguments]
    got, out, err = call(*filled)
    assert (got, out) == (code, "")
    assert err.startswith("error: ")
    assert reason in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


BAD_TABLES = {
    "no column": ("rating,benefits\n9,great\n", "effects"),
    "not a number": ("rating,benefits,effects\n9,great,none\nhigh,great,none\n", "'high'"),
    "outside the rule": ("rating,benefits,effects\n9,great,none\n4.5,great,none\n", "'4.5'"),
    "empty": ("rating,benefits,effects\n", "expected at least one data row, found none"),
    "a class without rows": ("rating,benefits,effects\n9,great,none\n5,some,none\n", "negative"),
}


@pytest.mark.parametrize("kind", BAD_TABLES)
def test_a_bad_table_is_refused_with_exit_3_and_nothing_is_written(call, recipe_file, tmp_path, kind):
    content, reason = BAD_TABLES[kind]
    table = tmp_path / "bad.csv"
    table.write_text(content)
    code, out, err = call("train", recipe_file, "--set", f"data.train={table}", "--out", tmp_path / "run")
    assert (code, out) == (3, "")
    assert "bad.csv" in err
    assert reason in err
    assert not (tmp_path / "run").exists() or list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize("rule", ["{a: '>=7', b: '>=6', c: '<=5'}", "{a: '>=7', b: '<=4'}"])
def test_an_overlapping_or_gapped_rule_is_refused_with_exit_2(call, recipe_file, tmp_path, rule):
    code, _, err = call("train", recipe_file, "--set", f"data.label.rule={rule}", "--out", tmp_path / "run")
    assert code == 2
    assert "Traceback" not in err


def test_config_commands_print_what_they_promise(call):
    assert call("config", "list")[1].split() == [
        "demo",
        "druglib",
        "druglib-aspects",
        "druglib-mini",
        "druglib-tutorial",
        "laptop",
        "t4",
    ]
    assert yaml.safe_load(call("config", "show", "laptop", "--set", "lora.r=4")[1])["lora"]["r"] == 4
    assert "properties" in json.loads(call("config", "schema")[1])


def started(recipe_file, out, *options):
    """`rxtone train` in a process of its own, in the middle of its steps."""
    command = [sys.executable, "-m", "rxtone", "train", str(recipe_file), "--out", str(out)]
    command += ["--set", "train.num_train_epochs=500", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if line.startswith("epoch"):
            return process
    raise AssertionError(process.wait())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_step_saves_it_and_has_its_exit_code(tmp_path, recipe_file, number, code):
    with started(recipe_file, tmp_path / "run") as process:
        process.send_signal(number)
        rest = process.stderr.read()
        assert process.wait(timeout=60) == code
    assert "interrupted; the last checkpoint is kept" in rest
    assert "Traceback" not in rest
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    newest = newest_checkpoint(tmp_path / "run" / "checkpoints")
    assert newest.name == f"step-{steps[-1]:06d}"
    assert not (tmp_path / "run" / ".lock").exists()


def test_a_second_signal_stops_at_once_and_a_whole_state_stays(tmp_path, recipe_file):
    with started(recipe_file, tmp_path / "run", "--set", "train.checkpoint_every=5") as process:
        process.send_signal(signal.SIGSTOP)  # so that both are there before it can react to the first
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGCONT)
        rest = process.stderr.read()
        assert process.wait(timeout=60) in {130, 143}
    assert "stopped at once" in rest
    assert newest_checkpoint(tmp_path / "run" / "checkpoints") is not None


def test_an_unforeseen_error_shows_the_way_and_no_data(call, monkeypatch, tiny_run):
    def broken(*_, **__):
        raise KeyError("zebrafish quokka")

    monkeypatch.setattr("rxtone.cli_work._predict_texts", broken)
    code, _, err = call("predict", tiny_run, "--text", "zebrafish quokka")
    assert code == 1
    assert "test_cli.py" in err
    assert "error: KeyError inside rxtone, id " in err
    assert "quokka" not in err


def test_train_logs_json_where_it_is_asked_to(call, recipe_file, tmp_path):
    code, _, err = call(
        "train", recipe_file, "--out", tmp_path / "run", "--set", "train.max_steps=2", "--log-json",
        "--set", "evaluation.enabled=false",
    )  # fmt: skip
    lines = [json.loads(line) for line in err.splitlines()]
    assert code == 0
    assert [line["event"] for line in lines] == [
        "DataReady", "AdapterReady", "StepDone", "StepDone", "EvalDone", "CheckpointSaved",
    ]  # fmt: skip
    assert (lines[2]["level"], lines[2]["step"], lines[2]["reviews"]) == ("info", 1, 8)


def test_compare_tells_two_runs_apart(call, tiny_run, tiny_base, tiny_table, tmp_path):
    api.train(
        check_recipe(tiny_values(tiny_base, tiny_table) | {"train": {"max_steps": 1}}, "weak"), out=tmp_path / "weak"
    )
    table = write_tiny_table(tmp_path / "new.csv", n=60, seed=44)
    code, out, _ = call("compare", tiny_run, tmp_path / "weak", "--on", table, "--out", tmp_path / "page")
    assert code == 0
    assert "macro-F1" in out
    assert "weak" in out
    page = (tmp_path / "page" / "comparison.html").read_text()
    assert "<script" not in page
    comparison = json.loads((tmp_path / "page" / "comparison.json").read_text())
    assert comparison["runs"][str(tiny_run)]["macro_f1"] > comparison["runs"][str(tmp_path / "weak")]["macro_f1"]
    assert comparison["notes"] == []
    assert call("compare", tiny_run, tiny_run, "--on", table)[0] == 2
    seen = call("compare", tiny_run, tmp_path / "weak", "--on", tiny_table)[2]
    assert f"{tiny_run} was trained on 204 of these 240 reviews: no test of it." in seen


def test_drift_is_seen_and_its_absence_too(call, tiny_run, tmp_path):
    same = write_tiny_table(tmp_path / "same.csv", n=60, seed=44)
    code, out, _ = call("drift", tiny_run, same, "--json")
    assert (code, json.loads(out)["drifted"]) == (0, False)
    other = tmp_path / "other.csv"
    lines = same.read_text().splitlines()
    other.write_text("\n".join([lines[0], *(line for line in lines[1:] if line.startswith("2,"))] * 1) + "\n")
    other.write_text(
        other.read_text() + "\n".join(f"2,the pill was {word},awful useless pain" for word in ["awful"] * 40) + "\n"
    )
    assert json.loads(call("drift", tiny_run, other, "--json")[1])["drifted"]


def test_the_audit_names_what_is_wrong_with_a_table(call, recipe_file, tiny_table, tmp_path):
    lines = tiny_table.read_text().splitlines()
    table = tmp_path / "repeats.csv"
    table.write_text("\n".join([*lines, lines[1].upper()]) + "\n")
    code, out, _ = call("data", "audit", recipe_file, "--set", f"data.train={table}", "--json")
    audit = json.loads(out)
    assert code == 0
    assert audit["parts"]["train"]["rows"] == 241
    assert len(audit["parts"]["train"]["exact_repeats"]) == 1


def test_the_audit_asks_no_hub_for_a_tokenizer(call, recipe_file, tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("a name was looked up"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    code, _, _ = call("data", "audit", recipe_file, "--set", "model.base=google/none-such", "--out", tmp_path / "audit")
    assert code == 0
    page = (tmp_path / "audit" / "audit.html").read_text()
    assert "base google/none-such: its tokenizer is not on this machine; name a base that is, such as bundled" in page


def test_an_export_answers_like_its_run(call, tiny_run, tiny_table, tmp_path):
    code, out, _ = call("export", tiny_run, "--format", "merged", "-o", tmp_path / "merged", "--canaries", tiny_table)
    assert (code, json.loads(out)["flipped_labels"]) == (0, 0)
    answers = [call("predict", run, "--text", "great relief", "--json")[1] for run in (tiny_run, tmp_path / "merged")]
    first, second = (json.loads(answer)[0]["probabilities"] for answer in answers)
    assert first == pytest.approx(second, abs=1e-5)


def test_a_dry_push_shows_what_would_go(call, tiny_run):
    code, out, err = call("push", tiny_run, "org/name", "--dry-run")
    assert code == 0
    assert "adapter_model.safetensors" in out
    assert "not on the hub" in err
