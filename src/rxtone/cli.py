"""The command line: parse, call, print. Data goes to standard output, all else to standard error.

Exit codes: 0 ok, 1 runtime, 2 usage or recipe, 3 bad or missing data, 4 a quality gate failed,
130 interrupted. Heavy imports stay inside the commands that need them, so that `--help` is quick.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rxtone.errors import RecipeError, RxtoneError

if TYPE_CHECKING:
    from collections.abc import Mapping

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Turn a table of reviews into a LoRA-tuned Flan-T5 sentiment classifier that can be trusted.",
)
data_app = typer.Typer(no_args_is_help=True, help="Fetch the data sets that recipes name.")
config_app = typer.Typer(no_args_is_help=True, help="Look at recipes.")
app.add_typer(data_app, name="data")
app.add_typer(config_app, name="config")

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run folder, an adapter folder or a bundled name.")]
BaseOption = Annotated[
    str | None, typer.Option("--base", help="Where the base is now, if it moved; its identity is checked.")
]
RecipeOption = Annotated[str | None, typer.Option("--recipe", help="Prompt, labels and base for a plain PEFT folder.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="GROUP.KEY=VALUE", help="Override a key of the recipe.")
]


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe (see `rxtone config list`) or a YAML file.")],
    overrides: SetOption = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the run.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue what is in --out.")] = False,
) -> None:
    """Train an adapter, prove that it reloads, evaluate it on held-out reviews, write a report."""
    from rxtone import api, config, pipeline, progress
    from rxtone.model.base import quiet_transformers

    quiet_transformers()
    resolved = config.load_recipe(recipe, overrides or [])
    if resume and out is None:
        msg = "--resume: say which run with --out DIR"
        raise RecipeError(msg)
    folder = out or api.default_out(Path(recipe).stem)
    try:
        evaluation = progress.show(pipeline.train(resolved, folder, resume=resume))
    except KeyboardInterrupt:
        again = f"rxtone train {recipe} ... --out {folder} --resume"
        print(f"interrupted; the last checkpoint is kept, continue with: {again}", file=sys.stderr)
        raise typer.Exit(130) from None
    if evaluation is not None:
        _print_metrics(evaluation.metrics)
    environment = json.loads((folder / "environment.json").read_text("utf-8"))["training"]
    if environment["reviews_per_second"]:
        print(
            f"trained at {environment['reviews_per_second']:.2f} reviews/s, peak memory "
            f"{environment['peak_memory_bytes'] / 2**30:.2f} GiB"
        )
    print(f"run: {folder}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder of the run.")] = Path("rxtone-demo"),
    overrides: SetOption = None,
) -> None:
    """See the whole story in minutes, offline: bundled base, bundled sample, train, evaluate, report."""
    from rxtone.config import cache_dir
    from rxtone.data.tables import read_table

    train("demo", overrides, out, False)
    classifier = _load(str(out), None, None)
    table = read_table("sample:test", cache_dir()).frame.head(5)
    columns = list(classifier.spec.text_fields.values())
    print("\nFive reviews that it has not seen:")
    for row, prediction in zip(table.to_dicts(), classifier.predict(table.select(columns).to_dicts()), strict=True):
        shares = "  ".join(f"{label} {p:.2f}" for label, p in prediction.probabilities.items())
        print(f"  {row['urlDrugName'][:16]:16}  rated {row['rating']:>2}  -> {prediction.label:8}  ({shares})")
    print(
        f"\nNext:\n  open {out}/evaluation/report.html\n"
        f'  rxtone predict {out} --text "No more migraines, but I was so tired that I stopped taking it."\n'
        f"  rxtone train druglib --set model.base=bundled --set data.train=YOUR_TABLE.csv --set data.test=null"
    )


@app.command()
def evaluate(
    run: RunArgument,
    table: Annotated[str, typer.Argument(help="A labelled table.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON.")] = False,
    mode: Annotated[str, typer.Option(help="score, or generate: free generation, for comparison.")] = "score",
    base: BaseOption = None,
    recipe: RecipeOption = None,
) -> None:
    """Judge a trained classifier on a labelled table."""
    if mode not in {"score", "generate"}:
        msg = f"--mode {mode}: expected score or generate"
        raise RecipeError(msg)
    from rxtone.artefacts import judge_table
    from rxtone.classifier import adapter_folder

    classifier = _load(run, base, recipe)
    evaluation = judge_table(classifier, adapter_folder(run), table, mode=mode)
    if as_json:
        print(json.dumps(evaluation.metrics, indent=2, allow_nan=False))
    else:
        _print_metrics(evaluation.metrics)


@app.command()
def predict(
    run: RunArgument,
    source: Annotated[str | None, typer.Argument(metavar="INPUT", help="A table of reviews.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Table to write.")] = None,
    text: Annotated[list[str] | None, typer.Option("--text", help="A review as free text.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="With --text: print JSON.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Reviews per batch.")] = 32,
    base: BaseOption = None,
    recipe: RecipeOption = None,
) -> None:
    """Label a table (INPUT with -o OUTPUT) or single texts (--text)."""
    if bool(source) == bool(text) or bool(source) != bool(output):
        msg = "predict: give either INPUT with -o OUTPUT, or --text TEXT"
        raise RecipeError(msg)
    from rxtone.serving.bulk import check_output, predict_table

    if source and output:
        check_output(output)
        rows = predict_table(_load(run, base, recipe), source, output, batch_size=batch_size)
        print(f"{rows} rows -> {output}", file=sys.stderr)
        return
    predictions = _load(run, base, recipe).predict(text or [])
    if as_json:
        print(json.dumps([
            {"label": p.label, "score": p.probabilities[p.label], "probabilities": p.probabilities,
             "truncated": p.truncated, "abstained": p.abstained}
            for p in predictions
        ], indent=2))  # fmt: skip
        return
    for prediction in predictions:
        shares = "  ".join(f"{label} {p:.3f}" for label, p in prediction.probabilities.items())
        print(f"{prediction.label}\t{shares}" + ("\t(cut to fit the prompt)" if prediction.truncated else ""))


@data_app.command("fetch")
def data_fetch(name: Annotated[str, typer.Argument(help="druglib or sample.")]) -> None:
    """Download a named data set into the cache, checked by its hash."""
    from rxtone.config import cache_dir
    from rxtone.data.sources import fetch

    for path in fetch(name, cache_dir()):
        print(path)


@config_app.command("list")
def config_list() -> None:
    """Print the names of the shipped recipes."""
    from rxtone.config import shipped_recipes

    for name in shipped_recipes():
        print(name)


@config_app.command("show")
def config_show(recipe: Annotated[str, typer.Argument()], overrides: SetOption = None) -> None:
    """Print a recipe with every default written out."""
    from rxtone.config import dump_recipe, load_recipe

    print(dump_recipe(load_recipe(recipe, overrides or [])), end="")


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON schema of a recipe."""
    from rxtone.config import recipe_schema

    print(recipe_schema())


