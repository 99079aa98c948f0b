import numpy as np
import pytest

from rxtone.stats.bootstrap import bootstrap
from rxtone.stats.significance import holm, mcnemar, paired_differences, seed_gain, seed_summary


def test_paired_differences_find_no_difference_as_often_as_they_should():
    # Two runs that err independently at the same rate: the p-value of accuracy is below 0.05 in 5% of 400
    # repeats, within three standard errors of 1.1 points, and of macro-F1 too.
    rng, low = np.random.default_rng(0), np.zeros(2)
    for i in range(400):
        true = rng.choice(3, 300, p=[0.6, 0.15, 0.25])
        runs = [np.where(rng.random(300) < 0.75, true, rng.integers(0, 3, 300)) for _ in range(2)]
        found = paired_differences(bootstrap(true, runs, 3, n_resamples=500, seed=i), 0, 1)
        low += [found[0].p_value < 0.05, found[3].p_value < 0.05]
    assert [d.metric for d in (found[0], found[3])] == ["accuracy", "macro_f1"]
    assert (np.abs(low / 400 - 0.05) < 0.034).all()


def test_paired_differences_have_the_sign_of_run_minus_other():
    rng = np.random.default_rng(1)
    true = rng.integers(0, 2, 400)
    good = np.where(rng.random(400) < 0.95, true, 1 - true)
    poor = np.where(rng.random(400) < 0.70, true, 1 - true)
    sample = bootstrap(true, [good, poor], 2)
    better, worse = paired_differences(sample, 0, 1)[0], paired_differences(sample, 1, 0)[0]
    assert better.value == -worse.value == np.mean(good == true) - np.mean(poor == true)
    assert 0 < better.interval[0] < better.value < better.interval[1]
    # no resample of 2000 reaches 0: the smallest p-value that so many can show
    assert better.p_value == pytest.approx(2 / 2001, rel=0.05)


def test_interval_and_p_value_agree():
    rng = np.random.default_rng(2)
    checked = 0
    for i in range(60):
        true = rng.integers(0, 3, 200)
        a, b = (np.where(rng.random(200) < share, true, rng.integers(0, 3, 200)) for share in (0.75, 0.65))
        for d in paired_differences(bootstrap(true, [a, b], 3, seed=i), 0, 1):
            if d.metric.startswith("macro") and abs(d.p_value - 0.05) > 0.005:
                checked += 1
                assert (d.interval[0] > 0 or d.interval[1] < 0) == (d.p_value < 0.05)
    assert checked > 100


def test_a_run_does_not_differ_from_itself():
    true = np.array([0, 1, 1, 0])
    for d in paired_differences(bootstrap(true, [true, true], 2), 0, 1):
        assert (d.value, d.interval, d.p_value) == (0.0, None, 1.0)


def test_mcnemar_of_a_published_example():
    # Fagerland, Lydersen, Laake (2013), The McNemar test for binary matched-pairs data, table 1: airway
    # hyper-responsiveness before and after stem cell transplantation, 1 and 7 discordant pairs; exact
    # p = 0.0703, mid-p = 0.0391.
    true = np.zeros(21, int)
    first = np.repeat([0, 0, 1, 1], [1, 1, 7, 12])
    second = np.repeat([0, 1, 0, 1], [1, 1, 7, 12])
    found = mcnemar(true, first, second)
    assert (found.only_first, found.only_second) == (1, 7)
    assert found.p_exact == pytest.approx(0.0703, abs=5e-5)
    assert found.p_mid == pytest.approx(0.0391, abs=5e-5)


def test_mcnemar_edges():
    same = mcnemar([0, 1], [0, 0], [0, 0])
    assert (same.p_exact, same.p_mid) == (1.0, 1.0)
    even = mcnemar([0, 0, 0, 0], [0, 0, 1, 1], [1, 1, 0, 0])
    assert even.p_exact == 1.0
    assert even.p_mid == pytest.approx(1.0)


def test_holm_by_hand():
    # sorted: .01*4 .02*3 .03*2 .04*1, then made to rise
    assert holm([0.01, 0.04, 0.03, 0.02]) == pytest.approx([0.04, 0.06, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_seed_summary():
    # t(0.975, 2) = 4.30265; sd of 1, 2, 3 is 1
    found = seed_summary([1.0, 2.0, 3.0])
    assert (found.mean, found.sd, found.n) == (2.0, 1.0, 3)
    assert found.interval == pytest.approx((2 - 4.30265 / 3**0.5, 2 + 4.30265 / 3**0.5), abs=1e-5)
    assert seed_summary([0.5]).interval is None


def test_seed_gain():
    far = seed_gain([0.60, 0.61, 0.62], [0.50, 0.51, 0.52])
    assert far.gain == pytest.approx(0.1)
    assert far.exceeds_noise
    # equal variances and sizes: Welch has 4 degrees of freedom, se = .01 * sqrt(2/3), t(.975, 4) = 2.77645
    half = 2.77645 * 0.01 * (2 / 3) ** 0.5
    assert far.interval == pytest.approx((0.1 - half, 0.1 + half), abs=1e-6)
    near = seed_gain([0.60, 0.50, 0.55], [0.58, 0.50, 0.54])
    assert not near.exceeds_noise
    # the same figures by fold: differences .02, 0, .01
    paired = seed_gain([0.60, 0.50, 0.55], [0.58, 0.50, 0.54], paired=True)
    assert paired.interval == pytest.approx((0.01 - 4.30265 * 0.01 / 3**0.5, 0.01 + 4.30265 * 0.01 / 3**0.5), abs=1e-6)
    assert seed_gain([0.6], [0.5, 0.4]).p_value is None
    assert seed_gain([0.6, 0.6], [0.5, 0.5]).exceeds_noise
    assert not seed_gain([0.6, 0.6], [0.6, 0.6]).exceeds_noise
    with pytest.raises(ValueError, match="got 2 and 1"):
        seed_gain([0.6, 0.6], [0.5], paired=True)
