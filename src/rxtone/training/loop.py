"""The training loop: one generator that yields what happened; the caller logs, draws and stops.

Forward, loss, backward, step and log stand in `_step` and `fit`; nothing is called back.
"""

from __future__ import annotations

import math
import resource
import sys
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from rxtone.errors import RunError
from rxtone.model.batches import epoch_batches
from rxtone.model.scoring import Scorer, log_probabilities, module_of, score_dataset
from rxtone.stats.metrics import classification_metrics
from rxtone.training.checkpoint import Progress, checkpoint_path, load_best, load_checkpoint, save_checkpoint
from rxtone.training.objective import class_weight_vector, loss_sum
from rxtone.training.processes import Processes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from peft import PeftModel
    from transformers import T5ForConditionalGeneration

    from rxtone.config import TrainConfig
    from rxtone.model.batches import ReviewDataset
    from rxtone.model.scoring import LabelTokens

FP16_LOSS_SCALE = 1024.0
"""Keeps small fp16 gradients above underflow; taken out before clipping. Static, since a frozen base
leaves only the adapters' gradients, and the first that is not finite stops the run."""


@dataclass(frozen=True)
class StepDone:
    """One optimiser step.

    Attributes:
        step: Steps done, this one included.
        total_steps: Steps the run will take at most.
        epoch: Passes done, with the fraction of this one.
        loss: Mean loss of this step's reviews.
        learning_rate: Rate used in this step.
        reviews: Reviews in this step.
        tokens: Prompt tokens in this step, padding not counted.
        seconds: Wall time of this step.
        peak_memory_bytes: Highest memory of the process (CPU) or of the device so far.
    """

    step: int
    total_steps: int
    epoch: float
    loss: float
    learning_rate: float
    reviews: int
    tokens: int
    seconds: float
    peak_memory_bytes: int


@dataclass(frozen=True)
class EvalDone:
    """One pass over the validation reviews.

    Attributes:
        step: Steps done.
        epoch: Passes done.
        train_loss: Mean training loss since the pass began.
        validation_loss: Mean negative log-probability of the true label among the labels.
        validation_macro_f1: What the best checkpoint is chosen by.
        best: Whether this is the best so far.
        never_predicted: Labels that no validation review got.
    """

    step: int
    epoch: float
    train_loss: float
    validation_loss: float
    validation_macro_f1: float
    best: bool
    never_predicted: tuple[str, ...]


@dataclass(frozen=True)
class CheckpointSaved:
    """A whole checkpoint is on disk."""

    step: int
    path: Path


Event = StepDone | EvalDone | CheckpointSaved


@dataclass(frozen=True)
class TrainingData:
    """What the loop learns from and selects by.

    Attributes:
        train: Tokenised training reviews with label tokens.
        train_classes: int64, shape (n,): their label indexes.
        validation: Tokenised validation reviews.
        validation_classes: int64, shape (m,).
        labels: The k label words.
        label_tokens: The same in the base's tokens.
        pad_token_id: Filler of short prompts.
    """

    train: ReviewDataset
    train_classes: np.ndarray
    validation: ReviewDataset
    validation_classes: np.ndarray
    labels: tuple[str, ...]
    label_tokens: LabelTokens
    pad_token_id: int


