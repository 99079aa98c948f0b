"""What other label rules would make of the same ratings."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from sklearn.metrics import f1_score

from rxtone.data.intervals import Interval
from rxtone.data.rules import LabelRule, parse_rule


@dataclass(frozen=True)
class RuleVariant:
    """The label shares under one rule.

    Attributes:
        name: What differs from the rule of the recipe.
        rule: Label -> conditions.
        counts: Label -> rows.
        uncovered: Rows whose value no condition covers.
        changed_share: Share of the covered rows whose label differs from the recipe's.
        accuracy: Accuracy of the out-of-fold predictions against these labels; None without predictions.
        macro_f1: Their macro-F1; None without predictions.
    """

    name: str
    rule: dict[str, list[str]]
    counts: dict[str, int]
    uncovered: int
    changed_share: float
    accuracy: float | None
    macro_f1: float | None


def shifted_rules(rule: LabelRule) -> dict[str, LabelRule]:
    """Move each boundary between two labels by one.

    Only for rules that cut the whole numbers into one run for each label; other rules have no variants.

    Args:
        rule: The rule of the recipe.

    Returns:
        What was moved -> the other rule.
    """
    if rule.intervals is None or any(len(own) != 1 for own in rule.intervals):
        return {}
    runs = zip(rule.labels, (own[0] for own in rule.intervals), strict=True)
    ordered = sorted(runs, key=lambda run: run[1].low)
    starts = [_first(interval) for _, interval in ordered]
    stop = ordered[-1][1].high
    variants: dict[str, LabelRule] = {}
    for place in range(1, len(starts)):
        for step in (-1, 1):
            moved = [*starts[:place], starts[place] + step, *starts[place + 1 :], stop + 1]
            if any(low >= high for low, high in pairwise(moved)):
                continue  # a label would have no number left
            bounds = zip((label for label, _ in ordered), pairwise(moved), strict=True)
            conditions = {label: _condition(low, high - 1) for label, (low, high) in bounds}
            name = f"{ordered[place][0]} from {moved[place]:g} instead of {starts[place]:g}"
            variants[name] = parse_rule({label: conditions[label] for label in rule.labels})
    return variants


def _first(interval: Interval) -> float:
    """Return the first whole number of an interval."""
    if math.isinf(interval.low):
        return interval.low
    return math.floor(interval.low) + 1 if interval.low_open else math.ceil(interval.low)


def _condition(low: float, high: float) -> str:
    if math.isinf(low):
        return f"<={high:g}"
    return f">={low:g}" if math.isinf(high) else f"{low:g}..{high:g}"


def rule_variant(
    name: str,
    rule: LabelRule,
    values: Sequence[str],
    given: Sequence[str | None],
    probabilities: npt.NDArray[np.float64] | None,
    labels: Sequence[str],
) -> RuleVariant:
    """Apply another rule to the values of the label column.

    Args:
        name: What differs from the rule of the recipe.
        rule: The other rule.
        values: The label column (n,).
        given: The labels by the rule of the recipe (n,).
        probabilities: Out-of-fold probabilities (n, labels) under the rule of the recipe, or None.
        labels: The label words, in the order of the probabilities.

    Returns:
        Shares and, with predictions, their scores against the other labels.
    """
    found = [rule.find(value) for value in values]
    covered = [index for index, label in enumerate(found) if label is not None]
    changed = sum(found[index] != given[index] for index in covered)
    accuracy = macro_f1 = None
    if probabilities is not None and covered and set(rule.labels) == set(labels):
        predicted = [labels[code] for code in probabilities[covered].argmax(axis=1)]
        truth = [str(found[index]) for index in covered]
        accuracy = round(float(np.mean([p == t for p, t in zip(predicted, truth, strict=True)])), 6)
        macro_f1 = round(float(f1_score(truth, predicted, labels=list(labels), average="macro", zero_division=0)), 6)
    return RuleVariant(
        name=name,
        rule=rule.to_dict(),
        counts={label: found.count(label) for label in rule.labels},
        uncovered=len(found) - len(covered),
        changed_share=round(changed / max(1, len(covered)), 6),
        accuracy=accuracy,
        macro_f1=macro_f1,
    )
