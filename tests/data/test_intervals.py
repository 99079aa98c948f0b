import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rxtone.data.intervals import Interval, integer_gaps, is_bounded, parse_interval, parse_number

numbers = st.integers(-6, 6).map(float)


@st.composite
def intervals(draw: st.DrawFn) -> Interval:
    low, high = sorted((draw(numbers), draw(numbers)))
    low = draw(st.sampled_from([low, -math.inf]))
    high = draw(st.sampled_from([high, math.inf]))
    if low == high:
        return Interval(low, high)
    return Interval(low, high, draw(st.booleans()) and math.isfinite(low), draw(st.booleans()) and math.isfinite(high))


@pytest.mark.parametrize(
    ("text", "number"),
    [("7", 7), ("7.0", 7), ("-1.5", -1.5), (".5", 0.5), ("+3", 3), ("1e2", 100)],
)
def test_numbers_are_read(text: str, number: float) -> None:
    assert parse_number(text) == number


@pytest.mark.parametrize(
    "text", ["", "nan", "inf", "-inf", "1_0", "7 stars", "7,5", "٧", "1e999", "0x7", "7.", "--1", "None"]
)
def test_what_is_no_finite_decimal_number_is_none(text: str) -> None:
    assert parse_number(text) is None


@pytest.mark.parametrize(
    ("condition", "interval"),
    [
        (">=7", Interval(7, math.inf)),
        (">6", Interval(6, math.inf, low_open=True)),
        ("<= 4", Interval(-math.inf, 4)),
        ("<5", Interval(-math.inf, 5, high_open=True)),
        ("5..6", Interval(5, 6)),
        ("-3 .. -1.5", Interval(-3, -1.5)),
        ("==3", Interval(3, 3)),
        ("3", Interval(3, 3)),
    ],
)
def test_conditions_are_read(condition: str, interval: Interval) -> None:
    assert parse_interval(condition) == interval
    assert is_bounded(condition) is (condition != "3")


@pytest.mark.parametrize("condition", ["good", "=>7", "7..", "..7", "5...6", ">=", ">=seven", "1..1e999"])
def test_other_text_is_no_condition(condition: str) -> None:
    assert parse_interval(condition) is None


@given(intervals(), intervals())
def test_intervals_meet_exactly_where_they_share_a_number(first: Interval, second: Interval) -> None:
    # All bounds are whole numbers in -6..6, so a grid of step 1/2 that reaches beyond them decides.
    shared = any(first.holds(x / 2) and second.holds(x / 2) for x in range(-30, 31))
    assert first.meets(second) is shared
    assert second.meets(first) is shared


@given(st.lists(intervals(), min_size=1, max_size=5))
def test_gaps_are_the_whole_numbers_that_nothing_covers(given_intervals: list[Interval]) -> None:
    covered = [x for x in range(-20, 21) if any(i.holds(x) for i in given_intervals)]
    # Bounds are at most 6 in size: beyond 10 nothing new begins, and a covered half-number counts as an end.
    grid = [x / 2 for x in range(-40, 41) if any(i.holds(x / 2) for i in given_intervals)]
    expected = [x for x in range(-20, 21) if min(grid) <= x <= max(grid) and x not in covered] if grid else []
    named = []
    for gap in integer_gaps(given_intervals):
        low, _, high = gap.partition("..")
        named += list(range(int(low), int(high or low) + 1))
    assert named == expected
