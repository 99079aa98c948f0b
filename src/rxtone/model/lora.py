"""LoRA on the base (Hu et al. 2021, arXiv:2106.09685): which layers, how many parameters, save, load, merge.

The adapter folder is plain PEFT. PiSSA moves the principal part of a weight into the adapter, so its
folder is written as the difference to the original base: plain LoRA of twice the rank.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from rxtone.errors import ModelError, RecipeError
from rxtone.model.adapter_files import CONFIG, WEIGHTS, read_adapter

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from transformers import T5ForConditionalGeneration

    from rxtone.config import LoraSettings


@dataclass(frozen=True)
class AdapterSummary:
    """What was adapted.

    Attributes:
        modules: Full names of the adapted linear layers.
        trainable: Parameters that learn.
        total: All parameters, the adapter's included.
    """

    modules: tuple[str, ...]
    trainable: int
    total: int

    @property
    def share(self) -> float:
        """Trainable share of all parameters, 0 to 1."""
        return self.trainable / self.total


def resolve_targets(model: torch.nn.Module, targets: Sequence[str]) -> tuple[str, ...]:
    """Find the linear layers that a recipe's `target_modules` name.

    Args:
        model: The base.
        targets: Ends of module names (`q`, `EncDecAttention.v`), or `all-linear`.

    Returns:
        Full names of the matched layers, in the model's order; never the output head.

    Raises:
        RecipeError: If a target matches no layer; the message lists what the model has.
    """
    linear = [
        name for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name.rpartition(".")[2] != "lm_head"
    ]  # fmt: skip
    if list(targets) == ["all-linear"]:
        return tuple(linear)
    ends = sorted({name.rpartition(".")[2] for name in linear})
    matched = set()
    for target in targets:
        hits = [name for name in linear if name == target or name.endswith("." + target)]
        if not hits:
            close = difflib.get_close_matches(target, ends, n=1, cutoff=0.3)
            hint = f"; did you mean {close[0]}?" if close else ""
            msg = (
                f"lora.target_modules: {target!r} matches no linear layer of this base, which has "
                f"{', '.join(ends)} (or all-linear){hint}"
            )
            raise RecipeError(msg)
        matched.update(hits)
    return tuple(name for name in linear if name in matched)


def add_adapter(model: T5ForConditionalGeneration, lora: LoraSettings, seed: int) -> tuple[PeftModel, AdapterSummary]:
    """Put a fresh adapter on a base.

    Args:
        model: The frozen base; changed in place by PEFT.
        lora: The recipe's settings.
        seed: Seed of the adapter's random start; the global generator is left at this seed.

    Returns:
        The adapted model and what was adapted.

    Raises:
        RecipeError: If a target matches nothing.
    """
    modules = resolve_targets(model, lora.target_modules)
    targets: list[str] | str = list(lora.target_modules)
    if targets == ["all-linear"]:
        targets = sorted({name.rpartition(".")[2] for name in modules})
    torch.manual_seed(seed)
    config = LoraConfig(
        task_type=TaskType.SEQ_2_SEQ_LM,
        r=lora.r,
        lora_alpha=lora.lora_alpha,  # type: ignore[arg-type]  # PEFT computes with floats too
        lora_dropout=lora.lora_dropout,
        target_modules=targets,
        bias=lora.bias,
        use_rslora=lora.variant == "rslora",
        use_dora=lora.variant == "dora",
        init_lora_weights="pissa" if lora.variant == "pissa" else True,
    )
    with _known_peft_warning():
        adapted = get_peft_model(model, config)
    return adapted, summarise(adapted, modules)


@contextlib.contextmanager
def adapted(
    model: T5ForConditionalGeneration, lora: LoraSettings, seed: int
) -> Iterator[tuple[PeftModel, AdapterSummary]]:
    """A fresh adapter on a base for the length of a block; afterwards the base is what it was, to the last bit.

    Args:
        model: The frozen base.
        lora: The recipe's settings.
        seed: Seed of the adapter's random start.

    Yields:
        What `add_adapter` gives.
    """
    # PiSSA puts other tensors in the place of the weights that it takes apart; these are the original ones.
    weights = {name: parameter.data for name, parameter in model.named_parameters()}
    wrapped, summary = add_adapter(model, lora, seed)
    try:
        yield wrapped, summary
    finally:
        wrapped.unload()
        model.activation_checkpointing_disable()  # `fit` may have turned it on
        model.zero_grad(set_to_none=True)
        for name, parameter in model.named_parameters():
            parameter.data = weights[name]
        model.requires_grad_(requires_grad=False)
        model.eval()


def summarise(model: PeftModel, modules: tuple[str, ...]) -> AdapterSummary:
    """Count the parameters of an adapted model."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return AdapterSummary(modules, trainable, sum(p.numel() for p in model.parameters()))


