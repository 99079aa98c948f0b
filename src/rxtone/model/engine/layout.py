"""Flat tokens: a batch without padding, and the blocks in which attention runs.

A padded batch of b reviews spends b * max(length) rows on sum(length) tokens. Norms, linear maps and the
feed-forward layer treat every token alike, so they run on one flat (tokens, d_model) matrix, in which the
reviews lie one after another, shortest first. Only attention looks across tokens; it runs on blocks of
neighbouring reviews. A block of reviews of one length is a plain view of the flat rows. A block of similar
lengths, made only where the reviews are so short that the calls would cost more than the arithmetic, is
padded and masked. Cross-attention has few queries, so padding costs it little and calls cost it much: its
blocks are wider, and padded once for all layers.

All layers of T5's encoder share the relative position bias of the first, so bias and mask are built once per
block and batch; the reference adds mask to bias in every layer.

A GPU wants few large kernels, and the same ones again: ``fixed_layout`` lays a batch out so that the shape of every
tensor follows from three numbers (rows, reviews, longest), which ``fill`` rounds up. Filler reviews make up the rest.
They are computed like reviews and nobody reads them: whatever loss is taken of the others, theirs is a gradient of
zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_CELLS = 1 << 19  # attention scores of a block over all heads: 1 MiB in bf16, a core's second-level cache
_GPU_CELLS = 1 << 26  # a GPU's kernels are worth their launch when they are large
_GPU_MULTIPLE = 16  # lengths of a GPU's blocks: its attention kernel reads biases in aligned vectors
_STEP = 256  # rows of a filled batch are rounded up to a multiple of this, or of an eighth of them
_MAX_WASTE = 1.2  # padded cells of a block over its real cells
_MAX_PADDING = 1.5  # padded rows of a block of cross-attention over its real rows


@dataclass(frozen=True)
class Block:
    """Neighbouring reviews whose attention is computed together.

    Attributes:
        first: Index of the first review, in sorted order.
        reviews: How many reviews.
        start: First flat row.
        stop: One past the last flat row.
        length: Longest review.
        gather: Flat row of every padded cell (reviews * length,), 0-th row for padding; None where all
            lengths agree.
        scatter: Padded cell of every flat row (stop - start,); None where all lengths agree.
        padding: True for padding (reviews, length); None where all lengths agree.

    A block of a ``fixed_layout`` has all three, padded or not.
    """

    first: int
    reviews: int
    start: int
    stop: int
    length: int
    gather: Tensor | None
    scatter: Tensor | None
    padding: Tensor | None

    def pad(self, rows: Tensor, *, zero: bool = False) -> Tensor:
        """View or gather flat rows as (reviews, length, width).

        Args:
            rows: (tokens, width).
            zero: Fill padding with zeros; otherwise it holds arbitrary finite rows.

        Returns:
            (reviews, length, width).
        """
        width = rows.shape[1]
        if self.scatter is None or self.gather is None:
            return rows[self.start : self.stop].view(self.reviews, self.length, width)
        if not zero:
            return rows.index_select(0, self.gather).view(self.reviews, self.length, width)
        padded = rows.new_zeros(self.reviews * self.length, width)
        padded[self.scatter] = rows[self.start : self.stop]
        return padded.view(self.reviews, self.length, width)

    def unpad_to(self, out: Tensor, padded: Tensor, scale: float = 1.0) -> None:
        """Write a padded block into its flat rows.

        Args:
            out: (tokens, width), overwritten from ``start`` to ``stop``.
            padded: (reviews, length, width), any strides over the last two dimensions' factors.
            scale: Multiplies what is written.
        """
        width = out.shape[1]
        target = out[self.start : self.stop]
        if self.scatter is None:
            torch.mul(padded.reshape(-1, width), scale, out=target)
        elif scale == 1.0:
            torch.index_select(padded.reshape(-1, width), 0, self.scatter, out=target)
        else:
            torch.mul(padded.reshape(-1, width).index_select(0, self.scatter), scale, out=target)


@dataclass(frozen=True)
class Blocks:
    """How the reviews of a batch are grouped; either way all of them are covered, in order.

    Attributes:
        attention: For self-attention in the encoder, whose cost grows with the square of the padded length.
        cross: For cross-attention, whose cost grows with the padded length.
    """

    attention: tuple[Block, ...]
    cross: tuple[Block, ...]


@dataclass(frozen=True)
class Layout:
    """How the reviews of a batch lie in the flat rows.

    Attributes:
        order: Position in the caller's batch of every review, shortest first.
        inverse: Position in ``order`` of every review of the caller.
        tokens: Flat position in the caller's tokens of every flat row here.
        blocks: Which reviews attention computes together.
    """

    order: tuple[int, ...]
    inverse: tuple[int, ...]
    tokens: Tensor
    blocks: Blocks


def plan_layout(lengths: Sequence[int], heads: int, device: torch.device) -> Layout:
    """Sort the reviews by length and cut them into attention blocks.

    Args:
        lengths: Tokens of every review, all at least 1.
        heads: Attention heads.
        device: Where the index tensors go.

    Returns:
        The layout.

    Raises:
        ValueError: There is no review, or one without tokens.
    """
    if not lengths or min(lengths) < 1:
        raise ValueError("expected at least one review, each with at least one token (the end-of-sequence token)")
    multiple = _GPU_MULTIPLE if device.type == "cuda" else 1
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    inverse = [0] * len(order)
    for position, review in enumerate(order):
        inverse[review] = position
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    ordered = [lengths[i] for i in order]
    sizes = torch.tensor(ordered)
    shift = torch.tensor([starts[i] for i in order]) - (torch.cumsum(sizes, 0) - sizes)
    tokens = torch.arange(starts[-1]) + torch.repeat_interleave(shift, sizes)
    attention = _blocks(
        ordered, _cuts(ordered, heads, _GPU_CELLS if device.type == "cuda" else _CELLS), device, multiple
    )
    cross = _blocks(ordered, _cross_cuts(ordered), device, 1)
    return Layout(tuple(order), tuple(inverse), tokens.to(device), Blocks(attention, cross))


def fill(lengths: Sequence[int]) -> tuple[list[int], int, int]:
    """Filler reviews that bring a batch to one of a few shapes.

    Args:
        lengths: Tokens of every review, all at least 1.

    Returns:
        Tokens of every review, fillers (of at least one token) last; their sum, the rows; and the length to which the
        longest is rounded up.
    """
    longest = _up(max(lengths), max(32, _eighth(max(lengths)) * 2))
    step = max(_STEP, _eighth(sum(lengths)))
    fillers = -(-(step - 1) // (longest - 1))  # so many hold whatever is missing to the next multiple
    fillers = _up(len(lengths) + fillers, max(1, _eighth(len(lengths)))) - len(lengths)
    rows = _up(sum(lengths) + fillers, step)
    share, more = divmod(rows - sum(lengths), fillers)
    return [*lengths, *(share + (i < more) for i in range(fillers))], rows, longest


def _up(number: int, step: int) -> int:
    return -(-number // step) * step


def _eighth(number: int) -> int:
    """An eighth of the power of two at or below a number: rounding up to it adds less than an eighth."""
    return 1 << max(0, number.bit_length() - 4)


def fixed_layout(lengths: Tensor, rows: int, longest: int) -> Blocks:
    """One padded block whose shapes do not depend on the values of the lengths; nothing waits for the device.

    Args:
        lengths: Tokens of every review (reviews,) int64, all at least 1 and at most ``longest``; they sum to ``rows``.
        rows: Of the batch.
        longest: Length of the block.

    Returns:
        That block, for either attention.
    """
    reviews, device = lengths.shape[0], lengths.device
    ends = torch.cumsum(lengths, 0)
    begins = ends - lengths
    positions = torch.arange(longest, device=device)
    padding = positions >= lengths[:, None]
    gather = (begins[:, None] + positions).masked_fill(padding, 0).flatten()
    row = torch.arange(rows, device=device)
    review = torch.searchsorted(ends, row, right=True)
    scatter = row + (torch.arange(reviews, device=device) * longest - begins)[review]
    both = (Block(0, reviews, 0, rows, longest, gather, scatter, padding),)
    return Blocks(both, both)


def _cuts(ordered: Sequence[int], heads: int, cells: int) -> list[int]:
    """Ends of the blocks: as many reviews as fit the cell budget at an acceptable share of padding."""
    cuts, first, real = [], 0, 0
    for index, length in enumerate(ordered):
        reviews = index - first + 1
        padded = reviews * length * length
        if reviews > 1 and (padded * heads > cells or padded > _MAX_WASTE * (real + length * length)):
            cuts.append(index)
            first, real = index, 0
        real += length * length
    cuts.append(len(ordered))
    return cuts


def _cross_cuts(ordered: Sequence[int]) -> list[int]:
    """Ends of the blocks of cross-attention: as few as an acceptable share of padding allows."""
    cuts, first, real = [], 0, 0
    for index, length in enumerate(ordered):
        if index > first and (index - first + 1) * length > _MAX_PADDING * (real + length):
            cuts.append(index)
            first, real = index, 0
        real += length
    cuts.append(len(ordered))
    return cuts


def _blocks(ordered: Sequence[int], cuts: Sequence[int], device: torch.device, multiple: int) -> tuple[Block, ...]:
    blocks: list[Block] = []
    first, row = 0, 0
    for stop in cuts:
        blocks.append(_block(ordered[first:stop], first, row, device, multiple))
        first, row = stop, blocks[-1].stop
    return tuple(blocks)


def _block(lengths: Sequence[int], first: int, row: int, device: torch.device, multiple: int) -> Block:
    count, longest, total = len(lengths), _up(lengths[-1], multiple), sum(lengths)
    if lengths[0] == longest:
        return Block(first, count, row, row + total, longest, None, None, None)
    sizes = torch.tensor(lengths)
    positions = torch.arange(longest)
    padding = positions >= sizes[:, None]
    begins = row + torch.cumsum(sizes, 0) - sizes
    gather = torch.where(padding, row, begins[:, None] + positions).flatten()
    scatter = torch.nonzero(~padding.flatten()).flatten()
    return Block(first, count, row, row + total, longest, gather.to(device), scatter.to(device), padding.to(device))


def relative_bias(table: Tensor, length: int, *, bidirectional: bool, buckets: int, max_distance: int) -> Tensor:
    """T5's relative position bias (Raffel et al. 2020, section 2.1; the bucket rule of Mesh TensorFlow).

    The bias depends on key minus query alone, so it is computed for the 2 * length - 1 offsets and laid out
    as a Toeplitz matrix.

    Args:
        table: (buckets, heads).
        length: Query and key positions.
        bidirectional: Whether half of the buckets stand for keys after the query (the encoder).
        buckets: Number of buckets.
        max_distance: Distance from which all positions share the last bucket.

    Returns:
        (heads, length, length), contiguous: head, query, key.
    """
    offset = torch.arange(1 - length, length, device=table.device)
    bucket = torch.zeros_like(offset)
    if bidirectional:
        buckets //= 2
        bucket = (offset > 0).long() * buckets
        distance = offset.abs()
    else:
        distance = -offset.clamp(max=0)
    exact = buckets // 2
    steps = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact) * (buckets - exact)
    far = (exact + steps.long()).clamp(max=buckets - 1)
    bucket = bucket + torch.where(distance < exact, distance, far)
    by_offset = table.detach()[bucket].t().contiguous()
    # Row i of the windows starts at offset i - (length - 1), the row of query length - 1 - i.
    return by_offset.unfold(1, length, 1).flip(1)


def block_bias(bias: Tensor, block: Block) -> Tensor:
    """Cut the shared bias to a block and mask its padding.

    Args:
        bias: (heads, longest, longest).
        block: The block.

    Returns:
        (1, heads, length, length), or (reviews, heads, length, length) where the block has padding.
    """
    own = bias[None, :, : block.length, : block.length]
    if block.padding is None:
        return own
    return own.masked_fill(block.padding[:, None, None, :], -math.inf)
