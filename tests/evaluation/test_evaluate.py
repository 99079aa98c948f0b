import json
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import pytest

from rxtone.data.reviews import Review
from rxtone.errors import DataError, ModelError
from rxtone.evaluation.baselines import Baseline, unavailable_baselines
from rxtone.evaluation.evaluate import evaluate, evaluate_outputs

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
