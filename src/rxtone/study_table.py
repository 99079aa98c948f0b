"""The trials of a study as a table: trials.parquet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from rxtone.run import atomic_path

if TYPE_CHECKING:
    from rxtone.study import Study


def trial_table(study: Study) -> pl.DataFrame:
    """One row per trial that ended.

    Args:
        study: The study.

    Returns:
        `number, state, macro_f1, reason`, a column per varied recipe key (as text where its values are lists or
        mappings), `epochs` (macro-F1 after each), per-class F1, trainable parameters, seconds, peak memory,
        `together` (settings that shared the forward).
    """
    keys = list(study.space.parameters)
    rows = []
    for trial in study.finished():
        attrs = trial.user_attrs
        settings = attrs.get("settings", {})
        row: dict[str, Any] = {
            "number": trial.number,
            "state": {"COMPLETE": "complete", "PRUNED": "pruned"}.get(trial.state.name, "failed"),
            "macro_f1": trial.value if trial.state.name == "COMPLETE" else None,
            "reason": attrs.get("reason"),
            **{key: settings.get(key) for key in keys},
            "epochs": [trial.intermediate_values[step] for step in sorted(trial.intermediate_values)],
            "trainable": attrs.get("trainable"),
            "seconds": attrs.get("seconds"),
            "reviews_per_second": attrs.get("reviews_per_second"),
            "peak_memory_bytes": attrs.get("peak_memory_bytes"),
            "steps": attrs.get("steps"),
            "together": attrs.get("together"),
        }
        row |= {f"f1_{label}": attrs.get("per_class_f1", {}).get(label) for label in study.recipe.data.label.rule}
        rows.append(row)
    columns = {key: [row[key] for row in rows] for key in (rows[0] if rows else {"number": 0})}
    return pl.DataFrame({key: _column(key, values) for key, values in columns.items()})


def write_table(study: Study) -> pl.DataFrame:
    """Write trials.parquet, and return what it holds."""
    table = trial_table(study)
    with atomic_path(study.folder.table) as temporary:
        table.write_parquet(temporary)
    return table


def _column(name: str, values: list[Any]) -> pl.Series:
    if name == "epochs":
        return pl.Series(values, dtype=pl.List(pl.Float64))
    kinds = {type(value) for value in values if value is not None}
    if len(kinds) > 1 and not kinds <= {int, float}:
        values = [None if value is None else str(value) for value in values]  # one setting is a word, another a number
    return pl.Series(values, strict=False)
