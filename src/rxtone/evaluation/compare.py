"""Several sets of predictions for the same reviews: who is better, by how much, and is it more than luck."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rxtone.data.reviews import Review
from rxtone.errors import DataError
from rxtone.evaluation.baselines import Baseline
from rxtone.evaluation.inputs import ScoringClassifier, group_indexes, label_indexes
from rxtone.stats.bootstrap import N_RESAMPLES, Bootstrap, bootstrap, metric_intervals, metric_names
from rxtone.stats.intervals import LEVEL
from rxtone.stats.metrics import metrics_from_counts
from rxtone.stats.policy import Policy, plain_policy
from rxtone.stats.significance import Difference, holm, mcnemar, paired_differences

DECIDING = "macro_f1"
"""The metric that decides which run is better; p-values of it are adjusted for the number of comparisons."""


@dataclass(frozen=True)
class RunPredictions:
    """What one run predicts.

    Attributes:
        name: What people call the run.
        predicted: Label indexes, shape (n,); -1 is an invalid output.
    """

    name: str
    predicted: NDArray[np.int64]


def with_intervals(sample: Bootstrap, run: int, labels: Sequence[str], *, ordinal: bool = True) -> dict[str, object]:
    """Compute the metrics of one run and their intervals.

    Args:
        sample: The resamples.
        run: Which of its runs.
        labels: The labels in recipe order.
        ordinal: Whether they are ordered.

    Returns:
        The keys of `classification_metrics`, and `<name>_ci` beside each metric: [low, high], or None where
        nothing can be said.
    """
    metrics = metrics_from_counts(sample.observed[run].astype(np.int64), labels, ordinal=ordinal)
    per_class = metrics["per_class"]
    if not isinstance(per_class, dict):
        raise TypeError("per_class is a dict")
    for (name, label), interval in zip(metric_names(len(labels)), metric_intervals(sample, run=run), strict=True):
        if label is not None:
            per_class[labels[label]][f"{name}_ci"] = interval
        elif metrics[name] is not None:
            metrics[f"{name}_ci"] = interval
    return metrics


def compare(
    runs: Sequence[RunPredictions],
    y_true: NDArray[np.int64],
    labels: Sequence[str],
    *,
    baselines: Sequence[Baseline] = (),
    groups: NDArray[np.int64] | None = None,
    ordinal: bool = True,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> dict[str, object]:
    """Compare runs with each other and each with the baselines.

    Args:
        runs: At least one run, all on the same n reviews.
        y_true: Label indexes, shape (n,).
        labels: The labels in recipe order.
        baselines: What stands beside; compared with the runs, not with each other.
        groups: What each review belongs to, shape (n,); None takes the reviews as independent.
        ordinal: Whether the labels are ordered.
        n_resamples: The number of bootstrap resamples.
        seed: Of the resamples.

    Returns:
        What goes to JSON: `n`, `labels`, `interval` (how intervals were made), `runs` and `baselines`
        (name -> metrics with intervals), `pairs` (run, other, differences with intervals and p-values,
        McNemar, the p-value adjusted by Holm's method, a verdict in words).

    Raises:
        ValueError: If there is no run, two have one name, or the shapes differ.
    """
    measured = [(b, b.predicted) for b in baselines if b.predicted is not None]
    names = [run.name for run in runs] + [baseline.name for baseline, _ in measured]
    if not runs or len(set(names)) < len(names):
        raise ValueError(f"expected runs and baselines of different names, got {', '.join(names) or 'none'}")
    predictions = [run.predicted for run in runs] + [predicted for _, predicted in measured]
    sample = bootstrap(y_true, predictions, len(labels), groups=groups, n_resamples=n_resamples, seed=seed)
    figures = [with_intervals(sample, i, labels, ordinal=ordinal) for i in range(len(names))]
    among_runs = [(b, a) for a, b in combinations(range(len(runs)), 2)]
    to_baselines = [(a, b) for a in range(len(runs)) for b in range(len(runs), len(names))]
    pairs = []
    for family in (among_runs, to_baselines):
        found = [_pair(sample, a, b, names, predictions, y_true, labels, ordinal=ordinal) for a, b in family]
        pairs += _adjusted(found, titles={b.name: b.title for b in baselines})
    beside: dict[str, object] = {
        b.name: {"title": b.title, "unavailable": b.unavailable or "not measured"} for b in baselines
    }
    beside |= {b.name: {"title": b.title} | figures[len(runs) + i] for i, (b, _) in enumerate(measured)}
    return {
        "n": len(y_true),
        "labels": list(labels),
        "interval": interval_method(sample, grouped=groups is not None, n_resamples=n_resamples),
        "runs": {run.name: figures[i] for i, run in enumerate(runs)},
        "baselines": beside,
        "pairs": pairs,
    }


def compare_classifiers(
    classifiers: Mapping[str, ScoringClassifier],
    reviews: Sequence[Review],
    *,
    policies: Mapping[str, Policy] | None = None,
    baselines: Sequence[Baseline] = (),
    ordinal: bool = True,
    seed: int = 0,
) -> dict[str, object]:
    """Let classifiers answer the same reviews and compare the answers.

    Args:
        classifiers: Name of the run -> classifier; all of them know the same labels.
        reviews: The n reviews, each with a label. Where they name groups, intervals are by group.
        policies: Name of the run -> how its scores become answers; the most probable label where there is none.
        baselines: Predictions for the same reviews to compare with.
        ordinal: Whether the labels are ordered.
        seed: Of the resamples.

    Returns:
        The same as `compare`.

    Raises:
        DataError: If the classifiers know different labels, or a review has no label or an unknown one.
    """
    (first, labels), *others = ((name, classifier.labels) for name, classifier in classifiers.items())
    for name, theirs in others:
        if theirs != labels:
            raise DataError(
                f"runs that are compared must know the same labels in the same order: {first} knows "
                f"{', '.join(labels)}, {name} knows {', '.join(theirs)}"
            )
    plain = plain_policy(len(labels))
    runs = [
        RunPredictions(name, (policies or {}).get(name, plain).decide(classifier.score(reviews).log_probs).predicted)
        for name, classifier in classifiers.items()
    ]
    return compare(
        runs,
        label_indexes(reviews, labels),
        labels,
        baselines=baselines,
        groups=group_indexes(reviews),
        ordinal=ordinal,
        seed=seed,
    )


def interval_method(sample: Bootstrap, *, grouped: bool, n_resamples: int) -> dict[str, object]:
    """Say how intervals were made.

    Args:
        sample: The resamples.
        grouped: Whether whole groups were drawn.
        n_resamples: The number of resamples.

    Returns:
        `level`, `method`, `resamples`, `unit` and `units`, their number.
    """
    unit = "group" if grouped else "review"
    return {
        "level": LEVEL,
        "method": "BCa bootstrap",
        "resamples": n_resamples,
        "unit": unit,
        "units": sample.n_units,
    }


def _pair(
    sample: Bootstrap,
    a: int,
    b: int,
    names: Sequence[str],
    predictions: Sequence[NDArray[np.int64]],
    y_true: NDArray[np.int64],
    labels: Sequence[str],
    *,
    ordinal: bool,
) -> dict[str, object]:
    differences = paired_differences(sample, a, b)
    discordant = mcnemar(y_true, predictions[a], predictions[b])
    shown = [d for d in differences if d.label is None and (ordinal or d.metric != "quadratic_kappa")]
    return {
        "run": names[a],
        "other": names[b],
        "differences": {d.metric: _difference(d) for d in shown},
        "per_class_f1": {
            labels[d.label]: _difference(d) for d in differences if d.metric == "f1" and d.label is not None
        },
        "mcnemar": {
            "only_run_right": discordant.only_first,
            "only_other_right": discordant.only_second,
            "p_exact": discordant.p_exact,
            "p_mid": discordant.p_mid,
        },
    }


def _difference(difference: Difference) -> dict[str, object]:
    return {
        "value": difference.value,
        "ci": None if difference.interval is None else list(difference.interval),
        "p_value": difference.p_value,
    }


def _adjusted(pairs: list[dict[str, object]], titles: Mapping[str, str]) -> list[dict[str, object]]:
    """Add the adjusted p-value of the deciding metric and the verdict to each pair of one family."""
    deciding = [_deciding(pair) for pair in pairs]
    adjusted = holm([float(d["p_value"]) for d in deciding])
    for pair, difference, p in zip(pairs, deciding, adjusted, strict=True):
        pair["p_adjusted"] = p
        run, other = str(pair["run"]), str(pair["other"])
        pair["verdict"] = verdict(run, titles.get(other, other), difference["value"], difference["ci"], p)
    return pairs


def _deciding(pair: Mapping[str, object]) -> dict[str, Any]:
    differences = pair["differences"]
    return differences[DECIDING] if isinstance(differences, dict) else {}


def verdict(run: str, other: str, value: float, interval: Sequence[float] | None, p_value: float) -> str:
    """Put a difference of the deciding metric into words.

    Args:
        run: The name of the run.
        other: The name of what it is compared with.
        value: Run minus other.
        interval: The 95% interval of that, None where it could not be estimated.
        p_value: Two-sided, adjusted for the number of comparisons.

    Returns:
        One sentence.
    """
    if interval is None:
        return f"{run} and {other} cannot be told apart: no resample of these reviews separates them."
    low, high = interval
    span = f"{value:+.3f} macro-F1, 95% interval {low:+.3f} to {high:+.3f}, adjusted p {_p(p_value)}"
    if p_value <= 1 - LEVEL:
        return f"{run} is {'better' if value > 0 else 'worse'} than {other} ({span})."
    return f"No difference between {run} and {other} is shown ({span}): the interval says what is still possible."


def _p(p_value: float) -> str:
    return f"{p_value:.3f}" if p_value >= 0.001 else "< 0.001"
