"""What answers are worth beyond their labels: calibration, abstention, operating points, label sets."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rxtone.evaluation.compare import RunPredictions, compare
from rxtone.stats.abstention import abstention_metrics, conformal_metrics, risk_coverage
from rxtone.stats.calibration import identity_calibration
from rxtone.stats.policy import ARGMAX, Policy
from rxtone.stats.reliability import calibration_metrics, reliability_bins

# Coverages at which the risk is worth a line of a table.
_SHOWN_COVERAGES = (1.0, 0.9, 0.8, 0.7, 0.5)


def answer_metrics(
    policy: Policy,
    log_probs: NDArray[np.float64],
    y_true: NDArray[np.int64],
    labels: Sequence[str],
    *,
    groups: NDArray[np.int64] | None,
    ordinal: bool,
    n_resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Judge how a policy turns scores into answers.

    Args:
        policy: The policy.
        log_probs: Uncalibrated log-probabilities of the labels, shape (n, k).
        y_true: Label indexes, shape (n,).
        labels: The k labels in recipe order.
        groups: What each review belongs to, shape (n,), or None.
        ordinal: Whether the labels are ordered.
        n_resamples: The number of bootstrap resamples.
        seed: Of the resamples.

    Returns:
        `calibration` (`method`, `before` and `after` with their figures and reliability bins),
        `risk_coverage`, `abstention` (None where nothing is withheld), `operating_point` and
        `operating_points`, `conformal` (None where no sets were fitted).
    """
    answers = policy.decide(log_probs)
    right = answers.predicted == y_true
    least = policy.min_confidence
    return {
        "calibration": _calibration(policy, log_probs, y_true, groups, n_resamples=n_resamples, seed=seed),
        "risk_coverage": _risk_coverage(answers.confidence, right),
        "abstention": None if least is None else abstention_metrics(answers.confidence, right, least),
        "operating_point": policy.operating_point,
        "operating_points": _operating_points(
            policy, log_probs, y_true, labels, groups, ordinal=ordinal, n_resamples=n_resamples, seed=seed
        ),
        "conformal": _conformal(policy, answers.probabilities, y_true, labels),
    }


def _risk_coverage(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> dict[str, Any]:
    curve = risk_coverage(confidence, right)
    shown = dict.fromkeys(int(np.flatnonzero(curve.coverage >= c - 1e-9)[-1]) for c in _SHOWN_COVERAGES)
    return {
        "area": curve.area,
        "coverage": curve.coverage.tolist(),
        "risk": curve.risk.tolist(),
        "threshold": curve.threshold.tolist(),
        "at": [
            {
                "coverage": float(curve.coverage[i]),
                "accuracy": float(1 - curve.risk[i]),
                "min_confidence": float(curve.threshold[i]),
            }
            for i in shown
        ],
    }


def _conformal(
    policy: Policy, probabilities: NDArray[np.float64], y_true: NDArray[np.int64], labels: Sequence[str]
) -> dict[str, Any] | None:
    if policy.conformal is None:
        return None
    figures = conformal_metrics(policy.conformal.sets(probabilities), y_true, policy.conformal.level)
    per_label: Any = figures["coverage_per_label"]
    return figures | {"coverage_per_label": dict(zip(labels, per_label, strict=True))}


def _calibration(
    policy: Policy,
    log_probs: NDArray[np.float64],
    y_true: NDArray[np.int64],
    groups: NDArray[np.int64] | None,
    *,
    n_resamples: int,
    seed: int,
) -> dict[str, Any]:
    plain = identity_calibration(log_probs.shape[1])
    out: dict[str, Any] = {"method": policy.calibration.method}
    for name, calibration in (("before", plain), ("after", policy.calibration)):
        p = calibration.probabilities(log_probs)
        figures: dict[str, Any] = calibration_metrics(p, y_true, groups=groups, n_resamples=n_resamples, seed=seed)
        bins = reliability_bins(p.max(axis=1), p.argmax(axis=1) == y_true)
        figures["reliability"] = [
            {"n": b.n, "confidence": b.confidence, "accuracy": b.accuracy, "accuracy_ci": list(b.interval)}
            for b in bins
        ]
        out[name] = figures
    return out


def _operating_points(
    policy: Policy,
    log_probs: NDArray[np.float64],
    y_true: NDArray[np.int64],
    labels: Sequence[str],
    groups: NDArray[np.int64] | None,
    *,
    ordinal: bool,
    n_resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Judge every operating point, plain argmax first, on the same resamples."""
    calibrated = policy.calibration.log_probabilities(log_probs)
    rules = {name: policy.rule(name) for name in (ARGMAX, *(str(r.objective) for r in policy.rules))}
    found: dict[str, Any] = compare(
        [RunPredictions(name, rule.decide(calibrated)) for name, rule in rules.items()],
        y_true,
        labels,
        groups=groups,
        ordinal=ordinal,
        n_resamples=n_resamples,
        seed=seed,
    )
    return {name: {"offsets": list(rule.offsets), "metrics": found["runs"][name]} for name, rule in rules.items()}
