"""Probabilities that mean what they say: temperature and vector scaling, and how far off they are.

Temperature and vector scaling follow Guo et al. (2017), On calibration of modern neural networks. They are
fitted on validation reviews; because those also chose the checkpoint, figures to report are taken on others.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize, minimize_scalar
from scipy.special import log_softmax

Method = Literal["none", "temperature", "vector"]
METHODS: tuple[Method, ...] = ("none", "temperature", "vector")

# Parameters are drawn to "no change" like one observation would: without it, a validation set without errors
# asks for infinite confidence. With some hundreds of reviews it changes the third digit at most.
_PRIOR_ROWS = 1.0
_FOLDS = 5


@dataclass(frozen=True)
class Calibration:
    """A map from the scores of labels to calibrated probabilities: softmax(scale * log p + bias).

    Attributes:
        method: How it was fitted.
        scale: One positive factor per label; 1 / temperature for all of them in temperature scaling.
        bias: One summand per label; 0 in temperature scaling.
    """

    method: Method
    scale: tuple[float, ...]
    bias: tuple[float, ...]

    def log_probabilities(self, log_probs: ArrayLike) -> NDArray[np.float64]:
        """Calibrate scores.

        Args:
            log_probs: Log-probabilities of the labels, shape (n, k).

        Returns:
            Calibrated log-probabilities, shape (n, k).
        """
        z = np.asarray(log_probs, dtype=np.float64) * np.array(self.scale) + np.array(self.bias)
        return np.asarray(log_softmax(z, axis=-1), dtype=np.float64)

    def probabilities(self, log_probs: ArrayLike) -> NDArray[np.float64]:
        """Calibrate scores.

        Args:
            log_probs: Log-probabilities of the labels, shape (n, k).

        Returns:
            Calibrated probabilities, shape (n, k); each row sums to 1.
        """
        return np.asarray(np.exp(self.log_probabilities(log_probs)))

    def to_dict(self) -> dict[str, object]:
        """Return what goes to JSON."""
        return {"method": self.method, "scale": list(self.scale), "bias": list(self.bias)}


def identity_calibration(n_labels: int) -> Calibration:
    """Leave probabilities as they are.

    Args:
        n_labels: The number of labels.

    Returns:
        The calibration that only normalises.
    """
    return Calibration("none", (1.0,) * n_labels, (0.0,) * n_labels)


def calibration_from_dict(data: Mapping[str, object]) -> Calibration:
    """Read a calibration that `Calibration.to_dict` wrote.

    Args:
        data: The object from JSON.

    Returns:
        The calibration.

    Raises:
        ValueError: If the method is unknown, or a number is missing, not finite or not allowed.
    """
    method, scale, bias = data.get("method"), data.get("scale"), data.get("bias")
    known = next((name for name in METHODS if name == method), None)
    if known is None:
        raise ValueError(f"calibration method must be one of {', '.join(METHODS)}, got {method!r}")
    if not (isinstance(scale, list) and isinstance(bias, list) and len(scale) == len(bias) > 0):
        raise ValueError("calibration needs the lists scale and bias, of one length, one number per label")
    try:
        numbers = np.array([scale, bias], dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError("calibration scale and bias must be numbers") from None
    if not np.isfinite(numbers).all() or (numbers[0] <= 0).any():
        raise ValueError("calibration scale and bias must be finite, scale above 0")
    return Calibration(known, tuple(map(float, numbers[0])), tuple(map(float, numbers[1])))


def negative_log_likelihood(log_probabilities: ArrayLike, y_true: ArrayLike) -> float:
    """Compute the mean negative log-likelihood of the true labels.

    Args:
        log_probabilities: Shape (n, k), rows normalised.
        y_true: Label indexes, shape (n,).

    Returns:
        In nats per row.
    """
    values = np.asarray(log_probabilities, dtype=np.float64)
    return float(-values[np.arange(len(values)), np.asarray(y_true)].mean())


def fit_temperature(log_probs: ArrayLike, y_true: ArrayLike) -> Calibration:
    """Fit one temperature for all labels: it changes confidence, never the label.

    Args:
        log_probs: Log-probabilities of the labels, shape (n, k).
        y_true: Label indexes, shape (n,).

    Returns:
        The calibration of the least negative log-likelihood.
    """
    z, y = np.asarray(log_probs, dtype=np.float64), np.asarray(y_true)

    def loss(log_scale: float) -> float:
        prior = _PRIOR_ROWS * log_scale**2 / (2 * len(y))
        return negative_log_likelihood(log_softmax(z * np.exp(log_scale), axis=1), y) + prior

    best = minimize_scalar(loss, bounds=(-4.0, 4.0), method="bounded", options={"xatol": 1e-8})
    return Calibration("temperature", (float(np.exp(best.x)),) * z.shape[1], (0.0,) * z.shape[1])


def fit_vector(log_probs: ArrayLike, y_true: ArrayLike) -> Calibration:
    """Fit a factor and a summand per label: it may change the label.

    Args:
        log_probs: Log-probabilities of the labels, shape (n, k).
        y_true: Label indexes, shape (n,).

    Returns:
        The calibration of the least negative log-likelihood.
    """
    z, y = np.asarray(log_probs, dtype=np.float64), np.asarray(y_true)
    n, k = z.shape
    truth = np.eye(k)[y]

    def loss(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        scale, bias = np.exp(parameters[:k]), parameters[k:]
        log_p = log_softmax(z * scale + bias, axis=1)
        error = (np.exp(log_p) - truth) / n
        gradient = np.concatenate([(error * z).sum(axis=0) * scale, error.sum(axis=0)])
        prior = _PRIOR_ROWS / n
        value = negative_log_likelihood(log_p, y) + prior * float(parameters @ parameters) / 2
        return value, gradient + prior * parameters

    start = np.concatenate([np.full(k, np.log(fit_temperature(z, y).scale[0])), np.zeros(k)])
    best = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(-4.0, 4.0)] * k + [(-20.0, 20.0)] * k)
    scale, bias = np.exp(best.x[:k]), best.x[k:] - best.x[k:].mean()
    return Calibration("vector", tuple(map(float, scale)), tuple(map(float, bias)))


def fit_calibration(log_probs: ArrayLike, y_true: ArrayLike, *, seed: int = 0) -> Calibration:
    """Choose and fit a calibration.

    The method is the simplest one whose cross-validated negative log-likelihood is within one standard error
    of the best (Breiman et al. 1984, section 3.4.3).

    Args:
        log_probs: Log-probabilities of the labels for validation reviews, shape (n, k).
        y_true: Their label indexes, shape (n,).
        seed: Of the folds.

    Returns:
        The chosen method, fitted on all rows.
    """
    z, y = np.asarray(log_probs, dtype=np.float64), np.asarray(y_true)
    fits = {"temperature": fit_temperature, "vector": fit_vector}
    if len(y) < 2 * _FOLDS or len(np.unique(y)) < 2:
        return identity_calibration(z.shape[1])
    losses = {"none": _row_losses(identity_calibration(z.shape[1]), z, y)}
    fold = _fold_of_row(y, seed)
    for name, fit in fits.items():
        losses[name] = np.empty(len(y))
        for i in range(_FOLDS):
            held_out = fold == i
            losses[name][held_out] = _row_losses(fit(z[~held_out], y[~held_out]), z[held_out], y[held_out])
    best = min(losses, key=lambda name: float(losses[name].mean()))
    for name in METHODS:
        worse = losses[name] - losses[best]
        if worse.mean() <= worse.std(ddof=1) / len(y) ** 0.5:
            return fits[name](z, y) if name in fits else identity_calibration(z.shape[1])
    return fits[best](z, y)


def _row_losses(calibration: Calibration, z: NDArray[np.float64], y: NDArray[np.int64]) -> NDArray[np.float64]:
    return -calibration.log_probabilities(z)[np.arange(len(y)), y]


def _fold_of_row(y: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Spread each label over the folds; labels with fewer rows than folds are spread as far as they go."""
    order = np.random.default_rng(seed).permutation(len(y))
    order = order[np.argsort(y[order], kind="stable")]
    fold = np.empty(len(y), dtype=np.int64)
    fold[order] = np.arange(len(y)) % _FOLDS
    return fold
