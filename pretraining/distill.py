"""Distillation: the student's token states and pooled states follow the teacher's over the corpus."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import BertModel, T5ForConditionalGeneration

from pretraining.state import load_state, log, save_state
from pretraining.store import BatchSampler
from pretraining.student import FastEncoder, rms_norm
from pretraining.teacher import hidden_states

LAYERS = (3, 6)  # the layers whose token states are matched; the teacher's probes used the same two


class Learner(nn.Module):
    """The student together with the linear maps from its streams to the teacher's states."""

    def __init__(self, student: T5ForConditionalGeneration, maps: list[Tensor], scales: list[Tensor]) -> None:
        super().__init__()
        self.student = student
        self.maps = nn.ParameterList(nn.Parameter(found.clone()) for found in maps)
        self.scales = nn.ParameterList(nn.Parameter(scale.clone(), requires_grad=False) for scale in scales)


@dataclass(frozen=True)
class DistillPlan:
    """How long and how fast to distil.

    Attributes:
        steps: Optimiser steps of the whole schedule.
        learning_rate: Peak rate; in distillation the position bias, a few logits in size, takes ten times as much.
        warmup: Steps of linear warm-up.
        decay: Share of the steps, at the end, in which the rate falls linearly to a tenth.
        checkpoint_seconds: Wall time between checkpoints.
        probe_every: Steps between probes.
    """

    steps: int
    learning_rate: float = 6e-4
    warmup: int = 50
    decay: float = 0.3
    checkpoint_seconds: float = 180.0
    probe_every: int = 400


def feature_scale(states: Tensor) -> Tensor:
    """Deviation of each feature over tokens, at least half the median: the teacher has features that never move."""
    deviation = states.std(0)
    return deviation.clamp(min=0.5 * float(deviation.median()))


def step_safely(parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, step: int) -> None:
    """Clips the gradients to norm 1 and steps.

    Args:
        parameters: What is trained.
        optimizer: Its optimiser.
        step: Number of the step, for the message.

    Raises:
        FloatingPointError: The gradient norm is not finite; clipping would silently turn every gradient to zero.
    """
    norm = nn.utils.clip_grad_norm_(parameters, 1.0)
    if not torch.isfinite(norm):
        msg = f"expected a finite gradient norm at step {step}, got {float(norm)}: lower the rate or check the scales"
        raise FloatingPointError(msg)
    optimizer.step()


def pooled(states: Tensor, mask: Tensor) -> Tensor:
    """Mean over real positions, (b, d)."""
    weight = mask[..., None].to(states.dtype)
    return (states * weight).sum(1) / weight.sum(1)


def distill_loss(
    learner: Learner, streams: list[Tensor], wanted: tuple[Tensor, ...], mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Squared error of token states, each feature in units of its deviation, plus twice the pooled cosine distance.

    Args:
        learner: Supplies the maps and the deviations.
        streams: What `FastEncoder` returns for the batch.
        wanted: The teacher's states by layer, (b, s, d).
        mask: 1 for a token, 0 for padding, (b, s).

    Returns:
        The loss, and the mean pooled cosine without gradient.
    """
    real = mask.bool()
    unit = torch.ones(streams[0].shape[-1])
    found3 = rms_norm(streams[LAYERS[0]], unit) @ learner.maps[0]
    found6 = streams[-1] @ learner.maps[1]
    loss = torch.zeros(())
    for number, found in enumerate((found3, found6)):
        error = (found[real] - wanted[LAYERS[number]][real].float()) / learner.scales[number]
        loss = loss + error.pow(2).mean()
    cosine = torch.cosine_similarity(pooled(found6, mask), pooled(wanted[LAYERS[1]].float(), mask)).mean()
    return loss + 2.0 * (1.0 - cosine), cosine.detach()


def optimizer_for(learner: Learner, learning_rate: float, decoder: bool) -> torch.optim.AdamW:
    """AdamW over the encoder, the maps and, on request, the decoder; gains and biases are not decayed.

    Args:
        learner: What is trained.
        learning_rate: Rate of the encoder and the maps.
        decoder: Whether the decoder learns too. It starts from nothing while the encoder knows much, so it takes 16
            times the rate: at one rate for both, 1,100 steps wore the encoder's pooled cosine down from 0.86 to 0.33;
            at an eighth (1.5e-4), 460 steps wore it down from 0.91 to 0.74.

    Returns:
        The optimiser; each group carries its `factor` of the rate.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in learner.named_parameters():
        if not parameter.requires_grad or (".decoder." in name and not decoder):
            continue
        own = ".decoder." in name
        factor = 16.0 if own else 10.0 if "relative_attention_bias" in name and not decoder else 1.0
        decay = 0.01 if parameter.ndim == 2 and "relative_attention_bias" not in name else 0.0
        groups.setdefault((factor, decay), []).append(parameter)
    settings = [
        {"params": members, "weight_decay": decay, "factor": factor} for (factor, decay), members in groups.items()
    ]
    return torch.optim.AdamW(settings, lr=learning_rate, betas=(0.9, 0.98), fused=True)


def set_rate(optimizer: torch.optim.Optimizer, step: int, plan: DistillPlan) -> float:
    """Warm-up, plateau, then a linear fall to a tenth; sets and returns the rate of a step."""
    rise = min(1.0, (step + 1) / plan.warmup)
    left = (plan.steps - step) / max(1.0, plan.decay * plan.steps)
    rate = plan.learning_rate * rise * min(1.0, max(0.1, left))
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]
    return rate


def distill(
    learner: Learner, teacher: BertModel, to_teacher: Tensor, sampler: BatchSampler, plan: DistillPlan,
    folder: Path, probe: Callable[[T5ForConditionalGeneration], dict[str, float]], compiled: bool = True,
) -> None:  # fmt: skip
    """Runs or resumes the distillation until the plan's steps are done.

    Args:
        learner: Student and maps; changed in place.
        teacher: The teacher, bfloat16 on processors that have it.
        to_teacher: Teacher id of each student id, (vocabulary,).
        sampler: Batches by step number.
        plan: Length and rates.
        folder: Where `state/` and `distill.jsonl` go.
        probe: Measures a student; its figures are logged.
        compiled: Whether the encoder blocks are compiled.
    """
    optimizer = optimizer_for(learner, plan.learning_rate, decoder=False)
    step = load_state(folder / "state", learner, optimizer)
    encode = FastEncoder(learner.student, torch.bfloat16, compiled)
    saved = began = time.monotonic()
    tokens, losses, cosines = 0, 0.0, 0.0
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    while step < plan.steps:
        rate = set_rate(optimizer, step, plan)
        ids, mask = sampler.batch(step)
        loss, cosine = distill_loss(learner, encode(ids, mask), hidden_states(teacher, to_teacher[ids], mask), mask)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        step_safely(parameters, optimizer, step)
        step += 1
        tokens += int(mask.sum())
        losses += float(loss.detach())
        cosines += float(cosine)
        if step % 20 == 0:
            figures = {"loss": losses / 20, "pooled_cosine": cosines / 20, "learning_rate": rate}
            speed = tokens / (time.monotonic() - began)
            log(folder / "distill.jsonl", {"step": step, **figures, "tokens_per_second": speed})
            tokens, losses, cosines, began = 0, 0.0, 0.0, time.monotonic()
        if step % plan.probe_every == 0:
            log(folder / "distill.jsonl", {"step": step, **probe(learner.student)})
        if step == plan.steps or time.monotonic() - saved > plan.checkpoint_seconds:
            save_state(folder / "state", step, learner, optimizer)
            saved = time.monotonic()
