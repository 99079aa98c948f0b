import pytest
import yaml

from rxtone.config import load_recipe
from rxtone.errors import RecipeError
from rxtone.space import Space, apply_settings, check_space, grid, load_space, settings_of, shipped_spaces, shown, spelt


def space(**changes):
    values = {"recipe": "demo", "sampler": "grid", "parameters": {"lora.r": [8, 16]}}
    return Space.model_validate(values | changes)


@pytest.mark.parametrize("name", ["quick", "thorough", "tutorial"])
def test_shipped_spaces_fit_their_recipes(name):
    assert name in shipped_spaces()
    found = load_space(name)
    check_space(found, load_recipe(found.recipe))


def test_the_tutorial_space_has_the_72_settings_of_the_tutorial():
    found = load_space("tutorial")
    points = grid(found, load_recipe(found.recipe))
    assert len(points) == len({str(point) for point in points}) == 72
    assert {point["lora.r"] for point in points} == {8, 16}
    assert {point["lora.lora_alpha"] for point in points} == {16, 32, 64}
    assert {point["lora.target_modules"] for point in points} == {"[q, v]", "[q, v, o]", "[q, k, v, o]", "[all-linear]"}


def test_a_ratio_and_a_condition_resolve_to_recipe_keys():
    found = space(parameters={
        "lora.variant": ["lora", "rslora"],
        "lora.r": [4, 8],
        "lora.lora_alpha": {"choice": [1, 2], "times": "lora.r", "when": {"lora.variant": "lora"}},
        "train.per_device_train_batch_size": {"integer": [8, 16], "step": 8, "when": {"lora.r": [8]}},
    })  # fmt: skip
    recipe = load_recipe("demo")
    points = grid(found, recipe)
    assert len(points) == 2 + 4 + 1 + 2  # lora: r 4 x alpha, r 8 x alpha x batch; rslora: r 4, r 8 x batch
    point = {
        "lora.variant": "lora",
        "lora.r": 8,
        "lora.lora_alpha / lora.r": 2,
        "train.per_device_train_batch_size": 16,
    }
    assert point in points
    settings = settings_of(found, recipe, point)
    assert settings == {
        "lora.variant": "lora", "lora.r": 8, "lora.lora_alpha": 16, "train.per_device_train_batch_size": 16
    }  # fmt: skip
    changed = apply_settings(recipe, settings, "test")
    assert (changed.lora.r, changed.lora.lora_alpha, changed.train.per_device_train_batch_size) == (8, 16, 16)
    assert changed.data == recipe.data


def test_lists_and_mappings_are_spelt_in_one_line_and_found_again():
    weights = {"positive": 1.0, "neutral": 2.0, "negative": 1.5}
    found = space(parameters={"train.class_weights": [None, "balanced", weights], "lora.target_modules": [["q", "v"]]})
    assert spelt(weights) == "{negative: 1.5, neutral: 2.0, positive: 1.0}"
    point = {"train.class_weights": spelt(weights), "lora.target_modules": "[q, v]"}
    assert settings_of(found, load_recipe("demo"), point)["train.class_weights"] == weights
    check_space(found, load_recipe("demo"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parameters": {"train.seed": [1, 2]}}, "train.seed cannot be searched"),
        ({"parameters": {"data.train": ["a.csv", "b.csv"]}}, "data.train cannot be searched"),
        ({"parameters": {"lora.r": {"choice": [1], "integer": [1, 2]}}}, "exactly one of .* got choice, integer"),
        ({"parameters": {"train.learning_rate": {"log_uniform": [0.0, 1.0]}}}, r"numbers above 0, got \[0.0, 1.0\]"),
        ({"parameters": {"lora.r": {"integer": [9, 3]}}}, r"\[lowest, highest\], got \[9, 3\]"),
        ({"parameters": {"train.learning_rate": {"uniform": [0.1, 0.2]}}}, "train.learning_rate has no countable"),
        ({"sampler": "tpe"}, "sampler tpe needs a number of trials"),
        ({"parameters": {"lora.lora_alpha": {"choice": [1], "times": "lora.r"}, "lora.r": [1]}}, "must stand above it"),
        ({"paramters": {}}, "paramters"),
    ],
)
def test_what_is_wrong_in_a_space_is_said(changes, message, tmp_path):
    values = {"recipe": "demo", "sampler": "grid", "parameters": {"lora.r": [8, 16]}} | changes
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    with pytest.raises(RecipeError, match=message):
        load_space(path)


def test_every_value_is_checked_against_the_recipe_before_anything_is_trained():
    found = space(parameters={
        "lora.rank": [8], "lora.lora_dropout": [0.1, 1.5], "lora.r": {"choice": [1], "when": {"lora.kind": "x"}}
    })  # fmt: skip
    with pytest.raises(RecipeError) as caught:
        check_space(found, load_recipe("demo"))
    assert "lora.rank: unknown key" in str(caught.value)
    assert "lora.lora_dropout: Input should be less than 1 (got 1.5)" in str(caught.value)
    assert "lora.kind, which is no recipe key" in str(caught.value)


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ({"effectiveness": {"column": "effectiveness"}, "rating": {"column": "rating"}}, "effectiveness + rating"),
        ({}, "none"),
        ({"negative": 1.5, "neutral": 2.0}, "{negative: 1.5, neutral: 2.0}"),
        (["q", "v"], "[q, v]"),
        (0.00051234, "0.000512"),
        (None, "None"),
        ("ordinal", "ordinal"),
    ],
)
def test_a_choice_is_shown_in_one_short_line(value, line):
    assert shown(value) == line == (line if isinstance(value, float) else shown(spelt(value)))


def test_a_misspelt_space_is_answered_with_the_nearest():
    with pytest.raises(RecipeError, match="space tutorail: .*Did you mean tutorial"):
        load_space("tutorail")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\xff", "expected UTF-8, got byte 0xff at 0"),
        (b"- lora.r", "expected keys (recipe, sampler, trials, parameters ...), got list"),
        (b"recipe: 2024-13-45", "not valid YAML: month must be in 1..12"),
        (b"recipe: demo", "parameters: Field required"),
    ],
)
def test_a_file_that_is_no_space_says_why(tmp_path, content, reason):
    path = tmp_path / "space.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError) as caught:
        load_space(path)
    assert str(path) in str(caught.value)
    assert reason in str(caught.value)
