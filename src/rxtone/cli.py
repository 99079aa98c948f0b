"""The command line: parse, call, print. Data goes to standard output, all else to standard error.

Exit codes: 0 ok, 1 runtime, 2 usage or recipe, 3 bad or missing data, 4 a quality gate failed,
130 interrupted. Heavy imports stay inside the commands that need them, so that `--help` is quick.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from rxtone import cli_explain as explaining
from rxtone import cli_judge as judge
from rxtone import cli_sweep
from rxtone import cli_work as work
from rxtone.cli_doctor import doctor
from rxtone.cli_options import LogJsonOption, SetOption, load_classifier, print_metrics, print_seeds
from rxtone.errors import RecipeError, RxtoneError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Turn a table of reviews into a LoRA-tuned Flan-T5 sentiment classifier that can be trusted.",
)
data_app = typer.Typer(no_args_is_help=True, help="Fetch, audit and correct data.")
config_app = typer.Typer(no_args_is_help=True, help="Look at recipes.")
app.add_typer(data_app, name="data")
app.add_typer(config_app, name="config")

for command in (
    judge.evaluate, work.predict, explaining.explain, judge.compare, judge.drift, work.serve, work.export, work.push,
    doctor,
):  # fmt: skip
    app.command()(command)
app.command()(cli_sweep.sweep)
data_app.command("audit")(judge.data_audit)
data_app.command("corrections")(work.data_corrections)


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe (see `rxtone config list`) or a YAML file.")],
    overrides: SetOption = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the run.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue what is in --out.")] = False,
    seeds: Annotated[int, typer.Option(min=1, help="Train so many seeds, and their ensemble.")] = 1,
    log_json: LogJsonOption = False,
) -> None:
    """Train an adapter, prove that it reloads, evaluate it on held-out reviews, write a report."""
    from rxtone import api, config, pipeline, progress
    from rxtone import seeds as over_seeds
    from rxtone.model.base import quiet_transformers
    from rxtone.model.host import prepare_host
    from rxtone.run import RunFolder
    from rxtone.stopping import stop_on_signals

    quiet_transformers()
    prepare_host()
    resolved = config.load_recipe(recipe, overrides or [])
    if resume and out is None:
        msg = "--resume: say which run with --out DIR"
        raise RecipeError(msg)
    folder = out or api.default_out(Path(recipe).stem)
    with stop_on_signals() as stop:
        evaluation, interrupted = None, False
        story = (
            over_seeds.train_seeds(resolved, folder, seeds, resume=resume, stop=stop)
            if seeds > 1
            else pipeline.train(resolved, folder, resume=resume, stop=stop)
        )
        try:
            evaluation = progress.show(story, as_json=log_json)
        except KeyboardInterrupt:
            interrupted = True
        if interrupted or stop.wanted():
            more = f" --seeds {seeds}" if seeds > 1 else ""
            again = f"rxtone train {recipe} ... --out {folder}{more} --resume"
            print(f"interrupted; the last checkpoint is kept, continue with: {again}", file=sys.stderr)
            raise typer.Exit(stop.exit_code())
    if config.process_place()[0]:
        return  # one of several processes, and not the one that writes
    if seeds > 1:
        print_seeds(json.loads((folder / "seeds.json").read_text("utf-8")))
        print(f"run: {folder}")
        return
    if evaluation is not None:
        print_metrics(evaluation.metrics)
    for name in resolved.aspects:
        metrics = RunFolder(folder).aspect(name).evaluation / "metrics.json"
        if metrics.is_file():
            print(f"\naspect {name}: {folder}/adapters/{name}")
            print_metrics(json.loads(metrics.read_text("utf-8")))
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

    train("demo", overrides, out, resume=False)
    classifier = load_classifier(str(out), None, None)
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
def config_show(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe or a YAML file.")], overrides: SetOption = None
) -> None:
    """Print a recipe with every default written out."""
    from rxtone.config import dump_recipe, load_recipe

    print(dump_recipe(load_recipe(recipe, overrides or [])), end="")


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON schema of a recipe."""
    from rxtone.config import recipe_schema

    print(recipe_schema())


def main() -> None:
    """Run the command; every error becomes one message and its exit code.

    An error that nobody foresaw is told by its type and the way to it. Its own message may quote a review,
    so it is left out.
    """
    try:
        app(standalone_mode=True)
    except RxtoneError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except Exception as error:
        from rxtone.logs import new_id, stack

        print("\n".join(f"  {line}" for line in stack(error)), file=sys.stderr)
        print(
            f"error: {type(error).__name__} inside rxtone, id {new_id()}. Its message may "
            "quote data and is not shown: call the same from Python to see it, and please report the lines above",
            file=sys.stderr,
        )
        sys.exit(1)
