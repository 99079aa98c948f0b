import numpy as np
import pytest

from rxtone.stats.abstention import (
    abstention_metrics,
    conformal_metrics,
    fit_conformal,
    precision_threshold,
    risk_coverage,
)


def draw(n, rng):
    confidence = 0.4 + 0.6 * rng.beta(3, 1.5, n)
    return confidence, rng.random(n) < confidence


def test_risk_coverage_by_hand():
    found = risk_coverage([0.9, 0.8, 0.7, 0.6], [True, True, False, True])
    assert found.coverage.tolist() == [1.0, 0.75, 0.5, 0.25]
    assert found.risk.tolist() == pytest.approx([1 / 4, 1 / 3, 0, 0])
    assert found.threshold.tolist() == [0.6, 0.7, 0.8, 0.9]
    assert found.area == pytest.approx((1 / 4 + 1 / 3) / 4)


def test_rows_of_equal_confidence_are_answered_together():
    found = risk_coverage([0.5, 0.5, 0.5, 0.9], [False, True, False, True])
    assert found.coverage.tolist() == [1.0, 0.25]
    assert found.area == pytest.approx((1 * 0 + 3 * 0.5) / 4)


def test_the_curve_is_short_and_starts_with_every_row():
    found = risk_coverage(*draw(5000, np.random.default_rng(0)))
    assert len(found.coverage) == 100
    assert found.coverage[0] == 1.0
    assert (np.diff(found.coverage) < 0).all()


def test_certified_thresholds_keep_their_promise():
    rng, broken, repeats = np.random.default_rng(1), 0, 300
    big_confidence, big_right = draw(200_000, rng)
    for _ in range(repeats):
        found = precision_threshold(*draw(400, rng), 0.85)
        if found is not None:
            assert found.certified
            broken += big_right[big_confidence >= found.threshold].mean() < 0.85
    assert broken / repeats <= 0.05


def test_uncertified_thresholds_answer_more():
    confidence, right = draw(1500, np.random.default_rng(2))
    certified = precision_threshold(confidence, right, 0.85)
    picked = precision_threshold(confidence, right, 0.85, certify=False)
    assert picked.threshold < certified.threshold
    assert picked.coverage > certified.coverage
    assert picked.precision >= 0.85
    assert not picked.certified
    assert picked.coverage == np.mean(confidence >= picked.threshold)


@pytest.mark.parametrize(("confidence", "right"), [([], []), ([0.9] * 50, [False] * 50), ([0.9], [True])])
def test_a_precision_out_of_reach_has_no_threshold(confidence, right):
    assert precision_threshold(confidence, right, 0.9) is None


def test_abstention_by_hand():
    found = abstention_metrics([0.9, 0.8, 0.4, 0.3], [True, False, True, False], 0.5)
    assert found == {
        "min_confidence": 0.5,
        "n_answered": 2,
        "n_abstained": 2,
        "coverage": 0.5,
        "precision": 0.5,
        "precision_ci": pytest.approx([0.0945, 0.9055], abs=1e-4),  # Wilson, 1 of 2
        "abstained_accuracy": 0.5,
    }
    nothing = abstention_metrics([0.9], [True], 0.95)
    assert (nothing["precision"], nothing["precision_ci"], nothing["abstained_accuracy"]) == (None, None, 1.0)


@pytest.mark.parametrize("per_label", [False, True])
def test_conformal_sets_hold_the_true_label_as_often_as_they_say(per_label):
    rng, per_repeat, repeats = np.random.default_rng(3), [], 100
    for _ in range(repeats):
        p = rng.dirichlet([3, 0.5, 1], 900)
        y = (rng.random(900)[:, None] > p.cumsum(axis=1)).sum(axis=1).clip(max=2)
        sets = fit_conformal(p[:300], y[:300], level=0.9, per_label=per_label)
        inside = sets.sets(p[300:])[np.arange(600), y[300:]]
        per_repeat.append([inside[y[300:] == label].mean() for label in range(3)] if per_label else [inside.mean()])
    coverage = np.mean(per_repeat, axis=0)
    # the promise is an average over calibration rows: .9 less three standard errors of .002 (.006 by label)
    assert (coverage > (0.882 if per_label else 0.894)).all()
    if not per_label:
        assert coverage[0] < 0.92  # and not by answering everything


def test_conformal_threshold_by_hand():
    # 9 rows at 90%: rank ceil(10 * .9) = 9, the least probable true label
    p = np.stack([np.arange(1, 10) / 10, 1 - np.arange(1, 10) / 10], axis=1)
    assert fit_conformal(p, np.zeros(9, int), level=0.9).least_probability == (0.1, 0.1)
    # 8 rows are too few for the promise: every label is in the set
    few = fit_conformal(p[:8], np.zeros(8, int), level=0.9)
    assert few.sets(p).all()


def test_no_set_is_empty():
    sets = fit_conformal(np.tile([0.9, 0.05, 0.05], (50, 1)), np.zeros(50, int))
    assert sets.sets([[0.4, 0.3, 0.3]]).tolist() == [[True, False, False]]


def test_conformal_metrics_by_hand():
    found = conformal_metrics([[1, 0, 0], [1, 1, 0], [1, 1, 0]], [0, 1, 2], 0.9)
    assert found["coverage"] == pytest.approx(2 / 3)
    assert found["coverage_per_label"] == [1.0, 1.0, 0.0]
    assert found["mean_size"] == pytest.approx(5 / 3)
    assert found["singletons"] == pytest.approx(1 / 3)
    assert conformal_metrics([[1, 0]], [0], 0.9)["coverage_per_label"] == [1.0, None]
