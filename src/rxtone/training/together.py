"""The loop for several settings on one base: one forward and backward for all, then each its own step.

It follows `loop.fit` step by step; a test holds both to the same losses at dropout 0.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from rxtone.errors import RunError
from rxtone.model.batches import Batch
from rxtone.model.memory import peak_memory
from rxtone.model.scoring import log_probabilities, score_dataset, shift_right
from rxtone.model.together import Given
from rxtone.training.checkpoint import Progress
from rxtone.training.data import TrainingData
from rxtone.training.events import EvalDone, StepDone
from rxtone.training.loop import judge_validation, objective_of, patience_over
from rxtone.training.objective import class_weight_vector, loss_sum
from rxtone.training.schedule import learning_rate, step_groups, total_steps

if TYPE_CHECKING:
    from rxtone.config import TrainConfig
    from rxtone.model.together import SharedModel

Together = tuple[int, StepDone | EvalDone | RunError]


class _Setting:
    """The state of one setting: its optimiser, its place, its best weights."""

    def __init__(self, parameters: dict[str, torch.nn.Parameter], train: TrainConfig, data: TrainingData) -> None:
        self.train = train
        self.parameters = parameters
        self.optimizer = torch.optim.AdamW(parameters.values(), lr=train.learning_rate, weight_decay=train.weight_decay)
        self.progress = Progress()
        device = next(iter(parameters.values())).device
        self.weights = torch.from_numpy(class_weight_vector(train.class_weights, data.train_classes, data.labels)).to(
            device
        )
        self.best: dict[str, torch.Tensor] = {}

    def groups(self, data: TrainingData) -> list[list[np.ndarray]]:
        return step_groups(data.train.lengths, self.train, self.progress.epoch)

    def restore_best(self) -> None:
        with torch.no_grad():
            for name, tensor in self.best.items():
                self.parameters[name].copy_(tensor)


def in_step(first: TrainConfig, other: TrainConfig) -> bool:
    """Whether two settings take their steps side by side: as many batches, of as many reviews."""
    same = (
        "loss",
        "rating_noise",
        "num_train_epochs",
        "max_steps",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
    )
    fixed = first.tokens_per_batch is None and other.tokens_per_batch is None
    return fixed and all(getattr(first, name) == getattr(other, name) for name in same)


def fit_together(
    shared: SharedModel, data: TrainingData, trains: Sequence[TrainConfig]
) -> Generator[Together, bool | None, None]:
    """Train several settings; when the generator ends, each that lasted holds its best weights.

    Args:
        shared: The base with one adapter per setting.
        data: What all learn from.
        trains: Settings that are `in_step`, one per adapter; rates, schedules, seeds, class weights and clipping
            are each one's own.

    Yields:
        Number of the setting, and its `StepDone` or `EvalDone`, or the `RunError` that ends it alone. A true value
        sent back for an `EvalDone` ends that setting.
    """
    settings = [
        _Setting(parameters, train, data) for parameters, train in zip(shared.parameters, trains, strict=True)
    ]  # fmt: skip
    torch.manual_seed(trains[0].seed)
    total = total_steps(data.train.lengths, trains[0])
    active = list(range(len(settings)))
    shared.model.train()
    while active and settings[active[0]].progress.step < total:
        groups = {i: settings[i].groups(data) for i in active}
        steps = len(groups[active[0]])
        for position in range(min(steps, total - settings[active[0]].progress.step)):
            stepped = _step(shared, data, settings, {i: groups[i][position] for i in active}, total, steps)
            active = [i for i, event in stepped if isinstance(event, StepDone)]
            for each in stepped:  # noqa: UP028 - a list cannot take what the consumer sends back
                yield each
            if not active:
                return
        for i in list(active):
            own = settings[i]
            stop = yield i, _validate(shared, data, own, i, steps)
            if stop or patience_over(own.progress, own.train):
                active.remove(i)
    for own in settings:
        own.restore_best()
    shared.model.eval()


def _step(
    shared: SharedModel,
    data: TrainingData,
    settings: Sequence[_Setting],
    groups: dict[int, list[np.ndarray]],
    total: int,
    steps: int,
) -> list[Together]:
    """One optimiser step of every active setting."""
    started = time.perf_counter()
    losses = _gradients(shared, data, settings, list(groups), list(groups.values()))
    stepped: list[Together] = []
    for (i, group), (loss, weight) in zip(groups.items(), losses, strict=True):
        stepped.append((i, _own_step(settings[i], loss, weight, total, np.concatenate(group), data, steps)))
    # Of the shared time each setting bears its part, so that the times of all add up to what passed.
    seconds, peak = (time.perf_counter() - started) / len(groups), peak_memory(shared.model)
    return [
        (i, replace(event, seconds=seconds, peak_memory_bytes=peak) if isinstance(event, StepDone) else event)
        for i, event in stepped
    ]


def _gradients(
    shared: SharedModel,
    data: TrainingData,
    settings: Sequence[_Setting],
    active: Sequence[int],
    groups: Sequence[Sequence[np.ndarray]],
) -> list[tuple[float, float]]:
    """One forward and backward per batch for all active settings; returns each one's summed loss and weight."""
    shared.owners.settings = tuple(active)
    device = next(shared.model.parameters()).device
    start = int(shared.model.config.decoder_start_token_id)
    sums = [(0.0, 0.0)] * len(active)
    for i in active:
        settings[i].optimizer.zero_grad(set_to_none=True)
    for indexes in zip(*groups, strict=True):  # the batches of one micro-step, one per setting
        batch = data.train.batch(np.concatenate(indexes), data.pad_token_id).to(device)
        assert batch.labels is not None
        logits = shared.model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask,
            decoder_input_ids=shift_right(batch.labels, start), use_cache=False,
        ).logits  # fmt: skip
        size, losses = len(indexes[0]), []
        for place, (i, own) in enumerate(zip(active, indexes, strict=True)):
            rows = slice(place * size, (place + 1) * size)
            part = Batch(batch.input_ids[rows], batch.attention_mask[rows], batch.labels[rows], batch.rows[rows])
            soft = None if data.train_targets is None else torch.from_numpy(data.train_targets[own]).to(device)
            loss, weight = loss_sum(
                Given(logits[rows], start), part, torch.from_numpy(data.train_classes[own]).to(device),
                data.label_tokens, objective=objective_of(settings[i].train), class_weights=settings[i].weights,
                targets=soft,
            )  # fmt: skip
            losses.append(loss)
            sums[place] = (sums[place][0] + loss.item(), sums[place][1] + weight)
        torch.stack(losses).sum().backward()  # each adapter is reached by its own rows alone
    return sums


