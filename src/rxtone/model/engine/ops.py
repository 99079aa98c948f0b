"""What all sublayers share, forward and hand-written backward: dropout, softmax and the adapted linear map.

Why by hand: autograd would keep every intermediate (the masked input of each adapter, both sides of each
product, fp32 copies inside the norms) and write each gradient to a tensor of its own. Here a sublayer keeps
what the derivation needs, makes the cheap rest again, and accumulates in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from rxtone.model.engine.activations import activate
from rxtone.model.engine.dropout import Mask, MaskSource
from rxtone.model.engine.int8 import matmul, quantise_rows
from rxtone.model.engine.norms import norm
from rxtone.model.engine.plan import Linear

_ONEDNN_BF16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()  # a CPU with AVX2 alone has no such kernels
_SOFTMAX_STEP, _TAIL = 32, 8  # keys that the CPU's kernel takes at once, and how many more are too many
_FUSED = {"gelu_new": ("gelu", "tanh"), "gelu": ("gelu", "none"), "relu": ("relu", "")}


@dataclass(frozen=True)
class AdapterTape:
    """What an adapter's backward needs beside the input.

    Attributes:
        mask: Of the adapter's input.
        inner: down(dropout(x)) (rows, r).
        down: ``lora_A`` in the dtype of x.
        up: ``lora_B`` in the dtype of x.
    """

    mask: Mask | None
    inner: Tensor
    down: Tensor
    up: Tensor


def _tensor(value: Any) -> Tensor:
    return cast(Tensor, value)


def drop(
    masks: MaskSource | None, values: Tensor, rate: float, *, in_place: bool = False
) -> tuple[Tensor, Mask | None]:
    """Mask a tensor; what it still owes is ``scale_of`` the mask.

    Args:
        masks: The source of masks, None outside training.
        values: Contiguous values.
        rate: Share to drop.
        in_place: ``values`` may be overwritten.

    Returns:
        The masked values and the mask (None where nothing is dropped).
    """
    return (values, None) if masks is None else masks.drop(values, rate, in_place=in_place)


def scale_of(mask: Mask | None) -> float:
    """The factor that a dropped tensor still owes."""
    return 1.0 if mask is None else mask.scale


def masked(masks: MaskSource | None, values: Tensor, mask: Mask | None, scale: float) -> Tensor:
    """Apply a mask that was drawn before, and a factor.

    Args:
        masks: The source of the mask, None outside training.
        values: Unchanged; what comes back may be ``values`` itself.
        mask: The mask, None where nothing is dropped.
        scale: The factor, such as ``scale_of`` the mask.

    Returns:
        The values, masked and multiplied, contiguous.
    """
    out = values.contiguous()
    if masks is not None and mask is not None:
        out = masks.apply(out, mask)
    if scale == 1.0:
        return out
    return torch.mul(out, scale) if out is values else out.mul_(scale)


def softmax(scores: Tensor) -> Tensor:
    """Softmax over the last dimension.

    On CPUs torch's kernel for half precision goes through what a row has beyond a multiple of 32 one by one: up to
    that many numbers cost more than those before them, and two casts cost less.

    Args:
        scores: (..., keys).

    Returns:
        Same shape and dtype.
    """
    slow = scores.device.type == "cpu" and scores.dtype.itemsize == 2 and scores.shape[-1] % _SOFTMAX_STEP >= _TAIL
    if slow:
        return torch.softmax(scores, -1, dtype=torch.float32).to(scores.dtype)
    return torch.softmax(scores, -1)


def linear(x: Tensor, layer: Linear, masks: MaskSource | None) -> tuple[Tensor, AdapterTape | None]:
    """Frozen map plus LoRA pair: x W^T + s * dropout(x) A^T B^T.

    The pair's dropout factor 1 / (1 - p) joins s in the last product, and both products of the pair run in
    the dtype of x: casting x to the adapter's fp32, as PEFT does, would move every activation twice.

    Args:
        x: (rows, in), contiguous.
        layer: The map.
        masks: Source of masks, None outside training.

    Returns:
        y (rows, out) and what ``linear_backward`` needs of the adapter.
    """
    if layer.int8 is not None:
        return matmul(quantise_rows(x), layer.int8), None
    y = x @ layer.weight.t()
    adapter = layer.adapter
    if adapter is None:
        return y, None
    down, up = adapter.down.to(x.dtype), adapter.up.to(x.dtype)
    kept, mask = drop(masks, x, adapter.rate)
    inner = kept @ down.t()
    y.addmm_(inner, up.t(), alpha=adapter.scaling * scale_of(mask))
    return y, AdapterTape(mask, inner, down, up)


def normed_linears(
    h: Tensor, gain: Tensor, epsilon: float, layers: Sequence[Linear], masks: MaskSource | None
) -> tuple[list[Tensor], tuple[AdapterTape | None, ...]]:
    """Several maps of the norm of one input: how both sublayers begin.

    Args:
        h: Residual stream (rows, in), contiguous.
        gain: Weight of the norm (in,).
        epsilon: Of the norm.
        layers: The maps, all quantised or none.
        masks: Source of masks, None outside training.

    Returns:
        Their outputs, and what their backwards need of the adapters.
    """
    if layers[0].int8 is not None:
        rows = quantise_rows(h, gain, epsilon)
        return [matmul(rows, layer.int8) for layer in layers if layer.int8 is not None], (None,) * len(layers)
    x = norm(h, gain, epsilon)
    pairs = [linear(x, layer, masks) for layer in layers]
    return [y for y, _ in pairs], tuple(tape for _, tape in pairs)


def activated_linear(x: Tensor, layer: Linear, activation: str) -> Tensor:
    """act(x W^T) where nothing is kept for a backward.

    In bf16 on a CPU oneDNN applies the activation to the product's fp32 sums before it writes them: a third
    of the cost of torch's own GELU on the written product, and one rounding less.

    Args:
        x: (rows, in), contiguous.
        layer: The map, with or without an adapter.
        activation: T5's name of it.

    Returns:
        (rows, out).
    """
    fuses = x.dtype is torch.bfloat16 and x.device.type == "cpu" and _ONEDNN_BF16
    if fuses and layer.adapter is None and activation in _FUSED:
        kernel = cast(Any, torch.ops.mkldnn._linear_pointwise)
        name, form = _FUSED[activation]
        return _tensor(kernel(x, layer.weight, None, name, [], form))
    return activate(linear(x, layer, None)[0], activation)


def linear_backward(
    grad: Tensor,
    x: Tensor,
    layer: Linear,
    tape: AdapterTape | None,
    masks: MaskSource | None,
    onto: Tensor | None = None,
    *,
    need_input: bool = True,
) -> tuple[Tensor | None, tuple[Tensor, ...]]:
    """Gradients of ``linear``; the frozen weight has none.

    Args:
        grad: Gradient at the output (rows, out).
        x: The input (rows, in).
        layer: The map.
        tape: From ``linear``.
        masks: The source of the forward's masks.
        onto: A gradient of x (rows, in) to accumulate into, overwritten.
        need_input: Whether the gradient of x is wanted.

    Returns:
        The gradient of x (``onto`` where given; None where not needed), and those of A and B where adapted.
    """
    out = onto
    if need_input:
        out = grad @ layer.weight if onto is None else onto.addmm_(grad, layer.weight)
    adapter = layer.adapter
    if adapter is None or tape is None:
        return out, ()
    factor = adapter.scaling * scale_of(tape.mask)
    inner = (grad @ tape.up).mul_(factor)
    kept = x
    if out is not None and need_input:
        through = inner @ tape.down
        if masks is not None:
            kept = masks.apply_to_both(through, x, tape.mask)
        out.add_(through)
    elif masks is not None:
        kept = masks.apply(x, tape.mask)
    grad_down = (inner.t() @ kept).to(adapter.down.dtype)
    grad_up = (grad.t() @ tape.inner).to(adapter.up.dtype).mul_(factor)
    return out, (grad_down, grad_up)
