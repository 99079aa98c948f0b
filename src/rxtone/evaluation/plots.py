"""Pictures of an evaluation, drawn with matplotlib's objects alone: no pyplot, no global state.

The figures are transparent and their ink is one colour, which `to_svg` turns into `currentColor`: inside a
page they follow its light or dark theme. The two accents (blue and orange, apart for every kind of colour
vision) keep their contrast on both.
"""

import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

INK = "#1a1d21"
FAINT = "#8a8f98"
BLUE = "#2a7ab8"
ORANGE = "#d5792a"

# Above this opacity dark text on the blue cell would lose contrast on a light page.
_STRONGEST_CELL = 0.7
_SMOOTH_STEPS = 25
# A longer name would squeeze the drawing away; the tables of the page hold it in full.
_LONGEST_NAME = 36
_LEAST_COVERAGE = 0.04


def confusion_figure(matrix: Sequence[Sequence[int]], labels: Sequence[str], *, normalised: bool) -> Figure:
    """Draw a confusion matrix as a heatmap with a figure in each cell.

    Args:
        matrix: Counts, shape (k, k): rows are true labels, columns predicted ones.
        labels: The k labels.
        normalised: Whether cells show the share of their row instead of the count.

    Returns:
        The heatmap; the opacity of a cell is its share of the row in both kinds.
    """
    counts = np.asarray(matrix, dtype=np.float64)
    totals = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
    side = max(3.4, 1.0 * len(labels) + 0.9)
    figure, axes = axes_of(side + 0.4, side)
    for i, j in np.ndindex(*counts.shape):
        axes.add_patch(Rectangle((j, i), 1, 1, facecolor=(BLUE, _STRONGEST_CELL * share[i, j]), edgecolor="none"))
        text = f"{share[i, j]:.0%}" if normalised else f"{counts[i, j]:,.0f}"
        axes.text(j + 0.5, i + 0.5, text, ha="center", va="center", fontsize=12, color=INK)
    axes.set_xlim(0, len(labels))
    axes.set_ylim(len(labels), 0)
    _label_ticks(axes, labels)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_aspect("equal")
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color(FAINT)
    axes.tick_params(length=0)
    return figure


def _label_ticks(axes: Axes, labels: Sequence[str]) -> None:
    centres, labels = np.arange(len(labels)) + 0.5, [_short(label) for label in labels]
    # A label is data: "$" in it is not mathematics.
    axes.set_xticks(centres, labels, parse_math=False)
    axes.set_yticks(centres, labels, parse_math=False, rotation=90 if len(labels) < 4 else 0, va="center")
    if len(labels) > 4:
        axes.tick_params(axis="x", rotation=45)


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"


def training_figures(history: Sequence[Mapping[str, float]]) -> dict[str, Figure]:
    """Draw the course of a training run.

    Args:
        history: The lines of `metrics.jsonl`; each has `step`, and `loss` and `learning_rate` or
            `validation_loss` and `validation_macro_f1`. A key that is missing or null is left out.

    Returns:
        Figures by name, only those for which there are points: `loss`, `macro_f1`, `learning_rate`.
    """
    figures = {}
    loss, validation_loss = _series(history, "loss"), _series(history, "validation_loss")
    if loss[0].size or validation_loss[0].size:
        figure, axes = axes_of(4.6, 3.0)
        if loss[0].size:
            smooth = _smoothed(loss[1])
            axes.plot(*loss, color=BLUE, alpha=0.25, linewidth=0.8)
            axes.plot(loss[0], smooth, color=BLUE, linewidth=1.8, label="training")
        if validation_loss[0].size:
            axes.plot(*validation_loss, color=ORANGE, marker="o", markersize=4, label="validation")
        finish_axes(axes, "step", "loss")
        axes.legend(frameon=False, labelcolor=INK)
        figures["loss"] = figure
    for name, key, label in (
        ("macro_f1", "validation_macro_f1", "validation macro-F1"),
        ("learning_rate", "learning_rate", "learning rate"),
    ):
        points = _series(history, key)
        if points[0].size:
            figure, axes = axes_of(4.6, 3.0)
            axes.plot(
                *points,
                color=ORANGE if name == "macro_f1" else BLUE,
                marker="o" if name == "macro_f1" else "",
            )
            finish_axes(axes, "step", label)
            figures[name] = figure
    return figures


