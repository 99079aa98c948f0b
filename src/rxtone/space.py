"""Search spaces: which recipe keys a sweep varies, over which values.

A space is a shipped name (``tutorial``) or the path of a YAML file::

    recipe: druglib
    sampler: tpe
    parameters:
      lora.r: [8, 16]                                   # a list is a choice
      lora.lora_alpha: {choice: [1, 2, 4], times: lora.r}
      train.learning_rate: {log_uniform: [1.0e-4, 2.0e-3]}
      train.warmup_ratio: {uniform: [0.0, 0.1], when: {train.lr_scheduler_type: linear}}
      train.per_device_train_batch_size: {integer: [8, 32], step: 8}

Every value is checked against the recipe before anything is trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from rxtone.config import Group, Positive, Recipe, check_recipe
from rxtone.errors import RecipeError
from rxtone.yaml_files import read_yaml, shipped_names

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

FIXED = (
    "data.train", "data.test", "data.validation_fraction", "data.test_fraction", "data.group_by", "data.label",
    "train.seed", "evaluation", "track",
)  # fmt: skip
"""Keys that no space may vary. Most decide which rows a setting is judged on, and settings judged on different
rows cannot be ranked; the seed is among them since it cuts the split (`confirm.seeds` varies it)."""
Limits = Annotated[list[float], Field(min_length=2, max_length=2)]


class Parameter(Group):
    """The values of one recipe key: exactly one of choice, integer, uniform, log_uniform."""

    choice: Annotated[list[Any], Field(min_length=1)] | None = None
    """Any values, lists and mappings included."""
    integer: Annotated[list[int], Field(min_length=2, max_length=2)] | None = None
    """Lowest and highest whole number."""
    uniform: Limits | None = None
    """Lowest and highest number."""
    log_uniform: Limits | None = None
    """Lowest and highest number, both above 0; even on a logarithmic scale."""
    step: Positive | None = None
    """Distance between the whole numbers of `integer`."""
    times: str | None = None
    """A recipe key that the drawn number is multiplied by."""
    when: dict[str, Any] | None = None
    """Recipe key -> a value, or a list of values: only then is this key varied."""

    @model_validator(mode="after")
    def _one_kind(self) -> Parameter:
        given = [name for name in ("choice", "integer", "uniform", "log_uniform") if getattr(self, name) is not None]
        if len(given) != 1:
            found = ", ".join(given) or "none"
            msg = f"expected exactly one of choice, integer, uniform, log_uniform; got {found}"
            raise ValueError(msg)
        limits = self.integer or self.uniform or self.log_uniform
        if limits is not None and limits[0] >= limits[1]:
            msg = f"expected [lowest, highest], got {limits}"
            raise ValueError(msg)
        if self.log_uniform is not None and self.log_uniform[0] <= 0:
            msg = f"expected numbers above 0, got {self.log_uniform}"
            raise ValueError(msg)
        if self.step is not None and self.integer is None:
            msg = "step belongs to integer"
            raise ValueError(msg)
        return self

    def values(self) -> list[Any] | None:
        """All values where they can be counted, else None."""
        if self.choice is not None:
            return list(self.choice)
        if self.integer is not None:
            return list(range(self.integer[0], self.integer[1] + 1, self.step or 1))
        return None

    def samples(self) -> list[Any]:
        """Values that stand for all, to be checked against the recipe."""
        return self.values() or list(self.uniform or self.log_uniform or [])


class Confirm(Group):
    """How the best settings are told apart from the lucky ones."""

    top: Positive = 3
    """Settings that are trained again."""
    folds: Annotated[int, Field(ge=2)] = 5
    """Folds of the cross-validation over the training and validation rows."""
    seeds: Positive = 3
    """Repetitions, each with its own folds and its own seed of the training."""
    against: Annotated[dict[str, Any], Field(min_length=1)] | None = None
    """Recipe key -> value: the setting to be beaten. It is confirmed too, whatever its rank, and every gain over it
    is reported."""


class Space(Group):
    """A search space with its manner of search."""

    recipe: str
    """What every setting starts from: a shipped recipe or a YAML file."""
    sampler: Literal["grid", "random", "tpe"] = "tpe"
    """`grid` tries all combinations, in a seeded order; `random` and `tpe` are Optuna's."""
    trials: Positive | None = None
    """Settings to try; null is the whole grid."""
    pruner: Literal["none", "median", "hyperband"] = "median"
    """What stops a hopeless setting, by its validation macro-F1 after each epoch."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the search."""
    confirm: Confirm | None = Confirm()
    """Null leaves the confirmation out."""
    parameters: Annotated[dict[str, Parameter], Field(min_length=1)]
    """Recipe key -> its values; a key may refer to keys above it."""

    @field_validator("parameters", mode="before")
    @classmethod
    def _lists_are_choices(cls, parameters: Any) -> Any:
        if not isinstance(parameters, dict):
            return parameters
        return {key: {"choice": value} if isinstance(value, list) else value for key, value in parameters.items()}

    @model_validator(mode="after")
    def _comparable_and_ordered(self) -> Space:
        earlier: set[str] = set()
        for key, parameter in self.parameters.items():
            if any(key == fixed or key.startswith(fixed + ".") for fixed in FIXED):
                msg = (
                    f"parameters.{key} cannot be searched: every setting must be judged on the same rows, with the "
                    "same seed; fix it with --set"
                )
                raise ValueError(msg)
            for other in (*(parameter.when or ()), *([parameter.times] if parameter.times else ())):
                if other in self.parameters and other not in earlier:
                    msg = f"parameters.{key} refers to {other}, which must stand above it"
                    raise ValueError(msg)
            earlier.add(key)
        for key in (self.confirm.against or ()) if self.confirm else ():
            if key not in self.parameters:
                msg = f"confirm.against.{key} is not among the parameters, so no trial differs in it"
                raise ValueError(msg)
        endless = [key for key, parameter in self.parameters.items() if parameter.values() is None]
        if self.sampler == "grid" and endless:
            msg = f"sampler grid: {endless[0]} has no countable values; give choice or integer, or another sampler"
            raise ValueError(msg)
        if self.sampler != "grid" and self.trials is None:
            msg = f"trials: sampler {self.sampler} needs a number of trials"
            raise ValueError(msg)
        return self


