import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import T5ForConditionalGeneration

from rxtone.config import LoraSettings
from rxtone.errors import ModelError, RecipeError
from rxtone.model.base import load_base
from rxtone.model.lora import (
    adapter_state,
    add_adapter,
    load_adapter,
    merge,
    peft_state,
    resolve_targets,
    save_adapter,
    set_adapter_state,
)

INPUT = {"input_ids": torch.tensor([[5, 6, 7, 1]]), "decoder_input_ids": torch.tensor([[0]])}


def fresh(base):
    return load_base(str(base), precision="fp32").model


def logits(model):
    model.eval()
    with torch.no_grad():
        return model(**INPUT).logits


def trained(base, lora, seed=0):
    """An adapter with every tensor moved, as training would."""
    model, summary = add_adapter(fresh(base), lora, seed=seed)
    start = peft_state(model)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model, summary, start


def test_targets_are_found_by_the_end_of_their_name(tiny_base):
    names = resolve_targets(fresh(tiny_base), ["q", "EncDecAttention.v"])
    assert names == (
        "encoder.block.0.layer.0.SelfAttention.q",
        "decoder.block.0.layer.0.SelfAttention.q",
        "decoder.block.0.layer.1.EncDecAttention.q",
        "decoder.block.0.layer.1.EncDecAttention.v",
    )


def test_all_linear_is_everything_but_the_head(tiny_base):
    names = resolve_targets(fresh(tiny_base), ["all-linear"])
    # encoder: 4 attention + 3 gated feed-forward; decoder: 8 attention + 3
    assert (len(names), any("lm_head" in name for name in names)) == (18, False)


@pytest.mark.parametrize(
    ("target", "hint"),
    [("query", ""), ("wi", "did you mean wi_"), ("lm_head", "")],
)
def test_a_target_that_matches_nothing_lists_what_there_is(tiny_base, target, hint):
    with pytest.raises(RecipeError) as caught:
        resolve_targets(fresh(tiny_base), ["q", target])
    assert f"{target!r} matches no linear layer of this base, which has k, o, q, v, wi_0, wi_1, wo" in str(caught.value)
    assert hint in str(caught.value)


@pytest.mark.parametrize(("targets", "trainable"), [(["q", "v"], 6 * 4 * 32), (["q", "v", "o"], 9 * 4 * 32)])
def test_adding_o_to_q_and_v_raises_the_count_by_half(tiny_base, targets, trainable):
    # every attention layer of the tiny base is 16 x 16: r * (16 + 16) parameters at r=4
    _, summary = add_adapter(fresh(tiny_base), LoraSettings(r=4, target_modules=targets), seed=0)
    assert summary.trainable == trainable
    assert summary.share == trainable / summary.total


def test_a_fresh_adapter_changes_nothing_and_its_seed_decides_its_start(tiny_base):
    lora = LoraSettings(r=4)
    model, _ = add_adapter(fresh(tiny_base), lora, seed=3)
    again, _ = add_adapter(fresh(tiny_base), lora, seed=3)
    other, _ = add_adapter(fresh(tiny_base), lora, seed=4)
    torch.testing.assert_close(logits(model), logits(fresh(tiny_base)))
    name = next(name for name in adapter_state(model) if "lora_A" in name)
    assert torch.equal(adapter_state(model)[name], adapter_state(again)[name])
    assert not torch.equal(adapter_state(model)[name], adapter_state(other)[name])


@pytest.mark.parametrize("variant", ["lora", "rslora", "dora", "pissa"])
def test_saved_reloaded_and_merged_agree_and_differ_from_the_base(tiny_base, tmp_path, variant):
    model, _, start = trained(tiny_base, LoraSettings(r=4, lora_dropout=0.0, variant=variant))
    expected = logits(model)
    save_adapter(model, tmp_path, str(tiny_base), start if variant == "pissa" else None)

    ours = load_adapter(fresh(tiny_base), tmp_path)
    torch.testing.assert_close(logits(ours), expected, rtol=1e-4, atol=1e-5)
    # without rxtone: plain transformers and PEFT
    plain = PeftModel.from_pretrained(T5ForConditionalGeneration.from_pretrained(tiny_base), tmp_path)
    torch.testing.assert_close(logits(plain), expected, rtol=1e-4, atol=1e-5)
    merged = merge(ours)
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-5)
    assert not any("lora" in name for name, _ in merged.named_modules())
    assert (logits(fresh(tiny_base)) - expected).abs().max() > 0.01


