"""Linear maps in 8-bit integers on CPUs with VNNI, through oneDNN's kernels as torch ships them.

Weights: symmetric, one scale per output row, made once (this is the one place where the engine copies
weights). Activations: symmetric, one scale per token, made on the fly: T5's activations have tokens a hundred
times larger than others, which one scale per tensor would flatten. The kernel takes one activation scale per
call, so a token's scale is left out of it and multiplied into the token's output row. That scale is rounded
to bf16 before it is used, so multiplying by it later adds no error of its own.

Attention, norms and the folded projections of cross-attention stay in the model's dtype.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from rxtone.model.engine.plan import Attention, DecoderLayer, EncoderLayer, FeedForward, Linear, Weights

_LEVELS = 127
_TILE = 1 << 17  # elements quantised at a time: their fp32 form is half of a core's second-level cache
_ZERO = 128  # activations are unsigned for the kernel: code 128 is zero
_SIGN_MASK = {torch.bfloat16: (torch.int16, 0x7FFF), torch.float32: (torch.int32, 0x7FFFFFFF)}


@dataclass(frozen=True)
class Int8Weight:
    """A quantised weight in the kernel's own layout.

    Attributes:
        packed: oneDNN's blocked int8 weight.
        scales: (out,) fp32.
        zeros: (out,) int32, all 0: symmetric.
    """

    packed: Tensor
    scales: Tensor
    zeros: Tensor


@dataclass(frozen=True)
class Int8Rows:
    """Quantised activations.

    Attributes:
        codes: (rows, width) uint8, zero at 128.
        scales: (rows, 1) in the model's dtype.
    """

    codes: Tensor
    scales: Tensor


def why_not(weights: Weights) -> str | None:
    """Say why a model cannot run in int8 here.

    Args:
        weights: Of the model.

    Returns:
        The reason, or None where it can.
    """
    if weights.embedding.device.type != "cpu":
        return f"int8 runs on CPUs; the model is on {weights.embedding.device}"
    if weights.embedding.dtype not in _SIGN_MASK:
        return f"int8 works beside bf16 and fp32; the model is {weights.embedding.dtype}"
    if not torch.cpu._is_vnni_supported():
        return "this CPU has no 8-bit dot products (AVX-VNNI or AVX512-VNNI)"
    if weights.adapters:
        return "an adapter is active; merge it first"
    return None


def quantise(weights: Weights) -> Weights:
    """Quantise every linear map that sees whole rows.

    Args:
        weights: Of a plain or merged model.

    Returns:
        The same records with ``int8`` set on q, k, v, o of self-attention, q and o of cross-attention, and
        the feed-forward maps; everything else is shared.
    """
    encoder = tuple(
        EncoderLayer(_attention(layer.attention), _feed_forward(layer.feed_forward)) for layer in weights.encoder
    )
    decoder = tuple(
        DecoderLayer(
            _attention(layer.attention),
            replace(layer.cross, q=_linear(layer.cross.q), o=_linear(layer.cross.o)),
            _feed_forward(layer.feed_forward),
        )
        for layer in weights.decoder
    )
    return replace(weights, encoder=encoder, decoder=decoder)


def _attention(layer: Attention) -> Attention:
    return replace(layer, q=_linear(layer.q), k=_linear(layer.k), v=_linear(layer.v), o=_linear(layer.o))


def _feed_forward(layer: FeedForward) -> FeedForward:
    gate = None if layer.gate is None else _linear(layer.gate)
    return replace(layer, gate=gate, up=_linear(layer.up), down=_linear(layer.down))


def _linear(layer: Linear) -> Linear:
    weight = layer.weight.detach().float()
    scales = weight.abs().amax(1).clamp_(min=1e-12).div_(_LEVELS)
    codes = weight.div_(scales[:, None]).round_().to(torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(codes, None)
    return replace(layer, int8=Int8Weight(packed, scales, torch.zeros(len(scales), dtype=torch.int32)))


def quantise_rows(x: Tensor) -> Int8Rows:
    """Quantise activations, one scale per row.

    Args:
        x: (rows, width) bf16 or fp32, contiguous.

    Returns:
        Codes and scales, x ~ (codes - 128) * scales.
    """
    rows, width = x.shape
    codes = torch.empty(rows, width, dtype=torch.int8)
    scales = torch.empty(rows, 1, dtype=x.dtype)
    step = max(1, _TILE // width)
    wide = torch.empty(step, width)
    integer, mask = _SIGN_MASK[x.dtype]
    for start in range(0, rows, step):
        part = x[start : start + step]
        # |x| has the bits of x without the sign and orders as integers do: 4 times faster than abs().amax()
        largest = part.view(integer).bitwise_and(mask).amax(1, keepdim=True).view(x.dtype)
        scale = largest.float().div_(_LEVELS).clamp_(min=1e-12).to(torch.bfloat16)
        scaled = wide[: len(part)].copy_(part).mul_(scale.float().reciprocal_())
        # Codes stay within -127 .. 127, also where bf16 rounded the scale down by its 2**-9.
        codes[start : start + step] = scaled.round_()
        scales[start : start + step] = scale
    # Flipping the top bit adds 128; torch converts to int8 with vectors, to uint8 without.
    return Int8Rows(codes.view(torch.uint8).bitwise_xor_(_ZERO), scales)


def matmul(rows: Int8Rows, weight: Int8Weight) -> Tensor:
    """Multiply quantised rows with a quantised weight.

    Args:
        rows: (rows, in).
        weight: Packed (out, in).

    Returns:
        (rows, out) in the dtype of the rows' scales.
    """
    kernel = cast(Any, torch.ops.onednn.qlinear_pointwise)
    out: Tensor = kernel(
        rows.codes, 1.0, _ZERO, weight.packed, weight.scales, weight.zeros, None, 1.0, 0,
        rows.scales.dtype, "none", [], "",
    )  # fmt: skip
    return out.mul_(rows.scales)
