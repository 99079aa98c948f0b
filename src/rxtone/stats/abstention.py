"""When not to answer: risk against coverage, thresholds for a target precision, conformal label sets."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import beta

from rxtone.stats.intervals import LEVEL, wilson_interval

_CURVE_POINTS = 100
_CANDIDATES = 20
# Of fewer accepted rows no precision is worth stating.
_LEAST_ACCEPTED = 20


@dataclass(frozen=True)
class RiskCoverage:
    """What accuracy costs in answers (El-Yaniv and Wiener 2010).

    Attributes:
        coverage: Shares of rows that are answered, falling from 1, shape (m,).
        risk: The share of errors among the answered ones, shape (m,).
        threshold: The least confidence that is answered, shape (m,).
        area: Area under the curve: the mean risk over all coverages, each distinct threshold counted by rows.
    """

    coverage: NDArray[np.float64]
    risk: NDArray[np.float64]
    threshold: NDArray[np.float64]
    area: float


def risk_coverage(confidence: ArrayLike, correct: ArrayLike) -> RiskCoverage:
    """Draw the curve of risk against coverage.

    Args:
        confidence: Probability of the predicted label, shape (n,).
        correct: Whether the predicted label is right, shape (n,).

    Returns:
        About 100 points of the curve; rows of equal confidence are answered together or not at all.
    """
    c, right = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    order = np.argsort(-c, kind="stable")
    last_of_tie = np.append(np.flatnonzero(np.diff(c[order]) < 0), len(c) - 1)
    answered = last_of_tie + 1.0
    risk = 1 - np.cumsum(right[order])[last_of_tie] / answered
    area = float((risk * np.diff(np.concatenate([[0.0], answered]))).sum() / len(c))
    shown = np.unique(np.linspace(len(risk) - 1, 0, _CURVE_POINTS).round().astype(int))[::-1]
    return RiskCoverage(answered[shown] / len(c), risk[shown], c[order][last_of_tie][shown], area)


@dataclass(frozen=True)
class PrecisionThreshold:
    """A least confidence, chosen on validation rows so that what is answered is right often enough.

    Attributes:
        target: The share of answers that should be right.
        threshold: Answer where the confidence is at least this.
        coverage: The share of validation rows answered.
        precision: The share of those that are right.
        lower_bound: Lower confidence bound of that share, for all candidate thresholds at once.
        certified: Whether the bound, not only the share, reaches the target.
    """

    target: float
    threshold: float
    coverage: float
    precision: float
    lower_bound: float
    certified: bool


def precision_threshold(
    confidence: ArrayLike, correct: ArrayLike, target: float, *, certify: bool = True, level: float = LEVEL
) -> PrecisionThreshold | None:
    """Find the least confidence at which answers reach a target precision.

    Certified thresholds hold for new rows like these with the stated probability: 20 candidate coverages are
    tested at once (exact binomial bounds, Bonferroni), as in "Learn then test" (Angelopoulos et al. 2021).
    Uncertified ones reach the target on these rows only and are, having been picked, a little optimistic.

    Args:
        confidence: Probability of the predicted label on validation rows, shape (n,).
        correct: Whether the predicted label is right, shape (n,).
        target: The share of answers that should be right, in 0..1.
        certify: Whether the lower confidence bound has to reach the target.
        level: The probability with which a certified threshold keeps its promise.

    Returns:
        The threshold with the most answers, None where no candidate reaches the target.
    """
    c, right = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=bool)
    if len(c) == 0:
        return None
    candidates = np.unique(np.quantile(c, np.arange(_CANDIDATES) / _CANDIDATES))
    for threshold in candidates:  # the lowest first: the most answers
        answered = c >= threshold
        n, hits = int(answered.sum()), int(right[answered].sum())
        if n < min(_LEAST_ACCEPTED, len(c)):
            break
        bound = float(beta.ppf((1 - level) / _CANDIDATES, hits, n - hits + 1)) if hits else 0.0
        if (bound if certify else hits / n) >= target:
            return PrecisionThreshold(target, float(threshold), n / len(c), hits / n, bound, certified=bound >= target)
    return None


def abstention_metrics(confidence: ArrayLike, correct: ArrayLike, threshold: float) -> dict[str, object]:
    """Judge a least confidence.

    Args:
        confidence: Probability of the predicted label, shape (n,).
        correct: Whether the predicted label is right, shape (n,).
        threshold: Answer where the confidence is at least this.

    Returns:
        `min_confidence`, `n_answered`, `n_abstained`, `coverage`, `precision` (the share of answers that are
        right, None without answers) with `precision_ci`, and `abstained_accuracy`, how often the withheld
        answer would have been right.
    """
    answered, right = np.asarray(confidence) >= threshold, np.asarray(correct, dtype=bool)
    n, hits, withheld = int(answered.sum()), int(right[answered].sum()), right[~answered]
    return {
        "min_confidence": float(threshold),
        "n_answered": n,
        "n_abstained": len(withheld),
        "coverage": n / len(right),
        "precision": hits / n if n else None,
        "precision_ci": wilson_interval(hits, n),
        "abstained_accuracy": float(withheld.mean()) if len(withheld) else None,
    }


@dataclass(frozen=True)
class ConformalSets:
    """Sets of labels that hold the true one with a stated probability.

    Attributes:
        level: That probability.
        least_probability: Labels at least as probable as this are in the set, one figure per label.
        per_label: Whether the promise holds for each true label on its own.
    """

    level: float
    least_probability: tuple[float, ...]
    per_label: bool

    def sets(self, probabilities: ArrayLike) -> NDArray[np.bool_]:
        """Form the sets.

        Args:
            probabilities: Shape (n, k).

        Returns:
            Whether each label is in the set of each row, shape (n, k); the most probable label always is.
        """
        p = np.asarray(probabilities, dtype=np.float64)
        inside = p >= np.array(self.least_probability)
        inside[np.arange(len(p)), p.argmax(axis=1)] = True
        return np.asarray(inside)


def fit_conformal(
    probabilities: ArrayLike, y_true: ArrayLike, *, level: float = 0.9, per_label: bool = False
) -> ConformalSets:
    """Fit split-conformal sets (Vovk et al. 2005; the score 1 - p of Sadinle et al. 2019).

    Args:
        probabilities: Of rows that trained nothing, shape (n, k).
        y_true: Their label indexes, shape (n,).
        level: The share of new rows whose set shall hold the true label.
        per_label: Whether that shall hold for each true label on its own; rare labels then get larger sets.

    Returns:
        The sets; with too few rows for the promise they hold every label.
    """
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(y_true)
    own = p[np.arange(len(y)), y]
    k = p.shape[1]
    if per_label:
        least = tuple(_least_probability(own[y == label], level) for label in range(k))
    else:
        least = (_least_probability(own, level),) * k
    return ConformalSets(level, least, per_label)


def _least_probability(own: NDArray[np.float64], level: float) -> float:
    rank = int(np.ceil((len(own) + 1) * level - 1e-9))  # of the scores 1 - p; the 1e-9 forgives 0.9 * 10
    return 0.0 if rank > len(own) else float(np.sort(own)[::-1][rank - 1])


def conformal_metrics(sets: ArrayLike, y_true: ArrayLike, level: float) -> dict[str, object]:
    """Judge label sets.

    Args:
        sets: Whether each label is in the set, shape (n, k).
        y_true: Label indexes, shape (n,).
        level: The coverage they promise.

    Returns:
        `level`, `coverage` with `coverage_ci`, `coverage_per_label` (None for a label without rows),
        `mean_size`, `singletons` (the share of sets of one label).
    """
    inside, y = np.asarray(sets, dtype=bool), np.asarray(y_true)
    hit, sizes = inside[np.arange(len(y)), y], inside.sum(axis=1)
    return {
        "level": level,
        "coverage": float(hit.mean()),
        "coverage_ci": wilson_interval(int(hit.sum()), len(hit)),
        "coverage_per_label": [
            float(hit[y == label].mean()) if (y == label).any() else None for label in range(inside.shape[1])
        ],
        "mean_size": float(sizes.mean()),
        "singletons": float((sizes == 1).mean()),
    }
