"""The audit of a recipe's tables: what `rxtone data audit` does."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rxtone.config import cache_dir
from rxtone.data.audit import AuditPart, audit
from rxtone.data.reviews import parse_rule, read_reviews
from rxtone.data.tables import read_table
from rxtone.errors import ModelError
from rxtone.evaluation.baselines import cross_fitted
from rxtone.evaluation.pages import render_audit
from rxtone.model.base import load_tokenizer
from rxtone.run import write_json, write_text
from rxtone.spec import prompt_builder

if TYPE_CHECKING:
    from pathlib import Path

    from rxtone.config import Recipe
    from rxtone.data.audit_result import Audit
    from rxtone.data.prompts import PromptBuilder


def audit_recipe(recipe: Recipe, out: Path | None = None, name: str = "recipe") -> Audit:
    """Audit the tables of a recipe; a linear model, cross-fitted, points at suspect labels.

    Args:
        recipe: Names the tables, the fields and the label rule.
        out: Folder for audit.json and audit.html, made where missing; None writes nothing.
        name: What the recipe is called, for the page.

    Returns:
        What was found in each table and between them; lengths only where the base's tokenizer is at hand.
    """
    data = recipe.data
    rule = parse_rule(data.label.rule)
    builder, notes = _builder(recipe)
    parts = {}
    for part, source in (("train", data.train), ("test", data.test)):
        if source is not None:
            table = read_table(source, cache_dir())
            reviews = read_reviews(table, data.text_fields, data.label.column, rule, data.group_by, every_label=False)
            prompts = None if builder is None else builder.build_many(reviews)
            parts[part] = AuditPart(table, reviews, prompts, cross_fitted(reviews, rule.labels))
    groups = [data.group_by] if data.group_by else []
    found = audit(parts, text_fields=data.text_fields, label_column=data.label.column, rule=rule, group_columns=groups)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        tables = f"--set data.train={data.train} --set data.test={data.test or 'null'}"
        page = render_audit({
            "title": name,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "audit": found.to_dict(),
            "commands": [f"rxtone data audit {name} {tables} --out {out}"],
            "notes": notes,
        })  # fmt: skip
        write_text(out / "audit.html", page)
        write_json(out / "audit.json", found.to_dict())
    return found


def _builder(recipe: Recipe) -> tuple[PromptBuilder | None, list[str]]:
    """The prompts of a recipe, where its base's tokenizer is on this machine; else why not. Nothing is fetched."""
    try:
        tokenizer = load_tokenizer(recipe.model.base, recipe.model.revision, local=True)
    except ModelError as error:
        return None, [f"Lengths in tokens and cuts were not counted: {error}"]
    return prompt_builder(tokenizer, recipe.prompt, tuple(recipe.data.label.rule)), []
