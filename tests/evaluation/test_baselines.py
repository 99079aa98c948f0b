import numpy as np
import pytest

from rxtone.data.reviews import Review
from rxtone.errors import DataError
from rxtone.evaluation.baselines import cross_fitted, fit_baselines, unavailable_baselines

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


@pytest.mark.parametrize("fields", [(), (("Review", "some rash change"),)])
def test_one_field_is_the_whole_text_and_has_one_linear_model(fields):
    words = {"positive": "wonderful relief", "neutral": "some change", "negative": "terrible rash"}
    train = [Review((("Review", words[x]),), label=x) if fields else Review((), words[x], x) for x in LABELS]
    asked = Review(fields) if fields else Review((), "some rash change")
    majority, linear = fit_baselines(train, [asked], LABELS)
    assert (majority.name, linear.name) == ("majority", "tfidf_text")
    assert linear.predicted.tolist() == [1]


def test_same_reviews_give_the_same_predictions():
    rng = np.random.default_rng(0)
    train = [Review((), " ".join(rng.choice(list("abcdefgh"), 5).tolist()) + " word", LABELS[i % 3]) for i in range(60)]
    first, again = fit_baselines(train, train, LABELS), fit_baselines(train, train, LABELS)
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.predicted, two.predicted)


@pytest.mark.parametrize("text", ["", "a b c"])
def test_texts_without_words_fall_back_to_the_majority(text):
    train = [Review((), text, label) for label in ("neutral", "neutral", "positive")]
    assert [b.predicted.tolist() for b in fit_baselines(train, train[:1], LABELS)] == [[1], [1]]


def test_one_label_only_is_always_predicted():
    train = [Review((), "some words", "negative")] * 3
    assert [b.predicted.tolist() for b in fit_baselines(train, train[:1], LABELS)] == [[2], [2]]


def test_unlabelled_training_reviews_are_refused():
    with pytest.raises(DataError, match=r"1 of 2 have none, the first in row 7"):
        fit_baselines([Review((), "a", "positive"), Review((), "b", row=7)], [], LABELS)


def test_unavailable_baselines_say_why():
    assert [b.unavailable for b in unavailable_baselines("no training table")] == ["no training table"] * 3
    assert all(b.predicted is None for b in unavailable_baselines("x"))


def test_cross_fitted_probabilities_come_from_models_that_have_not_seen_the_text():
    """The telling word of a review that nobody else has cannot tell anything."""
    words = {"positive": "great", "negative": "awful"}
    reviews = [Review(text=f"{words[label]} pill {i % 7}", label=label) for i in range(20) for label in words]
    odd = [Review(text="xylophone quagmire", label="negative")] * 3  # repeats stay in one part
    found = cross_fitted([*reviews, *odd], ["positive", "negative"])
    assert found is not None
    assert np.allclose(found.sum(axis=1), 1)
    right = [found[i, 0] > 0.5 for i in range(0, 40, 2)] + [found[i, 1] > 0.5 for i in range(1, 40, 2)]
    assert all(right)
    assert found[-1, 1] < 0.7
    assert (found[-3:] == found[-1]).all()
    assert cross_fitted(reviews[:8], ["positive", "negative"]) is None
