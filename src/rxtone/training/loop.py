"""The training loop: one generator that yields what happened; the caller logs, draws and stops.

Forward, loss, backward, step and log stand in `_step` and `fit`; nothing is called back.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from rxtone.errors import RunError
from rxtone.model.memory import out_of_memory, peak_memory, split
from rxtone.model.scoring import Scorer, log_probabilities, module_of, score_dataset
from rxtone.stats.metrics import classification_metrics
from rxtone.stopping import Stop
from rxtone.training.checkpoint import (
    Progress,
    checkpoint_path,
    load_best,
    load_checkpoint,
    random_state,
    restore_random_state,
    save_checkpoint,
)
from rxtone.training.events import CheckpointSaved, EvalDone, Event, MemoryShort, StepDone, StoppedEarly
from rxtone.training.objective import Objective, class_weight_vector, loss_sum
from rxtone.training.processes import Processes
from rxtone.training.schedule import auxiliary_groups, learning_rate, step_groups, total_steps

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from peft import PeftModel
    from transformers import T5ForConditionalGeneration

    from rxtone.config import TrainConfig
    from rxtone.training.data import TrainingData

FP16_LOSS_SCALE = 1024.0
"""Keeps small fp16 gradients above underflow; taken out before clipping. Static, since a frozen base
leaves only the adapters' gradients, and the first that is not finite stops the run."""


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
        `CheckpointSaved` after each checkpoint, `MemoryShort` where batches had to be parted, `StoppedEarly`
        where patience ended the run.

    Raises:
        RunError: At the first loss or gradient that is not finite, or when nothing can learn.
    """
    stop, team = stop or Stop(), processes or Processes()
    model = cast("PeftModel", module_of(scorer))
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer, progress = _begin(model, parameters, train, resume_from, team)
    weights = class_weight_vector(train.class_weights, data.train_classes, data.labels)
    class_weights = torch.from_numpy(weights).to(parameters[0].device)
    total = total_steps(data.train.lengths, train)
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
    if progress.step < total:
        yield StoppedEarly(progress.step, total, progress.stale)
    if team.first:
        load_best(checkpoints, progress, model)
    team.spread(parameters)
    model.eval()


def _begin(
    model: PeftModel,
    parameters: list[torch.nn.Parameter],
    train: TrainConfig,
    resume_from: Path | None,
    team: Processes,
) -> tuple[torch.optim.Optimizer, Progress]:
    """The model in training mode, its optimiser, and where the run stands."""
    fused = parameters[0].is_cuda  # one kernel for all parameters, where the number of kernels is what costs
    optimizer = torch.optim.AdamW(parameters, lr=train.learning_rate, weight_decay=train.weight_decay, fused=fused)
    torch.manual_seed(train.seed)
    progress = load_checkpoint(resume_from, model, optimizer) if resume_from else Progress()
    if team.rank:  # dropout of its own; the first process draws what a single one would draw
        torch.manual_seed(train.seed + progress.step + 1_000_003 * team.rank)
    if train.gradient_checkpointing:
        # Not the re-entrant kind: with a frozen base no input requires a gradient, and it would give none.
        cast("T5ForConditionalGeneration", model.get_base_model()).activation_checkpointing_enable(
            {"use_reentrant": False}
        )
    model.train()
    return optimizer, progress


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
        random = random_state()
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
        restore_random_state(random)
    loss_total, weight_total = team.sum_numbers(loss_total, weight_total)
    if not math.isfinite(loss_total):
        msg = (
            f"the loss is {loss_total} at reviews {sorted(int(i) for i in np.concatenate(group))[:8]} ...; "
            "nothing was saved since the last checkpoint. Lower train.learning_rate, or set model.precision=fp32"
        )
        raise RunError(msg)
    team.sum_gradients([p for p in model.parameters() if p.requires_grad])
    parameters = [p for p in model.parameters() if p.requires_grad and p.grad is not None]
    torch._foreach_div_([p.grad for p in parameters if p.grad is not None], weight_total * scale)
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
