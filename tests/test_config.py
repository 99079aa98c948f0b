import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rxtone.config import cache_dir, check_recipe, dump_recipe, load_recipe, offline, recipe_schema, shipped_recipes
from rxtone.errors import RecipeError


def test_shipped_recipes_are_the_documented_ones():
    assert shipped_recipes() == [
        "demo",
        "druglib",
        "druglib-aspects",
        "druglib-mini",
        "druglib-tutorial",
        "laptop",
        "t4",
    ]


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_survives_a_round_trip(name):
    recipe = load_recipe(name)
    assert check_recipe(yaml.safe_load(dump_recipe(recipe)), name) == recipe


def test_the_tutorial_recipe_is_the_classic_one_to_the_letter():
    recipe = load_recipe("druglib-tutorial")
    assert (recipe.lora.r, recipe.lora.lora_alpha, recipe.lora.lora_dropout) == (8, 16, 0.1)
    assert recipe.lora.target_modules == ["q", "v"]
    assert (recipe.train.learning_rate, recipe.train.num_train_epochs) == (3e-4, 4)
    assert (recipe.train.max_grad_norm, recipe.train.per_device_train_batch_size) == (1.0, 8)
    assert (recipe.prompt.truncation, recipe.prompt.max_tokens, recipe.model.precision) == ("tail", 256, "fp32")
    assert (recipe.model.base, recipe.train.early_stopping_patience) == ("google/flan-t5-base", None)


def test_overrides_are_yaml_and_reach_nested_keys():
    recipe = load_recipe("druglib", ["lora.r=4", "lora.target_modules=[q, v, o]", "data.test=null"])
    assert (recipe.lora.r, recipe.lora.target_modules, recipe.data.test) == (4, ["q", "v", "o"], None)


def test_all_faults_come_in_one_message_and_name_the_nearest_key():
    with pytest.raises(RecipeError) as caught:
        load_recipe("druglib", ["lora.rank=3", "train.lerning_rate=2", "model.precision=int8", "train.seed=-1"])
    message = str(caught.value)
    assert message.startswith("recipe druglib has 4 faults:\n")
    assert "  lora.rank: unknown key; did you mean lora.r?" in message
    assert "  train.lerning_rate: unknown key; did you mean train.learning_rate?" in message
    assert "  model.precision: Input should be 'auto', 'fp32', 'bf16' or 'fp16' (got 'int8')" in message
    assert "  train.seed: Input should be greater than or equal to 0 (got -1)" in message


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("lora.r", "expected group.key=value, such as lora.r=16"),
        ("=3", "expected group.key=value, such as lora.r=16"),
        ("lora.r=[", "the value is not valid YAML"),
        ("data.train=2024-13-45", "the value is not valid YAML: month must be in 1..12"),
        ("lora.r.x=3", "r holds 16, so it has no key x"),
    ],
)
def test_a_wrong_override_says_what_is_wrong(override, reason):
    with pytest.raises(RecipeError, match="--set") as caught:
        load_recipe("druglib", [override])
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"data: [", "not valid YAML"),
        (b"data: 2024-13-45", "not valid YAML: month must be in 1..12"),
        (b"- 1", "expected groups (data, prompt, model, lora, train ...), got list"),
        (b"", "expected groups (data, prompt, model, lora, train ...), got NoneType"),
        (b"\xff\xfe", "expected UTF-8, got byte 0xff at 0"),
        (b"lora: {r: 8}", "data: missing"),
        (b"data: {train: a.csv, text_fields: {}, label: {column: c, rule: {a: 1, b: 2}}}", "at least one text field"),
        (b"data: {train: a.csv, text_fields: {A: a}, label: {column: c, rule: {a: 1}}}", "at least two labels, got 1"),
    ],
)
def test_a_wrong_file_says_what_is_wrong(tmp_path, content, reason):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert reason in str(caught.value)
    assert "recipe.yaml" in str(caught.value)


