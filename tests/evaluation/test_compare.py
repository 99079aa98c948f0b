import json
from dataclasses import dataclass

import numpy as np
import pytest

from rxtone.data.reviews import Review
from rxtone.errors import DataError
from rxtone.evaluation.baselines import Baseline, unavailable_baselines
from rxtone.evaluation.compare import RunPredictions, compare, compare_classifiers, verdict
from rxtone.stats.calibration import identity_calibration
from rxtone.stats.metrics import CLASS_METRICS, SCALAR_METRICS
from rxtone.stats.operating import DecisionRule
from rxtone.stats.policy import Policy

LABELS = ("positive", "neutral", "negative")


def example(n=400):
    rng = np.random.default_rng(0)
    true = rng.choice(3, n, p=[0.6, 0.15, 0.25])

    def run(share):
        return np.where(rng.random(n) < share, true, rng.integers(0, 3, n))

    return true, RunPredictions("good", run(0.9)), RunPredictions("poor", run(0.5))


def test_every_metric_of_every_run_has_an_interval_around_it():
    true, good, poor = example()
    found = compare([good, poor], true, LABELS, baselines=[Baseline("flat", "always positive", np.zeros(400, int))])
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    for metrics in found["runs"].values():
        for name in SCALAR_METRICS:
            assert metrics[f"{name}_ci"][0] < metrics[name] < metrics[f"{name}_ci"][1]
        for label in LABELS:
            for name in CLASS_METRICS:
                row = metrics["per_class"][label]
                assert row[f"{name}_ci"][0] < row[name] < row[f"{name}_ci"][1]
    assert found["baselines"]["flat"]["title"] == "always positive"
    assert found["baselines"]["flat"]["kappa_ci"] is None  # 0 in every resample: nothing to say
    assert found["interval"] == {
        "level": 0.95, "method": "BCa bootstrap", "resamples": 2000, "unit": "review", "units": 400,
    }  # fmt: skip


def test_runs_are_compared_with_each_other_and_with_baselines():
    true, good, poor = example()
    beside = [Baseline("flat", "always positive", np.zeros(400, int)), *unavailable_baselines("no table")[1:2]]
    found = compare([poor, good], true, LABELS, baselines=beside)
    assert [(pair["run"], pair["other"]) for pair in found["pairs"]] == [
        ("good", "poor"),
        ("poor", "flat"),
        ("good", "flat"),
    ]
    first = found["pairs"][0]
    runs = found["runs"]
    assert first["differences"]["macro_f1"]["value"] == pytest.approx(
        runs["good"]["macro_f1"] - runs["poor"]["macro_f1"]
    )
    assert first["verdict"].startswith("good is better than poor (+0.")
    assert first["mcnemar"]["only_run_right"] > first["mcnemar"]["only_other_right"]
    assert set(first["per_class_f1"]) == set(LABELS)
    assert found["baselines"]["tfidf_fields"]["unavailable"] == "no table"
    assert "better than always positive" in found["pairs"][2]["verdict"]


def test_p_values_are_adjusted_for_the_number_of_comparisons():
    true, good, poor = example()
    rng = np.random.default_rng(1)
    runs = [good] + [
        RunPredictions(f"run {i}", np.where(rng.random(400) < 0.04, true, good.predicted)) for i in range(3)
    ]
    pairs = compare([*runs, poor], true, LABELS)["pairs"]
    assert len(pairs) == 10
    raw, adjusted = zip(*((p["differences"]["macro_f1"]["p_value"], p["p_adjusted"]) for p in pairs), strict=True)
    assert min(adjusted) == pytest.approx(10 * min(raw))
    assert all(a >= r for a, r in zip(adjusted, raw, strict=True))


def test_groups_widen_the_intervals():
    rng = np.random.default_rng(2)
    true, luck = np.tile([0, 1], 200), np.repeat(rng.random(40) < 0.7, 10)
    run = RunPredictions("run", np.where(luck, true, 1 - true))
    by_row = compare([run], true, ("a", "b"))["runs"]["run"]["accuracy_ci"]
    grouped = compare([run], true, ("a", "b"), groups=np.repeat(np.arange(40), 10))
    by_group = grouped["runs"]["run"]["accuracy_ci"]
    assert by_group[1] - by_group[0] > 2.5 * (by_row[1] - by_row[0])  # sqrt(10) = 3.2
    assert grouped["interval"]["unit"] == "group"
    assert grouped["interval"]["units"] == 40


def test_labels_without_order_have_no_quadratic_kappa():
    true, good, poor = example()
    found = compare([good, poor], true, LABELS, ordinal=False)
    assert found["runs"]["good"]["quadratic_kappa"] is None
    assert "quadratic_kappa_ci" not in found["runs"]["good"]
    assert "quadratic_kappa" not in found["pairs"][0]["differences"]


def test_two_runs_of_one_name_are_refused():
    true, good, _ = example()
    with pytest.raises(ValueError, match="different names, got good, good"):
        compare([good, good], true, LABELS)
    with pytest.raises(ValueError, match="got none"):
        compare([], true, LABELS)


@pytest.mark.parametrize(
    ("value", "interval", "p", "start"),
    [
        (0.05, [0.01, 0.09], 2e-4, "a is better than b (+0.050 macro-F1, 95% interval +0.010 to +0.090, adjusted p <"),
        (-0.05, [-0.09, -0.01], 0.02, "a is worse than b (-0.050 macro-F1, 95% interval -0.090 to -0.010, adjusted p"),
        (0.01, [-0.01, 0.03], 0.3, "No difference between a and b is shown (+0.010 macro-F1, 95% interval -0.010 to "),
        (0.0, None, 1.0, "a and b cannot be told apart"),
    ],
)  # fmt: skip
def test_verdicts(value, interval, p, start):
    assert verdict("a", "b", value, interval, p).startswith(start)


@dataclass(frozen=True)
class Constant:
    """Gives every review the same scores: a classifier without a model."""

    probabilities: tuple[float, ...]
    labels: tuple[str, ...] = LABELS

    def score(self, reviews):
        return Answer(np.log(np.tile(self.probabilities, (len(reviews), 1))))


@dataclass(frozen=True)
class Answer:
    log_probs: np.ndarray


def test_classifiers_answer_the_same_reviews_each_by_its_policy():
    reviews = [Review(text="x", label=label, group=label) for label in LABELS * 2]
    runs = {"plain": Constant((0.5, 0.3, 0.2)), "tuned": Constant((0.5, 0.3, 0.2))}
    policy = Policy(identity_calibration(3), (DecisionRule((0.0, 1.0, 0.0), "macro_f1"),), "macro_f1")
    found = compare_classifiers(runs, reviews, policies={"tuned": policy})
    assert found["runs"]["plain"]["confusion_matrix"] == [[2, 0, 0], [2, 0, 0], [2, 0, 0]]
    assert found["runs"]["tuned"]["confusion_matrix"] == [[0, 2, 0], [0, 2, 0], [0, 2, 0]]
    assert found["interval"]["units"] == 3


def test_classifiers_of_other_labels_are_refused():
    runs = {"one": Constant((0.5, 0.3, 0.2)), "two": Constant((0.5, 0.3, 0.2), ("bad", "so", "good"))}
    with pytest.raises(DataError, match="one knows positive, neutral, negative, two knows bad, so, good"):
        compare_classifiers(runs, [Review(text="x", label="positive")])
