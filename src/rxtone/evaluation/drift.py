"""Are new reviews still like those the classifier was judged on: without any label of theirs.

What is compared is what predictions carry: predicted labels, confidence, length, truncation. From them follow
two estimates of what cannot be seen: the accuracy on the new reviews, and the true shares of their labels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.stats import chi2_contingency, ks_2samp

from rxtone.errors import DataError
from rxtone.stats.intervals import LEVEL
from rxtone.stats.significance import holm

# Usual reading of the population stability index (Siddiqi 2006, Credit risk scorecards): below 0.1 stable.
_STABLE = 0.1
_SHIFTED = 0.25
_BINS = 10
# A bin without rows would make the index infinite.
_LEAST_SHARE = 1e-4
_LEAST_ROWS = 30


def drift(reference: pl.DataFrame, current: pl.DataFrame, labels: Sequence[str]) -> dict[str, Any]:
    """Compare new predictions with those of the evaluation.

    Something is called drifted where its distribution differs by more than chance (chi-squared or
    Kolmogorov-Smirnov test, adjusted by Holm's method) and by an amount that matters (population stability
    index of 0.1 or more): among many reviews every difference is significant.

    Args:
        reference: `predictions.parquet` of the evaluation: `label, true_label, score, p_<label>, truncated`, and
            `n_tokens` where it is known.
        current: Predictions for the new reviews; true labels are not read.
        labels: The labels in recipe order.

    Returns:
        What goes to JSON: `n_reference`, `n_current`, `features` (each with `psi, p_value, p_adjusted, drifted`
        and what it looked like on both sides), `accuracy` (on the reference, and estimated for the new reviews),
        `label_shares` (predicted on both sides, and estimated true ones), `drifted`, `verdict`.

    Raises:
        DataError: If a table lacks a column, or has fewer than 30 rows.
    """
    for name, frame in (("reference", reference), ("new", current)):
        _check(frame, name, labels, needs_truth=name == "reference")
    features = _features(reference, current, labels)
    for feature, p in zip(features, holm([f["p_value"] for f in features]), strict=True):
        feature["p_adjusted"] = p
        feature["drifted"] = bool(p <= 1 - LEVEL and feature["psi"] >= _STABLE)
    drifted = [f["name"] for f in features if f["drifted"]]
    accuracy = _accuracy(reference, current)
    return {
        "n_reference": len(reference),
        "n_current": len(current),
        "features": features,
        "accuracy": accuracy,
        "label_shares": _label_shares(reference, current, labels),
        "drifted": bool(drifted),
        "verdict": _verdict(features, drifted, accuracy),
    }


def _check(frame: pl.DataFrame, name: str, labels: Sequence[str], *, needs_truth: bool) -> None:
    needed = ["label", "score", "truncated", *(f"p_{label}" for label in labels)]
    needed += ["true_label"] if needs_truth else []
    missing = [column for column in needed if column not in frame.columns]
    if missing:
        raise DataError(f"the {name} predictions lack the column {', '.join(missing)}; predict again")
    if len(frame) < _LEAST_ROWS:
        raise DataError(f"drift needs at least {_LEAST_ROWS} {name} reviews, got {len(frame)}")


def _features(reference: pl.DataFrame, current: pl.DataFrame, labels: Sequence[str]) -> list[dict[str, Any]]:
    features = [
        _of_classes("predicted label", reference["label"], current["label"], labels),
        _of_numbers("confidence", reference["score"], current["score"]),
    ]
    if reference["truncated"].any() or current["truncated"].any():
        before, now = (frame["truncated"].cast(pl.String) for frame in (reference, current))
        features.append(_of_classes("truncated", before, now, ["false", "true"]))
    if "n_tokens" in reference.columns and "n_tokens" in current.columns:
        features.append(_of_numbers("length in tokens", reference["n_tokens"], current["n_tokens"]))
    return features


def _of_classes(name: str, reference: pl.Series, current: pl.Series, classes: Sequence[str]) -> dict[str, Any]:
    counts = np.array([[(side == c).sum() for c in classes] for side in (reference, current)], dtype=np.float64)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    seen = counts[:, counts.sum(axis=0) > 0]
    p_value = float(chi2_contingency(seen).pvalue) if seen.shape[1] > 1 else 1.0
    return {
        "name": name,
        "psi": stability_index(shares[0], shares[1]),
        "p_value": p_value,
        "reference": dict(zip(classes, shares[0].tolist(), strict=True)),
        "current": dict(zip(classes, shares[1].tolist(), strict=True)),
    }


def _of_numbers(name: str, reference: pl.Series, current: pl.Series) -> dict[str, Any]:
    a, b = reference.to_numpy().astype(np.float64), current.to_numpy().astype(np.float64)
    edges = np.unique(np.quantile(a, np.arange(1, _BINS) / _BINS))
    shares = [
        np.bincount(np.searchsorted(edges, side, side="right"), minlength=len(edges) + 1) / len(side) for side in (a, b)
    ]
    return {
        "name": name,
        "psi": stability_index(shares[0], shares[1]),
        "p_value": float(ks_2samp(a, b, method="asymp").pvalue),
        "reference": _summary(a),
        "current": _summary(b),
    }


def _summary(values: NDArray[np.float64]) -> dict[str, float]:
    p10, p50, p90 = np.percentile(values, [10, 50, 90])
    return {"mean": float(values.mean()), "p10": float(p10), "p50": float(p50), "p90": float(p90)}


def stability_index(reference: NDArray[np.float64], current: NDArray[np.float64]) -> float:
    """Compute the population stability index: the symmetric Kullback-Leibler divergence of two histograms.

    Args:
        reference: Shares of each bin, shape (m,).
        current: Shares of each bin, shape (m,).

    Returns:
        0 for equal shares; 0.1 is read as a shift, 0.25 as a large one.
    """
    a, b = np.maximum(reference, _LEAST_SHARE), np.maximum(current, _LEAST_SHARE)
    return float(((b - a) * np.log(b / a)).sum())


def _accuracy(reference: pl.DataFrame, current: pl.DataFrame) -> dict[str, float]:
    """Estimate accuracy from the difference of confidence (Guillory et al. 2021)."""
    right = float((reference["label"] == reference["true_label"]).mean())  # type: ignore[arg-type]
    confident = [float(np.mean(frame["score"].to_numpy())) for frame in (reference, current)]
    estimate = float(np.clip(right + confident[1] - confident[0], 0, 1))
    return {"reference": right, "estimated_current": estimate}


def _label_shares(reference: pl.DataFrame, current: pl.DataFrame, labels: Sequence[str]) -> dict[str, Any]:
    """Estimate the true shares of labels from the predicted ones (Lipton et al. 2018, black box shift).

    It holds where only the shares changed and each label is still mistaken for others as often as before.
    """
    joint = np.array(
        [[((reference["label"] == p) & (reference["true_label"] == t)).sum() for t in labels] for p in labels],
        dtype=np.float64,
    )
    per_truth = joint / np.maximum(joint.sum(axis=0, keepdims=True), 1)
    predicted = np.array([(current["label"] == p).mean() for p in labels], dtype=np.float64)
    weights, _ = nnls(per_truth, predicted)
    total = weights.sum()
    shares = weights / total if total > 0 else predicted
    truth = joint.sum(axis=0) / joint.sum()
    return {
        "reference_true": dict(zip(labels, truth.tolist(), strict=True)),
        "current_predicted": dict(zip(labels, predicted.tolist(), strict=True)),
        "current_estimated": dict(zip(labels, shares.tolist(), strict=True)),
    }


def _verdict(features: Sequence[dict[str, Any]], drifted: Sequence[str], accuracy: dict[str, float]) -> str:
    estimate = f"Estimated accuracy {accuracy['estimated_current']:.3f}, {accuracy['reference']:.3f} in the evaluation."
    if not drifted:
        return f"The new reviews look like those of the evaluation. {estimate}"
    large = {f["name"] for f in features if f["drifted"] and f["psi"] >= _SHIFTED}
    named = ", ".join(f"{name} (strongly)" if name in large else name for name in drifted)
    return f"The new reviews differ in {named}. {estimate} Label some and evaluate again."
