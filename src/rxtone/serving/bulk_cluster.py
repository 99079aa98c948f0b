"""Chunks of a bulk job labelled on a Ray cluster; this process reads the rows and writes the parts.

Only texts go out and only predictions come back, so rows are read in one way and written in one way, whatever labels
them, and a part is there once: this process alone numbers chunks and commits them. A chunk whose process or node is
lost is sent to another one.

Ray Data was weighed and left out. It splits and reads the files itself, by rules of its own for bad rows, and writes
files named by its tasks; a part per numbered chunk, which is what an interrupted job goes on by, cannot be had from
it. Tasks were left out for actors: a process on a GPU is not used for a second task, so each chunk would load the
model again.
"""

from __future__ import annotations

import contextlib
from collections import Counter, deque
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from rxtone.errors import RunError
from rxtone.model.host import prepare_host
from rxtone.ray_session import ATTEMPTS, WAIT_SECONDS, check_room, ray_session, slots
from rxtone.serving.bulk_labels import Ask, Runner, Work, label_frame
from rxtone.serving.bulk_packed import PackedClassifier, pack_classifier, unpack_classifier

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    import polars as pl

    from rxtone.classifier import Classifier, Prediction

IN_HAND = 2
"""Chunks that a process has: one that it labels, and one that waits, so that it need not. Memory is bounded by it."""


@contextlib.contextmanager
def ray_labels(*, address: str | None = None, cpus: float = 1, gpus: float = 0) -> Iterator[Runner]:
    """Label the chunks of bulk jobs on a Ray cluster.

    Args:
        address: A running cluster (`auto`, `ray://host:10001`, `host:6379`); None starts one on this machine.
        cpus: CPUs that a process with the classifier takes, and its threads.
        gpus: GPUs that it takes; a fraction shares one.

    Yields:
        The runner for `predict_tables`.

    Raises:
        RecipeError: If Ray is not installed or the cluster cannot be reached.
    """
    options = {"num_cpus": cpus, "num_gpus": gpus}
    with ray_session(address):
        check_room(options, address)
        yield partial(_label, options)


class Worker:
    """A process of the cluster that holds the classifier."""

    def open(self, packed: PackedClassifier) -> None:
        """Take the classifier; not in the constructor, whose errors would look like a lost process."""
        prepare_host()
        self._classifier = unpack_classifier(packed)

    def label(self, frame: pl.DataFrame, source: str, ask: Ask) -> list[Prediction]:
        """Label the good rows of a chunk (see `label_frame`)."""
        return label_frame(self._classifier, frame, source, ask)


@dataclass(frozen=True)
class _Out:
    """A chunk on its way: how often it was sent, and the process that has it now."""

    work: Work
    attempt: int = 0
    worker: Any = None


@dataclass
class _Pool:
    """The processes, and what they have in hand by Ray's references to the answers."""

    options: dict[str, float]
    packed: Any
    columns: list[str]
    ask: Ask
    workers: list[Any] = field(default_factory=list)
    opening: dict[Any, Any] = field(default_factory=dict)
    out: dict[Any, _Out] = field(default_factory=dict)
    failed_starts: int = 0


def _label(
    options: dict[str, float], classifier: Classifier, works: Iterator[Work], ask: Ask
) -> Generator[tuple[Work, list[Prediction] | None], None, None]:
    import ray

    columns = list(dict.fromkeys(classifier.spec.text_fields.values()))
    pool = _Pool(options, ray.put(pack_classifier(classifier)), columns, ask)
    ahead: deque[_Out] = deque()  # chunks that nobody has: the next one, and those that were lost
    left = ask.chunks
    try:
        while True:
            for work in _done_until_next(works, ahead):
                left -= 1
                yield work, None
            if not ahead and not pool.out:
                return
            if ahead and (worker := _free(pool)) is not None:
                _send(pool, replace(ahead.popleft(), worker=worker))
                continue
            if ahead:
                _hire(pool, left)
            ready, _ = ray.wait([*pool.opening, *pool.out], num_returns=1, timeout=WAIT_SECONDS)
            for reference in ready:
                answer = _hear(pool, reference, ahead)
                if answer is not None:
                    left -= 1
                    yield answer
    finally:
        if ray.is_initialized():  # else the processes ended with the session, and Ray would connect again to kill them
            for worker in [*pool.workers, *pool.opening.values()]:
                ray.kill(worker)


def _done_until_next(works: Iterator[Work], ahead: deque[_Out]) -> Iterator[Work]:
    """Read on until there is a chunk to send, by way of those that an earlier call had done."""
    while not ahead and (work := next(works, None)) is not None:
        if work.done:
            yield work
        else:
            ahead.append(_Out(work))


def _hire(pool: _Pool, left: int) -> None:
    """Start processes where the cluster has room, nodes that came meanwhile included; no more than chunks are left.

    A process has no chunk before it is open: one that finds no room holds nothing up.
    """
    import ray

    for _ in range(min(slots(pool.options), left) - len(pool.workers) - len(pool.opening)):
        worker: Any = ray.remote(Worker).options(**pool.options).remote()
        pool.opening[worker.open.remote(pool.packed)] = worker


def _free(pool: _Pool) -> Any | None:
    """The process with the least in hand, unless all have enough."""
    having = Counter(id(out.worker) for out in pool.out.values())
    least = min(pool.workers, key=lambda worker: having[id(worker)], default=None)
    return None if least is None or having[id(least)] >= IN_HAND else least


def _send(pool: _Pool, out: _Out) -> None:
    frame = out.work.chunk.frame.select(pool.columns)
    reference = out.worker.label.remote(frame, out.work.source, pool.ask)
    pool.out[reference] = replace(out, attempt=out.attempt + 1)


def _hear(pool: _Pool, reference: Any, ahead: deque[_Out]) -> tuple[Work, list[Prediction]] | None:
    """Take an answer, or learn that a process opened, failed or was lost."""
    import ray

    out = pool.out.pop(reference, None)
    worker = pool.opening.pop(reference) if out is None else out.worker
    try:
        answer = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        _dismiss(pool, worker)
        raise (error.cause if isinstance(error.cause, Exception) else error) from None
    except ray.exceptions.RayError as error:  # its node or its process is gone
        _dismiss(pool, worker)
        pool.failed_starts += out is None
        if pool.failed_starts == ATTEMPTS or (out is not None and out.attempt == ATTEMPTS):
            reason = " ".join(str(error).split())[:300]
            what = "the classifier could not be opened" if out is None else "a chunk could not be labelled"
            msg = f"{what}: lost {ATTEMPTS} nodes or processes over it, the last one: {reason}"
            raise RunError(msg) from None
        if out is not None:
            ahead.appendleft(out)
        return None
    pool.failed_starts = 0
    if out is None:
        pool.workers.append(worker)
        return None
    return out.work, answer


def _dismiss(pool: _Pool, worker: Any) -> None:
    import ray

    ray.kill(worker)  # it may only be out of reach, and would keep its place
    pool.workers = [other for other in pool.workers if other is not worker]