def shipped_spaces() -> list[str]:
    """Names of the spaces that come with the package, sorted."""
    return shipped_names("spaces")


def load_space(space: str | Path) -> Space:
    """Read a space and check its form.

    Args:
        space: A shipped name or the path of a YAML file.

    Returns:
        The space.

    Raises:
        RecipeError: If it cannot be found or read, or anything in it is wrong; all faults in one message.
    """
    values = read_yaml("space", space, "keys (recipe, sampler, trials, parameters ...)")
    try:
        return Space.model_validate(values)
    except ValidationError as error:
        faults = [
            ": ".join(filter(None, (".".join(map(str, f["loc"])), f["msg"].removeprefix("Value error, "))))
            for f in error.errors()
        ]
        lines = "\n".join(f"  {fault}" for fault in faults)
        msg = f"space {space} has {len(faults)} {'fault' if len(faults) == 1 else 'faults'}:\n{lines}"
        raise RecipeError(msg) from None


def check_space(space: Space, recipe: Recipe) -> None:
    """Check every value of a space against the recipe that it varies.

    Args:
        space: The space.
        recipe: What every setting starts from.

    Raises:
        RecipeError: If a key or a value does not fit; all faults are in the one message.
    """
    faults: dict[str, None] = {}
    plain = recipe.model_dump(mode="json")
    for key, parameter in space.parameters.items():
        for other in (*(parameter.when or ()), *([parameter.times] if parameter.times else ())):
            if _lookup(plain, other) is _MISSING:
                faults[f"parameters.{key} refers to {other}, which is no recipe key"] = None
        for value in parameter.samples():
            try:
                factor = _lookup(plain, parameter.times) if parameter.times else None
                drawn = value if factor in (None, _MISSING) else value * factor
                where = {k: v[0] if isinstance(v, list) else v for k, v in (parameter.when or {}).items()}
                apply_settings(recipe, where | {key: drawn}, f"parameters.{key}")
            except RecipeError as error:
                faults[str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)] = None
    if faults:
        lines = "\n".join(f"  {fault}" for fault in faults)
        msg = f"the space does not fit the recipe:\n{lines}\n`rxtone config schema` lists every key."
        raise RecipeError(msg)


