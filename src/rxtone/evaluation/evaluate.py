"""A classifier and labelled reviews to an `Evaluation`: metrics, predictions, and what stands beside them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from rxtone.data.reviews import Review
from rxtone.errors import DataError, ModelError
from rxtone.evaluation.baselines import Baseline
from rxtone.evaluation.compare import RunPredictions, compare
from rxtone.evaluation.inputs import Scores, ScoringClassifier, group_indexes, label_indexes
from rxtone.evaluation.quality import answer_metrics
from rxtone.evaluation.slices import LENGTH, length_slices, slice_metrics
from rxtone.stats.bootstrap import N_RESAMPLES
from rxtone.stats.metrics import INVALID
from rxtone.stats.policy import Decisions, Policy, plain_policy

_OWN = "this classifier"


@dataclass(frozen=True)
class Evaluation:
    """What was found, ready to be written: JSON and a table, no text of any review."""

    metrics: dict[str, Any]
    """The content of `metrics.json`."""
    predictions: pl.DataFrame
    """The content of `predictions.parquet`: one row per review, in order."""


def evaluate(
    classifier: ScoringClassifier,
    reviews: Sequence[Review],
    *,
    split_name: str,
    policy: Policy | None = None,
    baselines: Sequence[Baseline] = (),
    slices: Mapping[str, Sequence[str | None]] | None = None,
    ordinal: bool = True,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> Evaluation:
    """Score reviews and compare the answers with the true labels.

    Args:
        classifier: Scores reviews against its labels.
        reviews: The n reviews, each with a label. Where they name groups, intervals are by group.
        split_name: What the reviews are: `test`, or what keeps them from being one (they selected the
            checkpoint, they repeat training reviews).
        policy: How scores become answers; None takes the most probable label, uncalibrated.
        baselines: Predictions for the same reviews to report beside.
        slices: More to slice by -> the slice of each review, shape (n,), beside group, length and truncation.
        ordinal: Whether the labels, in recipe order, are ordered.
        n_resamples: The number of bootstrap resamples.
        seed: Of the resamples.

    Returns:
        Metrics with the keys of `classification_metrics`, each with an interval, of the answers as the policy
        gives them (withheld ones counted as what they would have been), and `split`, `interval`,
        `comparisons`, `baselines`, `truncation`, `calibration`, `risk_coverage`, `abstention`,
        `operating_point`, `operating_points`, `conformal`, `slices`; predictions with the columns `row,
        label, true_label, score, p_<label>, truncated, abstained, n_tokens`.

    Raises:
        DataError: If there are no reviews, or one has no label or an unknown one.
        ModelError: If a score is not finite.
    """
    labels = classifier.labels
    y_true = label_indexes(reviews, labels)
    scores = classifier.score(reviews)
    log_probs = _checked_log_probs(scores, len(reviews), len(labels))
    policy = policy or plain_policy(len(labels))
    answers = policy.decide(log_probs)
    groups = group_indexes(reviews)
    metrics = _metrics_beside(
        answers.predicted,
        y_true,
        labels,
        baselines,
        groups,
        ordinal=ordinal,
        n_resamples=n_resamples,
        seed=seed,
    )
    metrics["split"] = split_name
    metrics["mode"] = "score"
    metrics["truncation"] = _truncation(scores)
    metrics |= answer_metrics(
        policy, log_probs, y_true, labels, groups=groups, ordinal=ordinal, n_resamples=n_resamples, seed=seed
    )
    by = _usual_slices(reviews, scores) | dict(slices or {})
    metrics["slices"] = slice_metrics(y_true, answers.predicted, labels, by, seed=seed)
    return Evaluation(metrics, predictions_frame(reviews, labels, answers, scores))


def evaluate_outputs(
    labels: Sequence[str],
    reviews: Sequence[Review],
    outputs: Sequence[str | None],
    *,
    split_name: str,
    baselines: Sequence[Baseline] = (),
    ordinal: bool = True,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> Evaluation:
    """Judge labels that were generated as text instead of scored.

    Args:
        labels: The labels in recipe order.
        reviews: The n reviews, each with a label.
        outputs: One output per review; anything that is not one of the labels is invalid, an error for every
            metric.
        split_name: What the reviews are, as in `evaluate`.
        baselines: Predictions for the same reviews to report beside.
        ordinal: Whether the labels are ordered.
        n_resamples: The number of bootstrap resamples.
        seed: Of the resamples.

    Returns:
        Metrics with the keys of `classification_metrics`, each with an interval, and `split`, `mode`,
        `interval`, `comparisons`, `baselines`; predictions with the columns `row, label, true_label`, where
        the label of an invalid output is null.

    Raises:
        DataError: If the lengths differ, or a review has no label or an unknown one.
    """
    y_true = label_indexes(reviews, labels)
    if len(outputs) != len(reviews):
        raise DataError(f"expected one output for each of {len(reviews)} reviews, got {len(outputs)}")
    position: dict[str | None, int] = {label: i for i, label in enumerate(labels)}
    y_pred = np.array([position.get(output, INVALID) for output in outputs], dtype=np.int64)
    groups = group_indexes(reviews)
    metrics = _metrics_beside(
        y_pred, y_true, labels, baselines, groups, ordinal=ordinal, n_resamples=n_resamples, seed=seed
    )
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
    reviews: Sequence[Review], labels: Sequence[str], answers: Decisions, scores: Scores
) -> pl.DataFrame:
    """Lay out predictions as the table that is saved.

    Args:
        reviews: The n reviews.
        labels: The k labels in recipe order.
        answers: The answers to them.
        scores: The scores they come from, for truncation and length.

    Returns:
        One row per review, in order; `score` is the probability of the predicted label.
    """
    columns = {
        "row": pl.Series([review.row for review in reviews], dtype=pl.Int64),
        "label": pl.Series([labels[i] for i in answers.predicted], dtype=pl.String),
        "true_label": pl.Series([review.label for review in reviews], dtype=pl.String),
        "score": pl.Series(answers.confidence),
    }
    columns |= {f"p_{label}": pl.Series(answers.probabilities[:, i]) for i, label in enumerate(labels)}
    columns["truncated"] = pl.Series(np.asarray(scores.truncated, dtype=bool))
    columns["abstained"] = pl.Series(np.asarray(answers.abstained, dtype=bool))
    columns["n_tokens"] = pl.Series(np.asarray(scores.n_tokens, dtype=np.int64))
    return pl.DataFrame(columns)


def _metrics_beside(
    y_pred: NDArray[np.int64],
    y_true: NDArray[np.int64],
    labels: Sequence[str],
    baselines: Sequence[Baseline],
    groups: NDArray[np.int64] | None,
    *,
    ordinal: bool,
    n_resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Return the metrics of the answers at the top, and the comparison with the baselines below them."""
    found: dict[str, Any] = compare(
        [RunPredictions(_OWN, y_pred)],
        y_true,
        labels,
        baselines=baselines,
        groups=groups,
        ordinal=ordinal,
        n_resamples=n_resamples,
        seed=seed,
    )
    metrics: dict[str, Any] = dict(found["runs"][_OWN])
    return metrics | {
        "interval": found["interval"],
        "baselines": found["baselines"],
        "comparisons": found["pairs"],
    }


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
    return log_probs


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


def _usual_slices(reviews: Sequence[Review], scores: Scores) -> dict[str, Sequence[str | None]]:
    slices: dict[str, Sequence[str | None]] = {
        LENGTH: length_slices(np.asarray(scores.n_tokens)),
        "truncated": ["truncated" if cut else "whole" for cut in np.asarray(scores.truncated)],
    }
    if any(review.group is not None for review in reviews):
        slices["group"] = [review.group for review in reviews]
    return slices
