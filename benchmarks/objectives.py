"""The table of losses in docs/quality.md, from a study of the space `objectives`.

    rxtone sweep objectives --set data.train=druglib:train --set data.test=null --set model.base=bundled --out STUDY
    python -m benchmarks.objectives STUDY

A linear model is fitted on the very folds of the confirmation, so that it can be compared row by row; so is what the
averaged probabilities of each setting's repetitions answer. `--print` shows the tables instead of writing them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from benchmarks.pages import markdown, study_command
from rxtone.config import Recipe, load_recipe
from rxtone.data.reviews import dedupe_key
from rxtone.evaluation.baselines import TFIDF_FIELDS, fit_baselines
from rxtone.preparation import Prepared, prepare
from rxtone.space import load_space
from rxtone.stats.metrics import classification_metrics
from rxtone.stats.ranking import Ranking, rank_settings
from rxtone.study import StudyFolder
from rxtone.trials import cut_fold, per_class

PAGE = Path(__file__).parents[1] / "docs" / "quality.md"
MARKERS = ("<!-- objectives: begin -->", "<!-- objectives: end -->")
LINEAR = "linear, TF-IDF per field"
Indexes = NDArray[np.int64]


def render(study: Path) -> str:
    """The tables.

    Args:
        study: A finished study of the space.

    Returns:
        Markdown.
    """
    folder = StudyFolder(study)
    table = pl.read_parquet(folder.table).filter(pl.col("state") == "complete")
    record = json.loads(folder.ranking.read_text("utf-8"))
    recipe = load_recipe(folder.recipe)
    keys = tuple(load_space(folder.space).parameters)
    names, true, predictions, groups = contenders(folder, record, recipe)
    linear = names.index(LINEAR)
    ranking = rank_settings(true, predictions, len(record["labels"]), groups=groups, against=linear)
    hours = (table["seconds"].sum() + record["seconds"]) / 3600
    return "\n\n".join(
        [
            f"{table.height} settings screened on one split, {len(record['settings'])} confirmed on {record['folds']} "
            f"folds x {len(record['seeds'])} seeds, {record['reviews']:,} reviews. Compute: {hours:.1f} hours. "
            "Answers are the likeliest label: no operating point was tuned.",
            "### Confirmed",
            markdown(
                ("setting", "macro-F1", "95% interval", "gain over plain cross-entropy", "gain over the linear model",
                 "accuracy", *(f"F1 {label}" for label in record["labels"])),
                [
                    _line(name, index, ranking, linear, _gain(record, name), _means(true, row, record["labels"]))
                    for index, (name, row) in enumerate(zip(names, predictions, strict=True))
                ],
            ),
            "### Screened",
            markdown(
                ("setting", "macro-F1", "F1 neutral", "seconds"),
                [
                    (_spelt({key: row[key] for key in keys}), f"{row['macro_f1']:.3f}",
                     f"{row['f1_neutral']:.3f}", f"{row['seconds']:.0f}")
                    for row in table.sort("macro_f1", descending=True).to_dicts()
                ],
            ),
        ]
    )  # fmt: skip


def contenders(
    folder: StudyFolder, record: Mapping[str, Any], recipe: Recipe
) -> tuple[list[str], Indexes, Indexes, list[str]]:
    """Everyone's out-of-fold answers.

    Args:
        folder: The study.
        record: What confirmation.json holds.
        recipe: What the study varies.

    Returns:
        Names, the n true label indexes, the label indexes of k contenders in s repetitions, (k, s, n), and what each
        row repeats, n keys. Contenders are the settings, the averages of their repetitions, and the linear model.
    """
    prepared = prepare(recipe.data, recipe.train.seed, recipe.auxiliary)
    pool = {review.row: review for review in (*prepared.train, *prepared.validation)}
    rows = sorted(row or 0 for row in pool)
    place = {row: index for index, row in enumerate(rows)}
    seeds, labels = record["seeds"], record["labels"]
    true = np.array([labels.index(pool[row].label) for row in rows], dtype=np.int64)
    names, answers = [], []
    for setting in record["settings"]:
        probabilities = np.zeros((len(seeds), len(rows), len(labels)))
        for seed in range(len(seeds)):
            for fold in range(record["folds"]):
                name = f"{setting['trial']:04d}-seed{seeds[seed]}-fold{fold}of{record['folds']}.json"
                run = json.loads((folder.confirmation / name).read_text("utf-8"))
                probabilities[seed, [place[row] for row in run["rows"]]] = run["probabilities"]
        together = probabilities.mean(axis=0).argmax(-1)
        name = _spelt(setting["settings"])
        names += [name, f"{name}; {len(seeds)} seeds averaged"]
        answers += [probabilities.argmax(-1), np.broadcast_to(together, (len(seeds), len(rows)))]
    names.append(LINEAR)
    answers.append(np.stack([_linear(prepared, seed, record["folds"], place, labels) for seed in seeds]))
    return names, true, np.stack(answers), [dedupe_key(pool[row]) for row in rows]


def _linear(prepared: Prepared, seed: int, of: int, place: Mapping[int, int], labels: Sequence[str]) -> Indexes:
    answers = np.full(len(place), -1, dtype=np.int64)
    for fold in range(of):
        rest, held_out = cut_fold(prepared, seed=seed, fold=fold, of=of)
        baselines = fit_baselines(rest, held_out, tuple(labels))
        found = next(one.predicted for one in baselines if one.name == TFIDF_FIELDS)
        assert found is not None
        answers[[place[review.row or 0] for review in held_out]] = found
    return answers


def _means(true: Indexes, predictions: Indexes, labels: Sequence[str]) -> list[float]:
    """Accuracy and F1 of each label, means over the repetitions."""
    found = [classification_metrics(true, row, tuple(labels)) for row in predictions]
    rows = [[one["accuracy"], *(per_class(one)[label]["f1"] for label in labels)] for one in found]
    means: list[float] = np.array(rows, dtype=np.float64).mean(axis=0).tolist()
    return means


def _gain(record: Mapping[str, Any], name: str) -> str:
    for setting in record["settings"]:
        if _spelt(setting["settings"]) == name and setting["gain"] is not None:
            low, high = setting["gain"]
            return f"{low:+.3f} to {high:+.3f}"
    return "–"


def _line(name: str, index: int, ranking: Ranking, linear: int, gain: str, means: Sequence[float]) -> tuple[str, ...]:
    assert ranking.gain is not None
    low, high = ranking.interval[index]
    over = "–" if index == linear else f"{ranking.gain[index, 0]:+.3f} to {ranking.gain[index, 1]:+.3f}"
    return (
        name, f"{ranking.mean[index]:.3f}", f"{low:.3f} to {high:.3f}", gain, over,
        *(f"{mean:.3f}" for mean in means),
    )  # fmt: skip


def _spelt(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key.rpartition('.')[2]}={value}" for key, value in settings.items() if value is not None)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the tables into the page, or print them."""
    study_command(__doc__, render, PAGE, MARKERS, arguments)


if __name__ == "__main__":
    main()
