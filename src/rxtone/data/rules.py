"""The label rule: which values of the label column make which label."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rxtone.data.faults import quote
from rxtone.errors import DataError, RecipeError

_NUMBER = r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
_IS_NUMBER = re.compile(_NUMBER)
_COMPARISON = re.compile(rf"(>=|<=|==|>|<)\s*({_NUMBER})")
_RANGE = re.compile(rf"({_NUMBER})\s*\.\.\s*({_NUMBER})")
_GRAMMAR = 'a comparison (">=7", "<5", "==3"), a range ("5..6"), a value, or a list of these'


@dataclass(frozen=True)
class _Interval:
    low: float
    high: float
    low_open: bool = False
    high_open: bool = False

    def holds(self, value: float) -> bool:
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open else value <= self.high
        return above and below

    def meets(self, other: "_Interval") -> bool:
        low = max((self.low, self.low_open), (other.low, other.low_open))
        high = min((self.high, not self.high_open), (other.high, not other.high_open))
        return low[0] < high[0] or (low[0] == high[0] and not low[1] and high[1])


@dataclass(frozen=True)
class LabelRule:
    """A parsed label rule; ``parse_rule`` makes it.

    Attributes:
        labels: The label words in the order of the recipe.
        conditions: For each label its conditions as text, as ``parse_rule`` accepts them.
        numeric: Whether values are compared as numbers ("7.0" is 7) and not as text.
    """

    labels: tuple[str, ...]
    conditions: tuple[tuple[str, ...], ...]
    numeric: bool

    def to_dict(self) -> dict[str, list[str]]:
        """Return the rule as plain data; ``parse_rule`` of it gives an equal rule."""
        return {
            label: list(conditions) for label, conditions in zip(self.labels, self.conditions, strict=True)
        }

    def find(self, value: str) -> str | None:
        """Return the label of a value, or None where no condition covers it.

        Args:
            value: A cell of the label column.

        Returns:
            The label, or None.
        """
        text = value.strip()
        if not self.numeric:
            return next(
                (lab for lab, own in zip(self.labels, self.conditions, strict=True) if text in own), None
            )
        number = parse_number(text)
        if number is None:
            return None
        for label, own in zip(self.labels, self.conditions, strict=True):
            if any(_interval(condition).holds(number) for condition in own):
                return label
        return None

    def label_of(self, value: str) -> str:
        """Return the label of a value.

        Args:
            value: A cell of the label column.

        Returns:
            The label.

        Raises:
            DataError: The value is not a number where the rule compares numbers, or no condition covers it.
        """
        label = self.find(value)
        if label is not None:
            return label
        if self.numeric and parse_number(value.strip()) is None:
            raise DataError(f"expected a number in the label column, found {quote(value)}.")
        raise DataError(f"no rule covers the label value {quote(value)}; the rules are {self.describe()}.")

    def describe(self) -> str:
        """Return the rule on one line, for messages."""
        pairs = zip(self.labels, self.conditions, strict=True)
        return ", ".join(f"{label}: {' | '.join(own)}" for label, own in pairs)


def parse_number(text: str) -> float | None:
    """Read a finite decimal number; "nan", "inf", "1_0", "7 stars" and "" are none.

    Args:
        text: A cell, already stripped.

    Returns:
        The number, or None where the text is none.
    """
    if _IS_NUMBER.fullmatch(text) is None:
        return None
    number = float(text)
    return number if math.isfinite(number) else None


def parse_rule(rule: Mapping[str, object]) -> LabelRule:
    """Parse the label rule of a recipe.

    A rule with any comparison or range compares numbers: conditions of different labels must not overlap,
    and no whole number between the lowest and the highest covered value may be left out. A rule of plain
    values compares numbers where all of them are numbers, else text.

    Args:
        rule: Label -> condition or list of conditions; the order is kept.

    Returns:
        The rule.

    Raises:
        RecipeError: With all faults of the rule in one message.
    """
    problems: list[str] = []
    labels = tuple(str(label).strip() for label in rule)
    if len(labels) < 2:
        problems.append(f"expected at least two labels, found {len(labels)}")
    if any(not label for label in labels):
        problems.append("a label is empty; name it by the word that the model is asked for")
    problems += [
        f'the label "{x}" is given twice' for x in dict.fromkeys(labels) if x and labels.count(x) > 1
    ]
    parsed = [_conditions(label, given, problems) for label, given in zip(labels, rule.values(), strict=True)]
    flat = [condition for own in parsed for condition in own]
    bounded = any(_COMPARISON.fullmatch(text) or _RANGE.fullmatch(text) for text in flat)
    numeric = bool(flat) and (bounded or all(parse_number(text) is not None for text in flat))
    if not problems:
        if numeric:
            problems += _numeric_problems(labels, parsed, bounded)
        else:
            problems += _text_problems(labels, parsed)
    if problems:
        listed = "\n".join(f"  {problem}" for problem in problems)
        raise RecipeError(f"data.label.rule: expected for each label {_GRAMMAR}; found:\n{listed}")
    return LabelRule(labels, tuple(parsed), numeric)


def _conditions(label: str, given: object, problems: list[str]) -> tuple[str, ...]:
    items = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    if not items:
        problems.append(f'"{label}" has no condition')
    texts: list[str] = []
    for item in items:
        if isinstance(item, bool):
            problems.append(
                f'"{label}": YAML reads yes, no, on, off, true and false as {item}; put it in quotes'
            )
        elif isinstance(item, float) and not math.isfinite(item):
            problems.append(f'"{label}": {item} is no value; put it in quotes if the table has this word')
        elif not isinstance(item, (str, int, float)):
            problems.append(f'"{label}": {item!r} is none of these')
        elif not str(item).strip():
            problems.append(f'"{label}": a condition is empty')
        else:
            texts.append(str(item).strip())
    return tuple(texts)


def _interval(condition: str) -> _Interval:
    """Turn one condition into the numbers it covers; ValueError where it is no condition on numbers."""
    if match := _RANGE.fullmatch(condition):
        low, high = parse_number(match[1]), parse_number(match[2])
        if low is None or high is None:
            raise ValueError(condition)
        return _Interval(low, high)
    match = _COMPARISON.fullmatch(condition)
    sign, number = (match[1], parse_number(match[2])) if match else ("==", parse_number(condition))
    if number is None:
        raise ValueError(condition)
    if sign == "==":
        return _Interval(number, number)
    if sign.startswith(">"):
        return _Interval(number, math.inf, low_open=sign == ">")
    return _Interval(-math.inf, number, high_open=sign == "<")


def _numeric_problems(labels: tuple[str, ...], parsed: list[tuple[str, ...]], bounded: bool) -> list[str]:
    problems: list[str] = []
    intervals: list[tuple[str, str, _Interval]] = []
    for label, own in zip(labels, parsed, strict=True):
        for condition in own:
            try:
                interval = _interval(condition)
            except ValueError:
                problems.append(
                    f'"{label}": "{condition}" is no condition on numbers, and other labels have some'
                )
                continue
            if interval.low > interval.high:
                problems.append(f'"{label}": "{condition}" ends below its start')
            else:
                intervals.append((label, condition, interval))
    for index, (label, condition, interval) in enumerate(intervals):
        for other, other_condition, other_interval in intervals[index + 1 :]:
            if other != label and interval.meets(other_interval):
                problems.append(f'"{label}: {condition}" and "{other}: {other_condition}" overlap')
    if bounded and not problems:
        gaps = _gaps([interval for _, _, interval in intervals])
        problems += [f"no label covers {gap}" for gap in gaps]
    return problems


def _gaps(intervals: list[_Interval]) -> list[str]:
    """Name the whole numbers that lie between two covered values and are not covered."""
    gaps: list[str] = []
    ordered = sorted(intervals, key=lambda interval: (interval.low, interval.low_open))
    reach = ordered[0]
    for following in ordered[1:]:
        if math.isfinite(reach.high) and math.isfinite(following.low):
            first = math.ceil(reach.high) if reach.high_open else math.floor(reach.high) + 1
            last = math.floor(following.low) if following.low_open else math.ceil(following.low) - 1
            if first <= last:
                gaps.append(f"{first}" if first == last else f"{first}..{last}")
        if (following.high, not following.high_open) > (reach.high, not reach.high_open):
            reach = following
    return gaps


def _text_problems(labels: tuple[str, ...], parsed: list[tuple[str, ...]]) -> list[str]:
    owner: dict[str, str] = {}
    pairs = [(label, value) for label, own in zip(labels, parsed, strict=True) for value in own]
    return [
        f'the value "{value}" belongs to "{owner[value]}" and "{label}"'
        for label, value in pairs
        if owner.setdefault(value, label) != label
    ]
