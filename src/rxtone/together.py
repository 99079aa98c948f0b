"""Several settings of a search in one process, through one forward: which can, and what becomes of each."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from rxtone.errors import RunError
from rxtone.model.scoring import log_probabilities
from rxtone.model.together import share_base, why_not_together
from rxtone.training.events import EvalDone, StepDone
from rxtone.training.together import fit_together, in_step, validation_scores_of
from rxtone.trials import Bench, Trained, log_trial, trained

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from pathlib import Path

    from rxtone.config import Recipe


def why_alone(first: Recipe, other: Recipe) -> str | None:
    """Why two settings cannot share a forward.

    Args:
        first: One of them.
        other: The other.

    Returns:
        The reason; None where they can.
    """
    for group in ("data", "prompt", "model"):
        if getattr(first, group) != getattr(other, group):
            return f"they differ in {group}"
    for recipe in (first, other):
        if (reason := why_not_together(recipe.lora)) is not None:
            return reason
        if recipe.train.gradient_checkpointing:
            return "train.gradient_checkpointing is for a single adapter"
        if recipe.auxiliary:
            return "auxiliary tasks are for a single adapter"
    if not in_step(first.train, other.train):
        return "they differ in the number or the size of their batches"
    return None


def train_together(
    bench: Bench, recipes: Sequence[Recipe], folders: Sequence[Path]
) -> Generator[tuple[int, StepDone | EvalDone | Trained | RunError], bool | None, None]:
    """Train settings side by side.

    Args:
        bench: Base and tokens.
        recipes: Settings for which `why_alone` has no reason.
        folders: One empty folder each, for config.yaml and metrics.jsonl.

    Yields:
        Number of the setting, and its steps, validations and, at last, `Trained`, or what ended it. A true value
        sent back for a validation ends that setting.
    """
    trackers = [log_trial(recipe, folder) for recipe, folder in zip(recipes, folders, strict=True)]
    base, data = bench.base(recipes[0]), bench.data(recipes[0])
    seconds, rows, steps = ([0.0] * len(recipes), [0] * len(recipes), [0] * len(recipes))
    lasting = set(range(len(recipes)))
    loras, trains = [recipe.lora for recipe in recipes], [recipe.train for recipe in recipes]
    with (
        share_base(base.model, loras, [train.seed for train in trains]) as shared,
        contextlib.closing(fit_together(shared, data, trains)) as events,
    ):
        stop: bool | None = None
        while True:
            try:
                index, event = events.send(stop)
            except StopIteration:
                break
            if isinstance(event, RunError):
                lasting.remove(index)
                yield index, event
                stop = None
                continue
            trackers[index](event)
            if isinstance(event, StepDone):
                seconds[index] += event.seconds
                rows[index] += event.reviews
                steps[index] = event.step
            stop = yield index, event
            if stop:
                lasting.remove(index)
        for index in sorted(lasting):
            predicted = log_probabilities(validation_scores_of(shared, data, index)).argmax(1)
            facts = {
                "trainable": sum(parameter.numel() for parameter in shared.parameters[index].values()),
                "seconds": seconds[index],
                "reviews_per_second": rows[index] / seconds[index] if seconds[index] else None,
                "peak_memory_bytes": None,  # of all settings at once; no single one's is known
                "steps": steps[index],
                "together": len(recipes),
            }
            yield index, trained(data, predicted, facts)
