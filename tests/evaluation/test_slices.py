import json

import numpy as np

from rxtone.evaluation.slices import length_slices, slice_metrics

LABELS = ("positive", "negative")


def test_slices_by_hand():
    true = np.array([0, 1] * 60)
    pred = np.where(np.arange(120) < 40, 1 - true, true)  # the first 40 all wrong
    drug = ["bad"] * 40 + ["good"] * 70 + ["rare"] * 8 + [None] * 2
    (found,) = slice_metrics(true, pred, LABELS, {"drug": drug})
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["by"] == "drug"
    assert [(s["value"], s["n"], s["accuracy"]) for s in found["slices"]] == [("good", 70, 1.0), ("bad", 40, 0.0)]
    assert [s["macro_f1"] for s in found["slices"]] == [1.0, 0.0]
    assert all(s["stands_out"] for s in found["slices"])
    assert found["too_small"] == {"slices": 1, "reviews": 8}
    assert 0.94 < found["slices"][0]["accuracy_ci"][0] < 0.95  # Wilson, 70 of 70: 1 / (1 + 3.84 / 70)


def test_slices_that_differ_by_luck_do_not_stand_out():
    rng, flagged = np.random.default_rng(0), 0
    for i in range(12):
        true = rng.integers(0, 2, 600)
        pred = np.where(rng.random(600) < 0.8, true, 1 - true)
        (found,) = slice_metrics(true, pred, LABELS, {"part": [str(j) for j in rng.integers(0, 10, 600)]}, seed=i)
        flagged += any(s["stands_out"] for s in found["slices"])
    assert flagged <= 3  # 5% of 12 and three standard errors


def test_macro_f1_needs_reviews_of_every_label():
    true = np.array([0] * 56 + [1] * 4)
    (found,) = slice_metrics(true, true, LABELS, {"all": ["x"] * 60})
    assert found["slices"][0]["macro_f1"] is None
    assert found["slices"][0]["macro_f1_ci"] is None


def test_lengths_are_cut_into_quarters():
    names = length_slices(np.arange(1, 101))
    assert sorted(set(names)) == [
        "1: up to 25 tokens",
        "2: up to 50 tokens",
        "3: up to 75 tokens",
        "4: over 75 tokens",
    ]
    assert [names.count(name) for name in sorted(set(names))] == [25, 25, 25, 25]
    assert set(length_slices(np.full(10, 7))) == {"1: up to 7 tokens"}


def test_lengths_stay_in_their_order_and_others_come_by_size():
    right = np.tile([0, 1], 50)
    parts = ["1: up to 9 tokens"] * 30 + ["2: over 9 tokens"] * 70
    for by, expected in (("length", ["1: up to 9 tokens", "2: over 9 tokens"]),
                         ("drug", ["2: over 9 tokens", "1: up to 9 tokens"])):  # fmt: skip
        (found,) = slice_metrics(right, right, LABELS, {by: parts})
        assert [one["value"] for one in found["slices"]] == expected
