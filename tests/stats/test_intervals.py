import numpy as np
import pytest
from scipy.stats import bootstrap as scipy_bootstrap

from rxtone.stats.intervals import bca_intervals, bca_p_values, wilson_interval


def test_wilson_interval_of_a_published_example():
    # Newcombe (1998), Two-sided confidence intervals for the single proportion, table I: 81 of 263.
    assert wilson_interval(81, 263) == pytest.approx([0.2553, 0.3662], abs=5e-5)
    assert wilson_interval(0, 0) is None


def test_bca_interval_of_a_skewed_mean_agrees_with_scipy():
    rng = np.random.default_rng(0)
    values = rng.exponential(size=60)
    drawn = values[rng.integers(0, 60, (20_000, 60))].mean(axis=1)
    left_out = (values.sum() - values) / 59
    ours = bca_intervals(values.mean(keepdims=True), drawn[:, None], left_out[:, None], np.ones(60))[0]
    theirs = scipy_bootstrap((values,), np.mean, n_resamples=20_000, method="BCa", rng=1).confidence_interval
    assert ours == pytest.approx([theirs.low, theirs.high], abs=0.01)


def test_the_interval_at_the_level_of_the_p_value_touches_zero():
    rng = np.random.default_rng(1)
    values = rng.exponential(size=80) - 0.9
    drawn = values[rng.integers(0, 80, (20_000, 80))].mean(axis=1)[:, None]
    args = (values.mean(keepdims=True), drawn, ((values.sum() - values) / 79)[:, None], np.ones(80))
    (p,) = bca_p_values(*args)
    assert 0.001 < p < 0.2
    assert bca_intervals(*args, level=1 - p)[0, 0] == pytest.approx(0, abs=0.003)


def test_resamples_that_agree_say_nothing():
    same = np.full((50, 1), 0.5)
    assert np.isnan(bca_intervals(same[0], same, same, np.ones(50))).all()
    assert bca_p_values(same[0], same, same, np.ones(50)).tolist() == [1.0]
