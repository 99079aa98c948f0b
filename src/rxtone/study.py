"""A study on disk: its folder, its Optuna storage, and the life of its trials.

Optuna proposes settings and keeps what came of them. The rules here keep the study whole: one process owns a
study folder at a time, a trial that was running when its process died is put back into the queue with the
same settings, a finished one is never done again, and settings that were tried already are answered from memory.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rxtone.errors import RunError
from rxtone.space import Space, applies, apply_settings, drawn_name, settings_of, spelt

if TYPE_CHECKING:
    from collections.abc import Iterator

    import optuna

    from rxtone.config import Recipe

HEARTBEAT_SECONDS = 15.0
REPEATS = 40
"""Proposals in a row that were tried before, after which the space counts as exhausted."""


@dataclass(frozen=True)
class StudyFolder:
    """Paths inside one study."""

    path: Path

    @property
    def lock(self) -> Path:
        """Held by the process that works on this folder."""
        return self.path / ".lock"

    @property
    def journal(self) -> Path:
        """The study, where no other storage is named."""
        return self.path / "study.journal"

    @property
    def space(self) -> Path:
        """The resolved space."""
        return self.path / "space.yaml"

    @property
    def recipe(self) -> Path:
        """The recipe that the space varies."""
        return self.path / "recipe.yaml"

    @property
    def trials(self) -> Path:
        """Folder of one folder per trial: config.yaml, metrics.jsonl."""
        return self.path / "trials"

    @property
    def confirmation(self) -> Path:
        """Folder of one file per confirming run."""
        return self.path / "confirmation"

    @property
    def ranking(self) -> Path:
        """What the confirmation found."""
        return self.path / "confirmation.json"

    @property
    def best(self) -> Path:
        """The winner, a recipe."""
        return self.path / "best.yaml"

    @property
    def table(self) -> Path:
        """One row per trial."""
        return self.path / "trials.parquet"

    @property
    def page(self) -> Path:
        """The self-contained page."""
        return self.path / "study.html"

    def trial(self, number: int) -> Path:
        """Folder of one trial."""
        return self.trials / f"{number:04d}"


@dataclass(frozen=True)
class Study:
    """An open study.

    Attributes:
        folder: Where its files are.
        space: What is searched.
        recipe: What is varied.
        store: The Optuna study.
        wanted: Settings to try; None tries the whole grid.
        worker: Name of this machine and folder, to know its own lost trials.
    """

    folder: StudyFolder
    space: Space
    recipe: Recipe
    store: optuna.Study
    wanted: int | None
    worker: str

    def trials(self) -> list[optuna.trial.FrozenTrial]:
        """The trials that count: no repeats, and not those that were put back into the queue."""
        return [
            trial
            for trial in self.store.get_trials(deepcopy=False)
            if not {"requeued", "repeats"} & trial.user_attrs.keys()
        ]

    def finished(self) -> list[optuna.trial.FrozenTrial]:
        """The trials that ended: complete, pruned or failed."""
        return [trial for trial in self.trials() if trial.state.is_finished()]


@dataclass(frozen=True)
class Job:
    """One setting to train.

    Attributes:
        trial: Optuna's side of it.
        settings: Recipe key -> value.
        recipe: The recipe with these settings.
    """

    trial: optuna.Trial
    settings: dict[str, Any]
    recipe: Recipe

    @property
    def number(self) -> int:
        """Number of the trial in its study."""
        return self.trial.number


@contextlib.contextmanager
def owned(folder: StudyFolder) -> Iterator[None]:
    """Hold a study folder, so that no second process on this machine works in it.

    Args:
        folder: The study's folder, which must exist.

    Yields:
        Nothing; the lock ends with the block or with the process, however it dies.

    Raises:
        RunError: If another process holds it.
    """
    with folder.lock.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            msg = f"{folder.path}: another process works on this study; wait for it, or choose another --out"
            raise RunError(msg) from None
        yield


def next_job(study: Study) -> Job | None:
    """The next setting to train.

    Args:
        study: The study.

    Returns:
        A running trial; None when the study has what it wanted, or its space holds nothing new.
    """
    import optuna

    states = optuna.trial.TrialState
    for _ in range(REPEATS):
        trials = study.trials()
        waiting = any(trial.state == states.WAITING for trial in trials)
        taken = sum(trial.state != states.WAITING for trial in trials)
        if study.wanted is not None and taken >= study.wanted:
            return None
        if study.space.sampler == "grid" and not waiting:
            return None
        trial = study.store.ask()
        trial.set_user_attr("worker", study.worker)
        trial.set_user_attr("heartbeat", time.time())
        settings = _draw(study, trial)
        before = next(
            (t for t in study.finished() if t.number != trial.number and t.params == trial.params), None
        )  # fmt: skip
        if before is None:
            recipe = apply_settings(study.recipe, settings, f"trial {trial.number}")
            trial.set_user_attr("settings", {key: spelt(value) for key, value in settings.items()})
            return Job(trial, settings, recipe)
        trial.set_user_attr("repeats", before.number)
        if before.state == states.COMPLETE:
            study.store.tell(trial, values=before.value)
        else:
            study.store.tell(trial, state=before.state)
    return None


def report(job: Job, validation: int, macro_f1: float) -> bool:
    """Tell the study how a trial stands after a validation.

    Args:
        job: The trial.
        validation: Which validation, from 1.
        macro_f1: Its macro-F1.

    Returns:
        Whether the trial is hopeless and should be stopped.
    """
    beat(job)
    job.trial.report(macro_f1, validation)
    return bool(job.trial.should_prune())


def beat(job: Job) -> None:
    """Say that a trial lives, at most every few seconds."""
    if time.time() - job.trial.user_attrs["heartbeat"] > HEARTBEAT_SECONDS:
        job.trial.set_user_attr("heartbeat", time.time())


def finish(study: Study, job: Job, *, facts: dict[str, Any], value: float | None, reason: str | None) -> str:
    """End a trial: facts first, the state last, so that a finished trial has all its facts.

    Args:
        study: The study.
        job: The trial.
        facts: What else is known of it, for the table.
        value: Its best validation macro-F1; None where it failed or was pruned.
        reason: Why it failed; None otherwise.

    Returns:
        The state: `complete`, `pruned` or `failed`.
    """
    import optuna

    states = optuna.trial.TrialState
    for name, fact in facts.items():
        job.trial.set_user_attr(name, fact)
    if reason is not None:
        job.trial.set_user_attr("reason", reason[:1000])
        study.store.tell(job.trial, state=states.FAIL)
        return "failed"
    if value is None:
        study.store.tell(job.trial, state=states.PRUNED)
        return "pruned"
    study.store.tell(job.trial, values=value)
    return "complete"


def _draw(study: Study, trial: optuna.Trial) -> dict[str, Any]:
    for key, parameter in study.space.parameters.items():
        drawn = settings_of(study.space, study.recipe, trial.params)
        if not applies(parameter, drawn, study.recipe):
            continue
        name = drawn_name(key, parameter)
        if parameter.choice is not None:
            trial.suggest_categorical(name, [spelt(choice) for choice in parameter.choice])
        elif parameter.integer is not None:
            low, high = parameter.integer
            trial.suggest_int(name, low, high, step=parameter.step or 1)
        else:
            low_number, high_number = parameter.uniform or parameter.log_uniform or (0.0, 0.0)
            trial.suggest_float(name, low_number, high_number, log=parameter.log_uniform is not None)
    return settings_of(study.space, study.recipe, trial.params)


def clear_trial(folder: StudyFolder, number: int) -> Path:
    """An empty folder for a trial; what a lost attempt left in it is dropped."""
    path = folder.trial(number)
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path
