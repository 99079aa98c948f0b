"""Intervals and p-values from resamples, and of a plain share.

BCa: Efron (1987), Better bootstrap confidence intervals. Wilson: Wilson (1927), the score interval.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri
from scipy.stats import binomtest

LEVEL = 0.95
"""The coverage aimed at."""

_LEAST_STRETCH = 0.1


def bca_intervals(
    value: NDArray[np.float64],
    resampled: NDArray[np.float64],
    left_out: NDArray[np.float64],
    weights: NDArray[np.float64],
    level: float = LEVEL,
) -> NDArray[np.float64]:
    """Compute BCa intervals of M figures.

    Args:
        value: The observed figures, shape (M,).
        resampled: Of B resamples, shape (B, M).
        left_out: With one unit left out, shape (J, M).
        weights: How many units each row of `left_out` stands for, shape (J,).
        level: The coverage aimed at.

    Returns:
        Lower and upper ends, shape (M, 2); NaN where all resamples agree and nothing can be said.
    """
    z0, acceleration = _bca_constants(value, resampled, left_out, weights)
    ends = np.array([(1 - level) / 2, (1 + level) / 2])
    z = z0[:, None] + ndtri(ends)
    stretch = 1 - acceleration[:, None] * z
    # With a handful of units the acceleration can turn the scale over; then only the bias is corrected.
    share = ndtr(z0[:, None] + z / np.where(stretch > _LEAST_STRETCH, stretch, 1.0))
    out = np.full((len(value), 2), np.nan)
    for i in np.flatnonzero(np.ptp(resampled, axis=0) > 0):
        out[i] = np.quantile(resampled[:, i], share[i])
    return out


def bca_p_values(
    value: NDArray[np.float64],
    resampled: NDArray[np.float64],
    left_out: NDArray[np.float64],
    weights: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Compute two-sided p-values of the hypothesis that a figure is 0.

    The p-value is the one at which the BCa interval just touches 0, so that interval and p-value never
    contradict each other.

    Args:
        value: The observed figures, shape (M,).
        resampled: Of B resamples, shape (B, M).
        left_out: With one unit left out, shape (J, M).
        weights: How many units each row of `left_out` stands for, shape (J,).

    Returns:
        Shape (M,), never below 2 / (B + 1); 1 where all resamples agree.
    """
    z0, acceleration = _bca_constants(value, resampled, left_out, weights)
    shift = ndtri(_share_below(resampled, np.zeros_like(value))) - z0
    stretch = 1 + acceleration * shift
    tail = ndtr(shift / np.where(stretch > _LEAST_STRETCH, stretch, 1.0) - z0)
    p = 2 * np.minimum(tail, 1 - tail)
    p = np.clip(p, 2 / (len(resampled) + 1), 1.0)
    return np.where(np.ptp(resampled, axis=0) > 0, p, 1.0)


def _share_below(resampled: NDArray[np.float64], value: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the share of resamples below a value, ties counted half, kept off 0 and 1."""
    # Sums in another order give figures that differ in the last bit: those are ties too.
    near = 1e-12
    below = (resampled < value - near).mean(axis=0) + 0.5 * (np.abs(resampled - value) <= near).mean(axis=0)
    edge = 1 / (len(resampled) + 1)
    return np.asarray(np.clip(below, edge, 1 - edge))


def _bca_constants(
    value: NDArray[np.float64],
    resampled: NDArray[np.float64],
    left_out: NDArray[np.float64],
    weights: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the bias correction and the acceleration (Efron 1987, equations 4.1 and 6.6)."""
    z0 = ndtri(_share_below(resampled, value))
    w = weights[:, None] / weights.sum()
    influence = (w * left_out).sum(axis=0) - left_out
    cubes, squares = (
        (weights[:, None] * influence**3).sum(axis=0),
        (weights[:, None] * influence**2).sum(axis=0),
    )
    spread = 6 * squares**1.5
    acceleration = np.divide(cubes, spread, out=np.zeros_like(cubes), where=spread > 1e-300)
    return z0, acceleration


def wilson_interval(successes: float, total: float, level: float = LEVEL) -> list[float] | None:
    """Compute the Wilson score interval of a share.

    Args:
        successes: How many; a share that was scaled to another total is rounded.
        total: Of how many.
        level: The coverage aimed at.

    Returns:
        Lower and upper end, None where the total is 0.
    """
    if total < 1:
        return None
    found = binomtest(round(successes), round(total)).proportion_ci(level, method="wilson")
    return [float(found.low), float(found.high)]
