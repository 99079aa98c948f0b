"""One recipe over several seeds: what is luck, what is gain, and the ensemble of all.

The split stays that of the first seed, so that all runs are judged on the same reviews and their adapters can
answer together; the seed then moves the adapter's start, the order and the dropout.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from rxtone import pipeline
from rxtone.config import process_place
from rxtone.errors import RecipeError, RunError
from rxtone.evaluation.compare import RunPredictions, compare
from rxtone.evaluation.inputs import group_indexes
from rxtone.evaluation.report import render_comparison
from rxtone.judging import judge
from rxtone.loading import load
from rxtone.model.ensemble import average
from rxtone.preparation import label_indexes, prepare
from rxtone.run import ENSEMBLE, EvaluationFolder, RunFolder, atomic_folder, atomic_path, write_json, write_text
from rxtone.spec import in_order, read_spec, read_validation, write_spec, write_validation
from rxtone.stats.policy import fit_policy
from rxtone.stats.significance import seed_gain_over, seed_summary
from rxtone.stats.validation import ValidationScores

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from rxtone.config import Recipe
    from rxtone.evaluation.evaluate import Evaluation
    from rxtone.pipeline import StoryEvent
    from rxtone.preparation import Prepared
    from rxtone.stopping import Stop

METRICS = ("macro_f1", "accuracy", "weighted_f1", "kappa", "quadratic_kappa")
ENSEMBLE_NAME = "ensemble"


@dataclass(frozen=True)
class SeedStarted:
    """The run of one seed begins, or is found finished."""

    seed: int
    number: int
    of: int


@dataclass(frozen=True)
class SeedsDone:
    """All seeds are trained and judged.

    Attributes:
        summary: What seeds.json holds.
        page: The page that shows it.
    """

    summary: dict[str, Any]
    page: Path


def train_seeds(
    recipe: Recipe, out: Path, seeds: int, *, resume: bool = False, stop: Stop | None = None
) -> Iterator[StoryEvent | SeedStarted | SeedsDone]:
    """Run a recipe with several seeds, judge each, and all of them together.

    Args:
        recipe: The experiment; its `train.seed` is the first seed.
        out: Folder of all runs: `seed-K` for each, `ensemble`, `evaluation`, `seeds.json` and `seeds.html`.
        seeds: How many, at least two.
        resume: Continue what is there.
        stop: A wish to stop: the run under way is saved, and no other begins.

    Yields:
        The events of each run after its `SeedStarted`; `SeedsDone` at the end.

    Raises:
        RecipeError: If there are fewer than two seeds, or the recipe does not evaluate.
        RunError: If something else is in the way.
    """
    if seeds < 2 or not recipe.evaluation.enabled:
        msg = f"--seeds {seeds}: expected 2 or more, and a recipe with evaluation.enabled"
        raise RecipeError(msg)
    if process_place()[1] > 1:
        msg = f"--seeds {seeds}: the seeds run one after another in one process; leave torchrun or accelerate out"
        raise RecipeError(msg)
    if out.is_dir() and any(out.iterdir()) and not resume:
        msg = f"{out}: expected an empty or new folder for the seeds; add --resume to continue, or choose another --out"
        raise RunError(msg)
    recipes = {recipe.train.seed + k: with_seed(recipe, recipe.train.seed + k) for k in range(seeds)}
    for number, (seed, one) in enumerate(recipes.items(), start=1):
        yield SeedStarted(seed, number, seeds)
        yield from pipeline.train(one, _folder(out, seed), resume=resume, stop=stop)
        if stop is not None and stop.wanted():
            return
    runs = {f"seed-{seed}": RunFolder(_folder(out, seed)) for seed in recipes}
    write_json(out / "data.json", json.loads(next(iter(runs.values())).data.read_text("utf-8")))
    write_ensemble(recipe, out, runs)
    yield _judged(recipes[recipe.train.seed], out, runs)


def with_seed(recipe: Recipe, seed: int) -> Recipe:
    """The recipe under another seed, on the split of its own."""
    split = recipe.train.seed if recipe.data.split_seed is None else recipe.data.split_seed
    return recipe.model_copy(
        update={
            "data": recipe.data.model_copy(update={"split_seed": split}),
            "train": recipe.train.model_copy(update={"seed": seed}),
        }
    )


def _folder(out: Path, seed: int) -> Path:
    return out / f"seed-{seed}"


def write_ensemble(recipe: Recipe, out: Path, runs: Mapping[str, RunFolder]) -> None:
    """The members by name, and the policy of their mean, fitted on the validation rows that they share.

    Args:
        recipe: What all of them trained, but for the seed.
        out: Folder of all runs; the ensemble is loaded from it.
        runs: Name -> finished run.

    Raises:
        RunError: If the runs were not validated on the same rows.
    """
    spec = read_spec(next(iter(runs.values())).adapter)
    known = [read_validation(run.adapter, spec) for run in runs.values()]
    scores = [one for one in known if one is not None]
    if len(scores) < len(known) or any((one.classes != scores[0].classes).any() for one in scores):
        msg = f"{out}: the seeds do not share their validation rows; train them again together"
        raise RunError(msg)
    mean = ValidationScores(average([one.log_probs for one in scores]), scores[0].classes)
    fitted = fit_policy(
        mean.log_probs, mean.classes, operating_point=recipe.evaluation.operating_point, seed=recipe.train.seed
    )
    with atomic_folder(out / ENSEMBLE_NAME) as folder:
        write_json(folder / ENSEMBLE, {"members": [f"../{run.path.name}/{run.adapter.name}" for run in runs.values()]})
        write_spec(folder, spec.model_copy(update={"policy": fitted.policy.to_dict()}))
        write_validation(folder, mean)


def _judged(recipe: Recipe, out: Path, runs: Mapping[str, RunFolder]) -> SeedsDone:
    prepared = prepare(recipe.data, recipe.train.seed)
    evaluation = judge(load(out), recipe, prepared)
    _write_evaluation(out, evaluation)
    figures = {
        name: json.loads(EvaluationFolder(run.evaluation).metrics.read_text("utf-8")) for name, run in runs.items()
    }
    summary = summarise(figures, evaluation.metrics)
    write_json(out / "seeds.json", summary)
    page = out / "seeds.html"
    write_text(page, _page(recipe, out, runs, prepared, evaluation, summary))
    return SeedsDone(summary, page)


def summarise(figures: Mapping[str, Mapping[str, Any]], ensemble: Mapping[str, Any]) -> dict[str, Any]:
    """Say what seeds change, and what they do not.

    Args:
        figures: Name of the run -> its metrics.json.
        ensemble: The metrics of all of them together.

    Returns:
        `seeds`, `split`, `n`; `metrics`: name -> `values, mean, sd, interval, ensemble`; `per_class_f1` alike;
        `gains`: baseline -> metric -> `gain, interval, p_value, exceeds_noise`, the mean over the seeds against a
        figure that no seed moves.
    """
    runs = list(figures.values())
    there = [name for name in METRICS if ensemble[name] is not None]  # labels without an order have no quadratic kappa
    metrics = {name: _over([run[name] for run in runs], ensemble[name]) for name in there}
    per_class = {
        label: _over([run["per_class"][label]["f1"] for run in runs], row["f1"])
        for label, row in ensemble["per_class"].items()
    }
    gains = {}
    for key, row in ensemble.get("baselines", {}).items():
        if "unavailable" not in row:
            gains[key] = {"title": row["title"]} | {
                name: asdict(seed_gain_over([run[name] for run in runs], row[name]))
                for name in ("macro_f1", "accuracy")
            }
    return {
        "seeds": list(figures),
        "n": ensemble["n"],
        "split": ensemble["split"],
        "metrics": metrics,
        "per_class_f1": per_class,
        "gains": gains,
    }


def verdicts(summary: Mapping[str, Any]) -> list[str]:
    """What the seeds show, in sentences.

    Args:
        summary: What `summarise` gives.

    Returns:
        One sentence for the spread and one for each baseline.
    """
    f1 = summary["metrics"]["macro_f1"]
    said = [
        f"macro-F1 over {len(summary['seeds'])} seeds: {f1['mean']:.3f}, sd {f1['sd']:.3f}; "
        f"their ensemble {f1['ensemble']:.3f}."
    ]
    for gain in summary["gains"].values():
        found = gain["macro_f1"]
        span = (
            f"{found['gain']:+.3f} macro-F1, 95% over seeds {found['interval'][0]:+.3f} to {found['interval'][1]:+.3f}"
        )
        how = "exceeds seed noise" if found["exceeds_noise"] else "does not exceed seed noise"
        said.append(f"The difference to {gain['title']} {how} ({span}).")
    return said


def _over(values: Sequence[float], ensemble: float) -> dict[str, Any]:
    return {"values": list(values)} | asdict(seed_summary(values)) | {"ensemble": ensemble}


def _write_evaluation(out: Path, evaluation: Evaluation) -> None:
    folder = EvaluationFolder(out / "evaluation")
    folder.path.mkdir(exist_ok=True)
    with atomic_path(folder.predictions) as temporary:
        evaluation.predictions.write_parquet(temporary)
    write_json(folder.metrics, evaluation.metrics)


def _page(
    recipe: Recipe,
    out: Path,
    runs: Mapping[str, RunFolder],
    prepared: Prepared,
    evaluation: Evaluation,
    summary: Mapping[str, Any],
) -> str:
    labels = prepared.labels
    frames = {name: pl.read_parquet(EvaluationFolder(run.evaluation).predictions) for name, run in runs.items()}
    predicted = {ENSEMBLE_NAME: evaluation.predictions} | frames
    comparison = compare(
        [
            RunPredictions(name, np.array([labels.index(label) for label in frame["label"]], dtype=np.int64))
            for name, frame in predicted.items()
        ],
        label_indexes(prepared.held_out, labels),
        labels,
        groups=group_indexes(prepared.held_out),
        ordinal=in_order(recipe.data.label.rule, ordered=recipe.data.label.ordered),
    )
    return render_comparison({
        "title": f"{out.name}: {len(runs)} seeds and their ensemble",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "table": recipe.data.test or recipe.data.train,
        "comparison": comparison | {"baselines": evaluation.metrics["baselines"]},
        "commands": [f"rxtone train {next(iter(runs))}/config.yaml --seeds {len(runs)} --out NEW_FOLDER"],
        "notes": [] if evaluation.metrics["split"] == "test" else [f"These rows are: {evaluation.metrics['split']}."],
        "seeds": {"one seed": summary["metrics"]["macro_f1"]},
        "seed_verdicts": verdicts(summary),
    })  # fmt: skip
