import json
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import pytest

from rxtone.data.reviews import Review
from rxtone.errors import DataError, ModelError
from rxtone.evaluation.baselines import Baseline, unavailable_baselines
from rxtone.evaluation.evaluate import evaluate, evaluate_outputs
from rxtone.evaluation.inputs import group_indexes
from rxtone.stats.policy import fit_policy

LABELS = ("positive", "neutral", "negative")
TEST = "test"


@dataclass(frozen=True)
class Table:
    """Scores as a table of probabilities: a classifier without a model."""

    probabilities: tuple[tuple[float, ...], ...]
    labels: tuple[str, ...] = LABELS

    def score(self, reviews):
        n = len(self.probabilities)
        return Answer(np.log(np.array(self.probabilities)), np.arange(n) == 1, np.arange(n) + 10)


@dataclass(frozen=True)
class Answer:
    log_probs: np.ndarray
    truncated: np.ndarray
    n_tokens: np.ndarray


CANARY = "the canary sings at noon"
REVIEWS = [Review(text=CANARY, label=label, row=row) for label, row in zip(LABELS, (3, 5, 8), strict=True)]
CLASSIFIER = Table(((0.7, 0.2, 0.1), (0.1, 0.3, 0.6), (0.05, 0.05, 0.9)))


def test_predictions_hold_one_row_per_review_and_no_text():
    frame = evaluate(CLASSIFIER, REVIEWS, split_name=TEST).predictions
    assert frame.columns == [
        *("row", "label", "true_label", "score", "p_positive", "p_neutral", "p_negative"),
        *("truncated", "abstained", "n_tokens"),
    ]
    assert frame["row"].to_list() == [3, 5, 8]
    assert frame["label"].to_list() == ["positive", "negative", "negative"]
    assert frame["true_label"].to_list() == ["positive", "neutral", "negative"]
    assert frame["score"].to_list() == pytest.approx([0.7, 0.6, 0.9])
    assert frame.select(pl.sum_horizontal("^p_.*$")).to_series().to_list() == pytest.approx([1, 1, 1])
    assert frame["truncated"].to_list() == [False, True, False]
    assert "canary" not in frame.write_csv()


def test_scores_need_not_be_normalised():
    shifted = Table(tuple(tuple(5 * p for p in row) for row in CLASSIFIER.probabilities))
    same = evaluate(shifted, REVIEWS, split_name=TEST)
    assert same.predictions["score"].to_list() == pytest.approx([0.7, 0.6, 0.9])


def test_metrics_carry_the_split_truncation_and_baselines():
    beside = (
        Baseline("majority", "always positive", np.zeros(3, int)),
        *unavailable_baselines("no table")[1:],
    )
    metrics = evaluate(CLASSIFIER, REVIEWS, split_name=TEST, baselines=beside).metrics
    assert json.loads(json.dumps(metrics)) == metrics
    assert metrics["split"] == "test"
    assert metrics["accuracy"] == pytest.approx(2 / 3)
    assert metrics["truncation"]["n_truncated"] == 1
    assert metrics["truncation"]["tokens"] == {"mean": 11.0, "p50": 11.0, "p90": 11.8, "max": 12}
    assert metrics["baselines"]["majority"]["accuracy"] == pytest.approx(1 / 3)
    assert metrics["baselines"]["tfidf_text"]["unavailable"] == "no table"


def test_generated_outputs_outside_the_labels_are_errors():
    evaluation = evaluate_outputs(LABELS, REVIEWS, ["positive", "I feel neutral", None], split_name=TEST)
    assert evaluation.metrics["invalid_rate"] == pytest.approx(2 / 3)
    assert evaluation.metrics["accuracy"] == pytest.approx(1 / 3)
    assert evaluation.predictions["label"].to_list() == ["positive", None, None]


def test_bad_inputs_are_named_without_their_text():
    with pytest.raises(DataError, match=r"3 of 3 have none, the first in row 3") as caught:
        evaluate(CLASSIFIER, [replace(r, label=None) for r in REVIEWS], split_name=TEST)
    assert "canary" not in str(caught.value)
    with pytest.raises(DataError, match=r"row 8 has the label 'mixed', the classifier knows positive, neutral, neg"):
        evaluate(CLASSIFIER, [*REVIEWS[:2], replace(REVIEWS[2], label="mixed")], split_name=TEST)
    with pytest.raises(DataError, match="at least one labelled review"):
        evaluate(CLASSIFIER, [], split_name=TEST)
    with pytest.raises(DataError, match="one output for each of 3 reviews, got 1"):
        evaluate_outputs(LABELS, REVIEWS, ["positive"], split_name=TEST)