def _own_step(
    own: _Setting, loss: float, weight: float, total: int, rows: np.ndarray, data: TrainingData, steps: int
) -> StepDone | RunError:
    rate = learning_rate(own.progress.step, total, own.train)
    parameters = [parameter for parameter in own.parameters.values() if parameter.grad is not None]
    for parameter in parameters:
        parameter.grad.div_(weight)  # type: ignore[union-attr]  # filtered above
    norm = torch.nn.utils.clip_grad_norm_(parameters, own.train.max_grad_norm)
    if not (math.isfinite(loss) and torch.isfinite(norm)):
        return RunError(
            f"the loss or a gradient is not finite at step {own.progress.step + 1}; lower the learning rate"
        )
    for group in own.optimizer.param_groups:
        group["lr"] = rate
    own.optimizer.step()
    before = own.progress
    own.progress = replace(
        before, step=before.step + 1, position=before.position + 1, epoch_loss=before.epoch_loss + loss,
        epoch_weight=before.epoch_weight + weight,
    )  # fmt: skip
    return StepDone(
        own.progress.step, total, own.progress.epoch + own.progress.position / steps, loss / weight, rate, len(rows),
        int(data.train.lengths[rows].sum()), 0.0, 0,
    )  # fmt: skip


def _validate(shared: SharedModel, data: TrainingData, own: _Setting, setting: int, steps: int) -> EvalDone:
    done = own.progress.epoch + own.progress.position / steps
    log_probs = log_probabilities(validation_scores_of(shared, data, setting))
    progress, event = judge_validation(log_probs, data, own.progress, done)
    if event.best:
        own.best = {name: parameter.detach().clone() for name, parameter in own.parameters.items()}
    own.progress = replace(progress, epoch=progress.epoch + 1, position=0, epoch_loss=0.0, epoch_weight=0.0)
    return event


def validation_scores_of(shared: SharedModel, data: TrainingData, setting: int) -> np.ndarray:
    """Label scores of the validation reviews by one of the settings: float64, shape (n, k)."""
    shared.owners.settings = (setting,)
    return score_dataset(
        shared.model, data.validation, data.label_tokens, batch_size=64, pad_token_id=data.pad_token_id
    )
