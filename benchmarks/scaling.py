"""How do time and memory grow with the length of a review and with the batch?

    python -m benchmarks.scaling [--size small] [--rounds 3]

Length: one review of 32 to 2,048 tokens, rxtone against transformers with one decoder step. Batch:
training on 1 to 32 reviews of DrugLib at once. Processor time, so that other users of the machine disturb
little.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from benchmarks import contenders, peers
from benchmarks.common import (
    DTYPE,
    EOS,
    LABEL_TOKENS,
    PRECISION,
    Options,
    Prompts,
    base_folder,
    line_plot,
    load_prompts,
    machine,
    options,
    table,
    write,
)
from rxtone.model.engine import flatten

LENGTHS = (32, 64, 128, 256, 512, 1024, 2048)
BATCHES = (1, 2, 4, 8, 16, 32)


def _median_cpu(run: Callable[[], object], rounds: int) -> float:
    run()
    taken = []
    for _ in range(rounds):
        start = time.process_time()
        run()
        taken.append(time.process_time() - start)
    return statistics.median(taken)


def by_length(opts: Options) -> dict[str, list[float]]:
    """Processor milliseconds for one review, by length.

    Args:
        opts: The options.

    Returns:
        One list per contender, in the order of ``LENGTHS``.
    """
    merged = peers.load_base(base_folder(opts), DTYPE).eval()
    generator = torch.Generator().manual_seed(1)
    found: dict[str, list[float]] = {"transformers, one step": [], f"rxtone {PRECISION}": [], "rxtone int8": []}
    rows = [(*torch.randint(2, 32000, (n - 1,), generator=generator).tolist(), EOS) for n in LENGTHS]
    for ids in rows:
        prompts = Prompts((ids,), (0,))
        runs = (
            peers.best_transformers(merged, prompts),
            contenders.scoring(merged, prompts, int8=False),
            contenders.scoring(merged, prompts, int8=True),
        )
        for name, run in zip(found, runs, strict=True):
            found[name].append(1e3 * _median_cpu(run, opts.rounds))
    return found


def by_batch(opts: Options) -> list[float]:
    """Processor milliseconds per review of a training step, by batch.

    Args:
        opts: The options.

    Returns:
        One number per entry of ``BATCHES``.
    """
    model = peers.with_adapter(peers.load_base(base_folder(opts), DTYPE)).train()
    engine, prompts, found = contenders.planned(model), load_prompts(opts), []
    for size in BATCHES:
        # The same 32 reviews at every size, so that lengths do not enter the comparison.
        batches = [range(s, s + size) for s in range(0, max(BATCHES), size)]

        def epoch(batches: list[range] = batches) -> None:
            for rows in batches:
                targets = torch.tensor([[*LABEL_TOKENS[prompts.labels[i]], EOS] for i in rows])
                loss = -engine.target_log_probs(*flatten([prompts.ids[i] for i in rows]), targets).mean()
                loss.backward()
                model.zero_grad()

        found.append(1e3 * _median_cpu(epoch, opts.rounds) / max(BATCHES))
    return found


def main() -> None:
    """Measure, print and write."""
    opts = options(__doc__, reviews=max(BATCHES))
    about, lengths, batches = machine(opts.threads), by_length(opts), by_batch(opts)
    names = list(lengths)
    rows = [["tokens", *[f"{n}, cpu-ms" for n in names]]]
    rows += [[str(n), *[f"{lengths[name][i]:.1f}" for name in names]] for i, n in enumerate(LENGTHS)]
    batch_rows = [
        ["training batch", "cpu-ms per review"],
        *[[str(b), f"{t:.1f}"] for b, t in zip(BATCHES, batches, strict=True)],
    ]
    result = {
        "question": "growth with length and batch",
        "size": opts.size,
        "machine": about,
        "lengths": LENGTHS,
        "cpu_milliseconds_by_length": lengths,
        "batches": BATCHES,
        "cpu_milliseconds_per_review_by_batch": batches,
    }
    write(opts, f"scaling-{opts.size}", result, table(rows) + "\n\n" + table(batch_rows))
    line_plot(opts, f"scaling-length-{opts.size}", LENGTHS, lengths, ("tokens", "cpu-ms for one review"))
    line_plot(opts, f"scaling-batch-{opts.size}", BATCHES, {"rxtone": batches}, ("batch", "cpu-ms per review"))


if __name__ == "__main__":
    main()
