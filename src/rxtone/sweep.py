"""A search: space -> trials -> the best few again -> one recipe, with the evidence.

`sweep` yields what happened, as `pipeline.train` does. Repeating the command goes on where it stopped: at
the first trial that has not ended, or at the first confirming run that has no file.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rxtone.confirmation import FoldJob, candidates, conclude, fold_jobs, keep_fold
from rxtone.errors import RunError
from rxtone.evaluation.study_page import render_study
from rxtone.run import write_text
from rxtone.space import check_space
from rxtone.study import (
    Job,
    Study,
    StudyFolder,
    beat,
    clear_trial,
    finish,
    next_job,
    owned,
    report,
)
from rxtone.study_storage import open_study
from rxtone.study_table import write_table
from rxtone.sweep_events import (
    FoldDone,
    StudyOpened,
    SweepDone,
    SweepEvent,
    TrialEnded,
    TrialStarted,
    TrialStep,
    TrialValidated,
)
from rxtone.together import train_together, why_alone
from rxtone.tracking import check_trackers
from rxtone.training.events import EvalDone, StepDone
from rxtone.trials import Bench, Trained, open_bench, run_fold, run_trial

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from rxtone.config import Recipe
    from rxtone.space import Space


HOPELESS = 5
"""When so many trials fail before one succeeds, the fault is not in their settings."""


def sweep(
    space: Space,
    recipe: Recipe,
    out: Path,
    *,
    storage: str | None = None,
    trials: int | None = None,
    together: int = 1,
    runner: Runner | None = None,
) -> Iterator[SweepEvent]:
    """Search a space.

    Args:
        space: What to search.
        recipe: What it varies.
        out: Folder of the study; one that holds this study already is gone on with.
        storage: An Optuna storage URL that several machines share; None keeps a journal file in `out`.
        trials: Settings to try; None takes the space's number.
        together: Settings trained at once through one forward.
        runner: Where trials run; None runs them here, one after another.

    Yields:
        What happened.

    Raises:
        RxtoneError: With the branch that says what was wrong; what ended before is kept.
    """
    check_space(space, recipe)
    check_trackers(recipe)
    bench = open_bench()
    prepared = bench.prepared(recipe)  # bad data is no matter of a single trial
    folder = StudyFolder(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        msg = f"{out}: cannot make the study folder: {error.strerror}"
        raise RunError(msg) from None
    with owned(folder):
        study = open_study(folder, space, recipe, storage=storage, trials=trials)
        yield StudyOpened(out, len(study.finished()), study.wanted)
        record = None
        try:
            run = runner or local_runner(bench, together)
            yield from run.trials(study)
            if space.confirm is not None:
                found = candidates(study, space.confirm)
                jobs = fold_jobs(study, found)
                yield from _confirm(run, jobs)
                record = conclude(study, found, jobs, prepared)
        finally:  # Ctrl-C included: what there is can be looked at
            write_results(study, record)
        yield SweepDone(folder, record)


@dataclass(frozen=True)
class Runner:
    """Where work is done.

    Attributes:
        trials: Study -> events of its trials, until it has what it wanted.
        folds: Confirming runs to do -> each with its result, in any order.
    """

    trials: Callable[[Study], Iterator[SweepEvent]]
    folds: Callable[[list[FoldJob]], Iterator[tuple[FoldJob, Any]]]


def local_runner(bench: Bench, together: int = 1) -> Runner:
    """Run everything in this process.

    Args:
        bench: What trials share.
        together: Settings trained at once through one forward.

    Returns:
        The runner.
    """

    def trials(study: Study) -> Iterator[SweepEvent]:
        reasons: list[str | None] = []
        while jobs := take_jobs(study, together):
            for event in several_trials(study, bench, jobs):
                if isinstance(event, TrialEnded):
                    reasons.append(event.reason)
                yield event
            write_table(study)
            if len(reasons) >= HOPELESS and all(reasons):
                msg = f"{study.folder.path}: the first {len(reasons)} trials all failed, the last one: {reasons[-1]}"
                raise RunError(msg)

    def folds(jobs: list[FoldJob]) -> Iterator[tuple[FoldJob, Any]]:
        for job in jobs:
            yield (
                job,
                run_fold(
                    bench,
                    job.candidate.recipe,
                    seed=job.seed,
                    fold=job.fold,
                    of=job.of,
                    folder=job.path.with_suffix(""),
                ),
            )

    return Runner(trials, folds)


def take_jobs(study: Study, count: int) -> list[Job]:
    """Up to `count` settings to train; none when the study has what it wanted."""
    jobs: list[Job] = []
    while len(jobs) < count and (job := next_job(study)) is not None:
        jobs.append(job)
    return jobs


def several_trials(study: Study, bench: Bench, jobs: list[Job]) -> Iterator[SweepEvent]:
    """Train settings, those that can through one forward, the others one after another.

    Args:
        study: The study.
        bench: What trials share.
        jobs: The settings.

    Yields:
        Their beginnings, steps, validations and ends.
    """
    while jobs:
        first, rest = jobs[0], jobs[1:]
        beside = [job for job in rest if why_alone(first.recipe, job.recipe) is None]
        jobs = [job for job in rest if job not in beside]
        for job in (first, *beside):
            yield TrialStarted(job.number, job.settings)
        yield from trials_beside(study, bench, [first, *beside]) if beside else one_trial(study, bench, first)


def trials_beside(study: Study, bench: Bench, jobs: list[Job]) -> Iterator[SweepEvent]:
    """Train settings through one forward, each watched by the study.

    Args:
        study: The study.
        bench: What trials share.
        jobs: Settings that can be trained side by side.

    Yields:
        Their steps, validations and ends.
    """
    running = {job.number: job for job in jobs}
    validations: dict[int, int] = dict.fromkeys(running, 0)
    folders = [clear_trial(study.folder, job.number) for job in jobs]
    stop: bool | None = None
    events = train_together(bench, [job.recipe for job in jobs], folders)
    try:
        with contextlib.closing(events):
            while True:
                index, event = events.send(stop)
                job, stop = jobs[index], None
                if isinstance(event, StepDone):
                    beat(job)
                    yield TrialStep(job.number, event)
                elif isinstance(event, EvalDone):
                    validations[job.number] += 1
                    yield TrialValidated(job.number, event.epoch, event.validation_macro_f1)
                    stop = report(job, validations[job.number], event.validation_macro_f1)
                    if stop:
                        del running[job.number]
                        yield TrialEnded(job.number, finish(study, job, facts={}, value=None, reason=None), None, {})
                else:
                    del running[job.number]
                    yield (
                        failed(study, job, event)
                        if isinstance(event, Exception)
                        else TrialEnded(
                            job.number,
                            finish(study, job, facts=event.facts, value=event.macro_f1, reason=None),
                            event.macro_f1,
                            event.facts,
                        )
                    )
    except StopIteration:
        return
    except Exception as error:  # as for one trial: what stops training is a result
        for job in running.values():
            yield failed(study, job, error)


def one_trial(study: Study, bench: Bench, job: Job) -> Iterator[SweepEvent]:
    """Train one setting here, watched by the study.

    Args:
        study: The study.
        bench: What trials share.
        job: The setting.

    Yields:
        Its steps, validations and end. Pruning is ceasing to iterate.
    """
    validations: list[float] = []
    ended: Trained | None = None
    try:
        with contextlib.closing(run_trial(bench, job.recipe, clear_trial(study.folder, job.number))) as events:
            for event in events:
                if isinstance(event, StepDone):
                    beat(job)
                    yield TrialStep(job.number, event)
                elif isinstance(event, EvalDone):
                    validations.append(event.validation_macro_f1)
                    yield TrialValidated(job.number, event.epoch, event.validation_macro_f1)
                    if report(job, len(validations), event.validation_macro_f1):
                        break
                else:
                    ended = event
    except Exception as error:  # a setting that cannot be trained is a result of the search, whatever stopped it
        yield failed(study, job, error)
        return
    facts = ended.facts if ended else {}
    value = ended.macro_f1 if ended else None
    yield TrialEnded(job.number, finish(study, job, facts=facts, value=value, reason=None), value, facts)


def failed(study: Study, job: Job, error: Exception) -> TrialEnded:
    """Record a trial that could not be trained, with the reason."""
    name = "" if type(error).__module__.startswith("rxtone") else f"{type(error).__name__}: "
    reason = name + " ".join(str(error).split())
    return TrialEnded(job.number, finish(study, job, facts={}, value=None, reason=reason), None, {}, reason)


def write_results(study: Study, record: dict[str, Any] | None) -> None:
    """Write trials.parquet and study.html."""
    table = write_table(study)
    page = render_study(
        {
            "title": study.folder.path.name,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "keys": list(study.space.parameters),
            "labels": list(study.recipe.data.label.rule),
            "search": {
                "recipe": study.space.recipe, "base": study.recipe.model.base,
                "training table": study.recipe.data.train, "sampler": study.space.sampler,
                "pruning": study.space.pruner, "seed": str(study.space.seed),
            },
            "wanted": study.wanted,
            "confirmation": record,
            "commands": [f"rxtone sweep {study.folder.space} --out NEW_FOLDER"]
            + ([f"rxtone train {study.folder.best}"] if record else []),
        },
        table,
    )  # fmt: skip
    write_text(study.folder.page, page)


def _confirm(runner: Runner, jobs: list[FoldJob]) -> Iterator[SweepEvent]:
    open_jobs = [job for job in jobs if not job.path.is_file()]
    done = len(jobs) - len(open_jobs)
    for job, run in runner.folds(open_jobs):
        keep_fold(job, run)
        done += 1
        yield FoldDone(job.candidate.number, job.seed, job.fold, run.macro_f1, done, len(jobs))
