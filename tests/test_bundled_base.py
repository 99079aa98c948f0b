"""The base that ships with the package: plain files, small, and it knows something."""

import json
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score, f1_score
from tokenizers import Tokenizer
from transformers import AutoTokenizer, T5ForConditionalGeneration

from rxtone.classifier import zero_shot
from rxtone.config import load_recipe
from rxtone.data.reviews import parse_rule, read_reviews
from rxtone.data.tables import read_table

BASE = Path(str(resources.files("rxtone") / "bundled" / "base"))
LABELS = ("positive", "neutral", "negative")


def test_it_fits_the_wheel_and_names_its_parts() -> None:
    names = {path.name for path in BASE.iterdir()}
    assert names >= {"README.md", "config.json", "generation_config.json", "model.safetensors"}
    assert names >= {"tokenizer.json", "tokenizer_config.json"}
    assert sum(path.stat().st_size for path in BASE.iterdir()) < 45_000_000
    config = json.loads((BASE / "config.json").read_text())
    assert (config["d_model"], config["num_layers"], config["num_decoder_layers"]) == (384, 6, 2)
    assert "No row of the DrugLib data was read" in (BASE / "README.md").read_text()


def test_transformers_opens_it_unaided_and_labels_are_one_token() -> None:
    model, report = T5ForConditionalGeneration.from_pretrained(BASE, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert sum(parameter.numel() for parameter in model.parameters()) == 21_103_872
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    plain = Tokenizer.from_file(str(BASE / "tokenizer.json"))
    for label in LABELS:
        assert tokenizer(label).input_ids == plain.encode(label).ids
        assert len(plain.encode(label).ids) == 2  # the word and </s>
    assert tokenizer.decode(tokenizer("No side-effects at all!").input_ids, skip_special_tokens=True) == (
        "no side - effects at all!"
    )


def test_generation_answers_with_a_label() -> None:
    model = T5ForConditionalGeneration.from_pretrained(BASE).float().eval()
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    asked = [
        "Classify the sentiment of this review as positive, neutral, or negative:\n" + text
        for text in ("It worked wonderfully, I love it.", "Terrible. It made me sick and did nothing.")
    ]
    batch = tokenizer(asked, return_tensors="pt", padding=True)
    answers = model.generate(input_ids=batch.input_ids, attention_mask=batch.attention_mask, max_new_tokens=3)
    assert tokenizer.decode(answers[0], skip_special_tokens=True) == "positive"
    assert tokenizer.decode(answers[1], skip_special_tokens=True) == "negative"


@pytest.fixture(scope="module")
def judged() -> tuple[np.ndarray, np.ndarray]:
    recipe = load_recipe("demo")
    rule = parse_rule(recipe.data.label.rule)
    reviews = read_reviews(read_table("sample:test"), recipe.data.text_fields, recipe.data.label.column, rule)
    guess = zero_shot(recipe).score(reviews).log_probs.argmax(1)
    return np.array([rule.labels.index(str(review.label)) for review in reviews]), guess


def test_zero_shot_is_well_above_the_majority(judged: tuple[np.ndarray, np.ndarray]) -> None:
    truth, guess = judged
    majority = f1_score(truth, np.full_like(truth, np.bincount(truth).argmax()), average="macro")
    assert f1_score(truth, guess, average="macro") > majority + 0.1
    assert cohen_kappa_score(truth, guess) > 0.2
