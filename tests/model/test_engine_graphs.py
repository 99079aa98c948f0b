"""What a GPU's graphs rest on, on any device: filled batches, shapes that follow from three numbers, no waiting.

The last tests need a GPU and record real graphs.
"""

from dataclasses import replace

import pytest
import torch
from engine_models import (
    ALL_TARGETS,
    RAGGED,
    adapted,
    engine_of,
    gradients,
    in_dtype,
    prompts,
    reference_log_probs,
    targets_of,
    tiny,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import T5Config, T5ForConditionalGeneration

from rxtone.model.engine import Engine, flatten
from rxtone.model.engine.dropout import DrawnMasks
from rxtone.model.engine.graphs import Compute, Graphs, Inputs, filled
from rxtone.model.engine.layout import fill, fixed_layout

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

CPU = torch.device("cpu")


def filling(model: nn.Module, *, records: bool = False) -> Engine:
    """An engine that fills its batches up, on whatever device its model is."""
    return replace(engine_of(model), graphs=Graphs(records=records))


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=80))
def test_fillers_make_up_what_is_missing(lengths: list[int]) -> None:
    all_lengths, rows, longest = fill(lengths)
    fillers = all_lengths[len(lengths) :]
    assert all_lengths[: len(lengths)] == lengths
    assert fillers
    assert 1 <= min(fillers) <= max(fillers) <= longest
    assert sum(all_lengths) == rows
    assert 0 <= longest - max(lengths) < max(32, max(lengths) / 4)
    assert longest % 8 == 0


def test_few_shapes_serve_many_batches() -> None:
    """Batches of eight reviews, as training draws them: lengths uniform from 20 to 256."""
    generator = torch.Generator().manual_seed(1)
    drawn = [torch.randint(20, 257, (8,), generator=generator).tolist() for _ in range(400)]
    shapes = {(len(all_lengths), rows, longest) for all_lengths, rows, longest in map(fill, drawn)}
    assert len(shapes) <= 20
    spent = sum(fill(lengths)[1] for lengths in drawn) / sum(map(sum, drawn))
    assert spent < 1.2


def test_the_fixed_layout_gathers_and_scatters_like_a_padded_batch() -> None:
    lengths = torch.tensor([3, 1, 4, 2])
    blocks = fixed_layout(lengths, 10, 5)
    assert blocks.attention == blocks.cross
    (block,) = blocks.cross
    rows = torch.arange(10.0)[:, None]
    grid = block.pad(rows, zero=True)[..., 0]
    assert grid.tolist() == [[0, 1, 2, 0, 0], [3, 0, 0, 0, 0], [4, 5, 6, 7, 0], [8, 9, 0, 0, 0]]
    assert block.padding is not None
    assert (~block.padding).sum(1).tolist() == [3, 1, 4, 2]
    back = torch.empty(10, 1)
    block.unpad_to(back, block.pad(rows), 2.0)
    assert torch.equal(back, 2 * rows)


@pytest.mark.parametrize("lengths", [RAGGED, (1,), (32, 32, 32), (256,)], ids=str)
@pytest.mark.parametrize("positions", [1, 2, 4])
def test_fillers_change_neither_losses_nor_gradients(lengths: tuple[int, ...], positions: int) -> None:
    model = adapted(tiny()).train()
    rows, targets = prompts(lengths), targets_of(len(lengths), positions)
    expected, wanted = gradients(model, engine_of(model).target_log_probs(*flatten(rows), targets), targets)
    got, grads = gradients(model, filling(model).target_log_probs(*flatten(rows), targets), targets)
    assert abs(got - expected) < 1e-12
    assert grads.keys() == wanted.keys()
    for name, grad in grads.items():
        assert (grad - wanted[name]).abs().max() < 1e-11 * max(1.0, float(wanted[name].abs().max())), name


@pytest.mark.parametrize("labels", [[(5,), (9,), (11,)], [(5, 6), (9,), (11, 12, 13)]], ids=["single", "several"])
def test_fillers_change_no_score(labels: list[tuple[int, ...]]) -> None:
    model = adapted(tiny()).eval()
    with torch.no_grad():
        expected = engine_of(model).label_scores(*flatten(prompts(RAGGED)), labels, with_eos=len(labels[0]) > 1)
        got = filling(model).label_scores(*flatten(prompts(RAGGED)), labels, with_eos=len(labels[0]) > 1)
    assert got.shape == (len(RAGGED), 3)
    assert (got - expected).abs().max() < 1e-12


