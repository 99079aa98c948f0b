"""`python -m tests.torture`: measure the promises; print promise, attempts, failures; keep the figures as JSON."""

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from torture.figure import SHOWN, make_world
from torture.forks import Forks
from torture.promises import PROMISES, Promise


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=[promise.name for promise in PROMISES], help="these promises")
    parser.add_argument("--share", type=float, default=1.0, help="share of the long form's attempts, 0 to 1")
    parser.add_argument("--attempts", type=int, help="so many attempts of each, whatever the form says")
    parser.add_argument("--short", action="store_true", help="the attempts of `make test`")
    parser.add_argument("--out", type=Path, default=Path("torture.json"), help="figures, added to what is there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures = json.loads(options.out.read_text("utf-8")) if options.out.is_file() else {}
    with tempfile.TemporaryDirectory(prefix="rxtone-torture-") as name, Forks() as forks:
        world = make_world(Path(name), forks)
        for promise in PROMISES:
            if options.only and promise.name not in options.only:
                continue
            if promise.missing:
                print(f"{promise.name}: skipped, {promise.missing}", file=sys.stderr)
                continue
            long = max(promise.short, round(promise.long * options.share))
            attempts = options.attempts or (promise.short if options.short else long)
            figures[promise.name] = _measure(promise, attempts, Path(name), world)
            options.out.write_text(json.dumps(figures, indent=2) + "\n", "utf-8")
            print(_row(figures[promise.name]), flush=True)
            for failure in figures[promise.name]["first_failures"]:
                print(f"    {failure}", file=sys.stderr)
    failed = sum(figure["failures"] for figure in figures.values())
    print(f"\n{table(figures)}\n\n{failed} failures")
    return int(failed > 0)


def table(figures: dict) -> str:
    """The figures as a Markdown table."""
    lines = ["| promise | attempts | failures | seconds | figures |", "|---|---:|---:|---:|---|"]
    return "\n".join(lines + [_row(figures[promise.name]) for promise in PROMISES if promise.name in figures])


def _measure(promise: Promise, attempts: int, folder: Path, world) -> dict:
    where = folder / promise.name
    where.mkdir()
    started = time.perf_counter()
    figure = promise.measure(attempts, where, world)
    shutil.rmtree(where, ignore_errors=True)
    return {
        "promise": promise.text, "attempts": figure.attempts, "failures": len(figure.failures),
        "seconds": round(time.perf_counter() - started, 1), "details": figure.details,
        "first_failures": figure.failures[:SHOWN], "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": f"{torch.cpu.get_capabilities().get('cpu_name') or platform.processor()}, one core",
    }  # fmt: skip


def _row(figure: dict) -> str:
    details = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in figure["details"].items())
    return (
        f"| {figure['promise']} | {figure['attempts']:,} | {figure['failures']} | {figure['seconds']:.0f} | {details} |"
    )


if __name__ == "__main__":
    sys.exit(main())
