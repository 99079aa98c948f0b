"""`rxtone doctor`: will this recipe run here."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from rxtone.cli_options import SetOption

if TYPE_CHECKING:
    from rxtone.doctor import Report


def doctor(
    recipe: Annotated[
        str | None, typer.Argument(help="A shipped recipe or a YAML file; none: this machine only.")
    ] = None,
    overrides: SetOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say whether a recipe will run here, and what it will take; the exit code says it too."""
    from rxtone.config import load_recipe
    from rxtone.doctor import examine
    from rxtone.model.base import quiet_transformers
    from rxtone.model.host import prepare_host

    quiet_transformers()
    prepare_host()
    report = examine(load_recipe(recipe, overrides or []) if recipe else None)
    if as_json:
        print(json.dumps(report.to_json(), indent=2))
    else:
        print("\n".join(_lines(report, recipe)))
    raise typer.Exit(report.exit_code)


def _lines(report: Report, recipe: str | None) -> list[str]:
    machine = report.machine
    cpu, cache = machine["cpu"], machine["cache"]
    lines = [
        f"python      {machine['python']} on {machine['system']}",
        "packages    " + ", ".join(f"{name} {version}" for name, version in machine["packages"].items() if version),
        "not there   " + (", ".join(name for name, version in machine["packages"].items() if not version) or "nothing"),
        f"cpu         {cpu['name']}, {cpu['cores']} cores for this process, {machine['threads']} threads",
        f"            {', '.join(cpu['features']) or 'no vector extensions'}; bf16 is "
        f"{'native' if cpu['native_bf16'] else 'emulated'}",
        "devices     " + ", ".join(one if isinstance(one, str) else one["name"] for one in machine["devices"]),
        f"precision   {report.precision}",
        f"memory      {machine['free_memory_bytes'] / 2**30:.1f} GiB free; "
        f"disk {machine['free_disk_bytes'] / 2**30:.1f} GiB free",
        f"cache       {cache['path']} ({'there' if cache['exists'] else 'not there yet'}, "
        f"{'can' if cache['writable'] else 'cannot'} be written); {'offline' if machine['offline'] else 'online'}",
    ]
    if report.estimate is not None:
        one = report.estimate
        lines += [
            f"steps       {one.steps}, {one.seconds_per_step:.2f} s each by a trial",
            f"time        about {_duration(one.training_seconds)} of training and "
            f"{_duration(one.validation_seconds)} of validation, if it is not stopped early",
            f"peak        {one.peak_memory_bytes / 2**30:.2f} GiB",
        ]
    if recipe is not None:
        lines.append(
            f"{recipe} will run here" if report.problem is None else f"{recipe} will not run here: {report.problem}"
        )
    return lines


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
