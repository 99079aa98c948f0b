"""The pictures of a page, as SVG elements, from the content of `metrics.json`."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from rxtone.evaluation import plots


def report_pictures(
    metrics: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], history: Sequence[Mapping[str, float]]
) -> dict[str, Markup]:
    """Draw what there is to draw of one evaluation.

    Args:
        metrics: The content of `metrics.json`.
        rows: The classifier and what stands beside it: `title`, `metrics`, `unavailable`.
        history: The lines of `metrics.jsonl`.

    Returns:
        Name -> SVG element; a picture without data is left out.
    """
    labels, matrix = metrics["labels"], metrics["confusion_matrix"]
    pictures = {
        "confusion_share": _svg(
            plots.confusion_figure(matrix, labels, normalised=True),
            "confusion-share",
            "Confusion matrix, share of each true label",
        ),
        "confusion_counts": _svg(
            plots.confusion_figure(matrix, labels, normalised=False),
            "confusion-counts",
            "Confusion matrix, counts",
        ),
    }
    if len([row for row in rows if row["unavailable"] is None]) > 1:
        pictures["comparison"] = comparison_picture(rows)
    calibration = metrics.get("calibration")
    if calibration is not None:
        curves = {"uncalibrated": calibration["before"]["reliability"]}
        if calibration["method"] != "none":
            curves["calibrated"] = calibration["after"]["reliability"]
        pictures["reliability"] = _svg(plots.reliability_figure(curves), "reliability", "Accuracy against confidence")
    curve = metrics.get("risk_coverage")
    if curve is not None:
        pictures["risk_coverage"] = _svg(
            plots.risk_coverage_figure(curve["coverage"], curve["risk"], _answered(metrics)),
            "risk-coverage",
            "Accuracy against the share of reviews answered",
        )
    for name, figure in plots.training_figures(history).items():
        pictures[f"training_{name}"] = _svg(figure, f"training-{name}", f"Training: {name.replace('_', ' ')}")
    return pictures


def comparison_picture(rows: Sequence[Mapping[str, Any]]) -> Markup:
    """Draw macro-F1 with intervals, one row under another.

    Args:
        rows: What is compared: `title`, `metrics`, `unavailable`; those that are unavailable are left out.

    Returns:
        An SVG element.
    """
    measured = [row for row in rows if row["unavailable"] is None]
    figure = plots.interval_figure(
        [row["title"] for row in measured],
        [row["metrics"]["macro_f1"] for row in measured],
        [row["metrics"].get("macro_f1_ci") for row in measured],
        "macro-F1",
    )
    return _svg(figure, "comparison", "Macro-F1 side by side")


def _answered(metrics: Mapping[str, Any]) -> tuple[float, float] | None:
    found = metrics.get("abstention")
    if found is None or found["precision"] is None:
        return None
    return found["coverage"], 1 - found["precision"]


def _svg(figure: Figure, name: str, description: str) -> Markup:
    # Safe: drawn here, and matplotlib escapes the texts in it.
    return Markup(plots.to_svg(figure, name, description))  # noqa: S704
