import numpy as np
import pytest
from sklearn.metrics import brier_score_loss

from rxtone.stats.reliability import (
    brier_score,
    calibration_metrics,
    expected_calibration_error,
    reliability_bins,
)


def overconfident(n, by, rng):
    """Draw confidences, and labels that are right less often than those say."""
    confidence = 0.4 + 0.6 * rng.beta(5, 1.5, n)
    p = np.stack([confidence, 0.6 * (1 - confidence), 0.4 * (1 - confidence)], axis=1)
    wrong = np.where(rng.random(n) < 0.6, 1, 2)
    return p, np.where(rng.random(n) < confidence - by, 0, wrong)


def test_calibration_error_by_hand():
    # two bins of 25: 20 of 25 right at 0.9, 15 of 25 right at 0.5
    confidence = np.repeat([0.9, 0.5], 25)
    correct = np.concatenate([np.arange(25) < 20, np.arange(25) < 15])
    low, high = reliability_bins(confidence, correct)
    assert (low.n, low.confidence, low.accuracy) == (25, 0.5, 0.6)
    assert (high.n, high.confidence, high.accuracy) == pytest.approx((25, 0.9, 0.8))
    assert high.interval[0] < 0.8 < high.interval[1]
    assert expected_calibration_error(confidence, correct) == pytest.approx((0.1 + 0.1) / 2)


def test_bins_hold_equally_many_rows_and_ties_share_one():
    rng = np.random.default_rng(0)
    assert [b.n for b in reliability_bins(rng.random(1500), np.ones(1500))] == [100] * 15
    assert [b.n for b in reliability_bins(np.full(500, 0.7), np.ones(500))] == [500]
    assert sum(b.n for b in reliability_bins(rng.integers(1, 4, 999) / 4, np.ones(999))) == 999


def test_the_order_of_rows_changes_nothing():
    rng = np.random.default_rng(1)
    confidence, correct = rng.integers(50, 100, 400) / 100, rng.random(400) < 0.7
    order = rng.permutation(400)
    assert expected_calibration_error(confidence, correct) == pytest.approx(
        expected_calibration_error(confidence[order], correct[order])
    )


def test_brier_score_of_two_labels_is_twice_scikit_learns():
    rng = np.random.default_rng(2)
    p, y = rng.random(50), rng.integers(0, 2, 50)
    assert brier_score(np.stack([1 - p, p], axis=1), y) == pytest.approx(2 * brier_score_loss(y, p))
    assert brier_score([[0.0, 1.0, 0.0]], [0]) == 2.0


def test_intervals_of_the_calibration_error_cover_it():
    rng, repeats = np.random.default_rng(3), 150
    for by in (0.0, 0.06):
        hits = 0
        for i in range(repeats):
            low, high = calibration_metrics(*overconfident(400, by, rng), n_resamples=50, seed=i)["ece_ci"]
            hits += low <= by <= high
        # a standard error of 1.8 points, three of them, and two points for the normal noise within bins
        assert hits / repeats > 0.875


def test_intervals_of_likelihood_and_brier_score_cover_them():
    rng, repeats = np.random.default_rng(4), 200
    p, y = overconfident(400_000, 0.05, rng)
    truth = {"nll": -np.log(p[np.arange(len(y)), y]).mean(), "brier": brier_score(p, y)}
    hits = dict.fromkeys(truth, 0)
    for i in range(repeats):
        found = calibration_metrics(*overconfident(300, 0.05, rng), n_resamples=300, seed=i)
        for name, value in truth.items():
            hits[name] += found[f"{name}_ci"][0] <= value <= found[f"{name}_ci"][1]
    assert min(hits.values()) / repeats > 0.90


def test_calibrated_probabilities_are_not_called_off():
    rng = np.random.default_rng(5)
    calibrated = calibration_metrics(*overconfident(600, 0.0, rng))
    assert calibrated["ece_p_value"] > 0.05
    assert calibrated["ece"] == pytest.approx(calibrated["ece_if_calibrated"], abs=0.02)
    assert calibration_metrics(*overconfident(600, 0.1, rng))["ece_p_value"] < 0.01


def test_groups_widen_the_intervals():
    rng = np.random.default_rng(6)
    p, y = overconfident(60, 0.0, rng)
    p, y, groups = np.repeat(p, 10, axis=0), np.repeat(y, 10), np.repeat(np.arange(60), 10)
    by_row, by_group = (
        calibration_metrics(p, y)["brier_ci"],
        calibration_metrics(p, y, groups=groups)["brier_ci"],
    )
    # ten copies of each row: sqrt(10) = 3.2 times as wide
    assert 2.5 < (by_group[1] - by_group[0]) / (by_row[1] - by_row[0]) < 4


def test_one_row_and_impossible_truths_do_not_break():
    found = calibration_metrics([[1.0, 0.0]], [1])
    assert found["brier"] == 2.0
    assert found["nll"] == pytest.approx(690.8, abs=0.1)  # -log(1e-300)
    assert found["nll_ci"] is None
