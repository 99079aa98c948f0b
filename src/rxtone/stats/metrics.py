"""Classification metrics, computed once, from confusion counts.

Every metric is a function of the counts of (true label, predicted label). The counts keep one more column
than there are labels: it collects invalid outputs (``-1``), which are errors for every metric. Because the
functions take arrays of shape ``(..., k, k + 1)``, the same code gives the figure of one evaluation and the
figures of thousands of bootstrap resamples.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

INVALID = -1
"""The predicted index of an output that is none of the labels."""

SCALAR_METRICS = (
    "accuracy",
    "macro_precision",
    "macro_recall",
    "macro_f1",
    "weighted_precision",
    "weighted_recall",
    "weighted_f1",
    "kappa",
    "quadratic_kappa",
)
"""The metrics that are one number, in the order in which they are written."""

CLASS_METRICS = ("precision", "recall", "f1")
"""The metrics that are one number per label."""


def confusion_counts(y_true: ArrayLike, y_pred: ArrayLike, n_labels: int) -> NDArray[np.int64]:
    """Count each pair of true and predicted label.

    Args:
        y_true: Label indexes, shape (n,), in 0..n_labels-1.
        y_pred: Label indexes, shape (n,), in 0..n_labels-1, or -1 for an invalid output.
        n_labels: The number of labels, k.

    Returns:
        Counts of shape (k, k + 1): rows are true labels, columns predicted ones, the last column invalid
        outputs.

    Raises:
        ValueError: If the shapes differ, there are no rows, or an index is out of range.
    """
    true, pred = np.asarray(y_true), np.asarray(y_pred)
    if true.ndim != 1 or true.shape != pred.shape:
        raise ValueError(f"y_true and y_pred must be of one shape (n,), got {true.shape} and {pred.shape}")
    if true.size == 0:
        raise ValueError("metrics need at least one row, got none")
    if not (np.issubdtype(true.dtype, np.integer) and np.issubdtype(pred.dtype, np.integer)):
        raise ValueError(f"label indexes must be integers, got {true.dtype} and {pred.dtype}")
    if true.min() < 0 or true.max() >= n_labels:
        raise ValueError(f"y_true must lie in 0..{n_labels - 1}, got {true.min()}..{true.max()}")
    if pred.min() < INVALID or pred.max() >= n_labels:
        raise ValueError(f"y_pred must lie in -1..{n_labels - 1}, got {pred.min()}..{pred.max()}")
    column = np.where(pred == INVALID, n_labels, pred)
    cells = np.bincount(true * (n_labels + 1) + column, minlength=n_labels * (n_labels + 1))
    return cells.reshape(n_labels, n_labels + 1)


def metric_arrays(counts: ArrayLike) -> dict[str, NDArray[np.float64]]:
    """Compute every metric of one or many confusion counts.

    A ratio of nothing to nothing (the precision of a label that is never predicted, kappa where chance alone
    explains everything) is 0. Macro averages run over all labels, so a label without rows counts as 0, as
    scikit-learn does when it is given the list of labels. Kappa is Cohen's (1960), the weighted one is
    Cohen's (1968) with squared distance between label positions; an invalid output is a category of its own,
    at the largest distance from every label.

    Args:
        counts: Shape (..., k, k + 1), as `confusion_counts` gives.

    Returns:
        Arrays of shape (...) for `SCALAR_METRICS` and `invalid_rate`, of shape (..., k) for `precision`,
        `recall`, `f1` and `support`.
    """
    cells = np.asarray(counts, dtype=np.float64)
    k = cells.shape[-2]
    hits = np.diagonal(cells, axis1=-2, axis2=-1)
    support, predicted = cells.sum(axis=-1), cells.sum(axis=-2)
    total = support.sum(axis=-1)
    per_class = {
        "precision": _ratio(hits, predicted[..., :k]),
        "recall": _ratio(hits, support),
        "f1": _ratio(2 * hits, support + predicted[..., :k]),
    }
    share = _ratio(support, total[..., None])
    out = {"accuracy": _ratio(hits.sum(axis=-1), total)}
    out |= {f"macro_{name}": values.mean(axis=-1) for name, values in per_class.items()}
    out |= {f"weighted_{name}": (share * values).sum(axis=-1) for name, values in per_class.items()}
    unequal = 1.0 - np.eye(k, k + 1)
    out["kappa"] = _kappa(cells, unequal)
    out["quadratic_kappa"] = _kappa(cells, _squared_distances(k))
    out["invalid_rate"] = _ratio(predicted[..., k], total)
    return out | per_class | {"support": support}


def _squared_distances(k: int) -> NDArray[np.float64]:
    position = np.arange(k, dtype=np.float64)
    squared = (position[:, None] - position[None, :]) ** 2
    return np.concatenate([squared, np.full((k, 1), (k - 1.0) ** 2)], axis=1)


def _kappa(cells: NDArray[np.float64], disagreement: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return 1 - observed / expected disagreement, and 0 where no disagreement is expected."""
    total = cells.sum(axis=(-2, -1))
    observed = (cells * disagreement).sum(axis=(-2, -1))
    by_chance = cells.sum(axis=-1)[..., :, None] * cells.sum(axis=-2)[..., None, :]
    expected = _ratio((by_chance * disagreement).sum(axis=(-2, -1)), total)
    # With one label on both sides there is nothing to agree about: kappa is undefined, and 0 claims nothing.
    return np.where(expected > 0, 1.0 - _ratio(observed, expected), 0.0)