def fit(
    scorer: Scorer,
    data: TrainingData,
    train: TrainConfig,
    checkpoints: Path,
    *,
    resume_from: Path | None = None,
    processes: Processes | None = None,
) -> Iterator[Event]:
    """Train the adapter; when the iterator ends, the model holds the best checkpoint.

    Args:
        scorer: The adapted model on its device, or an engine planned on it.
        data: Reviews, labels and tokens.
        train: The recipe's settings.
        checkpoints: Folder for checkpoints.
        resume_from: A whole checkpoint of the same recipe, to go on from.
        processes: Those that train together; None is this one alone.

    Yields:
        `StepDone` after each optimiser step, `EvalDone` after each pass and at the end,
        `CheckpointSaved` after each checkpoint.

    Raises:
        RunError: At the first loss or gradient that is not finite, or when nothing can learn.
    """
    model = cast("PeftModel", module_of(scorer))
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=train.learning_rate, weight_decay=train.weight_decay)
    torch.manual_seed(train.seed)
    progress = load_checkpoint(resume_from, model, optimizer) if resume_from else Progress()
    team = processes or Processes()
    if team.rank:  # dropout of its own; the first process draws what a single one would draw
        torch.manual_seed(train.seed + progress.step + 1_000_003 * team.rank)
    weights = class_weight_vector(train.class_weights, data.train_classes, data.labels)
    class_weights = torch.from_numpy(weights).to(parameters[0].device)
    total = total_steps(data.train.lengths, train)
    if train.gradient_checkpointing:
        # Not the re-entrant kind: with a frozen base no input requires a gradient, and it would give none.
        cast("T5ForConditionalGeneration", model.get_base_model()).activation_checkpointing_enable(
            {"use_reentrant": False}
        )
    model.train()
    while progress.step < total and not patience_over(progress, train):
        groups = step_groups(data.train.lengths, train, progress.epoch)
        while progress.position < len(groups) and progress.step < total:
            started = time.perf_counter()
            group = groups[progress.position]
            rate = learning_rate(progress.step, total, train)
            loss, weight = _step(
                scorer, optimizer, data, group, train, rate, class_weights, team, first=progress.step == 0
            )
            progress = replace(
                progress, step=progress.step + 1, position=progress.position + 1,
                epoch_loss=progress.epoch_loss + loss, epoch_weight=progress.epoch_weight + weight,
            )  # fmt: skip
            rows = np.concatenate(group)
            yield StepDone(
                progress.step, total, progress.epoch + progress.position / len(groups), loss / weight, rate,
                len(rows), int(data.train.lengths[rows].sum()), time.perf_counter() - started, peak_memory(model),
            )  # fmt: skip
            ended = progress.position == len(groups) or progress.step == total
            if progress.step % train.checkpoint_every == 0 and not ended:
                yield _checkpoint(checkpoints, model, optimizer, progress, team)
        done = progress.epoch + progress.position / len(groups)
        progress, event = _validate(scorer, data, progress, done, team)
        yield event
        progress = replace(progress, epoch=progress.epoch + 1, position=0, epoch_loss=0.0, epoch_weight=0.0)
        yield _checkpoint(checkpoints, model, optimizer, progress, team)
    if team.first:
        load_best(checkpoints, progress, model)
    team.spread(parameters)
    model.eval()


def step_groups(lengths: np.ndarray, train: TrainConfig, epoch: int) -> list[list[np.ndarray]]:
    """The batches of each optimiser step of one epoch, in order.

    Args:
        lengths: Prompt lengths in tokens, shape (n,).
        train: The recipe's settings.
        epoch: Which pass, from 0.

    Returns:
        One list of index arrays per step.
    """
    batches = epoch_batches(
        lengths, batch_size=train.per_device_train_batch_size, tokens_per_batch=train.tokens_per_batch,
        seed=train.seed, epoch=epoch,
    )  # fmt: skip
    size = train.gradient_accumulation_steps
    return [batches[start : start + size] for start in range(0, len(batches), size)]


def total_steps(lengths: np.ndarray, train: TrainConfig) -> int:
    """Optimiser steps of a run that is not stopped early."""
    whole_epochs = math.floor(train.num_train_epochs)
    steps = sum(len(step_groups(lengths, train, epoch)) for epoch in range(whole_epochs))
    fraction = train.num_train_epochs - whole_epochs
    if fraction > 0:
        steps += math.ceil(fraction * len(step_groups(lengths, train, whole_epochs)))
    return steps if train.max_steps is None else min(steps, train.max_steps)


def learning_rate(step: int, total: int, train: TrainConfig) -> float:
    """The rate of optimiser step `step` (from 0) of `total`: warm-up, then decay to zero.

    The curves of transformers' get_linear_schedule_with_warmup and get_cosine_schedule_with_warmup,
    except that the warm-up is one step ahead: theirs spends the first step at rate 0.
    """
    warmup = math.ceil(train.warmup_ratio * total)
    if step < warmup:
        return train.learning_rate * (step + 1) / warmup
    if train.lr_scheduler_type == "constant":
        return train.learning_rate
    done = (step - warmup) / max(1, total - warmup)
    if train.lr_scheduler_type == "cosine":
        return train.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
    return train.learning_rate * (1 - done)


