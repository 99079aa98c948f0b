"""Another precision than the run's own: reachable everywhere, its changes told, refused with a reason."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import rxtone
from rxtone.cli import app
from rxtone.data.reviews import Review
from rxtone.errors import RecipeError
from rxtone.judging import precision_change
from rxtone.model.engine import Engine
from rxtone.model.scoring import replan

needs_int8 = pytest.mark.skipif(not torch.cpu._is_vnni_supported(), reason="this CPU has no 8-bit dot products")


@pytest.mark.parametrize(("native", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_run_in_bf16_is_loaded_in_fp32_where_bf16_is_only_emulated(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, native: bool, expected: torch.dtype
) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    path = run / "adapter" / "classifier.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"precision": "bf16"}))
    for module in ("rxtone.loading", "rxtone.model.base"):
        monkeypatch.setattr(f"{module}.native_bf16", lambda device: native)
    assert rxtone.load(run, device="cpu").model.dtype == expected
    assert rxtone.load(run, device="cpu").precision == ("bf16" if native else "fp32")
    assert rxtone.load(run, device="cpu", precision="bf16").model.dtype == torch.bfloat16  # who asks for it has it


def test_bf16_computes_where_the_processor_has_no_kernels_for_it(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """oneDNN refused the fused product on a CPU with AVX2 alone."""
    texts = ["great relief", "awful pain for weeks"]
    usual = rxtone.load(tiny_run, precision="bf16").predict(texts)
    monkeypatch.setattr("rxtone.model.engine.ops._ONEDNN_BF16", False)
    plain = rxtone.load(tiny_run, precision="bf16").predict(texts)
    for one, other in zip(usual, plain, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=0.05)


@needs_int8
def test_int8_answers_like_the_run_itself(tiny_run: Path, tiny_table: Path) -> None:
    own, eight = rxtone.load(tiny_run), rxtone.load(tiny_run, precision="int8")
    assert isinstance(eight.scorer, Engine)
    assert eight.scorer.is_int8
    assert [own.precision, eight.precision] == [own.spec.precision, "int8"]
    reviews = rxtone.read_reviews(own, tiny_table, labelled=False)
    change = precision_change(eight, own, reviews)
    assert change["reviews"] == 240
    assert 0 < change["mean"] < 0.005
    assert change["largest"] < 0.1  # 0.04 at most with AVX512, AVX2 and neither; other seeds up to 0.18
    assert change["flips"] <= 1
    again = replan(eight.scorer)
    assert isinstance(again, Engine)
    assert again.is_int8


def test_a_change_of_precision_is_counted_with_its_margins(tiny_run: Path) -> None:
    own = rxtone.load(tiny_run)
    reviews = [Review((("Benefits", "great relief"),)), Review((("Benefits", "awful"),))]
    same = precision_change(own, own, reviews)
    assert same == {"reviews": 2, "flips": 0, "largest": 0.0, "mean": 0.0, "largest_flip_margin": None}

    class Turned:
        """Answers with the labels' probabilities turned round."""

        def predict(self, reviews: list[Review]) -> list[rxtone.Prediction]:
            found = []
            for prediction in own.predict(reviews):
                values = list(prediction.probabilities.values())[::-1]
                label = own.labels[int(np.argmax(values))]
                found.append(rxtone.Prediction(label, dict(zip(own.labels, values, strict=True)), False))
            return found

    turned = precision_change(Turned(), own, reviews)  # type: ignore[arg-type]
    assert turned["flips"] == 2
    assert turned["largest_flip_margin"] > 0.5


@needs_int8
@pytest.mark.parametrize(
    "command", [["predict", "RUN", "--text", "great relief", "--json"], ["evaluate", "RUN", "TABLE", "--json"]]
)
def test_commands_take_int8(tiny_run: Path, tiny_table: Path, command: list[str]) -> None:
    places = {"RUN": str(tiny_run), "TABLE": str(tiny_table)}
    result = CliRunner().invoke(app, [places.get(word, word) for word in command] + ["--precision", "int8"])
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    if command[0] == "predict":
        assert answer[0]["label"] == rxtone.load(tiny_run).predict(["great relief"])[0].label
    else:
        assert answer["precision_change"]["reviews"] == 240
        assert answer["precision_change"]["largest"] > 0


def test_a_precision_that_is_none_is_refused_before_anything_loads(tiny_run: Path) -> None:
    with pytest.raises(RecipeError, match="precision int4: expected auto, fp32, bf16, fp16 or int8"):
        rxtone.load(tiny_run, precision="int4")


def test_int8_says_why_not(tiny_run: Path) -> None:
    with pytest.raises(RecipeError, match="the reference has none; choose bf16 or fp32"):
        rxtone.load(tiny_run, precision="int8", engine="reference")
    with pytest.raises(RecipeError, match="only a merged adapter is quantised"):
        rxtone.load(tiny_run, precision="int8", merged=False)
