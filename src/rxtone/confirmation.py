"""The best settings of a screening, trained again on other seeds and folds: which is really best?

The best of many trials is partly lucky. So the top settings are trained on every fold of a repeated, nested
cross-validation over the training and validation rows, and the winner is the one with the highest mean.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rxtone.config import dump_recipe
from rxtone.data.reviews import dedupe_key
from rxtone.errors import RunError
from rxtone.run import write_json, write_text
from rxtone.space import apply_settings, settings_of, spelt
from rxtone.stats.metrics import classification_metrics
from rxtone.stats.ranking import rank_settings
from rxtone.trials import FoldRun, per_class

if TYPE_CHECKING:
    from pathlib import Path

    import optuna

    from rxtone.config import Recipe
    from rxtone.preparation import Prepared
    from rxtone.space import Confirm
    from rxtone.study import Study


@dataclass(frozen=True)
class Candidate:
    """A setting to be confirmed.

    Attributes:
        number: Its trial.
        settings: Recipe key -> value.
        screened: Its validation macro-F1 in the screening.
        recipe: The recipe with these settings.
    """

    number: int
    settings: dict[str, Any]
    screened: float
    recipe: Recipe


@dataclass(frozen=True)
class FoldJob:
    """One run of the confirmation, and the file that keeps what came of it."""

    candidate: Candidate
    seed: int
    fold: int
    of: int
    path: Path


def candidates(study: Study, confirm: Confirm) -> list[Candidate]:
    """The best settings of the screening, best first, and last the one to be beaten if it is not among them.

    Args:
        study: The study.
        confirm: How many, and against which.

    Returns:
        Complete trials; of equal ones the earlier.

    Raises:
        RunError: If no trial is complete, or none has the setting to be beaten.
    """
    done = [trial for trial in study.finished() if trial.state.name == "COMPLETE"]
    if not done:
        reasons = {trial.user_attrs.get("reason") for trial in study.finished()} - {None}
        shown = f"; the reasons: {'; '.join(sorted(map(str, reasons))[:3])}" if reasons else ""
        msg = f"{study.folder.path}: no trial ended with a result{shown}"
        raise RunError(msg)
    ranked = sorted(done, key=lambda trial: (-float(trial.value or 0.0), trial.number))
    every = [_candidate(study, trial) for trial in ranked]
    found = every[: confirm.top]
    if confirm.against is not None and to_beat(found, confirm.against) is None:
        index = to_beat(every, confirm.against)
        if index is None:
            wanted = ", ".join(f"{key}={spelt(value)}" for key, value in confirm.against.items())
            msg = f"{study.folder.path}: confirm.against: no trial with {wanted} ended with a result"
            raise RunError(msg)
        found.append(every[index])
    return found


def _candidate(study: Study, trial: optuna.trial.FrozenTrial) -> Candidate:
    settings = settings_of(study.space, study.recipe, trial.params)
    recipe = apply_settings(study.recipe, settings, f"trial {trial.number}")
    return Candidate(trial.number, settings, float(trial.value or 0.0), recipe)


def to_beat(found: list[Candidate], against: dict[str, Any]) -> int | None:
    """Index of the first candidate with the settings `against`; None if there is none."""
    fitting = (i for i, one in enumerate(found) if against.items() <= one.settings.items())
    return next(fitting, None)


def fold_jobs(study: Study, found: list[Candidate]) -> list[FoldJob]:
    """Every run of the confirmation, seed by seed; those that have a file are done."""
    confirm = study.space.confirm
    assert confirm is not None
    seeds = range(study.recipe.train.seed, study.recipe.train.seed + confirm.seeds)
    return [
        FoldJob(candidate, seed, fold, confirm.folds, _fold_path(study, candidate, seed, fold, confirm.folds))
        for seed in seeds
        for fold in range(confirm.folds)
        for candidate in found
    ]


def _fold_path(study: Study, candidate: Candidate, seed: int, fold: int, of: int) -> Path:
    return study.folder.confirmation / f"{candidate.number:04d}-seed{seed}-fold{fold}of{of}.json"


def keep_fold(job: FoldJob, run: FoldRun) -> None:
    """Write what came of one run."""
    job.path.parent.mkdir(exist_ok=True)
    write_json(job.path, asdict(run))


def read_fold(job: FoldJob) -> FoldRun:
    """Read what came of one run."""
    values = json.loads(job.path.read_text("utf-8"))
    if "probabilities" not in values:
        msg = f"{job.path}: written by an older rxtone, without probabilities; remove this file and repeat the command"
        raise RunError(msg)
    lists = {name: tuple(values[name]) for name in ("rows", "true", "predicted")}
    probabilities = tuple(map(tuple, values["probabilities"]))
    return FoldRun(**lists, probabilities=probabilities, macro_f1=values["macro_f1"], seconds=values["seconds"])


def conclude(study: Study, found: list[Candidate], jobs: list[FoldJob], prepared: Prepared) -> dict[str, Any]:
    """Rank the confirmed settings, and write confirmation.json and best.yaml.

    Args:
        study: The study.
        found: The candidates.
        jobs: Their runs, all done.
        prepared: The reviews of the study's recipe.

    Returns:
        What confirmation.json holds.
    """
    pool = {review.row: review for review in (*prepared.train, *prepared.validation)}
    rows = sorted(row or 0 for row in pool)
    position = {row: index for index, row in enumerate(rows)}
    seeds = sorted({job.seed for job in jobs})
    true = np.full(len(rows), -1)
    predictions = np.full((len(found), len(seeds), len(rows)), -1)
    probabilities = np.zeros((len(found), len(seeds), len(rows), len(prepared.labels)))
    figures: list[list[float]] = [[] for _ in found]
    seconds = 0.0
    for job in jobs:
        run = read_fold(job)
        places = [position[row] for row in run.rows]
        index = found.index(job.candidate)
        true[places] = run.true
        predictions[index, seeds.index(job.seed), places] = run.predicted
        probabilities[index, seeds.index(job.seed), places] = run.probabilities
        figures[index].append(run.macro_f1)
        seconds += run.seconds
    if (predictions < 0).any():
        msg = f"{study.folder.confirmation}: its files do not cover every review; remove the folder and repeat"
        raise RunError(msg)
    groups = [pool[row].group or dedupe_key(pool[row]) for row in rows]  # repeats are no independent evidence
    confirm = study.space.confirm
    against = to_beat(found, confirm.against) if confirm is not None and confirm.against is not None else None
    ranking = rank_settings(true, predictions, len(prepared.labels), groups=groups, against=against)
    order = np.argsort(-ranking.mean, kind="stable")
    folds = jobs[0].of
    record = {
        "seeds": seeds, "folds": folds, "reviews": len(rows), "labels": list(prepared.labels),
        "metric": "macro_f1 of out-of-fold predictions on training and validation rows", "seconds": seconds,
        "against": None if against is None else found[against].number,
        "settings": [
            {
                "trial": found[i].number,
                "settings": {key: spelt(value) for key, value in found[i].settings.items()},
                "screened_macro_f1": found[i].screened,
                "mean": float(ranking.mean[i]),
                "sd": statistics.stdev(figures[i]) if len(figures[i]) > 1 else None,
                "runs": figures[i],
                "interval": ranking.interval[i].tolist(),
                "probability_best": float(ranking.probability_best[i]),
                "lead": ranking.difference[i].tolist() if len(found) > 1 else None,
                "gain": None if ranking.gain is None or i == against else ranking.gain[i].tolist(),
                **_further(true, predictions[i], probabilities[i], prepared.labels),
            }
            for i in order
        ],
    }  # fmt: skip
    write_json(study.folder.ranking, record)
    write_text(study.folder.best, best_yaml(record, found[int(order[0])].recipe))
    return record


def best_yaml(record: dict[str, Any], recipe: Recipe) -> str:
    """The winner as a recipe, its figures in the comment on top.

    Args:
        record: What confirmation.json holds.
        recipe: The winner's recipe.

    Returns:
        YAML that `rxtone train` runs.
    """
    best = record["settings"][0]
    low, high = best["interval"]
    spread = "unknown (one run)" if best["sd"] is None else f"{best['sd']:.4f}"
    runs = f"{record['folds']} folds x {len(record['seeds'])} seeds"
    head = [
        f"# The best of a sweep: trial {best['trial']}, "
        + ", ".join(f"{key}={value}" for key, value in best["settings"].items()),
        f"# macro-F1 {best['mean']:.4f} (mean over {len(record['seeds'])} repetitions, 95% interval {low:.4f} to "
        f"{high:.4f}); sd {spread} over {runs}",
        f"# probability of being the best of the {len(record['settings'])} confirmed settings: "
        f"{best['probability_best']:.2f} (bootstrap over seeds and rows)",
        f"# {record['metric']}; the screening had given {best['screened_macro_f1']:.4f}",
    ]
    return "\n".join(head) + "\n" + dump_recipe(recipe)


def _further(
    true: np.ndarray, predictions: np.ndarray, probabilities: np.ndarray, labels: tuple[str, ...]
) -> dict[str, Any]:
    """Accuracy and F1 of each label, means over the repetitions, and what their averaged probabilities reach.

    Each repetition's models have not seen the row that they judge, so the average of the repetitions shows what an
    ensemble of as many models gains.
    """
    found = [classification_metrics(true, row, labels) for row in predictions]
    together = classification_metrics(true, probabilities.mean(axis=0).argmax(1), labels)
    return {
        "accuracy": float(np.mean([metrics["accuracy"] for metrics in found])),
        "per_class_f1": {label: float(np.mean([per_class(m)[label]["f1"] for m in found])) for label in labels},
        "ensemble": {name: together[name] for name in ("macro_f1", "accuracy")},
    }
