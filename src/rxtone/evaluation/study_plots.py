"""Pictures of a search, in the manner of `plots`: one ink, two accents, no global state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rxtone.evaluation.plots import BLUE, FAINT, INK, ORANGE, axes_of, finish_axes

_SHORT = 22


def history_figure(numbers: Sequence[int], values: Sequence[float]) -> Figure:
    """Draw what each complete trial reached, and the best so far.

    Args:
        numbers: Numbers of the trials.
        values: Their macro-F1.

    Returns:
        Dots and a line.
    """
    figure, axes = axes_of(5.6, 3.0)
    axes.plot(numbers, values, "o", color=BLUE, alpha=0.7, markersize=5)
    axes.step(numbers, np.maximum.accumulate(values), where="post", color=ORANGE, linewidth=1.6)
    finish_axes(axes, "trial", "validation macro-F1")
    return figure


def importance_figure(importance: Mapping[str, tuple[float, float, float]]) -> Figure:
    """Draw how much of the spread each key explains.

    Args:
        importance: Key -> median and both ends over resampled trials.

    Returns:
        A bar per key, the largest on top, with its range.
    """
    names = sorted(importance, key=lambda name: -importance[name][0])
    figure, axes = axes_of(5.6, 0.45 * len(names) + 0.9)
    for row, name in enumerate(names):
        middle, low, high = importance[name]
        axes.barh(row, middle, height=0.55, color=BLUE, alpha=0.65)
        axes.plot([low, high], [row, row], color=ORANGE, linewidth=2)
    axes.set_yticks(range(len(names)), [_cut(name) for name in names], parse_math=False)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    finish_axes(axes, "share of the explained spread", "")
    return figure


def parallel_figure(columns: Mapping[str, Sequence[Any]], values: Sequence[float]) -> Figure:
    """Draw every trial as a line through its settings, the best ones in the accent.

    Args:
        columns: Key -> its value in each trial; text is a category, None is "not varied".
        values: Macro-F1 of each trial.

    Returns:
        Parallel coordinates, macro-F1 last.
    """
    figure, axes = axes_of(max(7.0, 1.7 * (len(columns) + 1)), 3.4)
    names = [*columns, "macro-F1"]
    places = [axis_places(list(column)) for column in columns.values()] + [axis_places(list(values))]
    order = np.argsort(values)
    top = set(order[-3:].tolist())
    low, high = min(values), max(values)
    for trial in order:
        share = (values[trial] - low) / (high - low) if high > low else 1.0
        heights = [place.heights[trial] for place in places]
        axes.plot(
            range(len(names)), heights, color=ORANGE if trial in top else BLUE, alpha=0.95 if trial in top else
            0.12 + 0.5 * share, linewidth=1.8 if trial in top else 1.0,
        )  # fmt: skip
    for column, place in enumerate(places):
        axes.axvline(column, color=FAINT, linewidth=0.8)
        for height, text in place.ticks:
            axes.annotate(
                _cut(text), (column, height), xytext=(3, 0), textcoords="offset points", fontsize=8, va="center",
                parse_math=False, color=INK,
            )  # fmt: skip
    axes.set_xticks(range(len(names)), [_cut(name) for name in names], parse_math=False)
    axes.set_xlim(-0.1, len(names) - 0.45)
    axes.set_ylim(-0.06, 1.06)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    return figure


def slice_figure(name: str, column: Sequence[Any], values: Sequence[float]) -> Figure:
    """Draw macro-F1 against one key, with the mean of each category.

    Args:
        name: The key.
        column: Its value in each trial.
        values: Macro-F1 of each trial.

    Returns:
        A slice plot.
    """
    figure, axes = axes_of(3.6, 2.9)
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in column)
    distinct = sorted(set(column)) if numbers else sorted({str(value) for value in column})
    if numbers and len(distinct) > 6:
        axes.plot(column, values, "o", color=BLUE, alpha=0.7, markersize=5)
        if min(column) > 0 and max(column) / min(column) > 8:
            axes.set_xscale("log")
    else:
        keys = list(column) if numbers else [str(value) for value in column]
        spread = np.random.default_rng(0).uniform(-0.12, 0.12, len(keys))
        axes.plot([distinct.index(key) + jitter for key, jitter in zip(keys, spread, strict=True)], values, "o",
                  color=BLUE, alpha=0.6, markersize=5)  # fmt: skip
        for place, key in enumerate(distinct):
            mean = float(np.mean([value for value, own in zip(values, keys, strict=True) if own == key]))
            axes.plot([place - 0.25, place + 0.25], [mean, mean], color=ORANGE, linewidth=2)
        axes.set_xticks(range(len(distinct)), [_cut(f"{key:g}" if numbers else key) for key in distinct],
                        parse_math=False, rotation=0 if len(distinct) < 4 else 20)  # fmt: skip
        axes.set_xlim(-0.5, len(distinct) - 0.5)
    finish_axes(axes, name, "macro-F1")
    return figure


def curves_figure(curves: Sequence[Sequence[float]], states: Sequence[str], best: int) -> Figure:
    """Draw macro-F1 after each validation of every trial.

    Args:
        curves: Per trial its macro-F1 values.
        states: Per trial `complete`, `pruned` or `failed`.
        best: Which trial is accented.

    Returns:
        Learning curves; pruned trials end in a cross.
    """
    figure, axes = axes_of(5.6, 3.2)
    for index, (curve, state) in enumerate(zip(curves, states, strict=True)):
        if not curve:
            continue
        steps = range(1, len(curve) + 1)
        if index == best:
            axes.plot(steps, curve, color=ORANGE, linewidth=2.2, marker="o", markersize=4, zorder=3)
        elif state == "complete":
            axes.plot(steps, curve, color=BLUE, alpha=0.45, linewidth=1.1, marker="o", markersize=2.5)
        else:
            axes.plot(steps, curve, color=FAINT, linewidth=1, linestyle="--")
            axes.plot([len(curve)], [curve[-1]], color=FAINT, marker="x", markersize=6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    finish_axes(axes, "validation", "macro-F1")
    return figure


def cost_figure(costs: Sequence[float], values: Sequence[float], front: Sequence[bool], label: str) -> Figure:
    """Draw quality against one cost; trials that no other one beats in everything are accented.

    Args:
        costs: Cost of each trial.
        values: Macro-F1 of each trial.
        front: Whether the trial is on the Pareto front.
        label: What the cost is.

    Returns:
        A scatter plot.
    """
    figure, axes = axes_of(3.6, 2.9)
    chosen = np.asarray(front, dtype=bool)
    x, y = np.asarray(costs, dtype=float), np.asarray(values, dtype=float)
    axes.plot(x[~chosen], y[~chosen], "o", color=BLUE, alpha=0.5, markersize=5)
    axes.plot(x[chosen], y[chosen], "o", color=ORANGE, markersize=6)
    axes.locator_params(axis="x", nbins=4)
    finish_axes(axes, label, "macro-F1")
    return figure


@dataclass(frozen=True)
class Places:
    """Where the values of one axis of the parallel coordinates lie.

    Attributes:
        heights: Height in 0..1 of each trial.
        ticks: Height and text of the marks.
    """

    heights: Sequence[float]
    ticks: Sequence[tuple[float, str]]


def axis_places(column: list[Any]) -> Places:
    """Lay the values of one key on an axis from 0 to 1: numbers by size, all else by name."""
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in column)
    if not numbers:
        texts = ["–" if value is None else str(value) for value in column]
        names = sorted(set(texts))
        at = {name: index / max(1, len(names) - 1) for index, name in enumerate(names)}
        return Places([at[text] for text in texts], [(at[name], name) for name in names])
    distinct = sorted(set(column))
    if len(distinct) <= 5:  # few numbers, such as ranks: at even distances
        spots = {value: index / max(1, len(distinct) - 1) for index, value in enumerate(distinct)}
        return Places([spots[value] for value in column], [(spots[value], f"{value:.4g}") for value in distinct])
    wide = distinct[0] > 0 and distinct[-1] / distinct[0] > 8
    scaled = np.log(column) if wide else np.asarray(column, dtype=float)
    heights = (scaled - scaled.min()) / (scaled.max() - scaled.min())
    return Places(heights.tolist(), [(0.0, f"{distinct[0]:.3g}"), (1.0, f"{distinct[-1]:.3g}")])


def _cut(text: str) -> str:
    return text if len(text) <= _SHORT else text[: _SHORT - 1] + "…"
