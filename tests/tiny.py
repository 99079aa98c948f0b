"""The tiny offline T5 (d_model 16, one layer, word-level tokens) and a table that it can learn."""

import random
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import T5Config, T5ForConditionalGeneration

SHARED = Path(__file__).parents[1].parent / "shared"
DRUGLIB = SHARED / "data" / "druglib" / "drugLibTrain_raw.tsv"
REFERENCE_BASE = SHARED / "models" / "reference_base"
needs_shared = pytest.mark.skipif(
    not DRUGLIB.is_file(), reason="needs ../shared, the reference data beside the checkout"
)

GOOD = ("great", "relief", "helped", "wonderful")
MIXED = ("average", "partly", "some", "middling")
BAD = ("awful", "useless", "worse", "terrible")
FILLER = ("the", "pill", "was", "for", "me", "and", "then", "pain", "sleep", "none")
PROMPT = ("Classify", "the", "sentiment", "of", "this", "review", "as", "positive", "neutral", "or", "negative",
          "Benefits", "Side", "Effects", ":", ",", ".", "...", "very")  # fmt: skip


def tiny_tokenizer() -> Tokenizer:
    """Words are tokens; </s> is appended; <pad> 0, </s> 1, <unk> 2 as in every T5."""
    words = ["<pad>", "</s>", "<unk>", *dict.fromkeys(PROMPT + GOOD + MIXED + BAD + FILLER)]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A $B </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    return tokenizer


def write_tiny_base(folder: Path, *, seed: int = 0, gated: bool = True, dropout: float = 0.0) -> Path:
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer()
    config = T5Config(
        vocab_size=tokenizer.get_vocab_size(), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_decoder_layers=1,
        num_heads=2, relative_attention_num_buckets=8, relative_attention_max_distance=32, dropout_rate=dropout,
        feed_forward_proj="gated-gelu" if gated else "relu", decoder_start_token_id=0, pad_token_id=0,
        eos_token_id=1, tie_word_embeddings=False,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config)
    model.generation_config.decoder_start_token_id = 0
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def tiny_rows(n: int, seed: int) -> list[tuple[str, str, str]]:
    """(rating, benefits, side effects): a third of each sentiment, told by one telling word in each field."""
    generator = random.Random(seed)
    rows = []
    for index in range(n):
        rating, words = ((9, GOOD), (5, MIXED), (2, BAD))[index % 3]
        fields = [
            " ".join(
                [
                    *generator.choices(FILLER, k=generator.randint(1, 6)),
                    generator.choice(words),
                    *generator.choices(FILLER, k=2),
                ]
            )
            for _ in range(2)
        ]
        rows.append((str(rating), *fields))
    return rows


def write_tiny_table(path: Path, n: int = 240, seed: int = 1) -> Path:
    lines = ["rating,benefits,effects", *(",".join(row) for row in tiny_rows(n, seed))]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def tiny_values(base: Path, table: Path) -> dict:
    return {
        "data": {
            "train": str(table), "text_fields": {"Benefits": "benefits", "Side Effects": "effects"},
            "label": {"column": "rating", "rule": {"positive": ">=7", "neutral": "5..6", "negative": "<=4"}},
        },
        "prompt": {"max_tokens": 48},
        "model": {"base": str(base), "precision": "fp32"},
        "lora": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": ["all-linear"]},
        "train": {"learning_rate": 0.01, "num_train_epochs": 12, "early_stopping_patience": None, "seed": 9},
        "evaluation": {"reload_check": False},  # a process of its own takes seconds; `tiny_run` does it once
    }  # fmt: skip