def test_an_unknown_recipe_is_answered_with_the_nearest_name():
    with pytest.raises(RecipeError, match=r"Did you mean druglib\?"):
        load_recipe("druglb")


def test_a_template_without_its_placeholder_is_refused():
    with pytest.raises(RecipeError, match=r"prompt\.template must contain \{fields\}, or \{text\}"):
        load_recipe("druglib", ["prompt.template='Say something'"])
    with pytest.raises(RecipeError, match=r"prompt\.text_template must contain \{text\}"):
        load_recipe("druglib", ["prompt.text_template='{fields}'"])
    assert load_recipe("druglib", ["prompt.template='{text}'"]).prompt.template == "{text}"


@pytest.mark.parametrize(
    ("override", "kind"),
    [
        ("prompt.template={text}", "a mapping"),
        ("prompt.template=[a]", "a list"),
        ("model.base=5", "a number or a date"),
        ("model.base=2024-01-01", "a number or a date"),
        ("model.base=no", "true or false"),
    ],
)
def test_a_text_that_yaml_takes_for_something_else_wants_quotes(override, kind):
    key = override.partition("=")[0]
    with pytest.raises(RecipeError, match=f"{key}: expected a text, but YAML reads this value as {kind}; put it in qu"):
        load_recipe("druglib", [override])


@pytest.mark.parametrize("override", ["model.base=null", "model.base="])
def test_a_text_that_is_missing_wants_one_and_no_quotes(override):
    with pytest.raises(RecipeError, match=r"model\.base: expected a text, got nothing \(null\); give one, or take the"):
        load_recipe("druglib", [override])


@pytest.mark.parametrize("weights", ["{positive: 1, negative: 2}", "{positive: 1, neutral: 0, negative: 2}", "{a: 1}"])
def test_class_weights_must_fit_the_labels(weights):
    with pytest.raises(RecipeError, match="expected a positive weight for each of positive, neutral, negative, got"):
        load_recipe("druglib", [f"train.class_weights={weights}"])


def test_recipes_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        load_recipe("druglib").lora.r = 3


def test_the_schema_documents_every_key():
    schema = json.loads(recipe_schema())
    groups = [schema["$defs"][name] for name in schema["$defs"]]
    undocumented = [
        key for group in groups for key, value in group["properties"].items()
        if "description" not in value and "$ref" not in value
    ]  # fmt: skip
    assert undocumented == []


def test_the_environment_names_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("RXTONE_CACHE", str(tmp_path / "mine"))
    assert cache_dir() == tmp_path / "mine"
    monkeypatch.delenv("RXTONE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "rxtone"


@pytest.mark.parametrize(("value", "expected"), [("1", True), ("true", True), ("0", False), ("", False)])
def test_offline_follows_the_hub_variables(monkeypatch, value, expected):
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert offline() is expected


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
))  # fmt: skip
def test_any_values_give_a_recipe_or_a_recipe_error(values):
    groups = {"data": values, "lora": values, "train": values}
    with pytest.raises(RecipeError):
        check_recipe(groups, "fuzz")


@pytest.mark.parametrize("key", ["label_smoothing=0.1", "rating_noise=1.0"])
def test_soft_targets_belong_to_label_ce(key):
    name = key.partition("=")[0]
    with pytest.raises(RecipeError, match=rf"train\.{name}: only with train\.loss=label_ce, got loss 'token_ce'"):
        load_recipe("druglib", [f"train.{key}"])
    assert getattr(load_recipe("druglib", ["train.loss=label_ce", f"train.{key}"]).train, name) is not None


def test_an_auxiliary_task_needs_its_prompt_and_rule():
    task = "auxiliary={rating: {column: rating, rule: {low: 1..5, high: 6..10}, template: 'Rate this:'}}"
    with pytest.raises(RecipeError, match=r"auxiliary\.rating: template must contain \{fields\}"):
        load_recipe("druglib", [task])
    recipe = load_recipe("druglib", [task.replace("this:", "this: {fields}")])
    assert recipe.auxiliary["rating"].share == 0.5
