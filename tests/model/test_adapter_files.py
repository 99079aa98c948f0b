"""Adapter folders from elsewhere: every field of a config, every tensor of the weights."""

import json
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from rxtone.errors import ModelError
from rxtone.loading import load
from rxtone.model.adapter_files import read_adapter
from rxtone.model.base import check_foreign_base


@pytest.fixture
def adapter(tiny_base, tmp_path):
    from rxtone.config import LoraSettings
    from rxtone.model.base import load_base
    from rxtone.model.lora import add_adapter, save_adapter

    model, _ = add_adapter(load_base(str(tiny_base), precision="fp32").model, LoraSettings(r=4), seed=0)
    (tmp_path / "adapter").mkdir()
    save_adapter(model, tmp_path / "adapter", "somewhere/else")
    return tmp_path / "adapter"


def change(adapter, **values):
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_our_own_is_read(adapter):
    config = read_adapter(adapter)
    assert (config.r, config.lora_alpha, config.target_modules) == (4, 16, {"q", "v"})
    assert config.base_model_name_or_path is None  # what an adapter says about its base is not read


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"megatron_config": {"a": 1}, "megatron_core": "os"}, "megatron_config: expected it to be off, got {'a': 1}"),
        ({"auto_mapping": {"parent_library": "os"}}, "auto_mapping: expected it to be off"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save: expected it to be off"),
        ({"layer_replication": [[0, 1000000]]}, "layer_replication: expected it to be off"),
        ({"a_key_of_the_future": "on"}, "a_key_of_the_future: expected it to be off, got 'on'"),
        ({"target_modules": "(a+)+$"}, "target_modules: expected a list of module names"),
        ({"target_modules": ["q", "(a+)+$"]}, "target_modules: expected a list of module names"),
        ({"target_modules": []}, "target_modules: expected a list of module names"),
        ({"rank_pattern": {"(a+)+$": 4}}, "rank_pattern: expected module names with numbers"),
        ({"rank_pattern": {"q": 10**9}}, "do not fit together: r says 4, 1000000000, the weights have 4"),
        ({"r": 10**9}, "do not fit together: r says 1000000000, the weights have 4"),
        ({"r": True}, "r: expected a whole number from 1, got True"),
        ({"r": -1}, "r: expected a whole number from 1, got -1"),
        ({"r": 10**30}, "r: expected a whole number from 1"),
        ({"lora_alpha": float("nan")}, "lora_alpha: expected a positive number, got nan"),
        ({"lora_dropout": 7}, "lora_dropout: expected a number from 0 to 1, got 7"),
        ({"bias": "all"}, "bias: expected none, got 'all'"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights: expected true, false"),
        ({"use_dora": "yes"}, "use_dora: expected true or false"),
        ({"task_type": "CAUSAL_LM"}, "task_type: expected SEQ_2_SEQ_LM"),
        ({"task_type": {"a": 1}}, "task_type: expected SEQ_2_SEQ_LM, got {'a': 1}"),
        ({"init_lora_weights": []}, "init_lora_weights: expected true, false"),
        ({"peft_type": ["LORA"]}, "expected a LoRA adapter"),
    ],
)  # fmt: skip
def test_a_config_that_asks_for_more_than_lora_is_refused(adapter, values, reason):
    change(adapter, **values)
    with pytest.raises(ModelError) as caught:
        read_adapter(adapter)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"r": ' + "9" * 5000 + "}", "\ud800".encode("utf-8", "surrogatepass")]
)
def test_a_config_that_is_no_json_is_refused(adapter, content):
    path = adapter / "adapter_config.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ModelError, match="not a JSON object"):
        read_adapter(adapter)


def test_a_huge_config_is_not_even_read(adapter):
    (adapter / "adapter_config.json").write_text(" " * (1 << 20) + "{}")
    with pytest.raises(ModelError, match="expected at most 1,048,576 bytes"):
        read_adapter(adapter)


def test_a_device_or_a_pipe_is_no_file(adapter):
    (adapter / "adapter_model.safetensors").unlink()
    (adapter / "adapter_model.safetensors").symlink_to("/dev/zero")
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors is missing"):
        read_adapter(adapter)


@pytest.mark.parametrize(
    "change_weights",
    [
        lambda state: {"../../x": next(iter(state.values()))},
        lambda state: {name: tensor.to(torch.int8) for name, tensor in state.items()},
        lambda state: {name: tensor[None] for name, tensor in state.items()},
        lambda state: state | {"base_model.model.shared.weight": torch.zeros(4, 4)},
    ],
)
def test_weights_that_are_no_lora_matrices_are_refused(adapter, change_weights):
    path = adapter / "adapter_model.safetensors"
    save_file(change_weights(load_file(path)), path)
    with pytest.raises(ModelError, match="expected LoRA matrices of floats"):
        read_adapter(adapter)


def test_a_pickle_under_the_name_of_weights_is_not_loaded(adapter, tmp_path):
    class Payload:
        def __reduce__(self):
            return (tmp_path.joinpath("canary").touch, ())

    (adapter / "adapter_model.safetensors").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(ModelError, match="not a safetensors file"):
        read_adapter(adapter)
    assert not (tmp_path / "canary").exists()


def test_an_adapter_alone_never_makes_rxtone_download(tiny_run, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    adapter = shutil.copytree(tiny_run / "adapter", tmp_path / "adapter")
    spec = json.loads((adapter / "classifier.json").read_text())
    spec["base"] |= {"name": "somebody/any-base"}
    (adapter / "classifier.json").write_text(json.dumps(spec))
    with pytest.raises(ModelError, match="an adapter alone never makes rxtone download.*--base somebody/any-base"):
        load(adapter)
    check_foreign_base("google/flan-t5-base", adapter)
    for name in ("../x/y", "https://evil.example/x", "a b"):
        with pytest.raises(ModelError):
            check_foreign_base(name, adapter)


def test_a_huge_classifier_json_is_not_even_read(tiny_run, tmp_path):
    adapter = shutil.copytree(tiny_run / "adapter", tmp_path / "adapter")
    (adapter / "classifier.json").write_text(" " * (4 << 20) + "{}")
    with pytest.raises(ModelError, match="expected at most 4,194,304 bytes"):
        load(adapter)
