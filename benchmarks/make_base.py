"""Write a Flan-T5-shaped base model with random weights, for speed and memory measurements.

    python -m benchmarks.make_base --size base DIR [--shared DIR] [--seed N]

Speed and memory depend on shapes and lengths, not on what the weights have learned, so the measurements run
where the published weights cannot be downloaded. The folder looks like the published one (config.json as
published, model.safetensors in fp32 with a head of its own, the genuine T5 tokenizer); ``AutoTokenizer`` and
``AutoModelForSeq2SeqLM`` load it. The weights are those of transformers' initialisation, but for a head with
standard deviation d_model**-0.5: the logits have unit variance and the loss starts near log(vocabulary), the
numeric range of a trained model.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import T5Config, T5ForConditionalGeneration

SIZES = ("small", "base", "large")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def make_base(size: str, folder: Path, *, shared: Path = Path("../shared"), seed: int = 20261123) -> Path:
    """Write one randomly initialised base model.

    Args:
        size: One of ``small``, ``base`` and ``large``: the Flan-T5 shape.
        folder: Where to write it; created where absent, files in it are replaced.
        shared: The folder that holds ``data/flan_t5_configs`` and ``data/flan_t5_tokenizer``.
        seed: Seed of the weights.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: The reference configs or tokenizer are not under ``shared``.
    """
    config_file = shared / "data" / "flan_t5_configs" / size / "config.json"
    if not config_file.is_file():
        raise FileNotFoundError(f"expected the Flan-T5 config at {config_file}; name its root: --shared DIR")
    config = T5Config.from_json_file(config_file)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        weights = T5ForConditionalGeneration(config).state_dict()
        # transformers ties the head to the embedding in memory; Flan-T5 as published has a head of its own,
        # which transformers keeps apart when the file holds both.
        weights["lm_head.weight"] = torch.randn(config.vocab_size, config.d_model) * config.d_model**-0.5
    for copy_of_shared in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"):
        weights.pop(copy_of_shared)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    shutil.copyfile(config_file, folder / "config.json")
    for name in _TOKENIZER_FILES:
        source = shared / "data" / "flan_t5_tokenizer" / name
        shutil.copyfile(source, folder / name)
    return folder


def main() -> None:
    """Parse the command line and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=20261123, help="default: %(default)s")
    options = parser.parse_args()
    folder = make_base(options.size, options.folder, shared=options.shared, seed=options.seed)
    print(folder)


if __name__ == "__main__":
    main()
