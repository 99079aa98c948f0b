import json

import numpy as np
import pytest
from scipy.special import log_softmax

from rxtone.stats.abstention import ConformalSets
from rxtone.stats.calibration import Calibration
from rxtone.stats.operating import DecisionRule, ordinal_cost
from rxtone.stats.policy import Policy, fit_policy, plain_policy, policy_from_dict

FULL = Policy(
    calibration=Calibration("temperature", (0.5, 0.5), (0.0, 0.0)),
    rules=(DecisionRule((0.0, 2.0), "macro_f1"),),
    operating_point="macro_f1",
    min_confidence=0.3,
    conformal=ConformalSets(0.9, (0.2, 0.2), False),
)


def scores(n, seed=0):
    rng = np.random.default_rng(seed)
    log_p = log_softmax(rng.normal(size=(n, 3)) * 2, axis=1)
    y = (rng.random(n)[:, None] > np.exp(log_p).cumsum(axis=1)).sum(axis=1).clip(max=2)
    return log_p, y


def test_plain_policy_answers_with_the_most_probable_label():
    log_p, _ = scores(50)
    answers = plain_policy(3).decide(log_p + 7.0)
    np.testing.assert_allclose(answers.probabilities, np.exp(log_p))
    np.testing.assert_array_equal(answers.predicted, log_p.argmax(axis=1))
    np.testing.assert_array_equal(answers.confidence, answers.probabilities.max(axis=1))
    assert not answers.abstained.any()


def test_calibration_offsets_and_abstention_by_hand():
    # halved scores: p is proportional to (sqrt(.81), sqrt(.01)) = (.9, .1), which the offset 2 cannot turn as
    # log 9 = 2.197; it turns (sqrt(.64), sqrt(.04)) = (.8, .2), log 4 = 1.386, whose answer at .2 is withheld
    answers = FULL.decide(np.log([[0.81, 0.01], [0.64, 0.04]]))
    np.testing.assert_allclose(answers.probabilities, [[0.9, 0.1], [0.8, 0.2]])
    assert answers.predicted.tolist() == [0, 1]
    assert answers.confidence.tolist() == pytest.approx([0.9, 0.2])
    assert answers.abstained.tolist() == [False, True]


def test_goes_to_json_and_back():
    assert policy_from_dict(json.loads(json.dumps(FULL.to_dict()))) == FULL
    assert policy_from_dict(json.loads(json.dumps(plain_policy(3).to_dict()))) == plain_policy(3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"calibration": None}, "needs a calibration"),
        ({"operating_point": "luck"}, "no operating point 'luck', there are: argmax, macro_f1"),
        ({"rules": [{"objective": "macro_f1"}]}, "lacks 'offsets'"),
        ({"rules": [{"objective": "macro_f1", "offsets": [0.0]}]}, "needs 2 finite numbers"),
        ({"rules": {}}, "must be a list"),
        ({"rules": [3]}, "lacks 'offsets'"),
        ({"min_confidence": "high"}, "needs 1 finite numbers"),
        ({"conformal": {"level": 0.9}}, "lacks 'least_probability'"),
        (
            {"conformal": {"level": 0.9, "least_probability": [True, 0], "per_label": False}},
            "2 finite numbers",
        ),
    ],
)
def test_damaged_json_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        policy_from_dict(FULL.to_dict() | change)


def test_a_fitted_policy_calibrates_and_offers_all_operating_points():
    log_p, y = scores(600)
    overconfident = log_softmax(3 * log_p + [1.0, -1.0, 0.0], axis=1)
    fit = fit_policy(overconfident, y, cost=ordinal_cost(3))
    assert [rule.objective for rule in fit.policy.rules] == ["macro_f1", "balanced", "cost"]
    assert fit.policy.operating_point == "argmax"
    assert fit.nll_after < fit.nll_before
    assert fit.certified is None
    record = json.loads(json.dumps(fit.to_dict()))
    assert list(record["operating_points"]) == ["macro_f1", "balanced", "cost"]
    assert record["target_precision"] is None
    sets = fit.policy.conformal.sets(fit.policy.decide(overconfident).probabilities)
    assert 0.89 <= sets[np.arange(600), y].mean() <= 0.93


def test_a_target_precision_withholds_answers():
    log_p, y = scores(2000)
    fit = fit_policy(log_p, y, target_precision=0.9)
    answers = fit.policy.decide(log_p)
    assert fit.certified
    assert answers.abstained.mean() == pytest.approx(1 - fit.threshold.coverage)
    assert (answers.predicted == y)[~answers.abstained].mean() >= 0.9


def test_a_target_out_of_reach_withholds_everything():
    rng = np.random.default_rng(0)
    fit = fit_policy(log_softmax(rng.normal(size=(300, 3)), axis=1), rng.integers(0, 3, 300), target_precision=0.99)
    assert fit.threshold is None
    assert fit.certified is False
    assert fit.to_dict()["target_precision"]["reached"] is False
    assert fit.policy.decide(np.log([[0.98, 0.01, 0.01]])).abstained.tolist() == [True]
