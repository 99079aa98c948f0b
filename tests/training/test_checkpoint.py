import json

import pytest
import torch
from safetensors import safe_open

from rxtone.config import LoraSettings
from rxtone.errors import RunError
from rxtone.model.base import load_base
from rxtone.model.lora import adapter_state, add_adapter
from rxtone.training.checkpoint import (
    Progress,
    load_best,
    load_checkpoint,
    newest_checkpoint,
    read_progress,
    save_checkpoint,
)


@pytest.fixture
def trained(tiny_base):
    model, _ = add_adapter(load_base(str(tiny_base), precision="fp32").model, LoraSettings(r=2), seed=0)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(2):
        torch.manual_seed(5)
        sum((p * torch.randn_like(p)).sum() for p in model.parameters() if p.requires_grad).backward()
        optimizer.step()
    return model, optimizer


def test_everything_comes_back(trained, tiny_base, tmp_path):
    model, optimizer = trained
    torch.manual_seed(77)
    saved = save_checkpoint(tmp_path, model, optimizer, Progress(step=2, epoch=1, best_step=2, best_macro_f1=0.5))
    drawn = torch.rand(3)
    assert sorted(path.name for path in saved.iterdir()) == [
        "adapter.safetensors", "manifest.json", "optimizer.safetensors", "progress.json", "random.safetensors",
    ]  # fmt: skip

    other, _ = add_adapter(load_base(str(tiny_base), precision="fp32").model, LoraSettings(r=2), seed=9)
    fresh = torch.optim.AdamW([p for p in other.parameters() if p.requires_grad], lr=0.01)
    progress = load_checkpoint(saved, other, fresh)
    assert progress == Progress(step=2, epoch=1, best_step=2, best_macro_f1=0.5)
    assert torch.equal(torch.rand(3), drawn)
    for name, tensor in adapter_state(model).items():
        assert torch.equal(adapter_state(other)[name], tensor)
    moments = [[state[key] for key in ("step", "exp_avg", "exp_avg_sq")] for state in optimizer.state.values()]
    again = [[state[key] for key in ("step", "exp_avg", "exp_avg_sq")] for state in fresh.state.values()]
    assert all(
        torch.equal(a, b) for one, two in zip(moments, again, strict=True) for a, b in zip(one, two, strict=True)
    )


def test_nothing_on_disk_is_a_pickle(trained, tmp_path):
    saved = save_checkpoint(tmp_path, *trained, Progress(step=1))
    for path in saved.iterdir():
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as handle:
                assert list(handle.keys())
        else:
            json.loads(path.read_text())


def test_only_the_newest_and_the_best_stay(trained, tmp_path):
    for step in (1, 2, 3, 4):
        save_checkpoint(tmp_path, *trained, Progress(step=step, best_step=2 if step > 1 else 1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000002", "step-000004"]


@pytest.mark.parametrize("victim", ["adapter.safetensors", "optimizer.safetensors", "progress.json", "manifest.json"])
@pytest.mark.parametrize("keep", [0, 10])
def test_a_damaged_checkpoint_is_passed_over(trained, tmp_path, victim, keep):
    save_checkpoint(tmp_path, *trained, Progress(step=1, best_step=1))
    save_checkpoint(tmp_path, *trained, Progress(step=2, best_step=1))
    path = tmp_path / "step-000002" / victim
    path.write_bytes(path.read_bytes()[:keep])
    assert newest_checkpoint(tmp_path) == tmp_path / "step-000001"


def test_nothing_there_is_none(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    assert newest_checkpoint(tmp_path / "none") is None


def test_a_lost_best_checkpoint_is_one_clear_error(trained, tmp_path):
    with pytest.raises(RunError, match="the best checkpoint is missing or damaged"):
        load_best(tmp_path, Progress(step=4, best_step=2), trained[0])


def test_foreign_progress_is_one_clear_error(tmp_path):
    (tmp_path / "progress.json").write_text('{"steps": 1}')
    with pytest.raises(RunError, match=r"its progress\.json cannot be used"):
        read_progress(tmp_path)
