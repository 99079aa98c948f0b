"""What training minimises.

A loss comes as a sum and the weight it is the sum over, so that accumulation over batches of
different sizes gives the same gradient as one large batch.
"""

from __future__ import annotations

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


def loss_sum(
    scorer: Scorer,
    batch: Batch,
    classes: torch.Tensor,
    label_tokens: LabelTokens,
    *,
    loss: str,
    class_weights: torch.Tensor,
) -> tuple[torch.Tensor, float]:
    """The summed, weighted loss of a batch.

    Args:
        scorer: The model, or an engine planned on it.
        batch: Prompts and label tokens of b reviews.
        classes: int64, shape (b,): index of each review's label.
        label_tokens: The k labels.
        loss: `token_ce` (every label token and </s>, full vocabulary, as transformers does) or
            `label_ce` (cross-entropy of the softmax over the k label scores).
        class_weights: float32, shape (k,).

    Returns:
        The sum (a scalar with a graph) and the total weight: of tokens or of reviews.

    Raises:
        RecipeError: If the loss is unknown.
    """
    weights = class_weights[classes]
    if loss == "token_ce":
        if batch.labels is None:
            msg = "token_ce needs label tokens; this batch has none"
            raise RecipeError(msg)
        nll = -target_token_log_probs(scorer, batch, batch.labels)
        token_weights = weights[:, None] * (batch.labels != IGNORE)
        return (nll * token_weights).sum(), float(token_weights.sum())
    if loss == "label_ce":
        scores = score_labels(scorer, batch, label_tokens)
        nll = torch.nn.functional.cross_entropy(scores, classes, reduction="none")
        return (nll * weights).sum(), float(weights.sum())
    msg = f"train.loss: expected token_ce or label_ce, got {loss!r}"
    raise RecipeError(msg)


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
        return (len(classes) / (len(labels) * counts)).astype(np.float32)
    return np.array([spec[label] for label in labels], dtype=np.float32)
