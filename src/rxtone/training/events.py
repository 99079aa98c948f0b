"""What the loop tells while it trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class StepDone:
    """One optimiser step.

    Attributes:
        step: Steps done, this one included.
        total_steps: Steps the run will take at most.
        epoch: Passes done, with the fraction of this one.
        loss: Mean loss of this step's reviews.
        learning_rate: Rate used in this step.
        reviews: Reviews in this step.
        tokens: Prompt tokens in this step, padding not counted.
        seconds: Wall time of this step.
        peak_memory_bytes: Highest memory of the process (CPU) or of the device so far.
    """

    step: int
    total_steps: int
    epoch: float
    loss: float
    learning_rate: float
    reviews: int
    tokens: int
    seconds: float
    peak_memory_bytes: int


@dataclass(frozen=True)
class EvalDone:
    """One pass over the validation reviews.

    Attributes:
        step: Steps done.
        epoch: Passes done.
        train_loss: Mean training loss since the pass began.
        validation_loss: Mean negative log-probability of the true label among the labels.
        validation_macro_f1: What the best checkpoint is chosen by.
        best: Whether this is the best so far.
        never_predicted: Labels that no validation review got.
    """

    step: int
    epoch: float
    train_loss: float
    validation_loss: float
    validation_macro_f1: float
    best: bool
    never_predicted: tuple[str, ...]


@dataclass(frozen=True)
class CheckpointSaved:
    """A whole checkpoint is on disk."""

    step: int
    path: Path


@dataclass(frozen=True)
class MemoryShort:
    """Memory was too short for the batches as they are.

    Attributes:
        step: The step that showed it.
        parts: Into how many parts each batch is split from now on; their gradients are added up.
    """

    step: int
    parts: int


@dataclass(frozen=True)
class StoppedEarly:
    """The run ended before its last step, by `train.early_stopping_patience`.

    Attributes:
        step: Steps done.
        total_steps: Steps it might have taken.
        patience: Validations in a row without a better macro-F1.
    """

    step: int
    total_steps: int
    patience: int


Event = StepDone | EvalDone | CheckpointSaved | MemoryShort | StoppedEarly
