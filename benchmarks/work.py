"""How much work is done: operations of matrix products, kernel calls, bytes allocated, random draws.

    python -m benchmarks.work [--size small] [--reviews 8]

Counts do not depend on the machine or its load, so they can be asserted where times cannot: the tests hold
the ratios printed here loosely.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks import contenders, peers
from benchmarks.common import publish, set_up, table

_PRODUCTS = {
    "mm",
    "addmm",
    "addmm_",
    "bmm",
    "baddbmm",
    "baddbmm_",
    "_linear_pointwise",
    "_scaled_dot_product_flash_attention_for_cpu",
}
_RANDOM = {"bernoulli_", "native_dropout", "rand", "rand_like", "uniform_", "randint", "random_"}


@dataclass
class Work:
    """Counts of one piece of work."""

    operations: int = 0
    calls: int = 0
    bytes: int = 0
    draws: int = 0


class WorkCounter(TorchDispatchMode):
    """Counts what passes through torch's dispatcher on this thread, backward passes included."""

    def __init__(self) -> None:
        """Start at zero."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.work = Work()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run one operator and count it."""
        with self:  # inference mode hands over composite operators whole
            out = func.decompose(*args, **(kwargs or {}))
        if out is not NotImplemented:
            return out
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.work.calls += 1
        tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
        if name in _PRODUCTS:
            self.work.operations += _operations(name, tensors)
        if name in _RANDOM and isinstance(out, Tensor):
            self.work.draws += out.numel()
        given = tree_leaves((args, kwargs or {}))  # outputs written in place come as keywords
        known = {leaf.untyped_storage().data_ptr() for leaf in given if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.untyped_storage().data_ptr() not in known:
                self.work.bytes += leaf.untyped_storage().nbytes()
        return out


def _operations(name: str, tensors: list[Tensor]) -> int:
    """Two per multiplication of a matrix product; both products of a fused attention."""
    if name.startswith("_scaled"):
        query, key, value = tensors[:3]
        return 2 * query.numel() * key.shape[-2] + 2 * query.shape[:-1].numel() * value.shape[-2] * value.shape[-1]
    left, right = tensors[-2:]
    if name == "_linear_pointwise":  # its weight comes transposed
        return 2 * left.numel() * right.shape[0]
    return 2 * left.numel() * right.shape[-1]


def count(run: Callable[[], object]) -> Work:
    """Count the work of a call.

    Args:
        run: The call.

    Returns:
        The counts.
    """
    counter = WorkCounter()
    with counter:
        run()
    return counter.work


def main() -> None:
    """Count, print and write."""
    bench = set_up(__doc__, reviews=8, rounds=1)
    folder, prompts, reviews = bench.folder, bench.prompts, bench.opts.reviews
    half = peers.load_base(folder, torch.bfloat16).eval()
    works = {
        "tutorial loop, training": count(peers.tutorial(folder, prompts)[0]),
        "rxtone, training": count(contenders.training(folder, prompts)[0]),
        "transformers one step, inference": count(peers.best_transformers(half, prompts, size=8)),
        "rxtone bf16, inference": count(contenders.scoring(half, prompts, int8=False)),
    }
    rows = [["work", "GFLOP/review", "kernel calls", "MiB allocated/review", "M random draws/review"]]
    for name, work in works.items():
        rows.append(
            [
                name,
                f"{work.operations / 1e9 / reviews:.1f}",
                str(work.calls),
                f"{work.bytes / 2**20 / reviews:.0f}",
                f"{work.draws / 1e6 / reviews:.2f}",
            ]
        )
    found = {"work": {name: vars(work) for name, work in works.items()}}
    publish(bench, "work", "work per review", found, table(rows))


if __name__ == "__main__":
    main()
