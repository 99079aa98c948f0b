"""The label rule: which values of the label column make which label."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rxtone.data.faults import quote
from rxtone.data.intervals import Interval, integer_gaps, is_bounded, parse_interval, parse_number
from rxtone.errors import DataError, RecipeError

_GRAMMAR = 'a comparison (">=7", "<5", "==3"), a range ("5..6"), a value, or a list of these'


@dataclass(frozen=True)
class LabelRule:
    """A parsed label rule; ``parse_rule`` makes it.

    Attributes:
        labels: The label words in the order of the recipe.
        conditions: For each label its conditions as text, as ``parse_rule`` accepts them.
        intervals: For each label its conditions as intervals where the rule compares numbers ("7.0" is 7);
            None where it compares text.
    """

    labels: tuple[str, ...]
    conditions: tuple[tuple[str, ...], ...]
    intervals: tuple[tuple[Interval, ...], ...] | None

    def to_dict(self) -> dict[str, list[str]]:
        """Return the rule as plain data; ``parse_rule`` of it gives an equal rule."""
        return {label: list(own) for label, own in zip(self.labels, self.conditions, strict=True)}

    @property
    def numeric(self) -> bool:
        """Whether the rule compares numbers."""
        return self.intervals is not None

    def find(self, value: str) -> str | None:
        """Return the label of a value, or None where no condition covers it.

        Args:
            value: A cell of the label column.

        Returns:
            The label, or None.
        """
        text = value.strip()
        if self.intervals is None:
            return next((label for label, own in zip(self.labels, self.conditions, strict=True) if text in own), None)
        number = parse_number(text)
        if number is None:
            return None
        for label, intervals in zip(self.labels, self.intervals, strict=True):
            if any(interval.holds(number) for interval in intervals):
                return label
        return None

    def wants_number(self, value: str) -> bool:
        """Tell whether the rule compares numbers and the value is none.

        Args:
            value: A cell of the label column.

        Returns:
            Whether the value is of the wrong kind, and not only out of every range.
        """
        return self.intervals is not None and parse_number(value.strip()) is None

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
        if self.wants_number(value):
            raise DataError(f"expected a number in the label column, found {quote(value)}; correct the value.")
        raise DataError(
            f"expected a label value that a rule covers ({self.describe()}), found {quote(value)}; "
            "extend data.label.rule in the recipe, or correct the value."
        )

    def describe(self) -> str:
        """Return the rule on one line, for messages."""
        pairs = zip(self.labels, self.conditions, strict=True)
        return ", ".join(f"{label}: {' | '.join(own)}" for label, own in pairs)


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
    _check_labels(labels, problems)
    parsed = tuple(_conditions(label, given, problems) for label, given in zip(labels, rule.values(), strict=True))
    flat = [condition for own in parsed for condition in own]
    bounded = any(map(is_bounded, flat))
    intervals = None
    if bounded or (flat and all(parse_number(condition) is not None for condition in flat)):
        intervals = tuple(_intervals(label, own, problems) for label, own in zip(labels, parsed, strict=True))
        _check_overlaps(labels, parsed, intervals, problems)
        if bounded and not problems:
            gaps = integer_gaps([interval for own in intervals for interval in own])
            problems += [f"no label covers {gap}" for gap in gaps]
    else:
        _check_repeated_values(labels, parsed, problems)
    if problems:
        listed = "\n".join(f"  {problem}" for problem in problems)
        raise RecipeError(f"data.label.rule: expected for each label {_GRAMMAR}; found:\n{listed}")
    return LabelRule(labels, parsed, intervals)


def _check_labels(labels: tuple[str, ...], problems: list[str]) -> None:
    if len(labels) < 2:
        problems.append(f"{len(labels)} labels; expected at least two")
    if not all(labels):
        problems.append("a label is empty; name it by the word that the model is asked for")
    repeated = dict.fromkeys(label for label in labels if label and labels.count(label) > 1)
    problems += [f'the label "{label}" is given twice' for label in repeated]
    problems += [f"the label {label!r} is no printable word" for label in labels if not label.isprintable()]


def _conditions(label: str, given: object, problems: list[str]) -> tuple[str, ...]:
    items = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    if not items:
        problems.append(f'"{label}" has no condition')
    texts: list[str] = []
    for item in items:
        if isinstance(item, bool):
            problems.append(f'"{label}": YAML reads yes, no, on, off, true and false as {item}; put it in quotes')
        elif isinstance(item, float) and not math.isfinite(item):
            problems.append(f'"{label}": {item} is no number to compare with; put it in quotes if it is a word')
        elif not isinstance(item, (str, int, float)):
            problems.append(f'"{label}": {item!r} is none of these')
        elif not str(item).strip():
            problems.append(f'"{label}": a condition is empty')
        else:
            texts.append(str(item).strip())
    return tuple(texts)


def _intervals(label: str, conditions: tuple[str, ...], problems: list[str]) -> tuple[Interval, ...]:
    intervals: list[Interval] = []
    for condition in conditions:
        interval = parse_interval(condition)
        if interval is None:
            problems.append(f'"{label}": "{condition}" is no condition on numbers, but other conditions are')
        elif interval.low > interval.high:
            problems.append(f'"{label}": "{condition}" ends below its start')
        else:
            intervals.append(interval)
    return tuple(intervals)


def _check_overlaps(
    labels: tuple[str, ...],
    parsed: tuple[tuple[str, ...], ...],
    intervals: tuple[tuple[Interval, ...], ...],
    problems: list[str],
) -> None:
    if problems:  # conditions and intervals pair up only where every condition is sound
        return
    sound = [
        (label, condition, interval)
        for label, own, spans in zip(labels, parsed, intervals, strict=True)
        for condition, interval in zip(own, spans, strict=True)
    ]
    for index, (label, condition, interval) in enumerate(sound):
        problems += [
            f'"{label}: {condition}" and "{other}: {other_condition}" overlap'
            for other, other_condition, other_interval in sound[index + 1 :]
            if other != label and interval.meets(other_interval)
        ]


def _check_repeated_values(labels: tuple[str, ...], parsed: tuple[tuple[str, ...], ...], problems: list[str]) -> None:
    owner: dict[str, str] = {}
    problems += [
        f'the value "{value}" belongs to "{owner[value]}" and "{label}"'
        for label, own in zip(labels, parsed, strict=True)
        for value in own
        if owner.setdefault(value, label) != label
    ]
