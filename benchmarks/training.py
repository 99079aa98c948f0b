"""How many reviews a second does each contender train on?

    python -m benchmarks.training [--size base] [--reviews 16] [--rounds 4]

DrugLib prompts cut at 256 tokens, LoRA r=8 on q and v, batches of 8, the same reviews for all. Losses while
training are under each contender's own dropout masks; beside them stands the loss of the first batch without
dropout, before and after training: before, it must be equal up to the precision of the weights.
"""

from __future__ import annotations

from benchmarks import contenders, peers
from benchmarks.common import (
    DTYPE,
    PRECISION,
    Contender,
    bar_plot,
    interleave,
    publish,
    rate_table,
    ratios_by_round,
    set_up,
    settings_list,
    table,
    timing_data,
)

TUTORIAL = "tutorial loop"
AUTOCAST = "Seq2SeqTrainer, bf16 autocast"
LOADED = f"Seq2SeqTrainer, {PRECISION} base"
OWN = "rxtone"


def main() -> None:
    """Measure, print and write."""
    bench = set_up(__doc__, reviews=16, rounds=4)
    folder, prompts, reviews = bench.folder, bench.prompts, bench.opts.reviews
    grouped = "grouped by length, dynamic padding to 8, SDPA, batch 8, constant rate 3e-4"
    makers = {
        TUTORIAL: ("fp32, padded to 256, labels to 10, batch 8, AdamW 3e-4", peers.tutorial(folder, prompts)),
    }
    if PRECISION == "bf16":
        autocast = peers.trainer(folder, prompts, autocast=True)
        makers[AUTOCAST] = (f"fp32 weights, bf16 autocast, {grouped}", autocast)
    loaded = peers.trainer(folder, prompts, autocast=False, dtype=DTYPE)
    makers[LOADED] = (f"{PRECISION} weights, fp32 adapters, {grouped}", loaded)
    makers[OWN] = (
        f"{PRECISION} weights, fp32 adapters, flat tokens, batch 8, AdamW 3e-4",
        contenders.training(folder, prompts, dtype=DTYPE),
    )
    timings = interleave(
        [Contender(name, settings, run, check) for name, (settings, (run, check)) in makers.items()], bench.opts
    )
    by_name = {t.name: t for t in timings}
    best = max({AUTOCAST, LOADED} & by_name.keys(), key=lambda name: by_name[name].rate(reviews))
    losses = [["loss of the first batch without dropout", "before", "after"]]
    losses += [[t.name, *[f"{loss:.3f}" for loss in t.checks]] for t in timings]
    own = by_name[OWN]
    found = {
        "ratios": {
            "training vs (a)": ratios_by_round(own, by_name[TUTORIAL]),
            "training vs (b)": ratios_by_round(own, by_name[best]),
        },
        "last_losses": {t.name: t.results[-1] for t in timings},
        "losses_without_dropout": {t.name: t.checks for t in timings},
        "contenders": timing_data(timings, reviews),
    }
    text = "\n\n".join([rate_table(timings, reviews, (TUTORIAL, best)), table(losses), settings_list(timings)])
    publish(bench, "training", "training reviews per second", found, text)
    rates = [t.rate(reviews) for t in timings]
    bar_plot(
        bench.opts, f"training-{bench.opts.size}", [t.name for t in timings], rates, "training, reviews per second"
    )


if __name__ == "__main__":
    main()
