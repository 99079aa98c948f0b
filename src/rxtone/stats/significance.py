"""Is one run better than another: paired bootstrap, McNemar, Holm, and seed noise."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom, t, ttest_1samp, ttest_ind, ttest_rel

from rxtone.stats.bootstrap import Bootstrap, metric_names, metric_table
from rxtone.stats.intervals import LEVEL, bca_intervals, bca_p_values


@dataclass(frozen=True)
class Difference:
    """One metric of one run minus that of another, on the same rows.

    Attributes:
        metric: The name of the metric.
        label: The index of the label it is of, None for a metric of all labels.
        value: The difference.
        interval: Lower and upper end, None where all resamples agree.
        p_value: Two-sided, of the hypothesis of no difference.
    """

    metric: str
    label: int | None
    value: float
    interval: tuple[float, float] | None
    p_value: float


def paired_differences(sample: Bootstrap, run: int, other: int, *, level: float = LEVEL) -> tuple[Difference, ...]:
    """Compare two runs by a paired bootstrap: the same resamples for both.

    Args:
        sample: The resamples of all runs.
        run: The run.
        other: What it is compared with.
        level: The coverage aimed at.

    Returns:
        The differences, run minus other, in the order of `metric_names`.
    """
    value, resampled, left_out = (
        metric_table(counts[run]) - metric_table(counts[other])
        for counts in (sample.observed, sample.resampled, sample.left_out)
    )
    ends = bca_intervals(value, resampled, left_out, sample.weights, level)
    p_values = bca_p_values(value, resampled, left_out, sample.weights)
    names = metric_names(sample.observed.shape[-2])
    return tuple(
        Difference(
            metric=name,
            label=label,
            value=float(value[i]),
            interval=(float(ends[i, 0]), float(ends[i, 1])) if np.isfinite(ends[i]).all() else None,
            p_value=float(p_values[i]),
        )
        for i, (name, label) in enumerate(names)
    )


@dataclass(frozen=True)
class McNemar:
    """McNemar's test on who is right where the other is wrong.

    Attributes:
        only_first: Rows that only the first run has right.
        only_second: Rows that only the second run has right.
        p_exact: Two-sided exact binomial p-value.
        p_mid: Two-sided mid-p-value, less conservative (Fagerland, Lydersen, Laake 2013).
    """

    only_first: int
    only_second: int
    p_exact: float
    p_mid: float


def mcnemar(y_true: ArrayLike, first: ArrayLike, second: ArrayLike) -> McNemar:
    """Test whether two runs have the same accuracy on the same rows.

    It takes the rows as independent: where they come in groups, trust the bootstrap by group instead.

    Args:
        y_true: Label indexes, shape (n,).
        first: Predicted indexes of one run, shape (n,).
        second: Predicted indexes of the other, shape (n,).

    Returns:
        The discordant counts and the p-values.
    """
    right_first, right_second = np.asarray(y_true) == first, np.asarray(y_true) == second
    b, c = int((right_first & ~right_second).sum()), int((~right_first & right_second).sum())
    if b + c == 0:
        return McNemar(0, 0, 1.0, 1.0)
    smaller = min(b, c)
    tail = float(binom.cdf(smaller, b + c, 0.5))
    exact = min(1.0, 2 * tail)
    mid = 2 * tail - float(binom.pmf(smaller, b + c, 0.5))
    return McNemar(b, c, exact, min(1.0, mid))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for testing several hypotheses at once (Holm 1979).

    Args:
        p_values: One per hypothesis.

    Returns:
        Adjusted p-values in the same order: reject those at or below the level and at most that share of such
        families holds one false rejection.
    """
    order = np.argsort(p_values, kind="stable")
    scaled = np.asarray(p_values, dtype=np.float64)[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(scaled)) if len(p_values) else scaled
    return [float(p) for p in adjusted]


@dataclass(frozen=True)
class SeedSummary:
    """One metric over several seeds.

    Attributes:
        mean: Over the seeds.
        sd: Sample standard deviation, None for a single seed.
        interval: 95% t-interval of the mean, None for a single seed.
        n: The number of seeds.
    """

    mean: float
    sd: float | None
    interval: tuple[float, float] | None
    n: int


def seed_summary(values: Sequence[float]) -> SeedSummary:
    """Summarise a metric over seeds.

    Args:
        values: One figure per seed, at least one.

    Returns:
        Mean, standard deviation and interval.
    """
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return SeedSummary(mean, None, None, n)
    sd = float(np.std(values, ddof=1))
    half = float(t.ppf((1 + LEVEL) / 2, n - 1)) * sd / n**0.5
    return SeedSummary(mean, sd, (mean - half, mean + half), n)


@dataclass(frozen=True)
class SeedGain:
    """The difference of two recipes over their seeds.

    Attributes:
        gain: Difference of the means.
        interval: 95% interval of it, None with fewer than two seeds on a side.
        p_value: Two-sided, None with fewer than two seeds on a side.
        exceeds_noise: Whether the interval excludes 0.
    """

    gain: float
    interval: tuple[float, float] | None
    p_value: float | None
    exceeds_noise: bool


def seed_gain(values: Sequence[float], others: Sequence[float], *, paired: bool = False) -> SeedGain:
    """Tell whether one recipe beats another by more than the noise between seeds.

    Args:
        values: One figure per seed of the recipe.
        others: One figure per seed of what it is compared with.
        paired: Whether the i-th of both share the split, as in cross-validation; then a paired t-test, else
            Welch's.

    Returns:
        The gain with its interval.

    Raises:
        ValueError: If paired figures differ in number.
    """
    if paired and len(values) != len(others):
        raise ValueError(f"paired figures must be as many on both sides, got {len(values)} and {len(others)}")
    a, b = np.asarray(values, dtype=np.float64), np.asarray(others, dtype=np.float64)
    gain = float(a.mean() - b.mean())
    if min(len(a), len(b)) < 2:
        return SeedGain(gain, None, None, False)
    noise = np.ptp(a - b) if paired else np.ptp(a) + np.ptp(b)
    if noise < 1e-12:  # seeds that change nothing leave no noise to exceed; the tests would divide by 0
        return SeedGain(gain, (gain, gain), 0.0 if gain else 1.0, bool(gain))
    return _t_gain(a, b, gain, paired)


def seed_gain_over(values: Sequence[float], fixed: float) -> SeedGain:
    """Tell whether a recipe beats something that has no seed (a zero-shot base) by more than its seeds' noise.

    Args:
        values: One figure per seed of the recipe.
        fixed: The figure of what it is compared with.

    Returns:
        The gain of the mean, by a one-sample t-test.
    """
    a = np.asarray(values, dtype=np.float64)
    gain = float(a.mean() - fixed)
    if len(a) < 2:
        return SeedGain(gain, None, None, False)
    if np.ptp(a) < 1e-12:  # as in `seed_gain`
        return SeedGain(gain, (gain, gain), 0.0 if gain else 1.0, bool(gain))
    found = ttest_1samp(a, fixed)
    ends = found.confidence_interval(LEVEL)
    low, high = float(ends.low) - fixed, float(ends.high) - fixed
    return SeedGain(gain, (low, high), float(found.pvalue), low > 0 or high < 0)


def _t_gain(a: NDArray[np.float64], b: NDArray[np.float64], gain: float, paired: bool) -> SeedGain:
    found = ttest_rel(a, b) if paired else ttest_ind(a, b, equal_var=False)
    ends = found.confidence_interval(LEVEL)
    low, high = float(ends.low), float(ends.high)
    return SeedGain(gain, (low, high), float(found.pvalue), low > 0 or high < 0)
