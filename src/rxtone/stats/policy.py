"""How scores become answers: calibrated, decided, withheld. One path for evaluation and for service."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rxtone.stats.abstention import ConformalSets, PrecisionThreshold, fit_conformal, precision_threshold
from rxtone.stats.calibration import (
    Calibration,
    calibration_from_dict,
    fit_calibration,
    identity_calibration,
    negative_log_likelihood,
)
from rxtone.stats.operating import BALANCED, COST, MACRO_F1, DecisionRule, TunedRule, argmax_rule, tune_offsets

ARGMAX = "argmax"


@dataclass(frozen=True)
class Decisions:
    """The answers to n reviews.

    Attributes:
        probabilities: Calibrated, shape (n, k); rows sum to 1.
        predicted: Label indexes, shape (n,).
        confidence: Probability of the predicted label, shape (n,).
        abstained: Whether the answer is withheld, shape (n,).
    """

    probabilities: NDArray[np.float64]
    predicted: NDArray[np.int64]
    confidence: NDArray[np.float64]
    abstained: NDArray[np.bool_]


@dataclass(frozen=True)
class Policy:
    """What stands between the scores of a model and its answers.

    Attributes:
        calibration: Scores to probabilities.
        rules: Tuned operating points, each named by its objective.
        operating_point: Which of them answers; `argmax` for none of them.
        min_confidence: Answers of less probability are withheld; None withholds none.
        conformal: Sets of labels of a stated coverage, None where they were not fitted.
    """

    calibration: Calibration
    rules: tuple[DecisionRule, ...] = ()
    operating_point: str = ARGMAX
    min_confidence: float | None = None
    conformal: ConformalSets | None = None

    def rule(self, operating_point: str | None = None) -> DecisionRule:
        """Look up a decision rule.

        Args:
            operating_point: Its name; None for the one that answers.

        Returns:
            The rule.

        Raises:
            ValueError: If there is none of that name.
        """
        name = self.operating_point if operating_point is None else operating_point
        if name == ARGMAX:
            return argmax_rule(len(self.calibration.scale))
        for rule in self.rules:
            if rule.objective == name:
                return rule
        known = ", ".join([ARGMAX, *(str(rule.objective) for rule in self.rules)])
        raise ValueError(f"no operating point {name!r}, there are: {known}")

    def decide(self, log_probs: ArrayLike) -> Decisions:
        """Turn scores into answers.

        Args:
            log_probs: Uncalibrated log-probabilities of the labels, shape (n, k).

        Returns:
            The answers, in order.
        """
        calibrated = self.calibration.log_probabilities(log_probs)
        predicted = self.rule().decide(calibrated)
        probabilities = np.exp(calibrated)
        confidence = probabilities[np.arange(len(predicted)), predicted]
        least = -np.inf if self.min_confidence is None else self.min_confidence
        return Decisions(probabilities, predicted, confidence, np.asarray(confidence < least))

    def to_dict(self) -> dict[str, object]:
        """Return what goes to `classifier.json`."""
        sets = self.conformal
        return {
            "calibration": self.calibration.to_dict(),
            "rules": [rule.to_dict() for rule in self.rules],
            "operating_point": self.operating_point,
            "min_confidence": self.min_confidence,
            "conformal": None
            if sets is None
            else {
                "level": sets.level,
                "least_probability": list(sets.least_probability),
                "per_label": sets.per_label,
            },
        }


def plain_policy(n_labels: int) -> Policy:
    """Answer with the most probable label, uncalibrated.

    Args:
        n_labels: The number of labels.

    Returns:
        The policy of a classifier that was fitted to nothing beyond its weights.
    """
    return Policy(identity_calibration(n_labels))


def policy_from_dict(data: Mapping[str, object]) -> Policy:
    """Read a policy that `Policy.to_dict` wrote.

    Args:
        data: The object from JSON.

    Returns:
        The policy.

    Raises:
        ValueError: If a part is missing or of the wrong kind.
    """
    calibration = data.get("calibration")
    if not isinstance(calibration, Mapping):
        raise ValueError("a policy needs a calibration")
    fitted = calibration_from_dict(calibration)
    n_labels = len(fitted.scale)
    rules = data.get("rules", [])
    if not isinstance(rules, list):
        raise ValueError("the rules of a policy must be a list")
    least = data.get("min_confidence")
    policy = Policy(
        calibration=fitted,
        rules=tuple(
            DecisionRule(_numbers(_part(rule, "offsets"), n_labels), str(_part(rule, "objective"))) for rule in rules
        ),
        operating_point=str(data.get("operating_point", ARGMAX)),
        min_confidence=None if least is None else _numbers([least], 1)[0],
        conformal=_conformal_from_dict(data.get("conformal"), n_labels),
    )
    policy.rule()  # the one that answers has to exist
    return policy


def _conformal_from_dict(data: object, n_labels: int) -> ConformalSets | None:
    if data is None:
        return None
    level = _numbers([_part(data, "level")], 1)[0]
    return ConformalSets(level, _numbers(_part(data, "least_probability"), n_labels), bool(_part(data, "per_label")))


def _part(data: object, key: str) -> object:
    if not isinstance(data, Mapping) or key not in data:
        raise ValueError(f"a part of the policy lacks {key!r}")
    return data[key]


def _numbers(values: object, count: int) -> tuple[float, ...]:
    numeric = isinstance(values, list) and all(
        isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value) for value in values
    )
    if not (isinstance(values, list) and numeric and len(values) == count):
        raise ValueError(f"a part of the policy needs {count} finite numbers")
    return tuple(float(value) for value in values)


@dataclass(frozen=True)
class PolicyFit:
    """A fitted policy and what the validation rows said about each choice.

    Attributes:
        policy: The policy.
        tuned: What each operating point is worth, cross-validated; in the order of its rules.
        threshold: How the least confidence was found, None where none was asked for or reached.
        certified: Whether the target precision is certified, None where none was asked for.
        nll_before: Negative log-likelihood of the validation rows, uncalibrated.
        nll_after: Calibrated, on the same rows.
    """

    policy: Policy
    tuned: tuple[TunedRule, ...]
    threshold: PrecisionThreshold | None
    certified: bool | None
    nll_before: float
    nll_after: float

    def to_dict(self) -> dict[str, object]:
        """Return what goes to JSON: how each choice was made, without the policy itself."""
        found = self.threshold
        rules = zip(self.policy.rules, self.tuned, strict=True)
        return {
            "nll_before": self.nll_before,
            "nll_after": self.nll_after,
            "operating_points": {
                str(rule.objective): {"shrink": tuned.shrink, "plain": tuned.plain, "tuned": tuned.tuned}
                for rule, tuned in rules
            },
            "target_precision": None
            if self.certified is None
            else {
                "certified": self.certified,
                "reached": found is not None,
                "target": None if found is None else found.target,
                "coverage": None if found is None else found.coverage,
                "precision": None if found is None else found.precision,
                "lower_bound": None if found is None else found.lower_bound,
            },
        }


def fit_policy(
    log_probs: ArrayLike,
    y_true: ArrayLike,
    *,
    cost: ArrayLike | None = None,
    operating_point: str = ARGMAX,
    target_precision: float | None = None,
    conformal_level: float | None = 0.9,
    seed: int = 0,
) -> PolicyFit:
    """Fit calibration, operating points, abstention and label sets on validation rows.

    Args:
        log_probs: Uncalibrated log-probabilities of the labels, shape (n, k).
        y_true: Label indexes, shape (n,).
        cost: Cost of each mistake, shape (k, k), rows true labels; adds an operating point `cost` to
            `macro_f1` and `balanced`.
        operating_point: Which one answers: `argmax`, `macro_f1`, `balanced` or `cost`. One that did not help in
            cross-validation is plain argmax under its name.
        target_precision: The share of answers that should be right; the least confident ones beyond it are
            withheld.
        conformal_level: Coverage of the label sets, None for none.
        seed: Of all folds.

    Returns:
        The policy and how it came about.
    """
    z, y = np.asarray(log_probs, dtype=np.float64), np.asarray(y_true, dtype=np.int64)
    calibration = fit_calibration(z, y, seed=seed)
    calibrated = calibration.log_probabilities(z)
    tuned = [(aim, tune_offsets(calibrated, y, aim=aim, seed=seed)) for aim in (MACRO_F1, BALANCED)]
    if cost is not None:
        tuned.append((COST, tune_offsets(calibrated, y, aim=COST, cost=cost, seed=seed)))
    policy = Policy(
        calibration,
        tuple(DecisionRule(found.rule.offsets, name) for name, found in tuned),
        operating_point,
        conformal=None if conformal_level is None else fit_conformal(np.exp(calibrated), y, level=conformal_level),
    )
    threshold = None
    if target_precision is not None:
        answers = policy.decide(z)
        right = answers.predicted == y
        threshold = precision_threshold(answers.confidence, right, target_precision)
        if threshold is None:
            threshold = precision_threshold(answers.confidence, right, target_precision, certify=False)
        # Out of reach: a least confidence above 1 withholds every answer, which is what the target asks for.
        least = threshold.threshold if threshold is not None else 1.01
        policy = Policy(calibration, policy.rules, operating_point, least, policy.conformal)
    return PolicyFit(
        policy=policy,
        tuned=tuple(found for _, found in tuned),
        threshold=threshold,
        certified=None if target_precision is None else bool(threshold and threshold.certified),
        nll_before=negative_log_likelihood(identity_calibration(z.shape[1]).log_probabilities(z), y),
        nll_after=negative_log_likelihood(calibrated, y),
    )
