"""CUDA graphs: a pass is recorded once for each shape, then replayed by one call.

A training step of Flan-T5-base on eight reviews is some thousand kernels of a few microseconds each. Python and the
driver take longer to launch them than a large GPU to compute them, so it waits for its host. A CUDA graph holds the
launches of a whole pass. It is bound to shapes and addresses: ``layout.fill`` rounds every batch up to one of a few
shapes, inputs are copied to where the graph reads them, results are copied from where it writes them. The adapters
and the frozen weights are read in place, so an optimiser step is seen by the next replay, as it is without a graph.

A shape is computed without a graph when it comes for the first time, and recorded when it comes again: a shape that
never returns is not worth the recording. Both ways are the same operations on the same numbers. Dropout draws from
the device's default generator, whose state a replay reads and moves on as the kernels would one by one.

All passes with gradients share their memory, and so do all without: one is computed at a time. A backward therefore
has to come before the next forward; a later one is refused, not answered with the numbers of another batch.
"""

from __future__ import annotations

import gc
import threading
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the customary name
from torch import Tensor
from torch.autograd.function import once_differentiable

from rxtone.model.batches import IGNORE
from rxtone.model.engine.layout import Blocks, fill, fixed_layout
from rxtone.model.engine.plan import Weights, aliased

_MOST = 96  # graphs at a time: each holds some thousand launches, a few MB

Compute = Callable[[Tensor, Blocks, Tensor | None], Tensor]
"""Flat ids (rows,), blocks, targets (reviews, positions) -> something of every review, in the blocks' order."""


@dataclass(frozen=True)
class Inputs:
    """A filled batch on the device.

    Attributes:
        ids: Flat prompt tokens (rows,).
        lengths: Tokens of every review (reviews,), fillers last.
        targets: Target tokens (reviews, positions), or None.
        longest: Length of the block.
    """

    ids: Tensor
    lengths: Tensor
    targets: Tensor | None
    longest: int

    @property
    def shape(self) -> tuple[int, ...]:
        """What a recording is bound to: rows, reviews, the block's length, positions (0 without targets)."""
        positions = 0 if self.targets is None else self.targets.shape[1]
        return self.ids.shape[0], self.lengths.shape[0], self.longest, positions

    def compute(self, compute: Compute) -> Tensor:
        """Compute something of every review, fillers included."""
        blocks = fixed_layout(self.lengths, self.ids.shape[0], self.longest)
        return compute(self.ids, blocks, self.targets)

    def take(self, other: Inputs) -> None:
        """Copy a batch of the same shape to where this one lies."""
        self.ids.copy_(other.ids)
        self.lengths.copy_(other.lengths)
        if self.targets is not None and other.targets is not None:
            self.targets.copy_(other.targets)

    def clone(self) -> Inputs:
        """A copy of its own."""
        targets = None if self.targets is None else self.targets.clone()
        return Inputs(self.ids.clone(), self.lengths.clone(), targets, self.longest)


def filled(ids: Tensor, lengths: Sequence[int], targets: Tensor | None, pad: int) -> Inputs:
    """Round a batch up to one of a few shapes.

    Args:
        ids: Flat prompt tokens (tokens,).
        lengths: Tokens of every prompt; they sum to ``tokens``.
        targets: (reviews, positions), or None.
        pad: Token of the fillers.

    Returns:
        The batch with its fillers, which have no targets.

    Raises:
        ValueError: There is no review, or one without tokens.
    """
    if not lengths or min(lengths) < 1:
        raise ValueError("expected at least one review, each with at least one token (the end-of-sequence token)")
    all_lengths, rows, longest = fill(lengths)
    sizes = torch.tensor(all_lengths)
    if ids.is_cuda:  # from pinned memory, which the host need not wait for
        sizes = sizes.pin_memory().to(ids.device, non_blocking=True)
    if targets is not None:
        targets = F.pad(targets, (0, 0, 0, len(all_lengths) - len(lengths)), value=IGNORE)
    return Inputs(F.pad(ids, (0, rows - len(ids)), value=pad), sizes, targets, longest)


