"""Operating points: offsets on the scores of labels that serve another aim than accuracy.

Plain argmax serves accuracy; with a rare middle label it hardly ever chooses that one. An offset per label,
tuned on validation rows for macro-F1 or for costs, moves the borders between labels and nothing else.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rxtone.stats.metrics import confusion_counts, metric_arrays

MACRO_F1 = "macro_f1"
BALANCED = "balanced"
"""The mean of macro-F1 and Cohen's kappa: macro-F1 alone gives away many right answers for a few of a rare label."""
COST = "cost"

Objective = Callable[[NDArray[np.int64]], NDArray[np.float64]]

_SHRINKS = (0.0, 0.25, 0.5, 0.75, 1.0)
_FOLDS = 5
_REPEATS = 4
_ROUNDS = 4


@dataclass(frozen=True)
class DecisionRule:
    """Which label is chosen: the one of the largest log-probability plus offset.

    Attributes:
        offsets: One per label, the first one 0; all 0 is plain argmax.
        objective: What they were tuned for: `macro_f1`, `balanced` or `cost`; None for plain argmax.
    """

    offsets: tuple[float, ...]
    objective: str | None = None

    def decide(self, log_probs: ArrayLike) -> NDArray[np.int64]:
        """Choose labels.

        Args:
            log_probs: Log-probabilities of the labels, shape (n, k).

        Returns:
            Label indexes, shape (n,).
        """
        z = np.asarray(log_probs, dtype=np.float64) + np.array(self.offsets)
        return np.asarray(z.argmax(axis=1), dtype=np.int64)

    def to_dict(self) -> dict[str, object]:
        """Return what goes to JSON."""
        return {"offsets": list(self.offsets), "objective": self.objective}


def argmax_rule(n_labels: int) -> DecisionRule:
    """Choose the most probable label.

    Args:
        n_labels: The number of labels.

    Returns:
        The rule without offsets.
    """
    return DecisionRule((0.0,) * n_labels)


@dataclass(frozen=True)
class TunedRule:
    """A decision rule and what tuning it is worth on rows it was not tuned on.

    Attributes:
        rule: Fitted on all rows; plain argmax where offsets did not help.
        shrink: The share of the fitted offsets that is used, chosen by cross-validation.
        plain: Cross-validated objective of plain argmax.
        tuned: Cross-validated objective with offsets, at that share.
    """

    rule: DecisionRule
    shrink: float
    plain: float
    tuned: float


def ordinal_cost(n_labels: int) -> NDArray[np.float64]:
    """Charge a mistake by its distance in the order of the labels.

    Args:
        n_labels: The number of labels, k.

    Returns:
        Costs, shape (k, k): rows true labels, columns predicted ones.
    """
    position = np.arange(n_labels, dtype=np.float64)
    return np.asarray(np.abs(position[:, None] - position[None, :]))


def tune_offsets(
    log_probs: ArrayLike, y_true: ArrayLike, *, aim: str = MACRO_F1, cost: ArrayLike | None = None, seed: int = 0
) -> TunedRule:
    """Tune offsets for macro-F1, for its mean with kappa, or for the mean cost.

    How much of the fitted offsets to keep, from nothing to all, is chosen by repeated cross-validation on the
    same rows: with few rows of a label the optimum found is mostly luck.

    Args:
        log_probs: Log-probabilities of the labels for validation rows, shape (n, k).
        y_true: Their label indexes, shape (n,).
        aim: `macro_f1`, `balanced` (the mean of macro-F1 and kappa) or `cost`.
        cost: For `cost`, the cost of each mistake, shape (k, k), rows true labels.
        seed: Of the folds.

    Returns:
        The rule and its cross-validated worth: of the aim, or minus the mean cost.

    Raises:
        ValueError: If the aim is unknown, or costs are given for another aim, or lacking.
    """
    z, y = np.asarray(log_probs, dtype=np.float64), np.asarray(y_true, dtype=np.int64)
    k = z.shape[1]
    if aim not in {MACRO_F1, BALANCED, COST} or (aim == COST) != (cost is not None):
        raise ValueError(f"expected macro_f1, balanced, or cost with costs, got {aim!r}")
    objective = _objective(aim, None if cost is None else np.asarray(cost, dtype=np.float64))
    rng = np.random.default_rng(seed)
    worth = np.zeros(len(_SHRINKS))
    if len(y) < 2 * _FOLDS:
        value = float(objective(confusion_counts(y, z.argmax(axis=1), k)))
        return TunedRule(argmax_rule(k), 0.0, value, value)
    for _ in range(_REPEATS):
        fold = _stratified_folds(y, rng)
        fitted = [_fit_offsets(z[fold != i], y[fold != i], objective) for i in range(_FOLDS)]
        for s, shrink in enumerate(_SHRINKS):
            pred = (z + shrink * np.array(fitted)[fold]).argmax(axis=1)
            worth[s] += objective(confusion_counts(y, pred, k)) / _REPEATS
    best = int(worth.argmax())  # the first of equals: the least change
    offsets = _SHRINKS[best] * _fit_offsets(z, y, objective)
    rule = argmax_rule(k)
    if best > 0:
        rule = DecisionRule(tuple(map(float, offsets)), aim)
    return TunedRule(rule, _SHRINKS[best], float(worth[0]), float(worth[best]))


