"""An evaluation as one self-contained page: no script, no request, nothing a review could run.

The page is rendered from a plain dict; what it shows is in the JSON files of the run, and rendering it again
from them gives the same page.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict

import polars as pl
from jinja2 import Environment, PackageLoader, StrictUndefined

from rxtone.evaluation.pictures import comparison_picture, report_pictures

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


class Example(TypedDict):
    """One review that deserves a look."""

    row: int
    """The 1-based data row of the table."""
    true_label: str
    """The label of the table."""
    label: str
    """The predicted label."""
    score: float
    """The probability of the predicted label."""
    text: NotRequired[str]
    """The review itself, where whoever renders the page asked for texts."""
    words: NotRequired[Sequence[tuple[str, float]]]
    """The review in words, each with its weight in -1..1 for the predicted label; shown instead of `text`."""


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
    confident_errors: NotRequired[Sequence[Example]]
    """The errors of the highest confidence, as `confident_errors` finds them."""
    suspects: NotRequired[Sequence[Example]]
    """Training reviews whose label cross-fitted probabilities contradict."""


class ComparisonContext(TypedDict):
    """Everything that the page of a comparison shows."""

    title: str
    """What is compared."""
    created: str
    """When, as an ISO 8601 date and time."""
    table: str
    """The table on whose reviews the runs are compared."""
    comparison: Mapping[str, Any]
    """What `compare` gives."""
    commands: Sequence[str]
    """The commands that give this result again."""
    notes: NotRequired[Sequence[str]]
    """What a reader should know before trusting the figures, in sentences."""
    seeds: NotRequired[Mapping[str, Mapping[str, Any]]]
    """Run -> `n`, `mean`, `sd`, `interval` of macro-F1 over seeds, where several were trained."""
    seed_verdicts: NotRequired[Sequence[str]]
    """What the seeds show, in sentences."""


def render_report(context: ReportContext) -> str:
    """Render the page of one evaluation.

    Args:
        context: What to show.

    Returns:
        HTML. Every value is escaped; the content security policy forbids scripts and requests.
    """
    metrics = context["metrics"]
    rows = [{"title": "this classifier", "metrics": metrics, "unavailable": None}, *_beside(metrics)]
    return (
        page_environment()
        .get_template("report.html.j2")
        .render(
            context=context,
            metrics=metrics,
            headline=HEADLINE,
            metric_titles=METRIC_TITLES,
            rows=rows,
            pictures=report_pictures(metrics, rows, context["history"]),
        )
    )


def render_comparison(context: ComparisonContext) -> str:
    """Render the page of a comparison of runs.

    Args:
        context: What to show.

    Returns:
        HTML, as inert as that of `render_report`.
    """
    comparison = context["comparison"]
    rows = [{"title": name, "metrics": metrics, "unavailable": None} for name, metrics in comparison["runs"].items()]
    rows += _beside(comparison)
    return (
        page_environment()
        .get_template("comparison.html.j2")
        .render(
            context=context,
            comparison=comparison,
            labels=comparison["labels"],
            metric_titles=METRIC_TITLES,
            rows=rows,
            picture=comparison_picture(rows),
        )
    )


def confident_errors(predictions: pl.DataFrame, count: int = 10) -> list[Example]:
    """Find the errors of the highest confidence.

    Args:
        predictions: The content of `predictions.parquet`.
        count: How many at most.

    Returns:
        The errors, the most confident first, without the text of the reviews.
    """
    wrong = predictions.filter(pl.col("label") != pl.col("true_label"))
    found = wrong.sort("score", "row", descending=[True, False]).head(count)
    return [
        Example(row=row, true_label=true, label=label, score=score)
        for row, true, label, score in found.select("row", "true_label", "label", "score").iter_rows()
    ]


def page_environment() -> Environment:
    """The templates of this package: escaping, strict about names, with the filters for figures."""
    # StrictUndefined: a misspelt key must fail here, not leave a gap in the page.
    environment = Environment(
        loader=PackageLoader("rxtone.evaluation", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "figure": format_figure,
        "interval": format_interval,
        "moment": format_moment,
        "p_value": format_p,
        "plain": format_plain,
        "percent": format_percent,
        "signed": format_signed,
    }
    return environment


def format_figure(value: float | None) -> str:
    """Write a figure as text.

    Args:
        value: The figure, None where it is undefined or could not be estimated.

    Returns:
        Three decimals, or a dash.
    """
    return "–" if value is None else f"{value:.3f}".replace("-", "−")


def format_p(value: float | None) -> str:
    """Write a p-value: three decimals, never 0."""
    return "< 0.001" if value is not None and value < 0.001 else format_figure(value)


def format_plain(value: float) -> str:
    """Write a number of any size: whole from 10 on, three decimals below."""
    return f"{value:,.0f}" if abs(value) >= 10 else format_figure(value)


def format_moment(value: str) -> str:
    """Write an ISO 8601 date and time for people: to the minute, in its own zone."""
    zone = " UTC" if value.endswith("+00:00") else ""
    return value[:16].replace("T", " ") + zone


def format_signed(value: float | None) -> str:
    """Write a difference as text.

    Args:
        value: The difference, or None.

    Returns:
        Three decimals with their sign, or a dash.
    """
    return "–" if value is None else f"{value:+.3f}".replace("-", "−")


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


def _beside(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """List the baselines as rows of a table."""
    return [
        {"title": baseline["title"], "metrics": baseline, "unavailable": baseline.get("unavailable")}
        for baseline in metrics.get("baselines", {}).values()
    ]
