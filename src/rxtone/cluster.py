"""The same search on a Ray cluster: each trial a Ray task, the study kept by the driver.

The driver alone talks to the study, so there is no storage to share: it draws settings, sends them out, is told
each step and validation as it happens, prunes, and starts a trial again elsewhere when its node is lost. Base
weights and tokens lie in the object store, once per node, and are read in place.
"""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rxtone.errors import RunError
from rxtone.model.host import prepare_host
from rxtone.model.packed import PackedBase, pack_base, unpack_base
from rxtone.ray_session import ATTEMPTS, WAIT_SECONDS, check_room, ray_session, slots
from rxtone.study import Job, Study, beat, clear_trial, finish, next_job, report
from rxtone.study_table import write_table
from rxtone.sweep import Runner, failed
from rxtone.sweep_events import SweepEvent, TrialEnded, TrialStarted, TrialStep, TrialValidated
from rxtone.training.data import TrainingData
from rxtone.training.events import EvalDone, StepDone
from rxtone.trials import (
    Bench,
    FoldRun,
    Trained,
    data_key,
    log_trial,
    open_bench,
    reviews_key,
    run_fold,
    train_setting,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rxtone.config import Recipe
    from rxtone.confirmation import FoldJob
    from rxtone.preparation import Prepared


@contextlib.contextmanager
def ray_runner(*, address: str | None = None, cpus: float = 1, gpus: float = 0) -> Iterator[Runner]:
    """Run trials on a Ray cluster.

    Args:
        address: A running cluster (`auto`, `ray://host:10001`, `host:6379`); None starts one on this machine.
        cpus: CPUs that a trial takes.
        gpus: GPUs that a trial takes; a fraction shares one.

    Yields:
        The runner.

    Raises:
        RecipeError: If Ray is not installed or the cluster cannot be reached.
    """
    bench = open_bench()
    options = {"num_cpus": cpus, "num_gpus": gpus}
    with ray_session(address):
        check_room(options, address)
        store = _once_each(bench)
        yield Runner(partial(_trials, bench, store, options), partial(_folds, bench, store, options))


@dataclass(frozen=True)
class _Store:
    """Recipe -> reference to what lies in the object store."""

    base: Callable[[Recipe], Any]
    data: Callable[[Recipe], Any]
    prepared: Callable[[Recipe], Any]


@dataclass
class _Running:
    """A trial that is out, what it told so far, and on which attempt."""

    job: Job
    track: Callable[[StepDone | EvalDone | Trained], None]
    attempt: int = 1
    validations: int = 0
    reported: int = 0
    ended: Trained | None = None


def _trials(bench: Bench, store: _Store, options: dict[str, float], study: Study) -> Iterator[SweepEvent]:
    import ray

    running: dict[Any, _Running] = {}
    try:
        while True:
            yield from _fill(study, store, options, running)
            if not running:
                return
            ready, _ = ray.wait(list(running), num_returns=1, timeout=WAIT_SECONDS)
            for out in running.values():
                beat(out.job)
            for task in ready:
                yield from _hear(study, store, options, running, task)
    finally:
        for task in running if ray.is_initialized() else ():  # else they ended with the session
            ray.cancel(task, force=True)


def _fill(study: Study, store: _Store, options: dict[str, float], running: dict[Any, _Running]) -> Iterator[SweepEvent]:
    """Send settings out until the cluster is full or there are none."""
    while len(running) < slots(options) and (job := next_job(study)) is not None:
        track = log_trial(job.recipe, clear_trial(study.folder, job.number))
        running[_send(store, options, job.recipe)] = _Running(job, track)
        yield TrialStarted(job.number, job.settings)


def _hear(
    study: Study, store: _Store, options: dict[str, float], running: dict[Any, _Running], task: Any
) -> Iterator[SweepEvent]:
    """Take the next thing that a trial tells, or learn that it ended, failed or was lost."""
    import ray

    out = running[task]
    try:
        event = ray.get(next(task))
    except StopIteration:
        del running[task]
        yield _ended(study, out)
    except ray.exceptions.RayTaskError as error:
        del running[task]
        yield failed(study, out.job, error.cause if isinstance(error.cause, Exception) else error)
        write_table(study)
    except ray.exceptions.RayError as error:  # its node or its process is gone
        del running[task]
        if out.attempt == ATTEMPTS:
            yield failed(study, out.job, RunError(f"lost {ATTEMPTS} nodes or processes, the last one: {error}"))
            return
        out.attempt, out.validations = out.attempt + 1, 0
        out.track = log_trial(out.job.recipe, clear_trial(study.folder, out.job.number))
        running[_send(store, options, out.job.recipe)] = out
    else:
        yield from _told(study, running, task, event)


def _told(study: Study, running: dict[Any, _Running], task: Any, event: Any) -> Iterator[SweepEvent]:
    import ray

    out = running[task]
    out.track(event)
    if isinstance(event, StepDone):
        yield TrialStep(out.job.number, event)
    elif isinstance(event, Trained):
        out.ended = event
    else:
        out.validations += 1
        if out.validations <= out.reported:
            return  # told before its node was lost
        out.reported = out.validations
        yield TrialValidated(out.job.number, event.epoch, event.validation_macro_f1)
        if report(out.job, out.validations, event.validation_macro_f1):
            ray.cancel(task)
            del running[task]
            yield _ended(study, out)


def _ended(study: Study, out: _Running) -> TrialEnded:
    facts = out.ended.facts if out.ended else {}
    value = out.ended.macro_f1 if out.ended else None
    facts |= {"attempts": out.attempt}
    state = finish(study, out.job, facts=facts, value=value, reason=None)
    write_table(study)
    return TrialEnded(out.job.number, state, value, facts)


def _folds(
    bench: Bench, store: _Store, options: dict[str, float], jobs: list[FoldJob]
) -> Iterator[tuple[FoldJob, FoldRun]]:
    import ray

    task = ray.remote(_run_fold).options(max_retries=ATTEMPTS, **options)
    sent = {
        task.remote(store.base(job.candidate.recipe), store.prepared(job.candidate.recipe), job.candidate.recipe,
                    job.seed, job.fold, job.of): job
        for job in jobs
    }  # fmt: skip
    waiting = list(sent)
    try:
        while waiting:
            (done, *_), waiting = ray.wait(waiting, num_returns=1)
            try:
                yield sent[done], ray.get(done)
            except ray.exceptions.RayTaskError as error:
                cause = error.cause
                raise (cause if isinstance(cause, Exception) else error) from None
    finally:
        for ref in waiting if ray.is_initialized() else ():
            ray.cancel(ref, force=True)


def _send(store: _Store, options: dict[str, float], recipe: Recipe) -> Any:
    import ray

    # Ray's own retry would tell everything twice: the driver starts a lost trial again.
    task = ray.remote(_run_trial).options(max_retries=0, **options)
    return task.remote(store.base(recipe), store.data(recipe), recipe)


def _run_trial(packed: PackedBase, data: TrainingData, recipe: Recipe) -> Iterator[StepDone | EvalDone | Trained]:
    prepare_host()
    bench = Bench(lambda _: unpack_base(packed), _nothing, lambda _: data)
    with tempfile.TemporaryDirectory(prefix="rxtone-") as folder:
        yield from train_setting(bench, recipe, Path(folder) / "checkpoints")


def _run_fold(packed: PackedBase, prepared: Prepared, recipe: Recipe, seed: int, fold: int, of: int) -> FoldRun:
    prepare_host()
    bench = Bench(lambda _: unpack_base(packed), lambda _: prepared, _nothing)
    with tempfile.TemporaryDirectory(prefix="rxtone-") as folder:
        return run_fold(bench, recipe, seed=seed, fold=fold, of=of, folder=Path(folder) / "fold")


def _nothing(recipe: Recipe) -> Any:
    msg = f"not needed on a node: {recipe.data.train}"
    raise RunError(msg)


def _once_each(bench: Bench) -> _Store:
    import ray

    kept: dict[str, Any] = {}

    def once(key: str, make: Callable[[], Any]) -> Any:
        if key not in kept:
            kept[key] = ray.put(make())
        return kept[key]

    return _Store(
        lambda recipe: once(f"base {recipe.model.model_dump_json()}", lambda: pack_base(bench.base(recipe))),
        lambda recipe: once(f"data {data_key(recipe)}", lambda: bench.data(recipe)),
        lambda recipe: once(f"reviews {reviews_key(recipe)}", lambda: bench.prepared(recipe)),
    )
