"""Aspects: further adapters on one base, trained and evaluated like the main task."""

import json

import pytest
import yaml
from peft import PeftModel
from tiny import BAD, GOOD, tiny_rows, tiny_values
from transformers import T5ForConditionalGeneration

import rxtone
from rxtone import api
from rxtone.config import aspect_recipe, check_recipe, load_recipe
from rxtone.errors import DataError, RecipeError


@pytest.fixture(scope="module")
def values(tiny_base, tmp_path_factory):
    table = tmp_path_factory.mktemp("aspects") / "reviews.csv"
    rows = ["rating,benefits,effects,worked"]
    for rating, benefits, effects in tiny_rows(180, 3):
        kind = "well" if set(benefits.split()) & set(GOOD) else "badly" if set(benefits.split()) & set(BAD) else "so"
        rows.append(f"{rating},{benefits},{effects},{kind}")
    table.write_text("\n".join(rows) + "\n")
    found = tiny_values(tiny_base, table)
    found["train"] |= {"num_train_epochs": 1, "class_weights": {"positive": 1.0, "neutral": 2.0, "negative": 1.0}}
    found["aspects"] = {
        "effect": {
            "label": {"column": "worked", "rule": {"great": "well", "middling": "so", "useless": "badly"}},
            "template": "Classify the review as {labels}:\n{fields}",
            "text_template": "Classify the review as {labels}:\n{text}",
        }
    }
    return found


@pytest.fixture(scope="module")
def run(values, tmp_path_factory):
    return api.train(check_recipe(values, "tiny"), out=tmp_path_factory.mktemp("run") / "run")


def test_each_aspect_leaves_an_adapter_and_the_records_of_a_run(run):
    adapter = run.path / "adapters" / "effect"
    assert {"adapter_config.json", "adapter_model.safetensors", "classifier.json", "README.md"} <= {
        path.name for path in adapter.iterdir()
    }
    records = run.path / "aspects" / "effect"
    assert {"config.yaml", "data.json", "metrics.jsonl", "environment.json", "checkpoints", "evaluation"} == {
        path.name for path in records.iterdir()
    }
    metrics = json.loads((records / "evaluation" / "metrics.json").read_text())
    assert metrics["labels"] == ["great", "middling", "useless"]
    assert set(metrics["baselines"]) == {"majority", "tfidf_fields", "tfidf_text", "zero_shot"}
    assert "macro_f1_ci" in metrics


def test_the_main_task_is_as_without_aspects(run):
    assert rxtone.load(run).labels == ("positive", "neutral", "negative")
    assert load_recipe(run.config).aspects["effect"].label.column == "worked"


def test_an_aspect_answers_by_its_own_labels_and_prompt(run):
    classifier = rxtone.load(run.path / "adapters" / "effect")
    assert classifier.predict([{"Benefits": "great"}])[0].label in {"great", "middling", "useless"}
    assert classifier.spec.prompt.template.startswith("Classify the review as")


def test_it_opens_as_plain_peft(run, tiny_base):
    base = T5ForConditionalGeneration.from_pretrained(tiny_base)
    assert PeftModel.from_pretrained(base, run.path / "adapters" / "effect").peft_config["default"].r == 4


def test_evaluate_finds_the_records_of_an_aspect(call, run, values):
    code, out, _ = call("evaluate", run.path / "adapters" / "effect", values["data"]["train"], "--json")
    metrics = json.loads(out)
    assert code == 0
    assert metrics["training_rows"] > 0
    assert "macro_f1" in metrics["baselines"]["majority"]


def test_the_command_line_shows_both_and_resume_leaves_them(call, run, values, tmp_path):
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(values))
    before = (run.path / "adapters" / "effect" / "adapter_model.safetensors").stat().st_mtime_ns
    code, out, _ = call("train", recipe, "--out", run.path, "--resume")
    assert (code, "aspect effect:" in out) == (0, True)
    assert (run.path / "adapters" / "effect" / "adapter_model.safetensors").stat().st_mtime_ns == before


def test_the_recipe_of_an_aspect_stands_alone(values):
    own = aspect_recipe(check_recipe(values, "tiny"), "effect")
    assert own.aspects == {}
    assert own.train.class_weights is None
    assert own.data.train == values["data"]["train"]


def test_names_of_aspects_are_names_of_folders(values):
    bad = values | {"aspects": {"../x": values["aspects"]["effect"]}}
    with pytest.raises(RecipeError, match="aspects"):
        check_recipe(bad, "tiny")


def test_the_shipped_recipe_asks_for_both_aspects_in_five_levels():
    recipe = load_recipe("druglib-aspects")
    assert {name: len(aspect.label.rule) for name, aspect in recipe.aspects.items()} == {
        "effectiveness": 5,
        "side-effects": 5,
    }
    plain = load_recipe("druglib")
    assert recipe.model_copy(update={"aspects": {}}) == plain


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"column": "nowhere"}, DataError, "nowhere"),
        ({"rule": {"great": "well", "ΩΩ": "so", "useless": "badly"}}, RecipeError, r"aspects\.effect: label 'ΩΩ'"),
    ],
)
def test_what_an_aspect_lacks_is_told_before_anything_is_trained(values, tmp_path, change, error, message):
    label = values["aspects"]["effect"]["label"] | change
    wrong = values | {"aspects": {"effect": values["aspects"]["effect"] | {"label": label}}}
    with pytest.raises(error, match=message):
        api.train(check_recipe(wrong, "tiny"), out=tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
