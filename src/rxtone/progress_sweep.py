"""A search as a live table on a terminal, as lines elsewhere; on standard error."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rxtone.space import shown
from rxtone.sweep_events import FoldDone, StudyOpened, SweepDone, TrialEnded, TrialStarted, TrialStep, TrialValidated

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    from rxtone.sweep_events import SweepEvent

ROWS = 12
"""Ended trials shown live: the best of them."""


def show_sweep(events: Iterable[SweepEvent]) -> SweepDone | None:
    """Draw a search while it happens.

    Args:
        events: What `sweep` yields.

    Returns:
        Its last event, if it came.
    """
    console = Console(stderr=True, highlight=False)
    last = None
    for event in _with_table(events, console) if console.is_terminal else _with_lines(events):
        if isinstance(event, SweepDone):
            last = event
    return last


def results_table(record: dict[str, Any]) -> Table:
    """The confirmed settings as a table.

    Args:
        record: What confirmation.json holds.

    Returns:
        A table for the console, best first.
    """
    n_seeds = len(record["seeds"])
    spelt = "1 seed, whose own luck is in no figure," if n_seeds == 1 else f"{n_seeds} seeds,"
    title = f"confirmed on {record['folds']} folds x {spelt} {record['reviews']} reviews"
    against = record["against"]
    table = Table(title=title, title_justify="left")
    for name in ("trial", "settings", "macro-F1", "95% interval", "sd", "chance of being best"):
        table.add_column(name, justify="left" if name == "settings" else "right")
    if against is not None:
        table.add_column(f"gain over trial {against}", justify="right")
    for row in record["settings"]:
        low, high = row["interval"]
        chance = f"{row['probability_best']:.0%}" if len(record["settings"]) > 1 else "–"  # no rival, no chance
        table.add_row(
            str(row["trial"]), Text(_settings(row["settings"])), f"{row['mean']:.3f}", f"{low:.3f} to {high:.3f}",
            "–" if row["sd"] is None else f"{row['sd']:.3f}", chance,
            *([] if against is None else [_gain(row["gain"])]),
        )  # fmt: skip
    return table


def _gain(interval: list[float] | None) -> str:
    return "–" if interval is None else f"{interval[0]:+.3f} to {interval[1]:+.3f}"


def _with_table(events: Iterable[SweepEvent], console: Console) -> Iterator[SweepEvent]:
    settings: dict[int, dict[str, Any]] = {}
    running: dict[int, str] = {}
    ended: list[TrialEnded] = []
    wanted: int | None = None
    folds = ""
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        for event in events:
            if isinstance(event, StudyOpened):
                wanted = event.wanted
            elif isinstance(event, TrialStarted):
                settings[event.number], running[event.number] = event.settings, "starting"
            elif isinstance(event, TrialStep):
                running[event.number] = f"step {event.step.step}/{event.step.total_steps}, loss {event.step.loss:.3f}"
            elif isinstance(event, TrialValidated):
                running[event.number] = f"epoch {event.epoch:.1f}, macro-F1 {event.macro_f1:.3f}"
            elif isinstance(event, TrialEnded):
                running.pop(event.number, None)
                ended.append(event)
            elif isinstance(event, FoldDone):
                folds = f"confirming: {event.done}/{event.total} runs, the last macro-F1 {event.macro_f1:.3f}"
            live.update(_drawn(settings, running, ended, wanted, folds))
            yield event


def _drawn(
    settings: dict[int, dict[str, Any]],
    running: dict[int, str],
    ended: list[TrialEnded],
    wanted: int | None,
    folds: str,
) -> Group:
    of = f" of {wanted}" if wanted else ""
    table = Table(title=f"{len(ended)} trials ended{of}", title_justify="left")
    for name in ("trial", "settings", "state", "macro-F1"):
        table.add_column(name, justify="right" if name in {"trial", "macro-F1"} else "left")
    for number, state in running.items():
        table.add_row(str(number), Text(_settings(settings.get(number, {}))), Text(state), "")
    for event in sorted(ended, key=lambda event: -(event.macro_f1 or -1.0))[:ROWS]:
        figure = "–" if event.macro_f1 is None else f"{event.macro_f1:.3f}"
        table.add_row(str(event.number), Text(_settings(settings.get(event.number, {}))), event.state, figure)
    return Group(table, Text(folds))


def _with_lines(events: Iterable[SweepEvent]) -> Iterator[SweepEvent]:
    for event in events:
        line = _line(event)
        if line is not None:
            print(line, file=sys.stderr, flush=True)
        yield event


def _line(event: SweepEvent) -> str | None:
    if isinstance(event, StudyOpened):
        of = f" of {event.wanted}" if event.wanted else ""
        return f"study {event.folder}: {event.done}{of} settings tried before" if event.done else None
    if isinstance(event, TrialStarted):
        return f"trial {event.number}: {_settings(event.settings)}"
    if isinstance(event, TrialValidated):
        return f"trial {event.number}: epoch {event.epoch:.2f}, macro-F1 {event.macro_f1:.4f}"
    if isinstance(event, TrialEnded):
        if event.state == "failed":
            return f"trial {event.number} failed: {event.reason}"
        figure = "" if event.macro_f1 is None else f", macro-F1 {event.macro_f1:.4f} in {event.facts['seconds']:.1f} s"
        return f"trial {event.number} {event.state}{figure}"
    if isinstance(event, FoldDone):
        return (
            f"confirming {event.done}/{event.total}: trial {event.number}, seed {event.seed}, fold {event.fold}, "
            f"macro-F1 {event.macro_f1:.4f}"
        )
    return None


def _settings(settings: dict[str, Any]) -> str:
    return ", ".join(f"{key.rpartition('.')[2]}={shown(value)}" for key, value in settings.items())
