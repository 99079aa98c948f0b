"""Classifiers against labelled reviews: a run's own test, another table, each other, new data."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from rxtone.config import cache_dir
from rxtone.data.reviews import parse_rule, read_reviews
from rxtone.data.suspects import suspect_labels
from rxtone.data.tables import read_table
from rxtone.errors import DataError, RecipeError
from rxtone.evaluation.baselines import Baseline, cross_fitted, fit_baselines, unavailable_baselines
from rxtone.evaluation.behaviour import is_sentiment, judge_behaviour
from rxtone.evaluation.compare import compare_classifiers
from rxtone.evaluation.drift import drift
from rxtone.evaluation.evaluate import Evaluation, evaluate, evaluate_outputs, predictions_frame
from rxtone.evaluation.pages import render_drift
from rxtone.evaluation.report import render_comparison
from rxtone.loading import zero_shot
from rxtone.preparation import SEEN, TEST, UNKNOWN, free_text, label_indexes, text_hash
from rxtone.run import (
    EvaluationFolder,
    RunFolder,
    run_of_adapter,
    write_json,
    write_text,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rxtone.classifier import Classifier, Prediction
    from rxtone.config import Recipe
    from rxtone.data.reviews import Review
    from rxtone.data.tables import Table
    from rxtone.preparation import Prepared
    from rxtone.spec import ClassifierSpec


SUSPECTS = 20
"""Suspect labels that metrics.json names."""


def judge(classifier: Classifier, recipe: Recipe, prepared: Prepared) -> Evaluation:
    """Judge a trained classifier on its held-out reviews, beside the baselines and the bare base.

    Args:
        classifier: The reloaded classifier.
        recipe: The recipe it comes from.
        prepared: The reviews of the run.

    Returns:
        The evaluation; `free_text` in its metrics judges the same reviews without field names, where
        the recipe trains that form too.
    """
    baselines: list[Baseline] = []
    if recipe.evaluation.baselines:
        # Validation rows chose nothing for the baselines, so where there is a test they may learn from them.
        known = prepared.train + (prepared.validation if prepared.held_out_name == TEST else [])
        baselines += fit_baselines(known, prepared.held_out, prepared.labels)
    if recipe.evaluation.zero_shot:
        bare = zero_shot(recipe).score(prepared.held_out, batch_size=recipe.evaluation.batch_size)
        baselines.append(Baseline("zero_shot", "the base without adapter (zero-shot)", bare.log_probs.argmax(1)))
    slices, missing = _slices(recipe, prepared)
    evaluation = evaluate(
        classifier,
        prepared.held_out,
        split_name=prepared.held_out_name,
        policy=classifier.policy,
        baselines=baselines,
        slices=slices,
        ordinal=classifier.ordered,
    )
    evaluation.metrics["not_sliced_by"] = missing
    if recipe.prompt.text_share > 0:
        texts = [free_text(review) for review in prepared.held_out]
        evaluation.metrics["free_text"] = evaluate(
            classifier, texts, split_name=prepared.held_out_name, policy=classifier.policy, ordinal=classifier.ordered
        ).metrics
    if recipe.evaluation.baselines:
        evaluation.metrics["suspect_labels"] = _suspect_labels([*prepared.train, *prepared.validation], prepared.labels)
    if recipe.evaluation.behaviour:
        evaluation.metrics["behaviour"] = judge_behaviour(classifier, batch_size=recipe.evaluation.batch_size)
    return evaluation


def _slices(recipe: Recipe, prepared: Prepared) -> tuple[dict[str, list[str | None]], list[str]]:
    """The cells of the columns to slice by, in the order of the held-out reviews, and the columns not there."""
    if not recipe.evaluation.slice_by:
        return {}, []
    test = recipe.data.test if prepared.held_out_name == TEST else None
    frame = read_table(test or recipe.data.train, cache_dir()).frame
    # The column of groups is sliced by already.
    there = [name for name in recipe.evaluation.slice_by if name in frame.columns and name != recipe.data.group_by]
    cells = {column: frame[column].fill_null("").to_list() for column in there}
    rows = [review.row - 1 for review in prepared.held_out]
    found = {column: [values[row].strip() or None for row in rows] for column, values in cells.items()}
    return found, [name for name in recipe.evaluation.slice_by if name not in frame.columns]


def _suspect_labels(reviews: Sequence[Review], labels: Sequence[str]) -> dict[str, Any] | None:
    """The training rows whose label a linear model contradicts that has not seen them; None where there are too few."""
    probabilities = cross_fitted(reviews, labels)
    if probabilities is None:
        return None
    found = suspect_labels(label_indexes(reviews, labels), probabilities, labels, [review.row for review in reviews])
    return {"n": len(found), "of": len(reviews), "most": [asdict(suspect) for suspect in found[:SUSPECTS]]}


def judge_table(
    classifier: Classifier,
    folder: Path,
    source: str,
    *,
    mode: str = "score",
    behaviour: bool = False,
    own: Classifier | None = None,
) -> Evaluation:
    """Judge a classifier on another labelled table.

    Args:
        classifier: The loaded classifier.
        folder: Its run or adapter folder, where data.json is looked for.
        source: The table.
        mode: `score`, or `generate` for comparison: outputs that are no label count as errors.
        behaviour: Whether to ask the behavioural suite, too.
        own: The same run in its own precision, if `classifier` is in another: what changes is reported.

    Returns:
        The evaluation. Rows that repeat a training text are counted in `training_rows`, and the split
        is then not called a test; nor is it where no data.json tells what was trained on.

    Raises:
        RecipeError: If the suite is asked of labels that are no sentiment scale.
    """
    spec = classifier.spec
    if behaviour and not is_sentiment(spec.labels):
        known = ", ".join(spec.labels)
        msg = f"--behaviour: the suite judges labels positive, (neutral,) negative; this run knows {known}"
        raise RecipeError(msg)
    table = read_table(source, cache_dir())
    reviews = _labelled(spec, table)
    record = _data_record(folder)
    seen = set(record["training_text_hashes"]) if record else set()
    repeats = sum(text_hash(review) in seen for review in reviews)
    name = UNKNOWN if record is None else SEEN if repeats else TEST
    if mode == "generate":
        evaluation = evaluate_outputs(
            spec.labels, reviews, classifier.generate(reviews), split_name=name, ordinal=classifier.ordered
        )
    else:
        evaluation = evaluate(
            classifier,
            reviews,
            split_name=name,
            policy=classifier.policy,
            baselines=_refitted(classifier, record, reviews),
            ordinal=classifier.ordered,
        )
    if behaviour:
        evaluation.metrics["behaviour"] = judge_behaviour(classifier)
    evaluation.metrics["training_rows"] = repeats if record else None
    evaluation.metrics["table"] = {"source": table.path, "sha256": table.sha256, "rows": len(reviews)}
    if own is not None:
        evaluation.metrics["precision_change"] = precision_change(classifier, own, reviews)
    return evaluation


def precision_change(classifier: Classifier, own: Classifier, reviews: Sequence[Review]) -> dict[str, Any]:
    """What another precision changes in a run's answers.

    Args:
        classifier: The run in the other precision.
        own: The run in its own.
        reviews: Reviews; their labels are not read.

    Returns:
        `reviews`; `flips`, the answers that differ; `largest` and `mean` change of a probability; and
        `largest_flip_margin`, how far apart the two best labels of a flipped answer were at most in the run's
        own precision: a flip at a small margin was a near tie.
    """
    before, after = own.predict(reviews), classifier.predict(reviews)
    change = np.abs(_table(before) - _table(after)).max(axis=1)
    best = np.sort(_table(before), axis=1)
    flipped = np.array([one.label != other.label for one, other in zip(before, after, strict=True)], dtype=bool)
    return {
        "reviews": len(reviews),
        "flips": int(flipped.sum()),
        "largest": float(change.max()),
        "mean": float(change.mean()),
        "largest_flip_margin": float((best[:, -1] - best[:, -2])[flipped].max()) if flipped.any() else None,
    }


def _table(predictions: Sequence[Prediction]) -> np.ndarray:
    return np.array([list(prediction.probabilities.values()) for prediction in predictions])


def compare_runs(classifiers: Mapping[str, Classifier], source: str, out: Path | None) -> dict[str, Any]:
    """Compare classifiers on one labelled table.

    Args:
        classifiers: Name of the run -> classifier.
        source: The table; the first run's spec says how it is read.
        out: Folder for comparison.json and comparison.html, made where missing; None writes nothing.

    Returns:
        What `rxtone.evaluation.compare.compare` gives, and `notes`: which runs may have seen the reviews.
    """
    first, *_ = classifiers
    spec = classifiers[first].spec
    table = read_table(source, cache_dir())
    reviews = _labelled(spec, table)
    record = _data_record(Path(first))
    policies = {name: classifier.policy for name, classifier in classifiers.items()}
    comparison = compare_classifiers(
        classifiers,
        reviews,
        policies=policies,
        baselines=_refitted(classifiers[first], record, reviews),
        ordinal=classifiers[first].ordered,
    )
    notes = _seen_notes(list(classifiers), reviews)
    comparison["notes"] = notes
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        page = render_comparison({
            "title": " against ".join(Path(name).name for name in classifiers),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "table": table.path,
            "comparison": comparison,
            "commands": [f"rxtone compare {' '.join(classifiers)} --on {source} --out {out}"],
            "notes": notes,
        })  # fmt: skip
        write_text(out / "comparison.html", page)
        write_json(out / "comparison.json", comparison)
    return comparison


def _seen_notes(names: Sequence[str], reviews: Sequence[Review]) -> list[str]:
    """Which runs were trained on the reviews, and of which that is not known."""
    notes = []
    for name in names:
        record = _data_record(Path(name))
        if record is None:
            notes.append(
                f"{name}: there is no data.json beside it, so whether it was trained on these reviews is not known."
            )
            continue
        seen = set(record["training_text_hashes"])
        if repeats := sum(text_hash(review) in seen for review in reviews):
            notes.append(f"{name} was trained on {repeats} of these {len(reviews)} reviews: no test of it.")
    return notes


def drift_of(classifier: Classifier, folder: Path, source: str, out: Path | None = None) -> dict[str, Any]:
    """Compare the predictions for new reviews with those of the run's evaluation.

    Args:
        classifier: The run's classifier.
        folder: Its run folder.
        source: A table with the run's text columns.
        out: Folder for drift.json and drift.html, made where missing; None writes nothing.

    Returns:
        What `rxtone.evaluation.drift.drift` gives.

    Raises:
        DataError: If the run was not evaluated, or there are too few reviews.
    """
    reference = EvaluationFolder((run_of_adapter(folder) or RunFolder(folder)).evaluation).predictions
    if not reference.is_file():
        msg = f"{folder}: expected a run folder with {reference.name} in its evaluation; evaluate the run first"
        raise DataError(msg)
    reviews = read_reviews(read_table(source, cache_dir()), classifier.spec.text_fields, None, None)
    scores = classifier.score(reviews)
    decisions = classifier.policy.decide(scores.log_probs)
    current = predictions_frame(reviews, classifier.labels, decisions, scores)
    found = drift(pl.read_parquet(reference), current, classifier.labels)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        page = render_drift({
            "title": folder.name,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "table": source,
            "drift": found,
            "commands": [f"rxtone drift {folder} {source} --out {out}"],
        })  # fmt: skip
        write_text(out / "drift.html", page)
        write_json(out / "drift.json", found)
    return found


def _labelled(spec: ClassifierSpec, table: Table) -> list[Review]:
    """The reviews of a table that may lack a label, and may lack the group column of the training table."""
    group = spec.group_by if spec.group_by in table.frame.columns else None
    rule = parse_rule(spec.label_rule)
    return read_reviews(table, spec.text_fields, spec.label_column, rule, group, every_label=False)


def _data_record(folder: Path) -> dict[str, Any] | None:
    run = run_of_adapter(folder)
    if run is None:
        return None
    loaded: dict[str, Any] = json.loads(run.data.read_text("utf-8"))
    return loaded


def _refitted(classifier: Classifier, record: dict[str, Any] | None, reviews: Sequence[Review]) -> Sequence[Baseline]:
    """The baselines, fitted again where the training table is at hand with the same hash."""
    if record is None:
        return unavailable_baselines("the run's data.json is not beside the adapter")
    source = record["tables"]["train"]
    spec = classifier.spec
    try:
        table = read_table(source["source"], cache_dir())
        if table.sha256 != source["sha256"]:
            return unavailable_baselines("the training table has changed since")
        known = read_reviews(table, spec.text_fields, spec.label_column, parse_rule(spec.label_rule))
    except DataError:
        return unavailable_baselines("the training table is not at hand")
    rows = set(record["splits"]["train"]["row_numbers"]) | set(record["splits"]["validation"]["row_numbers"])
    return fit_baselines([review for review in known if review.row in rows], reviews, spec.labels)
