import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rxtone.data.rules import LabelRule, parse_rule
from rxtone.errors import DataError, RecipeError

DRUGLIB = {"positive": ">=7", "neutral": "5..6", "negative": "<=4"}


def test_the_druglib_rule_labels_every_rating() -> None:
    rule = parse_rule(DRUGLIB)
    assert rule.labels == ("positive", "neutral", "negative")
    found = [rule.label_of(str(rating)) for rating in range(1, 11)]
    assert found == ["negative"] * 4 + ["neutral"] * 2 + ["positive"] * 4


@pytest.mark.parametrize("value", ["7", "7.0", " 7 ", "+7", "7e0"])
def test_equal_numbers_have_the_same_label(value: str) -> None:
    assert parse_rule(DRUGLIB).label_of(value) == "positive"


@pytest.mark.parametrize("value", ["", "nan", "inf", "seven", "11 stars", "None"])
def test_what_is_no_number_has_no_label(value: str) -> None:
    with pytest.raises(DataError, match=re.escape(f"expected a number in the label column, found {value!r}")):
        parse_rule(DRUGLIB).label_of(value)


def test_a_number_between_the_rules_has_no_label() -> None:
    with pytest.raises(DataError, match=r"found '4\.5'; extend data\.label\.rule"):
        parse_rule(DRUGLIB).label_of("4.5")


def test_plain_values_may_be_numbers_words_or_lists() -> None:
    rule = parse_rule({"good": [4, 5], "bad": [1.0, "2"]})
    assert [rule.label_of(value) for value in ("5.0", "4", "1", "2.0")] == ["good", "good", "bad", "bad"]
    words = parse_rule({"yes": ["Yes", "Y"], "no": "None"})
    assert [words.label_of(value) for value in (" Yes ", "Y", "None")] == ["yes", "yes", "no"]
    with pytest.raises(DataError, match="found 'yes'"):
        words.label_of("yes")


def test_a_list_may_mix_comparisons_and_values() -> None:
    rule = parse_rule({"extreme": ["<=2", 5], "middle": [3, "==4"]})
    assert [rule.label_of(str(x)) for x in (1, 2, 3, 4, 5)] == ["extreme"] * 2 + ["middle"] * 2 + ["extreme"]


def test_plain_values_may_leave_numbers_out() -> None:
    # Sentiment140 codes negative as 0 and positive as 4.
    assert parse_rule({"negative": 0, "positive": 4}).labels == ("negative", "positive")


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"a": ">=7", "b": "<=7"}, '"a: >=7" and "b: <=7" overlap'),
        ({"a": ">6", "b": "<7"}, '"a: >6" and "b: <7" overlap'),
        ({"a": ">=7", "b": "<=4"}, "no label covers 5..6"),
        ({"a": ">=7", "b": "<=4", "c": 5}, "no label covers 6"),
        ({"a": ">6", "b": "<6"}, "no label covers 6"),
        ({"a": "6..5", "b": "<5"}, '"a": "6..5" ends below its start'),
        ({"a": ">=7", "b": "bad"}, '"b": "bad" is no condition on numbers'),
        ({"a": "x", "b": ["y", "x"]}, 'the value "x" belongs to "a" and "b"'),
        ({"a": ">=7"}, "1 labels; expected at least two"),
        ({}, "0 labels; expected at least two"),
        ({"a": ">=7", " a ": "<7"}, 'the label "a" is given twice'),
        ({"": ">=7", "b": "<7"}, "a label is empty"),
        ({"a\nb": ">=7", "b": "<7"}, "is no printable word"),
        ({"a": True, "b": False}, "YAML reads yes, no, on, off, true and false as True"),
        ({"a": None, "b": 1}, '"a": None is none of these'),
        ({"a": [], "b": 1}, '"a" has no condition'),
        ({"a": float("nan"), "b": 1}, '"a": nan is no number to compare with'),
        ({"a": " ", "b": 1}, '"a": a condition is empty'),
        ({"a": {"x": 1}, "b": 1}, "\"a\": {'x': 1} is none of these"),
    ],
)
def test_bad_rules_are_refused(rule: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)) as caught:
        parse_rule(rule)
    assert caught.value.exit_code == 2
    assert str(caught.value).startswith("data.label.rule: expected for each label ")


def test_all_faults_of_a_rule_are_told_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        parse_rule({"a": None, "b": [], "": ">=3"})
    assert str(caught.value).count("\n") == 3


scalars = st.one_of(st.none(), st.booleans(), st.integers(-99, 99), st.floats(), st.text(max_size=6))
conditions = st.one_of(
    scalars,
    st.lists(scalars, max_size=3),
    st.builds("{}{}".format, st.sampled_from([">=", "<=", ">", "<", "=="]), st.integers(-9, 9)),
    st.builds("{}..{}".format, st.integers(-9, 9), st.integers(-9, 9)),
)


@given(st.dictionaries(st.text(max_size=5), conditions, max_size=4))
def test_any_rule_is_parsed_or_refused_and_survives_a_round_trip(raw: dict[str, object]) -> None:
    try:
        rule = parse_rule(raw)
    except RecipeError:
        return
    assert parse_rule(rule.to_dict()) == rule
    assert all(rule.find(own) in (label, None) for label in rule.labels for own in rule.to_dict()[label])


@given(st.integers(-8, 8), st.integers(0, 5), st.floats(-20, 20))
def test_a_rule_without_overlap_gives_at_most_one_label(low: int, width: int, value: float) -> None:
    rule = parse_rule({"a": f"<{low}", "b": f"{low}..{low + width}", "c": f">{low + width}"})
    expected = "a" if value < low else "c" if value > low + width else "b"
    assert rule.label_of(repr(value)) == expected


def test_a_rule_is_a_value() -> None:
    assert isinstance(hash(parse_rule(DRUGLIB)), int)
    assert parse_rule(DRUGLIB) == parse_rule(dict(DRUGLIB))
    assert isinstance(parse_rule(DRUGLIB), LabelRule)
