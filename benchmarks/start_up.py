"""How long from a cold interpreter to the first label?

    python -m benchmarks.start_up [--size base] [--rounds 3]

Every round starts a fresh interpreter per contender: import, load, one review. rxtone reads the
weights and runs its engine; the peer reads the same file through transformers and runs one decoder step.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from benchmarks.common import DTYPE, PRECISION, base_folder, machine, options, table, write

_CODE = {
    "transformers, one step": """
import sys, torch
from transformers import AutoModelForSeq2SeqLM
model = AutoModelForSeq2SeqLM.from_pretrained(sys.argv[1], dtype=getattr(torch, sys.argv[2])).eval()
ids = torch.randint(2, 1000, (1, 160))
with torch.inference_mode():
    start = torch.zeros(1, 1, dtype=torch.int64)
    model(input_ids=ids, decoder_input_ids=start, use_cache=False).logits[:, 0].argmax()
""",
    f"rxtone {PRECISION}": """
import sys, torch
from transformers import AutoModelForSeq2SeqLM
from rxtone.model.engine import Engine
engine = Engine.plan(AutoModelForSeq2SeqLM.from_pretrained(sys.argv[1], dtype=getattr(torch, sys.argv[2])).eval())
ids = torch.randint(2, 1000, (160,))
with torch.inference_mode():
    engine.label_scores(ids, [160], [(1465,), (7163,), (2841,)], with_eos=False).argmax()
""",
}
_CODE["rxtone int8"] = _CODE[f"rxtone {PRECISION}"].replace(".eval())", ".eval()).int8()")


def main() -> None:
    """Measure, print and write."""
    opts = options(__doc__, reviews=1)
    about, folder = machine(opts.threads), base_folder(opts)
    seconds: dict[str, list[float]] = {name: [] for name in _CODE}
    for _ in range(opts.rounds):
        for name, code in _CODE.items():
            command = [sys.executable, "-c", code, str(folder), str(DTYPE).removeprefix("torch.")]
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            seconds[name].append(time.perf_counter() - start)
    rows = [["contender", "median s", "min-max s"]]
    for name, taken in seconds.items():
        rows.append([name, f"{statistics.median(taken):.2f}", f"{min(taken):.2f}-{max(taken):.2f}"])
    result = {
        "question": "seconds to the first label",
        "size": opts.size,
        "machine": about,
        "seconds": seconds,
    }
    write(opts, f"start-up-{opts.size}", result, table(rows))


if __name__ == "__main__":
    main()
