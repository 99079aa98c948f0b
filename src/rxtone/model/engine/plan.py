"""What the engine reads of a loaded model: the weights in place, as a small tree of frozen records.

Nothing is copied and nothing in the model is changed: every tensor here is the very parameter of the module,
so an optimiser step on the adapters is seen by the next forward. A model that the engine does not reproduce
exactly is refused with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from peft import PeftModel
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn
from transformers import T5ForConditionalGeneration
from transformers.models.t5.modeling_t5 import T5DenseActDense, T5DenseGatedActDense

if TYPE_CHECKING:
    from rxtone.model.engine.int8 import Int8Weight

ACTIVATIONS = ("gelu_new", "gelu", "relu", "silu")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_MAX_RATE = 0.99
_OBSERVERS = "transformers.utils.output_capturing"


class _UnsupportedError(Exception):
    """Why a model cannot run on the engine; never leaves this file."""


@dataclass(frozen=True)
class Unsupported:
    """The engine does not cover this model.

    Attributes:
        reason: One clause that names the module and the cause.
    """

    reason: str


@dataclass(frozen=True)
class Adapter:
    """A LoRA pair: y += scaling * up(down(dropout(x))).

    Attributes:
        down: ``lora_A`` (r, in).
        up: ``lora_B`` (out, r).
        scaling: alpha / r, or alpha / sqrt(r) for rsLoRA, as PEFT computed it.
        rate: Dropout on the input of the pair while training.
    """

    down: Tensor
    up: Tensor
    scaling: float
    rate: float


@dataclass(frozen=True)
class Linear:
    """A frozen linear map without bias and its adapter.

    Attributes:
        weight: (out, in).
        adapter: The active LoRA pair, or None.
        int8: The weight in 8-bit integers, where the engine was asked for them.
    """

    weight: Tensor
    adapter: Adapter | None
    int8: Int8Weight | None = None

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """The adapter's two matrices, or nothing."""
        return () if self.adapter is None else (self.adapter.down, self.adapter.up)


@dataclass(frozen=True)
class Attention:
    """Norm and projections of one attention sublayer."""

    norm: Tensor
    q: Linear
    k: Linear
    v: Linear
    o: Linear

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """All adapter matrices in the order q, k, v, o."""
        return self.q.parameters + self.k.parameters + self.v.parameters + self.o.parameters


@dataclass(frozen=True)
class FeedForward:
    """Norm and projections of one feed-forward sublayer; ``gate`` is None in the ungated form."""

    norm: Tensor
    gate: Linear | None
    up: Linear
    down: Linear
    activation: str

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """All adapter matrices in the order gate, up, down."""
        gate = () if self.gate is None else self.gate.parameters
        return gate + self.up.parameters + self.down.parameters


@dataclass(frozen=True)
class EncoderLayer:
    """One layer of the encoder."""

    attention: Attention
    feed_forward: FeedForward


@dataclass(frozen=True)
class DecoderLayer:
    """One layer of the decoder."""

    attention: Attention
    cross: Attention
    feed_forward: FeedForward


@dataclass(frozen=True)
class Weights:
    """Everything that the forward pass reads.

    Attributes:
        embedding: Shared token embedding (vocabulary, d_model).
        head: Output head (vocabulary, d_model); the embedding itself where tied.
        head_scale: d_model**-0.5 where the model scales the decoder's output, else 1.
        encoder: Layers of the encoder, first to last.
        decoder: Layers of the decoder, first to last.
        encoder_norm: Final norm of the encoder (d_model,).
        decoder_norm: Final norm of the decoder (d_model,).
        encoder_bias: Relative position table of the encoder (buckets, heads).
        decoder_bias: Relative position table of the decoder (buckets, heads).
        heads: Attention heads.
        buckets: Buckets of relative positions.
        max_distance: Distance from which all positions share a bucket.
        epsilon: Of the norms.
        rate: The model's own dropout while training.
        start_token: First token of the decoder.
        eos_token: Ends a label where labels need an end.
        pad_token: Stands for -100 among the decoder's inputs.
        frozen: Whether nothing but the adapters above requires a gradient.
    """

    embedding: Tensor
    head: Tensor
    head_scale: float
    encoder: tuple[EncoderLayer, ...]
    decoder: tuple[DecoderLayer, ...]
    encoder_norm: Tensor
    decoder_norm: Tensor
    encoder_bias: Tensor
    decoder_bias: Tensor
    heads: int
    buckets: int
    max_distance: int
    epsilon: float
    rate: float
    start_token: int
    pad_token: int
    eos_token: int
    frozen: bool

    @property
    def adapters(self) -> tuple[Tensor, ...]:
        """Every adapter matrix, encoder first."""
        encoder = (p for one in self.encoder for p in (*one.attention.parameters, *one.feed_forward.parameters))
        decoder = (
            p
            for one in self.decoder
            for p in (*one.attention.parameters, *one.cross.parameters, *one.feed_forward.parameters)
        )
        return (*encoder, *decoder)


