"""Linear maps in 8-bit integers on CPUs with VNNI, through oneDNN's kernels as torch ships them.

Weights: symmetric, one scale per output row, made once (this is the one place where the engine copies
weights). Activations: symmetric, one scale per token, made on the fly: T5's activations have tokens a hundred
times larger than others, which one scale per tensor would flatten. The kernel takes one activation scale per
call, so a token's scale s_i is left out of it and multiplied into the token's output row: x_i ~ s_i c_i gives
x_i W^T ~ s_i (c_i W^T). That scale is rounded to bf16 before it is used, so multiplying by it later adds no error
of its own. T5's norm multiplies a row by one number, which joins s_i: no normalised row is written.

Attention, norms and the folded projections of cross-attention stay in the model's dtype.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from rxtone.model.engine.activations import activate, gated
from rxtone.model.engine.norms import inverse_rms
from rxtone.model.engine.plan import Attention, DecoderLayer, EncoderLayer, FeedForward, Linear, Weights

_LEVELS = 127
_TILE = 1 << 17  # elements quantised at a time: their fp32 form is half of a core's second-level cache
_ZERO = 128  # activations are unsigned for the kernel: code 128 is zero
_ROWS = 512  # of the feed-forward layer at a time: below 256 the products wait for their weights
_DTYPES = (torch.bfloat16, torch.float32)


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
    if weights.embedding.dtype not in _DTYPES:
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
    weight = layer.weight.detach().to(torch.float32, copy=True)  # float() of fp32 is the weight itself
    scales = weight.abs().amax(1).clamp_(min=1e-12).div_(_LEVELS)
    codes = weight.div_(scales[:, None]).round_().to(torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(codes, None)
    return replace(layer, int8=Int8Weight(packed, scales, torch.zeros(len(scales), dtype=torch.int32)))


def quantise_rows(x: Tensor, gain: Tensor | None = None, epsilon: float = 0.0) -> Int8Rows:
    """Quantise activations, one scale per row; with ``gain``, those of T5's norm of x.

    A row's norm multiplies it by one number, 1 / sqrt(mean(x**2) + epsilon), which cancels in the codes: it
    goes into the scale, and the normalised row is never written.

    Args:
        x: (rows, width) bf16 or fp32, contiguous.
        gain: Weight of the norm (width,); None quantises x itself.
        epsilon: Of the norm.

    Returns:
        Codes and scales, x (or its norm) ~ (codes - 128) * scales.
    """
    wide_gain = None if gain is None else gain.float()
    parts: list[tuple[Tensor, Tensor]] = []
    for part in x.split(max(1, _TILE // x.shape[1])):
        wide = part.to(torch.float32, copy=True)
        inverse: Tensor | None = None
        if wide_gain is not None:
            inverse = inverse_rms(wide, epsilon)
            wide.mul_(wide_gain)
        parts.append(_codes(wide, inverse))
    if len(parts) == 1:
        return Int8Rows(parts[0][0], parts[0][1].to(x.dtype))
    codes, scales = zip(*parts, strict=True)
    return Int8Rows(torch.cat(codes), torch.cat(scales).to(x.dtype))


def _codes(wide: Tensor, inverse: Tensor | None) -> tuple[Tensor, Tensor]:
    """Codes (rows, width) and scales (rows, 1) of fp32 rows, which are overwritten; ``inverse`` multiplies them."""
    largest = wide.abs().amax(1, keepdim=True)
    if inverse is not None:
        largest.mul_(inverse)
    scale = largest.div_(_LEVELS).clamp_(min=1e-12).to(torch.bfloat16).float()
    factor = scale.reciprocal() if inverse is None else inverse / scale
    # bf16 may round the scale down by 2**-9, which takes 127 to 127.25 at most: codes stay within -127 .. 127.
    signed = wide.mul_(factor).round_().to(torch.int8)
    # Flipping the top bit adds 128; torch converts to int8 with vectors, to uint8 without.
    return signed.view(torch.uint8).bitwise_xor_(_ZERO), scale


def matmul(rows: Int8Rows, weight: Int8Weight) -> Tensor:
    """Multiply quantised rows with a quantised weight.

    Args:
        rows: (rows, in).
        weight: Packed (out, in).

    Returns:
        (rows, out) in the dtype of the rows' scales.
    """
    return _product(rows.codes, weight, rows.scales.dtype).mul_(rows.scales)


def _product(codes: Tensor, weight: Int8Weight, dtype: torch.dtype) -> Tensor:
    kernel = cast(Any, torch.ops.onednn.qlinear_pointwise)
    out: Tensor = kernel(
        codes, 1.0, _ZERO, weight.packed, weight.scales, weight.zeros, None, 1.0, 0, dtype, "none", [], ""
    )
    return out


def feed_forward(h: Tensor, layer: FeedForward, epsilon: float) -> Tensor:
    """The whole feed-forward sublayer, a few rows at a time.

    Between the products stand ten elementwise passes over rows four times as wide as the model. On a tile
    that the cache holds they run in fp32 at a fraction of what they cost over the whole batch, and nothing
    in between is rounded to bf16.

    Args:
        h: Residual stream (rows, d_model).
        layer: Quantised weights.
        epsilon: Of the norm.

    Returns:
        The residual stream after the sublayer (rows, d_model).
    """
    out = torch.empty_like(h)
    for start in range(0, len(h), _ROWS):
        part = h[start : start + _ROWS]
        rows = quantise_rows(part, layer.norm, epsilon)
        scales = rows.scales.float()
        up = _wide(rows.codes, layer.up, scales)
        if layer.gate is None:
            hidden = activate(up, layer.activation)
        else:
            hidden = gated(_wide(rows.codes, layer.gate, scales), up, layer.activation)
        codes, scales = _codes(hidden, None)
        torch.add(part, _wide(codes, layer.down, scales).to(h.dtype), out=out[start : start + _ROWS])
    return out


def _wide(codes: Tensor, layer: Linear, scales: Tensor) -> Tensor:
    assert layer.int8 is not None
    return _product(codes, layer.int8, torch.float32).mul_(scales)
