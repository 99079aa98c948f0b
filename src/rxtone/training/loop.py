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
from rxtone.model.memory import out_of_memory, split
from rxtone.model.scoring import Scorer, log_probabilities, module_of, score_dataset
from rxtone.stats.metrics import classification_metrics
from rxtone.stopping import Stop
from rxtone.training.checkpoint import Progress, checkpoint_path, load_best, load_checkpoint, save_checkpoint
from rxtone.training.objective import Objective, class_weight_vector, loss_sum
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


@dataclass(frozen=True)
class MemoryShort:
    """Memory was too short for the batches as they are.

    Attributes:
        step: The step that showed it.
        parts: Into how many parts each batch is split from now on; their gradients are added up.
    """

    step: int
    parts: int


Event = StepDone | EvalDone | CheckpointSaved | MemoryShort


@dataclass(frozen=True)
class Auxiliary:
    """A further task of the training reviews, learned beside the main one.

    Attributes:
        reviews: The same n training reviews, asked by this task's prompt.
        classes: int64, shape (n,): their label indexes.
        label_tokens: This task's labels in the base's tokens.
        weight: What one of its reviews counts, beside 1 for one of the main task.
        share: Share of its reviews in an epoch.
    """

    reviews: ReviewDataset
    classes: np.ndarray
    label_tokens: LabelTokens
    weight: float
    share: float


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
        auxiliary: Further tasks.
        train_targets: float32, shape (n, k): label distributions to match in place of the labels, or None.
    """

    train: ReviewDataset
    train_classes: np.ndarray
    validation: ReviewDataset
    validation_classes: np.ndarray
    labels: tuple[str, ...]
    label_tokens: LabelTokens
    pad_token_id: int
    auxiliary: tuple[Auxiliary, ...] = ()
    train_targets: np.ndarray | None = None


def fit(
    scorer: Scorer,
    data: TrainingData,
    train: TrainConfig,
    checkpoints: Path,
    *,
    resume_from: Path | None = None,
    stop: Stop | None = None,
    processes: Processes | None = None,
) -> Iterator[Event]:
    """Train the adapter; when the iterator ends, the model holds the best checkpoint.

    A batch that does not fit into memory is computed in parts that are added up: the same step, only slower.

    Args:
        scorer: The adapted model on its device, or an engine planned on it.
        data: Reviews, labels and tokens.
        train: The recipe's settings.
        checkpoints: Folder for checkpoints.
        resume_from: A whole checkpoint of the same recipe, to go on from.
        stop: A wish to stop: the step is finished and saved, and the iterator ends early.
        processes: Those that train together; None is this one alone.

    Yields:
        `StepDone` after each optimiser step, `EvalDone` after each pass and at the end,
        `CheckpointSaved` after each checkpoint, `MemoryShort` where batches had to be parted.

    Raises:
        RunError: At the first loss or gradient that is not finite, or when nothing can learn.
    """
    stop = stop or Stop()
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
    parts = 1
    # A pass whose steps are done, but which is not validated yet, is a place to resume from too.
    while (progress.step < total or progress.position) and not patience_over(progress, train):
        groups = step_groups(data.train.lengths, train, progress.epoch)
        beside = [auxiliary_groups(task, len(groups), train.seed, progress.epoch) for task in data.auxiliary]
        while progress.position < len(groups) and progress.step < total:
            started = time.perf_counter()
            group = groups[progress.position]
            rate = learning_rate(progress.step, total, train)
            extra = [drawn[progress.position] for drawn in beside]
            tried = parts
            loss, weight, parts = _step(
                scorer, optimizer, data, group, extra, train, rate, class_weights, team,
                first=progress.step == 0, parts=parts,
            )  # fmt: skip
            if parts > tried:
                yield MemoryShort(progress.step + 1, parts)
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
            wanted = team.any(stop.wanted())  # all stop after the same step
            if wanted or (progress.step % train.checkpoint_every == 0 and not ended):
                yield _checkpoint(checkpoints, model, optimizer, progress, team)
            if wanted:
                return
        done = progress.epoch + progress.position / len(groups)
        progress, event = _validate(scorer, data, progress, done, team)
        yield event
        progress = replace(progress, epoch=progress.epoch + 1, position=0, epoch_loss=0.0, epoch_weight=0.0)
        yield _checkpoint(checkpoints, model, optimizer, progress, team)
        if team.any(stop.wanted()):
            return
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


def auxiliary_groups(task: Auxiliary, steps: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The reviews of a further task that go beside each step of an epoch.

    Args:
        task: The task.
        steps: Optimiser steps of the epoch.
        seed: The run's seed.
        epoch: Which pass, from 0.

    Returns:
        One index array per step, of even sizes; together the task's share of its reviews, drawn anew each epoch.
    """
    generator = np.random.Generator(np.random.PCG64([seed, epoch, 2]))  # 2: not the stream of the main order
    chosen = generator.permutation(len(task.reviews))[: round(task.share * len(task.reviews))]
    return np.array_split(chosen, steps)


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
    extra: list[np.ndarray],
    train: TrainConfig,
    rate: float,
    class_weights: torch.Tensor,
    team: Processes,
    *,
    first: bool,
    parts: int,
) -> tuple[float, float, int]:
    """One optimiser step over the batches of `group` and, for each further task, `extra`.

    Returns the main task's summed loss, its weight and the parts that the step took.
    """
    model = module_of(scorer)
    scale = FP16_LOSS_SCALE if next(model.parameters()).dtype == torch.float16 else 1.0
    while True:
        optimizer.zero_grad(set_to_none=True)
        random = torch.get_rng_state()
        try:
            loss_total, weight_total = _backward(
                scorer, data, [*map(team.share, group)], [*map(team.share, extra)], train, class_weights, scale, parts
            )  # fmt: skip
            break
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            _refuse_one_review([*group, *extra], parts, data)
        # Outside of the handler, whose traceback holds what the failed forward made.
        parts *= 2
        torch.set_rng_state(random)
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
    return loss_total, weight_total, parts


