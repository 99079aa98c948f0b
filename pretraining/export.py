"""Writes the trained student as a plain T5 folder: bfloat16 safetensors, configuration, tokenizer."""

import copy
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import T5ForConditionalGeneration

MAX_BYTES = 45_000_000


def export_base(student: T5ForConditionalGeneration, tokenizer: Path, folder: Path) -> None:
    """Writes the folder that transformers and PEFT open unaided.

    Args:
        student: The trained model.
        tokenizer: Folder of `tokenizer.json` and `tokenizer_config.json`.
        folder: Where the model goes; files of the same names are replaced.

    Raises:
        ValueError: The weights are larger than the wheel allows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = copy.deepcopy(student.config)
    config.architectures = ["T5ForConditionalGeneration"]
    config.dtype = "bfloat16"
    config.save_pretrained(folder)
    tied = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
    weights = {
        name: value.detach().to(torch.bfloat16).contiguous()
        for name, value in student.state_dict().items()
        if name not in tied
    }
    size = sum(value.numel() * value.element_size() for value in weights.values())
    if size > MAX_BYTES:
        msg = f"expected weights of at most {MAX_BYTES} bytes, got {size}: prune the vocabulary or the decoder"
        raise ValueError(msg)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    generation = {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0, "max_new_tokens": 4}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tokenizer / name, folder / name)
