"""Which reviews make a step, how many steps make a run, and the learning rate of each.

All are pure functions of the recipe, so a resumed run finds its place by counting.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from rxtone.model.batches import epoch_batches

if TYPE_CHECKING:
    from rxtone.config import TrainConfig
    from rxtone.training.data import Auxiliary


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
