"""The audit of data and the drift of new reviews as pages, as inert as the report."""

from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict

from markupsafe import Markup

from rxtone.evaluation import plots
from rxtone.evaluation.report import page_environment


class AuditContext(TypedDict):
    """What the page of an audit shows."""

    title: str
    """What was audited: the recipe."""
    created: str
    """When, as an ISO 8601 date and time."""
    audit: Mapping[str, Any]
    """The content of audit.json."""
    commands: Sequence[str]
    """The commands that give this result again."""
    notes: NotRequired[Sequence[str]]
    """What could not be looked at, in sentences."""


class DriftContext(TypedDict):
    """What the page of a drift check shows."""

    title: str
    """The run."""
    created: str
    """When, as an ISO 8601 date and time."""
    table: str
    """The table of new reviews."""
    drift: Mapping[str, Any]
    """The content of drift.json."""
    commands: Sequence[str]
    """The commands that give this result again."""


def render_audit(context: AuditContext) -> str:
    """Render the page of an audit.

    Args:
        context: What to show.

    Returns:
        HTML; every value is escaped, scripts and requests are forbidden.
    """
    return page_environment().get_template("audit.html.j2").render(context=context, audit=context["audit"])


def render_drift(context: DriftContext) -> str:
    """Render the page of a drift check.

    Args:
        context: What to show.

    Returns:
        HTML; every value is escaped, scripts and requests are forbidden.
    """
    drift = context["drift"]
    pictures = {
        feature["name"]: _shares(feature)
        for feature in drift["features"]
        if set(feature["reference"]) != {"mean", "p10", "p50", "p90"}
    }
    return page_environment().get_template("drift.html.j2").render(context=context, drift=drift, pictures=pictures)


def _shares(feature: Mapping[str, Any]) -> Markup:
    names = list(feature["reference"])
    figure = plots.pairs_figure(
        names, [feature["reference"][name] for name in names], [feature["current"][name] for name in names]
    )
    key = "drift-" + "".join(letter if letter.isalnum() else "-" for letter in str(feature["name"]))
    # Safe: drawn here, and matplotlib escapes the texts in it.
    return Markup(plots.to_svg(figure, key, f"{feature['name']}: shares before and now"))  # noqa: S704
