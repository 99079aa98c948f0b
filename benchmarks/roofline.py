"""What would this machine allow, how close is the engine, and what limits it?

    python -m benchmarks.roofline [--size base] [--reviews 8] [--rounds 3] [--threads 1]

The bound: the operations of the engine's matrix products, counted as they run, over the best rate that the
matrix product of torch reaches here at the same shapes and precision. No exact implementation on these
kernels can be faster; what the engine needs above it goes to memory-bound operators (activation, softmax,
masks, norms, copies), which the operator profile names. Processor time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import contenders, peers
from benchmarks.common import DTYPE, PRECISION, Options, publish, set_up, table
from benchmarks.work import count

_ROWS = 1336  # eight reviews of the mean length
_SHAPES = {"base": ((768, 768), (2048, 768), (768, 2048)), "small": ((384, 512), (1024, 512), (512, 1024))}
_TOP = 12


def _best(run: Callable[[], object], repeats: int = 12) -> float:
    run()
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        taken.append(time.process_time() - start)
    return min(taken)


def peaks(size: str) -> dict[str, float]:
    """Best rate of a matrix product at the model's shapes.

    Args:
        size: Shape of the model.

    Returns:
        GFLOP or GOP per processor second, by precision.
    """
    rates: dict[str, list[float]] = {"fp32": [], "bf16": [], "int8": []}
    for out, inner in _SHAPES.get(size, _SHAPES["base"]):
        work = 2e-9 * _ROWS * out * inner
        x, w = torch.randn(_ROWS, inner), torch.randn(out, inner)
        rates["fp32"].append(work / _best(_product(x, w)))
        rates["bf16"].append(work / _best(_product(x.bfloat16(), w.bfloat16())))
        if torch.cpu._is_vnni_supported():
            rates["int8"].append(work / _best(_int8_product(out, inner)))
    return {name: max(values) for name, values in rates.items() if values}


def _product(x: torch.Tensor, w: torch.Tensor) -> Callable[[], object]:
    return lambda: x @ w.t()


def _int8_product(out: int, inner: int) -> Callable[[], object]:
    codes = torch.randint(0, 256, (_ROWS, inner), dtype=torch.uint8)
    packed = torch.ops.onednn.qlinear_prepack(torch.randint(-127, 128, (out, inner), dtype=torch.int8), None)
    scales, zeros = torch.ones(out), torch.zeros(out, dtype=torch.int32)
    kernel: Any = torch.ops.onednn.qlinear_pointwise
    return lambda: kernel(codes, 1.0, 128, packed, scales, zeros, None, 1.0, 0, torch.bfloat16, "none", [], "")


def _profile(run: Callable[[], object]) -> list[tuple[str, float]]:
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        run()
    events = recorded.key_averages()
    total = sum(e.self_cpu_time_total for e in events)
    ranked = sorted(events, key=lambda e: -e.self_cpu_time_total)[:_TOP]
    return [(e.key, e.self_cpu_time_total / total) for e in ranked]


def _cpu_seconds(run: Callable[[], object], opts: Options) -> float:
    run()
    taken = []
    for _ in range(opts.rounds):
        start = time.process_time()
        run()
        taken.append(time.process_time() - start)
    return statistics.median(taken) / opts.reviews


def _examine(
    name: str, run: Callable[[], object], peak: float, opts: Options, gflop: float | None = None
) -> dict[str, Any]:
    """Measure one piece of work; ``gflop`` per review where the counter cannot see it (8-bit products)."""
    seconds = _cpu_seconds(run, opts)
    gflop = count(run).operations / 1e9 / opts.reviews if gflop is None else gflop
    bound = gflop / peak
    return {
        "name": name,
        "cpu_seconds_per_review": seconds,
        "gflop_per_review": gflop,
        "bound_seconds_per_review": bound,
        "share_of_bound": bound / seconds,
        "profile": _profile(run),
    }


def main() -> None:
    """Measure, print and write."""
    bench = set_up(__doc__, reviews=8)
    opts, folder, prompts = bench.opts, bench.folder, bench.prompts
    best, merged = peaks(opts.size), peers.load_base(folder, DTYPE).eval()
    training = contenders.training(folder, prompts, dtype=DTYPE)[0]
    parts = [
        _examine(f"rxtone training, {PRECISION}", training, best[PRECISION], opts),
        _examine(
            f"rxtone scoring, {PRECISION}", contenders.scoring(merged, prompts, int8=False), best[PRECISION], opts
        ),
    ]
    if "int8" in best:
        run = contenders.scoring(merged, prompts, int8=True)
        parts.append(_examine("rxtone scoring, int8", run, best["int8"], opts, parts[1]["gflop_per_review"]))
    rows = [["work", "GFLOP/review", "bound cpu-s", "measured cpu-s", "share of the bound"]]
    for part in parts:
        numbers = (part["gflop_per_review"], part["bound_seconds_per_review"], part["cpu_seconds_per_review"])
        rows.append([part["name"], *[f"{n:.3f}" for n in numbers], f"{part['share_of_bound']:.0%}"])
    tutorial, own = _cpu_seconds(peers.tutorial(folder, prompts)[0], opts), parts[0]
    ceiling = tutorial / own["bound_seconds_per_review"]
    lines = [
        f"Best matrix products: {', '.join(f'{n} {r:.0f} G/s' for n, r in best.items())}.",
        "",
        table(rows),
        "",
        f"Ceiling of training against the tutorial loop: {ceiling:.1f}x;"
        f" reached {tutorial / own['cpu_seconds_per_review']:.1f}x.",
    ]
    for part in parts:
        profile_rows = [["operator", "share"], *[[key, f"{share:.1%}"] for key, share in part["profile"]]]
        lines += ["", f"{part['name']}:", "", table(profile_rows)]
    found = {
        "peaks": best,
        "tutorial_cpu_seconds_per_review": tutorial,
        "ceiling_training_vs_tutorial": ceiling,
        "parts": parts,
    }
    publish(bench, "roofline", "distance to the machine's limit", found, "\n".join(lines))


if __name__ == "__main__":
    main()
