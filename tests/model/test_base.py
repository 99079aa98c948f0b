import json
import shutil

import pytest
import torch
from tiny import write_tiny_base
from transformers import MT5Config, MT5ForConditionalGeneration, T5ForConditionalGeneration

from rxtone.errors import ModelError, RecipeError
from rxtone.model.base import (
    BaseIdentity,
    check_identity,
    identify,
    load_base,
    load_tokenizer,
    native_bf16,
    resolve_precision,
)
from rxtone.model.engine import Engine

CPU = torch.device("cpu")


def test_a_local_base_loads_frozen_and_in_evaluation_mode(tiny_base):
    base = load_base(str(tiny_base), precision="fp32", device=CPU)
    assert base.precision == "fp32"
    assert not base.model.training
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert base.identity.name == str(tiny_base)
    assert (base.identity.revision, len(base.identity.weights_sha256)) == (None, 64)


def test_auto_is_bf16_where_native_else_fp32(tiny_base):
    expected = "bf16" if native_bf16(CPU) else "fp32"
    assert resolve_precision("auto", CPU) == expected
    assert resolve_precision("fp32", CPU) == "fp32"
    assert load_base(str(tiny_base), device=CPU).precision == expected


def test_a_quantised_precision_is_what_it_is():
    assert [resolve_precision(bits, CPU) for bits in ("8bit", "4bit")] == ["8bit", "4bit"]


def test_fp16_on_a_cpu_is_refused(tiny_base):
    with pytest.raises(RecipeError, match="fp16 is for GPUs"):
        load_base(str(tiny_base), precision="fp16", device=CPU)


def test_the_tokenizer_appends_eos_and_does_not_cut(tiny_base):
    tokenizer = load_tokenizer(str(tiny_base))
    assert tokenizer.encode("great pill").ids[-1] == 1
    assert (tokenizer.truncation, tokenizer.padding) == (None, None)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("./no/such/folder", "expected a model folder, there is none at this path"),
        ("bundle", "cannot be loaded (HF_HUB_OFFLINE is set and it is not in the local cache)"),
        ("google/no-such-t5", "name a local folder (--set model.base=PATH)"),
    ],
)
def test_a_missing_base_says_what_to_do(name, reason):
    with pytest.raises(ModelError) as caught:
        load_base(name)
    assert reason in str(caught.value)


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"expected a model folder with config\.json"):
        load_base(str(tmp_path))


def test_another_architecture_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ModelError, match="expected a T5-family encoder-decoder .* got bert"):
        load_base(str(tmp_path))


def test_pickled_weights_are_refused(tiny_base, tmp_path):
    folder = shutil.copytree(tiny_base, tmp_path / "base")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"only pickled \.bin weights, which are never loaded"):
        load_base(str(folder))


def test_damaged_weights_are_one_clear_error(tiny_base, tmp_path):
    folder = shutil.copytree(tiny_base, tmp_path / "base")
    (folder / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0nonsense")
    with pytest.raises(ModelError, match="its model cannot be read"):
        load_base(str(folder))


def test_a_missing_tokenizer_is_one_clear_error(tiny_base, tmp_path):
    folder = shutil.copytree(tiny_base, tmp_path / "base")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"expected tokenizer\.json or spiece\.model beside the weights"):
        load_tokenizer(str(folder))


def test_the_identity_tells_shapes_and_weights_apart(tiny_base, tmp_path):
    same = identify(str(shutil.copytree(tiny_base, tmp_path / "same")))
    other_weights = identify(str(write_tiny_base(tmp_path / "weights", seed=1)))
    other_shape = identify(str(write_tiny_base(tmp_path / "shape", gated=False)))
    own = identify(str(tiny_base))
    check_identity(own.to_json(), same)
    with pytest.raises(ModelError, match=r"trained on .* \(weights .* pass the original base with --base"):
        check_identity(own.to_json(), other_weights)
    with pytest.raises(ModelError, match=r"trained on .* \(config "):
        check_identity(own.to_json(), other_shape)


def test_another_revision_is_refused():
    stored = BaseIdentity("google/flan-t5-base", "a" * 40, "c", None).to_json()
    check_identity(stored, BaseIdentity("google/flan-t5-base", "a" * 40, "c", None))
    with pytest.raises(ModelError, match=r"\(revision aaaaaaaaaaaa\)"):
        check_identity(stored, BaseIdentity("google/flan-t5-base", "b" * 40, "c", None))


def test_a_precision_that_does_not_exist_is_named():
    from rxtone.model.base import resolve_precision

    with pytest.raises(RecipeError, match="expected auto, fp32, bf16, fp16, got 'os'"):
        resolve_precision("os", torch.device("cpu"))


def test_mt5_is_read_as_the_t5_that_it_is(tmp_path):
    folder = write_tiny_base(tmp_path / "mt5")
    shape = T5ForConditionalGeneration.from_pretrained(folder).config
    names = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads", "relative_attention_num_buckets")
    torch.manual_seed(1)
    reference = MT5ForConditionalGeneration(MT5Config(**{name: getattr(shape, name) for name in names})).eval()
    reference.save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "mt5"
    base = load_base(str(folder), precision="fp32", device=CPU)
    ids = torch.tensor([[5, 9, 12, 1]])
    found = base.model(input_ids=ids, decoder_input_ids=ids[:, :2]).logits
    expected = reference(input_ids=ids, decoder_input_ids=ids[:, :2]).logits
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert isinstance(Engine.plan(base.model), Engine)
