"""Arguments that commands share, and what they print alike. Imports stay light."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rxtone.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rich.table import Table

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
ConfidenceOption = Annotated[
    float | None, typer.Option(min=0.0, max=1.0, help="Mark less probable answers as abstained.")
]
TargetOption = Annotated[
    float | None,
    typer.Option(
        "--target-precision", min=0.0, max=1.0, help="Abstain so that this share of the answers should be right."
    ),
]
CoverageOption = Annotated[
    float | None,
    typer.Option("--coverage", min=0.0, max=1.0, help="Name sets of labels that hold the true one this often."),
]
EngineOption = Annotated[str, typer.Option(help="local, or ray (extra `cluster`).")]
AddressOption = Annotated[str | None, typer.Option(help="With ray: the cluster; a new local one if none.")]


def check_engine(engine: str) -> None:
    """Refuse an `--engine` that there is not.

    Args:
        engine: What the user gave.

    Raises:
        RecipeError: If it is neither `local` nor `ray`.
    """
    if engine not in {"local", "ray"}:
        msg = f"--engine: expected local or ray, got {engine!r}"
        raise RecipeError(msg)


def load_classifier(run: str, base: str | None, recipe: str | None, precision: str | None = None) -> Classifier:
    """Load what a RUN argument names."""
    from rxtone.config import load_recipe
    from rxtone.loading import load
    from rxtone.model.base import quiet_transformers
    from rxtone.model.host import prepare_host

    quiet_transformers()
    prepare_host()
    return load(run, base=base, recipe=load_recipe(recipe) if recipe else None, precision=precision)


def decided(
    classifier: Classifier, min_confidence: float | None, target_precision: float | None, coverage: float | None
) -> Classifier:
    """Let a classifier hold back, or name label sets; standard error says what that means.

    Args:
        classifier: As it was loaded.
        min_confidence: `--min-confidence`.
        target_precision: `--target-precision`.
        coverage: `--coverage`.

    Returns:
        The classifier with that policy.

    Raises:
        RecipeError: If two bounds are given.
    """
    if min_confidence is not None and target_precision is not None:
        msg = "give either --min-confidence or --target-precision, which finds one"
        raise RecipeError(msg)
    if min_confidence is not None:
        classifier = classifier.with_min_confidence(min_confidence)
    if target_precision is not None:
        classifier, found = classifier.with_target_precision(target_precision)
        if found is None:
            said = (
                f"no least confidence reaches {target_precision:.1%} on the validation rows: every answer is withheld"
            )
        else:
            certain = "certified" if found.certified else "not certified: picked on these rows, a little optimistic"
            said = (
                f"least confidence {found.threshold:.3f}: {found.coverage:.1%} of the validation rows are answered, "
                f"{found.precision:.1%} of these rightly ({certain}; lower bound {found.lower_bound:.1%})"
            )
        print(said, file=sys.stderr)
    return classifier if coverage is None else classifier.with_coverage(coverage)


def print_metrics(metrics: Mapping[str, Any]) -> None:
    """Print the figures as tables: the classifier and what stands beside it, then each label."""
    from rich.console import Console
    from rich.table import Table

    usual = ("accuracy", "macro_f1", "weighted_f1", "kappa", "quadratic_kappa")
    names = [name for name in usual if metrics[name] is not None]  # labels without an order have no quadratic kappa
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
    if suite := metrics.get("behaviour"):
        console.print(_behaviour_table(suite))
    for line in _remarks(metrics):
        console.print(line)


def _behaviour_table(suite: Mapping[str, Any]) -> Table:
    from rich.table import Table

    table = Table(title="behavioural suite", title_justify="left")
    for name in ("", "passed", "rate", "95% interval"):
        table.add_column(name, justify="right" if name else "left")
    for part in suite["capabilities"].values():
        share = "–" if part["pass_rate"] is None else f"{part['pass_rate']:.0%}"
        span = "–" if part["pass_rate_ci"] is None else "{:.0%} to {:.0%}".format(*part["pass_rate_ci"])
        table.add_row(part["title"], f"{part['passed']}/{part['n']}", share, span)
    return table


def _remarks(metrics: Mapping[str, Any]) -> Iterator[str]:
    """What the tables do not say, in sentences."""
    if interval := metrics.get("macro_f1_ci"):
        yield f"macro-F1 {metrics['macro_f1']:.3f}, 95% interval {interval[0]:.3f} to {interval[1]:.3f}"
    if held := metrics.get("abstention"):
        low, high = held["precision_ci"] or (0.0, 1.0)
        right = "" if held["precision"] is None else f", {held['precision']:.1%} rightly ({low:.1%} to {high:.1%})"
        yield (
            f"with least confidence {held['min_confidence']:.3f}: {held['n_answered']} answered{right}; "
            f"{held['n_abstained']} withheld"
        )
    if sets := metrics.get("conformal"):
        low, high = sets["coverage_ci"]
        yield (
            f"label sets that promise {sets['level']:.0%}: hold the true label {sets['coverage']:.1%} of the time "
            f"({low:.1%} to {high:.1%}), {sets['mean_size']:.2f} labels on average"
        )
    if change := metrics.get("precision_change"):
        yield (
            f"against the run's own precision: {change['flips']} of {change['reviews']} labels differ, "
            f"a probability by at most {change['largest']:.4f}"
        )
    if metrics.get("invalid_rate"):
        yield f"invalid outputs, counted as errors: {metrics['invalid_rate']:.1%}"
    if metrics.get("training_rows"):
        yield f"{metrics['training_rows']} of these rows were trained on: no test of anything"


def print_seeds(summary: Mapping[str, Any]) -> None:
    """Print what several seeds gave, and what that shows."""
    from rich.console import Console
    from rich.table import Table

    from rxtone.seeds import verdicts

    table = Table(
        title=f"{len(summary['seeds'])} seeds, {summary['n']} reviews ({summary['split']})", title_justify="left"
    )
    for name in ("", "mean", "sd", "lowest", "highest", "ensemble"):
        table.add_column(name, justify="right" if name else "left")
    rows = summary["metrics"] | {f"F1 {label}": row for label, row in summary["per_class_f1"].items()}
    for name, row in rows.items():
        figures = (row["mean"], row["sd"], min(row["values"]), max(row["values"]), row["ensemble"])
        table.add_row(name, *(f"{figure:.3f}" for figure in figures))
    console = Console(width=None if sys.stdout.isatty() else 110)
    console.print(table)
    for line in verdicts(summary):
        console.print(line, highlight=False)
