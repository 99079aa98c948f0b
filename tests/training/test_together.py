import numpy as np
import polars as pl
import pytest
import torch
from tiny import tiny_values

from rxtone.config import check_recipe
from rxtone.errors import RecipeError
from rxtone.model.base import load_base
from rxtone.model.lora import adapted
from rxtone.model.together import share_base
from rxtone.run import read_json_lines
from rxtone.space import Space
from rxtone.sweep import sweep
from rxtone.sweep_events import TrialEnded
from rxtone.together import train_together, why_alone
from rxtone.training.events import EvalDone, StepDone
from rxtone.trials import Trained, open_bench, run_trial

TOLERANCE = {"rtol": 2e-4, "atol": 2e-5}
"""Of losses in fp32 at dropout 0: the same products in larger batches."""

SETTINGS = (
    {"lora": {"r": 4, "lora_alpha": 8}, "train": {}},
    {"lora": {"r": 2, "lora_alpha": 8, "target_modules": ["q", "v"]}, "train": {"learning_rate": 0.002}},
    {"lora": {"r": 3, "lora_alpha": 3, "variant": "rslora", "target_modules": ["wo", "k"]},
     "train": {"lr_scheduler_type": "cosine", "warmup_ratio": 0.2, "weight_decay": 0.3, "max_grad_norm": 0.1}},
    {"lora": {"r": 4, "lora_alpha": 8}, "train": {"class_weights": {"positive": 1.0, "neutral": 3.0, "negative": 2.0}}},
)  # fmt: skip


def recipes(base, table, **train):
    found = []
    for changes in SETTINGS:
        values = tiny_values(base, table)
        values["train"] |= (
            {"num_train_epochs": 2, "per_device_train_batch_size": 9, "learning_rate": 0.005} | changes["train"] | train
        )
        values["lora"] |= changes["lora"]
        found.append(check_recipe(values, "tiny"))
    return found


def run_together(bench, found, tmp_path):
    folders = [tmp_path / str(index) for index in range(len(found))]
    for folder in folders:
        folder.mkdir(parents=True)
    return list(train_together(bench, found, folders))


@pytest.mark.parametrize("loss", ["token_ce", "label_ce"])
def test_settings_together_equal_separate_runs(tiny_base, tiny_table, tmp_path, loss):
    found = recipes(tiny_base, tiny_table, loss=loss)
    bench = open_bench()
    before = {name: tensor.clone() for name, tensor in bench.base(found[0]).model.state_dict().items()}
    events = run_together(bench, found, tmp_path / "together")
    for index, recipe in enumerate(found):
        folder = tmp_path / f"alone{index}"
        folder.mkdir()
        alone = list(run_trial(bench, recipe, folder))
        mine = [event for own, event in events if own == index]
        assert [type(event) for event in mine] == [type(event) for event in alone]
        for kind, names in ((StepDone, ("loss", "learning_rate", "epoch", "reviews", "tokens", "total_steps")),
                            (EvalDone, ("validation_loss", "train_loss", "epoch"))):  # fmt: skip
            for name in names:
                one = [getattr(event, name) for event in alone if isinstance(event, kind)]
                many = [getattr(event, name) for event in mine if isinstance(event, kind)]
                np.testing.assert_allclose(many, one, **TOLERANCE)
        assert mine[-1].macro_f1 == pytest.approx(
            alone[-1].macro_f1, abs=0.03
        )  # one of 36 reviews may sit on the fence
        assert mine[-1].facts["trainable"] == alone[-1].facts["trainable"]
        lines = read_json_lines(tmp_path / "together" / str(index) / "metrics.jsonl")
        assert sum("loss" in line for line in lines) == len([e for e in mine if isinstance(e, StepDone)])
    after = bench.base(found[0]).model.state_dict()
    assert list(after) == list(before)
    assert all((after[name] == before[name]).all() for name in before)


