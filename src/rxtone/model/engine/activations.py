"""T5's activations, alone and in the gated form act(gate) * up (Shazeer 2020), forward and backward.

``gelu_new`` is the tanh form of GELU (Hendrycks and Gimpel 2016), x/2 (1 + tanh y) with y = sqrt(2/pi) (x + 0.044715
x**3). On a CPU torch's tanh takes ten times as long as its sigmoid, and 1 + tanh y = 2 sigmoid(2 y). So there the form
is x s with s = sigmoid(2 y), and its derivative s + x s (1 - s) 2 y', both in fp32 on a few rows at a time that a
core's cache holds; everything that shares s is made at once, and nothing in between is rounded to half precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812 - the customary name
from torch import Tensor

_TILE = 1 << 18  # elements at a time: fewer cost more calls than the cache saves
_LINEAR = 2.0 * math.sqrt(2.0 / math.pi)  # 2 y = x (_LINEAR + _CUBIC x**2)
_CUBIC = 0.044715 * _LINEAR

_aten = torch.ops.aten


def activate(x: Tensor, name: str) -> Tensor:
    """Apply T5's activation.

    Args:
        x: (rows, width).
        name: T5's name of it.

    Returns:
        (rows, width).
    """
    if not _by_sigmoid(x, name):
        return _activate(x, name)
    return _in_tiles(_gelu, 1, x)[0]


def activate_backward(grad: Tensor, x: Tensor, name: str) -> Tensor:
    """Gradient of ``activate`` with respect to its input.

    Args:
        grad: Gradient at the output (rows, width).
        x: The input (rows, width).
        name: T5's name of the activation.

    Returns:
        (rows, width).
    """
    if not _by_sigmoid(x, name):
        return _activate_backward(grad, x, name)

    def slope(to: Tensor, upper: Tensor, own: Tensor) -> None:
        torch.mul(_gelu_and_slope(own)[1], upper, out=to)

    return _in_tiles(slope, 1, grad, x)[0]


def gated(gate: Tensor, up: Tensor, name: str) -> Tensor:
    """act(gate) * up.

    Args:
        gate: (rows, width).
        up: (rows, width).
        name: T5's name of the activation.

    Returns:
        (rows, width).
    """
    if not _by_sigmoid(gate, name):
        return _activate(gate, name).mul_(up)

    def product(to: Tensor, own: Tensor, factor: Tensor) -> None:
        _gelu(to, own)
        to.mul_(factor)

    return _in_tiles(product, 1, gate, up)[0]


def gated_backward(grad: Tensor, gate: Tensor, up: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Gradients of ``gated``.

    Args:
        grad: Gradient at the output (rows, width); it may be overwritten.
        gate: (rows, width).
        up: (rows, width).
        name: T5's name of the activation.

    Returns:
        Gradients of gate and of up, (rows, width) each.
    """
    if not _by_sigmoid(gate, name):
        to_up = _activate(gate, name).mul_(grad)
        return _activate_backward(grad.mul_(up), gate, name), to_up

    def both(to_gate: Tensor, to_up: Tensor, upper: Tensor, own: Tensor, factor: Tensor) -> None:
        value, slope = _gelu_and_slope(own)
        torch.mul(slope.mul_(upper), factor, out=to_gate)
        torch.mul(value, upper, out=to_up)

    for_gate, for_up = _in_tiles(both, 2, grad, gate, up)
    return for_gate, for_up


def _in_tiles(compute: Callable[..., None], count: int, *values: Tensor) -> tuple[Tensor, ...]:
    """Compute in fp32, some rows at a time, what concerns every element alone.

    Args:
        compute: Writes its first ``count`` arguments, made of the others; all are fp32.
        count: How many results there are.
        *values: (rows, width) each.

    Returns:
        The results, of the dtype of the values.
    """
    first = values[0]
    results = tuple(torch.empty_like(first) for _ in range(count))
    step = max(1, _TILE // first.shape[1])
    shape = (min(step, len(first)), first.shape[1])
    # fp32 results are written where they belong; others are rounded once, from a tile that the cache still holds.
    scratch = None if first.dtype is torch.float32 else [first.new_empty(shape, dtype=torch.float32) for _ in results]
    for tiles in zip(*(tensor.split(step) for tensor in (*results, *values)), strict=True):
        own, read = tiles[:count], [tile.float() for tile in tiles[count:]]
        if scratch is None:
            compute(*own, *read)
            continue
        wide = [tile[: len(own[0])] for tile in scratch]
        compute(*wide, *read)
        for tile, made in zip(own, wide, strict=True):
            tile.copy_(made)
    return results


def _gelu(to: Tensor, x: Tensor) -> None:
    """Write that of fp32 values, which stay as they are, (rows, width) each."""
    torch.square(x, out=to)
    to.mul_(_CUBIC).add_(_LINEAR).mul_(x).sigmoid_().mul_(x)


def _gelu_and_slope(x: Tensor) -> tuple[Tensor, Tensor]:
    """The same and its derivative."""
    square = x.square()
    share = square.mul(_CUBIC).add_(_LINEAR).mul_(x).sigmoid_()
    value = x * share
    rest = torch.addcmul(value, value, share, value=-1.0)  # x s (1 - s): 0 far out, before it meets x**2
    return value, square.mul_(3.0 * _CUBIC).add_(_LINEAR).mul_(rest).add_(share)


def _by_sigmoid(x: Tensor, name: str) -> bool:
    return name == "gelu_new" and x.device.type == "cpu" and x.dtype is not torch.float64


def _activate(x: Tensor, name: str) -> Tensor:
    match name:
        case "gelu_new":
            return F.gelu(x, approximate="tanh")
        case "gelu":
            return F.gelu(x)
        case "silu":
            return F.silu(x)
        case _:
            return F.relu(x)


def _activate_backward(grad: Tensor, x: Tensor, name: str) -> Tensor:
    match name:
        case "gelu_new":
            out: Any = _aten.gelu_backward(grad, x, approximate="tanh")
        case "gelu":
            out = _aten.gelu_backward(grad, x)
        case "silu":
            out = _aten.silu_backward(grad, x)
        case _:
            out = _aten.threshold_backward(grad, x, 0)
    return cast(Tensor, out)
