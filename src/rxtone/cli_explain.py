"""The command that explains one prediction."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from rxtone.cli_options import BaseOption, PrecisionOption, RecipeOption, RunArgument, load_classifier
from rxtone.errors import RecipeError


def explain(
    run: RunArgument,
    text: Annotated[str | None, typer.Option("--text", help="A review as free text.")] = None,
    field: Annotated[
        list[str] | None, typer.Option("--field", metavar="NAME=TEXT", help="One field of a review.")
    ] = None,
    label: Annotated[str | None, typer.Option("--label", help="Explain this label instead of the answer.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    base: BaseOption = None,
    recipe: RecipeOption = None,
    precision: PrecisionOption = None,
) -> None:
    """Show which field and which words drove a prediction."""
    review = review_of(text, field or [])
    from rich.console import Console

    from rxtone.explain import explain as explain_review
    from rxtone.explain_views import explanation_text

    found = explain_review(load_classifier(run, base, recipe, precision), review, label=label)
    if as_json:
        print(json.dumps(found.to_dict(), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        Console(width=None if sys.stdout.isatty() else 110, highlight=False).print(explanation_text(found))


def review_of(text: str | None, fields: list[str]) -> str | dict[str, str]:
    """What `--text` or `--field` give as a review.

    Args:
        text: A free text, or None.
        fields: `NAME=TEXT` each.

    Returns:
        The text, or the fields by name.

    Raises:
        RecipeError: If both or none are given, or a field is not of that form, or given twice.
    """
    if (text is None) == (not fields):
        msg = "explain: give either --text TEXT or --field NAME=TEXT (once per field)"
        raise RecipeError(msg)
    if text is not None:
        return text
    review: dict[str, str] = {}
    for field in fields:
        name, equals, content = field.partition("=")
        if not equals or not name.strip():
            msg = f"--field {field!r}: expected NAME=TEXT, such as --field 'Side Effects=none'"
            raise RecipeError(msg)
        if name.strip() in review:
            msg = f"--field {name.strip()}: given twice; give each field once"
            raise RecipeError(msg)
        review[name.strip()] = content
    return review
