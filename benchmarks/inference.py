"""How many reviews a second does each contender label?

    python -m benchmarks.inference [--size base] [--reviews 64] [--rounds 4]

DrugLib prompts cut at 256 tokens. Random weights: the agreement column compares each contender's labels with
those of transformers in the same precision and says whether the same computation was done, not how good the labels are.
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
    timing_data,
)

GENERATE = "generate()"
TRANSFORMERS = "transformers, one step"
CTRANSLATE2 = "CTranslate2 int8"
ONNX = "ONNX Runtime int8"
SIDE_BY_SIDE = ", side by side"
OWN = f"rxtone {PRECISION}"
OWN_INT8 = "rxtone int8"


def main() -> None:
    """Measure, print and write."""
    bench = set_up(__doc__, reviews=64, rounds=4)
    folder, prompts, opts = bench.folder, bench.prompts, bench.opts
    merged, threads = peers.load_base(folder, DTYPE).eval(), opts.threads
    timings = interleave(
        [
            Contender(GENERATE, "fp32, padded to 256, batch 8, at most 3 tokens", peers.generated(folder, prompts)),
            Contender(
                TRANSFORMERS,
                f"merged {PRECISION}, sorted, dynamic padding, SDPA, batch 16",
                peers.best_transformers(merged, prompts),
            ),
            *(
                contender
                for workers in dict.fromkeys((1, threads))
                for contender in (
                    Contender(
                        CTRANSLATE2 + (SIDE_BY_SIDE if workers > 1 else ""),
                        f"int8, beam 1, one token, {2048 // workers}-token batches, {threads} threads, "
                        f"{workers} batches at a time",
                        peers.ctranslate2(folder, opts.work, prompts, threads, workers),
                    ),
                    Contender(
                        ONNX + (SIDE_BY_SIDE if workers > 1 else ""),
                        f"dynamic int8 per channel, sorted, batch 8, {threads} threads, {workers} batches at a time",
                        peers.onnx_runtime(folder, opts.work, prompts, threads, workers),
                    ),
                )
            ),
            Contender(OWN, f"merged {PRECISION}, flat tokens", contenders.scoring(merged, prompts, int8=False)),
            Contender(OWN_INT8, "merged, 8-bit linear maps", contenders.scoring(merged, prompts, int8=True)),
        ],
        opts,
    )
    by_name = {t.name: t for t in timings}
    expected = by_name[TRANSFORMERS].results[-1]
    agreement = {
        name: sum(a == b for a, b in zip(by_name[name].results[-1], expected, strict=True)) / len(expected)
        for name in (TRANSFORMERS, ONNX, OWN, OWN_INT8)
    }
    # A peer is what it is at its best.
    best = {
        peer: max((t for t in timings if t.name.startswith(peer)), key=lambda t: t.rate(opts.reviews)).name
        for peer in (CTRANSLATE2, ONNX)
    }
    against = (GENERATE, TRANSFORMERS, best[CTRANSLATE2], best[ONNX])
    found = {
        "ratios": {
            f"inference vs {letter}, {'int8' if own is OWN_INT8 else PRECISION}": ratios_by_round(
                by_name[own], by_name[peer]
            )
            for letter, peer in zip(("(a)", "(b)", "(c)", "(d)"), against, strict=True)
            for own in (OWN, OWN_INT8)
        },
        "agreement_with_transformers": agreement,
        "contenders": timing_data(timings, opts.reviews),
    }
    agreed = "Same label as transformers: " + ", ".join(f"{name} {share:.0%}" for name, share in agreement.items())
    text = rate_table(timings, opts.reviews, against)
    publish(
        bench, "inference", "labelled reviews per second", found, "\n\n".join([text, agreed, settings_list(timings)])
    )
    rates = [t.rate(opts.reviews) for t in timings]
    bar_plot(opts, f"inference-{opts.size}", [t.name for t in timings], rates, "inference, reviews per second")


if __name__ == "__main__":
    main()
