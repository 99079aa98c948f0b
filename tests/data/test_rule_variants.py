import numpy as np
import pytest

from rxtone.data.reviews import Review
from rxtone.data.rule_variants import rule_variant, shifted_rules
from rxtone.data.rules import parse_rule

RULE = parse_rule({"positive": ">=7", "neutral": "5..6", "negative": "<=4"})


def test_each_boundary_moves_by_one() -> None:
    assert {name: rule.to_dict() for name, rule in shifted_rules(RULE).items()} == {
        "neutral from 4 instead of 5": {"positive": [">=7"], "neutral": ["4..6"], "negative": ["<=3"]},
        "neutral from 6 instead of 5": {"positive": [">=7"], "neutral": ["6..6"], "negative": ["<=5"]},
        "positive from 6 instead of 7": {"positive": [">=6"], "neutral": ["5..5"], "negative": ["<=4"]},
        "positive from 8 instead of 7": {"positive": [">=8"], "neutral": ["5..7"], "negative": ["<=4"]},
    }


def test_bounded_and_open_rules_move_too() -> None:
    moved = shifted_rules(parse_rule({"low": "1..2", "high": "3..4"}))
    assert [rule.to_dict() for rule in moved.values()] == [
        {"low": ["1..1"], "high": ["2..4"]},
        {"low": ["1..3"], "high": ["4..4"]},
    ]
    assert [rule.to_dict()["low"] for rule in shifted_rules(parse_rule({"low": "<=2", "high": ">2"})).values()] == [
        ["<=1"],
        ["<=3"],
    ]


def test_a_label_never_loses_its_last_number() -> None:
    moved = shifted_rules(parse_rule({"a": "<=4", "b": "5..5", "c": ">=6"}))
    assert list(moved) == ["b from 4 instead of 5", "c from 7 instead of 6"]


@pytest.mark.parametrize("rule", [{"a": "x", "b": "y"}, {"a": [1, 2], "b": [3]}])
def test_other_rules_have_no_variants(rule: dict[str, object]) -> None:
    assert shifted_rules(parse_rule(rule)) == {}


def test_shares_and_scores_under_another_rule() -> None:
    values = ["9", "7", "5", "2", "none"]
    given = ["positive", "positive", "neutral", "negative", None]
    predicted = np.eye(3)[[0, 1, 1, 2, 0]]
    other = parse_rule({"positive": ">=8", "neutral": "5..7", "negative": "<=4"})
    variant = rule_variant("positive from 8", other, values, given, predicted, RULE.labels)
    assert variant.counts == {"positive": 1, "neutral": 2, "negative": 1}
    assert (variant.uncovered, variant.changed_share) == (1, 0.25)
    assert (variant.accuracy, variant.macro_f1) == (1, 1)
    same = rule_variant("as it is", RULE, values, given, predicted, RULE.labels)
    # positive: P 1, R 1/2; neutral: P 1/2, R 1; negative 1: F1 2/3, 2/3, 1.
    assert (same.changed_share, same.accuracy, same.macro_f1) == (0, 0.75, 0.777778)
    assert rule_variant("no model", RULE, values, given, None, RULE.labels).accuracy is None


def test_druglib_shares_under_shifted_rules(druglib_reviews: list[Review], druglib_table) -> None:
    values = druglib_table.frame["rating"].to_list()
    given = [review.label for review in druglib_reviews]
    changed = {
        name: rule_variant(name, rule, values, given, None, RULE.labels).changed_share
        for name, rule in shifted_rules(RULE).items()
    }
    # Ratings 4, 5, 6 and 7 occur 107, 159, 157 and 350 times among 3,107.
    assert list(changed.values()) == [round(n / 3107, 6) for n in (107, 159, 157, 350)]
