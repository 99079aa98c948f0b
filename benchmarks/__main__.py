"""Run the measurements, the most important first, and print what was reached beside what was aimed at.

    python -m benchmarks [--window 25m] [--quick] [--only inference serving] [--size base] [--threads 2]

Each measurement runs in an interpreter of its own, so that one's memory and threads do not reach another. None is
begun that the window does not hold, one that outstays it is stopped, and both are listed as not measured.
``--quick`` counts work and takes seconds of processor time. ``--only`` measures some anew and keeps what
earlier runs wrote of the others; without names it only writes the table again. Further options go to the
measurements themselves, run one by one: ``python -m benchmarks.training --help``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import table

OUT = Path("docs/benchmarks")


@dataclass(frozen=True)
class Measurement:
    """One file of measurements.

    Attributes:
        module: Its module.
        least: Seconds it takes at least, at Flan-T5-base shape on two cores.
        rounds: Seconds after which it begins no new round; None where it has no rounds.
        arguments: Further arguments.
        sized: Whether it takes the shared options.
    """

    module: str
    least: float
    rounds: float | None = None
    arguments: tuple[str, ...] = ()
    sized: bool = True


QUICK = (Measurement("work", 0, arguments=("--reviews", "8")),)
WHOLE = (
    Measurement("training", 90, rounds=300),
    Measurement("inference", 150, rounds=300),
    Measurement("memory", 50),
    Measurement("latency", 50),
    Measurement("serving", 60, arguments=("druglib-mini", "--json", str(OUT / "serving.json")), sized=False),
    Measurement("roofline", 80, arguments=("--threads", "1")),
    Measurement("start_up", 40),
    Measurement("scaling", 60, arguments=("--size", "small")),
    Measurement("bulk", 30),
    Measurement("work", 60),
    Measurement("gpu", 240, arguments=("--rounds", "3", "--reviews", "256")),
)
TARGETS = (
    # name of the ratio, least or most, its file
    ("training vs (a)", ">=", 4.5, "training"),
    ("training vs (b)", ">=", 1.6, "training"),
    ("inference vs (a), bf16", ">=", 4.0, "inference"),
    ("inference vs (a), int8", ">=", 6.0, "inference"),
    ("inference vs (b), bf16", ">=", 1.2, "inference"),
    ("inference vs (b), int8", ">=", 1.5, "inference"),
    ("inference vs (c), int8", ">=", 1.2, "inference"),
    ("inference vs (d), int8", ">=", 1.5, "inference"),
    ("peak memory, training vs (a)", "<=", 0.4, "memory"),
)
GPU_TARGETS = (
    ("training vs (a), batch 8", ">=", 6.0),
    ("training vs (b), batch 8", ">=", 3.0),
    ("training vs (b), batch 64", ">=", 1.3),
    ("inference vs (a)", ">=", 8.0),
    ("inference vs (b)", ">=", 2.0),
    ("peak memory allocated vs (a), batch 8", "<=", 0.33),
    ("peak memory reserved vs (a), batch 8", "<=", 0.33),
    ("peak memory allocated vs (a), batch 64", "<=", 0.33),
    ("peak memory reserved vs (a), batch 64", "<=", 0.33),
)


def seconds(text: str) -> float:
    """Read a duration.

    Args:
        text: Such as ``20m``, ``90s`` or ``1h``.

    Returns:
        Seconds.

    Raises:
        argparse.ArgumentTypeError: It is none.
    """
    found = re.fullmatch(r"(\d+)([smh])", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"expected a duration such as 20m, got {text!r}")
    return int(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]]


def command(measurement: Measurement, size: str, threads: int, shared: Path) -> list[str]:
    """The command line of a measurement.

    Args:
        measurement: Which.
        size: Shape of the models.
        threads: Threads to use.
        shared: Where the reference data is.

    Returns:
        Program and arguments.
    """
    words = [sys.executable, "-m", f"benchmarks.{measurement.module}"]
    if measurement.sized:
        words += ["--size", size, "--threads", str(threads), "--shared", str(shared), "--out", str(OUT)]
    if measurement.rounds is not None:
        words += ["--seconds", str(measurement.rounds)]
    return [*words, *measurement.arguments]


def run(measurement: Measurement, words: Sequence[str], left: float) -> str:
    """Run a measurement in what is left of the window.

    Args:
        measurement: Which.
        words: Its command line.
        left: Seconds.

    Returns:
        ``measured in N s``, or why not.
    """
    if left < measurement.least:
        return f"not measured: {left:.0f} s of the window left"
    started = time.monotonic()
    process = subprocess.Popen(words, start_new_session=True)
    try:
        code = process.wait(timeout=left)
    except subprocess.TimeoutExpired:
        return f"not measured: stopped after {left:.0f} s, at the end of the window"
    finally:
        if process.poll() is None:  # with what it started: servers, fresh interpreters
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return f"measured in {time.monotonic() - started:.0f} s" if code == 0 else f"not measured: exit code {code}"


def reached(results: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """The table of targets.

    Args:
        results: What was measured in this run, by file.

    Returns:
        Rows, the head first.
    """
    rows = [list(_HEAD)]
    for name, sign, target, file in TARGETS:
        rows.append(_row(name, sign, target, results.get(file, {}).get("ratios", {}).get(name)))
    served = results.get("serving")
    if served is None:
        rows.append(["one review over HTTP, p50", "<= 15 ms", "not measured", "", ""])
        return [*rows, ["32 clients vs no batching", ">= 3x", "not measured", "", ""]]
    p50, ratio = served["one_review_ms"]["p50"], served["ratio"]
    span = f"p99 {served['one_review_ms']['p99']:.1f}"
    rows.append(["one review over HTTP, p50", "<= 15 ms", f"{p50:.1f} ms", span, "yes" if p50 <= 15 else "no"])
    spread = f"{min(served['ratios']):.2f}-{max(served['ratios']):.2f}"
    met_ratio = "yes" if ratio >= 3 else "no"
    rows.append([f"{served['clients']} clients vs no batching", ">= 3x", f"{ratio:.2f}x", spread, met_ratio])
    return rows


_HEAD = ("what", "target", "reached", "min-max over rounds", "met")


def _row(name: str, sign: str, target: float, ratios: Sequence[float] | None) -> list[str]:
    if ratios is None:
        return [name, f"{sign} {target}x", "not measured", "", ""]
    median = statistics.median(ratios)
    met = median >= target if sign == ">=" else median <= target
    span = f"{min(ratios):.2f}-{max(ratios):.2f}"
    return [name, f"{sign} {target}x", f"{median:.2f}x", span, "yes" if met else "no"]


def reached_on_gpu(size: str) -> tuple[str, list[list[str]]]:
    """The table of targets on a GPU, of this run or of the last that had one.

    Args:
        size: Shape of the models.

    Returns:
        The name of the GPU, and rows, the head first.
    """
    path = OUT / f"gpu-{size}.json"
    none: dict[str, Any] = {"machine": {"cuda": "none yet"}, "ratios": {}}
    found = json.loads(path.read_text("utf-8")) if path.is_file() else none
    rows = [_row(name, sign, target, found["ratios"].get(name)) for name, sign, target in GPU_TARGETS]
    return str(found["machine"]["cuda"]), [list(_HEAD), *rows]


def _fresh(size: str, since: float) -> dict[str, dict[str, Any]]:
    """Results written since a moment, by file."""
    found = {}
    for name in ("training", "inference", "memory", "serving"):
        path = OUT / (f"{name}.json" if name == "serving" else f"{name}-{size}.json")
        if path.is_file() and path.stat().st_mtime >= since:
            found[name] = json.loads(path.read_text("utf-8"))
    return found


def main() -> None:
    """Run them, print and write the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--window", type=seconds, default=seconds("25m"), help="such as 20m (default: 25m)")
    parser.add_argument("--quick", action="store_true", help="work counts only")
    names = [measurement.module for measurement in WHOLE]
    parser.add_argument("--only", nargs="*", choices=names, help="measure these, keep earlier results of the others")
    parser.add_argument("--size", choices=("small", "base"), default="base")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="reference data (%(default)s)")
    opts = parser.parse_args()
    begun, since = time.monotonic(), time.time() if opts.only is None else 0.0
    size = "small" if opts.quick else opts.size
    outcomes = []
    for measurement in QUICK if opts.quick else WHOLE:
        if opts.only is not None and measurement.module not in opts.only:
            outcomes.append([measurement.module, "of an earlier run"])
            continue
        if measurement.module == "gpu" and not torch.cuda.is_available():
            outcomes.append(["gpu", "not measured: no CUDA device here"])
            continue
        print(f"\n== {measurement.module}", flush=True)
        words = command(measurement, size, opts.threads, opts.shared)
        outcome = run(measurement, words, opts.window - (time.monotonic() - begun))
        print(outcome, flush=True)
        outcomes.append([measurement.module, outcome])
    if opts.quick:
        sys.exit(0 if all(outcome.startswith("measured") for _, outcome in outcomes) else 1)
    load = f"Load average before: {os.getloadavg()[2]:.1f} (15 min), threads: {opts.threads}, shape: Flan-T5-{size}."
    rows = reached(_fresh(size, since))
    name, gpu_rows = reached_on_gpu(size)
    on_gpu = f"On a GPU ({name}), by the last run that had one:"
    text = "\n\n".join([table(rows), on_gpu, table(gpu_rows), table([["measurement", "outcome"], *outcomes]), load])
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "summary.md").write_text(text + "\n", "utf-8")
    data = {"size": size, "threads": opts.threads, "targets": rows, "gpu": gpu_rows, "outcomes": dict(outcomes)}
    (OUT / "summary.json").write_text(json.dumps(data, indent=1) + "\n", "utf-8")
    print(f"\n{text}")


if __name__ == "__main__":
    main()
