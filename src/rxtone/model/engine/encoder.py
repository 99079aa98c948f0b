"""The two sublayers of the encoder on flat tokens, forward and backward.

Both map the residual stream h to h + dropout(f(norm(h))). They are autograd functions whose backward is
written out, see ``ops``. What they keep per token and layer: h; q, k, v (by head) and the attention probabilities; the
two (or one) inner activations of the feed-forward layer. Normalised inputs, activations, products and every
mask are made again. Where no gradient is wanted (the lowest adapted sublayer's input, and everything below
it) none is computed.

In fp16 the residual stream is fp32, and so are ``down`` and its input, as in transformers: fp16 cannot hold what comes
of them (66,246 was seen, its largest number is 65,504).

On a GPU in half precision attention is one kernel, torch's memory-efficient one (Rabe and Staats 2021; it takes a
bias and dropout, which its flash kernel does not): probabilities and their masks never reach memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rxtone.model.engine import int8
from rxtone.model.engine.activations import activate, activate_backward, gated, gated_backward
from rxtone.model.engine.dropout import Mask, MaskSource
from rxtone.model.engine.layout import Block, Blocks
from rxtone.model.engine.norms import norm, norm_backward
from rxtone.model.engine.ops import (
    AdapterTape,
    activated_linear,
    drop,
    linear,
    linear_backward,
    masked,
    normed_linears,
    scale_of,
    softmax,
)
from rxtone.model.engine.plan import Attention, FeedForward


@dataclass(frozen=True)
class Pass:
    """What all sublayers of one forward share.

    Attributes:
        blocks: Which of the flat rows attention computes together.
        biases: Position bias and mask of every block of self-attention.
        heads: Attention heads.
        epsilon: Of the norms.
        rate: The model's dropout in this pass: 0 outside training.
        masks: Source of masks; None outside training.
    """

    blocks: Blocks
    biases: tuple[Tensor, ...]
    heads: int
    epsilon: float
    rate: float
    masks: MaskSource | None


_Fused = tuple[Tensor, Tensor, Tensor, Tensor]
"""Output, log-sums of exponentials, and where the random numbers begin (seed and offset): of one block."""


@dataclass(frozen=True)
class _Attended:
    """What the backward of attention needs of a block: heads as ``_split`` lays them, probabilities, their mask."""

    q: Tensor
    k: Tensor
    v: Tensor
    probabilities: Tensor
    mask: Mask | None


@dataclass
class _AttentionTape:
    """What the backward of an attention sublayer needs, freed as the backward reaches it."""

    h: Tensor
    flat: tuple[Tensor, Tensor, Tensor] | None
    context: Tensor | None
    attended: list[_Attended]
    fused: list[_Fused]
    adapters: tuple[AdapterTape | None, ...]
    out: Mask | None


def taken(ctx: Any) -> Any:
    """Take a tape out of its graph node, so that it is freed as the backward proceeds and not at its end.

    Args:
        ctx: The node.

    Returns:
        The tape.

    Raises:
        RuntimeError: A second backward through one forward.
    """
    tape, ctx.tape = ctx.tape, None
    if tape is None:
        raise RuntimeError("the engine's graph allows one backward per forward; run the forward again")
    return tape


def _split(rows: Tensor, block: Block, heads: int, *, zero: bool = False) -> Tensor:
    """Flat rows of a block as (reviews * heads, length, width of a head), contiguous."""
    padded = block.pad(rows, zero=zero)
    reviews, length, width = padded.shape
    return padded.view(reviews, length, heads, width // heads).transpose(1, 2).reshape(-1, length, width // heads)


def _join(out: Tensor, block: Block, values: Tensor, scale: float) -> None:
    """Write (reviews * heads, length, width of a head) back into flat rows."""
    heads = values.shape[0] // block.reviews
    merged = values.view(block.reviews, heads, block.length, -1).transpose(1, 2)
    if block.scatter is None:
        target = out[block.start : block.stop].view(merged.shape)
        torch.mul(merged, scale, out=target)
    else:
        block.unpad_to(out, merged.reshape(block.reviews, block.length, -1), scale)


def _attend(q: Tensor, k: Tensor, v: Tensor, run: Pass, keep: list[_Attended] | None) -> Tensor:
    """softmax(q k^T + bias) v per block; T5 does not scale q."""
    context = torch.empty_like(q)
    for block, bias in zip(run.blocks.attention, run.biases, strict=True):
        queries, keys, values = (_split(t, block, run.heads) for t in (q, k, v))
        scores = torch.bmm(queries, keys.transpose(1, 2))
        scores.view(block.reviews, run.heads, block.length, block.length).add_(bias)
        probabilities = softmax(scores)
        mask = None if run.masks is None else run.masks.mask(probabilities.numel(), q.dtype, run.rate)
        kept = probabilities if mask is None or run.masks is None else run.masks.apply(probabilities, mask)
        _join(context, block, torch.bmm(kept, values), scale_of(mask))
        if keep is not None:
            keep.append(_Attended(queries, keys, values, probabilities, mask))
    return context


def _attend_backward(grad: Tensor, tape: _AttentionTape, run: Pass) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k, v.

    With P = softmax(S), M the mask, c its factor: dV = c (M P)^T dO, dP = c M (dO V^T),
    dS = P (dP - rowsum(dP P)), dQ = dS K, dK = dS^T Q. The bias is frozen and has no gradient.
    """
    grads = [torch.empty_like(grad) for _ in range(3)]
    for block, own in zip(run.blocks.attention, tape.attended, strict=True):
        upper = _split(grad, block, run.heads, zero=True)
        through = torch.bmm(upper, own.v.transpose(1, 2))
        kept = own.probabilities
        if run.masks is not None:
            kept = run.masks.apply_to_both(through, kept, own.mask)
        scale = scale_of(own.mask)
        # dS is linear in dO: the factor c is applied where the block is written back.
        scores = torch.ops.aten._softmax_backward_data(through, own.probabilities, -1, grad.dtype)
        _join(grads[0], block, torch.bmm(scores, own.k), scale)
        _join(grads[1], block, torch.bmm(scores.transpose(1, 2), own.q), scale)
        _join(grads[2], block, torch.bmm(kept.transpose(1, 2), upper), scale)
    return grads[0], grads[1], grads[2]