def _backward(
    scorer: Scorer,
    data: TrainingData,
    group: list[np.ndarray],
    extra: list[np.ndarray],
    train: TrainConfig,
    class_weights: torch.Tensor,
    scale: float,
    parts: int,
) -> tuple[float, float]:
    """Add the gradients of all batches up, each batch in `parts` parts.

    What a further task counts is relative to the main task's reviews, whose weight the caller divides by; its
    classes all count alike. Returns the main task's summed loss and its weight.
    """
    device, objective = class_weights.device, objective_of(train)
    loss_total, weight_total = 0.0, 0.0
    for indexes in split([own for own in group if len(own)], parts):
        batch = data.train.batch(indexes, data.pad_token_id).to(device)
        classes = torch.from_numpy(data.train_classes[indexes]).to(device)
        soft = None if data.train_targets is None else torch.from_numpy(data.train_targets[indexes]).to(device)
        loss, weight = loss_sum(
            scorer, batch, classes, data.label_tokens,
            objective=objective, class_weights=class_weights, targets=soft,
        )  # fmt: skip
        (loss * scale).backward()
        loss_total += loss.item()
        weight_total += weight
    for task, drawn in zip(data.auxiliary, extra, strict=True):
        even = torch.ones(len(task.label_tokens.ids), device=device)
        for indexes in split([drawn] if len(drawn) else [], parts):
            batch = task.reviews.batch(indexes, data.pad_token_id).to(device)
            classes = torch.from_numpy(task.classes[indexes]).to(device)
            loss, _ = loss_sum(scorer, batch, classes, task.label_tokens, objective=objective, class_weights=even)
            (loss * (scale * task.weight)).backward()
    return loss_total, weight_total


def objective_of(train: TrainConfig) -> Objective:
    """The loss that a recipe asks for."""
    return Objective(train.loss, train.label_smoothing, train.focal_gamma, train.ordinal_power)


def _refuse_one_review(group: list[np.ndarray], parts: int, data: TrainingData) -> None:
    if parts >= max(map(len, group)):
        longest = int(data.train.lengths[np.concatenate(group)].max())
        msg = (
            f"out of memory with a single review of up to {longest} tokens; lower prompt.max_tokens, "
            "set train.gradient_checkpointing=true, or choose a smaller model.base"
        )
        raise RunError(msg) from None


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
