"""A classifier and labelled reviews to an `Evaluation`: metrics, predictions, and what stands beside them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.special import log_softmax

from rxtone.errors import DataError, ModelError
from rxtone.evaluation.baselines import Baseline
from rxtone.evaluation.inputs import (
    LabelledReview,
    Review_contra,
    Scores,
    ScoringClassifier,
    label_indexes,
)
from rxtone.stats.metrics import INVALID, classification_metrics

SplitName = Literal["test", "validation, used for selection"]


@dataclass(frozen=True)
class Evaluation:
    """What was found, ready to be written: JSON and a table, no text of any review."""

    metrics: dict[str, object]
    """The content of `metrics.json`."""
    predictions: pl.DataFrame
    """The content of `predictions.parquet`: one row per review, in order."""


def evaluate(
    classifier: ScoringClassifier[Review_contra],
    reviews: Sequence[Review_contra],
    *,
    split_name: SplitName,
    baselines: Sequence[Baseline] = (),
    ordinal: bool = True,
) -> Evaluation:
    """Score reviews and compare the labels with the true ones.

    Args:
        classifier: Scores reviews against its labels.
        reviews: The n reviews, each with a label.
        split_name: What the reviews are: rows that selected a checkpoint are never called a test.
        baselines: Predictions for the same reviews to report beside.
        ordinal: Whether the labels, in recipe order, are ordered.

    Returns:
        Metrics with the keys of `classification_metrics`, and `split`, `truncation`, `baselines`; predictions
        with the columns `row, label, true_label, score, p_<label>, truncated, abstained, n_tokens`.

    Raises:
        DataError: If there are no reviews, or one has no label or an unknown one.
        ModelError: If a score is not finite.
    """
    y_true = label_indexes(reviews, classifier.labels)
    scores = classifier.score(reviews)
    log_probs = _checked_log_probs(scores, len(reviews), len(classifier.labels))
    y_pred = log_probs.argmax(axis=1)
    metrics = classification_metrics(y_true, y_pred, classifier.labels, ordinal=ordinal)
    metrics["split"] = split_name
    metrics["truncation"] = _truncation(scores)
    metrics["baselines"] = _baseline_metrics(baselines, y_true, classifier.labels, ordinal)
    frame = predictions_frame(reviews, classifier.labels, np.exp(log_probs), y_pred, scores)
    return Evaluation(metrics, frame)


def evaluate_outputs(
    labels: Sequence[str],
    reviews: Sequence[LabelledReview],
    outputs: Sequence[str | None],
    *,
    split_name: SplitName,
    ordinal: bool = True,
) -> Evaluation:
    """Judge labels that were generated as text instead of scored.

    Args:
        labels: The labels in recipe order.
        reviews: The n reviews, each with a label.
        outputs: One output per review; anything that is not one of the labels is invalid, an error for every
            metric.
        split_name: What the reviews are.
        ordinal: Whether the labels are ordered.

    Returns:
        Metrics as `evaluate` gives them; predictions with the columns `row, label, true_label`, where the
        label of an invalid output is null.

    Raises:
        DataError: If the lengths differ, or a review has no label or an unknown one.
    """
    y_true = label_indexes(reviews, labels)
    if len(outputs) != len(reviews):
        raise DataError(f"expected one output for each of {len(reviews)} reviews, got {len(outputs)}")
    position = {label: i for i, label in enumerate(labels)}
    y_pred = np.array([position.get(output or "", INVALID) for output in outputs], dtype=np.int64)
    metrics = classification_metrics(y_true, y_pred, labels, ordinal=ordinal)
    frame = pl.DataFrame(
        {
            "row": [review.row for review in reviews],
            "label": [None if i == INVALID else labels[i] for i in y_pred],
            "true_label": [labels[i] for i in y_true],
        },
        schema={"row": pl.Int64, "label": pl.String, "true_label": pl.String},
    )
    return Evaluation(metrics | {"split": split_name, "mode": "generate"}, frame)


def predictions_frame(
    reviews: Sequence[LabelledReview],
    labels: Sequence[str],
    probabilities: NDArray[np.float64],
    y_pred: NDArray[np.int64],
    scores: Scores,
) -> pl.DataFrame:
    """Lay out predictions as the table that is saved.

    Args:
        reviews: The n reviews.
        labels: The k labels in recipe order.
        probabilities: Shape (n, k).
        y_pred: Predicted indexes, shape (n,).
        scores: The scores they come from, for truncation and length.

    Returns:
        One row per review, in order; `score` is the probability of the predicted label.
    """
    true = [review.label for review in reviews]
    columns = {
        "row": pl.Series([review.row for review in reviews], dtype=pl.Int64),
        "label": pl.Series([labels[i] for i in y_pred], dtype=pl.String),
        "true_label": pl.Series(true, dtype=pl.String),
        "score": pl.Series(probabilities[np.arange(len(y_pred)), y_pred]),
    }
    columns |= {f"p_{label}": pl.Series(probabilities[:, i]) for i, label in enumerate(labels)}
    columns["truncated"] = pl.Series(np.asarray(scores.truncated, dtype=bool))
    columns["abstained"] = pl.Series(np.zeros(len(y_pred), dtype=bool))
    columns["n_tokens"] = pl.Series(np.asarray(scores.n_tokens, dtype=np.int64))
    return pl.DataFrame(columns)


def _checked_log_probs(scores: Scores, n: int, k: int) -> NDArray[np.float64]:
    log_probs = np.asarray(scores.log_probs, dtype=np.float64)
    if log_probs.shape != (n, k):
        raise ModelError(f"expected scores of shape ({n}, {k}), reviews by labels, got {log_probs.shape}")
    bad = np.flatnonzero(~np.isfinite(log_probs).all(axis=1))
    if bad.size:
        raise ModelError(
            f"the model gave a score that is not finite for {bad.size} of {n} reviews, the first at position "
            f"{bad[0] + 1}. The weights or the precision are damaged: check the run, or score in fp32."
        )
    return np.asarray(log_softmax(log_probs, axis=1), dtype=np.float64)


def _truncation(scores: Scores) -> dict[str, object]:
    truncated, tokens = np.asarray(scores.truncated, dtype=bool), np.asarray(scores.n_tokens)
    return {
        "n_truncated": int(truncated.sum()),
        "share_truncated": float(truncated.mean()),
        "tokens": {
            "mean": float(tokens.mean()),
            "p50": float(np.percentile(tokens, 50)),
            "p90": float(np.percentile(tokens, 90)),
            "max": int(tokens.max()),
        },
    }


def _baseline_metrics(
    baselines: Sequence[Baseline], y_true: NDArray[np.int64], labels: Sequence[str], ordinal: bool
) -> dict[str, object]:
    out: dict[str, object] = {}
    for baseline in baselines:
        if baseline.predicted is None:
            out[baseline.name] = {
                "title": baseline.title,
                "unavailable": baseline.unavailable or "not measured",
            }
            continue
        figures = classification_metrics(y_true, baseline.predicted, labels, ordinal=ordinal)
        out[baseline.name] = {"title": baseline.title} | figures
    return out
