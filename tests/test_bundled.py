"""What the package carries: a base that anyone can open and that knows something, and a demonstration that learns."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score, f1_score
from tokenizers import Tokenizer
from transformers import AutoTokenizer, T5ForConditionalGeneration

import rxtone
from rxtone import api, pipeline
from rxtone.config import load_recipe
from rxtone.data.reviews import parse_rule, read_reviews
from rxtone.data.tables import read_table
from rxtone.errors import ModelError
from rxtone.loading import zero_shot
from rxtone.model.base import load_base

BASE = Path(rxtone.__file__).parent / "bundled" / "base"
LABELS = ("positive", "neutral", "negative")
ROOT = Path(__file__).parents[1]
DEMO = "rxtone demo --out runs/demo"


def test_it_stays_small_and_names_its_parts():
    assert sum(path.stat().st_size for path in BASE.iterdir()) <= 45_000_000
    assert sorted(path.name for path in BASE.iterdir()) == [
        "README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip
    assert "No row of the DrugLib data was read" in (BASE / "README.md").read_text()


def test_transformers_opens_it_unaided_and_each_label_is_one_token():
    model, report = T5ForConditionalGeneration.from_pretrained(BASE, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert (model.config.num_layers, model.config.num_decoder_layers, model.config.d_model) == (6, 2, 384)
    assert sum(parameter.numel() for parameter in model.parameters()) == 21_103_872
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    plain = Tokenizer.from_file(str(BASE / "tokenizer.json"))
    for label in LABELS:
        assert tokenizer(label).input_ids == plain.encode(label).ids
        assert len(plain.encode(label).ids) == 2  # the word and </s>
    assert tokenizer.unk_token_id not in tokenizer("no more migraines, but i felt dizzy").input_ids
    assert tokenizer.decode(tokenizer("No side-effects at all!").input_ids, skip_special_tokens=True) == (
        "no side - effects at all!"
    )


def test_generation_answers_with_a_label():
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


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_damaged_files_are_one_clear_error(monkeypatch, tmp_path, damage):
    package = tmp_path / "rxtone"
    shutil.copytree(BASE, package / "bundled" / "base")
    weights = package / "bundled" / "base" / "model.safetensors"
    if damage == "missing":
        (weights.parent / "config.json").unlink()
    else:
        weights.write_bytes(weights.read_bytes()[:1000])
    monkeypatch.setattr("rxtone.model.base.resources.files", lambda _: package)
    with pytest.raises(ModelError, match=r"reinstall rxtone|copy or download the folder again"):
        load_base("bundled", precision="fp32")


def test_zero_shot_is_well_above_the_majority():
    recipe = load_recipe("demo")
    rule = parse_rule(recipe.data.label.rule)
    reviews = read_reviews(read_table("sample:test"), recipe.data.text_fields, recipe.data.label.column, rule)
    guess = zero_shot(recipe).score(reviews).log_probs.argmax(1)
    truth = np.array([rule.labels.index(str(review.label)) for review in reviews])
    majority = f1_score(truth, np.full_like(truth, np.bincount(truth).argmax()), average="macro")
    assert f1_score(truth, guess, average="macro") > majority + 0.1
    assert cohen_kappa_score(truth, guess) > 0.2


def gain(run: Path) -> float:
    """Macro-F1 over that of the base without an adapter, both on the test rows."""
    metrics = json.loads((run / "evaluation" / "metrics.json").read_text())
    assert metrics["split"] == "test"
    return metrics["macro_f1"] - metrics["baselines"]["zero_shot"]["macro_f1"]


def test_the_demonstration_learns_beyond_zero_shot(tmp_path):
    """With each of three seeds. The first is the command that the pages show, as typed."""
    for page in ("docs/index.md", "Makefile"):
        assert DEMO in (ROOT / page).read_text("utf-8")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    typed = subprocess.run(
        shlex.split(DEMO), cwd=tmp_path, env=os.environ | {"PATH": path}, capture_output=True, text=True
    )
    assert typed.returncode == 0, typed.stderr
    assert "Five reviews that it has not seen:" in typed.stdout
    demo = tmp_path / "runs" / "demo"
    assert (demo / "evaluation" / "report.html").is_file()
    gains = [gain(demo)]
    spared = [f"evaluation.{name}=false" for name in ("baselines", "reload_check", "behaviour")]
    for seed in (1, 2):
        keys = [f"train.seed={seed}", *spared]
        gains.append(gain(api.train(load_recipe("demo", keys), out=tmp_path / f"seed-{seed}").path))
    assert min(gains) > 0, gains  # about 0.12 each; seed and processor move it by 0.03


def test_nothing_of_it_is_asked_of_the_network(tmp_path, socket_disabled):
    recipe = load_recipe("demo", ["train.max_steps=1", "evaluation.enabled=false", "evaluation.reload_check=false"])
    for _ in pipeline.train(recipe, tmp_path / "run"):
        pass
    assert rxtone.load(tmp_path / "run").predict(["no side effects at all, wonderful"])[0].label in {
        "positive", "neutral", "negative",
    }  # fmt: skip


def test_the_bundled_adapter_answers_right_after_installation():
    classifier = rxtone.load("druglib-mini")
    texts = ["Worked wonders, no side effects.", "Useless. It made me sick for weeks and I stopped."]
    assert [prediction.label for prediction in classifier.predict(texts)] == ["positive", "negative"]
    fields = {
        "Benefits": "None at all.",
        "Side Effects": "Vomiting, dizziness, I ended up in hospital.",
        "Comments": "Never again.",
    }
    assert classifier.predict([fields])[0].label == "negative"
