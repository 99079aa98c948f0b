"""Labels that a model, trained without the row, contradicts with confidence."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rxtone.errors import DataError


@dataclass(frozen=True)
class Suspect:
    """A row whose text contradicts its label.

    Attributes:
        row: The data row, from 1.
        label: The label given.
        suggested: The label that the model prefers.
        given_probability: The probability of the label given.
        suggested_probability: The probability of the label preferred.
        distance: How far the two labels are apart in the order of the recipe.
    """

    row: int
    label: str
    suggested: str
    given_probability: float
    suggested_probability: float
    distance: int


def suspect_labels(
    codes: npt.NDArray[np.int64],
    probabilities: npt.NDArray[np.float64],
    labels: Sequence[str],
    rows: Sequence[int],
) -> list[Suspect]:
    """Find label errors by confident learning (Northcutt, Jiang and Chuang 2021: the confident joint).

    A row counts for a label when its probability reaches the mean probability of that label among the rows
    that have it; a row that counts for another label than its own, and more so, is suspect.

    Args:
        codes: The given labels as indexes (n,).
        probabilities: Out-of-fold probabilities (n, labels): no row was seen by the model that scored it.
        labels: The label words.
        rows: The data row of each review (n,), from 1.

    Returns:
        The suspects, those with the largest difference of the two probabilities first.

    Raises:
        DataError: The probabilities do not fit the rows and labels, or are none.
    """
    expected = (codes.size, len(labels))
    if probabilities.shape != expected:
        raise DataError(f"expected out-of-fold probabilities of shape {expected}, found {probabilities.shape}.")
    if not (np.isfinite(probabilities).all() and np.allclose(probabilities.sum(axis=1), 1, atol=1e-3)):
        raise DataError("expected out-of-fold probabilities that are finite and sum to 1 in every row.")
    present = np.array([(codes == code).any() for code in range(len(labels))])
    thresholds = np.array(
        [probabilities[codes == code, code].mean() if present[code] else np.inf for code in range(len(labels))]
    )
    reached = np.where(probabilities >= thresholds, probabilities, -1.0)
    preferred = reached.argmax(axis=1)
    given = probabilities[np.arange(codes.size), codes]
    best = probabilities[np.arange(codes.size), preferred]
    is_suspect = (reached.max(axis=1) >= 0) & (preferred != codes) & (best > given)
    order = sorted(np.flatnonzero(is_suspect).tolist(), key=lambda i: (given[i] - best[i], rows[i]))
    return [
        Suspect(
            row=rows[i],
            label=labels[codes[i]],
            suggested=labels[preferred[i]],
            given_probability=round(float(given[i]), 4),
            suggested_probability=round(float(best[i]), 4),
            distance=abs(int(preferred[i]) - int(codes[i])),
        )
        for i in order
    ]
