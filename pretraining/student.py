"""The student: a plain T5 whose encoder is read here in flat, mixed-precision form for fast training."""

from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor
from transformers import T5Config, T5ForConditionalGeneration
from transformers.models.t5.modeling_t5 import T5Block


@dataclass(frozen=True)
class StudentShape:
    """Sizes of the student; width and depth of the encoder must equal the teacher's."""

    vocabulary: int = 15000
    width: int = 384
    heads: int = 12
    feed_forward: int = 1536
    encoder_layers: int = 6
    decoder_layers: int = 2


def new_student(shape: StudentShape, seed: int) -> T5ForConditionalGeneration:
    """Builds a T5 with an ungated GELU and tied embeddings, initialised from the seed."""
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=shape.vocabulary,
        d_model=shape.width,
        d_kv=shape.width // shape.heads,
        num_heads=shape.heads,
        d_ff=shape.feed_forward,
        num_layers=shape.encoder_layers,
        num_decoder_layers=shape.decoder_layers,
        feed_forward_proj="gelu",
        tie_word_embeddings=True,
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    return T5ForConditionalGeneration(config)


def rms_norm(states: Tensor, weight: Tensor) -> Tensor:
    """T5's layer norm: division by the root mean square, no mean, no bias (Zhang & Sennrich 2019)."""
    return states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + 1e-6) * weight


def layer_weights(block: T5Block) -> tuple[Tensor, ...]:
    """The weights of one encoder block in the order that `encoder_layer` takes them."""
    attention, feed_forward = block.layer[0], block.layer[1]
    inner = attention.SelfAttention
    return (
        attention.layer_norm.weight, inner.q.weight, inner.k.weight, inner.v.weight, inner.o.weight,
        feed_forward.layer_norm.weight, feed_forward.DenseReluDense.wi.weight, feed_forward.DenseReluDense.wo.weight,
    )  # fmt: skip


def encoder_layer(states: Tensor, bias: Tensor, weights: tuple[Tensor, ...], heads: int, dtype: torch.dtype) -> Tensor:
    """One T5 encoder block; matrix products in `dtype`, the residual stream in float32.

    Args:
        states: Residual stream, (b, s, d).
        bias: Position bias plus mask, (b, heads, s, s).
        weights: As `layer_weights` returns them.
        heads: Number of attention heads.
        dtype: Type of the matrix products.

    Returns:
        The residual stream after the block, (b, s, d).
    """
    batch, length, width = states.shape
    norm1, q, k, v, o, norm2, wi, wo = weights
    normed = rms_norm(states, norm1).to(dtype)
    query, key, value = (
        functional.linear(normed, weight.to(dtype)).view(batch, length, heads, -1).transpose(1, 2)
        for weight in (q, k, v)
    )
    scores = (query @ key.transpose(-1, -2)).float() + bias
    context = (torch.softmax(scores, -1).to(dtype) @ value).transpose(1, 2).reshape(batch, length, width)
    states = states + functional.linear(context, o.to(dtype)).float()
    inner = functional.gelu(functional.linear(rms_norm(states, norm2).to(dtype), wi.to(dtype)))
    return states + functional.linear(inner, wo.to(dtype)).float()


def position_buckets(model: T5ForConditionalGeneration, length: int) -> Tensor:
    """T5's bucket of each pair's distance, (length, length)."""
    attention = model.encoder.block[0].layer[0].SelfAttention
    position = torch.arange(length)
    found: Tensor = attention._relative_position_bucket(
        position[None, :] - position[:, None],
        bidirectional=True,
        num_buckets=attention.relative_attention_num_buckets,
        max_distance=attention.relative_attention_max_distance,
    )
    return found


def attention_bias(model: T5ForConditionalGeneration, mask: Tensor) -> Tensor:
    """Relative position bias of the encoder plus the mask, (b, heads, s, s) float32."""
    table = model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias
    bias = table(position_buckets(model, mask.shape[1])).permute(2, 0, 1)[None]
    hidden = torch.zeros(mask.shape, dtype=torch.float32).masked_fill(mask == 0, -1e9)
    return bias + hidden[:, None, None, :]


class FastEncoder:
    """Reads a T5 encoder with the numbers of its own forward, in less time."""

    def __init__(self, model: T5ForConditionalGeneration, dtype: torch.dtype, compiled: bool) -> None:
        self._model = model
        self._dtype = dtype
        self._layer = torch.compile(encoder_layer, dynamic=False) if compiled else encoder_layer

    def __call__(self, ids: Tensor, mask: Tensor) -> list[Tensor]:
        """Residual streams after the embeddings and each block, and last the normed output; all (b, s, d)."""
        encoder = self._model.encoder
        states = self._model.shared(ids)
        bias = attention_bias(self._model, mask)
        streams = [states]
        for block in encoder.block:
            states = self._layer(states, bias, layer_weights(block), self._model.config.num_heads, self._dtype)
            streams.append(states)
        streams.append(rms_norm(states, encoder.final_layer_norm.weight))
        return streams
