"""Recipes: one frozen model per group, strict YAML in, resolved YAML out, JSON schema.

A recipe is a shipped name (``druglib``) or the path of a YAML file. Unknown keys fail, all faults
come in one message, and each unknown key is answered with the nearest valid one. This is also the
only module that reads the environment (see :func:`cache_dir` and :func:`offline`).
"""

from __future__ import annotations

import difflib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from rxtone.errors import RecipeError
from rxtone.yaml_files import read_yaml, shipped_names

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

SENTIMENT = frozenset({"positive", "neutral", "negative"})
"""The labels that the behavioural suite knows."""

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[int, Field(gt=0)]


class Group(BaseModel):
    """What all recipe groups share: frozen, strict about unknown keys, documented fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class LabelConfig(Group):
    """Which column gives the label, and by which rule."""

    column: str
    """Column that holds the rating or the class."""
    rule: dict[str, Any]
    """Label word -> condition: `">=7"`, `"5..6"`, `"<=4"`, a value, or a list of values. For an
    ordered task the labels stand in order, best to worst or worst to best."""
    ordered: bool | None = None
    """Whether the labels stand in order, so that a near miss is better than a far one (`quadratic_kappa` says how
    much). Null: yes where the rule compares numbers, no where it compares words."""

    @field_validator("rule")
    @classmethod
    def _at_least_two(cls, rule: dict[str, Any]) -> dict[str, Any]:
        if len(rule) < 2:
            msg = f"expected at least two labels, got {len(rule)}"
            raise ValueError(msg)
        return rule


class DataConfig(Group):
    """The reviews: where they are, how they are split, which columns are read."""

    train: str
    """Table to learn from: a path (.csv, .tsv, .jsonl, .parquet), `druglib:train`, `sample:train`
    or `hf:name:split`."""
    test: str | None = None
    """Table to judge on; null cuts `test_fraction` from train."""
    validation_fraction: Annotated[float, Field(gt=0.0, lt=0.9)] = 0.15
    """Share of the training table used to choose the checkpoint."""
    test_fraction: Fraction = 0.15
    """Share cut from train as test where `test` is null; 0 leaves none, and every artefact then
    says that its figures are on validation rows."""
    group_by: str | None = None
    """Column whose rows stay on one side of every split (a drug, a patient)."""
    split_seed: Annotated[int, Field(ge=0)] | None = None
    """Seed of the split; null takes `train.seed`. Runs that differ in `train.seed` alone then share their rows."""
    text_fields: dict[str, str]
    """Name shown in the prompt -> column."""
    label: LabelConfig

    @field_validator("text_fields")
    @classmethod
    def _some_fields(cls, fields: dict[str, str]) -> dict[str, str]:
        if not fields:
            msg = "expected at least one text field (name in the prompt: column)"
            raise ValueError(msg)
        return fields


def _require_slot(key: str, template: str) -> None:
    if "{fields}" not in template and "{text}" not in template:
        msg = f"{key} must contain {{fields}}, or {{text}} for the texts without their names"
        raise ValueError(msg)


class PromptConfig(Group):
    """How a review becomes a prompt, and what happens to one that is too long."""

    template: str = "Classify the sentiment of this review as {labels}:\n{fields}"
    """Prompt of a review with fields; `{labels}` and `{fields}` (`Name: text Name: text`) are filled in, or
    `{text}` in place of `{fields}`: the texts alone, without the names."""
    text_template: str = "Classify the sentiment of this review as {labels}:\n{text}"
    """Prompt of a review that is one free text."""
    text_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Share of the training reviews rendered as one free text, so that both forms are learned."""
    max_tokens: Annotated[int, Field(ge=8)] = 256
    """Longest prompt, in tokens, the closing </s> included."""
    truncation: Literal["fields", "tail"] = "fields"
    """`fields` shares the budget between the fields and never cuts the instruction; `tail` cuts
    the end, as most tutorials do."""

    @model_validator(mode="after")
    def _placeholders(self) -> PromptConfig:
        _require_slot("prompt.template", self.template)
        if "{text}" not in self.text_template:
            msg = "prompt.text_template must contain {text}"
            raise ValueError(msg)
        return self


