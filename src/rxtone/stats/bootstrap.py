"""Bootstrap intervals of every metric, by row or by group.

Metrics depend on the rows only through confusion counts, so a resample of n rows is one multinomial draw
over the few distinct cells (true label, prediction of run 1, prediction of run 2, ...): exact, and at a cost
independent of n. Where rows come in groups (reviews of one drug), whole groups are drawn, and the counts of a
resample are a matrix product. All runs share their resamples, so the difference of two of them is a paired
bootstrap.

Intervals are BCa, which corrects the bias and the skew that F1 of a rare label shows; its acceleration comes
from the jackknife over rows or groups.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rxtone.stats.intervals import LEVEL, bca_intervals, wilson_interval
from rxtone.stats.metrics import CLASS_METRICS, INVALID, SCALAR_METRICS, confusion_counts, metric_arrays

N_RESAMPLES = 2000
_CHUNK = 100


@dataclass(frozen=True)
class Bootstrap:
    """The observed confusion counts of R runs on the same rows, and their resamples.

    Attributes:
        observed: Counts, shape (R, k, k + 1).
        resampled: Counts of B resamples, shape (R, B, k, k + 1).
        left_out: Counts with one unit (row or group) left out, shape (R, J, k, k + 1); units that are alike
            are kept once.
        weights: How many units each entry of `left_out` stands for, shape (J,).
        n_units: The number of rows or groups.
    """

    observed: NDArray[np.float64]
    resampled: NDArray[np.float64]
    left_out: NDArray[np.float64]
    weights: NDArray[np.float64]
    n_units: int


def bootstrap(
    y_true: ArrayLike,
    predictions: Sequence[ArrayLike],
    n_labels: int,
    *,
    groups: ArrayLike | None = None,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> Bootstrap:
    """Resample the confusion counts of one or more runs.

    Args:
        y_true: Label indexes, shape (n,).
        predictions: For each run the predicted indexes, shape (n,); -1 is an invalid output.
        n_labels: The number of labels, k.
        groups: What each row belongs to, shape (n,); None resamples single rows.
        n_resamples: The number of resamples, B.
        seed: Of the random numbers.

    Returns:
        Counts from which every metric of every resample follows.

    Raises:
        ValueError: If the shapes differ, there are no rows, or an index is out of range.
    """
    observed = np.stack([confusion_counts(y_true, y_pred, n_labels) for y_pred in predictions])
    rows = np.column_stack([np.asarray(y_true), *(np.asarray(y_pred) for y_pred in predictions)])
    cells, cell_of_row = np.unique(rows, axis=0, return_inverse=True)
    cell_of_row, n_cells = cell_of_row.reshape(-1), len(cells)
    rng = np.random.default_rng(seed)
    if groups is None:
        n_units, weights = len(rows), np.bincount(cell_of_row, minlength=n_cells).astype(np.float64)
        drawn = rng.multinomial(n_units, weights / n_units, size=n_resamples).astype(np.float64)
        left_out = weights - np.eye(n_cells)
    else:
        _, group_of_row = np.unique(np.asarray(groups), return_inverse=True)
        n_units = int(group_of_row.max()) + 1
        per_group = np.zeros((n_units, n_cells))
        np.add.at(per_group, (group_of_row.reshape(-1), cell_of_row), 1)
        weights = np.ones(n_units)
        drawn = _drawn_groups(per_group, rng, n_resamples)
        left_out = per_group.sum(axis=0) - per_group
    to_counts = [_cell_to_count(cells, run, n_labels) for run in range(1, cells.shape[1])]
    shape = (-1, n_labels, n_labels + 1)
    return Bootstrap(
        observed=observed.astype(np.float64),
        resampled=np.stack([(drawn @ matrix).reshape(shape) for matrix in to_counts]),
        left_out=np.stack([(left_out @ matrix).reshape(shape) for matrix in to_counts]),
        weights=weights,
        n_units=n_units,
    )


def _drawn_groups(per_group: NDArray[np.float64], rng: np.random.Generator, n_resamples: int) -> NDArray[np.float64]:
    """Draw whole groups with replacement and add up their cells, shape (n_resamples, cells)."""
    n, parts = len(per_group), []
    for start in range(0, n_resamples, _CHUNK):  # a matrix of resamples by groups may not fit in memory
        size = min(_CHUNK, n_resamples - start)
        parts.append(rng.multinomial(n, np.full(n, 1 / n), size=size) @ per_group)
    return np.concatenate(parts)


def _cell_to_count(cells: NDArray[np.int64], run: int, k: int) -> NDArray[np.float64]:
    """Map each distinct row of labels to the entry of one run's confusion counts that it adds to."""
    column = np.where(cells[:, run] == INVALID, k, cells[:, run])
    matrix = np.zeros((len(cells), k * (k + 1)))
    matrix[np.arange(len(cells)), cells[:, 0] * (k + 1) + column] = 1
    return matrix


def metric_names(n_labels: int) -> list[tuple[str, int | None]]:
    """List the metrics in the order of `metric_table`.

    Args:
        n_labels: The number of labels.

    Returns:
        Pairs of name and label index; the index is None for a metric of all labels.
    """
    of_labels: list[tuple[str, int | None]] = [(name, i) for i in range(n_labels) for name in CLASS_METRICS]
    return [(name, None) for name in SCALAR_METRICS] + of_labels


def metric_table(counts: ArrayLike) -> NDArray[np.float64]:
    """Compute all metrics of many confusion counts.

    Args:
        counts: Shape (..., k, k + 1).

    Returns:
        Shape (..., M), in the order of `metric_names`.
    """
    arrays = metric_arrays(counts)
    k = arrays["support"].shape[-1]
    columns = [arrays[name] if i is None else arrays[name][..., i] for name, i in metric_names(k)]
    return np.stack(columns, axis=-1)


def metric_intervals(sample: Bootstrap, *, run: int = 0, level: float = LEVEL) -> list[list[float] | None]:
    """Compute the interval of each metric of a run.

    Args:
        sample: The resamples.
        run: Which of its runs.
        level: The coverage aimed at.

    Returns:
        Lower and upper ends in the order of `metric_names`. A bootstrap says nothing where all resamples
        agree, nor of a figure at its end: shares (accuracy, precision, recall) then have a Wilson interval,
        other metrics None.
    """
    counts = sample.observed[run]
    value = metric_table(counts)
    ends = bca_intervals(
        value, metric_table(sample.resampled[run]), metric_table(sample.left_out[run]), sample.weights, level
    )
    totals = _denominators(counts)
    scale = min(1.0, sample.n_units / counts.sum())  # rows of one group are no independent evidence
    out: list[list[float] | None] = []
    for key, figure, (low, high) in zip(metric_names(counts.shape[-2]), value, ends, strict=True):
        total = totals.get(key)
        # A perfect figure has resamples that differ only where a label happens to be missing from them.
        at_end = not np.isfinite(low) or figure >= 1 or (total is not None and figure <= 0)
        if not at_end:
            out.append([float(low), float(high)])
        else:
            out.append(None if total is None else wilson_interval(figure * total * scale, total * scale, level))
    return out


def _denominators(counts: NDArray[np.float64]) -> dict[tuple[str, int | None], float]:
    """Return of how many rows each metric is the share that is a share."""
    totals: dict[tuple[str, int | None], float] = {("accuracy", None): counts.sum()}
    for i in range(counts.shape[-2]):
        totals["recall", i] = counts[i].sum()
        totals["precision", i] = counts[:, i].sum()
    return totals
