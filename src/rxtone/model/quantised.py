"""A base whose frozen weights are held in 8 or 4 bits, through bitsandbytes.

Layers that transformers keeps whole stay so: the output head, and T5's `wo`, whose large values 8 bits garble
(transformers #20287). Adapters sit beside the quantised layers in full precision.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from typing import TYPE_CHECKING

import torch
from transformers import BitsAndBytesConfig, T5Config, T5ForConditionalGeneration

from rxtone.errors import ModelError, RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_quantised(
    name: str, source: str, config: T5Config, revision: str | None, bits: str, device: torch.device, *, local: bool
) -> T5ForConditionalGeneration:
    """Load a base in few bits, and try it.

    Args:
        name: What the recipe calls the base, for messages.
        source: Folder or hub id.
        config: Its config.
        revision: Commit on the hub.
        bits: `8bit` (LLM.int8) or `4bit` (NF4, the scales quantised too).
        device: Where the weights go.
        local: Whether no network may be used.

    Returns:
        The frozen base, in evaluation mode.

    Raises:
        RecipeError: If bitsandbytes is not installed.
        ModelError: If the base cannot be loaded so, or a first forward gives no numbers.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        msg = f"model.quantization: {bits} needs bitsandbytes; install rxtone[quant], or leave the key out"
        raise RecipeError(msg)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it tells of each cast, in every layer
    dtype = torch.bfloat16 if device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8 else None
    compute = dtype or (torch.float16 if device.type == "cuda" else torch.float32)
    if bits == "8bit":
        quantization = BitsAndBytesConfig(load_in_8bit=True)
    else:
        quantization = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=compute
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model: T5ForConditionalGeneration = T5ForConditionalGeneration.from_pretrained(
                source, config=config, revision=revision or "main", dtype=compute, quantization_config=quantization,
                device_map={"": device}, use_safetensors=True, local_files_only=local,
            )  # fmt: skip
            model.requires_grad_(requires_grad=False)
            model.eval()
            _keep_trainable(model)
            finite = _first_forward_is_finite(model, device)
    except Exception as error:  # bitsandbytes, its native library and transformers each raise their own
        reason = " ".join(str(error).split())[:300]
        msg = f"base {name}: bitsandbytes cannot hold it in {bits} on {device}: {reason}; leave model.quantization out"
        raise ModelError(msg) from error
    if not finite:
        msg = f"base {name}: in {bits} on {device} its first forward gives no numbers; leave model.quantization out"
        raise ModelError(msg)
    return model


def _keep_trainable(model: PreTrainedModel) -> None:
    """On CPUs bitsandbytes packs 4-bit weights anew at the first scoring pass, and gradients silently end there."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def _first_forward_is_finite(model: T5ForConditionalGeneration, device: torch.device) -> bool:
    ids = torch.arange(2, 18, device=device)[None] % int(model.config.vocab_size)
    with torch.inference_mode():
        logits = model(input_ids=ids, decoder_input_ids=ids[:, :2], use_cache=False).logits
    return bool(torch.isfinite(logits).all())
