"""The central object: base + adapter + prompt + labels; reviews in, probabilities out.

`classifier.json` beside the PEFT files carries all that a bare adapter lacks: the prompts, the labels
and their rule, the truncation and the identity of the base. What is served is what was evaluated.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from rxtone.config import PromptConfig, Recipe
from rxtone.data.prompts import PromptBuilder
from rxtone.data.reviews import Review
from rxtone.errors import DataError, ModelError, RecipeError
from rxtone.model.adapter_files import read_adapter
from rxtone.model.base import (
    DTYPES,
    QUANTISED,
    check_foreign_base,
    check_identity,
    default_device,
    identify,
    load_base,
    load_tokenizer,
    resolve_precision,
)
from rxtone.model.batches import ReviewDataset
from rxtone.model.ensemble import Ensemble
from rxtone.model.lora import load_adapter, load_adapters, merge
from rxtone.model.runtimes import EXPORT, ExportedModel, open_exported, read_export
from rxtone.model.scoring import (
    LabelTokens,
    Scorer,
    label_token_ids,
    log_probabilities,
    plan_scorer,
    score_dataset,
)
from rxtone.run import CLASSIFIER, ENSEMBLE, VALIDATION, write_json, write_text
from rxtone.stats.abstention import PrecisionThreshold, fit_conformal, precision_threshold
from rxtone.stats.policy import Policy, plain_policy, policy_from_dict
from rxtone.stats.validation import ValidationScores, validation_from_dict

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tokenizers import Tokenizer

FORMAT = 1
SPEC_BYTES = 4 << 20
"""Longer files are none of ours."""
PRECISIONS = ("auto", "fp32", "bf16", "fp16", "int8")
NOTHING_SURE = 1.01
"""A least confidence that no answer reaches."""
VERSIONED = ("rxtone", "torch", "transformers", "peft", "tokenizers")


class ClassifierSpec(BaseModel):
    """The contents of classifier.json.

    Attributes:
        format: Version of this file's layout.
        labels: Label words, in the recipe's order.
        label_column: Column that held the label in the training table.
        label_rule: Label -> condition on that column.
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
    text_fields: dict[str, str]
    prompt: PromptConfig
    base: dict[str, str | None]
    precision: str
    versions: dict[str, str]
    group_by: str | None = None
    policy: dict[str, Any] | None = None


@dataclass(frozen=True)
class Prediction:
    """The answer for one review.

    Attributes:
        label: The label of the operating point: the most probable one, unless the run was tuned otherwise.
        probabilities: Label -> calibrated probability; they sum to 1.
        truncated: Whether the prompt did not hold the whole review.
        abstained: Whether the classifier was asked to hold back when unsure, and did.
        label_set: The labels that hold the true one as often as asked for (`with_coverage`); None where
            nothing was asked for.
    """

    label: str
    probabilities: dict[str, float]
    truncated: bool
    abstained: bool = False
    label_set: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Scores:
    """The numbers behind n predictions.

    Attributes:
        log_probs: float64, shape (n, k): log-probabilities over the labels, before calibration.
        truncated: bool, shape (n,).
        n_tokens: int64, shape (n,): prompt tokens of the whole review, before any cut.
    """

    log_probs: np.ndarray
    truncated: np.ndarray
    n_tokens: np.ndarray