class Graphs:
    """The recorded passes of an engine.

    Args:
        records: Whether to record at all; otherwise batches are only filled up.
    """

    def __init__(self, *, records: bool = True) -> None:
        self.turn = 0  # counts forwards with gradients
        self._seen: set[Hashable] = set()
        self._graphs: dict[Hashable, _Graph] = {}
        self._pools: dict[bool, Any] = {}
        self._stream: torch.cuda.Stream | None = None
        self._lock = threading.Lock()
        self._records = records

    def run(self, kind: Hashable, compute: Callable[[Weights], Compute], inputs: Inputs, weights: Weights) -> Tensor:
        """Compute something of every review.

        Args:
            kind: Equal for calls that differ in nothing but reviews and the values of weights.
            compute: What is computed with given weights; each review's depends on its own tokens alone.
            inputs: A filled batch.
            weights: Of the model, the same ones at every call.

        Returns:
            (reviews, ...), fillers included, with a graph of autograd where gradients are enabled.
        """
        adapters = tuple(p for p in weights.adapters if p.requires_grad) if torch.is_grad_enabled() else ()
        with self._lock:
            graph = self._find((kind, bool(adapters), inputs.shape), compute, inputs, weights)
            if graph is None:
                return inputs.compute(compute(weights))
            graph.inputs.take(inputs)
            if not adapters:
                graph.forward.replay()
                return graph.out.clone()
            self.turn += 1
            return _Replay.apply(graph, self, self.turn, *adapters)  # type: ignore[no-any-return, no-untyped-call]

    def _find(
        self, key: Hashable, compute: Callable[[Weights], Compute], inputs: Inputs, weights: Weights
    ) -> _Graph | None:
        """The graph of a shape; one that was seen before is recorded, one that is new is not."""
        if key in self._graphs:
            return self._graphs[key]
        if key not in self._seen or not self._records or len(self._graphs) >= _MOST:
            self._seen.add(key)
            return None
        own = aliased(weights)
        adapters = tuple(p for p in own.adapters if p.requires_grad) if torch.is_grad_enabled() else ()
        pool = self._pools.setdefault(bool(adapters), torch.cuda.graph_pool_handle())
        generator = torch.cuda.default_generators[inputs.ids.device.index or 0]
        spare, state = generator.clone_state(), generator.get_state()
        try:
            if self._stream is None:
                self._stream = _warm_stream(inputs, compute(own), adapters)
            graph = _Graph(compute(own), inputs, adapters, self._stream, pool)
        except RuntimeError as error:
            # What was recorded, and a generator that waits for the end of a recording, are of no use any more.
            generator.graphsafe_set_state(spare)
            self._graphs.clear()
            if isinstance(error, torch.OutOfMemoryError):
                raise  # the caller computes a smaller part
            self._records = False
            reason = str(error).strip().splitlines()[0]
            warnings.warn(f"CUDA graphs are off, which costs speed alone: {reason}", RuntimeWarning, stacklevel=4)
            return None
        generator.set_state(state)  # recording has not moved it on
        self._graphs[key] = graph
        return graph


def _warm_stream(inputs: Inputs, compute: Compute, adapters: tuple[Tensor, ...]) -> torch.cuda.Stream:
    """A stream to record on, with what libraries set up on a stream's first use.

    There is one for all graphs: torch's allocator gives no block of one stream to another.
    """
    device = inputs.ids.device
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.inference_mode(mode=False), torch.set_grad_enabled(bool(adapters)), torch.cuda.stream(stream):
        out = inputs.clone().compute(compute)
        if adapters:
            torch.autograd.grad(out, adapters, torch.zeros_like(out), allow_unused=True)
    del out
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()  # nothing but recordings will run on this stream
    return stream


class _Graph:
    """The launches of a forward, and of its backward where there are adapters."""

    def __init__(
        self, compute: Compute, inputs: Inputs, adapters: tuple[Tensor, ...], stream: torch.cuda.Stream, pool: Any
    ) -> None:
        self.compute = compute  # holds tensors that the launches read
        with torch.inference_mode(mode=False), torch.set_grad_enabled(bool(adapters)):
            self.inputs = inputs.clone()
            self.forward = torch.cuda.CUDAGraph()
            with _recording(self.forward, stream, pool):
                self.out = self.inputs.compute(compute)
            if adapters:
                self.grad = torch.zeros_like(self.out)
                self.backward = torch.cuda.CUDAGraph()
                with _recording(self.backward, stream, pool):
                    grads = torch.autograd.grad(self.out, adapters, self.grad, allow_unused=True)
                    self.flat = torch.cat([grad.flatten() for grad in grads if grad is not None])
                pairs = zip(grads, adapters, strict=True)
                self.like = tuple(None if grad is None else adapter for grad, adapter in pairs)
            self.out = self.out.detach()

    def gradients(self, grad: Tensor) -> list[Tensor | None]:
        """Replay the backward; the gradients are views of one tensor of their own."""
        self.grad.copy_(grad)
        self.backward.replay()
        wanted = [adapter for adapter in self.like if adapter is not None]
        parts = iter(self.flat.clone().split([adapter.numel() for adapter in wanted]))
        return [None if own is None else next(parts).view(own.shape).to(own.dtype) for own in self.like]


@contextmanager
def _recording(graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream, pool: Any) -> Iterator[None]:
    """Record what a block launches; unlike ``torch.cuda.graph`` it neither collects garbage nor empties the cache."""
    torch.cuda.synchronize(stream.device)
    collects = gc.isenabled()
    gc.disable()  # what a collection frees may call the driver in a way that breaks a recording
    try:
        with torch.cuda.stream(stream):
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                yield
            except BaseException:
                with suppress(RuntimeError):  # the first error says why
                    graph.capture_end()
                raise
            graph.capture_end()
    finally:
        if collects:
            gc.enable()
    torch.cuda.current_stream(stream.device).wait_stream(stream)


class _Replay(torch.autograd.Function):
    """A recorded forward and backward as one step of autograd."""

    @staticmethod
    def forward(ctx: Any, graph: _Graph, graphs: Graphs, turn: int, *adapters: Tensor) -> Tensor:
        graph.forward.replay()
        ctx.graph, ctx.graphs, ctx.turn = graph, graphs, turn
        return graph.out.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        graph: _Graph = ctx.graph
        if ctx.graphs.turn != ctx.turn:
            raise RuntimeError("the engine's passes share their memory on a GPU: call backward before the next forward")
        ctx.turn = None
        return None, None, None, *graph.gradients(grad)
