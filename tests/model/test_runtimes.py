import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_tokenizer
from transformers import T5Config, T5ForConditionalGeneration

from rxtone.errors import ModelError, RecipeError
from rxtone.model.batches import ReviewDataset
from rxtone.model.export_weights import check_format, write_weights
from rxtone.model.runtimes import EXPORT, ExportedModel, open_exported, read_export
from rxtone.model.scoring import label_token_ids, log_probabilities, score_dataset

SINGLE = ("positive", "neutral", "negative")
LONGER = ("very positive", "positive", "very very negative")  # one begins as another: </s> counts
LENGTHS = (1, 2, 7, 33, 40, 40)
CPU = torch.device("cpu")


def tiny_t5(**changes: object) -> T5ForConditionalGeneration:
    torch.manual_seed(3)
    values = {
        "vocab_size": 50, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_decoder_layers": 2,
        "num_heads": 2, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20,
        "feed_forward_proj": "gated-gelu", "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1,
        "tie_word_embeddings": False, "initializer_factor": 2.0,
    }  # fmt: skip
    config = T5Config(**(values | changes))
    model = T5ForConditionalGeneration(config).eval()
    with torch.no_grad():  # norms are ones at birth and would hide a mistake
        for name, weight in model.named_parameters():
            if "layer_norm" in name:
                weight.uniform_(0.5, 1.5)
    return model


def dataset() -> ReviewDataset:
    generator = np.random.Generator(np.random.PCG64(4))
    return ReviewDataset([[*generator.integers(3, 43, n - 1).tolist(), 1] for n in LENGTHS])


def probabilities(scores: np.ndarray) -> np.ndarray:
    return np.exp(log_probabilities(scores))


def exported(
    model: T5ForConditionalGeneration, folder: Path, form: str, precision: str, labels: tuple[str, ...]
) -> torch.nn.Module:
    tokenizer = tiny_tokenizer()
    tokens = label_token_ids(tokenizer, labels, 1)
    folder.mkdir()
    write_weights(model, tokenizer, tokens, folder, form=form, precision=precision, max_tokens=40)
    record = {"format": form, "precision": precision, "max_tokens": 40, "tokens": {"pad": 0, "eos": 1, "start": 0}}
    (folder / EXPORT).write_text(json.dumps(record), "utf-8")
    return open_exported(folder, read_export(folder), tokenizer, tokens, CPU)


@pytest.mark.parametrize("form", ["ctranslate2", "onnx"])
@pytest.mark.parametrize("labels", [SINGLE, LONGER])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"feed_forward_proj": "relu"},
        {"tie_word_embeddings": True},  # T5 of 2019: outputs scaled by d_model ** -0.5
        {"num_heads": 4, "d_kv": 6, "layer_norm_epsilon": 0.1},
    ],
    ids=["flan", "relu", "scaled", "wide"],
)
def test_fp32_scores_are_those_of_torch(tmp_path, form, labels, changes):
    model = tiny_t5(**changes)
    data, tokens = dataset(), label_token_ids(tiny_tokenizer(), labels, 1)
    expected = probabilities(score_dataset(model, data, tokens, batch_size=4, pad_token_id=0))
    runtime = exported(model, tmp_path / "out", form, "fp32", labels)
    assert isinstance(runtime, ExportedModel)
    assert expected.std() > 0.01
    assert np.abs(probabilities(runtime.score(data, 4)) - expected).max() < 1e-5
    assert np.abs(probabilities(runtime.score(data, 1)) - expected).max() < 1e-5


@pytest.mark.parametrize(("form", "precision"), [("ctranslate2", "int8"), ("ctranslate2", "bf16"), ("onnx", "int8")])
def test_lower_precision_is_near_and_not_the_same(tmp_path, form, precision):
    model = tiny_t5(initializer_factor=1.0)
    data, tokens = dataset(), label_token_ids(tiny_tokenizer(), SINGLE, 1)
    expected = probabilities(score_dataset(model, data, tokens, batch_size=4, pad_token_id=0))
    runtime = exported(model, tmp_path / "out", form, precision, SINGLE)
    change = np.abs(probabilities(runtime.score(data, 4)) - expected).max()
    assert 1e-6 < change < 0.1


@pytest.mark.parametrize("form", ["ctranslate2", "onnx"])
def test_in_8_bits_a_review_has_the_scores_that_it_has_alone(tmp_path, form):
    """ONNX Runtime scales the activations of a whole batch by one number, which the largest of any review decides."""
    runtime = exported(tiny_t5(), tmp_path / "out", form, "int8", SINGLE)
    data = dataset()
    alone = np.concatenate([runtime.score(ReviewDataset([prompt.tolist()]), 1) for prompt in data.prompts])
    for batch_size in (1, 2, 6):
        assert np.abs(probabilities(runtime.score(data, batch_size)) - probabilities(alone)).max() < 1e-6


