"""The table of losses in docs/quality.md, from a study of the space `objectives`.

    rxtone sweep objectives --set data.train=druglib:train --set data.test=null --set model.base=bundled --out STUDY
    python -m benchmarks.objectives STUDY

Beside the likeliest label each setting is judged with decision offsets for macro-F1, which are fitted on the
out-of-fold rows of the other folds, and with the probabilities of its repetitions averaged. A linear model is fitted
on the very folds of the confirmation, so that it can be compared row by row. `--print` shows the tables instead of
writing them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from benchmarks.pages import markdown, study_command
from rxtone.config import Recipe, load_recipe
from rxtone.data.reviews import dedupe_key
from rxtone.evaluation.baselines import TFIDF_FIELDS, TFIDF_TEXT, fit_baselines
from rxtone.preparation import Prepared, prepare
from rxtone.space import load_space, shown
from rxtone.stats.metrics import classification_metrics
from rxtone.stats.operating import MACRO_F1, tune_offsets
from rxtone.stats.ranking import rank_settings
from rxtone.study import StudyFolder
from rxtone.trials import cut_fold, per_class

PAGE = Path(__file__).parents[1] / "docs" / "quality.md"
MARKERS = ("<!-- objectives: begin -->", "<!-- objectives: end -->")
LINEAR = "linear, TF-IDF per field"  # of the text where there is a single field
Indexes = NDArray[np.int64]


@dataclass(frozen=True)
class Contender:
    """One line of the table.

    Attributes:
        name: What it is.
        answers: Out-of-fold label indexes of s repetitions, shape (s, n).
        probabilities: Of the labels, shape (s, n, k); None where there are none to rank rows by.
    """

    name: str
    answers: Indexes
    probabilities: NDArray[np.float64] | None = None


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
    hours = (table["seconds"].sum() + record["seconds"]) / 3600
    return "\n\n".join(
        [
            f"{table.height} settings screened on one split, {len(record['settings'])} confirmed on {record['folds']} "
            f"folds x {len(record['seeds'])} seeds, {record['reviews']:,} reviews. Compute: {hours:.1f} hours.",
            "### Confirmed",
            confirmed(folder, record, recipe),
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


def confirmed(folder: StudyFolder, record: Mapping[str, Any], recipe: Recipe) -> str:
    """The table of the confirmation.

    Args:
        folder: The study.
        record: What confirmation.json holds.
        recipe: What the study varies.

    Returns:
        Markdown. Gains are 95% intervals over plain cross-entropy (the setting to be beaten, by the likeliest label)
        and over the linear model.
    """
    labels = tuple(record["labels"])
    true, rivals, groups = contenders(folder, record, recipe)
    answers = np.stack([one.answers for one in rivals])
    plain = next((_spelt(one["settings"]) for one in record["settings"] if one["gain"] is None), None)
    beaten = [[one.name for one in rivals].index(name) for name in (plain, LINEAR) if name is not None]
    ranked = [rank_settings(true, answers, len(labels), groups=groups, against=index) for index in beaten]
    rarest = int(np.bincount(true, minlength=len(labels)).argmin())
    lines = []
    for index, one in enumerate(rivals):
        low, high = ranked[-1].interval[index]
        gains = ["–"] * (2 - len(beaten))
        for against, ranking in zip(beaten, ranked, strict=True):
            assert ranking.gain is not None
            gains.append("–" if index == against else f"{ranking.gain[index, 0]:+.3f} to {ranking.gain[index, 1]:+.3f}")
        means = (f"{mean:.3f}" for mean in _means(true, one.answers, labels))
        lines.append((one.name, f"{ranked[-1].mean[index]:.3f}", f"{low:.3f} to {high:.3f}", *gains, *means,
                      _auc(true == rarest, one, rarest)))  # fmt: skip
    head = ("setting", "macro-F1", "95% interval", "gain over plain cross-entropy", "gain over the linear model",
            "accuracy", *(f"F1 {label}" for label in labels), f"AUC {labels[rarest]}")  # fmt: skip
    return markdown(head, lines)


def contenders(
    folder: StudyFolder, record: Mapping[str, Any], recipe: Recipe
) -> tuple[Indexes, list[Contender], list[str]]:
    """Everyone's out-of-fold answers.

    Args:
        folder: The study.
        record: What confirmation.json holds.
        recipe: What the study varies.

    Returns:
        The n true label indexes, those who answered (each setting, with offsets, and averaged over its repetitions;
        the linear model), and what each row repeats, n keys.
    """
    prepared = prepare(recipe.data, recipe.train.seed, recipe.auxiliary)
    pool = {review.row: review for review in (*prepared.train, *prepared.validation)}
    rows = sorted(row or 0 for row in pool)
    place = {row: index for index, row in enumerate(rows)}
    seeds, labels = record["seeds"], record["labels"]
    true = np.array([labels.index(pool[row].label) for row in rows], dtype=np.int64)
    found = []
    for setting in record["settings"]:
        probabilities = np.zeros((len(seeds), len(rows), len(labels)))
        fold_of = np.zeros((len(seeds), len(rows)), dtype=np.int64)
        for seed in range(len(seeds)):
            for fold in range(record["folds"]):
                name = f"{setting['trial']:04d}-seed{seeds[seed]}-fold{fold}of{record['folds']}.json"
                run = json.loads((folder.confirmation / name).read_text("utf-8"))
                own = [place[row] for row in run["rows"]]
                probabilities[seed, own], fold_of[seed, own] = run["probabilities"], fold
        together = np.broadcast_to(probabilities.mean(axis=0), probabilities.shape)
        name = _spelt(setting["settings"])
        found += [
            Contender(name, probabilities.argmax(-1), probabilities),
            Contender(f"{name}; offsets", _with_offsets(probabilities, true, fold_of), probabilities),
            Contender(f"{name}; {len(seeds)} seeds averaged", together.argmax(-1), together),
        ]
    linear = np.stack([_linear(prepared, seed, record["folds"], place, labels) for seed in seeds])
    return true, [*found, Contender(LINEAR, linear)], [dedupe_key(pool[row]) for row in rows]


def _with_offsets(probabilities: NDArray[np.float64], true: Indexes, fold_of: Indexes) -> Indexes:
    """Answers by offsets for macro-F1 that are fitted, repetition by repetition, on all folds but the row's own."""
    logs = np.log(np.maximum(probabilities, 1e-6))  # the files keep six digits
    answers = np.zeros(fold_of.shape, dtype=np.int64)
    for seed, folds in enumerate(fold_of):
        for fold in np.unique(folds):
            others = folds != fold
            rule = tune_offsets(logs[seed, others], true[others], aim=MACRO_F1).rule
            answers[seed, ~others] = rule.decide(logs[seed, ~others])
    return answers


