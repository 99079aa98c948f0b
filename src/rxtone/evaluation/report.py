"""An evaluation as one self-contained page: no script, no request, nothing a review could run.

The page is rendered from a plain dict; what it shows is in the JSON files of the run, and rendering it again
from them gives the same page.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from rxtone.evaluation import plots

HEADLINE = ("macro_f1", "accuracy", "kappa")
"""The metrics shown large, the deciding one first."""

METRIC_TITLES = {
    "accuracy": "accuracy",
    "macro_precision": "macro precision",
    "macro_recall": "macro recall",
    "macro_f1": "macro-F1",
    "weighted_precision": "weighted precision",
    "weighted_recall": "weighted recall",
    "weighted_f1": "weighted F1",
    "kappa": "Cohen's kappa",
    "quadratic_kappa": "quadratic kappa",
}


class ReportContext(TypedDict):
    """Everything that the page shows; each part is read from a file of the run."""

    title: str
    """What was evaluated: the name of the run."""
    created: str
    """When, as an ISO 8601 date and time."""
    metrics: Mapping[str, Any]
    """The content of `metrics.json`, as `evaluate` gives it."""
    facts: Mapping[str, Mapping[str, str]]
    """What was trained on what: section ("Data", "Model", "Training") -> name -> value."""
    history: Sequence[Mapping[str, float]]
    """The lines of `metrics.jsonl`, () where nothing was trained."""
    cut_fields: Mapping[str, int]
    """Field name -> number of the evaluated reviews in which it was cut."""
    environment: Mapping[str, str]
    """Versions and machine: name -> value."""
    commands: Sequence[str]
    """The commands that give this result again."""
    notes: NotRequired[Sequence[str]]
    """What a reader should know before trusting the figures, in sentences."""


def render_report(context: ReportContext) -> str:
    """Render the page.

    Args:
        context: What to show.

    Returns:
        HTML. Every value is escaped; the content security policy forbids scripts and requests.
    """
    # A StrictUndefined: a misspelt key must fail here, not leave a gap in the page.
    environment = Environment(
        loader=PackageLoader("rxtone.evaluation", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"figure": format_figure, "interval": format_interval, "percent": format_percent}
    metrics = context["metrics"]
    return environment.get_template("report.html.j2").render(
        context=context,
        metrics=metrics,
        headline=HEADLINE,
        metric_titles=METRIC_TITLES,
        rows=_comparison_rows(metrics),
        pictures=_pictures(context),
    )


def format_figure(value: float | None) -> str:
    """Write a figure as text.

    Args:
        value: The figure, None where it is undefined or could not be estimated.

    Returns:
        Three decimals, or a dash.
    """
    return "–" if value is None else f"{value:.3f}".replace("-", "−")


def format_percent(value: float | None) -> str:
    """Write a share as text.

    Args:
        value: A share in 0..1, or None.

    Returns:
        Percent with one decimal, or a dash.
    """
    return "–" if value is None else f"{value:.1%}"


def format_interval(interval: Sequence[float] | None) -> str:
    """Write an interval as text.

    Args:
        interval: Its lower and upper end, or None.

    Returns:
        "low to high", or a dash.
    """
    return "–" if interval is None else f"{format_figure(interval[0])} to {format_figure(interval[1])}"


def _comparison_rows(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Put the classifier first and what stands beside it below."""
    rows = [{"title": "this classifier", "metrics": metrics, "unavailable": None}]
    for baseline in metrics.get("baselines", {}).values():
        unavailable = baseline.get("unavailable")
        rows.append({"title": baseline["title"], "metrics": baseline, "unavailable": unavailable})
    return rows


def _pictures(context: ReportContext) -> dict[str, Markup]:
    metrics = context["metrics"]
    labels, matrix = metrics["labels"], metrics["confusion_matrix"]
    pictures = {
        "confusion_share": _picture(
            plots.confusion_figure(matrix, labels, normalised=True),
            "confusion-share",
            "Confusion matrix, share of each true label",
        ),
        "confusion_counts": _picture(
            plots.confusion_figure(matrix, labels, normalised=False),
            "confusion-counts",
            "Confusion matrix, counts",
        ),
    }
    measured = [row for row in _comparison_rows(metrics) if row["unavailable"] is None]
    if len(measured) > 1:
        figure = plots.interval_figure(
            [row["title"] for row in measured],
            [row["metrics"]["macro_f1"] for row in measured],
            [row["metrics"].get("macro_f1_ci") for row in measured],
            "macro-F1",
        )
        pictures["comparison"] = _picture(figure, "comparison", "Macro-F1 beside the baselines")
    for name, figure in plots.training_figures(context["history"]).items():
        pictures[f"training_{name}"] = _picture(
            figure, f"training-{name}", f"Training: {name.replace('_', ' ')}"
        )
    return pictures


def _picture(figure: Figure, name: str, description: str) -> Markup:
    # Safe: drawn here, and matplotlib escapes the texts in it.
    return Markup(plots.to_svg(figure, name, description))  # noqa: S704