class ModelConfig(Group):
    """The T5-family base."""

    base: str = "google/flan-t5-base"
    """Hub id, local folder, or `bundled`."""
    revision: str | None = None
    """Commit, tag or branch on the hub; the resolved commit is written to the run's config."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """`auto` is bf16 where the device computes it natively, else fp32. fp16 keeps T5's `wo` in
    fp32, without which it overflows."""
    quantization: Literal["8bit", "4bit"] | None = None
    """Hold the frozen weights in 8 or 4 bits (bitsandbytes, extra `quant`): less memory, slower on the reference
    engine, other numbers. Merging goes through the base as it was."""

    @property
    def weights(self) -> str:
        """How the base is held: `8bit`, `4bit`, or the precision."""
        return self.quantization or self.precision


class LoraSettings(Group):
    """The adapter; the names are PEFT's."""

    r: Positive = 8
    """Rank of the update."""
    lora_alpha: Annotated[float, Field(gt=0)] = 16
    """Scale: the update is multiplied by lora_alpha / r (rsLoRA: by lora_alpha / sqrt(r))."""
    lora_dropout: Fraction = 0.1
    """Dropout on the adapter's input."""
    target_modules: Annotated[list[str], Field(min_length=1)] = ["q", "v"]
    """Linear layers that get an adapter: ends of module names, or `all-linear`."""
    bias: Literal["none"] = "none"
    """T5 has no biases to train."""
    variant: Literal["lora", "rslora", "dora", "pissa"] = "lora"
    """Plain LoRA or one of PEFT's variants."""


class TrainConfig(Group):
    """The loop; the names are those of transformers' TrainingArguments where one exists."""

    engine: Literal["fast", "reference"] = "fast"
    """`fast` is rxtone's own forward, `reference` is transformers + PEFT: same numbers. Where the fast
    one does not cover an adapter, the reference takes its place and a notice says why."""
    loss: Literal["token_ce", "label_ce", "focal", "ordinal", "cumulative"] = "token_ce"
    """`token_ce`: cross-entropy over the vocabulary at the label's tokens and </s>, as
    transformers does. Over the label scores alone: `label_ce` (cross-entropy), `focal`, and, with the
    labels in order, `ordinal` (a far miss costs more) and `cumulative`."""
    label_smoothing: Fraction = 0.0
    """Share of `label_ce` that is spread over all labels alike."""
    rating_noise: Annotated[float, Field(gt=0)] | None = None
    """Standard deviation, in units of the rating, of the noise that ratings are taken to carry: `label_ce`
    then matches the label distribution of the neighbouring ratings instead of one label. Null: none."""
    focal_gamma: Annotated[float, Field(ge=0)] = 2.0
    """How strongly `focal` turns from what is learned to what is not; 0 is `label_ce`."""
    ordinal_power: Annotated[float, Field(gt=0)] = 1.0
    """Power of the distance between labels in `ordinal`."""
    learning_rate: Annotated[float, Field(gt=0)] = 3.0e-4
    """Peak learning rate of AdamW."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """AdamW's decoupled weight decay."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    num_train_epochs: Annotated[float, Field(gt=0)] = 4
    """Passes over the training reviews."""
    max_steps: Positive | None = None
    """Stop after so many optimiser steps, whatever the epochs say."""
    per_device_train_batch_size: Positive = 8
    """Reviews per batch; with `tokens_per_batch`, the size that is aimed at on average. Several processes share
    each batch: the same step, whatever their number."""
    tokens_per_batch: Positive | None = None
    """Padded tokens per batch: long reviews then come in smaller batches. Null: a fixed count."""
    gradient_accumulation_steps: Positive = 1
    """Batches per optimiser step."""
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = "linear"
    """Decay after the warm-up."""
    warmup_ratio: Fraction = 0.06
    """Share of the steps over which the learning rate rises."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are clipped to this norm."""
    class_weights: Literal["balanced"] | dict[str, float] | None = None
    """Weight of each class in the loss: `balanced` (inverse frequency) or label -> weight."""
    early_stopping_patience: Positive | None = 2
    """Validations without a better macro-F1 before the run stops; null never stops early."""
    checkpoint_every: Positive = 100
    """Optimiser steps between checkpoints; one is also written at each validation."""
    seed: Annotated[int, Field(ge=0)] = 42
    """Seed of the split, the adapter's start, the order and the dropout."""