def test_the_seeds_differ_in_start_and_order(tiny_base, tiny_table, tmp_path):
    plain = recipes(tiny_base, tiny_table)[0]
    other = plain.model_copy(update={"train": plain.train.model_copy(update={"seed": 8})})
    model = load_base(str(tiny_base), precision="fp32").model
    with share_base(model, [plain.lora, other.lora], [7, 8]) as shared:
        starts = [parameters["encoder.block.0.layer.0.SelfAttention.q.lora_A"] for parameters in shared.parameters]
        starts = [start.detach().clone() for start in starts]
    assert not torch.equal(*starts)
    with adapted(model, other.lora, 8) as (wrapped, _):
        state = dict(wrapped.named_parameters())
        name = "base_model.model.encoder.block.0.layer.0.SelfAttention.q.lora_A.default.weight"
        assert torch.equal(state[name], starts[1])
    events = run_together(open_bench(), [plain, other], tmp_path)
    losses = [[e.loss for own, e in events if own == i and isinstance(e, StepDone)] for i in (0, 1)]
    assert losses[0] != losses[1]


def test_a_setting_that_is_stopped_or_breaks_leaves_the_others_alone(tiny_base, tiny_table, tmp_path):
    found = recipes(tiny_base, tiny_table)[:3]
    broken = found[1].model_copy(update={"train": found[1].train.model_copy(update={"learning_rate": 1e38})})
    folders = [tmp_path / str(index) for index in range(3)]
    for folder in folders:
        folder.mkdir()
    bench = open_bench()
    running = train_together(bench, [found[0], broken, found[2]], folders)
    seen, stop = [], None
    with pytest.raises(StopIteration):
        while True:
            index, event = running.send(stop)
            seen.append((index, event))
            stop = index == 2 and isinstance(event, EvalDone)
    ends = dict(seen)
    assert isinstance(ends[0], Trained)
    assert "not finite" in str(ends[1])
    assert isinstance(ends[2], EvalDone)
    (tmp_path / "alone").mkdir()
    *_, alone = run_trial(bench, found[0], tmp_path / "alone")
    assert ends[0].macro_f1 == pytest.approx(alone.macro_f1, abs=0.03)


def test_what_cannot_share_a_forward_is_told(tiny_base, tiny_table):
    plain = recipes(tiny_base, tiny_table)[0]
    dora = plain.model_copy(update={"lora": plain.lora.model_copy(update={"variant": "dora"})})
    larger = plain.model_copy(update={"train": plain.train.model_copy(update={"per_device_train_batch_size": 4})})
    other = plain.model_copy(update={"prompt": plain.prompt.model_copy(update={"max_tokens": 20})})
    assert why_alone(plain, plain) is None
    assert why_alone(plain, dora) == "lora.variant dora changes or divides the base's own weights"
    assert why_alone(plain, larger) == "they differ in the number or the size of their batches"
    assert why_alone(plain, other) == "they differ in prompt"
    model = load_base(str(tiny_base), precision="fp32").model
    with pytest.raises(RecipeError, match="--together: lora.variant dora"), share_base(model, [dora.lora], [1]):
        pass


def test_a_sweep_together_ends_as_one_by_one(tiny_base, tiny_table, tmp_path):
    values = tiny_values(tiny_base, tiny_table)
    values["train"] |= {"num_train_epochs": 2}
    space = Space.model_validate({
        "recipe": "tiny", "sampler": "grid", "pruner": "none", "confirm": None,
        "parameters": {"lora.variant": ["lora", "dora"], "train.learning_rate": [0.01, 0.02]},
    })  # fmt: skip
    tables = []
    for together in (1, 3):
        out = tmp_path / str(together)
        events = list(sweep(space, check_recipe(values, "tiny"), out, together=together))
        assert [event.state for event in events if isinstance(event, TrialEnded)] == ["complete"] * 4
        tables.append(pl.read_parquet(out / "trials.parquet").sort("lora.variant", "train.learning_rate"))
    assert tables[1]["macro_f1"].to_list() == pytest.approx(tables[0]["macro_f1"].to_list(), abs=0.03)
    assert set(tables[1].filter(pl.col("lora.variant") == "dora")["together"]) == {None}
    assert tables[1].filter(pl.col("lora.variant") == "lora")["together"].max() > 1