def _stratified_folds(y: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    order = rng.permutation(len(y))
    order = order[np.argsort(y[order], kind="stable")]
    fold = np.empty(len(y), dtype=np.int64)
    fold[order] = np.arange(len(y)) % _FOLDS
    return fold


def _objective(aim: str, costs: NDArray[np.float64] | None) -> Objective:
    """What is maximised, of counts of shape (..., k, k + 1)."""

    def worth(counts: NDArray[np.int64]) -> NDArray[np.float64]:
        if costs is not None:
            k = costs.shape[0]
            return np.asarray(-(counts[..., :k] * costs).sum(axis=(-2, -1)) / counts.sum(axis=(-2, -1)))
        found = metric_arrays(counts)
        return found["macro_f1"] if aim == MACRO_F1 else (found["macro_f1"] + found["kappa"]) / 2

    return worth


def _fit_offsets(z: NDArray[np.float64], y: NDArray[np.int64], objective: Objective) -> NDArray[np.float64]:
    """Ascend one offset at a time, each by an exact search over all borders between rows."""
    offsets = np.zeros(z.shape[1])
    for _ in range(_ROUNDS):
        before = offsets.copy()
        for label in range(len(offsets)):
            offsets[label] = _best_offset(z, y, offsets, label, objective)
        offsets -= offsets[0]
        if np.abs(offsets - before).max() < 1e-9:
            break
    return offsets


def _best_offset(
    z: NDArray[np.float64],
    y: NDArray[np.int64],
    offsets: NDArray[np.float64],
    label: int,
    objective: Objective,
) -> float:
    """Search the offset of one label; the others stay.

    As the offset rises, rows go over to the label one by one: row i where the offset passes the gap between
    its best other label and this one. So the counts at all offsets are running sums, judged at once.
    """
    n, k = z.shape
    others = z + offsets
    others[:, label] = -np.inf
    rival = others.argmax(axis=1)
    gap = others[np.arange(n), rival] - z[:, label]
    order = np.argsort(gap, kind="stable")
    steps = np.zeros((n + 1, k, k + 1), dtype=np.int64)
    steps[0] = confusion_counts(y, rival, k)
    steps[np.arange(1, n + 1), y[order], rival[order]] -= 1
    steps[np.arange(1, n + 1), y[order], label] += 1
    worth = _smoothed(objective(np.cumsum(steps, axis=0)))
    ends = np.concatenate([[gap[order[0]] - 1.0], gap[order], [gap[order[-1]] + 1.0]])
    between = (ends[1:] + ends[:-1]) / 2
    worth[1:-1][np.diff(gap[order]) <= 0] = -np.inf  # rows of equal gap go over together
    return float(between[worth.argmax()])


def _smoothed(worth: NDArray[np.float64]) -> NDArray[np.float64]:
    """Average over neighbouring borders, so that one lucky row does not decide."""
    half = int(len(worth) ** 0.5 / 4)
    padded = np.pad(worth, half, mode="edge")
    window = np.ones(2 * half + 1) / (2 * half + 1)
    return np.asarray(np.convolve(padded, window, mode="valid"))
