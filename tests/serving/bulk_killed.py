"""Run by test_bulk.py: kill a bulk job at random moments until one run of it reaches the end."""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

torch.set_num_threads(1)

from rxtone.loading import load  # noqa: E402
from rxtone.serving.bulk import BulkDone, predict_tables  # noqa: E402


def main(run: str, source: str, output: str, kills: int, seed: int) -> None:
    classifier = load(run)
    generator = random.Random(seed)
    longest = _attempt(classifier, source, Path(output).with_name("whole.csv"), None)
    killed = 0
    # A kill may come after the end; the job then begins anew, and the kill does not count.
    while killed < kills:
        killed += _attempt(classifier, source, Path(output), generator.uniform(0.0, longest)) < 0
    _attempt(classifier, source, Path(output), None)
    print(killed)


def _attempt(classifier, source: str, output: Path, kill_after: float | None) -> float:
    """Seconds that the job took, or -1 where it was killed."""
    start = time.perf_counter()
    child = os.fork()
    if child == 0:
        events = list(predict_tables(classifier, [source], output, chunk_rows=25))
        os._exit(0 if isinstance(events[-1], BulkDone) else 1)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return -1.0
    assert os.WEXITSTATUS(status) == 0
    return time.perf_counter() - start


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
