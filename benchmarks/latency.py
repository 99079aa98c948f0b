"""How long does one review take: the median and the 99th percentile?

    python -m benchmarks.latency [--size base] [--reviews 24]

Every review is labelled alone, at its own length, by every contender in turn.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from benchmarks import contenders, peers
from benchmarks.common import DTYPE, PRECISION, Prompts, bar_plot, publish, set_up, table


def main() -> None:
    """Measure, print and write."""
    bench = set_up(__doc__, reviews=24, rounds=1)
    opts, folder, prompts = bench.opts, bench.folder, bench.prompts
    merged = peers.load_base(folder, DTYPE).eval()
    singles = [Prompts((ids,), (label,)) for ids, label in zip(prompts.ids, prompts.labels, strict=True)]
    makers: dict[str, Callable[[Prompts], Callable[[], object]]] = {
        "generate()": lambda p: peers.generated(folder, p),
        "transformers, one step": lambda p: peers.best_transformers(merged, p),
        "CTranslate2 int8": lambda p: peers.ctranslate2(folder, opts.work, p, opts.threads),
        "ONNX Runtime int8": lambda p: peers.onnx_runtime(folder, opts.work, p, opts.threads),
        f"rxtone {PRECISION}": lambda p: contenders.scoring(merged, p, int8=False),
        "rxtone int8": lambda p: contenders.scoring(merged, p, int8=True),
    }
    wall, cpu = {}, {}
    # A contender holds its own copy of the model, so they come one after another here.
    for name, make in makers.items():
        wall[name], cpu[name] = times(make, singles)
    rows = [["contender", "p50 ms", "p99 ms", "p50 cpu-ms"]]
    rows += [
        [name, f"{np.median(t):.0f}", f"{np.percentile(t, 99):.0f}", f"{np.median(cpu[name]):.0f}"]
        for name, t in wall.items()
    ]
    found = {"milliseconds": wall, "cpu_milliseconds": cpu}
    publish(bench, "latency", "milliseconds for one review", found, table(rows))
    medians = [float(np.median(t)) for t in wall.values()]
    bar_plot(opts, f"latency-{opts.size}", list(wall), medians, "median milliseconds for one review")


def times(make: Callable[[Prompts], Callable[[], object]], singles: list[Prompts]) -> tuple[list[float], list[float]]:
    """Label reviews one by one.

    Args:
        make: Makes the contender for a set of prompts.
        singles: One review each.

    Returns:
        Milliseconds, and milliseconds of processor time, of each.
    """
    holder = _Switch(singles[0])
    run = make(holder)  # type: ignore[arg-type]
    run()
    wall, cpu = [], []
    for single in singles:
        holder.prompts = single
        start, own = time.perf_counter(), time.process_time()
        run()
        wall.append(1e3 * (time.perf_counter() - start))
        cpu.append(1e3 * (time.process_time() - own))
    return wall, cpu


class _Switch:
    """Prompts that change between calls, so that a contender is built once."""

    def __init__(self, prompts: Prompts) -> None:
        self.prompts = prompts

    @property
    def ids(self) -> tuple[tuple[int, ...], ...]:
        return self.prompts.ids

    @property
    def labels(self) -> tuple[int, ...]:
        return self.prompts.labels


if __name__ == "__main__":
    main()