def adapter_state(model: PeftModel) -> dict[str, torch.Tensor]:
    """The trainable tensors by parameter name, detached, on the CPU."""
    return {
        name: parameter.detach().cpu().clone().contiguous()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def set_adapter_state(model: PeftModel, state: dict[str, torch.Tensor]) -> None:
    """Copy tensors of `adapter_state` back into the model.

    Args:
        model: The adapted model.
        state: Tensors by parameter name.

    Raises:
        ModelError: If names or shapes differ.
    """
    own = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if own.keys() != state.keys():
        odd = sorted(own.keys() ^ state.keys())[0]
        msg = f"the saved adapter and the model differ, first at {odd}; the recipe's lora group must be the same"
        raise ModelError(msg)
    with torch.no_grad():
        for name, tensor in state.items():
            if own[name].shape != tensor.shape:
                msg = f"{name}: expected shape {tuple(own[name].shape)}, the saved adapter has {tuple(tensor.shape)}"
                raise ModelError(msg)
            own[name].copy_(tensor)


def save_adapter(
    model: PeftModel, folder: Path, base_name: str, pissa_start: dict[str, torch.Tensor] | None = None
) -> None:
    """Write a plain PEFT folder.

    Args:
        model: The adapted model.
        folder: Existing folder to write into.
        base_name: Hub id or path for `base_model_name_or_path`; PEFT's own tools read it.
        pissa_start: PEFT state dict at the start of training where the variant is PiSSA.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in peft_state(model).items()}
    config = dict(model.peft_config["default"].to_dict())
    if pissa_start is not None:
        state = _difference(state, pissa_start)
        config |= {"r": 2 * config["r"], "lora_alpha": 2 * config["lora_alpha"], "init_lora_weights": True}
    config |= {"base_model_name_or_path": base_name, "inference_mode": True}
    config["target_modules"] = sorted(config["target_modules"])
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(plain, indent=2, default=str) + "\n", "utf-8")


def peft_state(model: PeftModel, name: str = "default") -> dict[str, torch.Tensor]:
    """The tensors of one adapter under PEFT's own names."""
    state: dict[str, torch.Tensor] = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def load_adapter(model: T5ForConditionalGeneration, folder: Path) -> PeftModel:
    """Put a saved adapter on a base.

    Args:
        model: The base the adapter belongs to.
        folder: A PEFT folder with safetensors weights.

    Returns:
        The adapted model, in evaluation mode, nothing trainable.

    Raises:
        ModelError: If the folder is no LoRA adapter or does not fit the base.
    """
    config = read_adapter(folder)
    try:
        with _known_peft_warning():
            adapted = PeftModel.from_pretrained(model, str(folder), is_trainable=False, config=config)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        msg = f"{folder}: the adapter does not fit the base: {reason}"
        raise ModelError(msg) from None
    _check_loaded(adapted, folder)
    adapted.eval()
    return adapted


def load_adapters(model: T5ForConditionalGeneration, folders: Sequence[Path]) -> tuple[PeftModel, tuple[str, ...]]:
    """Put several saved adapters on one base, side by side.

    Args:
        model: The base they all belong to.
        folders: PEFT folders with safetensors weights, at least one.

    Returns:
        The adapted model, in evaluation mode, and the name of each adapter on it; the first is active.

    Raises:
        ModelError: If a folder is no LoRA adapter or does not fit the base.
    """
    adapted = load_adapter(model, folders[0])
    names = ["default"]
    for index, folder in enumerate(folders[1:], start=1):
        read_adapter(folder)
        name = f"member{index}"
        try:
            with _known_peft_warning():
                adapted.load_adapter(str(folder), adapter_name=name, is_trainable=False)
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())[:300]
            msg = f"{folder}: the adapter does not fit the base: {reason}"
            raise ModelError(msg) from None
        _check_loaded(adapted, folder, name)
        names.append(name)
    adapted.eval()
    return adapted, tuple(names)


def merge(model: PeftModel) -> T5ForConditionalGeneration:
    """Fold the adapter into the base weights; load the base in fp32 first, since merging in bf16 drifts."""
    with _known_peft_warning():
        merged: T5ForConditionalGeneration = model.merge_and_unload(safe_merge=True)
    return merged


@contextlib.contextmanager
def _known_peft_warning() -> Iterator[None]:
    # PEFT 0.21 asks transformers 5 by a name that is deprecated, and notes of every Flan-T5, whose head is its
    # own, that it is not tied to the embedding: nothing a user could act on.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Input and output embeddings are no longer tied", UserWarning)
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def _check_loaded(model: PeftModel, folder: Path, name: str = "default") -> None:
    """PEFT warns, and goes on with a random adapter, where keys do not match: compare instead."""
    saved, loaded = load_file(folder / WEIGHTS), peft_state(model, name)
    if saved.keys() != loaded.keys():
        odd = sorted(saved.keys() ^ loaded.keys())[0]
        msg = f"{folder}: the adapter does not fit the base, first at {odd}"
        raise ModelError(msg)
    for name, tensor in saved.items():
        if not torch.isfinite(tensor).all():
            msg = f"{folder}: {name} holds values that are not finite; train again or restore a backup"
            raise ModelError(msg)


def _difference(end: dict[str, torch.Tensor], start: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    # B1 A1 - B0 A0 = [B1, -B0] [A1; A0]; r and alpha both double, so alpha / r stays.
    joined = {}
    for name, tensor in end.items():
        before = start[name].to(tensor.device)
        is_a = "lora_A" in name
        joined[name] = torch.cat((tensor, before if is_a else -before), dim=0 if is_a else 1).contiguous()
    return joined
