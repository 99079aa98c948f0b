"""rxtone's side of every measurement."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.common import EOS, LABEL_TOKENS, Prompts
from benchmarks.peers import load_base, with_adapter
from rxtone.model.engine import Engine, Unsupported, flatten

_BATCH = 8


def planned(model: torch.nn.Module) -> Engine:
    """Plan the engine or stop.

    Args:
        model: The model.

    Returns:
        The engine.

    Raises:
        SystemExit: The engine does not cover the model.
    """
    engine = Engine.plan(model)
    if isinstance(engine, Unsupported):
        raise SystemExit(engine.reason)
    return engine


def training(
    folder: Path,
    prompts: Prompts,
    *,
    dtype: torch.dtype = torch.bfloat16,
    device: str = "cpu",
    size: int = _BATCH,
) -> tuple[Callable[[], float], Callable[[], float]]:
    """Train with the engine: frozen base, fp32 adapters, AdamW 3e-4, clipping at 1.

    Args:
        folder: The base.
        prompts: The reviews.
        dtype: Of the base.
        device: Where it trains.
        size: Reviews per batch.

    Returns:
        A function that trains one epoch and returns its mean loss, and one that gives the loss of the first
        batch without dropout, by the engine.
    """
    model = with_adapter(load_base(folder, dtype, device)).train()
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trainable, lr=3e-4, fused=device != "cpu")
    engine = planned(model)

    def log_probs_of(rows: range) -> torch.Tensor:
        targets = torch.tensor([[*LABEL_TOKENS[prompts.labels[i]], EOS] for i in rows])
        ids, lengths = flatten([prompts.ids[i] for i in rows])
        return engine.target_log_probs(ids.to(device), lengths, targets.to(device))

    def epoch() -> float:
        total, steps = 0.0, 0
        for start in range(0, len(prompts.ids), size):
            log_probs = log_probs_of(range(start, min(start + size, len(prompts.ids))))
            loss = -log_probs.mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trainable, 1.0)
            optimiser.step()
            optimiser.zero_grad()
            total, steps = total + float(loss.detach()), steps + 1
        return total / steps

    def check() -> float:
        model.eval()
        with torch.no_grad():
            log_probs = log_probs_of(range(min(_BATCH, len(prompts.ids))))
        model.train()
        return -float(log_probs.mean())

    return epoch, check


def scoring(model: torch.nn.Module, prompts: Prompts, *, int8: bool) -> Callable[[], list[int]]:
    """Score labels with the engine, merged weights, with or without 8-bit linear maps.

    Args:
        model: The base, in evaluation mode.
        prompts: The reviews.
        int8: Quantise the linear maps.

    Returns:
        A function that labels all reviews.

    Raises:
        SystemExit: int8 is not to be had here.
    """
    engine = planned(model)
    if int8:
        quantised = engine.int8()
        if isinstance(quantised, Unsupported):
            raise SystemExit(quantised.reason)
        engine = quantised
    device = next(model.parameters()).device

    @torch.inference_mode()
    def run() -> list[int]:
        ids, lengths = flatten(prompts.ids)
        scores = engine.label_scores(ids.to(device), lengths, LABEL_TOKENS, with_eos=False)
        return [int(i) for i in scores.argmax(1).tolist()]

    return run