def read_weights(model: nn.Module) -> Weights | Unsupported:
    """Find the weights of a T5 model, or say why it is not covered.

    Args:
        model: A ``T5ForConditionalGeneration`` or a ``PeftModel`` around one.

    Returns:
        The weights in place, or the reason.
    """
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    if type(base) is not T5ForConditionalGeneration:
        return Unsupported(f"the engine reads T5ForConditionalGeneration, not {type(base).__name__}")
    if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
        return Unsupported(f"adapter type {model.active_peft_config.peft_type} is not LoRA")
    try:
        return _read(base)
    except _UnsupportedError as error:
        return Unsupported(str(error))


def aliased(weights: Weights) -> Weights:
    """The same memory behind other leaves of autograd.

    A leaf's node remembers the stream on which it was first used, as long as any graph that leads to it lives; what is
    recorded on another stream must not meet it.

    Args:
        weights: Of a model.

    Returns:
        Records of the same tensors, the adapters' being leaves of their own on the same storage.
    """
    found: Weights = _aliased(weights)
    return found


def _aliased(node: Any) -> Any:
    if isinstance(node, Adapter):
        down, up = (t.detach().requires_grad_(t.requires_grad) for t in (node.down, node.up))
        return replace(node, down=down, up=up)
    if isinstance(node, tuple):
        return tuple(_aliased(part) for part in node)
    if is_dataclass(node) and not isinstance(node, type):
        return replace(node, **{field.name: _aliased(getattr(node, field.name)) for field in fields(node)})
    return node


def _read(base: T5ForConditionalGeneration) -> Weights:
    config: Any = base.config
    embedding = _plain(base.shared, nn.Embedding, "shared")
    if embedding.dtype not in _DTYPES:
        raise _UnsupportedError(f"weights in {embedding.dtype}; the engine computes in fp32, bf16, fp16 and fp64")
    rate = float(config.dropout_rate)
    if not 0.0 <= rate <= _MAX_RATE:
        raise _UnsupportedError(f"dropout_rate {rate} is not in [0, {_MAX_RATE}]")
    for stack in (base.encoder, base.decoder):
        if cast(Any, stack).embed_tokens.weight is not embedding:
            raise _UnsupportedError("encoder and decoder do not share one embedding")
    encoder: Any = base.encoder
    decoder: Any = base.decoder
    weights = Weights(
        embedding=embedding,
        head=_plain(base.lm_head, nn.Linear, "lm_head"),
        head_scale=config.d_model**-0.5 if config.scale_decoder_outputs else 1.0,
        encoder=tuple(
            EncoderLayer(_attention(block.layer[0], "SelfAttention", f"encoder.block.{i}"), _feed_forward(block, i))
            for i, block in enumerate(encoder.block)
        ),
        decoder=tuple(
            DecoderLayer(
                _attention(block.layer[0], "SelfAttention", f"decoder.block.{i}"),
                _attention(block.layer[1], "EncDecAttention", f"decoder.block.{i}"),
                _feed_forward(block, i),
            )
            for i, block in enumerate(decoder.block)
        ),
        encoder_norm=encoder.final_layer_norm.weight,
        decoder_norm=decoder.final_layer_norm.weight,
        encoder_bias=encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight,
        decoder_bias=decoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight,
        heads=config.num_heads,
        buckets=config.relative_attention_num_buckets,
        max_distance=config.relative_attention_max_distance,
        epsilon=config.layer_norm_epsilon,
        rate=rate,
        start_token=config.decoder_start_token_id,
        pad_token=config.pad_token_id,
        eos_token=config.eos_token_id,
        frozen=False,
    )
    _check_uniform(base, weights, embedding)
    adapters = {id(tensor) for tensor in weights.adapters}
    frozen = not any(p.requires_grad and id(p) not in adapters for p in base.parameters())
    return Weights(**{**vars(weights), "frozen": frozen})


