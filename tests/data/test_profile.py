import polars as pl
import pytest

from rxtone.data.profile import field_profiles, group_profile, length_profile
from rxtone.data.prompts import Prompt
from rxtone.data.reviews import Review


def labelled(labels: str) -> list[Review]:
    return [Review(text=f"text {i}", label=label, row=i + 1) for i, label in enumerate(labels)]


def test_fields_are_counted() -> None:
    frame = pl.DataFrame({"c": ["None", "none.", "n/a", " ", None, "one two three", ".", "None"]})
    [profile] = field_profiles(frame, {"Comments": "c"})
    assert (profile.field, profile.nulls, profile.blanks, profile.distinct) == ("Comments", 1, 1, 6)
    assert profile.placeholders == {"None": 2, "none.": 1, "n/a": 1, ".": 1}
    assert profile.placeholder_rows == 5
    assert (profile.words_p50, profile.words_max) == (1, 3)


def test_lengths_and_cuts_are_counted() -> None:
    whole = Prompt((1,) * 10, 10)
    cut = Prompt((1,) * 20, 35, {"A": 10, "B": 6})
    profile = length_profile([whole, whole, whole, cut])
    assert (profile.mean, profile.p50, profile.max) == (16.25, 10, 35)
    assert (profile.truncated_rows, profile.truncated_share) == (1, 0.25)
    assert profile.cut_rows == {"A": 1, "B": 1}
    assert profile.cut_tokens == {"A": 10, "B": 6}


def test_groups_are_counted() -> None:
    profile = group_profile(["x", "x", "y", "y", "z"], labelled("aabba"), "drug")
    assert (profile.groups, profile.singletons, profile.largest_share) == (3, 1, 1)
    assert profile.largest == {"x": {"a": 2}, "y": {"b": 2}, "z": {"a": 1}}


@pytest.mark.parametrize(
    ("values", "labels", "spread"),
    [
        ("xy" * 50, "ab" * 50, 1.0),
        ("xy" * 50, "aabb" * 25, 0.0),
        ("x" * 10, "ab" * 5, 0.0),
        # chi-square of the table ((30, 10), (10, 30)) is 20: phi = 0.25; corrected 0.25 - 1/79 over 1 - 1/79.
        ("x" * 40 + "y" * 40, "a" * 30 + "b" * 10 + "a" * 10 + "b" * 30, 0.490290),
    ],
)
def test_the_spread_of_labels_over_groups(values: str, labels: str, spread: float) -> None:
    assert group_profile(list(values), labelled(labels), "drug").label_spread == pytest.approx(spread, abs=1e-6)
