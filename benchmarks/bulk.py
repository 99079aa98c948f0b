"""Does the memory of bulk scoring grow with the number of reviews?

    python -m benchmarks.bulk

Every count is scored in a process of its own, a thousand reviews at a time, on a tiny model: what could grow
is what is kept per review, which does not depend on the model.
"""

from __future__ import annotations

from benchmarks.common import line_plot, machine, options, table, write
from benchmarks.memory import peak

COUNTS = (1_000, 10_000, 100_000)
_BULK = """
import sys
import torch
from transformers import T5Config, T5ForConditionalGeneration
from benchmarks.contenders import planned
from rxtone.model.engine import flatten
torch.set_num_threads(int(sys.argv[2]))
config = T5Config(vocab_size=200, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=2)
config.decoder_start_token_id = 0
engine = planned(T5ForConditionalGeneration(config).bfloat16().eval())
left = int(sys.argv[1])
generator = torch.Generator().manual_seed(1)
with torch.inference_mode():
    while left > 0:
        count = min(left, 1000)
        lengths = torch.randint(8, 64, (count,), generator=generator).tolist()
        ids = torch.randint(2, 200, (sum(lengths),), generator=generator)
        engine.label_scores(ids, lengths, [(7,), (8,), (9,)], with_eos=False)
        left -= count
"""


def main() -> None:
    """Measure, print and write."""
    opts = options(__doc__, reviews=1)
    about = machine(opts.threads)
    peaks = {count: peak(_BULK, str(count), str(opts.threads)) for count in COUNTS}
    rows = [["reviews scored", "peak MiB"], *[[f"{n:,}", f"{b / 2**20:.0f}"] for n, b in peaks.items()]]
    write(
        opts,
        "bulk",
        {"question": "peak memory of bulk scoring", "machine": about, "bytes": peaks},
        table(rows),
    )
    lines = {"peak": [b / 2**20 for b in peaks.values()]}
    line_plot(opts, "bulk", COUNTS, lines, ("reviews scored", "peak MiB"))


if __name__ == "__main__":
    main()