def test_a_batch_without_reviews_or_tokens_is_refused() -> None:
    for lengths in ([], [3, 0]):
        with pytest.raises(ValueError, match="expected at least one review"):
            filled(torch.zeros(sum(lengths), dtype=torch.int64), lengths, None, 0)


class Waits(TorchDispatchMode):
    """Notes what a recording cannot hold: reading a number, shapes that follow from values, tensors from the host."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "lift_fresh", "is_nonzero", "masked_select", "equal", "unique")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: object, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        name = str(func).split(".")[1]
        if any(word in name for word in self.FORBIDDEN):
            self.found.append(name)
        if name in {"index", "index_put", "index_put_"}:  # a mask as an index is a nonzero
            self.found += [name for index in args[1] if index is not None and index.dtype is torch.bool]
        return func(*args, **(kwargs or {}))  # type: ignore[operator]


@pytest.mark.parametrize("kind", ["targets", "single", "several"])
def test_what_is_recorded_never_waits(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward, with dropout and adapters everywhere."""
    monkeypatch.setattr(Engine, "_masks", lambda self, device: DrawnMasks(device))
    model = adapted(tiny(dropout=0.1, dtype=torch.float32), ALL_TARGETS, dropout=0.1).train()
    engine = filling(model)
    ids, lengths = flatten(prompts(RAGGED))
    recorded: list[Tensor] = []
    real = Inputs.compute

    def watched(self: Inputs, compute: Compute) -> Tensor:
        with watch:
            recorded.append(real(self, compute))
        return recorded[-1]

    monkeypatch.setattr(Inputs, "compute", watched)
    watch = Waits()
    if kind == "targets":
        engine.target_log_probs(ids, lengths, targets_of(len(lengths), 4))
    else:
        engine.label_scores(ids, lengths, [(5,), (9,)] if kind == "single" else [(5, 6), (9,)], with_eos=False)
    with watch:
        recorded[-1].sum().backward()
    assert watch.found == []
    with watch:  # the watch sees what it is there for
        bool(torch.tensor([1.0]) > 0)
    assert watch.found


def test_drawn_masks_have_their_rate_and_keep_the_expectation() -> None:
    torch.manual_seed(3)
    masks, values = DrawnMasks(CPU), torch.ones(200_000)
    mask = masks.mask(values.numel(), values.dtype, 0.25)
    assert mask is not None
    assert mask.scale == 1.0
    kept = masks.apply(values, mask)
    assert sorted(kept.unique().tolist()) == pytest.approx([0.0, 4 / 3])
    assert abs(int((kept == 0).sum()) - 50_000) < 4 * (200_000 * 0.25 * 0.75) ** 0.5
    assert torch.equal(masks.apply(values, mask), kept)
    in_place = values.clone()
    assert masks.apply(in_place, mask, in_place=True).data_ptr() == in_place.data_ptr()
    assert torch.equal(in_place, kept)
    dropped, own = masks.drop(values, 0.25)
    assert own is not None
    assert torch.equal(masks.apply(values, own), dropped)
    assert masks.drop(values, 0.0) == (values, None)
    for rate in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match="expected a dropout rate"):
            masks.drop(values, rate)
        with pytest.raises(ValueError, match="expected a dropout rate"):
            masks.mask(8, torch.float32, rate)


