"""A run -> a folder for another runtime, proven on canary reviews to give the same probabilities.

The adapter is merged into the base in fp32 before any cast (merging in bf16 drifts). Before the folder
appears it is opened again as a user would and scored beside the run: where a probability moved more than
the tolerance, nothing is left behind.
"""

from __future__ import annotations

import itertools
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, cast

import numpy as np

from rxtone.classifier import Classifier
from rxtone.config import cache_dir
from rxtone.data.reviews import Review, read_reviews
from rxtone.data.tables import read_table
from rxtone.errors import GateError, RecipeError
from rxtone.loading import load, load_exported
from rxtone.model.export_weights import check_format, special_ids, write_weights
from rxtone.model.runtimes import EXPORT, Format
from rxtone.run import CARD, ENSEMBLE, atomic_folder, write_json
from rxtone.spec import adapter_folder, write_spec, write_validation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import T5ForConditionalGeneration

    from rxtone.config import Recipe
    from rxtone.spec import ClassifierSpec

TOLERANCE = {"fp32": 1e-5, "bf16": 5e-2, "int8": 1e-1}
"""Largest probability change allowed by default. fp32 computes the same numbers in another order; bf16 keeps
8 bits of each weight, int8 one of 256 steps per row, and both move a probability near 0.5 the most."""
CANARIES = 96


@dataclass(frozen=True)
class _Answers:
    probabilities: np.ndarray  # float64, shape (n, k)
    labels: list[str]
    reviews_per_second: float


class _Opening(TypedDict):
    format: Format
    precision: str
    max_tokens: int
    tokens: dict[str, int]


@dataclass(frozen=True)
class ExportReport:
    """What was exported and how it compares; the contents of export.json.

    Attributes:
        format: `merged`, `ctranslate2` or `onnx`.
        precision: Of the weights.
        max_tokens: The longest prompt.
        tokens: Ids of `pad`, `eos` and decoder `start`.
        source: The base's name.
        canaries: Reviews compared.
        max_probability_change: Largest change of any label's probability.
        mean_probability_change: Mean change.
        flipped_labels: Reviews whose label changed.
        tolerance: Largest change that was allowed.
        reviews_per_second: Of the export, on the canaries, in batches of 32.
        run_reviews_per_second: Of the run in fp32, on the same machine and canaries.
        bytes: Size of the folder's files without this one.
    """

    format: Format
    precision: str
    max_tokens: int
    tokens: dict[str, int]
    source: str
    canaries: int
    max_probability_change: float
    mean_probability_change: float
    flipped_labels: int
    tolerance: float
    reviews_per_second: float
    run_reviews_per_second: float
    bytes: int


def export(
    run: str | Path,
    folder: Path,
    *,
    form: str = "merged",
    precision: str = "fp32",
    canaries: str | Sequence[Review] | None = None,
    tolerance: float | None = None,
    base: str | None = None,
    recipe: Recipe | None = None,
) -> ExportReport:
    """Export a run and prove the copy.

    Args:
        run: A run folder, an adapter folder or a bundled name.
        folder: Destination; it must not exist.
        form: `merged` (a plain transformers folder), `ctranslate2` or `onnx`.
        precision: `fp32`, `bf16` (not `onnx`) or `int8` (not `merged`).
        canaries: Reviews to compare on, or a table with the run's text columns; None takes the bundled sample.
        tolerance: Largest probability change allowed; None takes that of `TOLERANCE`.
        base: Where the base is now, if not where it was in training.
        recipe: Prompt, labels and base for a plain PEFT folder without classifier.json.

    Returns:
        The comparison; export.json holds the same.

    Raises:
        RecipeError: If format and precision do not fit, the destination exists, or the run is an export.
        GateError: If a probability changes beyond the tolerance; nothing is left behind.
        ModelError: If the run cannot be loaded, or a runtime is missing.
    """
    known = check_format(form, precision)
    if (Path(run) / EXPORT).is_file():
        msg = f"{run}: is an export already; name the run that it came from"
        raise RecipeError(msg)
    if (Path(run) / ENSEMBLE).is_file() or (Path(run) / "ensemble" / ENSEMBLE).is_file():
        msg = f"{run}: an ensemble of adapters has no single model to export; name one of its seeds"
        raise RecipeError(msg)
    if folder.exists():
        msg = f"-o {folder}: expected a new folder, this one exists; choose another, or remove it first"
        raise RecipeError(msg)
    classifier = load(run, base=base, recipe=recipe, precision="fp32", device="cpu", merged=True)
    reviews = _canary_reviews(classifier.spec, canaries)
    limit = TOLERANCE[precision] if tolerance is None else tolerance
    run_answers = _measure(classifier, reviews)
    with atomic_folder(folder) as temporary:
        opening = _write(classifier, temporary, known, precision)
        _copy_card(adapter_folder(run), temporary)
        size = sum(path.stat().st_size for path in temporary.rglob("*") if path.is_file())
        answers = _measure(load_exported(temporary, device="cpu"), reviews)
        change = np.abs(answers.probabilities - run_answers.probabilities)
        report = ExportReport(
            **opening, source=str(classifier.spec.base["name"]), canaries=len(reviews),
            max_probability_change=float(change.max()), mean_probability_change=float(change.mean()),
            flipped_labels=sum(a != b for a, b in zip(answers.labels, run_answers.labels, strict=True)),
            tolerance=limit, reviews_per_second=answers.reviews_per_second,
            run_reviews_per_second=run_answers.reviews_per_second, bytes=size,
        )  # fmt: skip
        _pass_gate(report)
        write_json(temporary / EXPORT, asdict(report))
    return report


