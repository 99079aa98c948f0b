"""What a search yields: one frozen record per thing that happened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from rxtone.study import StudyFolder
    from rxtone.training.events import StepDone


@dataclass(frozen=True)
class StudyOpened:
    """The study is there; `done` of `wanted` settings were tried before (None: the whole grid)."""

    folder: Path
    done: int
    wanted: int | None


@dataclass(frozen=True)
class TrialStarted:
    """A setting is being trained."""

    number: int
    settings: dict[str, Any]


@dataclass(frozen=True)
class TrialStep:
    """An optimiser step of a trial."""

    number: int
    step: StepDone


@dataclass(frozen=True)
class TrialValidated:
    """A validation of a trial."""

    number: int
    epoch: float
    macro_f1: float


@dataclass(frozen=True)
class TrialEnded:
    """A trial ended: `state` is complete, pruned or failed; `reason` says why it failed."""

    number: int
    state: str
    macro_f1: float | None
    facts: dict[str, Any]
    reason: str | None = None


@dataclass(frozen=True)
class FoldDone:
    """A confirming run ended; `done` of `total` are there."""

    number: int
    seed: int
    fold: int
    macro_f1: float
    done: int
    total: int


@dataclass(frozen=True)
class SweepDone:
    """All is written. `record` is what confirmation.json holds; None where the space asks for no confirmation."""

    folder: StudyFolder
    record: dict[str, Any] | None


SweepEvent = StudyOpened | TrialStarted | TrialStep | TrialValidated | TrialEnded | FoldDone | SweepDone