def test_drawn_masks_give_the_gradient_of_what_they_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout everywhere: the directional derivative by central differences, under the same random numbers."""
    monkeypatch.setattr(Engine, "_masks", lambda self, device: DrawnMasks(device))
    model = adapted(tiny(dropout=0.2), dropout=0.3).train()
    engine, rows, targets = filling(model), prompts(RAGGED), targets_of(len(RAGGED))
    adapters = [p for n, p in model.named_parameters() if "lora_" in n]

    def loss() -> Tensor:
        torch.manual_seed(5)
        return -engine.target_log_probs(*flatten(rows), targets).sum()

    grads = torch.autograd.grad(loss(), adapters)
    generator = torch.Generator().manual_seed(6)
    directions = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in adapters]
    expected = sum(float((g * d).sum()) for g, d in zip(grads, directions, strict=True))
    ends = []
    for side in (1e-5, -2e-5):
        with torch.no_grad():
            for parameter, direction in zip(adapters, directions, strict=True):
                parameter.add_(direction, alpha=side)
            ends.append(float(loss()))
    # The fp32 mean of squares in T5's norm limits how exact a difference can be.
    assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(expected, rel=2e-2, abs=1e-2)


def on_gpu(model: nn.Module) -> nn.Module:
    return model.to("cuda")


def gpu_batch(lengths: tuple[int, ...], positions: int = 2, seed: int = 3) -> tuple[Tensor, tuple[int, ...], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows = [[*torch.randint(2, 61, (n - 1,), generator=generator).tolist(), 1] for n in lengths]
    ids, sizes = flatten(rows)
    return ids.cuda(), sizes, targets_of(len(lengths), positions).cuda()


def reference_on_gpu(model: nn.Module, batch: tuple[Tensor, tuple[int, ...], Tensor]) -> Tensor:
    ids, sizes, targets = batch
    return reference_log_probs(model, [row.tolist() for row in ids.split(list(sizes))], targets)


def recorded(engine: Engine) -> int:
    assert engine.graphs is not None
    return len(engine.graphs._graphs)


@needs_gpu
@pytest.mark.parametrize("positions", [2, 4])
def test_a_replay_has_the_references_loss_and_gradients(positions: int) -> None:
    """fp64: the first batch runs without a graph, the second is recorded, the third is replayed."""
    model = on_gpu(adapted(tiny())).train()
    engine = engine_of(model)
    for seed, lengths in enumerate([RAGGED, RAGGED[::-1], (4, 2, 9, 8, 3, 40, 2, 34)]):
        batch = gpu_batch(lengths, positions, seed)
        expected, wanted = gradients(model, reference_on_gpu(model, batch), batch[2])
        got, grads = gradients(model, engine.target_log_probs(*batch), batch[2])
        assert recorded(engine) == (seed > 0)
        assert abs(got - expected) < 1e-10
        assert grads.keys() == wanted.keys()
        for name, grad in grads.items():
            assert (grad - wanted[name]).abs().max() < 1e-10 * max(1.0, float(wanted[name].abs().max())), name


@needs_gpu
def test_optimiser_steps_are_seen_by_replays_and_curves_agree() -> None:
    """fp64, 30 steps of AdamW: the loss curve of the reference, and of an engine that records nothing."""
    curves = []
    for kind in ("reference", "filled", "recorded"):
        model = on_gpu(adapted(tiny())).train()
        engine = replace(engine_of(model), graphs=Graphs(records=kind == "recorded"))
        optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        losses = []
        for step in range(30):
            batch = gpu_batch((5, 9, 33, 20), seed=step % 3)
            log_probs = reference_on_gpu(model, batch) if kind == "reference" else engine.target_log_probs(*batch)
            loss = -log_probs.mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()))
        curves.append(torch.tensor(losses))
    assert curves[0][-1] < curves[0][0]
    assert (curves[1] - curves[0]).abs().max() < 1e-8
    assert (curves[2] - curves[0]).abs().max() < 1e-8


def wide(dtype: torch.dtype, dropout: float = 0.0) -> nn.Module:
    """A model whose heads are wide enough for the fused attention."""
    torch.manual_seed(7)
    config = T5Config(
        vocab_size=61, d_model=64, d_kv=16, d_ff=96, num_layers=3, num_heads=4, dropout_rate=dropout,
        feed_forward_proj="gated-gelu", decoder_start_token_id=0,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".q.weight"):
                parameter.mul_(2.0)
    return on_gpu(adapted(in_dtype(model, dtype), dropout=dropout, dtype=torch.float32))


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_rounding_is_as_close_to_double_as_the_references(dtype: torch.dtype) -> None:
    """Fused attention and norms: loss and gradients, their error against fp64 at most 1.2 times the reference's."""
    batch = gpu_batch((40, 64, 64, 9, 33, 50), seed=1)
    exact_loss, exact = gradients(model := wide(torch.float64).train(), reference_on_gpu(model, batch), batch[2])
    model = wide(dtype).train()
    reference_loss, reference = gradients(model, reference_on_gpu(model, batch), batch[2])
    engine = engine_of(model)
    for _ in range(3):
        loss, grads = gradients(model, engine.target_log_probs(*batch), batch[2])
        assert abs(loss - exact_loss) <= 1.2 * abs(reference_loss - exact_loss) + (
            2e-3 if dtype is torch.bfloat16 else 1e-5
        )

        def error(found: dict[str, Tensor]) -> float:
            return float(sum((found[n].double() - exact[n]).square().sum() for n in exact)) ** 0.5

        assert error(grads) <= 1.2 * error(reference) + 1e-5 * error({n: torch.zeros_like(g) for n, g in exact.items()})


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_replay_draws_the_random_numbers_of_the_kernels(dtype: torch.dtype) -> None:
    """Dropout everywhere: under one state of the generator, with and without a graph, equal losses and gradients."""
    model = wide(dtype, dropout=0.2).train()
    batch = gpu_batch((40, 64, 64, 9, 33, 50), seed=1)
    found = []
    for records in (False, True):
        engine = replace(engine_of(model), graphs=Graphs(records=records))
        torch.manual_seed(11)
        for _ in range(4):
            loss, grads = gradients(model, engine.target_log_probs(*batch), batch[2])
            found.append((float(loss), grads, torch.cuda.get_rng_state()))
    assert len({loss for loss, _, _ in found[:4]}) == 4  # each pass has masks of its own
    for (loss, grads, state), (other, others, other_state) in zip(found[:4], found[4:], strict=True):
        assert loss == pytest.approx(other, rel=1e-6)
        assert torch.equal(state, other_state)
        for name, grad in grads.items():
            assert (grad - others[name]).abs().max() <= 1e-5 * max(1e-3, float(grad.abs().max())), name


