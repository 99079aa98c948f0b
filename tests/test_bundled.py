"""What the package carries: a base that anyone can open, and a demonstration that learns."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer, T5ForConditionalGeneration

import rxtone
from rxtone import api, pipeline
from rxtone.config import load_recipe
from rxtone.errors import ModelError
from rxtone.model.base import load_base
from rxtone.model.scoring import label_token_ids

BASE = Path(rxtone.__file__).parent / "bundled" / "base"


def test_it_stays_small():
    assert sum(path.stat().st_size for path in BASE.iterdir()) <= 45_000_000
    assert sorted(path.name for path in BASE.iterdir()) == [
        "README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip


def test_transformers_opens_it_unaided():
    model = T5ForConditionalGeneration.from_pretrained(BASE)
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    assert (model.config.num_layers, model.config.num_decoder_layers, model.config.d_model) == (6, 2, 384)
    assert tokenizer("it helped").input_ids[-1] == model.config.eos_token_id
    assert tokenizer.unk_token_id not in tokenizer("no more migraines, but i felt dizzy").input_ids


def test_each_label_is_one_token():
    base = load_base("bundled", precision="fp32")
    tokens = label_token_ids(base.tokenizer, ["positive", "neutral", "negative"], eos=1)
    assert [len(ids) for ids in tokens.ids] == [1, 1, 1]


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


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_demonstration_learns_beyond_zero_shot(tmp_path, seed):
    recipe = load_recipe("demo", [f"train.seed={seed}", "evaluation.baselines=false", "evaluation.reload_check=false"])
    run = api.train(recipe, out=tmp_path / "run")
    metrics = json.loads((run.evaluation / "metrics.json").read_text())
    assert metrics["split"] == "test"
    assert metrics["macro_f1"] > metrics["baselines"]["zero_shot"]["macro_f1"]


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