def _fuses(q: Tensor, run: Pass) -> bool:
    """Whether torch's memory-efficient kernel computes attention: it reads vectors of eight half-precision numbers."""
    aligned = q.shape[1] // run.heads % 8 == 0 and all(block.length % 8 == 0 for block in run.blocks.attention)
    return q.is_cuda and q.dtype in (torch.bfloat16, torch.float16) and aligned


def _by_head(rows: Tensor, block: Block, heads: int, *, zero: bool = False) -> Tensor:
    """Flat rows of a block as a view (reviews, heads, length, width of a head)."""
    padded = block.pad(rows, zero=zero)
    return padded.view(block.reviews, block.length, heads, -1).transpose(1, 2)


def _attend_fused(q: Tensor, k: Tensor, v: Tensor, run: Pass, keep: list[_Fused] | None) -> Tensor:
    """``_attend`` in one kernel a block."""
    context = torch.empty_like(q)
    rate = 0.0 if run.masks is None else run.rate
    for block, bias in zip(run.blocks.attention, run.biases, strict=True):
        heads = [_by_head(rows, block, run.heads) for rows in (q, k, v)]
        wide = bias.expand(block.reviews, -1, -1, -1)
        kept: _Fused = torch.ops.aten._scaled_dot_product_efficient_attention(
            *heads, wide, keep is not None, rate, scale=1.0
        )
        block.unpad_to(context, kept[0].transpose(1, 2).reshape(block.reviews, block.length, -1))
        if keep is not None:
            keep.append(kept)
    return context


def _attend_fused_backward(grad: Tensor, tape: _AttentionTape, run: Pass) -> tuple[Tensor, Tensor, Tensor]:
    """``_attend_backward`` in one kernel a block."""
    assert tape.flat is not None
    grads = [torch.empty_like(grad) for _ in range(3)]
    rate = 0.0 if run.masks is None else run.rate
    for block, bias, (out, sums, seed, offset) in zip(run.blocks.attention, run.biases, tape.fused, strict=True):
        upper = _by_head(grad, block, run.heads, zero=True)
        heads = [_by_head(rows, block, run.heads) for rows in tape.flat]
        wide = bias.expand(block.reviews, -1, -1, -1)
        found = torch.ops.aten._scaled_dot_product_efficient_attention_backward(
            upper, *heads, wide, out, sums, seed, offset, rate, [True, True, True, False], scale=1.0
        )
        for target, own in zip(grads, found[:3], strict=True):
            block.unpad_to(target, own.transpose(1, 2).reshape(block.reviews, block.length, -1))
    return grads[0], grads[1], grads[2]


