import json

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    cohen_kappa_score,
    confusion_matrix,
    precision_recall_fscore_support,
)

from rxtone.stats.metrics import classification_metrics, confusion_counts, metric_arrays

LABELS = ("positive", "neutral", "negative")
KEYS = {
    *("n", "labels", "accuracy", "kappa", "quadratic_kappa", "invalid_rate", "per_class", "confusion_matrix"),
    *(f"{average}_{name}" for average in ("macro", "weighted") for name in ("precision", "recall", "f1")),
}


def expand(table):
    """Turn a table of counts into one true and one predicted index per row."""
    true, pred = [], []
    for i, row in enumerate(table):
        for j, n in enumerate(row):
            true += [i] * n
            pred += [j] * n
    return np.array(true), np.array(pred)


def test_kappa_of_cohens_published_table():
    # Cohen (1960), A coefficient of agreement for nominal scales, table 1, in 200ths: observed agreement .70,
    # expected .41, kappa .492.
    metrics = classification_metrics(*expand([[88, 14, 18], [10, 40, 10], [2, 6, 12]]), LABELS)
    assert metrics["accuracy"] == 0.70
    assert metrics["kappa"] == pytest.approx(0.29 / 0.59)


def test_hand_computed_figures():
    # 10 rows: positive 5 (4 right), neutral 3 (1 right), negative 2 (1 right).
    metrics = classification_metrics(*expand([[4, 1, 0], [1, 1, 1], [0, 1, 1]]), LABELS)
    assert set(metrics) == KEYS
    assert metrics["n"] == 10
    assert metrics["confusion_matrix"] == [[4, 1, 0], [1, 1, 1], [0, 1, 1]]
    assert metrics["accuracy"] == pytest.approx(0.6)
    assert metrics["per_class"]["positive"] == pytest.approx({"precision": 0.8, "recall": 0.8, "f1": 0.8, "support": 5})
    assert metrics["per_class"]["neutral"] == pytest.approx(
        {"precision": 1 / 3, "recall": 1 / 3, "f1": 1 / 3, "support": 3}
    )
    assert metrics["macro_f1"] == pytest.approx((0.8 + 1 / 3 + 0.5) / 3)
    assert metrics["weighted_f1"] == pytest.approx((5 * 0.8 + 3 / 3 + 2 * 0.5) / 10)
    # expected agreement (5*5 + 3*3 + 2*2) / 100 = .38; squared disagreement observed 4/10, expected
    # (2*(5*3 + 3*2) + 4*2*5*2) / 100 = 1.22
    assert metrics["kappa"] == pytest.approx((0.6 - 0.38) / 0.62)
    assert metrics["quadratic_kappa"] == pytest.approx(1 - 0.4 / 1.22)


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    k = int(rng.integers(2, 6))
    labels = tuple("abcdef"[:k])
    true, pred = rng.integers(0, k, 200), rng.integers(0, k, 200)
    pred = np.where(rng.random(200) < 0.5, true, pred)
    metrics = classification_metrics(true, pred, labels)
    assert metrics["accuracy"] == pytest.approx(accuracy_score(true, pred))
    assert metrics["kappa"] == pytest.approx(cohen_kappa_score(true, pred))
    assert metrics["quadratic_kappa"] == pytest.approx(cohen_kappa_score(true, pred, weights="quadratic"))
    assert metrics["confusion_matrix"] == confusion_matrix(true, pred).tolist()
    for average in ("macro", "weighted"):
        figures = precision_recall_fscore_support(true, pred, average=average, zero_division=0)
        for name, value in zip(("precision", "recall", "f1"), figures, strict=False):
            assert metrics[f"{average}_{name}"] == pytest.approx(value)


def test_invalid_outputs_are_errors_everywhere():
    true, pred = np.array([0, 0, 1, 2]), np.array([0, -1, 1, -1])
    metrics = classification_metrics(true, pred, LABELS)
    assert metrics["accuracy"] == 0.5
    assert metrics["invalid_rate"] == 0.5
    assert metrics["per_class"]["positive"] == pytest.approx({"precision": 1, "recall": 0.5, "f1": 2 / 3, "support": 2})
    assert metrics["confusion_matrix"] == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert metrics["kappa"] == pytest.approx(cohen_kappa_score(true, pred))
    # observed (4 + 4) / 4; expected, with an invalid output 2 steps (4 squared) from all:
    # rows 2, 1, 1; columns 1, 1, 0, 2: (2*(0 + 1 + 2*4) + 1*(1 + 0 + 2*4) + 1*(4 + 1 + 2*4)) / 16 = 40 / 16
    assert metrics["quadratic_kappa"] == pytest.approx(1 - 2 / 2.5)


def test_nothing_over_nothing_is_zero():
    one_class = classification_metrics(np.zeros(4, int), np.zeros(4, int), LABELS)
    assert one_class["accuracy"] == 1.0
    assert one_class["kappa"] == 0.0
    assert one_class["quadratic_kappa"] == 0.0
    assert one_class["per_class"]["neutral"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}
    assert one_class["macro_f1"] == pytest.approx(1 / 3)


def test_unordered_labels_have_no_quadratic_kappa():
    assert (
        classification_metrics(np.array([0, 1]), np.array([1, 1]), ("a", "b"), ordinal=False)["quadratic_kappa"] is None
    )


def test_goes_to_json_unchanged():
    metrics = classification_metrics(np.array([0, 1, 2]), np.array([0, 2, 2]), LABELS)
    assert json.loads(json.dumps(metrics)) == metrics


def test_many_counts_at_once_equal_one_by_one():
    rng = np.random.default_rng(1)
    counts = rng.integers(0, 9, (20, 3, 4))
    together = metric_arrays(counts)
    for i in range(20):
        for name, value in metric_arrays(counts[i]).items():
            np.testing.assert_array_equal(together[name][i], value)


@pytest.mark.parametrize(
    ("true", "pred", "message"),
    [
        ([0, 1], [0], r"one shape \(n,\), got \(2,\) and \(1,\)"),
        ([], [], "at least one row"),
        ([0.5, 1], [0, 1], "must be integers, got float64 and int64"),
        ([0, 3], [0, 1], r"y_true must lie in 0\.\.2, got 0\.\.3"),
        ([-1, 0], [0, 1], r"y_true must lie in 0\.\.2, got -1\.\.0"),
        ([0, 1], [0, 3], r"y_pred must lie in -1\.\.2, got 0\.\.3"),
    ],
)
def test_refuses_what_it_cannot_count(true, pred, message):
    with pytest.raises(ValueError, match=message):
        confusion_counts(true, pred, 3)
