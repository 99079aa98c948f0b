import json

import numpy as np
import pytest
from tiny import GOOD, tiny_rows
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

import rxtone
from rxtone.data.reviews import Review
from rxtone.data.tables import read_table
from rxtone.errors import GateError, ModelError, RecipeError
from rxtone.loading import load
from rxtone.model.runtimes import ExportedModel
from rxtone.serving.bulk import predict_tables
from rxtone.serving.export import CANARIES, bundled_canaries, export

COMMON = {"classifier.json", "export.json", "manifest.json", "tokenizer.json", "validation.json", "README.md"}
FILES = {
    "merged": {"config.json", "generation_config.json", "model.safetensors", "tokenizer_config.json"},
    "ctranslate2": {"config.json", "model.bin", "shared_vocabulary.json"},
    "onnx": {"model.onnx"},
}
FORMATS = [("merged", "fp32"), ("merged", "bf16"), ("ctranslate2", "fp32"), ("ctranslate2", "bf16"),
           ("ctranslate2", "int8"), ("onnx", "fp32"), ("onnx", "int8")]  # fmt: skip


@pytest.fixture(scope="module")
def reviews() -> list[Review]:
    rows = tiny_rows(60, seed=9)
    fields = [Review(fields=(("Benefits", good), ("Side Effects", bad))) for _, good, bad in rows]
    return [*fields, Review(text="great relief"), Review(text="x"), Review(text=" ".join(GOOD * 50))]


@pytest.mark.parametrize(("form", "precision"), FORMATS)
def test_an_export_is_loaded_as_a_run_is(tiny_run, tmp_path, reviews, form, precision):
    out = tmp_path / "out"
    report = export(tiny_run, out, form=form, precision=precision, canaries=reviews, tolerance=0.2)
    assert {path.name for path in out.iterdir()} == COMMON | FILES[form]
    assert json.loads((out / "export.json").read_text("utf-8")) == json.loads(json.dumps(vars(report)))
    assert (report.canaries, report.tolerance, report.tokens) == (63, 0.2, {"pad": 0, "eos": 1, "start": 0})
    classifier, run = rxtone.load(out), load(tiny_run)
    assert isinstance(classifier.model, ExportedModel) == (form != "merged")
    assert classifier.labels == run.labels
    assert classifier.precision == precision
    # What the report says is what a user gets.
    got, expected = classifier.predict(reviews), run.predict(reviews)
    pairs = zip(got, expected, strict=True)
    change = np.array([[abs(a.probabilities[k] - b.probabilities[k]) for k in run.labels] for a, b in pairs])
    assert change.max() == pytest.approx(report.max_probability_change, abs=1e-6)
    if precision == "fp32":
        assert report.max_probability_change < 1e-5
        assert report.flipped_labels == 0
    else:
        assert report.max_probability_change > 1e-6
    assert classifier.predict(["great"])[0].truncated is False
    assert classifier.predict([reviews[-1]])[0].truncated is True


def test_merged_is_a_plain_transformers_folder(tiny_run, tmp_path, reviews):
    out = tmp_path / "out"
    export(tiny_run, out, canaries=reviews)
    run = load(tiny_run)
    model = AutoModelForSeq2SeqLM.from_pretrained(out)
    for name, weight in run.model.state_dict().items():
        assert np.array_equal(weight.numpy(), model.state_dict()[name].numpy()), name
    tokenizer = AutoTokenizer.from_pretrained(out)
    for review in reviews:
        text = run.prompts.render(review)
        assert tokenizer(text)["input_ids"] == run.tokenizer.encode(text).ids
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1)


@pytest.mark.parametrize(("form", "precision"), [("onnx", "int8"), ("ctranslate2", "int8"), ("merged", "bf16")])
def test_the_gate_leaves_nothing_behind(tiny_run, tmp_path, reviews, form, precision):
    with pytest.raises(
        GateError, match=r"63 canary reviews a probability changed by .* at most 1e-07 is allowed"
    ) as caught:
        export(tiny_run, tmp_path / "out", form=form, precision=precision, canaries=reviews, tolerance=1e-7)
    assert caught.value.exit_code == 4
    assert list(tmp_path.iterdir()) == []


def test_the_bundled_sample_is_the_default_canary(tiny_run, tmp_path):
    spec = load(tiny_run).spec
    canaries = bundled_canaries(spec)
    assert len(canaries) == CANARIES
    assert all(review.text or any(text for _, text in review.fields) for review in canaries)
    assert {name for review in canaries for name, _ in review.fields} == {"Benefits", "Side Effects"}
    assert export(tiny_run, tmp_path / "out", form="onnx").canaries == CANARIES
    druglib = spec.model_copy(
        update={"text_fields": {"Side Effects": "sideEffectsReview", "Benefits": "benefitsReview"}}
    )
    first = read_table("sample:test").frame.row(0, named=True)
    assert bundled_canaries(druglib)[0].fields == (
        ("Side Effects", first["sideEffectsReview"]), ("Benefits", first["benefitsReview"])
    )  # fmt: skip


def test_canaries_from_a_table(tiny_run, tiny_table, tmp_path):
    report = export(tiny_run, tmp_path / "out", form="onnx", canaries=str(tiny_table))
    assert report.canaries == read_table(tiny_table).frame.height


def test_bulk_work_with_an_export_gives_the_labels_of_the_run(tiny_run, tiny_table, tmp_path):
    export(tiny_run, tmp_path / "onnx", form="onnx")
    frames = []
    for name, source in (("a.csv", tiny_run), ("b.csv", tmp_path / "onnx")):
        list(predict_tables(load(source), [str(tiny_table)], tmp_path / name, chunk_rows=40))
        frames.append(read_table(tmp_path / name).frame)
    assert frames[0]["label"].equals(frames[1]["label"])
    for column in ("p_positive", "p_neutral", "p_negative"):
        difference = frames[0][column].cast(float) - frames[1][column].cast(float)
        assert difference.abs().max() < 1e-5


def test_what_cannot_be_exported_is_told(tiny_run, tmp_path, reviews):
    out = tmp_path / "out"
    export(tiny_run, out, form="onnx", canaries=reviews)
    with pytest.raises(RecipeError, match="this one exists"):
        export(tiny_run, out)
    with pytest.raises(RecipeError, match="is an export already"):
        export(out, tmp_path / "again")
    with pytest.raises(RecipeError, match="--precision int8: merged has fp32, bf16"):
        export(tiny_run, tmp_path / "again", precision="int8")
    with pytest.raises(RecipeError, match="at least one review"):
        export(tiny_run, tmp_path / "again", canaries=[])
    with pytest.raises(RecipeError, match="an exported folder is complete"):
        load(out, precision="bf16")
    with pytest.raises(ModelError, match="only scores labels"):
        load(out).generate(reviews[:1])
    (out / "export.json").write_text("{", "utf-8")
    with pytest.raises(ModelError, match="expected the record"):
        load(out)


def test_a_missing_runtime_is_told(tiny_run, tmp_path, reviews, monkeypatch):
    out = tmp_path / "out"
    export(tiny_run, out, form="onnx", canaries=reviews)
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(ModelError, match=r"needs onnx, not installed here; install the extra `export`"):
        load(out)
    monkeypatch.setattr("rxtone.model.export_weights.find_spec", lambda name: None if name == "onnxruntime" else name)
    with pytest.raises(ModelError, match=r"onnx: needs onnxruntime, not installed here; install the extra `export`"):
        export(tmp_path / "no run", tmp_path / "again", form="onnx", canaries=reviews)  # before anything is loaded
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
