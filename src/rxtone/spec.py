"""classifier.json: all that a bare adapter lacks, and where an adapter is.

The prompts, the labels and their rule, the truncation, the policy and the identity of the base lie beside the
PEFT files. What is served is what was evaluated.
"""

from __future__ import annotations

import importlib.metadata
import json
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from rxtone.config import PromptConfig, Recipe
from rxtone.data.prompts import PromptBuilder
from rxtone.data.reviews import parse_rule
from rxtone.errors import ModelError
from rxtone.model.base import identify
from rxtone.run import CLASSIFIER, ENSEMBLE, VALIDATION, write_json, write_text
from rxtone.stats.policy import Policy, plain_policy, policy_from_dict
from rxtone.stats.validation import ValidationScores, validation_from_dict

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FORMAT = 1
SPEC_BYTES = 4 << 20
"""Longer files are none of ours."""
VERSIONED = ("rxtone", "torch", "transformers", "peft", "tokenizers")


class ClassifierSpec(BaseModel):
    """The contents of classifier.json.

    Attributes:
        format: Version of this file's layout.
        labels: Label words, in the recipe's order.
        label_column: Column that held the label in the training table.
        label_rule: Label -> condition on that column.
        ordered: Whether the labels stand in order; None: where the rule compares numbers.
        text_fields: Name in the prompt -> column.
        prompt: Templates and truncation.
        base: Identity of the base (see `BaseIdentity`).
        precision: Precision of the base that the adapter was trained and evaluated with.
        versions: Package versions at training time.
        group_by: Column whose rows belong together (a drug), for intervals and slices by group.
        policy: Calibration, operating points, least confidence and label sets, fitted on validation rows
            (see `rxtone.stats.policy`); None leaves the scores as they are.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    labels: tuple[str, ...]
    label_column: str
    label_rule: dict[str, Any]
    ordered: bool | None = None
    text_fields: dict[str, str]
    prompt: PromptConfig
    base: dict[str, str | None]
    precision: str
    versions: dict[str, str]
    group_by: str | None = None
    policy: dict[str, Any] | None = None


def spec_policy(spec: ClassifierSpec) -> Policy:
    """The policy that a spec stores, or the plain one.

    Args:
        spec: What classifier.json holds.

    Returns:
        How scores become answers.

    Raises:
        ModelError: If what is stored is no policy for these labels.
    """
    if spec.policy is None:
        return plain_policy(len(spec.labels))
    try:
        policy = policy_from_dict(spec.policy)
        policy.rule()
        policy.decide(np.zeros((1, len(spec.labels))))
    except (ValueError, KeyError, TypeError) as error:
        msg = f"classifier.json: its policy cannot be used: {error}; copy the adapter folder again"
        raise ModelError(msg) from None
    return policy


def make_spec(recipe: Recipe, base: dict[str, str | None], precision: str) -> ClassifierSpec:
    """What classifier.json is to hold for a recipe on a base."""
    return ClassifierSpec(
        labels=tuple(recipe.data.label.rule),
        label_column=recipe.data.label.column,
        label_rule=recipe.data.label.rule,
        ordered=recipe.data.label.ordered,
        text_fields=recipe.data.text_fields,
        group_by=recipe.data.group_by,
        prompt=recipe.prompt,
        base=base,
        precision=precision,
        versions={name: importlib.metadata.version(name) for name in VERSIONED},
    )


def in_order(label_rule: dict[str, Any], *, ordered: bool | None) -> bool:
    """Whether labels stand in order: as the recipe says, else where their rule compares numbers."""
    return parse_rule(label_rule).numeric if ordered is None else ordered


def write_spec(folder: Path, spec: ClassifierSpec) -> None:
    """Write classifier.json into an adapter folder."""
    write_json(folder / CLASSIFIER, spec.model_dump(mode="json"))


def write_validation(folder: Path, scores: ValidationScores) -> None:
    """Write the scores of the validation rows beside classifier.json."""
    write_text(folder / VALIDATION, json.dumps(scores.to_dict(), allow_nan=False) + "\n")


def read_validation(folder: Path, spec: ClassifierSpec) -> ValidationScores | None:
    """Read the scores of the validation rows.

    Args:
        folder: An adapter folder or an export.
        spec: What classifier.json holds.

    Returns:
        The scores; None where there are none.

    Raises:
        ModelError: If the file is damaged.
    """
    path = folder / VALIDATION
    if not path.is_file():
        return None
    try:
        return validation_from_dict(json.loads(path.read_text("utf-8")), len(spec.labels))
    except (ValueError, TypeError, AttributeError, OSError) as error:
        msg = f"{path}: cannot be used: {error}; copy the adapter folder again"
        raise ModelError(msg) from None


def read_spec(folder: Path, recipe: Recipe | None = None) -> ClassifierSpec:
    """Read classifier.json, or make its like from a recipe for a plain PEFT folder.

    Args:
        folder: An adapter folder.
        recipe: Used only where there is no classifier.json.

    Returns:
        The spec.

    Raises:
        ModelError: If the file is missing or wrong.
    """
    path = folder / CLASSIFIER
    if not path.is_file():
        if recipe is None:
            msg = f"{folder}: a plain PEFT folder, without {CLASSIFIER}; say how it is asked with --recipe RECIPE"
            raise ModelError(msg)
        base = identify(recipe.model.base, recipe.model.revision)
        return make_spec(recipe, base.to_json(), recipe.model.weights)
    try:
        if path.stat().st_size > SPEC_BYTES:
            msg = (
                f"{path}: expected at most {SPEC_BYTES:,} bytes, got {path.stat().st_size:,}; no {CLASSIFIER} of rxtone"
            )
            raise ModelError(msg)
        spec = ClassifierSpec.model_validate_json(path.read_bytes())
    except (ValidationError, OSError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
        where = ".".join(map(str, first["loc"])) or "the file"
        msg = f"{path}: {where}: {first['msg']}; copy the adapter folder again"
        raise ModelError(msg) from None
    if spec.format != FORMAT:
        msg = f"{path}: format {spec.format}, this rxtone reads {FORMAT}; upgrade rxtone"
        raise ModelError(msg)
    if tuple(spec.label_rule) != spec.labels or not spec.base.get("name"):
        msg = f"{path}: its labels, label_rule and base do not fit together; copy the adapter folder again"
        raise ModelError(msg)
    return spec


def adapter_folder(path: str | Path) -> Path:
    """The adapter folder that a run folder, an adapter folder or a bundled name means.

    Args:
        path: What the user named.

    Returns:
        An existing folder.

    Raises:
        ModelError: If there is nothing of the kind.
    """
    given = Path(path)
    if (given / "adapter_config.json").is_file():
        return given
    if (given / ENSEMBLE).is_file():
        return given
    if (given / "ensemble" / ENSEMBLE).is_file():
        return given / "ensemble"
    if (given / "adapter").is_dir():
        return given / "adapter"
    bundled = Path(str(resources.files("rxtone") / "bundled" / "adapters"))
    names = sorted(entry.name for entry in bundled.iterdir() if entry.is_dir()) if bundled.is_dir() else []
    if str(path) in names:
        return bundled / str(path)
    if (given / "config.yaml").is_file():
        msg = f"{path}: this run has no adapter yet; finish it with `rxtone train ... --out {path} --resume`"
        raise ModelError(msg)
    listed = f" or a bundled adapter ({', '.join(names)})" if names else ""
    msg = f"{path}: expected a run folder, an adapter folder{listed}; found none of these"
    raise ModelError(msg)


def prompt_builder(tokenizer: Tokenizer, prompt: PromptConfig, labels: tuple[str, ...]) -> PromptBuilder:
    """The prompt builder of a recipe."""
    return PromptBuilder(
        tokenizer, template=prompt.template, text_template=prompt.text_template, labels=labels,
        max_tokens=prompt.max_tokens, truncation=prompt.truncation,
    )  # fmt: skip