def test_the_folder_is_plain_peft(tiny_base, tmp_path):
    model, _, _ = trained(tiny_base, LoraSettings(r=4, target_modules=["v", "q"]))
    save_adapter(model, tmp_path, "google/flan-t5-base")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert {key: config[key] for key in ("peft_type", "task_type", "r", "lora_alpha", "base_model_name_or_path")} == {
        "peft_type": "LORA", "task_type": "SEQ_2_SEQ_LM", "r": 4, "lora_alpha": 16,
        "base_model_name_or_path": "google/flan-t5-base",
    }  # fmt: skip
    assert config["target_modules"] == ["q", "v"]


def test_the_state_goes_back_where_it_came_from(tiny_base):
    model, _, _ = trained(tiny_base, LoraSettings(r=4))
    target, _ = add_adapter(fresh(tiny_base), LoraSettings(r=4), seed=9)
    set_adapter_state(target, adapter_state(model))
    torch.testing.assert_close(logits(target), logits(model))
    with pytest.raises(ModelError, match="expected shape"):
        set_adapter_state(add_adapter(fresh(tiny_base), LoraSettings(r=2), seed=9)[0], adapter_state(model))
    with pytest.raises(ModelError, match="the saved adapter and the model differ, first at"):
        set_adapter_state(
            add_adapter(fresh(tiny_base), LoraSettings(r=4, target_modules=["o"]), seed=9)[0], adapter_state(model)
        )


@pytest.fixture
def saved(tiny_base, tmp_path):
    model, _, _ = trained(tiny_base, LoraSettings(r=4))
    folder = tmp_path / "saved"
    folder.mkdir()
    save_adapter(model, folder, str(tiny_base))
    return folder


def test_missing_and_pickled_files_are_refused(tiny_base, saved, tmp_path):
    with pytest.raises(ModelError, match=r"adapter_config\.json is missing"):
        load_adapter(fresh(tiny_base), tmp_path)
    (saved / "adapter_model.safetensors").rename(saved / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"a pickled adapter_model\.bin is never loaded"):
        load_adapter(fresh(tiny_base), saved)


@pytest.mark.parametrize(
    ("content", "reason"),
    [("{", "not a JSON object"), ("[]", "not a JSON object"), ('{"peft_type": "IA3"}', "got IA3")],
)
def test_a_wrong_config_is_refused(tiny_base, saved, content, reason):
    (saved / "adapter_config.json").write_text(content)
    with pytest.raises(ModelError, match=reason):
        load_adapter(fresh(tiny_base), saved)


def test_an_adapter_of_other_layers_never_leaves_random_weights_behind(tiny_base, saved):
    state = load_file(saved / "adapter_model.safetensors")
    save_file(
        {name.replace("encoder", "coder"): tensor for name, tensor in state.items()},
        saved / "adapter_model.safetensors",
    )
    with (
        pytest.raises(ModelError, match="does not fit the base"),
        pytest.warns(UserWarning, match="missing adapter keys"),
    ):
        load_adapter(fresh(tiny_base), saved)


def test_an_adapter_of_another_shape_is_refused(saved, tmp_path):
    from tiny import write_tiny_base

    config = json.loads((saved / "adapter_config.json").read_text())
    (saved / "adapter_config.json").write_text(json.dumps(config | {"r": 2}))
    with pytest.raises(ModelError, match="r says 2, the weights have 4"):
        load_adapter(fresh(write_tiny_base(tmp_path / "b")), saved)


def test_values_that_are_not_finite_are_refused(tiny_base, saved):
    state = load_file(saved / "adapter_model.safetensors")
    first = sorted(state)[0]
    state[first][0, 0] = float("nan")
    save_file(state, saved / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="holds values that are not finite"):
        load_adapter(fresh(tiny_base), saved)


def test_copies_do_not_matter(tiny_base, saved, tmp_path):
    moved = shutil.copytree(saved, tmp_path / "moved")
    torch.testing.assert_close(
        logits(load_adapter(fresh(tiny_base), moved)), logits(load_adapter(fresh(tiny_base), saved))
    )