def test_int8_stays_near_on_a_processor_without_8_bit_dot_products(tmp_path, monkeypatch):
    """There CTranslate2's 8-bit sums saturate; ONNX Runtime's would with weights of 8 bits."""
    import onnx

    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    model = tiny_t5(initializer_factor=1.0)
    data, tokens = dataset(), label_token_ids(tiny_tokenizer(), SINGLE, 1)
    expected = probabilities(score_dataset(model, data, tokens, batch_size=4, pad_token_id=0))
    runtime = exported(model, tmp_path / "ctranslate2", "ctranslate2", "int8", SINGLE)
    assert 1e-6 < np.abs(probabilities(runtime.score(data, 4)) - expected).max() < 0.1
    exported(model, tmp_path / "onnx", "onnx", "int8", SINGLE)
    graph = onnx.load(tmp_path / "onnx" / "model.onnx").graph
    weights = [onnx.numpy_helper.to_array(one) for one in graph.initializer if one.data_type == onnx.TensorProto.INT8]
    assert max(int(np.abs(one).max()) for one in weights if one.ndim == 2) == 64


def test_ctranslate2_scores_labels_where_the_model_would_end_at_once(tmp_path):
    model = tiny_t5()
    with torch.no_grad():
        for sign in (1, -1):  # </s> the most and the least probable first token
            model.lm_head.weight[1] = sign * 5 * model.decoder.final_layer_norm.weight
            data, tokens = dataset(), label_token_ids(tiny_tokenizer(), SINGLE, 1)
            expected = probabilities(score_dataset(model, data, tokens, batch_size=4, pad_token_id=0))
            runtime = exported(model, tmp_path / f"out{sign}", "ctranslate2", "fp32", SINGLE)
            assert np.abs(probabilities(runtime.score(data, 4)) - expected).max() < 1e-5


def test_an_onnx_file_holds_one_model_of_two_inputs(tmp_path):
    import onnx

    exported(tiny_t5(), tmp_path / "out", "onnx", "int8", SINGLE)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["export.json", "model.onnx", "tokenizer.json"]
    model = onnx.load(tmp_path / "out" / "model.onnx")
    onnx.checker.check_model(model)
    assert [value.name for value in model.graph.input] == ["input_ids", "attention_mask"]
    assert [value.name for value in model.graph.output] == ["scores"]


def test_weights_beyond_the_limit_of_protobuf_lie_beside_the_graph(tmp_path, monkeypatch):
    monkeypatch.setattr("rxtone.model.export_weights.ONE_FILE", 100)
    data, tokens = dataset(), label_token_ids(tiny_tokenizer(), SINGLE, 1)
    model = tiny_t5()
    expected = probabilities(score_dataset(model, data, tokens, batch_size=4, pad_token_id=0))
    for precision, bound in (("fp32", 1e-5), ("int8", 0.2)):
        folder = tmp_path / precision
        runtime = exported(model, folder, "onnx", precision, SINGLE)
        assert (folder / "model.onnx.data").is_file()
        assert not list(folder.glob("fp32*"))
        assert np.abs(probabilities(runtime.score(data, 4)) - expected).max() < bound


def test_an_exported_model_says_that_it_only_scores(tmp_path):
    runtime = exported(tiny_t5(), tmp_path / "out", "onnx", "fp32", SINGLE)
    assert next(runtime.parameters()).device == CPU
    assert runtime.score(ReviewDataset([]), 4).shape == (0, 0)
    for call in (runtime, runtime.generate):
        with pytest.raises(ModelError, match="only scores labels"):
            call(input_ids=torch.zeros(1, 1))


def test_damage_is_told(tmp_path):
    for form, name in (("onnx", "model.onnx"), ("ctranslate2", "model.bin")):
        folder = tmp_path / form
        exported(tiny_t5(), folder, form, "fp32", SINGLE)
        (folder / name).write_bytes(b"nothing")
        tokens = label_token_ids(tiny_tokenizer(), SINGLE, 1)
        with pytest.raises(ModelError, match="weights cannot be read"):
            open_exported(folder, read_export(folder), tiny_tokenizer(), tokens, CPU)
    (tmp_path / "onnx" / EXPORT).write_text("{}", "utf-8")
    with pytest.raises(ModelError, match="expected the record"):
        read_export(tmp_path / "onnx")


@pytest.mark.parametrize(("form", "precision"), [("onnx", "bf16"), ("merged", "int8"), ("torchscript", "fp32")])
def test_formats_know_their_precisions(form, precision):
    with pytest.raises(RecipeError, match=form):
        check_format(form, precision)


def test_an_activation_without_counterpart_is_refused(tmp_path):
    with pytest.raises(ModelError, match="expected the activation relu"):
        exported(tiny_t5(feed_forward_proj="tanh"), tmp_path / "out", "onnx", "fp32", SINGLE)
