"""Reviews to tensors: a torch Dataset with -100 on label padding, and batches in a seeded order.

The order of an epoch is a pure function of (lengths, seed, epoch), so a resumed run finds its place
by counting.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import Dataset

if TYPE_CHECKING:
    from collections.abc import Sequence

IGNORE = -100
"""Label id that no loss counts (torch's and transformers' convention)."""
POOL = 64
"""Batches that are sorted by length together; more saves padding, fewer mixes better."""


@dataclass(frozen=True)
class Batch:
    """A padded batch.

    Attributes:
        input_ids: int64, shape (batch, longest prompt).
        attention_mask: int64, same shape; 1 on real tokens.
        labels: int64, shape (batch, longest label), -100 on padding; None where nothing is known.
        rows: int64, shape (batch,): positions in the dataset.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor | None
    rows: torch.Tensor

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        labels = None if self.labels is None else self.labels.to(device)
        return Batch(self.input_ids.to(device), self.attention_mask.to(device), labels, self.rows)


class ReviewDataset(Dataset[dict[str, torch.Tensor]]):
    """Tokenised reviews as a torch Dataset, usable with any DataLoader and `collate`.

    Args:
        prompts: Token ids of each prompt, </s> included.
        targets: Token ids of each label word, </s> included; None for unlabelled reviews.
    """

    def __init__(self, prompts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]] | None = None) -> None:
        self.prompts = [torch.tensor(ids, dtype=torch.int64) for ids in prompts]
        self.targets = None if targets is None else [torch.tensor(ids, dtype=torch.int64) for ids in targets]
        self.lengths = np.array([len(ids) for ids in prompts], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        item = {"input_ids": self.prompts[index], "row": torch.tensor(index)}
        if self.targets is not None:
            item["labels"] = self.targets[index]
        return item

    def part(self, indexes: np.ndarray) -> ReviewDataset:
        """The reviews at `indexes`, sharing their tokens."""
        targets = None if self.targets is None else [self.targets[int(i)].tolist() for i in indexes]
        return ReviewDataset([self.prompts[int(i)].tolist() for i in indexes], targets)

    def batch(self, indexes: Sequence[int] | np.ndarray, pad_token_id: int) -> Batch:
        """Collate the reviews at `indexes`."""
        return collate([self[int(index)] for index in indexes], pad_token_id)


def collate(items: Sequence[dict[str, torch.Tensor]], pad_token_id: int) -> Batch:
    """Pad items of a `ReviewDataset` to the longest of them.

    Args:
        items: One dictionary per review.
        pad_token_id: Filler of `input_ids`; labels are filled with -100.

    Returns:
        The batch, prompts padded on the right.
    """
    prompts = [item["input_ids"] for item in items]
    input_ids = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True, padding_value=pad_token_id)
    lengths = torch.tensor([len(ids) for ids in prompts])
    mask = (torch.arange(input_ids.shape[1]) < lengths[:, None]).long()
    labels = None
    if "labels" in items[0]:
        targets = [item["labels"] for item in items]
        labels = torch.nn.utils.rnn.pad_sequence(targets, batch_first=True, padding_value=IGNORE)
    return Batch(input_ids, mask, labels, torch.stack([item["row"] for item in items]))


def epoch_batches(
    lengths: np.ndarray, *, batch_size: int, tokens_per_batch: int | None, seed: int, epoch: int
) -> list[np.ndarray]:
    """The batches of one training epoch.

    Args:
        lengths: Prompt lengths in tokens, shape (n,).
        batch_size: Reviews per batch; the cap is four times that where a token budget is given.
        tokens_per_batch: Padded tokens per batch, or None for a fixed number of reviews in random order.
        seed: The run's seed.
        epoch: Which pass this is, from 0.

    Returns:
        Index arrays that together hold every review once.
    """
    generator = np.random.Generator(np.random.PCG64([seed, epoch]))
    order = generator.permutation(len(lengths))
    if tokens_per_batch is None:
        return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    batches: list[np.ndarray] = []
    pool = POOL * batch_size
    for start in range(0, len(order), pool):
        part = order[start : start + pool]
        part = part[np.argsort(lengths[part], kind="stable")]
        batches.extend(_by_budget(part, lengths, tokens_per_batch, 4 * batch_size))
    return [batches[index] for index in generator.permutation(len(batches))]


def scoring_batches(lengths: np.ndarray, *, batch_size: int, tokens_per_batch: int = 16_384) -> list[np.ndarray]:
    """Batches for scoring: longest first, so that a lack of memory shows at once.

    Args:
        lengths: Prompt lengths in tokens, shape (n,).
        batch_size: Most reviews in a batch.
        tokens_per_batch: Most padded tokens in a batch, one review always fitting.

    Returns:
        Index arrays that together hold every review once.
    """
    order = np.argsort(-lengths, kind="stable")
    return list(_by_budget(order, lengths, tokens_per_batch, batch_size))


def _by_budget(order: np.ndarray, lengths: np.ndarray, budget: int, cap: int) -> list[np.ndarray]:
    batches: list[np.ndarray] = []
    start, longest = 0, 0
    for position, index in enumerate(order):
        longest_now = max(longest, int(lengths[index]))
        count = position - start + 1
        if count > 1 and (longest_now * count > budget or count > cap):
            batches.append(order[start:position])
            start, longest_now = position, int(lengths[index])
        longest = longest_now
    if start < len(order):
        batches.append(order[start:])
    return batches
