"""Training events as lines or a live bar on standard error."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rxtone.logs import json_line
from rxtone.pipeline import AdapterReady, AspectStarted, DataReady, Evaluated, Reloaded
from rxtone.seeds import SeedsDone, SeedStarted
from rxtone.tracking import event_record
from rxtone.training.events import EvalDone, MemoryShort, StepDone, StoppedEarly

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rxtone.evaluation.evaluate import Evaluation
    from rxtone.pipeline import StoryEvent

    Shown = StoryEvent | SeedStarted | SeedsDone

PLAIN_EVERY = 10
"""Steps between lines where there is no terminal."""


def show(events: Iterable[Shown], *, as_json: bool = False) -> Evaluation | None:
    """Draw a run while it happens.

    Args:
        events: What `pipeline.train` yields.
        as_json: Write each event as a line of JSON instead.

    Returns:
        The evaluation of the main task, if there was one.
    """
    if as_json:
        return _show_json(events)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    evaluation = None
    for event in _with_bar(events, console) if console.is_terminal else _with_lines(events):
        if isinstance(event, Evaluated):
            evaluation = evaluation or event.evaluation  # of the main task; those of aspects follow
            console.print(f"report: {event.report}")
        elif (line := _line(event)) is not None:
            console.print(line)
    return evaluation


def _show_json(events: Iterable[Shown]) -> Evaluation | None:
    evaluation = None
    for event in events:
        if isinstance(event, Evaluated):
            evaluation = event.evaluation
        facts = event_record(event) if isinstance(event, StepDone | EvalDone) else None
        line = json_line("info", _line(event) or type(event).__name__, event=type(event).__name__, **(facts or {}))
        print(line, file=sys.stderr, flush=True)
    return evaluation


def _with_bar(events: Iterable[Shown], console: Console) -> Iterator[Shown]:
    columns = (
        TextColumn("epoch {task.fields[epoch]:.2f}"), BarColumn(), MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}  lr {task.fields[rate]:.1e}  {task.fields[speed]:.1f} reviews/s"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bar:
        task = None
        for event in events:
            if isinstance(event, StepDone):
                fields = {
                    "epoch": event.epoch, "loss": event.loss, "rate": event.learning_rate,
                    "speed": event.reviews / event.seconds,
                }  # fmt: skip
                if task is None:
                    task = bar.add_task("train", total=event.total_steps, **fields)  # type: ignore[arg-type]
                bar.update(task, completed=event.step, **fields)  # type: ignore[arg-type]
            yield event


def _with_lines(events: Iterable[Shown]) -> Iterator[Shown]:
    for event in events:
        if isinstance(event, StepDone) and (event.step % PLAIN_EVERY == 0 or event.step in {1, event.total_steps}):
            print(
                f"step {event.step}/{event.total_steps}  epoch {event.epoch:.2f}  loss {event.loss:.4f}  "
                f"lr {event.learning_rate:.2e}  {event.reviews / event.seconds:.1f} reviews/s",
                file=sys.stderr,
                flush=True,
            )
        yield event


def _line(event: Shown) -> str | None:
    if isinstance(event, DataReady):
        parts = []
        for name, part in event.record["splits"].items():
            shares = ", ".join(f"{label} {count}" for label, count in part["labels"].items())
            cut = event.record["truncation"][name]["truncated"]
            parts.append(f"{name}: {part['rows']} reviews ({shares}); {cut} do not fit the prompt whole")
        if event.record["dropped_test_rows"]:
            parts.append(f"dropped {event.record['dropped_test_rows']} test rows that repeat a training text")
        return "\n".join(parts)
    if isinstance(event, AdapterReady):
        summary = event.summary
        resumed = f"; resumed at step {event.resumed_step}" if event.resumed_step else ""
        return (
            f"adapter on {len(summary.modules)} layers, {summary.trainable:,} of {summary.total:,} parameters "
            f"learn ({summary.share:.2%}); base in {event.precision} on {event.device}, {event.engine} engine{resumed}"
            + (f"\n  notice: the reference engine computes, since {event.engine_notice}" if event.engine_notice else "")
        )
    if isinstance(event, EvalDone):
        mark = "  best so far" if event.best else ""
        never = f"\n  warning: never predicted on validation: {', '.join(event.never_predicted)}"
        return (
            f"epoch {event.epoch:.2f}: mean training loss {event.train_loss:.4f}, validation loss "
            f"{event.validation_loss:.4f}, macro-F1 {event.validation_macro_f1:.4f}{mark}"
            + (never if event.never_predicted else "")
        )
    if isinstance(event, MemoryShort):
        return (
            f"notice: memory was too short at step {event.step}; from here each batch is computed in {event.parts} "
            "parts that are added up: the same steps, only slower"
        )
    if isinstance(event, StoppedEarly):
        return (
            f"stopped early at step {event.step} of {event.total_steps}: macro-F1 on validation did not rise "
            f"{event.patience} times in a row (train.early_stopping_patience); the best checkpoint counts"
        )
    return _stage_line(event)


def _stage_line(event: Shown) -> str | None:
    """Where the story stands, for the events that are not of the training itself."""
    if isinstance(event, AspectStarted):
        return f"aspect {event.name}"
    if isinstance(event, SeedStarted):
        return f"seed {event.seed} ({event.number} of {event.of})"
    if isinstance(event, SeedsDone):
        return f"seeds: {event.page}"
    if isinstance(event, Reloaded):
        check = event.check
        return (
            f"reloaded in a fresh process: largest probability change {check['max_probability_change']:.1e} on "
            f"{check['rows']} reviews (merged: {check['merged_max_probability_change']:.1e}, "
            f"{check['merged_flipped_labels']} labels flipped)"
        )
    return None
