"""What happens where memory is too short: smaller parts, the same result."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence


def out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch says that memory ran out: a device's own type, or the CPU allocator's words."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


def split(batches: Sequence[np.ndarray], parts: int) -> list[np.ndarray]:
    """Each batch in parts of nearly the same size.

    Args:
        batches: Index arrays.
        parts: How many parts each gives; a batch with fewer reviews gives one part a review.

    Returns:
        Index arrays that hold the same reviews in the same order.
    """
    if parts == 1:
        return list(batches)
    return [part for batch in batches for part in np.array_split(batch, min(parts, len(batch)))]
