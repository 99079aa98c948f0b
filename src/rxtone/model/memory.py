"""How much memory was taken, and what happens where it is too short: smaller parts, the same result."""

from __future__ import annotations

import gc
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from rxtone.model.host import release_memory

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


def peak_memory(model: torch.nn.Module) -> int:
    """Highest memory so far.

    Args:
        model: Its device's memory is meant on CUDA, else that of this process.

    Returns:
        Bytes, since the process began or `reset_peak_memory` was called.
    """
    device = next(model.parameters()).device
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        # Linux: ru_maxrss would begin with the memory of the process that started this one.
        lines = Path("/proc/self/status").read_text("utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024  # bytes on macOS, kibibytes elsewhere


def reset_peak_memory() -> bool:
    """Begin to measure peak memory anew.

    Returns:
        False where the system cannot; then no peak of a single trial is known.
    """
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return True
    gc.collect()
    release_memory()  # what was freed and the C library kept belongs to nobody any more
    try:
        Path("/proc/self/clear_refs").write_text("5", "ascii")  # Linux: VmHWM starts again at what is held now
    except OSError:
        return False
    return True
