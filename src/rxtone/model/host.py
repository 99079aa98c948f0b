"""Settings of the process that make computing on a CPU quick without anyone asking for them."""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch

T = TypeVar("T")

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_KEPT_BYTES = 1 << 30
_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_KERNELS = 64
_KERNEL_CACHES = ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")  # torch's own, and oneDNN's below it


def prepare_host(quota: Path = _QUOTA, *, shapes_return: bool = False) -> None:
    """Fit threads and memory of this process to the machine; for commands, not for libraries.

    * torch counts the cores it may be scheduled on, but not a container's quota: four threads on a quota of one
      core wait for each other most of the time. The number is lowered to the quota, never raised.
    * glibc gives each tensor of more than a few hundred kilobytes back to the kernel and faults it in again at
      the next one, zeroed page by page: 3 to 12% of an inference. Kept, peak memory stays what it was.
    * oneDNN makes a kernel for every shape that it meets, in a fraction of a millisecond, and two caches keep 1,024
      of each kind, half a megabyte apiece. Batches without padding hardly ever have a shape that was there before: a
      training that needs 0.8 GB grew to 2.5. The 64 that are kept now serve the layers of one batch. Who has set the
      caches' variables keeps them; they are read at the first operator.
    * Numbers below 1e-38 are zero: Intel's processors take many times as long over them, and the gradient of peaked
      attention is full of them. What they add is below the rounding of fp32 and moves a run no more than that does.

    Args:
        quota: The container's quota file (cgroup v2); nothing happens where it is absent.
        shapes_return: Whether shapes come again and kernels are to be kept: a server's, of one review at a time.
    """
    for name in () if shapes_return else _KERNEL_CACHES:
        os.environ.setdefault(name, str(_KERNELS))
    torch.set_flush_denormal(True)  # threads have it from the one that starts them, so before there are any
    allowed = quota_cores(quota)
    if allowed is not None and allowed < torch.get_num_threads():
        torch.set_num_threads(allowed)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # another C library keeps its own counsel
        mallopt(_MMAP_THRESHOLD, _KEPT_BYTES)
        mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)


def release_memory() -> None:
    """Give freed memory that glibc keeps for the next tensors back to the system."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def in_passing(work: Callable[[], T]) -> T:
    """Compute something in a thread that ends with it.

    OpenMP keeps a team of threads for every thread that has ever computed. Where the teams together outnumber the
    cores, their members no longer wait awake for the next operator but go to sleep before each: a review of 300
    operators takes half as long again. So a server's other threads must leave no team behind.

    Args:
        work: What to compute.

    Returns:
        Its result; its error is raised here.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(work).result()


def quota_cores(quota: Path) -> int | None:
    """Whole cores that a container may use.

    Args:
        quota: cgroup v2's `cpu.max`: microseconds of processor time per period, or `max`.

    Returns:
        At least 1; None without a limit.
    """
    try:
        share, period = quota.read_text("ascii").split()
        return None if share == "max" else max(1, math.ceil(int(share) / int(period)))
    except (OSError, ValueError):
        return None