@dataclass(frozen=True)
class Classifier:
    """A base with an adapter, ready to score.

    Attributes:
        model: T5ForConditionalGeneration, the adapter merged into it or around it.
        scorer: What computes with its weights: the fast engine, or the model itself.
        tokenizer: The base's tokenizer.
        spec: What classifier.json holds.
        prompts: Turns a review into token ids.
        label_tokens: The labels in the base's tokens.
        policy: How scores become answers.
        validation: Scores of the validation rows, for `with_target_precision` and `with_coverage`; None where the
            folder does not hold them.
        label_sets: Whether predictions name the policy's label sets.
    """

    model: torch.nn.Module
    scorer: Scorer
    tokenizer: Tokenizer
    spec: ClassifierSpec
    prompts: PromptBuilder
    label_tokens: LabelTokens
    policy: Policy
    validation: ValidationScores | None = None
    label_sets: bool = False

    @property
    def labels(self) -> tuple[str, ...]:
        """Label words, in the recipe's order."""
        return self.spec.labels

    def predict(
        self,
        reviews: Iterable[Review | str | Mapping[str, str]],
        *,
        batch_size: int = 32,
        min_confidence: float | None = None,
    ) -> list[Prediction]:
        """Label reviews.

        Args:
            reviews: Each a `Review`, a free text, or a mapping of field (prompt name or column) to text.
            batch_size: Reviews per batch.
            min_confidence: Mark answers of less probability as abstained; None takes the run's own bound.

        Returns:
            One prediction per review, in order.

        Raises:
            DataError: If a mapping has none of the fields, or a field this classifier does not know.
        """
        scores = self.score([self.as_review(review) for review in reviews], batch_size=batch_size)
        if not len(scores.log_probs):
            return []
        policy = self.policy if min_confidence is None else replace(self.policy, min_confidence=min_confidence)
        decisions = policy.decide(scores.log_probs)
        return [
            Prediction(
                self.labels[int(label)],
                dict(zip(self.labels, (float(p) for p in row), strict=True)),
                bool(truncated),
                bool(abstained),
                label_set,
            )
            for label, row, truncated, abstained, label_set in zip(
                decisions.predicted, decisions.probabilities, scores.truncated, decisions.abstained,
                self._label_sets(decisions.probabilities), strict=True,
            )
        ]  # fmt: skip

    def with_min_confidence(self, min_confidence: float) -> Classifier:
        """The same classifier with another bound below which answers are marked as abstained.

        Args:
            min_confidence: Least probability of an answer, 0 to 1.

        Returns:
            A classifier that shares the model.
        """
        return self._with_policy(replace(self.policy, min_confidence=min_confidence))

    def with_target_precision(self, target: float) -> tuple[Classifier, PrecisionThreshold | None]:
        """The same classifier, answering only where enough answers were right on the validation rows.

        Args:
            target: The share of answers that should be right, in 0..1.

        Returns:
            The classifier, and how its bound was found: certified where the lower confidence bound reaches the
            target, else the share alone does. None where nothing reaches it; then every answer is withheld.

        Raises:
            ModelError: If the folder holds no scores of validation rows.
        """
        known = self._validation()
        answers = self.policy.decide(known.log_probs)
        right = answers.predicted == known.classes
        found = precision_threshold(answers.confidence, right, target)
        if found is None:
            found = precision_threshold(answers.confidence, right, target, certify=False)
        return self.with_min_confidence(NOTHING_SURE if found is None else found.threshold), found

    def with_coverage(self, level: float) -> Classifier:
        """The same classifier, naming for each review the labels that hold the true one as often as asked for.

        Args:
            level: The share of reviews whose set shall hold the true label, in 0..1.

        Returns:
            A classifier that shares the model; its predictions have `label_set`.

        Raises:
            ModelError: If the folder holds no scores of validation rows.
        """
        known = self._validation()
        sets = fit_conformal(self.policy.calibration.probabilities(known.log_probs), known.classes, level=level)
        return replace(self._with_policy(replace(self.policy, conformal=sets)), label_sets=True)

    def _with_policy(self, policy: Policy) -> Classifier:
        spec = self.spec.model_copy(update={"policy": policy.to_dict()})
        return replace(self, policy=policy, spec=spec)

    def _validation(self) -> ValidationScores:
        if self.validation is None:
            msg = (
                f"no {VALIDATION} beside this adapter, so a target or a coverage cannot be fitted; train again with "
                "this rxtone, or use --min-confidence"
            )
            raise ModelError(msg)
        return self.validation

    def _label_sets(self, probabilities: np.ndarray) -> Sequence[tuple[str, ...] | None]:
        if not self.label_sets or self.policy.conformal is None:
            return [None] * len(probabilities)
        inside = self.policy.conformal.sets(probabilities)
        return [tuple(label for label, is_in in zip(self.labels, row, strict=True) if is_in) for row in inside]

    def score(self, reviews: Sequence[Review], *, batch_size: int = 32) -> Scores:
        """Log-probabilities of all labels for n reviews (see `Scores`)."""
        prompts = self.prompts.build_many(reviews)
        return Scores(
            self.score_ids([prompt.ids for prompt in prompts], batch_size=batch_size),
            np.array([prompt.truncated for prompt in prompts], dtype=bool),
            np.array([prompt.n_tokens_full for prompt in prompts], dtype=np.int64),
        )

    def score_ids(self, prompts: Sequence[Sequence[int]], *, batch_size: int = 32) -> np.ndarray:
        """Log-probabilities of all labels for prompts that are token ids already.

        Args:
            prompts: n sequences of token ids, each closed by </s>.
            batch_size: Prompts per batch.

        Returns:
            float64, shape (n, k): log-probabilities over the labels, before calibration.
        """
        dataset = ReviewDataset(prompts)
        if isinstance(self.model, ExportedModel | Ensemble):
            scores = self.model.score(dataset, batch_size)
        else:
            scores = score_dataset(
                self.scorer, dataset, self.label_tokens, batch_size=batch_size,
                pad_token_id=token_id(self.model, "pad_token_id"),
            )  # fmt: skip
        return log_probabilities(scores) if len(scores) else scores

    def generate(self, reviews: Sequence[Review], *, batch_size: int = 32) -> list[str]:
        """Greedy free generation, for comparison with scoring only: nothing keeps it to the labels.

        Args:
            reviews: n reviews.
            batch_size: Reviews per batch.

        Returns:
            n texts, stripped.
        """
        dataset = ReviewDataset([prompt.ids for prompt in self.prompts.build_many(reviews)])
        texts: list[str] = []
        longest = max(len(ids) for ids in self.label_tokens.targets())
        device = next(self.model.parameters()).device
        for start in range(0, len(dataset), batch_size):
            indexes = range(start, min(start + batch_size, len(dataset)))
            batch = dataset.batch(indexes, token_id(self.model, "pad_token_id")).to(device)
            with torch.inference_mode():
                ids = self.model.generate(  # type: ignore[operator]  # GenerationMixin behind nn.Module
                    input_ids=batch.input_ids, attention_mask=batch.attention_mask,
                    max_new_tokens=longest + 2, do_sample=False, num_beams=1,
                )  # fmt: skip
            texts.extend(self.tokenizer.decode(row.tolist(), skip_special_tokens=True).strip() for row in ids)
        return texts

    def as_review(self, review: Review | str | Mapping[str, str]) -> Review:
        """A text or a mapping as a `Review`."""
        if isinstance(review, Review):
            return review
        if isinstance(review, str):
            return Review(fields=(), text=review)
        known = {**{column: name for name, column in self.spec.text_fields.items()}}
        known |= {name: name for name in self.spec.text_fields}
        unknown = [key for key in review if key not in known]
        if unknown or not review:
            names = ", ".join(self.spec.text_fields)
            got = ", ".join(map(repr, review)) or "nothing"
            msg = f"expected a review with fields among {names}, got {got}"
            raise DataError(msg)
        given = {known[key]: value for key, value in review.items()}
        return Review(fields=tuple((name, given.get(name, "")) for name in self.spec.text_fields))


