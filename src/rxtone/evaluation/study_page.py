"""A search as one self-contained page: no script, no request; rendered from plain values and the trial table."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, TypedDict

import numpy as np
import polars as pl
from markupsafe import Markup
from matplotlib.figure import Figure

from rxtone.evaluation import plots, study_plots
from rxtone.evaluation.report import page_environment
from rxtone.space import shown

RESAMPLES = 30
LEAST_TRIALS = 6
"""Fewer complete trials say nothing of importance."""
COSTS = {"trainable": "trainable parameters", "seconds": "seconds", "peak_memory_bytes": "peak memory, GiB"}


class StudyContext(TypedDict):
    """Everything that the page shows besides the table of trials."""

    title: str
    """Name of the study."""
    created: str
    """When, as an ISO 8601 date and time."""
    keys: list[str]
    """The varied recipe keys."""
    labels: list[str]
    """The labels."""
    search: Mapping[str, str]
    """How it was searched: name -> value."""
    wanted: int | None
    """Settings to try."""
    confirmation: Mapping[str, Any] | None
    """What confirmation.json holds; None where there is none yet."""
    commands: list[str]
    """What to do next."""


def render_study(context: StudyContext, table: pl.DataFrame) -> str:
    """Render the page of a search.

    Args:
        context: What to show.
        table: The content of trials.parquet.

    Returns:
        HTML. Every value is escaped; the content security policy forbids scripts and requests.
    """
    done = table.filter(pl.col("state") == "complete") if table.height else table
    importance = importances(done, context["keys"]) if table.height else {}
    front = pareto(done) if done.height else []
    best = done.sort("macro_f1", "number", descending=[True, False]).row(0, named=True) if done.height else None
    environment = page_environment()
    environment.filters["setting"] = lambda value: f"{value:.4g}" if isinstance(value, float) else shown(value)
    return environment.get_template("study.html.j2").render(
        context=context,
        counts={state: int((table["state"] == state).sum()) for state in ("complete", "pruned", "failed")}
        if table.height
        else {"complete": 0, "pruned": 0, "failed": 0},
        best=best,
        importance=importance,
        least=LEAST_TRIALS,
        front=[row for row, chosen in zip(done.to_dicts(), front, strict=True) if chosen],
        pictures=_pictures(context, table, done, importance, front) if done.height else {},
        failures=table.filter(pl.col("state") == "failed").to_dicts() if table.height else [],
        trials=table.sort("macro_f1", "number", descending=[True, False], nulls_last=True).to_dicts()
        if table.height
        else [],
    )


def importances(done: pl.DataFrame, keys: list[str], *, seed: int = 0) -> dict[str, tuple[float, float, float]]:
    """How much of the spread of macro-F1 each key explains: fANOVA (Hutter et al. 2014), with its uncertainty.

    Args:
        done: Complete trials.
        keys: The varied keys; one that is not varied in every trial, or never differs, is left out.
        seed: Of the forests and of the resampling.

    Returns:
        Key -> median, and the ends of the 90% range, over trials drawn with replacement; nothing where there
        are too few trials.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    usable = [key for key in keys if done[key].null_count() == 0 and done[key].n_unique() > 1]
    if done.height < LEAST_TRIALS or not usable or done["macro_f1"].n_unique() < 2:
        return {}
    distributions = {key: _distribution(done[key].to_list()) for key in usable}
    generator = np.random.default_rng(seed)
    found: dict[str, list[float]] = {key: [] for key in usable}
    for draw in range(RESAMPLES):
        rows = done[generator.integers(done.height, size=done.height).tolist()].to_dicts()
        if len({row["macro_f1"] for row in rows}) < 2:
            continue
        study = optuna.create_study(direction="maximize")
        study.add_trials([
            optuna.trial.create_trial(
                params={key: row[key] for key in usable}, distributions=distributions, value=row["macro_f1"]
            )
            for row in rows
        ])  # fmt: skip
        evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=32, seed=seed + draw)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a key may not differ in a draw; then it explains nothing there
            shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
        for key in usable:
            found[key].append(shares.get(key, 0.0))
    return {
        key: (float(np.median(values)), float(np.quantile(values, 0.05)), float(np.quantile(values, 0.95)))
        for key, values in found.items()
    }


def pareto(done: pl.DataFrame) -> list[bool]:
    """Which trials no other one beats: as good or better in macro-F1 and every known cost, and better in one."""
    columns = [-done["macro_f1"].to_numpy()]
    columns += [done[name].cast(pl.Float64).to_numpy() for name in COSTS if done[name].null_count() == 0]
    points = np.stack(columns, axis=1)
    return [
        not bool(((points <= point).all(axis=1) & (points < point).any(axis=1)).any())
        for point in points
    ]  # fmt: skip


def _distribution(values: list[Any]) -> Any:
    import optuna

    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        low, high = float(min(values)), float(max(values))
        return optuna.distributions.FloatDistribution(low, high, log=low > 0 and high / low > 8)
    return optuna.distributions.CategoricalDistribution(sorted(set(values), key=str))


def _pictures(
    context: StudyContext,
    table: pl.DataFrame,
    done: pl.DataFrame,
    importance: Mapping[str, tuple[float, float, float]],
    front: list[bool],
) -> dict[str, Any]:
    values = done["macro_f1"].to_list()
    columns = {
        key: [shown(value) if isinstance(value, str) else value for value in done[key]] for key in context["keys"]
    }
    best = int(np.argmax(table["macro_f1"].fill_null(-1.0).to_numpy()))
    pictures: dict[str, Any] = {
        "history": _svg(study_plots.history_figure(done["number"].to_list(), values), "history", "Macro-F1 by trial"),
        "parallel": _svg(study_plots.parallel_figure(columns, values), "parallel", "Settings of every trial"),
        "curves": _svg(
            study_plots.curves_figure(table["epochs"].to_list(), table["state"].to_list(), best),
            "curves", "Macro-F1 after each validation",
        ),
        "slices": [
            _svg(study_plots.slice_figure(key, column, values), f"slice-{index}", f"Macro-F1 by {key}")
            for index, (key, column) in enumerate(columns.items())
            if len({str(value) for value in column}) > 1
        ],
        "costs": [
            _svg(study_plots.cost_figure(_cost(done, name), values, front, label), f"cost-{name}", f"By {label}")
            for name, label in COSTS.items()
            if done[name].null_count() == 0
        ],
    }  # fmt: skip
    if importance:
        pictures["importance"] = _svg(study_plots.importance_figure(importance), "importance", "Importance of each key")
    confirmation = context["confirmation"]
    if confirmation is not None:
        rows = confirmation["settings"]
        figure = plots.interval_figure(
            [f"trial {row['trial']}" for row in rows], [row["mean"] for row in rows],
            [row["interval"] for row in rows], "macro-F1, repeated cross-validation",
        )  # fmt: skip
        pictures["confirmation"] = _svg(figure, "confirmation", "Confirmed settings")
    return pictures


def _cost(done: pl.DataFrame, name: str) -> list[float]:
    scale = 2**30 if name == "peak_memory_bytes" else 1
    return [value / scale for value in done[name].to_list()]


def _svg(figure: Figure, name: str, description: str) -> Markup:
    # Safe: drawn here, and matplotlib escapes the texts in it.
    return Markup(plots.to_svg(figure, name, description))  # noqa: S704
