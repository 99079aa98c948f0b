import numpy as np
import pytest

from rxtone.data.reviews import Review
from rxtone.errors import DataError
from rxtone.evaluation.baselines import fit_baselines, unavailable_baselines

LABELS = ("positive", "neutral", "negative")


def test_linear_baselines_read_the_fields_and_the_text():
    words = {"positive": "wonderful relief", "neutral": "some change", "negative": "terrible rash"}
    train = [Review((("Benefits", words[x]), ("Comments", "taken daily")), label=x) for x in LABELS for _ in range(4)]
    held_out = [Review((("Benefits", "terrible terrible"), ("Comments", "wonderful")), row=1)]
    majority, fields, text = fit_baselines([*train, Review((), "x", "neutral")], held_out, LABELS)
    assert [b.name for b in (majority, fields, text)] == ["majority", "tfidf_fields", "tfidf_text"]
    assert majority.predicted.tolist() == [1]
    # "wonderful" was never said in the comments: only the model that keeps fields apart ignores it there
    assert fields.predicted.tolist() == [2]
    free = fit_baselines([Review((), words[x], x) for x in LABELS], [Review((), "some rash change")], LABELS)
    assert free[1].predicted.tolist() == free[2].predicted.tolist() == [1]


def test_same_reviews_give_the_same_predictions():
    rng = np.random.default_rng(0)
    train = [Review((), " ".join(rng.choice(list("abcdefgh"), 5).tolist()) + " word", LABELS[i % 3]) for i in range(60)]
    first, again = fit_baselines(train, train, LABELS), fit_baselines(train, train, LABELS)
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.predicted, two.predicted)


@pytest.mark.parametrize("text", ["", "a b c"])
def test_texts_without_words_fall_back_to_the_majority(text):
    train = [Review((), text, label) for label in ("neutral", "neutral", "positive")]
    assert [b.predicted.tolist() for b in fit_baselines(train, train[:1], LABELS)] == [[1], [1], [1]]


def test_one_label_only_is_always_predicted():
    train = [Review((), "some words", "negative")] * 3
    assert [b.predicted.tolist() for b in fit_baselines(train, train[:1], LABELS)] == [[2], [2], [2]]


def test_unlabelled_training_reviews_are_refused():
    with pytest.raises(DataError, match=r"1 of 2 have none, the first in row 7"):
        fit_baselines([Review((), "a", "positive"), Review((), "b", row=7)], [], LABELS)


def test_unavailable_baselines_say_why():
    assert [b.unavailable for b in unavailable_baselines("no training table")] == ["no training table"] * 3
    assert all(b.predicted is None for b in unavailable_baselines("x"))
