"""`python -m pretraining.evaluate`: the base on DrugLib train, by cross-validation, beside its baselines.

Folds keep repeated reviews together; each fold is tuned by the package's own pipeline, which chooses its checkpoint on
a part of the fold's training rows. Figures are over out-of-fold rows.

Finished runs in `--out` are read, not repeated. So processes can share the work, with `--threads 1` and `--only 0 2 4`
the one, `--only 1 3` the other; then the command without `--only` judges on all folds.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

import rxtone
from rxtone.config import Recipe, load_recipe
from rxtone.data.reviews import Review, parse_rule, read_reviews
from rxtone.data.splits import folds
from rxtone.data.tables import read_table
from rxtone.evaluation.baselines import TFIDF_FIELDS, fit_baselines
from rxtone.loading import load, zero_shot
from rxtone.model.host import prepare_host
from rxtone.run import RunFolder, atomic_path
from rxtone.seeds import with_seed, write_ensemble
from rxtone.stats.bootstrap import bootstrap
from rxtone.stats.metrics import confusion_counts, metric_arrays
from rxtone.stats.significance import paired_differences

FIGURES = ("accuracy", "macro_f1", "kappa", "quadratic_kappa")
RESAMPLES = 10_000
Indexes = NDArray[np.int64]
Floats = NDArray[np.float64]


def figures(truth: Indexes, guess: Indexes, labels: Sequence[str]) -> dict[str, float]:
    """The headline figures and each label's F1 of one set of predictions."""
    found = metric_arrays(confusion_counts(truth, guess, len(labels)))
    named = {name: float(found[name]) for name in FIGURES}
    return named | {f"f1_{label}": float(value) for label, value in zip(labels, found["f1"], strict=True)}


def ahead(truth: Indexes, first: Indexes, second: Indexes, n_labels: int) -> dict[str, tuple[float, float, float]]:
    """How far `first` is ahead of `second` on the same rows.

    Args:
        truth: True label indexes, (n,).
        first: Predictions of the one, (n,).
        second: Predictions of the other, (n,).
        n_labels: Number of labels.

    Returns:
        For each headline figure the difference and its 95% paired bootstrap interval over rows.
    """
    sample = bootstrap(truth, [first, second], n_labels, n_resamples=RESAMPLES)
    found = {}
    for difference in paired_differences(sample, 0, 1):
        if difference.label is None and difference.metric in FIGURES:
            low, high = difference.interval or (difference.value, difference.value)
            found[difference.metric] = (difference.value, low, high)
    return found


def run_fold(
    recipe: Recipe, frame: pl.DataFrame, reviews: list[Review], held_out: Indexes, folder: Path, seeds: int = 1
) -> tuple[dict[str, Indexes], Floats]:
    """Tunes on the rest, predicts the held-out rows.

    Args:
        recipe: What to tune; its tables are replaced.
        frame: The whole table.
        reviews: Its reviews, in the same order.
        held_out: Rows of this fold.
        folder: Where the fold's table and runs go; a finished run is read, not repeated.
        seeds: How many runs answer together, from the recipe's seed on.

    Returns:
        Predictions of the held-out rows by contender, and the tuned model's raw log-probabilities, (n, labels). With
        several seeds `tuned` is their ensemble, and each of them is a contender, too.
    """
    rest = np.setdiff1d(np.arange(len(reviews)), held_out)
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "train.parquet"
    if not table.exists():
        with atomic_path(table) as partial:  # another process may begin the same fold
            frame[rest].write_parquet(partial)
    data = recipe.data.model_copy(update={"train": str(table), "test": None, "test_fraction": 0.0})
    quiet = recipe.evaluation.model_copy(update={"enabled": False})
    own = recipe.model_copy(update={"data": data, "evaluation": quiet})
    runs: dict[str, RunFolder] = {}
    for seed in range(recipe.train.seed, recipe.train.seed + seeds):
        out = folder / f"seed-{seed}"
        runs[out.name] = rxtone.train(with_seed(own, seed), out=out, resume=out.exists())
    judged = [reviews[int(row)] for row in held_out]
    baselines = fit_baselines([reviews[int(row)] for row in rest], judged, tuple(recipe.data.label.rule))
    linear = next(found.predicted for found in baselines if found.name == TFIDF_FIELDS)
    assert linear is not None
    alone = {name: load(run.adapter) for name, run in runs.items()}
    if seeds > 1:
        write_ensemble(own, folder, runs)
    tuned, untuned = load(folder) if seeds > 1 else next(iter(alone.values())), zero_shot(own)
    log_probs = tuned.score(judged).log_probs
    guesses = {
        "tuned": tuned.policy.decide(log_probs).predicted,
        "tuned_argmax": log_probs.argmax(1),
        "zero_shot": untuned.score(judged).log_probs.argmax(1),
        "tfidf": linear,
    }
    if seeds > 1:
        guesses |= {name: one.policy.decide(one.score(judged).log_probs).predicted for name, one in alone.items()}
    return guesses, log_probs


