"""T5's norm, forward and backward: a row over its root mean square, without a mean and without a shift."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812 - the customary name
from torch import Tensor

_aten = torch.ops.aten


def norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """T5's norm: x / sqrt(mean(x**2) + epsilon) * weight, over the last dimension, in the dtype of the weight."""
    if x.dtype is torch.float64:
        return _norm_double(x, weight, epsilon)
    if x.is_cuda:
        return F.rms_norm(x, (x.shape[-1],), weight.to(x.dtype), epsilon).to(weight.dtype)
    wide = x.float()  # torch has no kernel of this norm for CPUs and makes eight passes
    return torch.mul(wide, inverse_rms(wide, epsilon)).mul_(weight.float()).to(weight.dtype)


def inverse_rms(x: Tensor, epsilon: float) -> Tensor:
    """What T5's norm multiplies a row by: 1 / sqrt(mean(x**2) + epsilon).

    Args:
        x: (rows, width).
        epsilon: Of the norm.

    Returns:
        (rows, 1) in fp32.
    """
    square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).square_()
    return _tensor(square.div_(x.shape[-1]).add_(epsilon).rsqrt_())


def _norm_double(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """T5 in transformers takes the mean of squares in fp32 whatever the dtype.

    fp64 serves comparisons only, so it follows to the letter; a better mean would hide errors of this size.
    """
    return weight * (x * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + epsilon))


def norm_backward(grad: Tensor, x: Tensor, weight: Tensor, epsilon: float, onto: Tensor | None) -> Tensor:
    """Gradient of ``norm`` with respect to x, added to another gradient.

    With r = 1 / sqrt(mean(x**2) + epsilon), n = x * r and g = grad * weight, the gradient is r * (g - n *
    mean(g * n)). torch has a fused backward of layer norm, r * (g - mean(g) - n * mean(g * n)) for n = (x -
    mean) * r with mean and r as inputs: at mean = 0 it lacks r * mean(g), which is added. On a GPU torch has one of
    this norm itself.

    Args:
        grad: Gradient at the norm's output (rows, width), in the dtype of the weight.
        x: Input of the norm (rows, width).
        weight: (width,).
        epsilon: Of the norm.
        onto: Gradient that reaches x around the norm (rows, width), unchanged; None for none.

    Returns:
        The sum of both gradients (rows, width).
    """
    if x.dtype is torch.float64:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            (out,) = torch.autograd.grad(_norm_double(leaf, weight.detach(), epsilon), leaf, grad)
        return out if onto is None else out.add_(onto)
    grad, weight = grad.to(x.dtype), weight.to(x.dtype)
    width = x.shape[-1]
    if x.is_cuda:
        _, inverse = _aten._fused_rms_norm(x, [width], weight, epsilon)
        (out, _) = _aten._fused_rms_norm_backward(grad, x, [width], inverse, weight, [True, False])
        return _tensor(out) if onto is None else _tensor(out).add_(onto)
    inverse = inverse_rms(x, epsilon)
    zero = torch.zeros_like(inverse)
    out, _, _ = _aten.native_layer_norm_backward(
        grad, x, [width], zero, inverse, weight.float(), None, [True, False, False]
    )
    row = (grad @ weight[:, None]).float().mul_(inverse).div_(width)
    if onto is not None:
        out.add_(onto)
    return out.add_(row.to(out.dtype))  # type: ignore[no-any-return]


def _tensor(value: Any) -> Tensor:
    return cast(Tensor, value)
