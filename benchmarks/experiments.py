"""The tables of docs/experiments.md, from a finished study of the tutorial space.

    python -m benchmarks.experiments runs/tutorial-study

rewrites the part of the page between its two markers; `--print` shows it instead.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from benchmarks.pages import markdown, study_command

PAGE = Path(__file__).parents[1] / "docs" / "experiments.md"
MARKERS = ("<!-- study: begin -->", "<!-- study: end -->")
RESAMPLES = 2000
MARGIN = 0.01
"""A change of macro-F1 below this counts as keeping the quality."""
FACTORS = ("lora.r", "lora.lora_alpha", "lora.lora_dropout", "lora.target_modules")


@dataclass(frozen=True)
class Claim:
    """A claim of the classic tutorial, as a contrast of settings.

    Attributes:
        text: What it says.
        metric: The column that it is about.
        plus: Factor and level that should be better, or as good,
        minus: than the mean of these levels of the same factor.
        as_good: Whether it only says "as good".
    """

    text: str
    metric: str
    plus: tuple[str, Any]
    minus: tuple[Any, ...]
    as_good: bool = False


CLAIMS = (
    Claim("r=16 generalises better than r=8", "macro_f1", ("lora.r", 16), (8,)),
    Claim("alpha 64 helps the neutral class", "f1_neutral", ("lora.lora_alpha", 64), (16, 32)),
    Claim("dropout 0.1 is best", "macro_f1", ("lora.lora_dropout", 0.1), (0.05, 0.2)),
    Claim("adding `o` to `q, v` keeps quality", "macro_f1", ("lora.target_modules", "[q, v, o]"), ("[q, v]",), True),
)  # fmt: skip


def contrast(table: pl.DataFrame, claim: Claim, seed: int = 0) -> tuple[float, float, float]:
    """The claimed difference with the other factors held equal, and its 95% interval.

    A linear model with one term per level of each factor; the interval is a bootstrap over trials. It holds the
    spread between settings; each was trained once, on one split, so the spread between seeds is in it as noise.

    Args:
        table: Complete trials.
        claim: What to compare.
        seed: Of the resampling.

    Returns:
        Difference, lower end, upper end.
    """
    design, weights = _design(table, claim)
    y = table[claim.metric].to_numpy()
    generator = np.random.default_rng(seed)
    drawn = []
    for _ in range(RESAMPLES):
        rows = generator.integers(len(y), size=len(y))
        if np.linalg.matrix_rank(design[rows]) == design.shape[1]:  # else a level is missing from the draw
            drawn.append(float(np.linalg.lstsq(design[rows], y[rows], rcond=None)[0] @ weights))
    estimate = float(np.linalg.lstsq(design, y, rcond=None)[0] @ weights)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return estimate, float(low), float(high)


def verdict(claim: Claim, low: float, high: float) -> str:
    """Supported, not supported or undecidable, by the interval of the claimed difference."""
    if claim.as_good:
        if low > -MARGIN:
            return "supported"
        return "not supported" if high < -MARGIN else "undecidable"
    if low > 0:
        return "supported"
    return "not supported" if high < 0 else "undecidable"


def render(study: Path) -> str:
    """The tables of a study as Markdown.

    Args:
        study: The folder of a finished study.

    Returns:
        Confirmed settings, claims, and all screened settings.
    """
    trials = pl.read_parquet(study / "trials.parquet")
    table = trials.filter(pl.col("state") == "complete")
    record = json.loads((study / "confirmation.json").read_text("utf-8"))
    hours = (float(table["seconds"].sum()) + record["seconds"]) / 3600
    parts = [
        f"{table.height} settings screened ({trials.height - table.height} more pruned or failed); the best "
        f"{len(record['settings'])} confirmed on {record['folds']} folds x {len(record['seeds'])} seeds, "
        f"{record['reviews']:,} reviews. Compute: {hours:.1f} hours.",
        "### Confirmed",
        markdown(
            ("settings", "screening", "macro-F1", "95% interval", "sd of runs", "chance of being best"),
            [
                (
                    ", ".join(f"{key.rpartition('.')[2]}={value}" for key, value in row["settings"].items()),
                    f"{row['screened_macro_f1']:.3f}", f"{row['mean']:.3f}",
                    f"{row['interval'][0]:.3f} to {row['interval'][1]:.3f}", f"{row['sd']:.3f}",
                    f"{row['probability_best']:.0%}",
                )
                for row in record["settings"]
            ],
        ),
        "### The claims",
        markdown(("claim", "difference", "95% interval", "verdict"), [_judged(table, claim) for claim in CLAIMS]),
        _cost_of_o(table),
        "### Screened",
        markdown(
            ("r", "alpha", "dropout", "modules", "macro-F1", "F1 neutral", "trainable", "seconds", "peak memory, GiB"),
            [
                (
                    *(str(row[key]) for key in FACTORS), f"{row['macro_f1']:.3f}", f"{row['f1_neutral']:.3f}",
                    f"{row['trainable']:,}", f"{row['seconds']:.0f}", _gib(row["peak_memory_bytes"]),
                )
                for row in table.sort("macro_f1", descending=True).to_dicts()
            ],
        ),
    ]  # fmt: skip
    return "\n\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the tables into the page, or print them."""
    study_command(__doc__, render, PAGE, MARKERS, arguments)


