import math
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rxtone.config import LoraSettings, TrainConfig
from rxtone.errors import RunError
from rxtone.model.base import load_base
from rxtone.model.batches import ReviewDataset
from rxtone.model.lora import adapter_state, add_adapter
from rxtone.model.scoring import LabelTokens, log_probabilities, score_dataset
from rxtone.stopping import Stop
from rxtone.training import loop
from rxtone.training.checkpoint import newest_checkpoint
from rxtone.training.data import Auxiliary, TrainingData
from rxtone.training.events import CheckpointSaved, EvalDone, MemoryShort, StepDone, StoppedEarly
from rxtone.training.loop import fit
from rxtone.training.schedule import auxiliary_groups, learning_rate, step_groups, total_steps

TOKENS = LabelTokens(((10,), (11,)), with_eos=False, eos=1)


def toy_data(n=24):
    """Token 20 means class 0, token 21 class 1; the rest is noise."""
    generator = np.random.default_rng(0)
    classes = np.arange(n) % 2
    prompts = [
        [*generator.integers(22, 40, 3), 20 + c, *generator.integers(22, 40, int(generator.integers(0, 4))), 1]
        for c in classes
    ]
    prompts = [[int(token) for token in prompt] for prompt in prompts]
    dataset = ReviewDataset(prompts, [[*TOKENS.ids[c], 1] for c in classes])
    return TrainingData(dataset, classes, dataset, classes, ("a", "b"), TOKENS, pad_token_id=0)


def settings(**changes):
    plain = {"learning_rate": 0.05, "num_train_epochs": 6, "per_device_train_batch_size": 8, "seed": 3,
             "early_stopping_patience": None, "warmup_ratio": 0.1}  # fmt: skip
    return TrainConfig(**(plain | changes))


def adapted(base, dropout=0.0):
    model = load_base(str(base), precision="fp32").model
    lora = LoraSettings(r=4, lora_alpha=8, lora_dropout=dropout, target_modules=["all-linear"])
    return add_adapter(model, lora, seed=1)[0]


def run(base, tmp_path, train, dropout=0.0, resume_from=None, data=None):
    model = adapted(base, dropout)
    events = list(fit(model, data or toy_data(), train, tmp_path / "checkpoints", resume_from=resume_from))
    return model, events


def test_it_learns_and_says_what_happened(tiny_base, tmp_path):
    model, events = run(tiny_base, tmp_path, settings())
    steps = [event for event in events if isinstance(event, StepDone)]
    evals = [event for event in events if isinstance(event, EvalDone)]
    assert [event.step for event in steps] == list(range(1, 19))
    assert [event.epoch for event in evals] == [1, 2, 3, 4, 5, 6]
    assert {event.reviews for event in steps} == {8}
    assert max(event.validation_macro_f1 for event in evals) == 1.0
    assert steps[-1].loss < steps[0].loss / 2
    assert sum(event.tokens for event in steps) == 6 * toy_data().train.lengths.sum()
    assert all(event.peak_memory_bytes > 10**7 for event in steps)
    assert not model.training


def test_the_mean_training_loss_is_that_of_its_steps(tiny_base, tmp_path):
    _, events = run(tiny_base, tmp_path, settings(num_train_epochs=1))
    losses = [event.loss for event in events if isinstance(event, StepDone)]
    (last,) = [event for event in events if isinstance(event, EvalDone)]
    assert last.train_loss == pytest.approx(np.mean(losses), rel=1e-6)


