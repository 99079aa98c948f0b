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
    folder: Path, prompts: Prompts, *, dtype: torch.dtype = torch.bfloat16
) -> tuple[Callable[[], float], Callable[[], float]]:
    """Train with the engine: bf16 base, fp32 adapters, AdamW 3e-4, clipping at 1, batches of 8.

    Args:
        folder: The base.
        prompts: The reviews.
        dtype: Of the base.

    Returns:
        A function that trains one epoch and returns its mean loss, and one that gives the loss of the first
        batch without dropout, by the engine.
    """
    model = with_adapter(load_base(folder, dtype)).train()
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trainable, lr=3e-4)
    engine = planned(model)

    def epoch() -> float:
        total, steps = 0.0, 0
        for start in range(0, len(prompts.ids), _BATCH):
            rows = range(start, min(start + _BATCH, len(prompts.ids)))
            targets = torch.tensor([[*LABEL_TOKENS[prompts.labels[i]], EOS] for i in rows])
            log_probs = engine.target_log_probs(*flatten([prompts.ids[i] for i in rows]), targets)
            loss = -log_probs.mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trainable, 1.0)
            optimiser.step()
            optimiser.zero_grad()
            total, steps = total + float(loss.detach()), steps + 1
        return total / steps

    def check() -> float:
        model.eval()
        rows = range(min(_BATCH, len(prompts.ids)))
        targets = torch.tensor([[*LABEL_TOKENS[prompts.labels[i]], EOS] for i in rows])
        with torch.no_grad():
            log_probs = engine.target_log_probs(*flatten([prompts.ids[i] for i in rows]), targets)
        model.train()
        return -float(log_probs.mean())

    return epoch, check


def scoring(model: torch.nn.Module, prompts: Prompts, *, int8: bool) -> Callable[[], list[int]]:
    """Score labels with the engine, merged bf16 weights, with or without 8-bit linear maps.

    Args:
        model: The base in bf16, in evaluation mode.
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

    @torch.inference_mode()
    def run() -> list[int]:
        scores = engine.label_scores(*flatten(prompts.ids), LABEL_TOKENS, with_eos=False)
        return [int(i) for i in scores.argmax(1).tolist()]

    return run
