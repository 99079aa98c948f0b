"""Commands that judge: evaluate, compare, drift, and the audit of data."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from rxtone.cli_options import (
    BaseOption,
    ConfidenceOption,
    CoverageOption,
    PrecisionOption,
    RecipeOption,
    RunArgument,
    SetOption,
    TargetOption,
    decided,
    load_classifier,
    print_metrics,
)
from rxtone.errors import GateError, RecipeError

JsonOption = Annotated[bool, typer.Option("--json", help="Print all figures as JSON.")]


def evaluate(
    run: RunArgument,
    table: Annotated[str, typer.Argument(help="A labelled table.")],
    as_json: JsonOption = False,
    mode: Annotated[str, typer.Option(help="score, or generate: free generation, for comparison.")] = "score",
    behaviour: Annotated[bool, typer.Option("--behaviour", help="Ask the behavioural suite, too.")] = False,
    min_confidence: ConfidenceOption = None,
    target_precision: TargetOption = None,
    coverage: CoverageOption = None,
    min_macro_f1: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Print the figures, then exit 4 if macro-F1 is below this.")
    ] = None,
    base: BaseOption = None,
    recipe: RecipeOption = None,
    precision: PrecisionOption = None,
) -> None:
    """Judge a trained classifier on a labelled table."""
    if mode not in {"score", "generate"}:
        msg = f"--mode {mode}: expected score or generate"
        raise RecipeError(msg)
    from rxtone.judging import judge_table

    loaded = load_classifier(run, base, recipe, precision)
    own = load_classifier(run, base, recipe) if precision not in {None, loaded.spec.precision} else None
    classifier = decided(loaded, min_confidence, target_precision, coverage)
    evaluation = judge_table(classifier, Path(run), table, mode=mode, behaviour=behaviour, own=own)
    if as_json:
        print(json.dumps(evaluation.metrics, indent=2, allow_nan=False))
    else:
        print_metrics(evaluation.metrics)
    if min_macro_f1 is not None and evaluation.metrics["macro_f1"] < min_macro_f1:
        msg = (
            f"macro-F1 {evaluation.metrics['macro_f1']:.4f} on {evaluation.metrics['n']} reviews is below "
            f"--min-macro-f1 {min_macro_f1}"
        )
        raise GateError(msg)


def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Two runs or more.")],
    table: Annotated[str, typer.Option("--on", help="A labelled table that none of them was trained on.")],
    as_json: JsonOption = False,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for comparison.json and comparison.html.")] = None,
) -> None:
    """Compare runs on the same reviews: differences with intervals, tests, a verdict in words."""
    if len(set(runs)) != len(runs) or len(runs) < 2:
        msg = f"compare: expected two different runs or more, got {', '.join(runs)}"
        raise RecipeError(msg)
    from rxtone.judging import compare_runs

    comparison = compare_runs({run: load_classifier(run, None, None) for run in runs}, table, out)
    if as_json:
        print(json.dumps(comparison, indent=2, allow_nan=False))
        return
    for name, metrics in comparison["runs"].items():
        low, high = metrics["macro_f1_ci"] or (None, None)
        interval = f" ({low:.3f} to {high:.3f})" if low is not None else ""
        print(f"{name}: macro-F1 {metrics['macro_f1']:.3f}{interval}, accuracy {metrics['accuracy']:.3f}")
    for pair in comparison["pairs"]:
        print(pair["verdict"])
    for note in comparison["notes"]:
        print(f"note: {note}", file=sys.stderr)


def drift(
    run: RunArgument,
    table: Annotated[str, typer.Argument(help="New reviews; labels are not read.")],
    as_json: JsonOption = False,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for drift.json and drift.html.")] = None,
) -> None:
    """Tell whether new reviews differ from those the run was evaluated on."""
    from rxtone.judging import drift_of

    found = drift_of(load_classifier(run, None, None), Path(run), table, out)
    if as_json:
        print(json.dumps(found, indent=2, allow_nan=False))
        return
    for feature in found["features"]:
        mark = "drifted" if feature["drifted"] else "stable"
        print(f"{feature['name']:20} PSI {feature['psi']:.3f}  p {feature['p_adjusted']:.3f}  {mark}")
    print(found["verdict"])


def data_audit(
    recipe: Annotated[str, typer.Argument(help="The recipe whose tables are audited.")],
    overrides: SetOption = None,
    as_json: JsonOption = False,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for audit.json and audit.html.")] = None,
) -> None:
    """Tell what is wrong with a recipe's data: repeats, leaks, conflicts, shares, lengths, words, suspects."""
    from rxtone.auditing import audit_recipe
    from rxtone.config import load_recipe

    audit = audit_recipe(load_recipe(recipe, overrides or []), out, Path(recipe).stem)
    if as_json:
        print(json.dumps(audit.to_dict(), indent=2, allow_nan=False))
        return
    for finding in audit.findings:
        print(f"{finding.level:8} {finding.text}")
