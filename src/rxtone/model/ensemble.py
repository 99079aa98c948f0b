"""Several adapters on one base, asked one after another; their probabilities are averaged.

The mean of probabilities over seeds is the deep ensemble of Lakshminarayanan et al. (2017). The base is in memory
once: each adapter stays beside it, and one at a time is active.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from rxtone.errors import ModelError
from rxtone.model.scoring import LabelTokens, log_probabilities, plan_scorer, score_dataset

if TYPE_CHECKING:
    from collections.abc import Sequence

    from peft import PeftModel

    from rxtone.model.batches import ReviewDataset


class Ensemble(torch.nn.Module):
    """Adapters on one base where a torch model is expected; it scores labels and does nothing else.

    Args:
        model: The base with all adapters.
        adapters: The names of the n adapters.
        label_tokens: The k labels.
        engine: `fast` or `reference`.
    """

    def __init__(self, model: PeftModel, adapters: Sequence[str], label_tokens: LabelTokens, engine: str) -> None:
        super().__init__()
        self.model = model
        self.config = model.config
        self.adapters = tuple(adapters)
        self._label_tokens = label_tokens
        self.engine = engine

    def score(self, dataset: ReviewDataset, batch_size: int) -> np.ndarray:
        """Score every review of a dataset.

        Args:
            dataset: n tokenised reviews.
            batch_size: Most reviews per batch.

        Returns:
            float64, shape (n, k): logarithms of the mean probabilities.
        """
        parts = []
        for name in self.adapters:
            self.model.set_adapter(name)
            self.model.requires_grad_(requires_grad=False)
            scorer, _ = plan_scorer(self.model, self.engine)  # planned anew: it reads the active adapter
            pad = int(self.config.pad_token_id)
            scores = score_dataset(scorer, dataset, self._label_tokens, batch_size=batch_size, pad_token_id=pad)
            parts.append(log_probabilities(scores))
        return average(parts)

    def forward(self, *_: object, **__: object) -> torch.Tensor:
        """Refuse: an ensemble has no logits of its own."""
        msg = "an ensemble only scores labels; load one of its members for free generation"
        raise ModelError(msg)

    def generate(self, *_: object, **__: object) -> torch.Tensor:
        """Refuse (see `forward`)."""
        return self.forward()


def average(log_probs: Sequence[np.ndarray]) -> np.ndarray:
    """Log of the mean probability, from m arrays of log-probabilities of shape (n, k)."""
    mean: np.ndarray = np.logaddexp.reduce(np.stack(log_probs), axis=0) - np.log(len(log_probs))
    return mean