def _design(table: pl.DataFrame, claim: Claim) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """One column per level but the first of each factor; and the contrast's weight of each column."""
    factor, level = claim.plus
    columns, weights = [np.ones(table.height)], [0.0]
    for name in FACTORS:
        levels = sorted(table[name].unique().to_list(), key=str)
        for own in levels[1:]:
            columns.append((table[name] == own).to_numpy().astype(float))
            is_minus = name == factor and own in claim.minus
            weights.append(float(name == factor and own == level) - is_minus / len(claim.minus))
    return np.stack(columns, axis=1), np.array(weights)


def _judged(table: pl.DataFrame, claim: Claim) -> tuple[str, ...]:
    estimate, low, high = contrast(table, claim)
    text = f"{claim.text} ({'F1 of neutral' if claim.metric == 'f1_neutral' else 'macro-F1'})"
    return text, f"{estimate:+.3f}", f"{low:+.3f} to {high:+.3f}", verdict(claim, low, high)


def _cost_of_o(table: pl.DataFrame) -> str:
    """What `o` costs: the count is exact, memory and time are means over settings of one rank."""
    lines = []
    for rank in sorted(table["lora.r"].unique().to_list()):
        without, with_o = (
            table.filter((pl.col("lora.r") == rank) & (pl.col("lora.target_modules") == modules))
            for modules in ("[q, v]", "[q, v, o]")
        )
        if without.height and with_o.height:
            one, other = float(without["trainable"].to_numpy()[0]), float(with_o["trainable"].to_numpy()[0])
            costs = [f"time {_mean(without, 'seconds'):.0f} s -> {_mean(with_o, 'seconds'):.0f} s"]
            if without["peak_memory_bytes"].count() and with_o["peak_memory_bytes"].count():
                before, after = (_gib(_mean(own, "peak_memory_bytes")) for own in (without, with_o))
                costs.append(f"peak memory {before} GiB -> {after} GiB")
            lines.append(
                f"At r={rank}, adding `o` to `q, v` makes {other:,.0f} trainable parameters of {one:,.0f}: "
                f"x{other / one:.2f}, not fewer; {', '.join(costs)}."
            )
    return "\n".join(lines)


def _mean(table: pl.DataFrame, column: str) -> float:
    values = table[column].drop_nulls().to_numpy()
    return float(values.mean()) if len(values) else float("nan")


def _gib(value: float | None) -> str:
    return "–" if value is None or np.isnan(value) else f"{value / 2**30:.2f}"


if __name__ == "__main__":
    main()
