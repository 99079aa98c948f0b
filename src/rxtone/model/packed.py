"""Weights as the object store of a cluster keeps them: numpy arrays, which all processes of a node share."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer
from transformers import T5Config, T5ForConditionalGeneration

from rxtone.model.base import Base, BaseIdentity, default_device

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class PackedWeights:
    """The tensors of a module, each once.

    Attributes:
        arrays: Name -> values; bf16 as the int16 of the same bits, which numpy knows.
        dtypes: Name -> name of the torch type.
    """

    arrays: dict[str, np.ndarray]
    dtypes: dict[str, str]


@dataclass(frozen=True)
class PackedBase:
    """A base as the object store keeps it.

    Attributes:
        config: The T5 config.
        weights: Its weights.
        tokenizer: The tokenizer's JSON.
        identity: Which base this is.
        precision: Of its weights.
    """

    config: dict[str, Any]
    weights: PackedWeights
    tokenizer: str
    identity: BaseIdentity
    precision: str


def pack_weights(module: torch.nn.Module) -> PackedWeights:
    """The tensors of a module in a form that is shared, not copied."""
    state: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in module.state_dict().items():
        if tensor.data_ptr() not in seen:  # the embedding goes by three names, and would be stored three times
            seen.add(tensor.data_ptr())
            state[name] = tensor.detach().cpu().contiguous()
    return PackedWeights(
        {
            name: (tensor.view(torch.int16) if tensor.dtype is torch.bfloat16 else tensor).numpy()
            for name, tensor in state.items()
        },
        {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in state.items()},
    )


def unpack_weights(packed: PackedWeights, module: torch.nn.Module, t5: T5ForConditionalGeneration) -> None:
    """Give a module its weights: the shared arrays themselves (on a GPU: a copy there). It ends up frozen.

    Args:
        packed: What `pack_weights` gave, perhaps read from the object store, where it cannot be written to.
        module: A module of the same shape, without memory (device `meta`).
        t5: The T5 in it, whose embeddings are tied.
    """
    state = {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)  # nor is it written to
        for name, array in packed.arrays.items():
            flat = torch.frombuffer(array.data.cast("B"), dtype=getattr(torch, packed.dtypes[name]))
            state[name] = flat.view(array.shape)
    module.load_state_dict(state, assign=True, strict=False)  # tied weights come next
    t5.tie_weights()
    module.requires_grad_(requires_grad=False)
    module.eval()
    module.to(default_device())


def empty_t5(config: dict[str, Any]) -> T5ForConditionalGeneration:
    """A T5 of a config, without memory (device `meta`)."""
    with torch.device("meta"):
        return T5ForConditionalGeneration(T5Config(**config))


def pack_base(base: Base) -> PackedBase:
    """A loaded base in a form that is shared, not copied."""
    return PackedBase(
        base.model.config.to_dict(), pack_weights(base.model), base.tokenizer.to_str(), base.identity, base.precision
    )


def unpack_base(packed: PackedBase) -> Base:
    """A base whose weights are the shared arrays themselves (on a GPU: a copy there).

    Args:
        packed: What `pack_base` gave, perhaps read from the object store, where it cannot be written to.

    Returns:
        The base, frozen: nothing writes to its weights.
    """
    model = empty_t5(packed.config)
    unpack_weights(packed.weights, model, model)
    return Base(model, Tokenizer.from_str(packed.tokenizer), packed.identity, packed.precision)
