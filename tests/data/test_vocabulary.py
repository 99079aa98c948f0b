import pytest

from rxtone.data.vocabulary import vocabulary_drift, words_of


def test_words_are_runs_of_letters() -> None:
    assert words_of("It's 20mg/day: NAÏVE_x") == ["it", "s", "mg", "day", "naïve", "x"]


def test_disjoint_words_are_one_bit_apart() -> None:
    drift = vocabulary_drift(("train", ["a b", "a b", "a b"] * 5), ("test", ["c d", "c d", "c d"] * 5))
    assert drift.divergence == pytest.approx(1)
    assert drift.divergence_by_chance < 0.2
    assert drift.p_value == pytest.approx(1 / 51)
    assert drift.unseen_share == 1
    assert set(drift.more_often) == {"c", "d"}
    assert set(drift.less_often) == {"a", "b"}


def test_equal_words_do_not_drift() -> None:
    drift = vocabulary_drift(("train", ["a b c"] * 8), ("test", ["c b a"] * 4))
    assert (drift.divergence, drift.p_value, drift.unseen_share) == (0, 1, 0)
    assert drift.more_often == drift.less_often == {}


def test_a_known_divergence() -> None:
    # p = (3/4, 1/4), q = (1/4, 3/4): 1 - H(3/4, 1/4) = 0.188722 bits.
    drift = vocabulary_drift(("train", ["a a a b"]), ("test", ["a b b b"]))
    assert drift.divergence == pytest.approx(0.188722)


def test_texts_without_words_do_not_drift() -> None:
    assert vocabulary_drift(("train", ["1", ""]), ("test", ["..."])).divergence == 0
    assert vocabulary_drift(("train", ["a"]), ("test", [""])).unseen_share == 0


def test_the_shuffles_are_seeded() -> None:
    parts = ("train", ["a b", "b c", "c d"]), ("test", ["a d", "d e"])
    assert vocabulary_drift(*parts, seed=3) == vocabulary_drift(*parts, seed=3)
