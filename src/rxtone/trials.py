"""One setting trained in memory: the base and the tokens are shared with the settings before and after it.

A trial is what `pipeline.train` does up to the end of its loop, without the run's artefacts; a test holds both
to the same numbers.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rxtone.config import dump_recipe
from rxtone.data.splits import folds, make_split
from rxtone.errors import DataError
from rxtone.model.base import Base, default_device, load_base
from rxtone.model.lora import adapted
from rxtone.model.memory import peak_memory, reset_peak_memory
from rxtone.model.scoring import Scorer, log_probabilities
from rxtone.pipeline import scorer_for, tokenise, validation_scores
from rxtone.preparation import Prepared, label_indexes, prepare
from rxtone.run import RunFolder, write_text
from rxtone.stats.metrics import classification_metrics
from rxtone.tracking import open_trackers
from rxtone.training.data import TrainingData
from rxtone.training.events import EvalDone, StepDone
from rxtone.training.loop import fit

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from rxtone.config import Recipe
    from rxtone.data.reviews import Review


@dataclass(frozen=True)
class Trained:
    """What became of a trial that ran to its end.

    Attributes:
        macro_f1: Validation macro-F1 of the best checkpoint: what trials are ranked by.
        predicted: Label index of each validation review, by the best checkpoint, shape (m,).
        facts: Trainable parameters, seconds, rate, peak memory, per-class F1: for the table.
    """

    macro_f1: float
    predicted: tuple[int, ...]
    facts: dict[str, Any]


@dataclass(frozen=True)
class FoldRun:
    """One run of the confirmation: train without a fold, judge on it.

    Attributes:
        rows: Data row of each review of the fold.
        true: Its label index, and
        predicted: the one it got, and
        probabilities: the probability of each label.
        macro_f1: Macro-F1 on the fold.
        seconds: Wall time of the run.
    """

    rows: tuple[int, ...]
    true: tuple[int, ...]
    predicted: tuple[int, ...]
    probabilities: tuple[tuple[float, ...], ...]
    macro_f1: float
    seconds: float


@dataclass(frozen=True)
class Bench:
    """What trials share. The loaders answer from memory where the last trial asked for the same.

    Attributes:
        base: Recipe -> base.
        prepared: Recipe -> labelled, split reviews.
        data: Recipe -> the same in tokens.
    """

    base: Callable[[Recipe], Base]
    prepared: Callable[[Recipe], Prepared]
    data: Callable[[Recipe], TrainingData]


def open_bench(load: Callable[[Recipe], Base] | None = None) -> Bench:
    """A bench with nothing on it yet.

    Args:
        load: Loads a base; None reads it from where the recipe says.

    Returns:
        The bench.
    """
    base = _remember(load or _load, lambda recipe: recipe.model.model_dump_json(), keep=1)
    prepared = _remember(
        lambda recipe: prepare(recipe.data, recipe.train.seed, recipe.auxiliary),
        reviews_key,
        keep=1,
    )
    data = _remember(lambda recipe: tokenise(recipe, base(recipe), prepared(recipe))[0], data_key, keep=4)
    return Bench(base, prepared, data)


def run_trial(bench: Bench, recipe: Recipe, folder: Path) -> Generator[StepDone | EvalDone | Trained]:
    """Train one setting and log it; ceasing to iterate stops it and leaves the bench clean.

    Args:
        bench: What trials share.
        recipe: The setting.
        folder: An empty folder for config.yaml, metrics.jsonl and, until the end, checkpoints.

    Yields:
        Steps and validations, and `Trained` at last.
    """
    track = log_trial(recipe, folder)
    with contextlib.closing(train_setting(bench, recipe, RunFolder(folder).checkpoints)) as events:
        for event in events:
            track(event)
            yield event


def log_trial(recipe: Recipe, folder: Path) -> Callable[[StepDone | EvalDone | Trained], None]:
    """Write a trial's config.yaml, and give what its events are to be handed to.

    Args:
        recipe: The setting; its `track` group says where progress goes besides metrics.jsonl.
        folder: The trial's folder.

    Returns:
        A function that takes an event.
    """
    run = RunFolder(folder)
    write_text(run.config, dump_recipe(recipe))
    trackers = open_trackers(run, recipe)

    def track(event: StepDone | EvalDone | Trained) -> None:
        if not isinstance(event, Trained):
            for tracker in trackers:
                tracker(event)

    return track


def train_setting(bench: Bench, recipe: Recipe, checkpoints: Path) -> Generator[StepDone | EvalDone | Trained]:
    """Train one setting.

    Args:
        bench: What trials share.
        recipe: The setting.
        checkpoints: A folder for checkpoints, removed at the end.

    Yields:
        Steps and validations, and `Trained` at last.
    """
    started = time.perf_counter()
    base, data = bench.base(recipe), bench.data(recipe)
    fresh_peak = reset_peak_memory()
    rows, busy, steps = 0, 0.0, 0
    with adapted(base.model, recipe.lora, recipe.train.seed) as (model, summary), _removed(checkpoints):
        scorer, _ = scorer_for(model, recipe)
        for event in fit(scorer, data, recipe.train, checkpoints):
            if isinstance(event, StepDone):
                rows, busy, steps = rows + event.reviews, busy + event.seconds, event.step
            if isinstance(event, StepDone | EvalDone):
                yield event
        predicted = _predictions(scorer, data)
        facts = {
            "trainable": summary.trainable,
            "seconds": time.perf_counter() - started,
            "reviews_per_second": rows / busy if busy else None,
            "peak_memory_bytes": peak_memory(model) if fresh_peak else None,
            "steps": steps,
        }
        yield trained(data, predicted, facts)  # while the adapter is still on the base, for who wants to look at it


def trained(data: TrainingData, predicted: np.ndarray, facts: dict[str, Any]) -> Trained:
    """The end of a trial.

    Args:
        data: Its validation reviews.
        predicted: The label index that each of them got, shape (m,).
        facts: What else is known.

    Returns:
        The same with macro-F1 and the F1 of each label.
    """
    metrics = classification_metrics(data.validation_classes, predicted, data.labels)
    by_label = {label: row["f1"] for label, row in per_class(metrics).items()}
    return Trained(float(str(metrics["macro_f1"])), tuple(predicted.tolist()), facts | {"per_class_f1": by_label})


def run_fold(bench: Bench, recipe: Recipe, *, seed: int, fold: int, of: int, folder: Path) -> FoldRun:
    """Train on all but one fold of the training and validation rows, and judge on that fold.

    The checkpoint is chosen on validation rows cut from the other folds, so the fold chooses nothing: a nested
    cross-validation. Rows of the test are never touched.

    Args:
        bench: What trials share.
        recipe: The setting.
        seed: Seed of the folds, of the inner split and of the training.
        fold: Which fold, from 0.
        of: How many folds.
        folder: A folder for the checkpoints, removed at the end.

    Returns:
        What the fold's reviews were called.
    """
    started = time.perf_counter()
    prepared = bench.prepared(recipe)
    own = recipe.model_copy(update={"train": recipe.train.model_copy(update={"seed": seed})})
    rest, held_out = cut_fold(prepared, seed=seed, fold=fold, of=of)
    split = make_split(rest, validation_fraction=recipe.data.validation_fraction, test_fraction=0.0, seed=seed)
    inner = replace(
        prepared, train=[rest[int(i)] for i in split.train], validation=[rest[int(i)] for i in split.validation],
        held_out=held_out,
    )  # fmt: skip
    base = bench.base(recipe)
    data = tokenise(own, base, inner)[0]
    judged = tokenise(own, base, replace(inner, train=held_out, validation=held_out))[0]
    with adapted(base.model, own.lora, seed) as (model, _), _removed(folder):
        scorer, _ = scorer_for(model, own)
        for _ in fit(scorer, data, own.train, folder / "checkpoints"):
            pass
        log_probs = log_probabilities(validation_scores(scorer, judged))
    predicted = log_probs.argmax(1)
    probabilities = np.exp(log_probs.astype(np.float64)).round(6)
    true = label_indexes(held_out, prepared.labels)
    macro_f1 = float(str(classification_metrics(true, predicted, prepared.labels)["macro_f1"]))
    return FoldRun(
        tuple(review.row or 0 for review in held_out), tuple(true.tolist()), tuple(predicted.tolist()),
        tuple(map(tuple, probabilities.tolist())), macro_f1, time.perf_counter() - started,
    )  # fmt: skip


def cut_fold(prepared: Prepared, *, seed: int, fold: int, of: int) -> tuple[list[Review], list[Review]]:
    """The reviews outside and inside one fold of the training and validation rows.

    Args:
        prepared: The split reviews of the recipe.
        seed: Seed of the folds.
        fold: Which fold, from 0.
        of: How many folds.

    Returns:
        Reviews to learn and select from, and reviews to judge on.

    Raises:
        DataError: If there are too few reviews for the folds.
    """
    pool = sorted([*prepared.train, *prepared.validation], key=lambda review: review.row or 0)
    try:
        held_out = set(folds(pool, of, seed)[fold].tolist())
    except DataError as error:
        msg = f"confirm.folds: {error}"
        raise DataError(msg) from None
    rest = [review for index, review in enumerate(pool) if index not in held_out]
    return rest, [pool[index] for index in sorted(held_out)]


def per_class(metrics: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The per-class part of `classification_metrics`."""
    found: dict[str, dict[str, float]] = metrics["per_class"]
    return found


