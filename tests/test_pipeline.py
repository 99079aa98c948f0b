import json
import shutil

import numpy as np
import polars as pl
import pytest
from safetensors.torch import load_file
from tiny import tiny_values, write_tiny_table

from rxtone import api, pipeline
from rxtone.config import check_recipe, load_recipe
from rxtone.errors import DataError, RecipeError, RunError
from rxtone.loading import load
from rxtone.pipeline import AdapterReady, DataReady, Evaluated
from rxtone.training.events import CheckpointSaved, EvalDone, StepDone


def recipe(base, table, **groups):
    values = tiny_values(base, table)
    for group, changes in groups.items():
        values[group] = values.get(group, {}) | changes
    return check_recipe(values, "tiny")


def test_the_run_folder_holds_what_the_design_says(tiny_run):
    names = {str(path.relative_to(tiny_run)) for path in tiny_run.rglob("*") if path.is_file()}
    assert {name for name in names if not name.startswith("checkpoints/")} == {
        "config.yaml", "data.json", "environment.json", "metrics.jsonl",
        "adapter/README.md", "adapter/adapter_config.json", "adapter/adapter_model.safetensors",
        "adapter/classifier.json", "adapter/manifest.json", "adapter/tokenizer.json",
        "adapter/validation.json",
        "evaluation/metrics.json", "evaluation/predictions.parquet", "evaluation/report.html",
        "evaluation/confusion-counts.png", "evaluation/confusion-share.png",
    }  # fmt: skip
    assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in names)


def test_it_learned_far_beyond_the_majority(tiny_run):
    metrics = json.loads((tiny_run / "evaluation" / "metrics.json").read_text())
    assert metrics["macro_f1"] >= 0.8
    assert metrics["baselines"]["majority"]["macro_f1"] <= 0.2
    assert metrics["baselines"]["zero_shot"]["macro_f1"] < metrics["macro_f1"]
    assert (metrics["split"], metrics["n"]) == ("test", 36)


def test_the_config_reads_back_as_the_recipe(tiny_run, tiny_recipe):
    read = load_recipe(tiny_run / "config.yaml")
    assert read.evaluation.reload_check
    assert read.model_copy(update={"evaluation": tiny_recipe.evaluation}) == tiny_recipe


def test_data_json_accounts_for_every_row(tiny_run):
    record = json.loads((tiny_run / "data.json").read_text())
    rows = [row for part in record["splits"].values() for row in part["row_numbers"]]
    assert sorted(rows) == list(range(1, 241))
    assert {name: part["rows"] for name, part in record["splits"].items()} == {
        "train": 168,
        "validation": 36,
        "test": 36,
    }
    assert record["splits"]["train"]["labels"] == {"positive": 56, "neutral": 56, "negative": 56}
    assert record["tables"]["train"]["rows"] == 240
    assert len(record["tables"]["train"]["sha256"]) == 64
    assert record["truncation"]["train"]["truncated"] == 0
    assert "great" not in (tiny_run / "data.json").read_text()


def test_metrics_jsonl_has_a_line_per_step_and_per_validation(tiny_run):
    lines = [json.loads(line) for line in (tiny_run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 253))
    assert set(steps[0]) == {
        "step", "epoch", "loss", "reviews", "seconds", "learning_rate", "reviews_per_second", "tokens_per_second",
        "peak_memory_bytes",
    }  # fmt: skip
    assert [line["epoch"] for line in lines if "validation_macro_f1" in line] == list(range(1, 13))


def test_predictions_hold_a_row_per_review_and_no_text(tiny_run):
    frame = pl.read_parquet(tiny_run / "evaluation" / "predictions.parquet")
    assert frame.height == 36
    assert {"label", "score", "p_positive", "p_neutral", "p_negative", "truncated", "abstained"} <= set(frame.columns)
    sums = frame.select(pl.sum_horizontal("p_positive", "p_neutral", "p_negative")).to_series()
    assert (sums - 1).abs().max() < 1e-12