def apply_settings(recipe: Recipe, settings: Mapping[str, Any], origin: str) -> Recipe:
    """A recipe with some keys changed.

    Args:
        recipe: Where to start.
        settings: Recipe key (`lora.r`) -> value.
        origin: Name for messages.

    Returns:
        The checked recipe.

    Raises:
        RecipeError: If a key or a value does not fit.
    """
    values = recipe.model_dump(mode="json")
    for key, value in settings.items():
        *groups, last = key.split(".")
        inner = values
        for group in groups:
            inner = inner.setdefault(group, {})
            if not isinstance(inner, dict):
                msg = f"{origin}: {key} is no recipe key"
                raise RecipeError(msg)
        inner[last] = value
    return check_recipe(values, origin)


def drawn_name(key: str, parameter: Parameter) -> str:
    """What the study calls a parameter: a multiple is named as the ratio that is drawn."""
    return f"{key} / {parameter.times}" if parameter.times else key


def spelt(value: Any) -> str | int | float | bool | None:
    """A choice as the study stores it: scalars as they are, lists and mappings as one line of YAML."""
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return yaml.safe_dump(value, default_flow_style=True, width=1000).strip()


def shown(value: Any) -> str:
    """A choice in one short line, as tables show it: a mapping of mappings by its keys, a number by three digits.

    Args:
        value: As it was chosen, or as `spelt` gives it.

    Returns:
        The line.
    """
    if isinstance(value, float):
        return f"{value:.3g}"
    text = str(spelt(value))
    inner = yaml.safe_load(text) if text.startswith("{") else None
    if inner is not None and all(isinstance(own, dict) for own in inner.values()):
        return " + ".join(inner) or "none"
    return text


def settings_of(space: Space, recipe: Recipe, drawn: Mapping[str, Any]) -> dict[str, Any]:
    """Recipe keys of a drawn point.

    Args:
        space: The space.
        recipe: What it varies.
        drawn: Name in the study -> value in the study.

    Returns:
        Recipe key -> value.
    """
    settings: dict[str, Any] = {}
    plain = recipe.model_dump(mode="json")
    for key, parameter in space.parameters.items():
        name = drawn_name(key, parameter)
        if name not in drawn:
            continue
        value = drawn[name]
        if parameter.choice is not None:
            value = next(choice for choice in parameter.choice if spelt(choice) == value)
        if parameter.times:
            value = value * settings.get(parameter.times, _lookup(plain, parameter.times))
        settings[key] = value
    return settings


def applies(parameter: Parameter, settings: Mapping[str, Any], recipe: Recipe) -> bool:
    """Whether a parameter is varied, given the settings above it.

    Args:
        parameter: The parameter.
        settings: Recipe key -> value, of the parameters above it.
        recipe: Gives the value of keys that are not varied.

    Returns:
        True where every condition of its `when` holds.
    """
    plain = recipe.model_dump(mode="json")
    return all(
        settings.get(key, _lookup(plain, key)) in (wanted if isinstance(wanted, list) else [wanted])
        for key, wanted in (parameter.when or {}).items()
    )


def grid(space: Space, recipe: Recipe) -> list[dict[str, Any]]:
    """All points of a countable space, conditions kept, as name in the study -> value in the study."""
    return list(_points(space, recipe, list(space.parameters), {}))


def _points(space: Space, recipe: Recipe, keys: list[str], drawn: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if not keys:
        yield drawn
        return
    key, *rest = keys
    parameter = space.parameters[key]
    if not applies(parameter, settings_of(space, recipe, drawn), recipe):
        yield from _points(space, recipe, rest, drawn)
        return
    for value in parameter.values() or []:
        yield from _points(space, recipe, rest, drawn | {drawn_name(key, parameter): spelt(value)})


_MISSING = object()


def _lookup(values: Mapping[str, Any], key: str) -> Any:
    found: Any = values
    for part in key.split("."):
        if not isinstance(found, dict) or part not in found:
            return _MISSING
        found = found[part]
    return found
