"""A merged model -> the weight files of a runtime: transformers, CTranslate2 or ONNX."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedTokenizerFast

from rxtone.errors import ModelError, RecipeError
from rxtone.model.base import DTYPES
from rxtone.model.onnx_graph import FOLDED, HEAD, build_label_graph
from rxtone.model.runtimes import ONNX_FILE, Format, vocabulary

if TYPE_CHECKING:
    from pathlib import Path

    from tokenizers import Tokenizer
    from transformers import T5ForConditionalGeneration

    from rxtone.model.scoring import LabelTokens

PRECISIONS: dict[Format, tuple[str, ...]] = {
    "merged": ("fp32", "bf16"),
    "ctranslate2": ("fp32", "bf16", "int8"),
    "onnx": ("fp32", "int8"),
}
PACKAGES: dict[Format, tuple[str, ...]] = {
    "merged": (),
    "ctranslate2": ("ctranslate2",),
    "onnx": ("onnx", "onnxruntime"),
}
ONE_FILE = 1_900_000_000
"""Bytes of weights beyond which an ONNX file keeps them beside it: protobuf ends at 2 GiB."""
_CT2_TYPES = {"fp32": "float32", "bf16": "bfloat16", "int8": "int8"}


def check_format(form: str, precision: str) -> Format:
    """Check that a format knows a precision, and that what it needs is installed.

    Args:
        form: `merged`, `ctranslate2` or `onnx`.
        precision: `fp32`, `bf16` or `int8`.

    Returns:
        The format.

    Raises:
        RecipeError: If the format is unknown or has no such precision.
        ModelError: If a package is missing.
    """
    for known, precisions in PRECISIONS.items():
        if form == known:
            if precision not in precisions:
                msg = f"--precision {precision}: {form} has {', '.join(precisions)}"
                raise RecipeError(msg)
            missing = [name for name in PACKAGES[known] if find_spec(name) is None]
            if missing:
                msg = f"--format {form}: needs {', '.join(missing)}, not installed here; install the extra `export`"
                raise ModelError(msg)
            return known
    msg = f"--format {form}: expected {', '.join(PRECISIONS)}"
    raise RecipeError(msg)


def special_ids(model: T5ForConditionalGeneration) -> dict[str, int]:
    """Ids of the tokens `pad`, `eos` and decoder `start` of a model."""
    config: Any = model.config
    return {
        "pad": int(config.pad_token_id),
        "eos": int(config.eos_token_id),
        "start": int(config.decoder_start_token_id),
    }


def write_weights(
    model: T5ForConditionalGeneration, tokenizer: Tokenizer, label_tokens: LabelTokens, folder: Path, *,
    form: Format, precision: str, max_tokens: int,
) -> None:  # fmt: skip
    """Write the weights and the tokenizer of a runtime.

    Args:
        model: The merged model, in fp32 on the CPU; `merged` in bf16 casts it in place.
        tokenizer: Its tokenizer.
        label_tokens: The labels; an ONNX file scores these and no others.
        folder: Existing folder to write into.
        form: The runtime.
        precision: Of the weights.
        max_tokens: The longest prompt.

    Raises:
        ModelError: If the runtime cannot express the model.
    """
    if form == "merged":
        _write_merged(model, tokenizer, folder, precision)
    elif form == "ctranslate2":
        _write_ctranslate2(model, tokenizer, folder, precision)
    else:
        _write_onnx(model, label_tokens, folder, precision, max_tokens)
    # Last: byte for byte the tokenizer of the run, whatever a library wrote of its own.
    tokenizer.save(str(folder / "tokenizer.json"))


def _write_merged(model: T5ForConditionalGeneration, tokenizer: Tokenizer, folder: Path, precision: str) -> None:
    model.to(DTYPES[precision])  # type: ignore[arg-type]  # transformers' stub of nn.Module.to
    model.save_pretrained(folder)
    ids = special_ids(model)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>",  # noqa: S106  # a token of text
        pad_token=tokenizer.id_to_token(ids["pad"]), eos_token=tokenizer.id_to_token(ids["eos"]),
    )  # fmt: skip
    wrapped.save_pretrained(folder)


def _write_ctranslate2(model: T5ForConditionalGeneration, tokenizer: Tokenizer, folder: Path, precision: str) -> None:
    from ctranslate2.converters.transformers import T5Loader
    from ctranslate2.specs.model_spec import OPTIONAL

    config = model.config
    with torch.no_grad():
        spec = T5Loader().get_model_spec(model)
    # The loader takes tied embeddings for scaled outputs. transformers 5 ties all T5, and says apart whether
    # outputs are scaled; Flan-T5's are not, and scaled they are wrong.
    if config.scale_decoder_outputs:
        spec.decoder.scale_outputs = config.d_model**-0.5
    else:
        spec.decoder.scale_outputs = OPTIONAL
    tokens = vocabulary(tokenizer, config.vocab_size)
    spec.register_source_vocabulary(tokens)
    spec.register_target_vocabulary(tokens)
    ids = special_ids(model)
    spec.config.bos_token = tokens[ids["pad"]]
    spec.config.eos_token = tokens[ids["eos"]]
    spec.config.unk_token = "<unk>"  # noqa: S105  # a token of text
    spec.config.decoder_start_token = tokens[ids["start"]]
    spec.config.layer_norm_epsilon = config.layer_norm_epsilon
    spec.validate()
    spec.optimize(quantization=_CT2_TYPES[precision])
    spec.save(str(folder))


def _write_onnx(
    model: T5ForConditionalGeneration, label_tokens: LabelTokens, folder: Path, precision: str, max_tokens: int
) -> None:
    import onnx

    graph = build_label_graph(model, label_tokens, max_tokens)
    path = folder / ONNX_FILE
    large = sum(len(weight.raw_data) for weight in graph.graph.initializer) > ONE_FILE
    if precision == "fp32":
        onnx.save(graph, str(path), save_as_external_data=large, location=f"{ONNX_FILE}.data")
        return
    from onnxruntime.quantization import QuantType, quantize_dynamic

    folded = [node.name for node in graph.graph.node if node.name.endswith(FOLDED)]
    full = folder / "fp32.onnx"
    onnx.save(graph, str(full), save_as_external_data=large, location="fp32.onnx.data")
    logging.getLogger().disabled, before = True, logging.getLogger().disabled
    try:
        quantize_dynamic(
            full, path, op_types_to_quantize=["MatMul"], per_channel=True, weight_type=QuantType.QInt8,
            reduce_range=True,  # 7 bits: with 8, sums saturate on CPUs without 8-bit dot products
            nodes_to_exclude=[HEAD, "sums", *folded], use_external_data_format=large,
            extra_options={"MatMulConstBOnly": True},
        )  # fmt: skip
    finally:
        logging.getLogger().disabled = before  # it advises on standard error to pre-process a graph of another origin
        for left in folder.glob("fp32.onnx*"):
            left.unlink()
