"""Metrics of parts of the reviews: by group, by length, truncated or not."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import fisher_exact

from rxtone.stats.bootstrap import bootstrap, metric_intervals, metric_names
from rxtone.stats.intervals import LEVEL
from rxtone.stats.metrics import metrics_from_counts
from rxtone.stats.significance import holm

MINIMUM = 30
"""Fewer reviews than this are not judged on their own."""

# Macro-F1 averages over all labels; over fewer reviews of a label than this it is mostly luck.
_LEAST_PER_LABEL = 5
_RESAMPLES = 1000
LENGTH = "length"
"""The slices of `length_slices`, which have an order of their own."""


def length_slices(n_tokens: NDArray[np.int64]) -> list[str]:
    """Name the quarter of the lengths that each review belongs to.

    Args:
        n_tokens: Length of each prompt in tokens, shape (n,).

    Returns:
        Names such as "1: up to 92 tokens", shape (n,); fewer than four where many lengths are equal.
    """
    edges = np.unique(np.quantile(n_tokens, [0.25, 0.5, 0.75], method="lower"))
    part = np.searchsorted(edges, n_tokens, side="left")
    names = [f"up to {edge} tokens" for edge in edges] + [f"over {edges[-1]} tokens"]
    return [f"{i + 1}: {names[i]}" for i in part]


def slice_metrics(
    y_true: NDArray[np.int64],
    y_pred: NDArray[np.int64],
    labels: Sequence[str],
    slices: Mapping[str, Sequence[str | None]],
    *,
    minimum: int = MINIMUM,
    seed: int = 0,
) -> list[dict[str, object]]:
    """Judge the predictions slice by slice.

    Whether the accuracy of a slice differs from that of all other reviews is tested by Fisher's exact test,
    adjusted by Holm's method over all slices: with many slices some look bad by luck.

    Args:
        y_true: Label indexes, shape (n,).
        y_pred: Predicted indexes, shape (n,).
        labels: The labels in recipe order.
        slices: What is sliced by -> the slice of each review, shape (n,); None belongs to no slice.
        minimum: The least number of reviews that is judged.
        seed: Of the resamples.

    Returns:
        For each key: `by`, `slices` (each with `value, n, accuracy, accuracy_ci, macro_f1, macro_f1_ci,
        p_adjusted, stands_out`, the largest first, of lengths the shortest; macro-F1 is None where a label has fewer
        than 5 reviews), and `too_small` with the number of `slices` below the minimum and their `reviews`.
    """
    right = y_true == y_pred
    out: list[dict[str, object]] = []
    judged: list[dict[str, object]] = []
    p_values: list[float] = []
    for by, values in slices.items():
        rows_of: dict[str, list[int]] = defaultdict(list)
        for i, value in enumerate(values):
            if value is not None:
                rows_of[value].append(i)
        sizes = {value: len(rows) for value, rows in rows_of.items()}
        names = sorted(v for v in sizes if sizes[v] >= minimum)
        if by != LENGTH:
            names.sort(key=lambda v: -sizes[v])
        found = []
        for name in names:
            rows = np.zeros(len(y_true), dtype=bool)
            rows[rows_of[name]] = True
            found.append({"value": name} | _figures(y_true[rows], y_pred[rows], labels, seed))
            table = np.array([[right[part].sum(), (~right[part]).sum()] for part in (rows, ~rows)])
            p_values.append(float(fisher_exact(table).pvalue))
        judged += found
        small = [n for n in sizes.values() if n < minimum]
        out.append({"by": by, "slices": found, "too_small": {"slices": len(small), "reviews": sum(small)}})
    for figures, p in zip(judged, holm(p_values), strict=True):
        figures["p_adjusted"] = p
        figures["stands_out"] = p <= 1 - LEVEL
    return out


def _figures(
    y_true: NDArray[np.int64], y_pred: NDArray[np.int64], labels: Sequence[str], seed: int
) -> dict[str, object]:
    sample = bootstrap(y_true, [y_pred], len(labels), n_resamples=_RESAMPLES, seed=seed)
    metrics = metrics_from_counts(sample.observed[0].astype(np.int64), labels)
    intervals = dict(zip(metric_names(len(labels)), metric_intervals(sample), strict=True))
    enough = sample.observed[0].sum(axis=1).min() >= _LEAST_PER_LABEL
    return {
        "n": len(y_true),
        "accuracy": metrics["accuracy"],
        "accuracy_ci": intervals["accuracy", None],
        "macro_f1": metrics["macro_f1"] if enough else None,
        "macro_f1_ci": intervals["macro_f1", None] if enough else None,
    }