def _ratio(numerator: NDArray[np.float64], denominator: NDArray[np.float64]) -> NDArray[np.float64]:
    shape = np.broadcast_shapes(numerator.shape, denominator.shape)
    return np.divide(numerator, denominator, out=np.zeros(shape), where=denominator > 0)


def classification_metrics(
    y_true: ArrayLike, y_pred: ArrayLike, labels: Sequence[str], *, ordinal: bool = True
) -> dict[str, object]:
    """Compute the metrics of one evaluation.

    Args:
        y_true: Label indexes, shape (n,).
        y_pred: Label indexes, shape (n,); -1 is an invalid output, an error for every metric.
        labels: The labels in recipe order.
        ordinal: Whether the labels, in that order, are ordered; `quadratic_kappa` is None where not.

    Returns:
        Plain numbers that go to JSON as they are: `n`, `labels`, `SCALAR_METRICS`, `invalid_rate`,
        `per_class`, and `confusion_matrix` (rows true, columns predicted, without the invalid outputs).

    Raises:
        ValueError: If the shapes differ, there are no rows, or an index is out of range.
    """
    return metrics_from_counts(confusion_counts(y_true, y_pred, len(labels)), labels, ordinal=ordinal)


def metrics_from_counts(counts: NDArray[np.int64], labels: Sequence[str], *, ordinal: bool = True) -> dict[str, object]:
    """Compute the metrics of one evaluation from its confusion counts.

    Args:
        counts: Shape (k, k + 1), as `confusion_counts` gives.
        labels: The k labels in recipe order.
        ordinal: Whether the labels are ordered; `quadratic_kappa` is None where not.

    Returns:
        The same as `classification_metrics`.
    """
    values = metric_arrays(counts)
    out: dict[str, object] = {"n": int(counts.sum()), "labels": list(labels)}
    out |= {name: float(values[name]) for name in SCALAR_METRICS}
    if not ordinal:
        out["quadratic_kappa"] = None
    out["invalid_rate"] = float(values["invalid_rate"])
    out["per_class"] = {
        label: {name: float(values[name][i]) for name in CLASS_METRICS} | {"support": int(values["support"][i])}
        for i, label in enumerate(labels)
    }
    out["confusion_matrix"] = counts[:, : len(labels)].tolist()
    return out
