"""The scores of the validation rows, kept beside an adapter: thresholds are chosen on them after training."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_DECIMALS = 6


@dataclass(frozen=True, eq=False)
class ValidationScores:
    """What a model said about the rows that chose its checkpoint; no text.

    Attributes:
        log_probs: Uncalibrated log-probabilities of the labels, shape (n, k).
        classes: True label indexes, shape (n,).
    """

    log_probs: NDArray[np.float64]
    classes: NDArray[np.int64]

    def to_dict(self) -> dict[str, object]:
        """Return what goes to JSON, rounded to six decimals."""
        return {"classes": self.classes.tolist(), "log_probs": np.round(self.log_probs, _DECIMALS).tolist()}


def validation_from_dict(data: Mapping[str, object], n_labels: int) -> ValidationScores:
    """Read what `ValidationScores.to_dict` wrote.

    Args:
        data: The object from JSON.
        n_labels: How many labels there are.

    Returns:
        The scores.

    Raises:
        ValueError: If a part is missing or of the wrong shape or kind.
    """
    log_probs = np.asarray(data.get("log_probs"), dtype=np.float64)
    classes = np.asarray(data.get("classes"), dtype=np.int64)
    if classes.ndim != 1 or not len(classes) or log_probs.shape != (len(classes), n_labels):
        raise ValueError(f"expected log-probabilities of shape (n, {n_labels}) and n classes")
    if not np.isfinite(log_probs).all() or classes.min() < 0 or classes.max() >= n_labels:
        raise ValueError("expected finite log-probabilities and classes among the labels")
    return ValidationScores(log_probs, classes)
