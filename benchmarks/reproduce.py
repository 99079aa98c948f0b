"""Full-size results: recipes over seeds on a base, and the table of docs/quality.md between its markers.

`make reproduce` runs the recommended and the tutorial recipe with google/flan-t5-base, 5 seeds and the official split.
It continues where it was interrupted. The table is made of whatever results lie in the folder of the runs; what is not
there is "not measured".
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.pages import rewrite
from rxtone.config import load_recipe
from rxtone.progress import show
from rxtone.run import write_text
from rxtone.seeds import train_seeds

if TYPE_CHECKING:
    from collections.abc import Sequence

MARKERS = ("<!-- reproduce:begin -->", "<!-- reproduce:end -->")
BASES = ("google/flan-t5-base", "bundled")
RECIPES = ("druglib", "druglib-tutorial")
BASELINES = ("zero_shot", "tfidf_fields", "majority")


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is asked for and fill the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default=BASES[0], help="hub id, local folder or `bundled`")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/reproduce"))
    parser.add_argument("--page", type=Path, default=Path("docs/quality.md"))
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="GROUP.KEY=VALUE")
    parser.add_argument("--table-only", action="store_true", help="train nothing, only fill the table")
    asked = parser.parse_args(arguments)
    if not asked.table_only:
        for name in asked.recipes:
            recipe = load_recipe(name, [f"model.base={asked.base}", *asked.overrides])
            folder = asked.out / folder_name(asked.base) / Path(name).stem
            show(train_seeds(recipe, folder, asked.seeds, resume=True))
            write_text(folder / "overrides.txt", "".join(f"{one}\n" for one in asked.overrides))
    bases = list(dict.fromkeys((*BASES, asked.base)))
    rewrite(asked.page, MARKERS, table(asked.out, bases, [Path(name).stem for name in asked.recipes]))
    print(f"{asked.page}: filled")


def folder_name(base: str) -> str:
    """A base as the name of a folder."""
    return base.strip("/").replace("/", "--")


def table(out: Path, bases: Sequence[str], recipes: Sequence[str]) -> str:
    """The results of all runs as a Markdown table.

    Args:
        out: Folder of the runs.
        bases: The bases, one block of rows each.
        recipes: The recipes.

    Returns:
        Markdown; a run that is not there gives a row "not measured".
    """
    lines = [
        "| base | recipe | what | macro-F1 | accuracy | F1 neutral | reviews |",
        "|---|---|---|---|---|---|---|",
    ]
    for base in bases:
        for recipe in recipes:
            folder = out / folder_name(base) / recipe
            start = f"| {base} | {recipe} |"
            if not (folder / "seeds.json").is_file():
                lines.append(f"{start} not measured | – | – | – | – |")
            else:
                lines += [f"{start} {row}" for row in _rows(folder)]
    return "\n".join(lines)


def _rows(folder: Path) -> list[str]:
    summary = json.loads((folder / "seeds.json").read_text("utf-8"))
    metrics = json.loads((folder / "evaluation" / "metrics.json").read_text("utf-8"))
    overrides = (
        (folder / "overrides.txt").read_text("utf-8").split("\n") if (folder / "overrides.txt").is_file() else []
    )
    changed = ", ".join(one for one in overrides if one)
    where = f"{summary['n']} ({summary['split']})"
    neutral = summary["per_class_f1"].get("neutral")
    spread = [summary["metrics"]["macro_f1"], summary["metrics"]["accuracy"], *([neutral] if neutral else [])]
    own = " | ".join(f"{row['mean']:.3f} ± {row['sd']:.3f}" for row in spread)
    what = f"mean ± sd of {len(summary['seeds'])} seeds" + (f" with {changed}" if changed else "")
    rows = [f"{what} | {own} | {where} |", f"ensemble of the seeds | {_figures(metrics)} | {where} |"]
    for name in BASELINES:
        row = metrics["baselines"].get(name, {})
        if "macro_f1" in row:
            rows.append(f"{row['title']} | {_figures(row)} | {where} |")
    return rows


def _figures(row: dict[str, Any]) -> str:
    figures = [_with_interval(row, "macro_f1"), _with_interval(row, "accuracy")]
    if "neutral" in row["per_class"]:
        figures.append(_with_interval(row["per_class"]["neutral"], "f1"))
    return " | ".join(figures)


def _with_interval(row: dict[str, Any], name: str) -> str:
    interval = row.get(f"{name}_ci")
    return f"{row[name]:.3f}" + (f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else "")


if __name__ == "__main__":
    main()
