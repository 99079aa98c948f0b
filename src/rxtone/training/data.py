"""What the loop learns from and selects by."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from rxtone.model.batches import ReviewDataset
    from rxtone.model.scoring import LabelTokens


@dataclass(frozen=True)
class Auxiliary:
    """A further task of the training reviews, learned beside the main one.

    Attributes:
        reviews: The same n training reviews, asked by this task's prompt.
        classes: int64, shape (n,): their label indexes.
        label_tokens: This task's labels in the base's tokens.
        weight: What one of its reviews counts, beside 1 for one of the main task.
        share: Share of its reviews in an epoch.
    """

    reviews: ReviewDataset
    classes: np.ndarray
    label_tokens: LabelTokens
    weight: float
    share: float


@dataclass(frozen=True)
class TrainingData:
    """What the loop learns from and selects by.

    Attributes:
        train: Tokenised training reviews with label tokens.
        train_classes: int64, shape (n,): their label indexes.
        validation: Tokenised validation reviews.
        validation_classes: int64, shape (m,).
        labels: The k label words.
        label_tokens: The same in the base's tokens.
        pad_token_id: Filler of short prompts.
        auxiliary: Further tasks.
        train_targets: float32, shape (n, k): label distributions to match in place of the labels, or None.
    """

    train: ReviewDataset
    train_classes: np.ndarray
    validation: ReviewDataset
    validation_classes: np.ndarray
    labels: tuple[str, ...]
    label_tokens: LabelTokens
    pad_token_id: int
    auxiliary: tuple[Auxiliary, ...] = ()
    train_targets: np.ndarray | None = None

    def part(self, rows: np.ndarray) -> TrainingData:
        """The same tasks on some of the training reviews; what is selected by stays whole.

        Args:
            rows: int64, shape (p,): which training reviews.

        Returns:
            Labels, targets and further tasks of those rows, sharing their tokens.
        """
        return replace(
            self,
            train=self.train.part(rows),
            train_classes=self.train_classes[rows],
            auxiliary=tuple(
                replace(task, reviews=task.reviews.part(rows), classes=task.classes[rows]) for task in self.auxiliary
            ),
            train_targets=None if self.train_targets is None else self.train_targets[rows],
        )
