"""How many reviews a second does each contender train on?

    python -m benchmarks.training [--size base] [--reviews 32] [--rounds 3]

DrugLib prompts cut at 256 tokens, LoRA r=8 on q and v, batches of 8, the same reviews for all. Losses are
those of the last round, under each contender's own dropout masks; the check of equal losses without dropout
is in the tests.
"""

from __future__ import annotations

from benchmarks import contenders, peers
from benchmarks.common import (
    Contender,
    bar_plot,
    base_folder,
    interleave,
    lengths_summary,
    load_prompts,
    machine,
    options,
    rate_table,
    timing_data,
    write,
)

TUTORIAL = "tutorial loop"
AUTOCAST = "Seq2SeqTrainer, bf16 autocast"
LOADED = "Seq2SeqTrainer, bf16 base"
OWN = "rxtone"


def main() -> None:
    """Measure, print and write."""
    opts = options(__doc__, reviews=32)
    about, folder, prompts = machine(opts.threads), base_folder(opts), load_prompts(opts)
    timings = interleave(
        [
            Contender(TUTORIAL, "fp32, padded to 256, labels to 10, batch 8", peers.tutorial(folder, prompts)),
            Contender(
                AUTOCAST,
                "fp32 weights, bf16 autocast, grouped by length, dynamic padding, SDPA, batch 8",
                peers.trainer(folder, prompts, autocast=True),
            ),
            Contender(
                LOADED,
                "bf16 weights, fp32 adapters, grouped by length, dynamic padding, SDPA, batch 8",
                peers.trainer(folder, prompts, autocast=False),
            ),
            Contender(OWN, "bf16 weights, fp32 adapters, flat tokens, batch 8", contenders.training(folder, prompts)),
        ],
        opts.rounds,
    )
    best = max((AUTOCAST, LOADED), key=lambda name: next(t for t in timings if t.name == name).rate(opts.reviews))
    text = rate_table(timings, opts.reviews, (TUTORIAL, best))
    result = {
        "question": "training reviews per second",
        "size": opts.size,
        "machine": about,
        "lengths": lengths_summary(prompts),
        "last_losses": {t.name: t.results[-1] for t in timings},
        "contenders": timing_data(timings, opts.reviews),
    }
    write(opts, f"training-{opts.size}", result, text)
    rates = [t.rate(opts.reviews) for t in timings]
    bar_plot(opts, f"training-{opts.size}", [t.name for t in timings], rates, "training, reviews per second")


if __name__ == "__main__":
    main()