def _step(
    scorer: Scorer,
    optimizer: torch.optim.Optimizer,
    data: TrainingData,
    group: list[np.ndarray],
    train: TrainConfig,
    rate: float,
    class_weights: torch.Tensor,
    team: Processes,
    *,
    first: bool,
) -> tuple[float, float]:
    """One optimiser step over the batches of `group`; returns the summed loss and its weight, of all processes."""
    device = class_weights.device
    model = module_of(scorer)
    half = next(model.parameters()).dtype == torch.float16
    scale = FP16_LOSS_SCALE if half else 1.0
    optimizer.zero_grad(set_to_none=True)
    loss_total, weight_total = 0.0, 0.0
    for indexes in filter(len, map(team.share, group)):
        batch = data.train.batch(indexes, data.pad_token_id).to(device)
        classes = torch.from_numpy(data.train_classes[indexes]).to(device)
        loss, weight = loss_sum(scorer, batch, classes, data.label_tokens, loss=train.loss, class_weights=class_weights)
        (loss * scale).backward()
        loss_total += loss.item()
        weight_total += weight
    loss_total, weight_total = team.sum_numbers(loss_total, weight_total)
    if not math.isfinite(loss_total):
        msg = (
            f"the loss is {loss_total} at reviews {sorted(int(i) for i in np.concatenate(group))[:8]} ...; "
            "nothing was saved since the last checkpoint. Lower train.learning_rate, or set model.precision=fp32"
        )
        raise RunError(msg)
    team.sum_gradients([p for p in model.parameters() if p.requires_grad])
    parameters = [p for p in model.parameters() if p.requires_grad and p.grad is not None]
    for parameter in parameters:
        parameter.grad.div_(weight_total * scale)  # type: ignore[union-attr]  # filtered above
    if first:
        _check_gradients(model)
    norm = torch.nn.utils.clip_grad_norm_(parameters, train.max_grad_norm)
    if not torch.isfinite(norm):
        msg = "a gradient is not finite; lower train.learning_rate, or set model.precision=fp32"
        raise RunError(msg)
    for settings in optimizer.param_groups:
        settings["lr"] = rate
    optimizer.step()
    return loss_total, weight_total


def _check_gradients(model: torch.nn.Module) -> None:
    # lora_A's gradient is zero at step 1 by construction (B starts at zero), lora_B's never is.
    gradients = [p.grad for name, p in model.named_parameters() if "lora_B" in name and p.requires_grad]
    if not any(gradient is not None and bool(gradient.any()) for gradient in gradients):
        msg = (
            "no gradient reaches the adapter at step 1, so nothing would be learned; "
            "set train.gradient_checkpointing=false, or other lora.target_modules"
        )
        raise RunError(msg)


def _validate(
    scorer: Scorer, data: TrainingData, progress: Progress, epoch: float, team: Processes
) -> tuple[Progress, EvalDone]:
    rows = team.share(np.arange(len(data.validation)))
    scores = np.zeros((len(data.validation), len(data.labels)))
    scores[rows] = score_dataset(
        scorer, data.validation.part(rows), data.label_tokens, batch_size=64, pad_token_id=data.pad_token_id
    )
    return judge_validation(log_probabilities(team.sum_scores(scores)), data, progress, epoch)


def judge_validation(
    log_probs: np.ndarray, data: TrainingData, progress: Progress, epoch: float
) -> tuple[Progress, EvalDone]:
    """What a pass over the validation reviews says.

    Args:
        log_probs: float64, shape (m, k): label log-probabilities of the validation reviews.
        data: Their labels.
        progress: Where the run stands.
        epoch: Passes done.

    Returns:
        The progress with the best validation so far, and the event.
    """
    true = data.validation_classes
    metrics = classification_metrics(true, log_probs.argmax(1), data.labels)
    macro_f1 = float(str(metrics["macro_f1"]))
    best = macro_f1 > progress.best_macro_f1
    if best:
        progress = replace(progress, best_step=progress.step, best_macro_f1=macro_f1, stale=0)
    else:
        progress = replace(progress, stale=progress.stale + 1)
    predicted = set(log_probs.argmax(1).tolist())
    never = tuple(label for index, label in enumerate(data.labels) if index not in predicted)
    loss = float(-log_probs[np.arange(len(true)), true].mean())
    train_loss = progress.epoch_loss / progress.epoch_weight
    return progress, EvalDone(progress.step, epoch, train_loss, loss, macro_f1, best, never)


def _checkpoint(
    folder: Path, model: PeftModel, optimizer: torch.optim.Optimizer, progress: Progress, team: Processes
) -> CheckpointSaved:
    if team.first:
        save_checkpoint(folder, model, optimizer, progress)
    team.wait()  # nobody goes on before it stands
    return CheckpointSaved(progress.step, checkpoint_path(folder, progress.step))


def patience_over(progress: Progress, train: TrainConfig) -> bool:
    """Whether the run has gone on long enough without a better validation."""
    return train.early_stopping_patience is not None and progress.stale >= train.early_stopping_patience


def peak_memory(model: torch.nn.Module) -> int:
    """Highest memory so far, in bytes: of the device on CUDA, else of this process."""
    device = next(model.parameters()).device
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kibibytes on Linux, bytes on macOS
