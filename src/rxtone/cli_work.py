"""Commands that put a run to work: predict, serve, export, push, corrections."""

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rxtone.cli_options import (
    AddressOption,
    BaseOption,
    ConfidenceOption,
    CoverageOption,
    EngineOption,
    LogJsonOption,
    PrecisionOption,
    RecipeOption,
    RunArgument,
    TargetOption,
    check_engine,
    decided,
    load_classifier,
)
from rxtone.errors import RecipeError

if TYPE_CHECKING:
    from rxtone.classifier import Classifier
    from rxtone.serving.bulk_labels import Runner


def predict(
    run: RunArgument,
    inputs: Annotated[list[str] | None, typer.Argument(metavar="INPUT", help="Tables, folders or globs.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Table to write.")] = None,
    text: Annotated[list[str] | None, typer.Option("--text", help="A review as free text.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="With --text: print JSON.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Reviews per batch.")] = 32,
    min_confidence: ConfidenceOption = None,
    target_precision: TargetOption = None,
    coverage: CoverageOption = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at any bad row instead of naming it aside.")] = False,
    safe_cells: Annotated[bool, typer.Option("--safe-cells", help="Disarm cells a spreadsheet would compute.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Drop unfinished parts of another job.")] = False,
    engine: EngineOption = "local",
    address: AddressOption = None,
    cpus: Annotated[float, typer.Option(min=0, help="With ray: CPUs per process that labels.")] = 1,
    gpus: Annotated[float, typer.Option(min=0, help="With ray: GPUs per process, a fraction shares one.")] = 0,
    base: BaseOption = None,
    recipe: RecipeOption = None,
    precision: PrecisionOption = None,
) -> None:
    """Label tables (INPUT... with -o OUTPUT) or single texts (--text)."""
    if bool(inputs) == bool(text) or bool(inputs) != bool(output):
        msg = "predict: give either INPUT with -o OUTPUT, or --text TEXT"
        raise RecipeError(msg)
    check_engine(engine)
    if engine == "ray" and not output:
        msg = "--engine ray labels tables; leave it out with --text"
        raise RecipeError(msg)
    if output:
        from rxtone.serving.bulk import check_output

        check_output(output)
    with contextlib.ExitStack() as stack:
        runner = None
        if engine == "ray":
            from rxtone.serving.bulk_cluster import ray_labels

            # Before the model is loaded and the table read: a cluster that is not there is told at once.
            runner = stack.enter_context(ray_labels(address=address, cpus=cpus, gpus=gpus))
        classifier = load_classifier(run, base, recipe, precision)
        classifier = decided(classifier, min_confidence, target_precision, coverage)
        if inputs and output:
            _predict_tables(
                classifier, inputs, output, batch_size, strict=strict, safe_cells=safe_cells, restart=restart,
                runner=runner,
            )  # fmt: skip
        else:
            _predict_texts(classifier, text or [], as_json=as_json)


def _predict_tables(
    classifier: Classifier,
    inputs: list[str],
    output: Path,
    batch_size: int,
    *,
    strict: bool,
    safe_cells: bool,
    restart: bool,
    runner: Runner | None,
) -> None:
    from rxtone.serving.bulk import BulkDone, predict_tables
    from rxtone.serving.bulk_labels import label_here

    events = predict_tables(
        classifier, inputs, output, batch_size=batch_size, strict=strict, safe_cells=safe_cells, restart=restart,
        runner=runner or label_here,
    )  # fmt: skip
    for event in events:
        if isinstance(event, BulkDone):
            aside = f"; {event.rejected} bad rows -> {event.rejected_path}" if event.rejected else ""
            print(f"{event.rows} rows -> {event.output}{aside}", file=sys.stderr)
        else:
            left = "" if event.seconds_left is None else f", {event.seconds_left:.0f} s left"
            print(f"{event.done_rows}/{event.total_rows} rows{left}", file=sys.stderr)


def _predict_texts(classifier: Classifier, texts: list[str], *, as_json: bool) -> None:
    predictions = classifier.predict(texts)
    if as_json:
        rows = [asdict(p) | {"score": p.probabilities[p.label]} for p in predictions]
        asked = [{k: v for k, v in row.items() if k != "label_set" or v is not None} for row in rows]
        print(json.dumps(asked, indent=2))
        return
    for prediction in predictions:
        shares = "  ".join(f"{label} {p:.3f}" for label, p in prediction.probabilities.items())
        marks = "\t(not sure)" if prediction.abstained else ""
        marks += f"\tamong {', '.join(prediction.label_set)}" if prediction.label_set else ""
        print(f"{prediction.label}\t{shares}{marks}" + ("\t(cut to fit the prompt)" if prediction.truncated else ""))


def serve(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Runs; the first is the default.")],
    host: Annotated[str, typer.Option(help="Address; another than loopback needs --token-file.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    share: Annotated[bool, typer.Option("--share", help="Open a public link, behind a login.")] = False,
    token_file: Annotated[Path | None, typer.Option(help="File with the token that clients show.")] = None,
    page: Annotated[bool, typer.Option("--page/--no-page", help="Serve the page beside the API.")] = True,
    corrections: Annotated[Path | None, typer.Option(help="SQLite file that keeps the page's corrections.")] = None,
    min_confidence: ConfidenceOption = None,
    base: BaseOption = None,
    recipe: RecipeOption = None,
    precision: PrecisionOption = None,
    log_json: LogJsonOption = False,
) -> None:
    """Serve a page and an API for one run or several."""
    from rxtone.config import load_recipe
    from rxtone.logs import start_logging
    from rxtone.model.base import quiet_transformers
    from rxtone.model.host import prepare_host

    start_logging(as_json=log_json)
    try:
        from rxtone.serving.server import run_server
    except ImportError as error:
        msg = f"serve: {error.name} is not installed; install rxtone[serve]"
        raise RecipeError(msg) from None
    quiet_transformers()
    prepare_host(shapes_return=True)
    run_server(
        runs, host=host, port=port, share=share, token_file=token_file, page=page, base=base,
        recipe=load_recipe(recipe) if recipe else None, precision=precision, min_confidence=min_confidence,
        corrections=corrections,
    )  # fmt: skip


def export(
    run: RunArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write; it must not exist.")],
    form: Annotated[str, typer.Option("--format", help="merged, ctranslate2 or onnx.")] = "merged",
    precision: Annotated[str, typer.Option(help="fp32, bf16 (not onnx) or int8 (not merged).")] = "fp32",
    canaries: Annotated[str | None, typer.Option(help="Table to compare on; the bundled sample if none.")] = None,
    tolerance: Annotated[float | None, typer.Option(min=0.0, help="Largest probability change allowed.")] = None,
    base: BaseOption = None,
    recipe: RecipeOption = None,
) -> None:
    """Write a run for another runtime, and prove that it answers the same."""
    from rxtone.config import load_recipe
    from rxtone.model.base import quiet_transformers
    from rxtone.serving import export as exporting

    quiet_transformers()
    report = exporting.export(
        run, out, form=form, precision=precision, canaries=canaries, tolerance=tolerance, base=base,
        recipe=load_recipe(recipe) if recipe else None,
    )  # fmt: skip
    print(json.dumps(asdict(report), indent=2))


def push(
    run: RunArgument,
    repository: Annotated[str, typer.Argument(metavar="ORG/NAME", help="Repository on the hub.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be uploaded.")] = False,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
) -> None:
    """Upload an adapter or an export, with its model card."""
    from rxtone.serving import push as pushing

    plan = pushing.plan_push(run, repository)
    for warning in plan.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    for name, path in plan.files:
        print(f"{path.stat().st_size:>12,}  {name}")
    if not dry_run:
        print(pushing.push(plan, private=private))


def data_corrections(
    path: Annotated[Path, typer.Argument(metavar="SQLITE", help="The file that `serve --corrections` wrote.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Training table to write.")],
    run: Annotated[str | None, typer.Option(help="Take the corrections of this run only.")] = None,
    free_text: Annotated[str | None, typer.Option(help="Column for reviews that were one free text.")] = None,
) -> None:
    """Turn the corrections of the page into a training table."""
    from rxtone.serving.corrections import corrections_table, write_corrections

    table = corrections_table(path, run=run, free_text_column=free_text)
    write_corrections(table, output)
    print(f"{table.frame.height} rows -> {output}", file=sys.stderr)
