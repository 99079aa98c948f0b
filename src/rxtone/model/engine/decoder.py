"""The decoder over a few positions, with cross-attention that never builds keys and values.

The decoder sees one to a few positions per label while the encoder has hundreds of rows, so projecting every
encoder row to a key and a value in every layer (14% of the whole forward in Flan-T5-base) costs far more than
what is done with them. Per head, with encoder rows H, query q and weights Wk, Wv of that head:

    scores = q (H Wk^T)^T = (q Wk) H^T                       fold Wk into the query
    context = P (H Wv^T) = (P H) Wv^T                         apply Wv after the weighted sum

Both are reorderings of one product, exact with attention dropout too (P is then the dropped P). A LoRA pair
on k or v with its own input dropout M adds s (M H) A^T B^T to keys or values; the same reordering keeps only
the r columns z = (M H) A^T per encoder row:

    scores += s (q B) z^T                                     context += s (P z) B^T

Per encoder row and layer this costs 4 * heads * positions * d_model operations instead of 4 * d_model *
inner. A backward through it stores P and z instead of keys and values.

At a single position self-attention has one key: its softmax is 1, and context = v without q and k.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rxtone.model.engine.dropout import Mask, MaskSource
from rxtone.model.engine.encoder import Pass, feed_forward, taken
from rxtone.model.engine.layout import relative_bias
from rxtone.model.engine.norms import norm, norm_backward
from rxtone.model.engine.ops import drop, linear, linear_backward, masked, scale_of
from rxtone.model.engine.plan import Adapter, Attention, Linear, Weights


class _Drop(torch.autograd.Function):
    """Dropout with rescaling."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, masks: MaskSource, rate: float) -> Tensor:
        x = x.contiguous()
        out, ctx.mask = drop(masks, x, rate)
        ctx.masks = masks
        scale = scale_of(ctx.mask)
        return out if scale == 1.0 else out * scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return masked(ctx.masks, grad, ctx.mask, scale_of(ctx.mask)), None, None