def bundled_canaries(spec: ClassifierSpec) -> list[Review]:
    """Reviews of the bundled sample in a classifier's own fields, some as free text, some of extreme length.

    Args:
        spec: The classifier's spec; where the sample lacks its columns, the sample's texts are dealt out to
            its fields.

    Returns:
        `CANARIES` reviews.
    """
    frame = read_table("sample:test", cache_dir()).frame.head(CANARIES - 4)
    own = [column for column in spec.text_fields.values() if column in frame.columns]
    texts = own or [name for name in frame.columns if name.endswith("Review")]
    reviews = []
    for number, row in enumerate(frame.select(texts).iter_rows()):
        cells = itertools.cycle(row)
        fields = tuple((name, next(cells)) for name in spec.text_fields)
        reviews.append(Review(text=" ".join(row)) if number % 4 == 3 else Review(fields=fields))
    everything = " ".join(cell for row in frame.select(texts).head(40).iter_rows() for cell in row if cell)
    first = next(iter(spec.text_fields))
    extremes = [Review(text="fine"), Review(text=everything)]
    extremes += [Review(fields=((first, "fine"),)), Review(fields=((first, everything),))]
    return reviews + extremes


def _write(classifier: Classifier, folder: Path, form: Format, precision: str) -> _Opening:
    """Write all but the comparison, and return what opens the folder again."""
    # Taken first: `merged` casts the model in place.
    model = cast("T5ForConditionalGeneration", classifier.model)
    opening = _Opening(
        format=form, precision=precision, max_tokens=classifier.spec.prompt.max_tokens, tokens=special_ids(model)
    )
    write_weights(
        model, classifier.tokenizer, classifier.label_tokens, folder,
        form=form, precision=precision, max_tokens=opening["max_tokens"],
    )  # fmt: skip
    stored = "bf16" if precision == "bf16" else "fp32"
    write_spec(folder, classifier.spec.model_copy(update={"precision": stored}))
    if classifier.validation is not None:
        write_validation(folder, classifier.validation)
    write_json(folder / EXPORT, opening)
    return opening


def _canary_reviews(spec: ClassifierSpec, canaries: str | Sequence[Review] | None) -> Sequence[Review]:
    if canaries is None:
        return bundled_canaries(spec)
    if isinstance(canaries, str):
        return read_reviews(read_table(canaries, cache_dir()), spec.text_fields, None, None)
    if not canaries:
        msg = "canaries: expected at least one review to compare on, got none"
        raise RecipeError(msg)
    return canaries


def _measure(classifier: Classifier, reviews: Sequence[Review]) -> _Answers:
    """What a user gets, calibration and operating point included; timed on a second pass."""
    predictions = classifier.predict(reviews)
    probabilities = np.array([[one.probabilities[label] for label in classifier.labels] for one in predictions])
    start = time.perf_counter()
    classifier.predict(reviews)
    seconds = time.perf_counter() - start
    return _Answers(probabilities, [one.label for one in predictions], len(reviews) / seconds)


def _copy_card(source: Path, folder: Path) -> None:
    if (source / CARD).is_file():
        shutil.copyfile(source / CARD, folder / CARD)


def _pass_gate(report: ExportReport) -> None:
    # Written so that a change which is no number fails as well.
    if not report.max_probability_change <= report.tolerance:
        msg = (
            f"export {report.format} {report.precision}: on {report.canaries} canary reviews a probability changed by "
            f"{report.max_probability_change:.2e} and {report.flipped_labels} labels flipped; at most "
            f"{report.tolerance:.0e} is allowed; nothing was written. Choose a higher --precision, or accept it with "
            "--tolerance"
        )
        raise GateError(msg)
