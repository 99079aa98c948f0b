"""Dropout masks that are parallel, repeatable and need not be stored.

torch draws the random numbers of a CPU dropout one by one (4 to 7 ns an element, whatever the number of
threads); a training step of Flan-T5-base draws some hundred million. Here the random bits of an element are
the exclusive or of three words taken from three tables of true generator output at three random offsets,
which vectorises:

* each bit is uniform, since one uniform word makes an exclusive or uniform;
* two elements share all three words only where two tiles drew the same pair of offset differences (2**26
  pairs against a few hundred tiles a step), so masks of different places are pairwise independent but for
  that chance;
* the tables are redrawn from the generator for every forward, and the offsets are a handful of integers: the
  backward pass makes the same bits again instead of keeping a mask of the size of every activation.

An element is dropped where its bits, read as a floating-point number of the tensor's own width, lie at or
below a threshold: one fused torch kernel (``threshold_backward``) reads value and bits and writes the masked
value. The threshold is the number below which exactly round(p * 2**bits) of the 2**bits patterns lie, so p is
exact to 2**-16 in bf16 and finer in fp32 and fp64. No threshold is a subnormal number, which a processor may be
told to read as zero (``prepare_host`` tells it): rates between 0.4961 and 0.5 become the nearer of the two. Masked
values are not rescaled here: callers fold 1/(1-p) into a factor that they apply anyway.

A GPU draws its random numbers in parallel, and what costs there is the number of kernels and not their
arithmetic: torch's own fused dropout draws, masks and rescales in one, and a byte an element is kept.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

_TABLE_WORDS = 1 << 17  # 64-bit words of a table: 1 MiB, so that the three tables stay in the shared cache
_TILE_WORDS = 1 << 16  # words masked at a time: 512 KiB, half of a core's second-level cache
_ALIGNMENT = 8  # offsets are multiples of a cache line
_MAX_RATE = 0.99
_FORMATS = {  # dtype: bits of a number, those of its mantissa, pattern of infinity, integer and float codes of struct
    torch.bfloat16: (16, 7, 0x7F80, "H", ""),
    torch.float16: (16, 10, 0x7C00, "H", "e"),
    torch.float32: (32, 23, 0x7F800000, "I", "f"),
    torch.float64: (64, 52, 0x7FF0000000000000, "Q", "d"),
}


@dataclass(frozen=True)
class Mask:
    """Where and how much one tensor is dropped.

    Attributes:
        rate: The share of elements that are dropped.
        scale: The factor that masked values still owe, so that their expectation is kept: 1 / (1 - rate), or 1
            where ``apply`` multiplies by it.
        offsets: Of ``TableMasks``: one triple of table offsets (64-bit words) per tile.
        kept: Of ``DrawnMasks``: which elements stay, bool (elements,).
    """

    rate: float
    scale: float
    offsets: tuple[tuple[int, int, int], ...] = ()
    kept: Tensor | None = None


class MaskSource(Protocol):
    """The masks of one forward pass and of its backward pass."""

    def mask(self, elements: int, dtype: torch.dtype, rate: float) -> Mask | None:
        """Draw the mask of a tensor.

        Args:
            elements: How many elements the tensor has.
            dtype: Its dtype.
            rate: The share to drop, at most 0.99.

        Returns:
            The mask, or None where nothing is dropped.

        Raises:
            ValueError: The rate is not in [0, 0.99].
        """

    def apply(self, values: Tensor, mask: Mask | None, *, in_place: bool = False) -> Tensor:
        """Set the dropped elements to zero; what the others owe is ``mask.scale``.

        Args:
            values: A contiguous tensor of the size and dtype that the mask was drawn for.
            mask: What ``mask`` returned; None drops nothing.
            in_place: Overwrite ``values``.

        Returns:
            The masked values; ``values`` itself where the mask is None or ``in_place`` is set.
        """

    def apply_to_both(self, values: Tensor, others: Tensor, mask: Mask | None) -> Tensor:
        """Apply one mask to two tensors, as a backward pass does to a gradient and what it meets.

        Args:
            values: Like those of ``apply``, overwritten.
            others: Likewise, unchanged.
            mask: What ``mask`` returned; None drops nothing.

        Returns:
            The others, masked; ``others`` itself where the mask is None.
        """

    def drop(self, values: Tensor, rate: float, *, in_place: bool = False) -> tuple[Tensor, Mask | None]:
        """Draw a mask and apply it.

        Args:
            values: Contiguous.
            rate: The share to drop, at most 0.99.
            in_place: ``values`` may be overwritten.

        Returns:
            The masked values and the mask (None where nothing is dropped).

        Raises:
            ValueError: The rate is not in [0, 0.99].
        """


def _check_rate(rate: float) -> None:
    if not 0.0 <= rate <= _MAX_RATE:
        raise ValueError(f"expected a dropout rate in [0, {_MAX_RATE}], got {rate}")


def attainable(rate: float, dtype: torch.dtype) -> float:
    """Find the share of bit patterns next to a rate that a threshold cuts off, whether or not subnormals read as zero.

    Those of fp16 never do: processors widen fp16 to fp32, where they are normal.

    Args:
        rate: In (0, 0.99].
        dtype: bfloat16, float16, float32 or float64.

    Returns:
        A multiple of 2**-bits.
    """
    bits, mantissa, infinity, _, _ = _FORMATS[dtype]
    count = max(1, round(rate * (1 << bits)))
    above = infinity + 1 + (1 << mantissa)  # minus infinity .. minus zero, and zero .. the largest subnormal number
    below = above - (2 << mantissa)  # minus infinity .. the least normal number
    if dtype is not torch.float16 and below < count < above:
        count = below if count - below < above - count else above
    return count / (1 << bits)


def threshold(rate: float, dtype: torch.dtype) -> float:
    """Find the number at or below which a share of all bit patterns lies.

    Floating-point numbers are ordered like sign-magnitude integers and comparisons with NaN are false, so
    counting from minus infinity upwards is counting patterns down from that of infinity.

    Args:
        rate: What ``attainable`` gave.
        dtype: bfloat16, float16, float32 or float64.

    Returns:
        The largest number that is dropped (``-inf`` and rate 0 differ by one pattern: ask only for rate > 0).
    """
    bits, _, infinity, integer_code, float_code = _FORMATS[dtype]
    count = round(rate * (1 << bits))
    negatives = infinity + 1  # magnitudes 0 .. infinity
    pattern = (infinity - count + 1) | (1 << (bits - 1)) if count <= negatives else count - negatives - 1
    if dtype is torch.bfloat16:
        return float(struct.unpack("f", struct.pack("I", pattern << 16))[0])
    return float(struct.unpack(float_code, struct.pack(integer_code, pattern))[0])


class TableMasks:
    """A ``MaskSource`` of bits that are combined from tables: for CPUs."""

    def __init__(self, seed: int, device: torch.device) -> None:
        """Fill the tables.

        Args:
            seed: Any non-negative integer; equal seeds give equal masks in equal order of use.
            device: Where the masked tensors live.
        """
        generator = np.random.Generator(np.random.SFC64(seed))
        words = generator.integers(0, 2**64, size=3 * _TABLE_WORDS, dtype=np.uint64).view(np.int64)
        self._tables = torch.from_numpy(words).to(device).view(3, _TABLE_WORDS).unbind()
        self._scratch = torch.empty(_TILE_WORDS, dtype=torch.int64, device=device)
        self._generator = generator

    def mask(self, elements: int, dtype: torch.dtype, rate: float) -> Mask | None:
        """Draw the mask of a tensor, of dtype bfloat16, float16, float32 or float64; see ``MaskSource``."""
        _check_rate(rate)
        if rate == 0.0 or elements == 0:
            return None
        words = -(-elements * dtype.itemsize // 8)
        tiles = -(-words // _TILE_WORDS)
        steps = (_TABLE_WORDS - _TILE_WORDS) // _ALIGNMENT
        drawn = (self._generator.integers(0, steps, size=(tiles, 3)) * _ALIGNMENT).tolist()
        rate = attainable(rate, dtype)
        return Mask(rate, 1.0 / (1.0 - rate), tuple((first, second, third) for first, second, third in drawn))

    def apply(self, values: Tensor, mask: Mask | None, *, in_place: bool = False) -> Tensor:
        """Set the dropped elements to zero, without rescaling the others; see ``MaskSource``."""
        if mask is None:
            return values
        out = values if in_place else torch.empty_like(values)
        self._apply(mask, (values, out))
        return out

    def apply_to_both(self, values: Tensor, others: Tensor, mask: Mask | None) -> Tensor:
        """Apply one mask to two tensors, its bits made once; see ``MaskSource``."""
        if mask is None:
            return others
        out = torch.empty_like(others)
        self._apply(mask, (values, values), (others, out))
        return out

    def drop(self, values: Tensor, rate: float, *, in_place: bool = False) -> tuple[Tensor, Mask | None]:
        """Draw a mask and apply it; see ``MaskSource``."""
        mask = self.mask(values.numel(), values.dtype, rate)
        return self.apply(values, mask, in_place=in_place), mask

    def _apply(self, mask: Mask, *pairs: tuple[Tensor, Tensor]) -> None:
        """Write values, masked, to where they are to go: pairs of one size and dtype."""
        flat = [(source.view(-1), out.view(-1)) for source, out in pairs]
        dtype = flat[0][0].dtype
        limit = threshold(mask.rate, dtype)
        tile = _TILE_WORDS * 8 // dtype.itemsize
        for index, offsets in enumerate(mask.offsets):
            own = slice(index * tile, (index + 1) * tile)
            bits = self._bits(offsets, len(flat[0][0][own]), dtype)
            for source, out in flat:
                torch.ops.aten.threshold_backward.grad_input(source[own], bits, limit, grad_input=out[own])

    def _bits(self, offsets: tuple[int, int, int], elements: int, dtype: torch.dtype) -> Tensor:
        words = -(-elements * dtype.itemsize // 8)
        first, second, third = (
            table[offset : offset + words] for table, offset in zip(self._tables, offsets, strict=True)
        )
        bits = self._scratch[:words]
        torch.bitwise_xor(first, second, out=bits)
        bits.bitwise_xor_(third)
        return bits.view(dtype)[:elements]


class DrawnMasks:
    """A ``MaskSource`` that draws from the device's own generator and keeps the masks: for GPUs.

    Values are rescaled where they are masked: the kernel multiplies anyway.
    """

    def __init__(self, device: torch.device) -> None:
        """Draw from the default generator of a device.

        Args:
            device: Where the masked tensors live.
        """
        self._device = device

    def mask(self, elements: int, dtype: torch.dtype, rate: float) -> Mask | None:
        """Draw the mask of a tensor of any dtype; see ``MaskSource``."""
        _check_rate(rate)
        if rate == 0.0 or elements == 0:
            return None
        kept = torch.empty(elements, dtype=torch.bool, device=self._device).bernoulli_(1.0 - rate)
        return Mask(rate, 1.0, kept=kept)

    def apply(self, values: Tensor, mask: Mask | None, *, in_place: bool = False) -> Tensor:
        """Set the dropped elements to zero and rescale the others; see ``MaskSource``."""
        if mask is None or mask.kept is None:
            return values
        kept, factor = mask.kept.view(values.shape), 1.0 / (1.0 - mask.rate)
        kernel = torch.ops.aten.native_dropout_backward  # it is nothing but values * kept * factor
        out: Tensor = kernel.out(values, kept, factor, out=values) if in_place else kernel(values, kept, factor)
        return out

    def apply_to_both(self, values: Tensor, others: Tensor, mask: Mask | None) -> Tensor:
        """Apply one mask to two tensors; see ``MaskSource``."""
        self.apply(values, mask, in_place=True)
        return self.apply(others, mask)

    def drop(self, values: Tensor, rate: float, *, in_place: bool = False) -> tuple[Tensor, Mask | None]:
        """Draw a mask and apply it, in one kernel; see ``MaskSource``."""
        _check_rate(rate)
        if rate == 0.0 or values.numel() == 0:
            return values, None
        out, kept = torch.ops.aten.native_dropout(values, rate, True)
        return out, Mask(rate, 1.0, kept=kept.view(-1))