def main() -> None:
    """Run the command; every explained error becomes one message and its exit code."""
    try:
        app(standalone_mode=True)
    except RxtoneError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _load(run: str, base: str | None, recipe: str | None) -> Any:
    from rxtone.classifier import load
    from rxtone.config import load_recipe
    from rxtone.model.base import quiet_transformers

    quiet_transformers()
    return load(run, base=base, recipe=load_recipe(recipe) if recipe else None)


def _print_metrics(metrics: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    names = ("accuracy", "macro_f1", "weighted_f1", "kappa", "quadratic_kappa")
    table = Table(title=f"{metrics['n']} reviews ({metrics['split']})", title_justify="left")
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right")
    rows = [("this classifier", metrics)]
    rows += [(row["title"], row) for row in metrics.get("baselines", {}).values()]
    for title, row in rows:
        missing = "unavailable" in row
        table.add_row(title, *("–" if missing or row[name] is None else f"{row[name]:.3f}" for name in names))
    classes = Table(title="per class", title_justify="left")
    for name in ("label", "precision", "recall", "f1", "reviews"):
        classes.add_column(name, justify="left" if name == "label" else "right")
    for label, row in metrics["per_class"].items():
        figures = (f"{row[name]:.3f}" for name in ("precision", "recall", "f1"))
        classes.add_row(label, *figures, str(row["support"]))
    console = Console(width=110 if not sys.stdout.isatty() else None)
    console.print(table)
    console.print(classes)
    if metrics.get("invalid_rate"):
        console.print(f"invalid outputs, counted as errors: {metrics['invalid_rate']:.1%}")
    if metrics.get("training_rows"):
        console.print(f"{metrics['training_rows']} of these rows were trained on: no test of anything")
