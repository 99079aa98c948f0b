"""Dynamic batching: one thread computes, whatever waits in the meantime becomes the next batch.

Nothing waits for company: an idle server starts at once, and batches form while it is busy. Requests
take turns review by review, so a large one does not hold up small ones.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections import deque
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from rxtone.serving.limits import Limits, RequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rxtone.classifier import Prediction

Item = TypeVar("Item", contravariant=True)

SMOOTHING = 0.2
"""Weight of the newest batch in the running estimate of seconds per token."""

logger = logging.getLogger("rxtone.serving")


class Predictor(Protocol[Item]):
    """What the batcher needs of who computes."""

    def predict(self, items: Sequence[Item], /) -> list[Prediction]:
        """Predictions of reviews, in order, from what stands for each of them."""
        ...


@dataclass(eq=False)
class Job:
    """One admitted request.

    Attributes:
        model: Who computes it.
        items: What the model takes for each of its n reviews.
        tokens: Prompt length of each.
        future: Resolves to n predictions; cancelling it drops what is not computed yet.
    """

    model: Predictor[Any]
    items: Sequence[Any]
    tokens: list[int]
    future: Future[list[Prediction]] = field(default_factory=Future)
    taken: int = 0
    answers: dict[int, Prediction] = field(default_factory=dict)


class Batcher:
    """The queue and the thread that works it off.

    Args:
        limits: Queue and batch bounds.
        observe: Called after each batch with its reviews, its tokens and its seconds.
    """

    def __init__(self, limits: Limits, observe: Callable[[int, int, float], None] | None = None) -> None:
        self._limits = limits
        self._observe = observe
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._seconds_per_token = 0.0
        self._thread = threading.Thread(target=self._work, name="rxtone-batcher", daemon=True)
        self._thread.start()

    def submit(self, model: Predictor[Item], items: Sequence[Item], tokens: list[int]) -> Job:
        """Admit a request.

        Args:
            model: Who computes it.
            items: What the model takes for each review, such as its prompt; at least one.
            tokens: Prompt length of each.

        Returns:
            The job; its future has the predictions.

        Raises:
            RequestError: 429 when too much waits already, 503 when the server is closing.
        """
        job = Job(model, items, tokens)
        with self._changed:
            self._refuse_if_full()
            self._jobs.append(job)
            self._changed.notify()
        return job

    def check_room(self) -> None:
        """Refuse what `submit` would refuse, before anything is spent on reading it.

        Under overload most requests are refused; parsing and tokenising them first would delay the admitted ones.

        Raises:
            RequestError: 429 or 503, as `submit` does.
        """
        with self._changed:
            self._refuse_if_full()

    def waiting(self) -> int:
        """Reviews admitted and not yet in a batch."""
        with self._changed:
            return self._waiting()

    def alive(self) -> bool:
        """Whether the thread runs and takes work."""
        return self._thread.is_alive() and not self._closing

    def close(self, timeout: float | None = None) -> None:
        """Take nothing more, finish what was admitted, end the thread.

        Args:
            timeout: Most seconds to wait.
        """
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout)

    def _refuse_if_full(self) -> None:
        if self._closing:
            raise RequestError(503, "closing", "the server is shutting down; try another or try later", 5)
        waiting, wait = self._waiting(), self._expected_wait()
        if waiting >= self._limits.queue_texts or (waiting and wait > self._limits.queue_seconds):
            message = f"{waiting} reviews wait already, about {wait:.1f} s of work; try again later"
            raise RequestError(429, "busy", message, max(1, math.ceil(wait)))

    def _waiting(self) -> int:
        return sum(len(job.items) - job.taken for job in self._jobs if not job.future.cancelled())

    def _expected_wait(self) -> float:
        left = sum(sum(job.tokens[job.taken :]) for job in self._jobs if not job.future.cancelled())
        return left * self._seconds_per_token

    def _work(self) -> None:
        while True:
            with self._changed:
                self._drop_gone()
                while not self._jobs:
                    if self._closing:
                        return
                    self._changed.wait()
                    self._drop_gone()
                batch = self._take()
            self._compute(batch)

    def _drop_gone(self) -> None:
        if any(job.future.cancelled() for job in self._jobs):
            self._jobs = deque(job for job in self._jobs if not job.future.cancelled())

    def _take(self) -> list[tuple[Job, int]]:
        """The next batch: one review of each job in turn, all of one model, within the budgets."""
        model = self._jobs[0].model
        ours = [job for job in self._jobs if job.model is model]
        batch: list[tuple[Job, int]] = []
        longest, room = 0, True
        while room and ours:
            for job in ours:
                longest = max(longest, job.tokens[job.taken])
                count = len(batch) + 1
                if batch and (count > self._limits.batch_texts or longest * count > self._limits.batch_tokens):
                    room = False
                    break
                batch.append((job, job.taken))
                job.taken += 1
            ours = [job for job in ours if job.taken < len(job.items)]
        touched = {id(job) for job, _ in batch}
        left = [job for job in self._jobs if job.taken < len(job.items)]
        # Who had a turn queues up again behind who had none.
        self._jobs = deque(sorted(left, key=lambda job: id(job) in touched))
        return batch

    def _compute(self, batch: list[tuple[Job, int]]) -> None:
        started = time.perf_counter()
        try:
            predictions = batch[0][0].model.predict([job.items[index] for job, index in batch])
        except Exception as error:  # whatever the model throws belongs to a request, not to the thread
            if len(batch) > 1:  # one bad review must not take the others with it
                for unit in batch:
                    self._compute([unit])
                return
            logger.error("a review could not be computed: %s", type(error).__name__)  # no text in logs
            with contextlib.suppress(InvalidStateError):
                batch[0][0].future.set_exception(error)
            return
        seconds = time.perf_counter() - started
        tokens = sum(job.tokens[index] for job, index in batch)
        with self._changed:
            newest = seconds / max(1, tokens)
            known = self._seconds_per_token
            self._seconds_per_token = newest if not known else known + SMOOTHING * (newest - known)
        for (job, index), prediction in zip(batch, predictions, strict=True):
            job.answers[index] = prediction
            if len(job.answers) == len(job.items):
                with contextlib.suppress(InvalidStateError):  # its client may have gone this instant
                    job.future.set_result([job.answers[i] for i in range(len(job.items))])
        if self._observe is not None:
            self._observe(len(batch), tokens, seconds)