def load(
    path: str | Path,
    *,
    base: str | None = None,
    recipe: Recipe | None = None,
    precision: str | None = None,
    device: str | torch.device | None = None,
    merged: bool = True,
    engine: str = "fast",
) -> Classifier:
    """Load a tuned classifier.

    Args:
        path: A run folder, an adapter folder, an exported folder, or the name of a bundled adapter.
        base: Where the base is now, if not where it was in training; its identity is checked.
        recipe: Prompt, labels and base for a plain PEFT folder without classifier.json.
        precision: `fp32`, `bf16`, `fp16`, `auto`, or `int8`: 8-bit linear maps on a CPU, the rest in the best
            precision there; answers may differ near ties. None takes that of the training where the device
            has it.
        device: Where to compute; None chooses.
        merged: Fold the adapter into the weights, in fp32, before any cast: faster, same labels. Quantised
            weights stay as they are, with the adapter beside.
        engine: `fast`, where it covers the model, or `reference`: transformers' own forward.

    Returns:
        The classifier.

    Raises:
        ModelError: If anything is missing, damaged, or does not belong together.
        RecipeError: If an exported folder is to take another base, recipe or precision, or the precision
            cannot be had here.
    """
    if precision not in (None, *PRECISIONS):
        msg = f"precision {precision}: expected {', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}"
        raise RecipeError(msg)
    if (Path(path) / EXPORT).is_file():
        if base is not None or recipe is not None or precision is not None:
            msg = f"{path}: an exported folder is complete; leave out --base, --recipe and the precision"
            raise RecipeError(msg)
        return load_exported(Path(path), device=device, engine=engine)
    folder = adapter_folder(path)
    if (folder / ENSEMBLE).is_file():
        return load_ensemble(folder, base=base, precision=precision, device=device, engine=engine)
    read_adapter(folder)
    spec = read_spec(folder, recipe)
    place = torch.device(device) if device is not None else default_device()
    if base is None:
        check_foreign_base(str(spec.base["name"]), folder)
    int8 = precision == "int8"
    if int8 and not merged:
        msg = "precision int8: only a merged adapter is quantised; leave out merged=False"
        raise RecipeError(msg)
    precision = resolve_precision("auto" if int8 else precision or _precision_here(spec.precision, place), place)
    if precision in QUANTISED:
        merged = False  # the adapter was tuned for the quantised weights, and they cannot take it in
    name = base or str(spec.base["name"])
    revision = spec.base.get("revision") if base is None else None
    check_identity(spec.base, identify(name, revision))
    loaded = load_base(name, revision=revision, precision="fp32" if merged else precision, device=place)
    model: torch.nn.Module = load_adapter(loaded.model, folder)
    if merged:
        model = cast(merge(model), precision)  # type: ignore[arg-type]  # a PeftModel
    tokenizer = load_tokenizer(str(folder)) if (folder / "tokenizer.json").is_file() else loaded.tokenizer
    return replace(make_classifier(model, tokenizer, spec, engine, int8=int8), validation=read_validation(folder, spec))