def _attention(h: Tensor, layer: Attention, run: Pass, *, keep: bool) -> tuple[Tensor, _AttentionTape | None]:
    (q, k, v), tapes = normed_linears(h, layer.norm, run.epsilon, (layer.q, layer.k, layer.v), run.masks)
    attended: list[_Attended] = []
    fused: list[_Fused] = []
    flat: tuple[Tensor, Tensor, Tensor] | None = None
    if _fuses(q, run):
        flat = (q, k, v)
        context = _attend_fused(q, k, v, run, fused if keep else None)
    else:
        context = _attend(q, k, v, run, attended if keep else None)
    out, o_tape = linear(context, layer.o, run.masks)
    out, mask = drop(run.masks, out, run.rate, in_place=True)
    result = torch.add(h, out, alpha=scale_of(mask))
    if not keep:
        return result, None
    wanted = context if layer.o.adapter is not None else None
    return result, _AttentionTape(h, flat, wanted, attended, fused, (*tapes, o_tape), mask)


class AttentionSublayer(torch.autograd.Function):
    """h + dropout(o(attention(norm(h))))."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, layer: Attention, run: Pass, *adapters: Tensor) -> Tensor:
        """Run the sublayer and keep its tape."""
        result, ctx.tape = _attention(h, layer, run, keep=True)
        ctx.layer, ctx.run = layer, run
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """Gradients of h and of the adapters."""
        tape: _AttentionTape = taken(ctx)
        layer: Attention = ctx.layer
        run: Pass = ctx.run
        need = bool(ctx.needs_input_grad[0])
        q_tape, k_tape, v_tape, o_tape = tape.adapters
        upper = masked(run.masks, grad.to(layer.o.weight.dtype), tape.out, scale_of(tape.out))
        context = upper if tape.context is None else tape.context  # the input of o matters to its adapter alone
        middle, o_grads = linear_backward(upper, context, layer.o, o_tape, run.masks)
        assert middle is not None
        dq, dk, dv = (_attend_fused_backward if tape.fused else _attend_backward)(middle, tape, run)
        x = norm(tape.h, layer.norm, run.epsilon)
        dx, q_grads = linear_backward(dq, x, layer.q, q_tape, run.masks, need_input=need)
        dx, k_grads = linear_backward(dk, x, layer.k, k_tape, run.masks, dx, need_input=need)
        dx, v_grads = linear_backward(dv, x, layer.v, v_tape, run.masks, dx, need_input=need)
        dh = None if dx is None else norm_backward(dx, tape.h, layer.norm, run.epsilon, grad)
        return dh, None, None, *q_grads, *k_grads, *v_grads, *o_grads


@dataclass
class _FeedForwardTape:
    """What the backward of a feed-forward sublayer needs."""

    h: Tensor
    gate: Tensor | None
    up: Tensor
    inner: Mask | None
    out: Mask | None
    adapters: tuple[AdapterTape | None, ...]


def _hidden(gate: Tensor | None, up: Tensor, activation: str) -> Tensor:
    return activate(up, activation) if gate is None else gated(gate, up, activation)


def _feed_forward_without_masks(h: Tensor, layer: FeedForward, run: Pass) -> Tensor:
    """The sublayer where nothing is dropped and nothing kept."""
    if layer.up.int8 is not None:
        return int8.feed_forward(h, layer, run.epsilon)
    x = norm(h, layer.norm, run.epsilon)
    if layer.gate is None:
        hidden = activated_linear(x, layer.up, layer.activation)
    else:
        hidden = activated_linear(x, layer.gate, layer.activation).mul_(linear(x, layer.up, None)[0])
    return torch.add(h, linear(hidden.to(layer.down.weight.dtype), layer.down, None)[0])


def _feed_forward(h: Tensor, layer: FeedForward, run: Pass, *, keep: bool) -> tuple[Tensor, _FeedForwardTape | None]:
    if not keep and run.masks is None:
        return _feed_forward_without_masks(h, layer, run), None
    layers = (layer.up,) if layer.gate is None else (layer.gate, layer.up)
    inputs, tapes = normed_linears(h, layer.norm, run.epsilon, layers, run.masks)
    gate, up = (None, inputs[0]) if layer.gate is None else inputs
    hidden, inner = drop(run.masks, _hidden(gate, up, layer.activation), run.rate, in_place=True)
    out, down_tape = linear(hidden.to(layer.down.weight.dtype), layer.down, run.masks)
    out, mask = drop(run.masks, out, run.rate, in_place=True)
    # down() is linear, adapter included, so the factors of both dropouts meet here.
    result = torch.add(h, out, alpha=scale_of(inner) * scale_of(mask))
    if not keep:
        return result, None
    return result, _FeedForwardTape(h, gate, up, inner, mask, (*tapes, down_tape))


class FeedForwardSublayer(torch.autograd.Function):
    """h + dropout(down(dropout(act(gate(norm(h))) * up(norm(h)))))."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, layer: FeedForward, run: Pass, *adapters: Tensor) -> Tensor:
        """Run the sublayer and keep its tape."""
        result, ctx.tape = _feed_forward(h, layer, run, keep=True)
        ctx.layer, ctx.run = layer, run
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """Gradients of h and of the adapters."""
        tape: _FeedForwardTape = taken(ctx)
        layer: FeedForward = ctx.layer
        run: Pass = ctx.run
        need = bool(ctx.needs_input_grad[0])
        *gate_tapes, up_tape, down_tape = tape.adapters
        wide = layer.down.weight.dtype
        upper = masked(run.masks, grad.to(wide), tape.out, scale_of(tape.inner) * scale_of(tape.out))
        hidden = tape.up
        if layer.down.adapter is not None:
            hidden = _hidden(tape.gate, tape.up, layer.activation)
            if run.masks is not None:
                run.masks.apply(hidden, tape.inner, in_place=True)
        middle, down_grads = linear_backward(upper, hidden.to(wide), layer.down, down_tape, run.masks)
        assert middle is not None
        middle = middle.to(tape.up.dtype)
        if run.masks is not None:
            run.masks.apply(middle, tape.inner, in_place=True)
        needs_x = layer.up.adapter is not None or (layer.gate is not None and layer.gate.adapter is not None)
        x = norm(tape.h, layer.norm, run.epsilon) if needs_x else tape.h
        dx: Tensor | None = None
        gate_grads: tuple[Tensor, ...] = ()
        if layer.gate is None or tape.gate is None:
            dup = activate_backward(middle, tape.up, layer.activation)
        else:
            dgate, dup = gated_backward(middle, tape.gate, tape.up, layer.activation)
            dx, gate_grads = linear_backward(dgate, x, layer.gate, gate_tapes[0], run.masks, need_input=need)
        dx, up_grads = linear_backward(dup, x, layer.up, up_tape, run.masks, dx, need_input=need)
        dh = None if dx is None else norm_backward(dx, tape.h, layer.norm, run.epsilon, grad)
        return dh, None, None, *gate_grads, *up_grads, *down_grads


def attention(h: Tensor, layer: Attention, run: Pass) -> Tensor:
    """Self-attention sublayer of the encoder.

    Args:
        h: Residual stream on flat rows (tokens, d_model).
        layer: Its weights.
        run: What the pass shares.

    Returns:
        The residual stream after the sublayer (tokens, d_model).
    """
    if torch.is_grad_enabled() and (h.requires_grad or any(p.requires_grad for p in layer.parameters)):
        return AttentionSublayer.apply(h, layer, run, *layer.parameters)  # type: ignore[no-any-return, no-untyped-call]
    return _attention(h, layer, run, keep=False)[0]


def feed_forward(h: Tensor, layer: FeedForward, run: Pass) -> Tensor:
    """Feed-forward sublayer; the decoder's differs only in having few rows.

    Args:
        h: Residual stream (rows, d_model).
        layer: Its weights.
        run: What the pass shares.

    Returns:
        The residual stream after the sublayer (rows, d_model).
    """
    if torch.is_grad_enabled() and (h.requires_grad or any(p.requires_grad for p in layer.parameters)):
        return FeedForwardSublayer.apply(h, layer, run, *layer.parameters)  # type: ignore[no-any-return, no-untyped-call]
    return _feed_forward(h, layer, run, keep=False)[0]
