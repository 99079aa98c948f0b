"""What tells the label besides the sentiment: other columns, and ratings and label words in the text."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rxtone.data.reviews import Review

_RATING = re.compile(r"\b\d{1,2}(?:\.\d)?\s*(?:/|out of)\s*(?:5|10|100)\b|\b\d\s*stars?\b", re.IGNORECASE)


@dataclass(frozen=True)
class ColumnLeak:
    """How well a column that is not text tells the label of a row from the other rows of the same value.

    Attributes:
        column: The column.
        distinct: How many values it has.
        accuracy: Leave-one-out accuracy of the majority label of the value; ties count as wrong.
        majority: Accuracy of always saying the most frequent label.
    """

    column: str
    distinct: int
    accuracy: float
    majority: float


def column_leak(values: Sequence[str], reviews: Sequence[Review], column: str) -> ColumnLeak:
    """Measure how well a column tells the label.

    Args:
        values: The column's value of each row (n,).
        reviews: The labelled reviews of the same rows.
        column: The column's name.

    Returns:
        The measure.
    """
    labels = {label: code for code, label in enumerate(dict.fromkeys(review.label for review in reviews))}
    codes = np.array([labels[review.label] for review in reviews])
    order = {value: index for index, value in enumerate(dict.fromkeys(values))}
    places = np.array([order[value] for value in values])
    counts = np.zeros((len(order), len(labels)), np.int64)
    np.add.at(counts, (places, codes), 1)
    others = counts[places]
    own = others[np.arange(codes.size), codes] - 1
    others[np.arange(codes.size), codes] = -1
    totals = np.bincount(codes)
    # A value that no other row has says nothing; the most frequent label is said then.
    alone = counts[places].sum(axis=1) == 1
    correct = np.where(alone, codes == totals.argmax(), own > others.max(axis=1))
    return ColumnLeak(column, len(order), round(float(correct.mean()), 6), round(float(totals.max() / codes.size), 6))


def rating_mentions(reviews: Sequence[Review]) -> int:
    """Count reviews that name a rating in the text ("8/10", "9 out of 10", "5 stars").

    Args:
        reviews: The reviews.

    Returns:
        How many do.
    """
    return sum(
        any(_RATING.search(text) for text in (review.text or "", *(text for _, text in review.fields)))
        for review in reviews
    )


def label_mentions(reviews: Sequence[Review], labels: Sequence[str]) -> dict[str, dict[str, int]]:
    """Count reviews whose text holds a label word, by the label that they have.

    Args:
        reviews: The labelled reviews.
        labels: The label words.

    Returns:
        Label word -> given label -> reviews.
    """
    found: dict[str, Counter[str]] = {label: Counter() for label in labels}
    patterns = {label: re.compile(rf"\b{re.escape(label)}\b", re.IGNORECASE) for label in labels}
    for review in reviews:
        text = " ".join((review.text or "", *(text for _, text in review.fields)))
        for label, pattern in patterns.items():
            if pattern.search(text):
                found[label][review.label or ""] += 1
    return {label: dict(counts.most_common()) for label, counts in found.items()}
