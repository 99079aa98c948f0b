"""Scoring batches side by side, each on a thread of its own, instead of all threads on one operator after another.

OpenMP lets all cores share an operator and wait for each other at its end, some hundred times a batch. Small operators
gain little from that, and a core that is busy elsewhere, or whose host is, holds up all others at every one of them.
Batches need nothing of each other until the end. Torch releases the interpreter's lock inside an operator, so plain
threads do.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

T = TypeVar("T")

_MOST = 8  # every operator takes the interpreter's lock for some microseconds: more threads would wait for it


def workers_for(device: torch.device, items: int) -> int:
    """How many batches to compute at a time.

    Args:
        device: Where they are computed.
        items: How many there could be.

    Returns:
        1 on other devices than the CPU, which have their own parallelism; else at most torch's number of threads.
    """
    return max(1, min(torch.get_num_threads(), items, _MOST)) if device.type == "cpu" else 1


def side_by_side(tasks: Sequence[Callable[[], T]], workers: int) -> list[T]:
    """Run tasks, several at a time, under the caller's mode of gradients.

    Args:
        tasks: Independent computations.
        workers: How many run at a time; they share torch's threads.

    Returns:
        Their results, in order.

    Raises:
        BaseException: The first error of a task; the others are finished or never begun.
    """
    if workers == 1 or len(tasks) == 1:
        return [task() for task in tasks]
    threads = torch.get_num_threads()
    inference, gradients = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
    results: dict[int, T] = {}
    errors: list[BaseException] = []
    waiting = deque(enumerate(tasks))

    def work() -> None:
        torch.set_num_threads(max(1, threads // workers))  # of this thread, and the default of those to come
        with torch.inference_mode(inference), torch.set_grad_enabled(gradients):
            while not errors:
                try:
                    number, task = waiting.popleft()
                except IndexError:
                    return
                try:
                    results[number] = task()
                except BaseException as error:  # it is the caller's
                    errors.append(error)

    crew = [threading.Thread(target=work, name="rxtone-score", daemon=True) for _ in range(min(workers, len(tasks)))]
    try:
        for one in crew:
            one.start()
        for one in crew:
            one.join()
    finally:
        waiting.clear()  # who is interrupted here begins nothing more
        torch.set_num_threads(threads)  # the default of threads to come is again what it was
    if errors:
        raise errors[0]
    return [results[number] for number in range(len(tasks))]
