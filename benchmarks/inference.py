"""How many reviews a second does each contender label?

    python -m benchmarks.inference [--size base] [--reviews 64] [--rounds 3]

DrugLib prompts cut at 256 tokens. Random weights: the agreement column compares each contender's labels with
those of transformers in bf16 and says whether the same computation was done, not how good the labels are.
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

GENERATE = "generate()"
TRANSFORMERS = "transformers, one step"
CTRANSLATE2 = "CTranslate2 int8"
ONNX = "ONNX Runtime int8"
OWN = "rxtone bf16"
OWN_INT8 = "rxtone int8"


def main() -> None:
    """Measure, print and write."""
    opts = options(__doc__, reviews=64)
    about, folder, prompts = machine(opts.threads), base_folder(opts), load_prompts(opts)
    threads = opts.threads
    timings = interleave(
        [
            Contender(GENERATE, "fp32, padded to 256, batch 8", peers.generated(folder, prompts)),
            Contender(
                TRANSFORMERS,
                "merged bf16, sorted, dynamic padding, SDPA, batch 16",
                peers.best_transformers(folder, prompts),
            ),
            Contender(
                CTRANSLATE2,
                f"int8, beam 1, one token, 2048-token batches, {threads} threads in one worker",
                peers.ctranslate2(folder, opts.work, prompts, threads),
            ),
            Contender(
                ONNX,
                f"dynamic int8 per channel, sorted, batch 8, {threads} threads",
                peers.onnx_runtime(folder, opts.work, prompts, threads),
            ),
            Contender(OWN, "merged bf16, flat tokens", contenders.scoring(folder, prompts, int8=False)),
            Contender(OWN_INT8, "merged, 8-bit linear maps", contenders.scoring(folder, prompts, int8=True)),
        ],
        opts.rounds,
    )
    expected = next(t for t in timings if t.name == TRANSFORMERS).results[-1]
    agreement = {
        t.name: sum(a == b for a, b in zip(t.results[-1], expected, strict=True)) / len(expected)
        for t in timings
        if t.name in (TRANSFORMERS, ONNX, OWN, OWN_INT8)
    }
    text = rate_table(timings, opts.reviews, (GENERATE, TRANSFORMERS, CTRANSLATE2, ONNX))
    result = {
        "question": "labelled reviews per second",
        "size": opts.size,
        "machine": about,
        "lengths": lengths_summary(prompts),
        "agreement_with_transformers": agreement,
        "contenders": timing_data(timings, opts.reviews),
    }
    write(opts, f"inference-{opts.size}", result, text)
    rates = [t.rate(opts.reviews) for t in timings]
    bar_plot(opts, f"inference-{opts.size}", [t.name for t in timings], rates, "inference, reviews per second")


if __name__ == "__main__":
    main()
