import itertools

import numpy as np
import pytest
from scipy.special import log_softmax
from sklearn.metrics import f1_score

from rxtone.stats.metrics import confusion_counts, metric_arrays
from rxtone.stats.operating import argmax_rule, ordinal_cost, tune_offsets


def shifted(n, seed=0, shift=(1.5, -1.5, 0.0)):
    """Draw labels, and log-probabilities that favour some labels unduly."""
    rng = np.random.default_rng(seed)
    log_p = log_softmax(rng.normal(size=(n, 3)) * 2, axis=1)
    y = (rng.random(n)[:, None] > np.exp(log_p).cumsum(axis=1)).sum(axis=1).clip(max=2)
    return log_softmax(log_p + shift, axis=1), y


def test_tuning_undoes_an_undue_favour():
    log_p, y = shifted(3000)
    found = tune_offsets(log_p, y)
    assert found.tuned > found.plain + 0.05
    # the offsets that undo (1.5, -1.5, 0) are (0, 3, 1.5)
    assert found.rule.offsets == pytest.approx((0.0, 3.0, 1.5), abs=0.5)
    other, truth = shifted(3000, seed=1)
    plain = f1_score(truth, other.argmax(axis=1), average="macro")
    assert f1_score(truth, found.rule.decide(other), average="macro") > plain + 0.05


def test_the_search_finds_what_a_grid_finds():
    log_p, y = shifted(400, seed=2)
    grid = np.linspace(0, 4, 21)
    best = max(
        f1_score(y, (log_p + np.array([0.0, b, c])).argmax(axis=1), average="macro")
        for b, c in itertools.product(grid, grid)
    )
    found = tune_offsets(log_p, y)
    full = np.array(found.rule.offsets) / found.shrink
    assert f1_score(y, (log_p + full).argmax(axis=1), average="macro") > best - 0.02


def test_offsets_that_do_not_help_are_not_used():
    rng = np.random.default_rng(3)
    y = rng.integers(0, 3, 200)
    found = tune_offsets(log_softmax(8.0 * np.eye(3)[y], axis=1), y)  # already perfect
    assert found.rule == argmax_rule(3)
    assert (found.shrink, found.plain, found.tuned) == (0.0, 1.0, 1.0)


def test_too_few_rows_keep_argmax():
    log_p, y = shifted(9)
    assert tune_offsets(log_p, y).rule == argmax_rule(3)


def test_costs_are_cut():
    log_p, y = shifted(2000, seed=4, shift=(0.0, -2.0, 0.0))
    cost = ordinal_cost(3) ** 2
    found = tune_offsets(log_p, y, aim="cost", cost=cost)
    assert found.rule.objective == "cost"
    other, truth = shifted(2000, seed=5, shift=(0.0, -2.0, 0.0))
    assert cost[truth, found.rule.decide(other)].mean() < cost[truth, other.argmax(axis=1)].mean() - 0.1


def test_the_balanced_aim_gives_away_less_agreement():
    """A weak score of a rare label: macro-F1 buys it dearly, the mean with kappa does not."""
    rng = np.random.default_rng(0)
    y = rng.choice(3, size=3000, p=[0.68, 0.10, 0.22])
    z = log_softmax(rng.normal(size=(3000, 3)) * 1.2 + np.array([2.0, 0.7, 1.6])[None] * np.eye(3)[y] * 1.2
                    + np.log([0.68, 0.10, 0.22]), axis=1)  # fmt: skip
    rules = {aim: tune_offsets(z, y, aim=aim).rule for aim in ("macro_f1", "balanced")}
    assert [rule.objective for rule in rules.values()] == ["macro_f1", "balanced"]
    worth = {aim: metric_arrays(confusion_counts(y, rule.decide(z), 3)) for aim, rule in rules.items()}
    assert worth["balanced"]["kappa"] >= worth["macro_f1"]["kappa"]
    assert worth["macro_f1"]["macro_f1"] >= worth["balanced"]["macro_f1"] - 0.005
    mean = {aim: float(found["macro_f1"] + found["kappa"]) for aim, found in worth.items()}
    assert mean["balanced"] >= mean["macro_f1"]


def test_an_aim_must_be_known_and_have_its_costs():
    log_p, y = shifted(100)
    for wrong in ({"aim": "luck"}, {"aim": "cost"}, {"cost": ordinal_cost(3)}):
        with pytest.raises(ValueError, match="expected macro_f1, balanced, or cost with costs"):
            tune_offsets(log_p, y, **wrong)


def test_ordinal_cost_and_json():
    assert ordinal_cost(3).tolist() == [[0, 1, 2], [1, 0, 1], [2, 1, 0]]
    assert argmax_rule(2).to_dict() == {"offsets": [0.0, 0.0], "objective": None}


def test_same_seed_same_rule():
    log_p, y = shifted(300)
    assert tune_offsets(log_p, y, seed=7) == tune_offsets(log_p, y, seed=7)