def load_ensemble(
    folder: Path,
    *,
    base: str | None = None,
    precision: str | None = None,
    device: str | torch.device | None = None,
    engine: str = "fast",
) -> Classifier:
    """Load the ensemble that `rxtone train --seeds` wrote: several adapters on one base.

    Args:
        folder: A folder with ensemble.json.
        base: Where the base is now (see `load`).
        precision: Precision of the base; None takes that of the training where the device has it.
        device: Where to compute; None chooses.
        engine: The forward (see `load`).

    Returns:
        The classifier; its probabilities are the mean of its members'.

    Raises:
        ModelError: If a member is missing, damaged, or was trained for something else.
    """
    members = _members(folder)
    spec = read_spec(folder)
    for member in members:
        read_adapter(member)
        theirs = read_spec(member)
        same = (theirs.labels, theirs.prompt, theirs.text_fields, theirs.base)
        if same != (spec.labels, spec.prompt, spec.text_fields, spec.base):
            msg = f"{member}: its labels, prompt or base are not those of the ensemble {folder}; train the seeds again"
            raise ModelError(msg)
    place = torch.device(device) if device is not None else default_device()
    if base is None:
        check_foreign_base(str(spec.base["name"]), folder)
    name = base or str(spec.base["name"])
    revision = spec.base.get("revision") if base is None else None
    check_identity(spec.base, identify(name, revision))
    chosen = resolve_precision(precision or _precision_here(spec.precision, place), place)
    loaded = load_base(name, revision=revision, precision=chosen, device=place)
    adapted, names = load_adapters(loaded.model, members)
    tokens = label_token_ids(loaded.tokenizer, spec.labels, token_id(loaded.model, "eos_token_id"))
    made = make_classifier(Ensemble(adapted, names, tokens, engine), loaded.tokenizer, spec, "reference")
    return replace(made, validation=read_validation(folder, spec))