def test_the_environment_tells_speed_memory_adapter_and_the_reload(tiny_run):
    environment = json.loads((tiny_run / "environment.json").read_text())
    assert environment["training"]["reviews_per_second"] > 0
    assert environment["training"]["peak_memory_bytes"] > 10**7
    assert len(environment["adapter"]["modules"]) == 18
    assert environment["reload_check"]["max_probability_change"] < 1e-5
    assert environment["reload_check"]["merged_flipped_labels"] == 0


def test_the_card_and_the_report_show_the_figures(tiny_run):
    metrics = json.loads((tiny_run / "evaluation" / "metrics.json").read_text())
    figure = f"{metrics['macro_f1']:.3f}"
    assert figure in (tiny_run / "adapter" / "README.md").read_text()
    assert figure in (tiny_run / "evaluation" / "report.html").read_text()


def test_events_come_in_the_order_of_the_story(tiny_base, tiny_table, tmp_path):
    story = recipe(tiny_base, tiny_table, train={"num_train_epochs": 1, "learning_rate": 0.01})
    kinds = [type(event) for event in pipeline.train(story, tmp_path / "run")]
    assert kinds == [DataReady, AdapterReady, *[StepDone] * 21, EvalDone, CheckpointSaved, Evaluated]


def test_the_same_recipe_gives_the_same_bytes(tiny_base, tiny_table, tmp_path):
    story = recipe(tiny_base, tiny_table, train={"num_train_epochs": 1}, lora={"lora_dropout": 0.2},
                   evaluation={"enabled": False})  # fmt: skip
    weights = []
    for name in ("a", "b"):
        api.train(story, out=tmp_path / name)
        weights.append((tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_a_stopped_run_resumes_to_the_same_adapter(tiny_base, tiny_table, tmp_path):
    story = recipe(tiny_base, tiny_table, lora={"lora_dropout": 0.2},
                   train={"num_train_epochs": 2, "checkpoint_every": 3})  # fmt: skip
    api.train(story, out=tmp_path / "whole")
    for event in pipeline.train(story, tmp_path / "cut"):
        if isinstance(event, StepDone) and event.step == 11:
            break
    with (tmp_path / "cut" / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 12, "lo')
    api.train(story, out=tmp_path / "cut", resume=True)
    states = [load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("whole", "cut")]
    assert all((states[0][name] == states[1][name]).all() for name in states[0])
    logs = [
        [json.loads(line).get("loss") for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "cut")
    ]
    assert logs[0] == logs[1]


def test_a_finished_run_is_left_alone_and_a_missing_evaluation_is_made_good(tiny_run, tiny_recipe, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    assert list(pipeline.train(tiny_recipe, run, resume=True)) == []
    shutil.rmtree(run / "evaluation")
    (event,) = pipeline.train(tiny_recipe, run, resume=True)
    assert isinstance(event, Evaluated)
    before = json.loads((tiny_run / "evaluation" / "metrics.json").read_text())
    assert json.loads((run / "evaluation" / "metrics.json").read_text()) == before


def test_resume_starts_afresh_where_nothing_exists(tiny_base, tiny_table, tmp_path):
    story = recipe(tiny_base, tiny_table, train={"max_steps": 1}, evaluation={"enabled": False})
    assert (api.train(story, out=tmp_path / "new", resume=True).adapter / "classifier.json").is_file()


def test_another_recipe_cannot_resume(tiny_run, tiny_base, tiny_table):
    with pytest.raises(RunError, match=r"cannot resume with another recipe \(lora\.r was 4, is 2\)"):
        list(pipeline.train(recipe(tiny_base, tiny_table, lora={"r": 2}), tiny_run, resume=True))


def test_without_a_test_every_artefact_says_validation(tiny_base, tiny_table, tmp_path):
    values = tiny_values(tiny_base, tiny_table)
    values["data"] |= {"test_fraction": 0}
    values["train"] |= {"max_steps": 2}
    run = api.train(check_recipe(values, "tiny"), out=tmp_path / "run")
    for path in (run.evaluation / "metrics.json", run.evaluation / "report.html", run.adapter / "README.md"):
        assert "validation, used for selection" in path.read_text()
    assert "test" not in json.loads(run.data.read_text())["splits"]


def test_test_rows_that_repeat_a_training_text_are_dropped_and_counted(tiny_base, tiny_table, tmp_path):
    test = write_tiny_table(tmp_path / "test.csv", n=12, seed=9)
    first = tiny_table.read_text().splitlines()[1]
    test.write_text(test.read_text() + first.upper() + "\n")
    values = tiny_values(tiny_base, tiny_table)
    values["data"] |= {"test": str(test)}
    values["train"] |= {"max_steps": 1}
    run = api.train(check_recipe(values, "tiny"), out=tmp_path / "run")
    record = json.loads(run.data.read_text())
    assert (record["dropped_test_rows"], record["splits"]["test"]["rows"]) == (1, 12)
    assert record["splits"]["train"]["rows"] + record["splits"]["validation"]["rows"] == 240


def test_both_forms_are_evaluated_where_both_are_trained(tiny_base, tiny_table, tmp_path):
    story = recipe(tiny_base, tiny_table, prompt={"max_tokens": 48, "text_share": 0.5})
    run = api.train(story, out=tmp_path / "run")
    metrics = json.loads((run.evaluation / "metrics.json").read_text())
    assert metrics["free_text"]["n"] == metrics["n"]
    assert metrics["free_text"]["macro_f1"] >= 0.6


def test_the_reload_is_compared_with_the_same_rows_in_the_same_batch(tiny_base, tiny_table, tmp_path, monkeypatch):
    """In bf16 the scores of a review depend on those beside it, by more than the tolerance once in a while."""
    scored, compared = [], []

    def score_dataset(scorer, dataset, *args, **kwargs):
        scored.append([row.tolist() for row in dataset.prompts])
        return real(scorer, dataset, *args, **kwargs)

    def check_reload(adapter, base, reviews, trained, precision):
        classifier = load(adapter, base=base, precision=precision, merged=False)
        compared.append((reviews, trained, classifier.score(reviews).log_probs))
        return {"rows": len(reviews)}

    real = pipeline.score_dataset
    monkeypatch.setattr(pipeline, "score_dataset", score_dataset)
    monkeypatch.setattr(pipeline, "check_reload", check_reload)
    read = recipe(
        tiny_base, tiny_table, model={"precision": "bf16"}, train={"max_steps": 3},
        evaluation={"reload_check": True, "enabled": False},
    )  # fmt: skip
    list(pipeline.train(read, tmp_path / "run"))
    [(reviews, trained, reloaded)] = compared
    assert len(reviews) == len(scored[-1]) == pipeline.CANARIES < len(scored[0])
    assert scored[-1] == scored[0][: len(reviews)]
    assert np.array_equal(trained, reloaded)


@pytest.mark.parametrize("variant", ["rslora", "dora", "pissa"])
def test_every_variant_trains_saves_and_reloads(tiny_base, tiny_table, tmp_path, variant):
    story = recipe(tiny_base, tiny_table, train={"max_steps": 3},
                   lora={"variant": variant, "r": 2, "lora_alpha": 4, "target_modules": ["q", "v"]},
                   evaluation={"enabled": False})  # fmt: skip
    run = api.train(story, out=tmp_path / "run")
    assert load(run).predict([{"benefits": "great"}])[0].label in {"positive", "neutral", "negative"}


@pytest.mark.parametrize(
    ("groups", "error", "reason"),
    [
        ({"lora": {"target_modules": ["query"]}}, RecipeError, "'query' matches no linear layer"),
        ({"data": {"train": "nowhere.csv"}}, DataError, "nowhere.csv"),
    ],
)
def test_a_wrong_input_leaves_nothing_half_written(tiny_base, tiny_table, tmp_path, groups, error, reason):
    values = tiny_values(tiny_base, tiny_table)
    for group, changes in groups.items():
        values[group] |= changes
    with pytest.raises(error, match=reason):
        api.train(check_recipe(values, "tiny"), out=tmp_path / "run")
    assert not (tmp_path / "run").exists() or list((tmp_path / "run").iterdir()) == []


def test_the_default_folder_is_named_after_recipe_and_time():
    assert api.default_out("druglib").parts[0] == "runs"
    assert api.default_out("druglib").name.startswith("druglib-20")


def test_soft_labels_and_a_further_task_reach_the_adapter_and_the_record(tiny_base, tiny_table, tmp_path):
    further = {"rating": {
        "column": "rating", "rule": {"great": ">=5", "awful": "<5"}, "template": "Rate this review : {fields}",
    }}  # fmt: skip
    quick = {"num_train_epochs": 1, "loss": "label_ce"}
    evaluation = {"baselines": False, "zero_shot": False}
    plain = api.train(recipe(tiny_base, tiny_table, train=quick, evaluation=evaluation), out=tmp_path / "plain")
    soft = recipe(tiny_base, tiny_table, train=quick | {"rating_noise": 1.5}, evaluation=evaluation)
    both = recipe(tiny_base, tiny_table, train=quick, auxiliary=further, evaluation=evaluation)
    weights = [load_file(plain.adapter / "adapter_model.safetensors")]
    for name, changed in (("soft", soft), ("both", both)):
        run = api.train(changed, out=tmp_path / name)
        weights.append(load_file(run.adapter / "adapter_model.safetensors"))
        assert load_recipe(run.config) == changed
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert any(not (weights[first][key] == weights[second][key]).all() for key in weights[0])
    assert "label_ce + rating (auxiliary)" in (tmp_path / "both" / "evaluation" / "report.html").read_text()


def test_a_further_task_without_its_column_is_refused_before_anything_is_written(tiny_base, tiny_table, tmp_path):
    further = {"effect": {"column": "efect", "rule": {"great": "a", "awful": "b"}, "template": "{fields}"}}
    with pytest.raises(DataError, match='expected the column "efect" .is it "effects".'):
        api.train(recipe(tiny_base, tiny_table, auxiliary=further), out=tmp_path / "run")
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_texts_are_shown_only_where_the_recipe_says_so(tiny_base, tiny_table, tmp_path):
    pages = []
    for texts in (False, True):
        story = recipe(tiny_base, tiny_table, train={"max_steps": 1}, evaluation={"texts": texts, "zero_shot": False})
        run = api.train(story, out=tmp_path / str(texts))
        pages.append((run.evaluation / "report.html").read_text())
        found = json.loads((run.evaluation / "metrics.json").read_text())["suspect_labels"]
        assert found["of"] == 204
        assert found["n"] >= len(found["most"])
    assert "<blockquote>" not in pages[0]
    assert "<mark style=" in pages[1]


def test_figures_are_sliced_by_columns_and_a_missing_column_is_noted(tiny_base, tmp_path):
    table = write_tiny_table(tmp_path / "reviews.csv", n=240)
    lines = table.read_text().splitlines()
    table.write_text("\n".join([lines[0] + ",drug", *(f"{line}, aspirin " for line in lines[1:])]) + "\n")
    story = recipe(tiny_base, table, train={"max_steps": 1},
                   evaluation={"slice_by": ["drug", "ward"], "zero_shot": False, "baselines": False})  # fmt: skip
    run = api.train(story, out=tmp_path / "run")
    metrics = json.loads((run.evaluation / "metrics.json").read_text())
    (part,) = (part for part in metrics["slices"] if part["by"] == "drug")
    assert [(row["value"], row["n"]) for row in part["slices"]] == [("aspirin", 36)]
    assert part["slices"][0]["accuracy"] == pytest.approx(metrics["accuracy"])
    assert metrics["not_sliced_by"] == ["ward"]
    assert "no column ward to slice by" in (run.evaluation / "report.html").read_text()