class _NormDrop(torch.autograd.Function):
    """dropout(norm(x))."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, run: Pass, rate: float) -> Tensor:
        out, mask = drop(run.masks, norm(x, weight, run.epsilon), rate, in_place=True)
        ctx.tape = (x, weight, mask)
        ctx.run = run
        return out if scale_of(mask) == 1.0 else out.mul_(scale_of(mask))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, weight, mask = taken(ctx)
        run: Pass = ctx.run
        scaled = masked(run.masks, grad, mask, scale_of(mask))
        return norm_backward(scaled, x, weight, run.epsilon, None), None, None, None


class _TokenLogProbs(torch.autograd.Function):
    """One token's log-probability per row. Its slope over the logits is the one-hot row less all probabilities."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, tokens: Tensor, wide: torch.dtype) -> Tensor:
        logits = (hidden @ head.t()).to(wide)
        total = torch.logsumexp(logits, 1, keepdim=True)
        ctx.tape = (logits, total, head, tokens)
        return (logits.gather(1, tokens[:, None]) - total)[:, 0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        logits, total, head, tokens = taken(ctx)
        upper = grad[:, None]
        slopes = logits.sub_(total).exp_().mul_(-upper).scatter_add_(1, tokens[:, None], upper)
        return slopes.to(head.dtype) @ head, None, None, None


class _AdaptedLinear(torch.autograd.Function):
    """A frozen linear map with its LoRA pair."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Linear, masks: MaskSource | None, *adapter: Tensor) -> Tensor:
        out, ctx.adapter = linear(x, layer, masks)
        ctx.x, ctx.layer, ctx.masks = x, layer, masks
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        grad = grad.contiguous()
        need = bool(ctx.needs_input_grad[0])
        dx, own = linear_backward(grad, ctx.x, ctx.layer, ctx.adapter, ctx.masks, need_input=need)
        return dx, None, None, *own


class _AdapterDown(torch.autograd.Function):
    """z = (M H) A^T for a LoRA pair on cross-attention keys or values, without M's factor."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, down: Tensor, mask: Mask | None, masks: MaskSource | None) -> Tensor:
        ctx.tape = (h, down, mask)
        ctx.masks = masks
        kept = h if masks is None else masks.apply(h, mask)
        return kept @ down.to(h.dtype).t()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        h, down, mask = taken(ctx)
        masks: MaskSource | None = ctx.masks
        kept = h
        dh = grad @ down.to(h.dtype) if ctx.needs_input_grad[0] else None
        if masks is not None:
            kept = masks.apply(h, mask) if dh is None else masks.apply_to_both(dh, h, mask)
        return dh, (grad.t() @ kept).to(down.dtype), None, None


class _Padded(torch.autograd.Function):
    """Flat rows as one padded tensor (reviews, length, d_model) for each block of cross-attention."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, run: Pass) -> tuple[Tensor, ...]:
        ctx.run = run
        ctx.rows = h.shape[0]
        return tuple(block.pad(h) for block in run.blocks.cross)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        dh = grads[0].new_empty(ctx.rows, grads[0].shape[2])
        for block, grad in zip(ctx.run.blocks.cross, grads, strict=True):
            block.unpad_to(dh, grad)
        return dh, None


class _CrossCore(torch.autograd.Function):
    """softmax(u H^T + y k^T), dropped, times H and times v.

    u (reviews, queries, d_model) are folded queries; y (reviews, queries, r) and k (rows, r) the key
    adapter's share; v (rows, r) the value adapter's; H the encoder's rows, padded, block by block.
    """

    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor,
        y: Tensor | None,
        k: Tensor | None,
        v: Tensor | None,
        run: Pass,
        *padded: Tensor,
    ) -> tuple[Tensor, Tensor | None]:
        sums: list[Tensor] = []
        extra: list[Tensor] = []
        kept: list[tuple[Tensor, Mask | None]] = []
        scale = 1.0
        for block, rows in zip(run.blocks.cross, padded, strict=True):
            part = slice(block.first, block.first + block.reviews)
            scores = torch.bmm(u[part], rows.transpose(1, 2))
            if y is not None and k is not None:
                scores.baddbmm_(y[part], block.pad(k).transpose(1, 2))
            if block.padding is not None:
                scores.masked_fill_(block.padding[:, None, :], -math.inf)
            probabilities = torch.softmax(scores, -1)
            dropped, mask = drop(run.masks, probabilities, run.rate)
            scale = scale_of(mask)
            kept.append((probabilities, mask))
            sums.append(torch.bmm(dropped, rows))
            if v is not None:
                extra.append(torch.bmm(dropped, block.pad(v)))
        ctx.tape = (u, y, k, v, padded, kept, scale)
        ctx.run = run
        return _scaled(sums, scale), _scaled(extra, scale) if extra else None

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dsums: Tensor, dextra: Tensor | None) -> tuple[Any, ...]:
        u, y, k, v, padded, kept, scale = taken(ctx)
        run: Pass = ctx.run
        if scale != 1.0:
            dsums, dextra = dsums * scale, None if v is None or dextra is None else dextra * scale
        du = torch.empty_like(u)
        dy, dk, dv = (None if t is None else torch.empty_like(t) for t in (y, k, v))
        dpadded: list[Tensor | None] = []
        for at, (block, rows) in enumerate(zip(run.blocks.cross, padded, strict=True)):
            probabilities, mask = kept[at]
            part = slice(block.first, block.first + block.reviews)
            through = torch.bmm(dsums[part], rows.transpose(1, 2))
            if dextra is not None and v is not None:
                through.baddbmm_(dextra[part], block.pad(v).transpose(1, 2))
            dropped = probabilities
            if run.masks is not None:
                dropped = run.masks.apply_to_both(through, probabilities, mask)
            if dv is not None and dextra is not None:
                block.unpad_to(dv, torch.bmm(dropped.transpose(1, 2), dextra[part]))
            scores = torch.ops.aten._softmax_backward_data(through, probabilities, -1, u.dtype)
            du[part] = torch.bmm(scores, rows)
            if dy is not None and dk is not None:
                dy[part] = torch.bmm(scores, block.pad(k))
                block.unpad_to(dk, torch.bmm(scores.transpose(1, 2), y[part]))
            own: Tensor | None = None
            if ctx.needs_input_grad[5 + at]:
                own = torch.bmm(dropped.transpose(1, 2), dsums[part]).baddbmm_(scores.transpose(1, 2), u[part])
            dpadded.append(own)
        return du, dy, dk, dv, None, *dpadded


def _scaled(parts: list[Tensor], scale: float) -> Tensor:
    """What the blocks gave, one after the other; it may be overwritten."""
    whole = parts[0] if len(parts) == 1 else torch.cat(parts)
    return whole if scale == 1.0 else whole.mul_(scale)


def adapted(x: Tensor, layer: Linear, run: Pass) -> Tensor:
    """A linear map on few rows, differentiable in x and the adapter.

    Args:
        x: (rows, in).
        layer: The map.
        run: What the pass shares.

    Returns:
        (rows, out).
    """
    return _AdaptedLinear.apply(x.contiguous(), layer, run.masks, *layer.parameters)  # type: ignore[no-any-return, no-untyped-call]


def embedded(weights: Weights, tokens: Tensor) -> Tensor:
    """Where a residual stream begins.

    Args:
        weights: Of the model.
        tokens: (rows,).

    Returns:
        (rows, d_model), in fp32 for weights in fp16.
    """
    rows = weights.embedding.detach()[tokens]
    return rows.float() if rows.dtype is torch.float16 else rows


def dropped(x: Tensor, run: Pass) -> Tensor:
    """Dropout at the model's own rate, with rescaling.

    Args:
        x: Any shape.
        run: What the pass shares.

    Returns:
        Same shape; x itself outside training.
    """
    if run.masks is None or run.rate == 0.0:
        return x
    return _Drop.apply(x, run.masks, run.rate)  # type: ignore[no-any-return, no-untyped-call]


def final_norm(x: Tensor, weight: Tensor, run: Pass) -> Tensor:
    """Norm and dropout at the end of a stack.

    Args:
        x: (rows, d_model).
        weight: (d_model,).
        run: What the pass shares.

    Returns:
        (rows, d_model).
    """
    return _NormDrop.apply(x, weight.detach(), run, run.rate)  # type: ignore[no-any-return, no-untyped-call]


def _normed(x: Tensor, weight: Tensor, run: Pass) -> Tensor:
    return _NormDrop.apply(x, weight.detach(), run, 0.0)  # type: ignore[no-any-return, no-untyped-call]


def token_log_probs(hidden: Tensor, head: Tensor, tokens: Tensor, wide: torch.dtype) -> Tensor:
    """Log-probability of one token per row over the full vocabulary.

    Args:
        hidden: What ``decode`` gives (rows, d_model).
        head: Weight of the head (vocabulary, d_model).
        tokens: The tokens (rows,) int64.
        wide: dtype of the logits' sums.

    Returns:
        (rows,) in ``wide``.
    """
    return _TokenLogProbs.apply(hidden, head, tokens, wide)  # type: ignore[no-any-return, no-untyped-call]


def decode(weights: Weights, rows: Tensor, tokens: Tensor, run: Pass) -> Tensor:
    """Run the decoder on given tokens.

    Args:
        weights: Of the model.
        rows: Encoder output on flat rows (tokens, d_model).
        tokens: Decoder input (reviews in the layout's order, alternatives per review, positions).
        run: What the pass shares.

    Returns:
        Final hidden states (reviews, alternatives, positions, d_model), scaled for the head.
    """
    reviews, alternatives, positions = tokens.shape
    hidden = dropped(embedded(weights, tokens.reshape(-1)), run)
    bias: Tensor | None = None
    if positions > 1:
        bias = relative_bias(
            weights.decoder_bias,
            positions,
            bidirectional=False,
            buckets=weights.buckets,
            max_distance=weights.max_distance,
        )
        future = torch.ones(positions, positions, dtype=torch.bool, device=rows.device).triu(1)
        bias = bias.masked_fill(future, -math.inf)
    padded = _Padded.apply(rows, run)  # type: ignore[no-untyped-call]
    for layer in weights.decoder:
        hidden = hidden + dropped(_self_attention(hidden, layer.attention, bias, positions, run), run)
        hidden = hidden + dropped(_cross_attention(hidden, rows, padded, layer.cross, run), run)
        hidden = feed_forward(hidden, layer.feed_forward, run)
    hidden = final_norm(hidden, weights.decoder_norm, run)
    if weights.head_scale != 1.0:
        hidden = hidden * weights.head_scale
    return hidden.view(reviews, alternatives, positions, -1)


def _self_attention(hidden: Tensor, layer: Attention, bias: Tensor | None, positions: int, run: Pass) -> Tensor:
    x = _normed(hidden, layer.norm, run)
    v = adapted(x, layer.v, run)
    # At one position adapters on q and k have a gradient of zero, which an optimiser tells from none.
    idle = not torch.is_grad_enabled() or not (layer.q.parameters or layer.k.parameters)
    if bias is None and idle and (run.masks is None or run.rate == 0.0):
        return adapted(v, layer.o, run)

    def heads(flat: Tensor) -> Tensor:
        return flat.view(-1, positions, run.heads, flat.shape[1] // run.heads).transpose(1, 2)

    if bias is None and idle:
        weights = v.new_ones(v.shape[0], run.heads, 1, 1)
    else:
        scores = heads(adapted(x, layer.q, run)) @ heads(adapted(x, layer.k, run)).transpose(2, 3)
        weights = torch.softmax(scores if bias is None else scores + bias, -1)
    return adapted((dropped(weights, run) @ heads(v)).transpose(1, 2).reshape(v.shape), layer.o, run)


def _cross_attention(hidden: Tensor, rows: Tensor, padded: tuple[Tensor, ...], layer: Attention, run: Pass) -> Tensor:
    reviews = sum(block.reviews for block in run.blocks.cross)
    x = _normed(hidden, layer.norm, run)
    heads, count = run.heads, hidden.shape[0]

    def per_head(matrix: Tensor) -> Tensor:
        return matrix.view(heads, -1, matrix.shape[1])

    def per_review(by_head: Tensor) -> Tensor:
        """(heads, reviews * positions, width) -> (reviews, heads * positions, width)."""
        width = by_head.shape[2]
        split = by_head.view(heads, reviews, count // reviews, width).transpose(0, 1)
        return split.reshape(reviews, -1, width)

    def by_head(by_review: Tensor) -> Tensor:
        width = by_review.shape[2]
        split = by_review.view(reviews, heads, count // reviews, width).transpose(0, 1)
        return split.reshape(heads, count, width)

    q = adapted(x, layer.q, run).view(count, heads, -1).transpose(0, 1)
    u = per_review(torch.bmm(q, per_head(layer.k.weight.detach())))
    y: Tensor | None = None
    k: Tensor | None = None
    v: Tensor | None = None
    if layer.k.adapter is not None:
        k, factor = _adapter_rows(rows, layer.k.adapter, run)
        y = per_review(torch.bmm(q, per_head(layer.k.adapter.up.to(rows.dtype))) * factor)
    if layer.v.adapter is not None:
        v, factor = _adapter_rows(rows, layer.v.adapter, run)
    sums, extra = _CrossCore.apply(u, y, k, v, run, *padded)  # type: ignore[no-untyped-call]
    context = torch.bmm(by_head(sums), per_head(layer.v.weight.detach()).transpose(1, 2))
    if layer.v.adapter is not None:
        up = per_head(layer.v.adapter.up.to(rows.dtype))
        context = torch.baddbmm(context, by_head(extra), up.transpose(1, 2), alpha=factor)
    return adapted(context.transpose(0, 1).reshape(count, -1), layer.o, run)


def _adapter_rows(rows: Tensor, adapter: Adapter, run: Pass) -> tuple[Tensor, float]:
    mask = None if run.masks is None else run.masks.mask(rows.numel(), rows.dtype, adapter.rate)
    z = _AdapterDown.apply(rows, adapter.down, mask, run.masks)  # type: ignore[no-untyped-call]
    return z, adapter.scaling * scale_of(mask)