def _check_uniform(base: nn.Module, weights: Weights, embedding: Tensor) -> None:
    """One dtype and device for the base, no hooks that the engine would skip."""
    adapters = {id(tensor) for tensor in weights.adapters}
    for name, parameter in base.named_parameters():
        if id(parameter) in adapters or "lora_" in name:
            continue
        # transformers holds `wo` in fp32 beside fp16, where its products pass the largest number.
        wide = embedding.dtype is torch.float16 and ".wo." in name and parameter.dtype is torch.float32
        if (parameter.dtype != embedding.dtype and not wide) or parameter.device != embedding.device:
            raise _UnsupportedError(
                f"{name} is {parameter.dtype} on {parameter.device}, the embedding {embedding.dtype} on"
                f" {embedding.device}; the engine needs one dtype and one device"
            )
    for name, module in base.named_modules():
        hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        # What PEFT puts on the embedding for gradient checkpointing changes no value; nor does what transformers leaves
        # on every layer of a model that was once asked for its hidden states.
        if not isinstance(module, nn.Embedding) and any(getattr(h, "__module__", "") != _OBSERVERS for h in hooks):
            raise _UnsupportedError(f"{name or 'the model'} has forward hooks, which the engine would skip")


def _plain(module: nn.Module, expected: type[nn.Module], name: str) -> Tensor:
    if type(module) is not expected:
        raise _UnsupportedError(f"{name} is {type(module).__name__}, expected a plain {expected.__name__}")
    return cast(Tensor, module.weight)


def _attention(layer: Any, name: str, where: str) -> Attention:
    module = getattr(layer, name)
    where = f"{where}.{name}"
    return Attention(
        layer.layer_norm.weight,
        _linear(module.q, f"{where}.q"),
        _linear(module.k, f"{where}.k"),
        _linear(module.v, f"{where}.v"),
        _linear(module.o, f"{where}.o"),
    )


def _feed_forward(block: Any, index: int) -> FeedForward:
    layer = block.layer[-1]
    dense = layer.DenseReluDense
    where = f"block.{index}.DenseReluDense"
    activation = _activation(block)
    if activation not in ACTIVATIONS:
        raise _UnsupportedError(f"activation {activation!r}; the engine knows {', '.join(ACTIVATIONS)}")
    if type(dense) is T5DenseGatedActDense:
        gate, up = _linear(dense.wi_0, f"{where}.wi_0"), _linear(dense.wi_1, f"{where}.wi_1")
    elif type(dense) is T5DenseActDense:
        gate, up = None, _linear(dense.wi, f"{where}.wi")
    else:
        raise _UnsupportedError(f"{where} is {type(dense).__name__}, not a feed-forward layer of T5")
    return FeedForward(layer.layer_norm.weight, gate, up, _linear(dense.wo, f"{where}.wo"), activation)


def _activation(block: Any) -> str:
    return str(block.layer[0].SelfAttention.config.dense_act_fn)


def _linear(module: nn.Module, where: str) -> Linear:
    if type(module) is nn.Linear:
        if module.bias is not None:
            raise _UnsupportedError(f"{where} has a bias")
        return Linear(module.weight, None)
    if type(module) is not LoraLinear:
        raise _UnsupportedError(f"{where} is {type(module).__module__}.{type(module).__name__}")
    inner = module.get_base_layer()
    if type(inner) is not nn.Linear or inner.bias is not None:
        raise _UnsupportedError(f"{where} wraps {type(inner).__name__}, expected a Linear without bias")
    if module.disable_adapters:
        if module.merged:
            raise _UnsupportedError(f"{where} is merged and disabled at once")
        return Linear(inner.weight, None)
    if module.merged:
        return Linear(inner.weight, None)
    return Linear(inner.weight, _adapter(module, inner.weight, where))


def _adapter(module: LoraLinear, weight: Tensor, where: str) -> Adapter | None:
    names = [name for name in module.active_adapters if name in module.lora_A]
    if not names:
        return None
    if len(names) > 1:
        raise _UnsupportedError(f"{where} has {len(names)} active adapters, expected one")
    (name,) = names
    if module.lora_variant.get(name) is not None:
        raise _UnsupportedError(f"{where} has adapter variant {type(module.lora_variant[name]).__name__}")
    if module.lora_bias.get(name) or module.fan_in_fan_out:
        raise _UnsupportedError(f"{where} has a LoRA bias or a transposed weight")
    down, up = cast(nn.Linear, module.lora_A[name]), cast(nn.Linear, module.lora_B[name])
    if type(down) is not nn.Linear or type(up) is not nn.Linear:
        raise _UnsupportedError(f"{where} has lora_A of type {type(down).__name__}")
    dropout = module.lora_dropout[name]
    if type(dropout) not in (nn.Dropout, nn.Identity):
        raise _UnsupportedError(f"{where} has lora_dropout of type {type(dropout).__name__}")
    rate = float(dropout.p) if type(dropout) is nn.Dropout else 0.0
    if rate > _MAX_RATE:
        raise _UnsupportedError(f"{where} has lora_dropout {rate}, above {_MAX_RATE}")
    if down.weight.device != weight.device:
        raise _UnsupportedError(f"{where} has its adapter on {down.weight.device}, its weight on {weight.device}")
    return Adapter(down.weight, up.weight, float(module.scaling[name]), rate)