@needs_gpu
def test_fused_dropout_has_the_references_distribution() -> None:
    model = wide(torch.bfloat16, dropout=0.1).train()
    engine, batch = engine_of(model), gpu_batch((40, 64, 64, 9), seed=1)
    with torch.no_grad():
        own = torch.stack([-engine.target_log_probs(*batch).mean() for _ in range(200)])
        reference = torch.stack([-reference_on_gpu(model, batch).mean() for _ in range(200)])
    error = float(((own.var() + reference.var()) / 200).sqrt())
    assert error > 0
    assert abs(float(own.mean() - reference.mean())) < 4 * error + 2e-3  # bf16 rounds the two differently


@needs_gpu
def test_a_backward_after_the_next_forward_is_refused() -> None:
    engine = engine_of(on_gpu(adapted(tiny())).train())
    batch = gpu_batch(RAGGED)
    for _ in range(2):
        engine.target_log_probs(*batch).sum().backward()
    first, second = engine.target_log_probs(*batch), engine.target_log_probs(*batch)
    with pytest.raises(RuntimeError, match="call backward before the next forward"):
        first.sum().backward()
    second.sum().backward()


@needs_gpu
@pytest.mark.parametrize("labels", [[(5,), (9,), (11,)], [(5, 6), (9,), (11, 12, 13)]], ids=["single", "several"])
def test_scores_by_graph_and_in_large_batches(labels: list[tuple[int, ...]]) -> None:
    model = on_gpu(adapted(tiny())).eval()
    engine, with_eos = engine_of(model), len(labels[0]) > 1
    plain = replace(engine, graphs=None)
    with torch.inference_mode():
        for seed in range(3):
            ids, sizes, _ = gpu_batch(RAGGED, seed=seed)
            expected = plain.label_scores(ids, sizes, labels, with_eos=with_eos)
            got = engine.label_scores(ids, sizes, labels, with_eos=with_eos)
            assert (got - expected).abs().max() < 1e-10
        assert recorded(engine) == 1
        many = tuple(int(n) for n in torch.randint(1, 200, (900,), generator=torch.Generator().manual_seed(1)))
        ids, sizes, _ = gpu_batch(many)
        got = engine.label_scores(ids, sizes, labels, with_eos=with_eos)
        on_cpu = engine_of(adapted(tiny()).eval()).label_scores(ids.cpu(), sizes, labels, with_eos=with_eos)
    # T5's norm takes the mean of squares in fp32 whatever the dtype, and two devices round it differently.
    assert (got.cpu() - on_cpu).abs().max() < 1e-5
