"""Which of several settings is best, and how sure that is, from repeated cross-validation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rxtone.stats.metrics import metric_arrays

N_RESAMPLES = 2000


@dataclass(frozen=True)
class Ranking:
    """How k settings stand.

    Attributes:
        mean: Mean macro-F1 over the seeds, shape (k,): of the out-of-fold predictions of a whole repetition.
        interval: Its 95% interval over seeds and rows, shape (k, 2).
        probability_best: Share of the resamples that each setting wins, shape (k,); ties are shared.
        difference: Interval of each setting's lead over the best of the others, shape (k, 2).
        gain: Interval of each setting's difference to the setting `against`, shape (k, 2); None without one.
    """

    mean: NDArray[np.float64]
    interval: NDArray[np.float64]
    probability_best: NDArray[np.float64]
    difference: NDArray[np.float64]
    gain: NDArray[np.float64] | None


def rank_settings(
    y_true: ArrayLike,
    predictions: ArrayLike,
    n_labels: int,
    *,
    groups: ArrayLike | None = None,
    against: int | None = None,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> Ranking:
    """Rank settings by a bootstrap over seeds and rows.

    Each resample draws seeds and rows (or groups of rows) with replacement, the same for all settings, so that
    what they share, such as a hard review, does not blur their differences. With few seeds the spread over
    seeds is known poorly, and the intervals are then somewhat too narrow.

    Args:
        y_true: Label indexes, shape (n,).
        predictions: Out-of-fold label indexes, shape (k settings, s seeds, n).
        n_labels: The number of labels.
        groups: What each row belongs to, shape (n,); None draws single rows.
        against: Index of the setting that the others should beat.
        n_resamples: The number of resamples.
        seed: Of the random numbers.

    Returns:
        The ranking.
    """
    true, predicted = np.asarray(y_true), np.asarray(predictions)
    k, s, n = predicted.shape
    cells = true * n_labels + predicted  # (k, s, n): which count of its confusion matrix a row adds to
    units = np.arange(n) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1].reshape(-1)
    generator = np.random.default_rng(seed)
    n_units = int(units.max()) + 1
    scores = np.empty((n_resamples, k))
    for b in range(n_resamples):
        weights = generator.multinomial(n_units, np.full(n_units, 1 / n_units))[units].astype(np.float64)
        drawn = np.bincount(generator.integers(s, size=s), minlength=s)
        by_seed = np.array([[_macro_f1(row, weights, n_labels) if drawn[j] else 0.0 for j, row in enumerate(rows)]
                            for rows in cells])  # fmt: skip
        scores[b] = by_seed @ drawn / s
    best = scores == scores.max(axis=1, keepdims=True)
    others = np.stack([np.delete(scores, i, axis=1).max(axis=1) if k > 1 else scores[:, i] for i in range(k)], axis=1)
    observed = np.array([[_macro_f1(row, np.ones(n), n_labels) for row in rows] for rows in cells])
    return Ranking(
        mean=observed.mean(axis=1),
        interval=np.quantile(scores, [0.025, 0.975], axis=0).T,
        probability_best=(best / best.sum(axis=1, keepdims=True)).mean(axis=0),
        difference=np.quantile(scores - others, [0.025, 0.975], axis=0).T,
        gain=None if against is None else np.quantile(scores - scores[:, [against]], [0.025, 0.975], axis=0).T,
    )


def _macro_f1(cells: NDArray[np.int64], weights: NDArray[np.float64], k: int) -> float:
    counts = np.bincount(cells, weights=weights, minlength=k * k).reshape(k, k)
    padded = np.concatenate([counts, np.zeros((k, 1))], axis=1)  # no output is invalid here
    return float(metric_arrays(padded)["macro_f1"])