def spread(values: Sequence[float]) -> float:
    """Standard deviation of the folds' figures; 0 for a single fold."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def summarise(
    truth: Indexes, guesses: Mapping[str, Indexes], parts: Sequence[Indexes], labels: Sequence[str]
) -> dict[str, object]:
    """Figures over all rows, by fold, and the paired differences of the tuned model from the others.

    Args:
        truth: True label indexes, (n,).
        guesses: Out-of-fold predictions by contender, (n,) each: `tuned`, and with members of an ensemble `tfidf`.
        parts: Rows of each fold.
        labels: The labels.

    Returns:
        What `evaluation.json` holds.
    """
    majority = np.full_like(truth, np.bincount(truth).argmax())
    everyone = {**guesses, "majority": majority}
    by_fold = {name: [figures(truth[rows], guess[rows], labels) for rows in parts] for name, guess in everyone.items()}
    return {
        "rows": len(truth),
        "all_rows": {name: figures(truth, guess, labels) for name, guess in everyone.items()},
        "mean_of_folds": {
            name: {key: float(np.mean([fold[key] for fold in found])) for key in FIGURES}
            for name, found in by_fold.items()
        },
        "sd_of_folds": {
            name: {key: spread([fold[key] for fold in found]) for key in FIGURES}
            for name, found in by_fold.items()
        },
        "folds": by_fold,
        "tuned_minus": {
            name: ahead(truth, guesses["tuned"], guess, len(labels))
            for name, guess in everyone.items()
            if name != "tuned"
        },
        "alone_minus_tfidf": {
            name: ahead(truth, guess, everyone["tfidf"], len(labels))
            for name, guess in everyone.items()
            if name.startswith("seed-")
        },
    }  # fmt: skip


def main() -> None:
    """Parses the command line, runs the folds and prints the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", default="druglib:train")
    parser.add_argument("--recipe", default="druglib")
    parser.add_argument("--base", default="bundled")
    parser.add_argument("--set", action="append", default=[], help="group.key=value, as in rxtone train")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="seed of the folds")
    parser.add_argument("--seeds", type=int, default=1, help="runs of a fold that answer together")
    parser.add_argument("--only", type=int, nargs="+", help="folds, from 0, to run and to judge on; default all")
    parser.add_argument("--out", type=Path, default=Path("runs/pretraining-evaluation"))
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    chosen = sorted(set(range(arguments.folds) if arguments.only is None else arguments.only))
    if not set(chosen) <= set(range(arguments.folds)):
        parser.error(f"--only: expected folds from 0 to {arguments.folds - 1}, got {chosen}")
    prepare_host()
    torch.set_num_threads(arguments.threads)
    recipe = load_recipe(arguments.recipe, [f"model.base={arguments.base}", "data.test=null", *arguments.set])
    rule = parse_rule(recipe.data.label.rule)
    table = read_table(arguments.table)
    reviews = read_reviews(table, recipe.data.text_fields, recipe.data.label.column, rule)
    truth = np.array([rule.labels.index(str(review.label)) for review in reviews], dtype=np.int64)
    cut = folds(reviews, arguments.folds, arguments.seed)
    parts = [cut[number] for number in chosen]
    guesses: dict[str, Indexes] = {}
    log_probs = np.full((len(truth), len(rule.labels)), np.nan)
    for number, held_out in zip(chosen, parts, strict=True):
        found, log_probs[held_out] = run_fold(
            recipe, table.frame, reviews, held_out, arguments.out / f"fold-{number}", arguments.seeds
        )
        for name, guess in found.items():
            guesses.setdefault(name, np.full(len(truth), -1, dtype=np.int64))[held_out] = guess
            line = {"fold": number, "contender": name, **figures(truth[held_out], guess, rule.labels)}
            sys.stderr.write(json.dumps(line) + "\n")
    rows = np.sort(np.concatenate(parts))
    place = np.searchsorted(rows, np.arange(len(truth)))
    judged = {name: guess[rows] for name, guess in guesses.items()}
    summary = summarise(truth[rows], judged, [place[part] for part in parts], rule.labels)
    text = json.dumps(summary, indent=2)
    (arguments.out / "evaluation.json").write_text(text + "\n", encoding="utf-8")
    np.savez(arguments.out / "predictions.npz", rows=rows, truth=truth[rows], log_probs=log_probs[rows], **judged)
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