class AuxiliaryTask(Group):
    """A further answer of the same reviewer, asked by another prompt and learned by the same adapter.

    It shapes what the adapter learns; it is never an input and never evaluated.
    """

    column: str
    """Column that holds the answer."""
    rule: Annotated[dict[str, Any], Field(min_length=2)]
    """Label word -> condition, as in `data.label.rule`."""
    template: str
    """Prompt of a review with fields, as `prompt.template`."""
    weight: Annotated[float, Field(gt=0)] = 0.5
    """What one review of this task counts in the loss, beside 1 for a review of the main task."""
    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the training reviews, drawn anew each epoch, that are also asked this way."""

    @model_validator(mode="after")
    def _placeholder(self) -> AuxiliaryTask:
        _require_slot("template", self.template)
        return self


class EvaluationConfig(Group):
    """What happens after training."""

    enabled: bool = True
    """Evaluate on the held-out reviews and write the report."""
    baselines: bool = True
    """Fit the majority and TF-IDF baselines on the same split."""
    zero_shot: bool = True
    """Also judge the base without the adapter, asked with the same prompt."""
    batch_size: Positive = 32
    """Reviews per scoring batch."""
    operating_point: Literal["argmax", "macro_f1", "balanced"] = "argmax"
    """`argmax` answers with the most probable label; `macro_f1` and `balanced` (the mean of macro-F1 and
    kappa) add an offset per label, tuned on validation rows. All are reported."""
    behaviour: bool = False
    """Also ask the behavioural suite (negation, "none", sarcasm, typing errors ...); the labels must be
    positive and negative, with or without neutral."""
    slice_by: list[str] = []
    """Columns (a drug, a condition) by whose values the figures are given, too, where a value has 30 reviews or more;
    one that the table lacks is noted in the report."""
    texts: bool = False
    """Show the most confident errors and the suspect labels with their text in the report, the words that drove an
    error marked. Off: row numbers only, so that the page may be passed on."""
    reload_check: bool = True
    """Prove in a fresh process that the saved adapter gives what was trained."""


class TrackConfig(Group):
    """Where progress goes besides metrics.jsonl."""

    tensorboard: bool = False
    """Write TensorBoard events into the run folder (extra `tensorboard`)."""
    mlflow: str | None = None
    """MLflow tracking URI (extra `track`)."""


class AspectConfig(Group):
    """A further question to the same reviews, answered by an adapter of its own on the same base."""

    label: LabelConfig
    template: str
    """Prompt of a review with fields, as `prompt.template`."""
    text_template: str
    """Prompt of a review that is one free text, as `prompt.text_template`."""


class Recipe(Group):
    """A whole experiment."""

    data: DataConfig
    prompt: PromptConfig = PromptConfig()
    model: ModelConfig = ModelConfig()
    lora: LoraSettings = LoraSettings()
    train: TrainConfig = TrainConfig()
    auxiliary: dict[str, AuxiliaryTask] = {}
    """Further tasks for the same adapter, by name."""
    evaluation: EvaluationConfig = EvaluationConfig()
    track: TrackConfig = TrackConfig()
    aspects: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$")], AspectConfig] = {}
    """Name -> further question; its adapter goes to `adapters/<name>` of the run."""

    @model_validator(mode="after")
    def _quantised_weights_stay_whole(self) -> Recipe:
        if self.model.quantization and self.lora.variant == "pissa":
            msg = (
                "lora.variant: pissa takes the base's weights apart, which quantised ones do not allow; choose another"
            )
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _weights_name_the_labels(self) -> Recipe:
        weights, labels = self.train.class_weights, list(self.data.label.rule)
        if isinstance(weights, dict) and (set(weights) != set(labels) or min(weights.values()) <= 0):
            msg = f"train.class_weights: expected a positive weight for each of {', '.join(labels)}, got {weights}"
            raise ValueError(msg)
        for key in ("label_smoothing", "rating_noise"):
            if getattr(self.train, key) and self.train.loss != "label_ce":
                msg = f"train.{key}: only with train.loss=label_ce, got loss {self.train.loss!r}"
                raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _behaviour_needs_sentiment(self) -> Recipe:
        labels = list(self.data.label.rule)
        if self.evaluation.behaviour and not {"positive", "negative"} <= set(labels) <= SENTIMENT:
            msg = (
                "evaluation.behaviour: the suite judges labels positive, (neutral,) negative, got "
                f"{', '.join(labels)}; set it to false"
            )
            raise ValueError(msg)
        return self


def aspect_recipe(recipe: Recipe, name: str) -> Recipe:
    """The recipe of one aspect alone: its label and its prompts, all else as in the main task.

    Args:
        recipe: The whole recipe.
        name: One of its aspects.

    Returns:
        A recipe without aspects. Weights by label word, the noise of the rating, auxiliary tasks and the behavioural
        suite are the main task's and left out.
    """
    aspect = recipe.aspects[name]
    words = {"template": aspect.template, "text_template": aspect.text_template}
    own: dict[str, Any] = {"rating_noise": None}
    if isinstance(recipe.train.class_weights, dict):
        own["class_weights"] = None
    values = recipe.model_dump(mode="json")
    values["data"]["label"] = aspect.label.model_dump(mode="json")
    values["prompt"] |= words
    values["train"] |= own
    values["evaluation"]["behaviour"] = False
    values["aspects"] = {}
    values["auxiliary"] = {}
    return check_recipe(values, f"aspect {name}")


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the package, sorted."""
    return shipped_names("recipes")


