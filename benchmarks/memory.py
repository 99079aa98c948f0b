"""How much memory does a training step need?

    python -m benchmarks.memory [--size base] [--reviews 8]

Every contender trains one step of batch 8 in a process of its own; its peak is the high-water mark of
resident memory (VmHWM), the interpreter and all libraries included.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.common import PRECISION, Options, bar_plot, publish, set_up, table

_TRAIN = """
import sys
from pathlib import Path
from benchmarks import contenders, peers
from benchmarks.common import DTYPE, Options, load_prompts
from rxtone.model.host import prepare_host
import torch
opts = Options(Path(sys.argv[2]), Path(sys.argv[3]), Path("."), "base", int(sys.argv[5]), 1, int(sys.argv[6]))
torch.set_num_threads(opts.threads)
folder, prompts = Path(sys.argv[4]), load_prompts(opts)
name = sys.argv[1]
if name == "tutorial":
    run, _ = peers.tutorial(folder, prompts)
elif name in ("autocast", "loaded"):
    run, _ = peers.trainer(folder, prompts, autocast=name == "autocast", dtype=DTYPE)
else:
    prepare_host()
    run, _ = contenders.training(folder, prompts, dtype=DTYPE)
run()
"""
_PEAK = """
import json, pathlib
status = dict(line.split(":", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines())
print(json.dumps(int(status["VmHWM"].split()[0]) * 1024))
"""
NAMES = {
    "tutorial": "tutorial loop",
    **({"autocast": "Seq2SeqTrainer, bf16 autocast"} if PRECISION == "bf16" else {}),
    "loaded": f"Seq2SeqTrainer, {PRECISION} base",
    "rxtone": "rxtone",
}


def peak(code: str, *arguments: str) -> int:
    """Run code in a fresh interpreter and return its peak resident memory.

    Args:
        code: Python source.
        arguments: Its command line.

    Returns:
        Bytes.

    Raises:
        RuntimeError: The process failed.
    """
    command = [sys.executable, "-c", code + _PEAK, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    return int(json.loads(done.stdout.splitlines()[-1]))


def training_peaks(opts: Options, folder: Path) -> dict[str, int]:
    """Peak memory of a training step of every contender.

    Args:
        opts: The options.
        folder: The base.

    Returns:
        Bytes by contender.
    """
    shared = (str(opts.shared), str(opts.work), str(folder), str(opts.reviews), str(opts.threads))
    return {label: peak(_TRAIN, name, *shared) for name, label in NAMES.items()}


def main() -> None:
    """Measure, print and write."""
    bench = set_up(__doc__, reviews=8)
    opts, peaks = bench.opts, training_peaks(bench.opts, bench.folder)
    first = peaks[NAMES["tutorial"]]
    rows = [["contender", "peak GiB", "vs tutorial"]]
    rows += [[name, f"{size / 2**30:.2f}", f"{size / first:.2f}x"] for name, size in peaks.items()]
    found = {"ratios": {"peak memory, training vs (a)": [peaks[NAMES["rxtone"]] / first]}, "training_bytes": peaks}
    publish(bench, "memory", "peak resident memory of a training step", found, table(rows))
    bar_plot(opts, f"memory-{opts.size}", list(peaks), [p / 2**30 for p in peaks.values()], "peak memory, GiB")


if __name__ == "__main__":
    main()
