"""The same questions on a GPU: training at batch 8 and 64, peak memory, labelling many reviews and one.

    python -m benchmarks.gpu [--size base] [--reviews 512] [--rounds 4]

Contenders, texts and checks are those of ``benchmarks.training``, ``inference``, ``latency`` and ``memory``. The first
two rounds are not timed: rxtone records its CUDA graphs in them, and what that takes stands beside the rates. Memory is
what torch's allocator had given out, and what it had reserved for that, at most, while a contender was alone.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks import contenders, peers
from benchmarks.common import (
    Bench,
    Contender,
    Prompts,
    interleave,
    publish,
    rate_table,
    ratios_by_round,
    set_up,
    settings_list,
    table,
    timing_data,
)
from benchmarks.latency import times

TUTORIAL = "tutorial loop"
AUTOCAST = "Seq2SeqTrainer, bf16 autocast"
LOADED = "Seq2SeqTrainer, bf16 base"
GENERATE = "generate()"
TRANSFORMERS = "transformers, one step"
OWN = "rxtone"
_BATCHES = (32, 64, 128, 256)  # of transformers' scoring: the best of them takes part

Made = tuple[Callable[[], float], Callable[[], float]]


def trainers(bench: Bench, size: int) -> dict[str, tuple[str, Callable[[], Made]]]:
    """Who trains, and how: name -> settings, maker.

    Args:
        bench: Options, base and reviews.
        size: Reviews per batch.

    Returns:
        The contenders, not yet made.
    """
    folder, prompts = bench.folder, bench.prompts
    grouped = f"grouped by length, dynamic padding to 8, SDPA, batch {size}, constant rate 3e-4"
    return {
        TUTORIAL: (
            f"fp32, padded to 256, labels to 10, batch {size}, AdamW 3e-4",
            lambda: peers.tutorial(folder, prompts, device="cuda", size=size),
        ),
        AUTOCAST: (
            f"fp32 weights, bf16 autocast, {grouped}",
            lambda: peers.trainer(folder, prompts, autocast=True, device="cuda", size=size),
        ),
        LOADED: (
            f"bf16 weights, fp32 adapters, {grouped}",
            lambda: peers.trainer(folder, prompts, autocast=False, device="cuda", size=size),
        ),
        OWN: (
            f"bf16 weights, fp32 adapters, graphs over flat tokens, batch {size}, AdamW 3e-4",
            lambda: contenders.training(folder, prompts, device="cuda", size=size),
        ),
    }


def _fresh() -> None:
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def memory_and_first(makers: dict[str, tuple[str, Callable[[], Made]]]) -> dict[str, dict[str, float]]:
    """Peak memory, and the seconds of the first two epochs, of every contender alone.

    Args:
        makers: Name -> settings, maker.

    Returns:
        Name -> GiB allocated and reserved, seconds of both epochs.
    """
    found: dict[str, dict[str, float]] = {}
    for name, (_, make) in makers.items():
        _fresh()
        run, _ = make()
        seconds = []
        for _ in range(2):
            start = time.perf_counter()
            run()
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        found[name] = {
            "allocated_gib": torch.cuda.max_memory_allocated() / 2**30,
            "reserved_gib": torch.cuda.max_memory_reserved() / 2**30,
            "first_epoch_s": seconds[0],
            "second_epoch_s": seconds[1],
        }
        del run
    _fresh()
    return found


def train(bench: Bench, size: int) -> tuple[dict[str, Any], str]:
    """Training at one batch size.

    Args:
        bench: Options, base and reviews.
        size: Reviews per batch.

    Returns:
        Data and text.
    """
    makers, reviews = trainers(bench, size), bench.opts.reviews
    alone = memory_and_first(makers)
    made = {name: make() for name, (_, make) in makers.items()}
    timings = interleave([Contender(name, makers[name][0], *made[name]) for name in makers], bench.opts, warm_up=2)
    by_name = {timing.name: timing for timing in timings}
    best = max((AUTOCAST, LOADED), key=lambda name: by_name[name].rate(reviews))
    rows = [["contender", "loss before", "after", "GiB allocated", "GiB reserved", "first epoch s", "second epoch s"]]
    rows += [
        [t.name, *[f"{loss:.3f}" for loss in t.checks], *[f"{number:.2f}" for number in alone[t.name].values()]]
        for t in timings
    ]
    text = "\n\n".join(
        [
            f"Training, batch {size}:",
            rate_table(timings, reviews, (TUTORIAL, best)),
            table(rows),
            settings_list(timings),
        ]
    )
    ratios = {
        f"training vs (a), batch {size}": ratios_by_round(by_name[OWN], by_name[TUTORIAL]),
        f"training vs (b), batch {size}": ratios_by_round(by_name[OWN], by_name[best]),
        **{
            f"peak memory {kind} vs (a), batch {size}": [alone[OWN][f"{kind}_gib"] / alone[TUTORIAL][f"{kind}_gib"]]
            for kind in ("allocated", "reserved")
        },
    }
    losses = {t.name: t.checks for t in timings}
    data = {"contenders": timing_data(timings, reviews), "alone": alone, "losses_without_dropout": losses}
    return {"ratios": ratios, "data": data}, text


def label(bench: Bench) -> tuple[dict[str, Any], str]:
    """Labelling many reviews.

    Args:
        bench: Options, base and reviews.

    Returns:
        Data and text.
    """
    folder, prompts, opts = bench.folder, bench.prompts, bench.opts
    half = peers.load_base(folder, torch.bfloat16, "cuda").eval()
    sized = {size: peers.best_transformers(half, prompts, size=size) for size in _BATCHES}
    trials = interleave([Contender(str(size), "", run) for size, run in sized.items()], opts)
    best = int(max(trials, key=lambda trial: trial.rate(opts.reviews)).name)
    settings = f"merged bf16, sorted, dynamic padding, SDPA, batch {best} (the best of {_BATCHES})"
    timings = interleave(
        [
            Contender(
                GENERATE, "fp32, padded to 256, batch 8, at most 3 tokens", peers.generated(folder, prompts, "cuda")
            ),
            Contender(TRANSFORMERS, settings, sized[best]),
            Contender(OWN, "merged bf16, flat tokens", contenders.scoring(half, prompts, int8=False)),
        ],
        opts,
        warm_up=2,
    )
    by_name = {timing.name: timing for timing in timings}
    answers = [by_name[name].results[-1] for name in (TRANSFORMERS, OWN)]
    agreed = sum(a == b for a, b in zip(*answers, strict=True)) / len(answers[0])
    ratios = {
        "inference vs (a)": ratios_by_round(by_name[OWN], by_name[GENERATE]),
        "inference vs (b)": ratios_by_round(by_name[OWN], by_name[TRANSFORMERS]),
    }
    text = "\n\n".join(
        [
            "Labelling:",
            rate_table(timings, opts.reviews, (GENERATE, TRANSFORMERS)),
            f"Same label as transformers: {agreed:.1%}.",
            settings_list(timings),
        ]
    )
    return {"ratios": ratios, "agreement": agreed, "data": timing_data(timings, opts.reviews)}, text


def one_review(bench: Bench) -> tuple[dict[str, Any], str]:
    """Milliseconds for one review, every review labelled alone.

    Args:
        bench: Options, base and reviews.

    Returns:
        Data and text.
    """
    prompts = bench.prompts
    half = peers.load_base(bench.folder, torch.bfloat16, "cuda").eval()
    singles = [Prompts((ids,), (own,)) for ids, own in zip(prompts.ids[:64], prompts.labels[:64], strict=True)]
    makers: dict[str, Callable[[Prompts], Callable[[], object]]] = {
        GENERATE: lambda p: peers.generated(bench.folder, p, "cuda"),
        TRANSFORMERS: lambda p: peers.best_transformers(half, p),
        OWN: lambda p: contenders.scoring(half, p, int8=False),
    }
    # Every length once or twice before: a server has seen them all.
    wall = {name: times(make, [*singles, *singles, *singles])[0][-len(singles) :] for name, make in makers.items()}
    rows = [["contender", "p50 ms", "p99 ms"]]
    rows += [[name, f"{np.median(t):.2f}", f"{np.percentile(t, 99):.2f}"] for name, t in wall.items()]
    return {"milliseconds": wall}, f"One review:\n\n{table(rows)}"


def main() -> None:
    """Measure, print and write."""
    bench = set_up(__doc__, reviews=512, rounds=4)
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks.gpu: there is no CUDA device here")
    parts = [train(bench, 8), train(bench, 64), label(bench), one_review(bench)]
    ratios = {name: values for data, _ in parts for name, values in data.get("ratios", {}).items()}
    found = {"ratios": ratios, "parts": [data for data, _ in parts]}
    publish(bench, "gpu", "rates, memory and latency on a GPU", found, "\n\n".join(text for _, text in parts))


if __name__ == "__main__":
    main()