def test_accumulation_gives_the_step_of_the_whole_batch(tiny_base, tmp_path):
    """The gradients are compared, through AdamW's moments: its step divides by them, and blows up their rounding."""
    one = {"num_train_epochs": 1, "max_steps": 1, "max_grad_norm": 1e6}  # clipping would hide a wrong scale
    whole = settings(**one, per_device_train_batch_size=8)
    parts = settings(**one, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    losses, moments = [], []
    for name, train in (("whole", whole), ("parts", parts)):
        _, events = run(tiny_base, tmp_path / name, train)
        losses.append([event.loss for event in events if isinstance(event, StepDone)])
        moments.append(load_file(newest_checkpoint(tmp_path / name / "checkpoints") / "optimizer.safetensors"))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert len(moments[0]) == len(moments[1]) > 0
    assert max(float(tensor.abs().max()) for tensor in moments[0].values()) > 1e-3
    for name, tensor in moments[0].items():
        torch.testing.assert_close(moments[1][name], tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("stop_after", [1, 4, 7])
def test_a_resumed_run_ends_where_the_uninterrupted_one_does(tiny_base, tmp_path, stop_after):
    train = settings(num_train_epochs=3, checkpoint_every=1)
    full, full_events = run(tiny_base, tmp_path / "full", train, dropout=0.3)
    for event in fit(adapted(tiny_base, 0.3), toy_data(), train, tmp_path / "cut" / "checkpoints"):
        if isinstance(event, CheckpointSaved) and event.step == stop_after:
            break
    torch.manual_seed(999)
    resumed, events = run(tiny_base, tmp_path / "cut", train, dropout=0.3, resume_from=event.path)
    for name, tensor in adapter_state(full).items():
        assert torch.equal(adapter_state(resumed)[name], tensor), name
    losses = [event.loss for event in full_events if isinstance(event, StepDone)]
    assert [event.loss for event in events if isinstance(event, StepDone)] == losses[stop_after:]


def test_the_best_checkpoint_is_what_remains(tiny_base, tmp_path):
    model, events = run(
        tiny_base, tmp_path, settings(learning_rate=0.5, num_train_epochs=5, lr_scheduler_type="constant")
    )
    best = [event for event in events if isinstance(event, EvalDone) and event.best][-1]
    from rxtone.model.lora import set_adapter_state

    kept = load_file(tmp_path / "checkpoints" / f"step-{best.step:06d}" / "adapter.safetensors")
    other = adapted(tiny_base)
    set_adapter_state(other, kept)
    for name, tensor in adapter_state(other).items():
        assert torch.equal(adapter_state(model)[name], tensor)
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {f"step-{best.step:06d}", "step-000015"}


def test_patience_ends_the_run(tiny_base, tmp_path):
    _, events = run(tiny_base, tmp_path, settings(learning_rate=1e-9, num_train_epochs=9, early_stopping_patience=2))
    assert [event.epoch for event in events if isinstance(event, EvalDone)] == [1, 2, 3]
    steps = [event for event in events if isinstance(event, StepDone)]
    assert events[-1] == StoppedEarly(len(steps), 3 * len(steps), 2)


def test_max_steps_ends_the_run_in_mid_epoch(tiny_base, tmp_path):
    _, events = run(tiny_base, tmp_path, settings(max_steps=4))
    assert not any(isinstance(event, StoppedEarly) for event in events)
    assert [event.step for event in events if isinstance(event, StepDone)] == [1, 2, 3, 4]
    assert [event.epoch for event in events if isinstance(event, EvalDone)] == pytest.approx([1, 1 + 1 / 3])


def test_a_loss_that_is_not_finite_stops_the_run_and_nothing_is_saved(tiny_base, tmp_path):
    model = adapted(tiny_base)
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if "lora_A" in name).fill_(float("nan"))
    with pytest.raises(RunError, match=r"the loss is nan at reviews .* Lower train\.learning_rate"):
        list(fit(model, toy_data(), settings(), tmp_path / "checkpoints"))
    assert not (tmp_path / "checkpoints").exists()


def test_an_adapter_that_cannot_learn_is_noticed_at_once(tiny_base, tmp_path):
    model = adapted(tiny_base)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.requires_grad_(requires_grad=False)
    with pytest.raises(RunError, match="no gradient reaches the adapter at step 1"):
        list(fit(model, toy_data(), settings(), tmp_path / "checkpoints"))


def test_gradient_checkpointing_computes_twice_and_learns_the_same(tiny_base, tmp_path):
    states, calls = [], []
    for saving in (False, True):
        model = adapted(tiny_base)
        counted = []
        block = model.base_model.model.encoder.block[0].layer[1]
        block.register_forward_pre_hook(lambda *_, counted=counted: counted.append(1))
        train = settings(max_steps=1, gradient_checkpointing=saving)
        events = fit(model, toy_data(), train, tmp_path / f"checkpoints{saving}")
        next(events)
        calls.append(len(counted))
        states.append(adapter_state(model))
    assert calls == [1, 2]
    for name, tensor in states[0].items():  # AdamW's first step is lr * sign(g): 0.05, whatever the rounding
        torch.testing.assert_close(states[1][name], tensor, rtol=0, atol=1e-3)


def test_labels_that_nothing_gets_are_named(tiny_base, tmp_path):
    model = adapted(tiny_base)
    head = model.base_model.model.lm_head.weight
    with torch.no_grad():
        head[11] = head[10]  # equal scores: the first label always wins
    events = list(fit(model, toy_data(), settings(learning_rate=1e-9, num_train_epochs=1), tmp_path / "checkpoints"))
    (last,) = [event for event in events if isinstance(event, EvalDone)]
    assert last.never_predicted == ("b",)
    assert last.validation_macro_f1 == pytest.approx(1 / 3)  # F1 of class a: 2 * 12 / (12 + 24)


def test_schedules():
    # 2 warm-up steps of 10, then down: transformers' curves, one step ahead in the warm-up
    linear, cosine = (
        settings(warmup_ratio=0.2, learning_rate=1.0),
        settings(warmup_ratio=0.2, learning_rate=1.0, lr_scheduler_type="cosine"),
    )
    assert [learning_rate(step, 10, linear) for step in range(10)] == pytest.approx(
        [0.5, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]
    )
    assert [learning_rate(step, 10, cosine) for step in (0, 2, 6)] == pytest.approx([0.5, 1, 0.5])
    assert learning_rate(9, 10, settings(lr_scheduler_type="constant")) == 0.05
    assert learning_rate(0, 10, settings(warmup_ratio=0.0)) == 0.05


def test_steps_are_counted_before_they_are_made():
    lengths = np.full(25, 10)
    assert total_steps(lengths, settings(num_train_epochs=2)) == 8
    assert total_steps(lengths, settings(num_train_epochs=1.5)) == 6
    assert total_steps(lengths, settings(num_train_epochs=2, max_steps=3)) == 3
    assert total_steps(lengths, settings(num_train_epochs=2, gradient_accumulation_steps=3)) == 4
    assert [len(group) for group in step_groups(lengths, settings(gradient_accumulation_steps=3), 0)] == [3, 1]
    assert math.isclose(sum(len(b) for group in step_groups(lengths, settings(), 0) for b in group), 25)


def with_auxiliary(share=0.5, weight=0.5):
    data = toy_data()
    other = ReviewDataset([prompt.tolist() for prompt in data.train.prompts], [[12, 1]] * len(data.train))
    task = Auxiliary(other, np.zeros(len(other), dtype=np.int64), LabelTokens(((12,), (13,)), False, 1), weight, share)
    return replace(data, auxiliary=(task,))


def test_a_further_task_is_learned_beside_the_main_one(tiny_base, tmp_path):
    model = adapted(tiny_base)
    data = with_auxiliary(share=0.5, weight=0.5)
    (task,) = data.auxiliary

    def asked():
        scores = score_dataset(model, task.reviews, task.label_tokens, batch_size=8, pad_token_id=0)
        return float(log_probabilities(scores)[:, 0].mean())

    before = asked()
    events = list(fit(model, data, settings(learning_rate=0.02, num_train_epochs=10), tmp_path / "checkpoints"))
    assert asked() > max(before, np.log(0.9))
    assert max(event.validation_macro_f1 for event in events if isinstance(event, EvalDone)) > 0.9


def test_a_further_task_draws_its_share_anew_each_epoch():
    (task,) = with_auxiliary(share=0.5).auxiliary
    first, again, second = (auxiliary_groups(task, 3, 7, epoch) for epoch in (0, 0, 1))
    assert [part.tolist() for part in first] == [part.tolist() for part in again]
    assert [part.tolist() for part in first] != [part.tolist() for part in second]
    drawn = np.concatenate(first)
    assert len(drawn) == len(set(drawn.tolist())) == len(task.reviews) // 2
    assert {len(part) for part in first} == {4}


def test_a_resumed_run_with_a_further_task_goes_on_the_same(tiny_base, tmp_path):
    train = settings(num_train_epochs=2, checkpoint_every=2)
    whole = [
        e.loss for e in fit(adapted(tiny_base), with_auxiliary(), train, tmp_path / "a") if isinstance(e, StepDone)
    ]
    losses = []
    for event in fit(adapted(tiny_base), with_auxiliary(), train, tmp_path / "b"):
        if isinstance(event, StepDone):
            losses.append(event.loss)
        if isinstance(event, CheckpointSaved):
            break
    rest = fit(
        adapted(tiny_base), with_auxiliary(), train, tmp_path / "b", resume_from=newest_checkpoint(tmp_path / "b")
    )
    losses += [event.loss for event in rest if isinstance(event, StepDone)]
    assert losses == whole


def short_of_memory(call, most):
    """`loss_sum` on a device that holds `most` reviews from its n-th call on."""
    calls = []

    def measured(scorer, batch, *arguments, **options):
        calls.append(len(batch.rows))
        if len(calls) >= call and len(batch.rows) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(scorer, batch, *arguments, **options)

    real = loop.loss_sum
    return mock.patch.object(loop, "loss_sum", measured)


@pytest.mark.parametrize(("call", "most", "parts"), [(1, 4, [2]), (1, 1, [8]), (7, 3, [4])])
def test_a_lack_of_memory_parts_the_batches_and_changes_no_step(tiny_base, tmp_path, call, most, parts):
    train = settings(num_train_epochs=3)
    whole, whole_events = run(tiny_base, tmp_path / "a", train)
    with short_of_memory(call, most):
        parted, events = run(tiny_base, tmp_path / "b", train)
    assert [event.parts for event in events if isinstance(event, MemoryShort)] == parts
    losses = [[event.loss for event in events if isinstance(event, StepDone)] for events in (whole_events, events)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    for name, tensor in adapter_state(whole).items():
        torch.testing.assert_close(adapter_state(parted)[name], tensor, rtol=0.02, atol=2e-3)


def test_gradients_of_a_failed_try_are_not_counted(tiny_base, tmp_path):
    """The second batch of a step fails: what the first added must not stay."""
    train = settings(max_steps=1, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    whole, _ = run(tiny_base, tmp_path / "a", train)
    with short_of_memory(2, 2):
        parted, _ = run(tiny_base, tmp_path / "b", train)
    for name, tensor in adapter_state(whole).items():
        torch.testing.assert_close(adapter_state(parted)[name], tensor, rtol=0, atol=1e-3)


def test_memory_too_short_for_one_review_is_one_clear_error(tiny_base, tmp_path):
    with (
        short_of_memory(1, 0),
        pytest.raises(RunError, match=r"out of memory with a single review of up to \d+ tokens"),
    ):
        run(tiny_base, tmp_path, settings())


def test_weights_that_are_not_finite_are_never_saved(tiny_base, tmp_path):
    model = adapted(tiny_base)
    saved = []
    with pytest.raises(RunError, match="after step 2 .* not finite; this state was not saved"):
        for event in fit(model, toy_data(), settings(checkpoint_every=1), tmp_path / "checkpoints"):
            if isinstance(event, CheckpointSaved):
                saved.append(event.step)
            if isinstance(event, StepDone) and event.step == 2:
                with torch.no_grad():
                    next(p for name, p in model.named_parameters() if "lora_B" in name)[0, 0] = math.inf
    assert saved == [1]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000001"]


@pytest.mark.parametrize("at", [1, 3, 9])  # in a pass, at its end, at the run's end
def test_a_wish_to_stop_saves_the_step_and_the_run_goes_on_from_there(tiny_base, tmp_path, at):
    train = settings(num_train_epochs=3)
    full, full_events = run(tiny_base, tmp_path / "full", train, dropout=0.3)
    stop = Stop()
    events = []
    with stop.after_the_step():
        for event in fit(adapted(tiny_base, 0.3), toy_data(), train, tmp_path / "checkpoints", stop=stop):
            events.append(event)
            if isinstance(event, StepDone) and event.step == at:
                stop.ask(15)
    assert isinstance(events[-1], CheckpointSaved)
    assert (events[-1].step, stop.exit_code()) == (at, 143)
    resumed, rest = run(tiny_base, tmp_path, train, dropout=0.3, resume_from=events[-1].path)
    for name, tensor in adapter_state(full).items():
        assert torch.equal(adapter_state(resumed)[name], tensor), name
    scores = [
        [event.validation_macro_f1 for event in part if isinstance(event, EvalDone)]
        for part in (full_events, events + rest)
    ]
    assert scores[0] == scores[1]


def test_a_wish_outside_of_the_loop_ends_the_work():
    with pytest.raises(KeyboardInterrupt):
        Stop().ask(2)