def test_scores_that_are_not_finite_are_refused():
    with pytest.raises(ModelError, match=r"not finite for 1 of 3 reviews, the first at position 2"):
        evaluate(Table(((0.7, 0.2, 0.1), (float("nan"), 0.3, 0.6), (0.1, 0.1, 0.8))), REVIEWS, split_name=TEST)
    with pytest.raises(ModelError, match=r"shape \(3, 3\), reviews by labels, got \(2, 3\)"):
        evaluate(Table(CLASSIFIER.probabilities[:2]), REVIEWS, split_name=TEST)


def many(n=300, *, groups=False):
    """Reviews and a classifier that is overconfident and hardly ever says neutral."""
    rng = np.random.default_rng(0)
    true = rng.choice(3, n, p=[0.6, 0.15, 0.25])
    logits = 2.0 * np.eye(3)[true] + rng.normal(size=(n, 3)) * 1.5 + [1.0, -1.0, 0.0]
    p = np.exp(2 * logits) / np.exp(2 * logits).sum(axis=1, keepdims=True)
    reviews = [
        Review(text=CANARY, label=LABELS[t], row=i + 1, group=f"drug {i % 5}" if groups else None)
        for i, t in enumerate(true)
    ]
    return reviews, Table(tuple(tuple(row) for row in p)), true


def test_answers_are_those_of_the_policy_and_argmax_is_not_hidden():
    reviews, classifier, true = many()
    fit = fit_policy(classifier.score(reviews).log_probs, true, operating_point="macro_f1", target_precision=0.9)
    found = evaluate(classifier, reviews, split_name=TEST, policy=fit.policy)
    metrics = found.metrics
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics
    assert metrics["operating_point"] == "macro_f1"
    assert list(metrics["operating_points"]) == ["argmax", "macro_f1", "balanced"]
    assert metrics["operating_points"]["macro_f1"]["metrics"]["macro_f1"] == metrics["macro_f1"]
    assert metrics["operating_points"]["argmax"]["metrics"]["macro_f1"] < metrics["macro_f1"]
    assert metrics["calibration"]["method"] != "none"
    assert metrics["calibration"]["after"]["nll"] < metrics["calibration"]["before"]["nll"]
    assert sum(b["n"] for b in metrics["calibration"]["after"]["reliability"]) == 300
    assert metrics["abstention"]["n_abstained"] == found.predictions["abstained"].sum() > 0
    assert metrics["conformal"]["level"] == 0.9
    assert set(metrics["conformal"]["coverage_per_label"]) == set(LABELS)
    answered = found.predictions.filter(~pl.col("abstained"))
    assert answered["score"].min() >= fit.policy.min_confidence
    assert metrics["abstention"]["precision"] == pytest.approx((answered["label"] == answered["true_label"]).mean())


def test_a_plain_classifier_has_its_calibration_judged_too():
    reviews, classifier, _ = many()
    metrics = evaluate(classifier, reviews, split_name=TEST).metrics
    assert metrics["calibration"]["method"] == "none"
    assert metrics["calibration"]["before"]["ece"] == metrics["calibration"]["after"]["ece"]
    assert (metrics["abstention"], metrics["conformal"]) == (None, None)
    assert list(metrics["operating_points"]) == ["argmax"]
    assert metrics["risk_coverage"]["at"][0]["coverage"] == 1.0
    assert metrics["risk_coverage"]["at"][0]["accuracy"] == pytest.approx(metrics["accuracy"])
    assert metrics["macro_f1_ci"][0] < metrics["macro_f1"] < metrics["macro_f1_ci"][1]


def test_groups_give_intervals_by_group_and_slices():
    reviews, classifier, _ = many(groups=True)
    more = {"half": ["first"] * 150 + ["second"] * 150}
    metrics = evaluate(classifier, reviews, split_name=TEST, slices=more).metrics
    assert metrics["interval"]["unit"] == "group"
    assert metrics["interval"]["units"] == 5
    assert [part["by"] for part in metrics["slices"]] == ["length", "truncated", "group", "half"]
    assert [s["n"] for s in metrics["slices"][2]["slices"]] == [60] * 5


def test_a_review_without_a_group_is_a_group_of_its_own():
    reviews = [Review(group="a"), Review(), Review(), Review(group="a")]
    assert group_indexes(reviews).tolist() == [0, 1, 2, 0]
    assert group_indexes([Review(), Review()]) is None


def test_baselines_are_tested_against():
    reviews, classifier, _ = many()
    metrics = evaluate(
        classifier, reviews, split_name=TEST, baselines=[Baseline("majority", "majority label", np.zeros(300, int))]
    ).metrics
    (pair,) = metrics["comparisons"]
    assert pair["verdict"].startswith("this classifier is better than majority label (+")
    assert metrics["baselines"]["majority"]["accuracy_ci"][0] > 0.4