def _predictions(scorer: Scorer, data: TrainingData) -> np.ndarray:
    predicted: np.ndarray = log_probabilities(validation_scores(scorer, data)).argmax(1)
    return predicted


def _load(recipe: Recipe) -> Base:
    model = recipe.model
    return load_base(model.base, revision=model.revision, precision=model.weights, device=default_device())


def reviews_key(recipe: Recipe) -> str:
    """What the split, labelled reviews of a recipe depend on: equal keys, equal reviews."""
    further = [task.model_dump(mode="json") for task in recipe.auxiliary.values()]
    return json.dumps([recipe.data.model_dump(mode="json"), recipe.train.seed, list(recipe.auxiliary), further])


def data_key(recipe: Recipe) -> str:
    """What the training data in tokens depend on: equal keys, equal data."""
    own = [part.model_dump(mode="json") for part in (recipe.prompt, recipe.model)]
    return json.dumps([reviews_key(recipe), recipe.train.rating_noise, *own])


def _remember(make: Callable[[Recipe], Any], key: Callable[[Recipe], str], *, keep: int) -> Callable[[Recipe], Any]:
    made: dict[str, Any] = {}

    def get(recipe: Recipe) -> Any:
        name = key(recipe)
        if name not in made:
            while len(made) >= keep:  # oldest first, before the new one takes its memory
                del made[next(iter(made))]
            made[name] = make(recipe)
        return made[name]

    return get


@contextlib.contextmanager
def _removed(folder: Path) -> Iterator[None]:
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)
