"""The command that searches for the best settings."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from rxtone.cli_options import AddressOption, EngineOption, SetOption, check_engine
from rxtone.errors import RecipeError


def sweep(
    space: Annotated[
        str, typer.Argument(metavar="SPACE", help="tutorial, quick, thorough, objectives, auxiliary, or a YAML file.")
    ],
    overrides: SetOption = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the study; runs/sweep-SPACE if none.")] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Settings to try; the space's number if none.")] = None,
    together: Annotated[int, typer.Option(min=1, help="Settings trained at once through one forward.")] = 1,
    engine: EngineOption = "local",
    address: AddressOption = None,
    cpus: Annotated[float, typer.Option(min=0, help="With ray: CPUs per trial.")] = 1,
    gpus: Annotated[float, typer.Option(min=0, help="With ray: GPUs per trial, a fraction shares one.")] = 0,
    storage: Annotated[str | None, typer.Option(help="Optuna URL that several machines share.")] = None,
    confirm: Annotated[bool, typer.Option("--confirm/--no-confirm", help="Train the best settings again.")] = True,
    top: Annotated[int | None, typer.Option(min=1, help="Settings to confirm.")] = None,
    folds: Annotated[int | None, typer.Option(min=2, help="Folds of the confirmation.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Seeds of the confirmation.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print confirmation.json.")] = False,
) -> None:
    """Find the best settings: search SPACE, confirm the best few, write best.yaml. Repeat the command to resume."""
    from rxtone.config import load_recipe
    from rxtone.model.base import default_device, quiet_transformers
    from rxtone.model.host import prepare_host
    from rxtone.progress_sweep import results_table, show_sweep
    from rxtone.space import load_space
    from rxtone.stopping import stop_on_signals
    from rxtone.sweep import sweep as search

    check_engine(engine)
    if engine == "ray" and together > 1:
        msg = "--together trains several settings in one process, --engine ray one in each; choose one of them"
        raise RecipeError(msg)
    quiet_transformers()
    prepare_host()
    if together > 1 and default_device().type == "cpu":
        print("note: on a CPU settings train faster one after another, without --together", file=sys.stderr)
    found = load_space(space)
    if not confirm:
        found = found.model_copy(update={"confirm": None})
    elif found.confirm is not None:
        changes = {name: value for name, value in (("top", top), ("folds", folds), ("seeds", seeds)) if value}
        found = found.model_copy(update={"confirm": found.confirm.model_copy(update=changes)})
    recipe = load_recipe(found.recipe, overrides or [])
    folder = out or Path("runs") / f"sweep-{Path(space).stem}"
    with stop_on_signals() as stop:
        try:
            if engine == "ray":
                from rxtone.cluster import ray_runner

                with ray_runner(address=address, cpus=cpus, gpus=gpus) as cluster:
                    done = show_sweep(search(found, recipe, folder, storage=storage, trials=trials, runner=cluster))
            else:
                done = show_sweep(search(found, recipe, folder, storage=storage, trials=trials, together=together))
        except KeyboardInterrupt:
            print(f"interrupted; what ended is kept in {folder}, go on with the same command", file=sys.stderr)
            raise typer.Exit(stop.exit_code()) from None
    if done is None:
        return
    if done.record is not None and as_json:
        print(json.dumps(done.record, indent=2))
        return
    if done.record is not None:
        from rich.console import Console

        Console(width=None if sys.stdout.isatty() else 140).print(results_table(done.record))
        print(f"best: rxtone train {done.folder.best}")
    print(f"page: {done.folder.page}\ntrials: {done.folder.table}")