def _members(folder: Path) -> list[Path]:
    try:
        listed = json.loads((folder / ENSEMBLE).read_text("utf-8"))["members"]
        members = [(folder / str(member)).resolve() for member in listed]
    except (ValueError, KeyError, TypeError, OSError) as error:
        msg = f"{folder / ENSEMBLE}: cannot be used: {error}; train the seeds again"
        raise ModelError(msg) from None
    outside = [member for member in members if not member.is_relative_to(folder.resolve().parent)]
    if outside:
        msg = f"{folder / ENSEMBLE}: its members lie outside of {folder.resolve().parent}; nothing there is read"
        raise ModelError(msg)
    missing = [member for member in members if not member.is_dir()]
    if missing or not members:
        msg = (
            f"{folder / ENSEMBLE}: its member {missing[0] if missing else '(none)'} is missing; keep the seeds together"
        )
        raise ModelError(msg)
    return members


def load_exported(folder: Path, *, device: str | torch.device | None = None, engine: str = "fast") -> Classifier:
    """Load what `rxtone export` wrote.

    Args:
        folder: A folder with export.json.
        device: Where to compute a `merged` one; None chooses. The other runtimes use the CPU.
        engine: The forward of a `merged` one (see `load`).

    Returns:
        The classifier.

    Raises:
        ModelError: If the folder is damaged, or its runtime is not installed.
    """
    record, spec, tokenizer = read_export(folder), read_spec(folder), load_tokenizer(str(folder))
    place = torch.device(device) if device is not None else default_device()
    tokens = label_token_ids(tokenizer, spec.labels, record.eos)
    model = open_exported(folder, record, tokenizer, tokens, place)
    return replace(make_classifier(model, tokenizer, spec, engine), validation=read_validation(folder, spec))


def zero_shot(recipe: Recipe, *, device: str | torch.device | None = None) -> Classifier:
    """The recipe's base without any adapter, asked with the same prompt."""
    place = torch.device(device) if device is not None else default_device()
    base = load_base(recipe.model.base, revision=recipe.model.revision, precision=recipe.model.weights, device=place)
    return make_classifier(base.model, base.tokenizer, make_spec(recipe, base.identity.to_json(), base.precision))


def make_classifier(
    model: torch.nn.Module, tokenizer: Tokenizer, spec: ClassifierSpec, engine: str = "fast", *, int8: bool = False
) -> Classifier:
    """A classifier of a model at hand; the model is put into evaluation mode."""
    model.eval()
    tokens = label_token_ids(tokenizer, spec.labels, token_id(model, "eos_token_id"))
    scorer, _ = plan_scorer(model, engine, int8=int8)
    builder = prompt_builder(tokenizer, spec.prompt, spec.labels)
    return Classifier(model, scorer, tokenizer, spec, builder, tokens, spec_policy(spec))


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
        text_fields=recipe.data.text_fields,
        group_by=recipe.data.group_by,
        prompt=recipe.prompt,
        base=base,
        precision=precision,
        versions={name: importlib.metadata.version(name) for name in VERSIONED},
    )


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


def cast(model: torch.nn.Module, precision: str) -> torch.nn.Module:
    """Cast a merged model; under fp16 T5's `wo` stays fp32, without which it overflows."""
    model.to(DTYPES[precision])
    if precision == "fp16":
        for name, module in model.named_modules():
            if name.rpartition(".")[2] == "wo":
                module.float()
    return model


def _precision_here(trained: str, device: torch.device) -> str:
    # fp16 was a GPU's; elsewhere the device's own best takes its place.
    return "auto" if trained == "fp16" and device.type == "cpu" else trained


def token_id(model: torch.nn.Module, name: str) -> int:
    """A special token's id from a model's config, such as `eos_token_id`."""
    return int(getattr(model.config, name))
