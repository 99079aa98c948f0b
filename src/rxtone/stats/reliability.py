"""How far confidence is from accuracy: calibration error, Brier score, reliability bins."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rxtone.stats.bootstrap import N_RESAMPLES
from rxtone.stats.intervals import LEVEL, bca_intervals, wilson_interval

_MOST_BINS = 15
_ROWS_PER_BIN = 25
_CHUNK = 50
_DRAWS = 1000
_GRID = 120
_MOST_DRAWS = 40_000_000
_LEAST_RESAMPLES = 400
# -log of a probability that underflowed to 0 would make every mean infinite.
_LEAST_PROBABILITY = 1e-300


@dataclass(frozen=True)
class ReliabilityBin:
    """Rows of similar confidence.

    Attributes:
        n: How many.
        confidence: Their mean confidence.
        accuracy: The share that is right.
        interval: Wilson interval of that share.
    """

    n: int
    confidence: float
    accuracy: float
    interval: tuple[float, float]


def reliability_bins(confidence: ArrayLike, correct: ArrayLike) -> tuple[ReliabilityBin, ...]:
    """Compare confidence and accuracy in bins of equally many rows.

    Args:
        confidence: Probability of the predicted label, shape (n,).
        correct: Whether the predicted label is right, shape (n,).

    Returns:
        The bins by rising confidence: at most 15, of 25 rows or more where there are as many; rows of equal
        confidence share a bin.
    """
    c, right = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=bool)
    index = _equal_mass(c)
    bins = []
    for i in range(int(index.max()) + 1):
        rows = index == i
        n, hits = int(rows.sum()), int(right[rows].sum())
        low, high = wilson_interval(hits, n) or (0.0, 1.0)
        bins.append(ReliabilityBin(n, float(c[rows].mean()), hits / n, (low, high)))
    return tuple(bins)


def _equal_mass(confidence: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the bin of each row, 0 for the least confident; every bin has a row."""
    n_bins = int(np.clip(len(confidence) // _ROWS_PER_BIN, 1, _MOST_BINS))
    edges = np.quantile(confidence, np.arange(1, n_bins) / n_bins)
    _, index = np.unique(np.searchsorted(edges, confidence, side="right"), return_inverse=True)
    return np.asarray(index.reshape(-1), dtype=np.int64)


def expected_calibration_error(confidence: ArrayLike, correct: ArrayLike) -> float:
    """Compute the expected calibration error over bins of equally many rows.

    Source: Naeini et al. (2015) for the measure, Nguyen and O'Connor (2015) for bins of equal mass.

    Args:
        confidence: Probability of the predicted label, shape (n,).
        correct: Whether the predicted label is right, shape (n,).

    Returns:
        The mean distance of confidence and accuracy, in 0..1, weighted by the rows of a bin.
    """
    gaps = _bin_gaps(np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64))
    return float(np.abs(gaps.sum(axis=0)).sum() / len(gaps))


def _bin_gaps(confidence: NDArray[np.float64], correct: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return accuracy minus confidence of each row, in the column of its bin."""
    index = _equal_mass(confidence)
    gaps = np.zeros((len(confidence), int(index.max()) + 1))
    gaps[np.arange(len(index)), index] = correct - confidence
    return gaps


def brier_score(probabilities: ArrayLike, y_true: ArrayLike) -> float:
    """Compute the Brier score of several labels (Brier 1950): the mean squared distance from the truth.

    Args:
        probabilities: Shape (n, k), rows sum to 1.
        y_true: Label indexes, shape (n,).

    Returns:
        In 0..2, 0 being perfect.
    """
    return float(_brier_rows(np.asarray(probabilities, dtype=np.float64), np.asarray(y_true)).mean())


def _brier_rows(p: NDArray[np.float64], y: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.asarray(((p - np.eye(p.shape[1])[y]) ** 2).sum(axis=1))


def calibration_metrics(
    probabilities: ArrayLike,
    y_true: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> dict[str, object]:
    """Judge probabilities.

    The calibration error of a finite sample is above 0 even when every probability is right, so the error
    that this sample would show then stands beside it (Broecker and Smith 2007, consistency resampling).

    Args:
        probabilities: Shape (n, k), rows sum to 1.
        y_true: Label indexes, shape (n,).
        groups: What each row belongs to, shape (n,); None resamples single rows.
        n_resamples: The number of bootstrap resamples.
        seed: Of the random numbers.
        level: The coverage aimed at.

    Returns:
        `nll`, `brier`, `ece`, each with `<name>_ci`; `ece_if_calibrated`, the mean error of perfectly
        calibrated predictions on as many rows, and `ece_p_value`, how often they show as large an error.
    """
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(y_true)
    confidence, correct = p.max(axis=1), (p.argmax(axis=1) == y).astype(np.float64)
    losses = -np.log(np.maximum(p[np.arange(len(y)), y], _LEAST_PROBABILITY))
    rows = np.column_stack([np.ones(len(y)), losses, _brier_rows(p, y), _bin_gaps(confidence, correct)])
    units = rows if groups is None else _group_sums(rows, np.asarray(groups))
    rng = np.random.default_rng(seed)
    value, ends = _mean_intervals(units[:, :3], rng, n_resamples, level)
    out: dict[str, object] = {}
    for name, figure, (low, high) in zip(("nll", "brier"), value, ends, strict=True):
        out[name] = float(figure)
        out[f"{name}_ci"] = [float(low), float(high)] if np.isfinite(low) else None
    ece = float(np.abs(rows[:, 3:].sum(axis=0)).sum() / len(rows))
    by_chance = _calibrated_errors(confidence, rng, _DRAWS)
    out["ece"] = ece
    out["ece_ci"] = [end / len(rows) for end in _gap_interval(units[:, 3:], rng, level)]
    out["ece_if_calibrated"] = float(by_chance.mean())
    out["ece_p_value"] = float((1 + (by_chance >= ece).sum()) / (1 + len(by_chance)))
    return out


def _group_sums(rows: NDArray[np.float64], groups: NDArray[np.generic]) -> NDArray[np.float64]:
    _, index = np.unique(groups, return_inverse=True)
    sums = np.zeros((int(index.max()) + 1, rows.shape[1]))
    np.add.at(sums, index.reshape(-1), rows)
    return sums


def _mean_intervals(
    units: NDArray[np.float64], rng: np.random.Generator, n_resamples: int, level: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the means of the columns after the first, which counts rows, and their BCa intervals."""
    n, total = len(units), units.sum(axis=0)
    # Means of very many rows need few resamples to be known to three digits, and each costs a pass over all.
    n_resamples = int(np.clip(_MOST_DRAWS // n, _LEAST_RESAMPLES, n_resamples))
    value = total[1:] / total[0]
    parts = []
    for start in range(0, n_resamples, _CHUNK):  # a whole matrix of resamples by rows would not fit in memory
        drawn = rng.multinomial(n, np.full(n, 1 / n), size=min(_CHUNK, n_resamples - start)) @ units
        parts.append(drawn[:, 1:] / drawn[:, :1])
    rest = total - units
    left_out = rest[:, 1:] / rest[:, :1] if n > 1 else value[None]
    return value, bca_intervals(value, np.concatenate(parts), left_out, np.ones(len(left_out)), level)


def _gap_interval(gaps: NDArray[np.float64], rng: np.random.Generator, level: float) -> list[float]:
    """Return an interval of the summed distance of confidence and accuracy, by inverting a test.

    A sum of absolute values is biased upwards by noise and no bootstrap of it has the right coverage near 0.
    So the error is simulated (normal noise in each bin) at every possible true distance: the lower end is the
    least one under which an error as large as the observed one is not too rare, with the distance spread over
    the bins as observed; the upper end the largest under which one as small is not, with the distance spread
    evenly, where noise adds least.
    """
    total = gaps.sum(axis=0)
    observed = float(np.abs(total).sum())
    sd = np.sqrt(((gaps - gaps.mean(axis=0)) ** 2).sum(axis=0))
    noise = rng.normal(size=(_DRAWS, len(total))) * sd
    distances = np.linspace(0.0, observed + 4 * float(np.sqrt((sd**2).sum())), _GRID)
    tail = (1 - level) / 2
    as_seen = total / observed if observed > 0 else np.full(len(total), 1 / len(total))
    evenly = np.full(len(total), 1 / len(total))
    low, high = observed, observed
    for distance in distances:
        if (np.abs(distance * as_seen + noise).sum(axis=1) >= observed).mean() >= tail:
            low = min(observed, float(distance))
            break
    for distance in distances[::-1]:
        if (np.abs(distance * evenly + noise).sum(axis=1) <= observed).mean() >= tail:
            high = max(observed, float(distance))
            break
    return [low, high]


def _calibrated_errors(confidence: NDArray[np.float64], rng: np.random.Generator, n_draws: int) -> NDArray[np.float64]:
    """Return the calibration error of labels drawn from the probabilities themselves."""
    ordered = np.sort(confidence)
    index = _equal_mass(ordered)
    starts = np.searchsorted(index, np.arange(index[-1] + 1))
    errors = np.empty(n_draws)
    for i in range(n_draws):
        gaps = np.add.reduceat((rng.random(len(ordered)) < ordered) - ordered, starts)
        errors[i] = np.abs(gaps).sum() / len(ordered)
    return errors
