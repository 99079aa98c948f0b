"""What evaluation asks of a review and of a classifier: the least that it needs, so that any scorer fits."""

from collections.abc import Sequence
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from rxtone.errors import DataError


class LabelledReview(Protocol):
    """A review with the label it should get; `rxtone.data.reviews.Review` is one."""

    @property
    def fields(self) -> tuple[tuple[str, str], ...]:
        """Pairs of prompt name and text, empty for free text."""

    @property
    def text(self) -> str | None:
        """The free text, None where there are fields."""

    @property
    def label(self) -> str | None:
        """The true label."""

    @property
    def group(self) -> str | None:
        """What the review belongs to (a drug, a patient), None where no group column is set."""

    @property
    def row(self) -> int:
        """The 1-based data row of the table."""


Review_contra = TypeVar("Review_contra", bound=LabelledReview, contravariant=True)


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


class ScoringClassifier(Protocol[Review_contra]):
    """A classifier as evaluation sees it; `rxtone.Classifier` is one."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels in recipe order."""

    def score(self, reviews: Sequence[Review_contra], /) -> Scores:
        """Score each review against each label, in order."""


def label_indexes(reviews: Sequence[LabelledReview], labels: Sequence[str]) -> NDArray[np.int64]:
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
