"""Conditions on numbers: ``>=7``, ``<5``, ``==3``, ``5..6``, ``3`` -> intervals."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

_NUMBER = r"[+-]?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?"
# A bound must begin with a digit, so that "5...6" is no range; a cell of the table may be ".5".
_IS_NUMBER = re.compile(rf"{_NUMBER}|[+-]?\.[0-9]+")
_COMPARISON = re.compile(rf"(>=|<=|==|>|<)\s*({_NUMBER})")
_RANGE = re.compile(rf"({_NUMBER})\s*\.\.\s*({_NUMBER})")


@dataclass(frozen=True)
class Interval:
    """The numbers from ``low`` to ``high``.

    Attributes:
        low: The lower bound, or minus infinity.
        high: The upper bound, or infinity.
        low_open: Whether ``low`` itself is left out.
        high_open: Whether ``high`` itself is left out.
    """

    low: float
    high: float
    low_open: bool = False
    high_open: bool = False

    def holds(self, value: float) -> bool:
        """Tell whether a number is in the interval.

        Args:
            value: A finite number.

        Returns:
            Whether it is.
        """
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open else value <= self.high
        return above and below

    def meets(self, other: "Interval") -> bool:
        """Tell whether two intervals share a real number.

        Args:
            other: The other interval.

        Returns:
            Whether they do.
        """
        low, low_open = max((self.low, self.low_open), (other.low, other.low_open))
        high, high_closed = min((self.high, not self.high_open), (other.high, not other.high_open))
        return low < high or (low == high and high_closed and not low_open)


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


def is_bounded(condition: str) -> bool:
    """Tell a comparison or a range from a plain value.

    Args:
        condition: One condition of a label rule.

    Returns:
        Whether it is a comparison or a range.
    """
    return bool(_COMPARISON.fullmatch(condition) or _RANGE.fullmatch(condition))


def parse_interval(condition: str) -> Interval | None:
    """Read one condition on numbers.

    Args:
        condition: A comparison, a range or a number.

    Returns:
        The interval, or None where the text is no such condition.
    """
    if match := _RANGE.fullmatch(condition):
        low, high = parse_number(match[1]), parse_number(match[2])
        return None if low is None or high is None else Interval(low, high)
    match = _COMPARISON.fullmatch(condition)
    sign, number = (match[1], parse_number(match[2])) if match else ("==", parse_number(condition))
    if number is None:
        return None
    if sign == "==":
        return Interval(number, number)
    if sign.startswith(">"):
        return Interval(number, math.inf, low_open=sign == ">")
    return Interval(-math.inf, number, high_open=sign == "<")


def integer_gaps(intervals: Sequence[Interval]) -> list[str]:
    """Name the whole numbers that lie between two covered values and are not covered.

    Args:
        intervals: At least one interval.

    Returns:
        Each gap as "5" or "5..6", ascending.
    """
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
