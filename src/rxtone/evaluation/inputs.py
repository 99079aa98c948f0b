"""What evaluation asks of a classifier, and what it reads from reviews: torch stays out of both."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rxtone.data.reviews import Review
from rxtone.errors import DataError


class Scores(Protocol):
    """What a classifier says about n reviews and k labels."""

    @property
    def log_probs(self) -> NDArray[np.float64]:
        """Uncalibrated log-probabilities of the labels, shape (n, k)."""

    @property
    def truncated(self) -> NDArray[np.bool_]:
        """Whether a part of the review was cut, shape (n,)."""

    @property
    def n_tokens(self) -> NDArray[np.int64]:
        """Length of the prompt in tokens, shape (n,)."""


class ScoringClassifier(Protocol):
    """A classifier as evaluation sees it; `rxtone.Classifier` is one."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels in recipe order."""

    def score(self, reviews: Sequence[Review], /) -> Scores:
        """Score each review against each label, in order."""


def label_indexes(reviews: Sequence[Review], labels: Sequence[str]) -> NDArray[np.int64]:
    """Look up the position of each review's true label.

    Args:
        reviews: The n reviews.
        labels: The labels in recipe order.

    Returns:
        Indexes into `labels`, shape (n,).

    Raises:
        DataError: If there are no reviews, one has no label, or a label is not among `labels`.
    """
    if not reviews:
        raise DataError("evaluation needs at least one labelled review, got none")
    position = {label: i for i, label in enumerate(labels)}
    missing = [review.row for review in reviews if review.label is None]
    if missing:
        raise DataError(
            f"evaluation needs a label for every review: {len(missing)} of {len(reviews)} have none, "
            f"the first in row {missing[0]}. Name the label column and its rule, or use predict."
        )
    strange = [review for review in reviews if review.label not in position]
    if strange:
        raise DataError(
            f"row {strange[0].row} has the label {strange[0].label!r}, the classifier knows "
            f"{', '.join(labels)} ({len(strange)} such rows). Use the label rule it was trained with."
        )
    return np.array([position[str(review.label)] for review in reviews], dtype=np.int64)


def group_indexes(reviews: Sequence[Review]) -> NDArray[np.int64] | None:
    """Number the groups of reviews.

    Args:
        reviews: The n reviews.

    Returns:
        One number per group, shape (n,); a review without a group is one of its own. None where no review has
        a group.
    """
    if all(review.group is None for review in reviews):
        return None
    number: dict[object, int] = {}
    keys = [i if review.group is None else review.group for i, review in enumerate(reviews)]
    return np.array([number.setdefault(key, len(number)) for key in keys], dtype=np.int64)