def load_recipe(recipe: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, apply overrides and check it.

    Args:
        recipe: A shipped name or the path of a YAML file.
        overrides: `group.key=value` texts; the value is YAML (`lora.target_modules=[q, v, o]`).

    Returns:
        The resolved recipe.

    Raises:
        RecipeError: If the recipe cannot be found or read, or any value is wrong; all faults are
            in the one message.
    """
    values = read_yaml("recipe", recipe, "groups (data, prompt, model, lora, train ...)")
    for override in overrides:
        _apply(values, override)
    return check_recipe(values, str(recipe))


def check_recipe(values: Mapping[str, Any], origin: str) -> Recipe:
    """Turn plain values into a recipe.

    Args:
        values: Nested mapping, as read from YAML.
        origin: Name or path for the message.

    Returns:
        The recipe.

    Raises:
        RecipeError: If any key or value is wrong.
    """
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        faults = [_describe(fault) for fault in error.errors()]
        lines = "\n".join(f"  {fault}" for fault in faults)
        noun = "fault" if len(faults) == 1 else "faults"
        msg = f"recipe {origin} has {len(faults)} {noun}:\n{lines}\n`rxtone config schema` lists every key."
        raise RecipeError(msg) from None


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML with every default written out; `load_recipe` reads it back the same."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)


def recipe_schema() -> str:
    """JSON schema of a recipe, with the doc string of each key."""
    return json.dumps(Recipe.model_json_schema(), indent=2)


def cache_dir() -> Path:
    """Folder for downloaded tables: $RXTONE_CACHE, else rxtone's folder in the user's cache."""
    explicit = os.environ.get("RXTONE_CACHE")
    if explicit:
        return Path(explicit)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rxtone"


def offline() -> bool:
    """Whether HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE asks for no network."""
    on = {"1", "true", "yes", "on"}
    return any(os.environ.get(name, "").lower() in on for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))


def process_place() -> tuple[int, int, int]:
    """Rank, number of processes and rank on this machine, as torchrun and accelerate tell it; else 0, 1, 0."""
    environment = os.environ
    return int(environment.get("RANK", 0)), int(environment.get("WORLD_SIZE", 1)), int(environment.get("LOCAL_RANK", 0))


def _apply(values: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    keys = name.strip().split(".")
    if not equals or not all(keys):
        msg = f"--set {override!r}: expected group.key=value, such as lora.r=16"
        raise RecipeError(msg)
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # a date that is none is a ValueError
        detail = " ".join(str(error).split())
        msg = f"--set {override!r}: the value is not valid YAML: {detail}"
        raise RecipeError(msg) from None
    for key in keys[:-1]:
        inner = values.setdefault(key, {})
        if not isinstance(inner, dict):
            msg = f"--set {override!r}: {key} holds {inner!r}, so it has no key {keys[-1]}"
            raise RecipeError(msg)
        values = inner
    values[keys[-1]] = value


def _describe(fault: Any) -> str:
    location = [str(part) for part in fault["loc"]]
    name = ".".join(location)
    if fault["type"] == "extra_forbidden":
        close = difflib.get_close_matches(name, list(_all_keys()), n=1, cutoff=0.5) or difflib.get_close_matches(
            location[-1], [key.rpartition(".")[2] for key in _all_keys()], n=1
        )
        hint = f"; did you mean {close[0]}?" if close else ""
        return f"{name}: unknown key{hint}"
    if fault["type"] == "missing":
        return f"{name}: missing"
    if not name:
        return str(fault["msg"]).removeprefix("Value error, ")
    if fault["type"] == "string_type":
        if fault["input"] is None:
            return f"{name}: expected a text, got nothing (null); give one, or take the key out to have its default"
        kinds = {dict: "a mapping", list: "a list", bool: "true or false"}
        kind = kinds.get(type(fault["input"]), "a number or a date")
        return f"{name}: expected a text, but YAML reads this value as {kind}; put it in quotes"
    reason = fault["msg"].removeprefix("Value error, ")
    if isinstance(fault["input"], str | int | float | bool | None):
        return f"{name}: {reason} (got {fault['input']!r})"
    return f"{name}: {reason}"


def _all_keys(model: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _all_keys(kind, f"{prefix}{name}.")
