"""Where progress goes: metrics.jsonl always, TensorBoard and MLflow where a recipe asks for them."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from rxtone.errors import RecipeError
from rxtone.run import append_json_line
from rxtone.training.events import EvalDone, Event, StepDone

if TYPE_CHECKING:
    from collections.abc import Callable

    from rxtone.config import Recipe
    from rxtone.run import RunFolder


def check_trackers(recipe: Recipe) -> None:
    """Refuse a recipe whose trackers are not installed, before anything is written.

    Args:
        recipe: The recipe.

    Raises:
        RecipeError: If a tracker is asked for whose extra is not installed.
    """
    if recipe.track.tensorboard:
        _require("tensorboard", "track.tensorboard", "tensorboard")
    if recipe.track.mlflow:
        _require("mlflow", "track.mlflow", "track")


def open_trackers(run: RunFolder, recipe: Recipe) -> list[Callable[[Event], None]]:
    """What a run's events are to be handed to.

    Args:
        run: The run folder.
        recipe: The recipe; its `track` group says what besides metrics.jsonl.

    Returns:
        Functions that take an event.
    """
    trackers = [_json_lines(run)]
    if recipe.track.tensorboard:
        trackers.append(_tensorboard(run))
    if recipe.track.mlflow:
        trackers.append(_mlflow(run, recipe, recipe.track.mlflow))
    return trackers


def event_record(event: Event) -> dict[str, Any] | None:
    """The line of metrics.jsonl for an event; None where it has none."""
    if isinstance(event, StepDone):
        return {
            "step": event.step, "epoch": event.epoch, "loss": event.loss, "reviews": event.reviews,
            "seconds": event.seconds, "learning_rate": event.learning_rate,
            "reviews_per_second": event.reviews / event.seconds,
            "tokens_per_second": event.tokens / event.seconds,
            "peak_memory_bytes": event.peak_memory_bytes,
        }  # fmt: skip
    if isinstance(event, EvalDone):
        return {
            "step": event.step, "epoch": event.epoch, "train_loss": event.train_loss,
            "validation_loss": event.validation_loss, "validation_macro_f1": event.validation_macro_f1,
            "best": event.best,
        }  # fmt: skip
    return None


def _json_lines(run: RunFolder) -> Callable[[Event], None]:
    def log(event: Event) -> None:
        record = event_record(event)
        if record is not None:
            append_json_line(run.metrics_log, record)

    return log


def _tensorboard(run: RunFolder) -> Callable[[Event], None]:
    from torch.utils.tensorboard import SummaryWriter  # an extra

    writer = SummaryWriter(str(run.tensorboard))

    def log(event: Event) -> None:
        for name, value in _numbers(event):
            writer.add_scalar(name, value, event.step)
        if isinstance(event, EvalDone):
            writer.flush()

    return log


def _mlflow(run: RunFolder, recipe: Recipe, uri: str) -> Callable[[Event], None]:
    from mlflow import MlflowClient  # an extra

    client = MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name("rxtone")
    experiment = found.experiment_id if found else client.create_experiment("rxtone")
    run_id = client.create_run(experiment, run_name=run.path.name).info.run_id
    for group, values in recipe.model_dump(mode="json").items():
        for key, value in values.items():
            client.log_param(run_id, f"{group}.{key}", str(value)[:500])

    def log(event: Event) -> None:
        for name, value in _numbers(event):
            client.log_metric(run_id, name, value, step=event.step)

    return log


def _numbers(event: Event) -> list[tuple[str, float]]:
    record = event_record(event) or {}
    group = "train" if isinstance(event, StepDone) else "validation"
    return [(f"{group}/{key}", float(value)) for key, value in record.items() if key not in {"step", "best"}]


def _require(module: str, key: str, extra: str) -> None:
    if importlib.util.find_spec(module) is None:
        msg = f"{key}: {module} is not installed; install rxtone[{extra}], or leave the key out"
        raise RecipeError(msg)
