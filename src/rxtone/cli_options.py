"""Arguments that commands share, and what they print alike. Imports stay light."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rxtone.classifier import Classifier

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run folder, an adapter folder or a bundled name.")]
BaseOption = Annotated[
    str | None, typer.Option("--base", help="Where the base is now, if it moved; its identity is checked.")
]
RecipeOption = Annotated[str | None, typer.Option("--recipe", help="Prompt, labels and base for a plain PEFT folder.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="GROUP.KEY=VALUE", help="Override a key of the recipe.")
]
LogJsonOption = Annotated[bool, typer.Option("--log-json", help="Log as JSON lines on standard error.")]
PrecisionOption = Annotated[
    str | None, typer.Option("--precision", help="fp32, bf16, int8 (CPU), fp16 or auto; by default the run's own.")
]


def load_classifier(run: str, base: str | None, recipe: str | None, precision: str | None = None) -> Classifier:
    """Load what a RUN argument names."""
    from rxtone.classifier import load
    from rxtone.config import load_recipe
    from rxtone.model.base import quiet_transformers
    from rxtone.model.host import prepare_host

    quiet_transformers()
    prepare_host()
    return load(run, base=base, recipe=load_recipe(recipe) if recipe else None, precision=precision)


def print_metrics(metrics: Mapping[str, Any]) -> None:
    """Print the figures as tables: the classifier and what stands beside it, then each label."""
    from rich.console import Console
    from rich.table import Table

    names = ("accuracy", "macro_f1", "weighted_f1", "kappa", "quadratic_kappa")
    table = Table(title=f"{metrics['n']} reviews ({metrics['split']})", title_justify="left")
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right")
    for title, row in [("this classifier", metrics)] + [
        (row["title"], row) for row in metrics.get("baselines", {}).values()
    ]:
        missing = "unavailable" in row
        table.add_row(title, *("–" if missing or row[name] is None else f"{row[name]:.3f}" for name in names))
    classes = Table(title="per class", title_justify="left")
    for name in ("label", "precision", "recall", "f1", "reviews"):
        classes.add_column(name, justify="left" if name == "label" else "right")
    for label, row in metrics["per_class"].items():
        figures = (f"{row[name]:.3f}" for name in ("precision", "recall", "f1"))
        classes.add_row(label, *figures, str(row["support"]))
    console = Console(width=None if sys.stdout.isatty() else 110)
    console.print(table)
    console.print(classes)
    if interval := metrics.get("macro_f1_ci"):
        console.print(f"macro-F1 {metrics['macro_f1']:.3f}, 95% interval {interval[0]:.3f} to {interval[1]:.3f}")
    if change := metrics.get("precision_change"):
        console.print(
            f"against the run's own precision: {change['flips']} of {change['reviews']} labels differ, "
            f"a probability by at most {change['largest']:.4f}"
        )
    if metrics.get("invalid_rate"):
        console.print(f"invalid outputs, counted as errors: {metrics['invalid_rate']:.1%}")
    if metrics.get("training_rows"):
        console.print(f"{metrics['training_rows']} of these rows were trained on: no test of anything")
