import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rxtone.data.reviews import Review, dedupe_key
from rxtone.data.splits import Split, drop_repeats, folds, make_split
from rxtone.errors import DataError, RecipeError


def reviews_of(labels: str, groups: str | None = None) -> list[Review]:
    return [
        Review(text=f"text {i}", label=label, group=groups[i] if groups else None, row=i + 1)
        for i, label in enumerate(labels)
    ]


def parts_of(split: Split) -> list[list[int]]:
    return [split.train.tolist(), split.validation.tolist(), split.test.tolist()]


random_reviews = st.lists(
    st.builds(
        lambda text, label, group: Review(text=text, label=label, group=group),
        st.integers(0, 40).map(lambda i: f"text {i}"),
        st.sampled_from("abc"),
        st.none() | st.sampled_from("uvwxyz"),
    ),
    min_size=1,
    max_size=60,
)


@given(random_reviews, st.integers(0, 9), st.sampled_from([0.0, 0.15, 0.3]), st.booleans())
def test_a_split_cuts_no_group_and_no_repeated_text(
    reviews: list[Review], seed: int, test_fraction: float, crossed: bool
) -> None:
    try:
        split = make_split(reviews, validation_fraction=0.2, test_fraction=test_fraction, seed=seed)
    except DataError:
        return
    parts = parts_of(split)
    assert sorted(index for part in parts for index in part) == list(range(len(reviews)))
    assert all(part == sorted(part) for part in parts)
    assert parts[0]
    assert parts[1]
    assert bool(parts[2]) is (test_fraction > 0)
    keys = [{dedupe_key(reviews[i]) for i in part} for part in parts]
    groups = [{reviews[i].group for i in part} - {None} for part in parts]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert not keys[first] & keys[second]
        assert not groups[first] & groups[second]
    assert {reviews[i].label for i in parts[0]} == {review.label for review in reviews}
    assert split.repeats == len(reviews) - len({dedupe_key(review) for review in reviews})
    again = make_split(reviews, validation_fraction=0.2, test_fraction=test_fraction, seed=seed)
    assert parts_of(again) == parts


@given(random_reviews, st.integers(2, 5), st.integers(0, 9))
def test_folds_hold_every_row_once_and_cut_nothing(reviews: list[Review], k: int, seed: int) -> None:
    try:
        held_out = folds(reviews, k, seed)
    except DataError:
        return
    assert len(held_out) == k
    assert sorted(np.concatenate(held_out).tolist()) == list(range(len(reviews)))
    keys = [{dedupe_key(reviews[i]) for i in part} for part in held_out]
    assert sum(map(len, keys)) == len(set().union(*keys))
    groups = [{reviews[i].group for i in part} - {None} for part in held_out]
    assert sum(map(len, groups)) == len(set().union(*groups))


@given(st.integers(5, 80), st.integers(5, 80), st.integers(0, 9))
def test_shares_are_kept_to_the_row_where_nothing_is_joined(n_a: int, n_b: int, seed: int) -> None:
    reviews = reviews_of("a" * n_a + "b" * n_b)
    split = make_split(reviews, validation_fraction=0.2, test_fraction=0.2, seed=seed)
    for part in (split.validation, split.test):
        for label, n in (("a", n_a), ("b", n_b)):
            assert abs(sum(reviews[i].label == label for i in part) - 0.2 * n) <= 1


def test_a_split_is_the_same_everywhere() -> None:
    # Pinned: a change of these rows changes every published figure.
    split = make_split(reviews_of("aaaaaaaabbbbcc"), validation_fraction=0.2, test_fraction=0.2, seed=42)
    assert parts_of(split) == [[0, 3, 5, 6, 7, 9, 11, 13], [2, 4, 10, 12], [1, 8]]
    other = make_split(reviews_of("aaaaaaaabbbbcc"), validation_fraction=0.2, test_fraction=0.2, seed=43)
    assert parts_of(other) != parts_of(split)


