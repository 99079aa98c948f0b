import json

import numpy as np
import pytest
from scipy.special import log_softmax
from sklearn.metrics import log_loss

from rxtone.stats.calibration import (
    calibration_from_dict,
    fit_calibration,
    fit_temperature,
    fit_vector,
    identity_calibration,
    negative_log_likelihood,
)


def sample(n, seed=0):
    """Draw calibrated log-probabilities and labels from them."""
    rng = np.random.default_rng(seed)
    log_p = log_softmax(rng.normal(size=(n, 3)) * 1.5 + [1.0, -1.0, 0.0], axis=1)
    y = (rng.random(n)[:, None] > np.exp(log_p).cumsum(axis=1)).sum(axis=1).clip(max=2)
    return log_p, y


def test_temperature_undoes_a_known_temperature():
    log_p, y = sample(20_000)
    found = fit_temperature(log_softmax(2.5 * log_p, axis=1), y)
    assert 1 / found.scale[0] == pytest.approx(2.5, rel=0.03)
    assert found.bias == (0.0, 0.0, 0.0)


def test_vector_scaling_undoes_known_factors_and_summands():
    log_p, y = sample(40_000)
    twisted = (log_p - [0.5, 0.0, -0.5]) / [0.5, 2.0, 1.0]  # not normalised: scores need not be
    found = fit_vector(twisted, y)
    np.testing.assert_allclose(found.probabilities(twisted), np.exp(log_p), atol=0.03)


def test_temperature_never_changes_the_label():
    log_p, y = sample(500)
    found = fit_temperature(4 * log_p, y)
    np.testing.assert_array_equal(found.probabilities(4 * log_p).argmax(axis=1), log_p.argmax(axis=1))


def test_calibrated_probabilities_sum_to_one():
    log_p, y = sample(300)
    for fit in (fit_temperature, fit_vector, fit_calibration):
        np.testing.assert_allclose(fit(3 * log_p, y).probabilities(3 * log_p).sum(axis=1), 1.0)


def test_likelihood_agrees_with_scikit_learn():
    log_p, y = sample(100)
    assert negative_log_likelihood(log_p, y) == pytest.approx(log_loss(y, np.exp(log_p), labels=[0, 1, 2]))


def test_the_simplest_method_that_serves_is_chosen():
    log_p, y = sample(2000)
    assert fit_calibration(log_p, y).method == "none"
    assert fit_calibration(3 * log_p, y).method == "temperature"
    assert fit_calibration(log_p + np.array([2.0, 0.0, -2.0]), y).method == "vector"


def test_rows_without_errors_do_not_ask_for_infinite_confidence():
    y = np.arange(30) % 3
    log_p = log_softmax(2.0 * np.eye(3)[y], axis=1)
    assert fit_temperature(log_p, y).scale[0] < 10
    assert np.isfinite(fit_vector(log_p, y).scale).all()


@pytest.mark.parametrize("y", [np.zeros(50, int), np.array([0, 1, 2])])
def test_too_little_to_learn_from_changes_nothing(y):
    assert fit_calibration(np.log(np.full((len(y), 3), 1 / 3)), y) == identity_calibration(3)


def test_goes_to_json_and_back():
    log_p, y = sample(200)
    found = fit_vector(log_p, y)
    assert calibration_from_dict(json.loads(json.dumps(found.to_dict()))) == found


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"method": "magic"}, "one of none, temperature, vector, got 'magic'"),
        ({}, "got None"),
        ({"method": "none", "scale": [1.0], "bias": [0.0, 0.0]}, "of one length"),
        ({"method": "none", "scale": [], "bias": []}, "of one length"),
        ({"method": "none", "scale": ["x"], "bias": [0.0]}, "must be numbers"),
        ({"method": "none", "scale": [[1.0]], "bias": [0.0]}, "must be numbers"),
        ({"method": "none", "scale": [0.0], "bias": [0.0]}, "scale above 0"),
        ({"method": "none", "scale": [float("nan")], "bias": [0.0]}, "must be finite"),
    ],
)
def test_damaged_json_is_refused(data, message):
    with pytest.raises(ValueError, match=message):
        calibration_from_dict(data)