def _auc(positive: NDArray[np.bool_], one: Contender, label: int) -> str:
    """How well the probability of a label ranks its reviews before the others, whatever the threshold."""
    if one.probabilities is None:
        return "–"
    return f"{np.mean([roc_auc_score(positive, row[:, label]) for row in one.probabilities]):.3f}"


def _linear(prepared: Prepared, seed: int, of: int, place: Mapping[int, int], labels: Sequence[str]) -> Indexes:
    answers = np.full(len(place), -1, dtype=np.int64)
    for fold in range(of):
        rest, held_out = cut_fold(prepared, seed=seed, fold=fold, of=of)
        baselines = fit_baselines(rest, held_out, tuple(labels))
        found = next(one.predicted for one in baselines if one.name in {TFIDF_FIELDS, TFIDF_TEXT})
        assert found is not None
        answers[[place[review.row or 0] for review in held_out]] = found
    return answers


def _means(true: Indexes, predictions: Indexes, labels: Sequence[str]) -> list[float]:
    """Accuracy and F1 of each label, means over the repetitions."""
    found = [classification_metrics(true, row, tuple(labels)) for row in predictions]
    rows = [[one["accuracy"], *(per_class(one)[label]["f1"] for label in labels)] for one in found]
    means: list[float] = np.array(rows, dtype=np.float64).mean(axis=0).tolist()
    return means


def _spelt(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key.rpartition('.')[2]}={shown(value)}" for key, value in settings.items() if value is not None)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the tables into the page, or print them."""
    study_command(__doc__, render, PAGE, MARKERS, arguments)


if __name__ == "__main__":
    main()