PRINT_A_SPLIT = """
from rxtone.data.reviews import Review
from rxtone.data.splits import make_split

groups = [str(i % 17) if i % 2 else None for i in range(60)]
reviews = [Review(text=f"{i % 40}", label="abc"[i % 3], group=group) for i, group in enumerate(groups)]
print(make_split(reviews, validation_fraction=0.2, test_fraction=0.2, seed=1))
"""


def test_a_split_does_not_depend_on_the_hash_seed() -> None:
    out = {
        subprocess.run(
            [sys.executable, "-c", PRINT_A_SPLIT],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(out) == 1


def test_few_rows_still_give_every_part_every_label() -> None:
    reviews = reviews_of("aaabbb")
    split = make_split(reviews, validation_fraction=0.15, test_fraction=0.15, seed=0)
    assert [Counter(reviews[i].label for i in part) for part in parts_of(split)] == [{"a": 1, "b": 1}] * 3


def test_large_groups_still_leave_a_validation_part() -> None:
    reviews = reviews_of("ab" * 15, "u" * 10 + "v" * 10 + "w" * 10)
    split = make_split(reviews, validation_fraction=0.1, test_fraction=0, seed=0)
    assert (split.train.size, split.validation.size, split.test.size) == (20, 10, 0)


@pytest.mark.parametrize(
    ("labels", "groups", "message"),
    [
        ("abab", "uuuu", "the validation part would be empty: the 4 rows form 1 blocks"),
        ("ab", None, 'the training part would have no row of "b"'),
    ],
)
def test_too_few_blocks_are_refused(labels: str, groups: str | None, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        make_split(reviews_of(labels, groups), validation_fraction=0.3, test_fraction=0, seed=0)


@pytest.mark.parametrize(("validation", "test"), [(0, 0.1), (1, 0), (0.5, 0.5), (0.2, -0.1), (float("nan"), 0)])
def test_fractions_that_leave_nothing_are_refused(validation: float, test: float) -> None:
    with pytest.raises(RecipeError, match=re.escape("expected 0 < validation, 0 <= test and a sum below 1")):
        make_split(reviews_of("abab"), validation_fraction=validation, test_fraction=test, seed=0)


def test_rows_without_label_are_refused() -> None:
    reviews = [*reviews_of("ab"), Review(text="x", row=3), Review(text="y", row=4)]
    with pytest.raises(DataError, match="found 2 rows without one, the first of them data row 3"):
        folds(reviews, 2, 0)


def test_more_folds_than_blocks_are_refused() -> None:
    with pytest.raises(DataError, match=r"5 folds need at least 5 blocks of rows .* found 4"):
        folds(reviews_of("aabb"), 5, 0)
    with pytest.raises(RecipeError, match="at least 2 folds, found 1"):
        folds(reviews_of("aabb"), 1, 0)


def test_test_rows_that_repeat_a_training_text_are_dropped() -> None:
    train = [Review(fields=(("A", "No side effects."), ("B", "Great!")))]
    test = [Review(text="no side effects great", row=1), Review(text="no effects", row=2)]
    assert drop_repeats(test, train) == ([test[1]], 1)
    assert drop_repeats([], train) == ([], 0)
    with pytest.raises(DataError, match="all 1 test rows repeat a training text"):
        drop_repeats(test[:1], train)


def test_druglib_shares_are_kept_even_by_drug(druglib_reviews: list[Review]) -> None:
    split = make_split(druglib_reviews, validation_fraction=0.15, test_fraction=0.15, seed=42)
    assert split.repeats == 31
    # 15% of 2,130 / 661 / 316 is 319.5 / 99.15 / 47.4.
    for part in (split.validation, split.test):
        counts = Counter(druglib_reviews[i].label for i in part)
        assert counts["positive"] in (319, 320)
        assert counts["negative"] in (99, 100)
        assert counts["neutral"] in (47, 48)
    sizes = [own.size for own in folds(druglib_reviews, 5, 42)]
    assert max(sizes) - min(sizes) <= 3
