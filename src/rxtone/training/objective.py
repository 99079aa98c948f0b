"""What training minimises.

A loss comes as a sum and the weight it is the sum over, so that accumulation over batches of
different sizes gives the same gradient as one large batch.

With p the softmax over the k label scores and y the true label, the losses over labels are

- `label_ce`: -log p_y;
- `focal`: -(1 - p_y)^gamma log p_y, which turns from what is learned to what is not (Lin et al. 2017);
- `ordinal`: -sum_j |y - j|^power log(1 - p_j), the ordinal log-loss: a far miss costs more than a near one
  (Castagnos, Mihelich, Dognin 2022);
- `cumulative`: the binary cross-entropies of "the label stands at j or before" over the k - 1 places to cut the
  order, as in cumulative link models (McCullagh 1980).

The last two take the labels of the recipe as ordered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from rxtone.errors import RecipeError
from rxtone.model.batches import IGNORE
from rxtone.model.scoring import score_labels, target_token_log_probs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rxtone.model.batches import Batch
    from rxtone.model.scoring import LabelTokens, Scorer


@dataclass(frozen=True)
class Objective:
    """A loss and its settings, as the recipe names them.

    Attributes:
        loss: `token_ce` (every label token and </s>, full vocabulary, as transformers does), or a loss over
            the label scores: `label_ce`, `focal`, `ordinal`, `cumulative`.
        label_smoothing: Share of `label_ce` that is spread over all labels alike.
        focal_gamma: How strongly `focal` turns away from what is learned.
        ordinal_power: Power of the distance in `ordinal`.
    """

    loss: str = "token_ce"
    label_smoothing: float = 0.0
    focal_gamma: float = 2.0
    ordinal_power: float = 1.0


def loss_sum(
    scorer: Scorer,
    batch: Batch,
    classes: torch.Tensor,
    label_tokens: LabelTokens,
    *,
    objective: Objective,
    class_weights: torch.Tensor,
    targets: torch.Tensor | None = None,
) -> tuple[torch.Tensor, float]:
    """The summed, weighted loss of a batch.

    Args:
        scorer: The model, or an engine planned on it.
        batch: Prompts and label tokens of b reviews.
        classes: int64, shape (b,): index of each review's label.
        label_tokens: The k labels.
        objective: What is minimised.
        class_weights: float32, shape (k,).
        targets: float32, shape (b, k): for `label_ce`, the label distribution to be matched in place of the one
            label; None for the label itself.

    Returns:
        The sum (a scalar with a graph) and the total weight: of tokens or of reviews.

    Raises:
        RecipeError: If the loss is unknown.
    """
    weights = class_weights[classes]
    if objective.loss == "token_ce":
        if batch.labels is None:
            msg = "token_ce needs label tokens; this batch has none"
            raise RecipeError(msg)
        nll = -target_token_log_probs(scorer, batch, batch.labels)
        token_weights = weights[:, None] * (batch.labels != IGNORE)
        return (nll * token_weights).sum(), float(token_weights.sum())
    losses = label_losses(score_labels(scorer, batch, label_tokens), classes, objective, targets)
    return (losses * weights).sum(), float(weights.sum())


def label_losses(
    scores: torch.Tensor, classes: torch.Tensor, objective: Objective, targets: torch.Tensor | None = None
) -> torch.Tensor:
    """The loss of each review from its label scores.

    Args:
        scores: shape (b, k), up to a constant per review.
        classes: int64, shape (b,): index of each review's label.
        objective: A loss over label scores.
        targets: float32, shape (b, k): what `label_ce` matches in place of the one label; None for the label.

    Returns:
        shape (b,).

    Raises:
        RecipeError: If the loss is unknown.
    """
    log_probs = scores.log_softmax(-1)
    true = log_probs.gather(1, classes[:, None])[:, 0]
    if objective.loss == "label_ce":
        if targets is not None:
            true = (targets * log_probs).sum(1)
        return -(1 - objective.label_smoothing) * true - objective.label_smoothing * log_probs.mean(1)
    if objective.loss == "focal":
        return -((1 - true.exp()) ** objective.focal_gamma) * true
    places = torch.arange(scores.shape[1], device=scores.device)
    if objective.loss == "ordinal":
        distance = (places[None] - classes[:, None]).abs() ** objective.ordinal_power
        return -(distance * _log_one_minus(log_probs)).sum(1)
    if objective.loss == "cumulative":
        before = log_probs.logcumsumexp(1)[:, :-1]
        after = log_probs.flip(1).logcumsumexp(1).flip(1)[:, 1:]
        return -torch.where(classes[:, None] <= places[None, :-1], before, after).sum(1)
    msg = f"train.loss: expected token_ce, label_ce, focal, ordinal or cumulative, got {objective.loss!r}"
    raise RecipeError(msg)


def _log_one_minus(log_probs: torch.Tensor) -> torch.Tensor:
    """log(1 - p) from log p, shape (b, k): as the log-sum of the others, finite where p rounds to 1."""
    k = log_probs.shape[1]
    others = log_probs[:, None, :].expand(-1, k, -1)
    own = torch.eye(k, dtype=torch.bool, device=log_probs.device)
    return others.masked_fill(own, -torch.inf).logsumexp(-1)


def class_weight_vector(
    spec: str | Mapping[str, float] | None, classes: np.ndarray, labels: Sequence[str]
) -> np.ndarray:
    """The weight of each class.

    Args:
        spec: None, `balanced` (n / (k * count), as scikit-learn has it) or label -> weight, for each label
            (a recipe is checked for that).
        classes: int, shape (n,): label indexes of the training reviews.
        labels: The k label words.

    Returns:
        float32, shape (k,).
    """
    if spec is None:
        return np.ones(len(labels), dtype=np.float32)
    if isinstance(spec, str):
        counts = np.bincount(classes, minlength=len(labels))
        # A class without reviews, as in the few steps of `doctor`, weighs nothing.
        return np.where(counts > 0, len(classes) / (len(labels) * np.maximum(counts, 1)), 0.0).astype(np.float32)
    return np.array([spec[label] for label in labels], dtype=np.float32)