def _series(history: Sequence[Mapping[str, float]], key: str) -> tuple[np.ndarray, np.ndarray]:
    points = [(line["step"], line[key]) for line in history if line.get(key) is not None]
    values = np.array(points, dtype=np.float64).reshape(-1, 2)
    return values[:, 0], values[:, 1]


def _smoothed(values: np.ndarray) -> np.ndarray:
    """Take the mean over the last steps, over fewer at the start."""
    sums = np.cumsum(np.concatenate([[0.0], values]))
    end = np.arange(1, len(values) + 1)
    start = np.maximum(0, end - min(_SMOOTH_STEPS, max(1, len(values) // 10)))
    return np.asarray((sums[end] - sums[start]) / (end - start))


def interval_figure(
    names: Sequence[str], values: Sequence[float], intervals: Sequence[Sequence[float] | None], label: str
) -> Figure:
    """Draw figures with their intervals under one another, the first one accented.

    Args:
        names: What each row is.
        values: One figure per row.
        intervals: The lower and the upper end per row, None where there is none.
        label: What the figures are, for the axis.

    Returns:
        A figure with one row per name, the first on top.
    """
    figure, axes = axes_of(5.2, 0.42 * len(names) + 0.75)
    for i, (value, interval) in enumerate(zip(values, intervals, strict=True)):
        colour = BLUE if i == 0 else FAINT
        if interval is not None:
            axes.plot(interval, [i, i], color=colour, linewidth=3, solid_capstyle="round", alpha=0.55)
        axes.plot([value], [i], color=colour, marker="o", markersize=7)
    axes.set_yticks(range(len(names)), [_short(name) for name in names], parse_math=False)
    axes.set_ylim(len(names) - 0.5, -0.5)
    finish_axes(axes, label, "")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    return figure


def pairs_figure(names: Sequence[str], before: Sequence[float], now: Sequence[float]) -> Figure:
    """Draw shares before and now as pairs of bars.

    Args:
        names: What each pair is.
        before: Shares in the reference.
        now: Shares in what is compared.

    Returns:
        The bars, the first pair on top.
    """
    figure, axes = axes_of(4.6, 0.55 * len(names) + 1.2)
    rows = np.arange(len(names))
    axes.barh(rows - 0.19, before, height=0.34, color=FAINT, label="evaluation")
    axes.barh(rows + 0.19, now, height=0.34, color=BLUE, label="now")
    axes.set_yticks(rows, [_short(name) for name in names], parse_math=False)
    axes.set_ylim(len(names) - 0.5, -0.5)
    finish_axes(axes, "share of the reviews", "")
    axes.tick_params(axis="y", length=0)
    axes.legend(frameon=False, labelcolor=INK, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return figure


def reliability_figure(bins: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Draw accuracy against confidence; calibrated probabilities lie on the diagonal.

    Args:
        bins: Name of the curve -> its bins with `confidence`, `accuracy`, `accuracy_ci`; the last one accented.

    Returns:
        The reliability diagram.
    """
    figure, axes = axes_of(4.2, 3.8)
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle="--")
    shown = [b["confidence"] for curve in bins.values() for b in curve]
    shown += [end for curve in bins.values() for b in curve for end in b["accuracy_ci"]]
    for i, (name, curve) in enumerate(bins.items()):
        last = i == len(bins) - 1
        colour = BLUE if last else ORANGE
        x, y = [b["confidence"] for b in curve], [b["accuracy"] for b in curve]
        if last:
            ends = np.array([b["accuracy_ci"] for b in curve]).T
            axes.vlines(x, ends[0], ends[1], color=colour, alpha=0.35, linewidth=2.5)
        marker = "o" if last else "s"
        axes.plot(x, y, color=colour, marker=marker, markersize=5 if last else 4, label=name, linewidth=1.2)
    low = max(0.0, min(shown) - 0.03)
    axes.set_xlim(low, 1.02)
    axes.set_ylim(low, 1.02)
    finish_axes(axes, "confidence", "accuracy")
    axes.legend(frameon=False, labelcolor=INK, loc="upper left")
    return figure


def risk_coverage_figure(
    coverage: Sequence[float], risk: Sequence[float], answered: tuple[float, float] | None = None
) -> Figure:
    """Draw the accuracy of the answers against the share of reviews answered.

    Args:
        coverage: Shares of reviews answered, shape (m,).
        risk: Share of errors among them, shape (m,).
        answered: Coverage and risk of the least confidence in use, to be marked; None for none.

    Returns:
        The curve.
    """
    figure, axes = axes_of(4.6, 3.4)
    c, accuracy = np.asarray(coverage), 1 - np.asarray(risk)
    # The accuracy of the last few answers jumps by tens of points and would set the scale of all.
    shown = (c >= _LEAST_COVERAGE) | (np.arange(len(c)) == 0)
    axes.plot(c[shown], accuracy[shown], color=BLUE, linewidth=1.8)
    if answered is not None:
        axes.plot([answered[0]], [1 - answered[1]], color=ORANGE, marker="o", markersize=8)
    axes.set_xlim(1.02, 0)  # from answering everything to answering nothing
    finish_axes(axes, "share of reviews answered", "accuracy of the answers")
    return figure


def axes_of(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of one chart, transparent and in one ink, so that it suits a light and a dark page.

    Args:
        width: In inches.
        height: In inches.

    Returns:
        The figure and its axes, without frame on top and right.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.tick_params(colors=INK, which="both", labelsize=10)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    for name, spine in axes.spines.items():
        spine.set_color(FAINT)
        spine.set_visible(name in ("left", "bottom"))
    return figure, axes


def finish_axes(axes: Axes, x: str, y: str) -> None:
    """Name the axes of a chart and lay a faint grid behind it."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(True, color=FAINT, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)


@contextmanager
def _any_script() -> Iterator[None]:
    """Draw labels in every script: the font measures foreign letters roughly, which is no cause for a warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def to_png(figure: Figure, *, dpi: int = 150) -> bytes:
    """Render a figure as a PNG on white.

    Args:
        figure: The figure.
        dpi: Dots per inch.

    Returns:
        The bytes of the file.
    """
    buffer = io.BytesIO()
    with _any_script():
        FigureCanvasAgg(figure).print_figure(buffer, format="png", dpi=dpi, facecolor="white")
    return buffer.getvalue()


def to_svg(figure: Figure, name: str, description: str) -> str:
    """Render a figure as an SVG element to be put into a page.

    Args:
        figure: The figure.
        name: A prefix that keeps the ids of several pictures in one page apart.
        description: What the picture shows, for those who cannot see it; not the text of a review.

    Returns:
        An `<svg>` element: no script, no style sheet, no reference outside itself, the same bytes every time.
    """
    buffer = io.StringIO()
    # Text stays text (smaller, selectable, in the page's font); the salt makes the ids the same every time.
    with (
        _any_script(),
        mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "rxtone", "font.family": ["sans-serif"]}),
    ):
        FigureCanvasSVG(figure).print_figure(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<[^>]+>", lambda tag: _themed_tag(tag[0], name), svg)
    label = description.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    box = re.search(r'viewBox="[^"]*"', svg)
    if box is None:  # matplotlib always writes one
        raise ValueError("the drawing has no viewBox")
    # Without width and height the page decides how large it is.
    opening = f'<svg role="img" aria-label="{label}" {box[0]} xmlns="http://www.w3.org/2000/svg"'
    return f'{opening} xmlns:xlink="http://www.w3.org/1999/xlink">{svg[svg.index(">") + 1 :].strip()}'


def _themed_tag(tag: str, name: str) -> str:
    tag = re.sub(r'\bid="', f'id="{name}-', tag)
    tag = tag.replace("url(#", f"url(#{name}-").replace('href="#', f'href="#{name}-')
    return tag.replace(INK, "currentColor")
