"""Dropout masks: their rate, their independence, their repeatability, and their place in the model."""

import itertools
import struct
from collections.abc import Callable

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import T5Config, T5ForConditionalGeneration

from rxtone.model.engine import Engine
from rxtone.model.engine.dropout import DrawnMasks, Mask, MaskSource, TableMasks, attainable, threshold

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

CPU = torch.device("cpu")


@pytest.fixture(params=[False, True], ids=["subnormal", "flushed"])
def flushed(request: pytest.FixtureRequest) -> None:
    """Whether subnormal numbers read as zero, as `prepare_host` has it."""
    torch.set_flush_denormal(request.param)


@pytest.mark.usefixtures("flushed")
@pytest.mark.parametrize(
    ("rate", "share"),
    [(rate, rate) for rate in (0.05, 0.1, 0.25, 0.495, 0.5, 0.501, 0.75, 0.9)]
    + [(0.497, 32513 / 65536), (0.498, 32513 / 65536), (0.499, 32769 / 65536), (0.4999, 32769 / 65536)],
)
def test_threshold_cuts_the_share_of_all_bf16_patterns(rate: float, share: float) -> None:
    """All 65,536 patterns, NaN and infinities included, through the kernel that masks."""
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    own = attainable(rate, torch.bfloat16)
    kept = torch.ops.aten.threshold_backward(torch.ones_like(patterns), patterns, threshold(own, torch.bfloat16))
    assert int((kept == 0).sum()) == own * 2**16
    assert abs(own - share) <= 2**-16


@pytest.mark.usefixtures("flushed")
@pytest.mark.parametrize(("rate", "share"), [(0.496, 0.496), (0.498, 0.49609375), (0.499, 0.5), (0.5, 0.5), (0.6, 0.6)])
def test_threshold_cuts_the_share_of_fp32_numbers(rate: float, share: float) -> None:
    """A million of the patterns, evenly spaced."""
    patterns = torch.arange(-(2**31), 2**31, 4099).to(torch.int32).view(torch.float32)
    own = attainable(rate, torch.float32)
    kept = torch.ops.aten.threshold_backward(torch.ones_like(patterns), patterns, threshold(own, torch.float32))
    assert abs(int((kept == 0).sum()) / len(patterns) - own) < 1e-5
    assert own == pytest.approx(share, abs=1e-7)


def test_threshold_of_one_in_ten_is_a_known_pattern() -> None:
    """6,554 patterns from minus infinity (0xFF80) up: 0xFF80 - 6553 = 0xE5E7."""
    assert struct.pack(">f", threshold(0.1, torch.bfloat16))[:2] == bytes([0xE5, 0xE7])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("rate", [0.1, 0.6])
def test_rate_of_many_elements(dtype: torch.dtype, rate: float) -> None:
    source = TableMasks(5, CPU)
    elements = 1_000_003
    kept = source.apply(torch.ones(elements, dtype=dtype), source.mask(elements, dtype, rate))
    dropped = int((kept == 0).sum())
    # Four standard deviations of a binomial count.
    assert abs(dropped - rate * elements) < 4 * (elements * rate * (1 - rate)) ** 0.5
    assert set(kept.unique().tolist()) == {0.0, 1.0}


def test_masks_of_different_places_are_uncorrelated() -> None:
    source = TableMasks(6, CPU)
    elements = 300_000
    masks = [source.apply(torch.ones(elements), source.mask(elements, torch.float32, 0.3)) for _ in range(6)]
    for first, second in itertools.combinations(masks, 2):
        correlation = np.corrcoef(first.numpy(), second.numpy())[0, 1]
        assert abs(correlation) < 4.5 / elements**0.5


def test_neighbours_rows_and_tiles_are_uncorrelated() -> None:
    source = TableMasks(7, CPU)
    elements = 1 << 20  # several tiles in every dtype
    kept = source.apply(torch.ones(elements, dtype=torch.bfloat16), source.mask(elements, torch.bfloat16, 0.5))
    values = kept.float().numpy() - 0.5
    for lag in (1, 2, 4, 64, 768, 2048, 1 << 16, 1 << 18):
        correlation = float((values[:-lag] * values[lag:]).mean() / 0.25)
        assert abs(correlation) < 4.5 / (elements - lag) ** 0.5, lag


def test_same_seed_same_masks_and_backward_repeats_the_forward() -> None:
    values = torch.arange(1.0, 200_001.0)
    first, second, other = TableMasks(1, CPU), TableMasks(1, CPU), TableMasks(2, CPU)
    masks = [s.mask(values.numel(), torch.float32, 0.2) for s in (first, second, other)]
    results = [s.apply(values, m) for s, m in zip((first, second, other), masks, strict=True)]
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    first.mask(50, torch.float32, 0.2)  # later draws leave earlier masks alone
    assert torch.equal(first.apply(values, masks[0]), results[0])
    in_place = values.clone()
    assert first.apply(in_place, masks[0], in_place=True).data_ptr() == in_place.data_ptr()
    assert torch.equal(in_place, results[0])


@pytest.mark.parametrize("source", [TableMasks(1, CPU), DrawnMasks(CPU)], ids=["tables", "drawn"])
def test_two_tensors_under_one_mask_lose_the_same_elements(source: MaskSource) -> None:
    gradient, others = torch.randn(300_000), torch.randn(300_000)
    before = others.clone()
    mask = source.mask(gradient.numel(), torch.float32, 0.3)
    expected = source.apply(gradient, mask), source.apply(others, mask)
    kept = source.apply_to_both(gradient, others, mask)
    assert torch.equal(gradient, expected[0])
    assert torch.equal(kept, expected[1])
    assert torch.equal(others, before)
    assert source.apply_to_both(gradient, others, None) is others


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_a_rate_out_of_range_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match=r"expected a dropout rate in \[0, 0.99\]"):
        TableMasks(1, CPU).mask(8, torch.float32, rate)


def build(dropout: float, lora_dropout: float) -> PeftModel:
    torch.manual_seed(1)
    config = T5Config(
        vocab_size=40,
        d_model=16,
        d_kv=4,
        d_ff=24,
        num_layers=2,
        num_heads=3,
        dropout_rate=dropout,
        feed_forward_proj="gated-gelu",
        decoder_start_token_id=0,
    )
    model = T5ForConditionalGeneration(config).double()
    targets = ["q", "k", "v", "o", "wi_0", "wi_1", "wo"]
    lora = LoraConfig(r=2, lora_alpha=6, lora_dropout=lora_dropout, target_modules=targets)
    peft = get_peft_model(model, lora)
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.2)
    return peft.train()


class Recorder(TableMasks):
    """The real source, which also notes every mask in the order of its draw."""

    def __init__(self, seed: int, device: torch.device) -> None:
        super().__init__(seed, device)
        self.drawn: list[Tensor] = []

    def mask(self, elements: int, dtype: torch.dtype, rate: float) -> Mask | None:
        mask = super().mask(elements, dtype, rate)
        if mask is not None:
            self.drawn.append(self.apply(torch.ones(elements, dtype=dtype), mask))
        return mask


class Replay(nn.Module):
    """Stands in for a dropout of the reference: multiplies by a recorded mask."""

    def __init__(self, mask: Tensor, rate: float) -> None:
        super().__init__()
        self.mask, self.rate = mask, rate

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask.view(x.shape) / (1 - self.rate)


def replay(model: PeftModel, drawn: list[Tensor], rate: float, lora_rate: float) -> Callable[[], None]:
    """Put the recorded masks into the reference, in the order in which the engine draws them."""
    masks = iter(drawn)
    base = model.get_base_model()

    def model_dropout() -> Replay:
        return Replay(next(masks), rate)

    def lora(linear: nn.Module) -> None:
        linear.lora_dropout["default"] = Replay(next(masks), lora_rate)

    def feed_forward(layer: nn.Module) -> None:
        dense = layer.DenseReluDense
        lora(dense.wi_0)
        lora(dense.wi_1)
        dense.dropout = model_dropout()
        lora(dense.wo)
        layer.dropout = model_dropout()

    attention_masks: list[Tensor] = []
    first_stack_dropouts = [model_dropout()]
    for block in base.encoder.block:
        attention = block.layer[0].SelfAttention
        for name in ("q", "k", "v"):
            lora(getattr(attention, name))
        attention_masks.append(next(masks))
        lora(attention.o)
        block.layer[0].dropout = model_dropout()
        feed_forward(block.layer[1])
    base.encoder.dropout = Sequenced([*first_stack_dropouts, model_dropout()])
    second_stack_dropouts = [model_dropout()]
    for block in base.decoder.block:
        attention = block.layer[0].SelfAttention
        for name in ("v", "q", "k"):
            lora(getattr(attention, name))
        attention_masks.append(next(masks))
        lora(attention.o)
        block.layer[0].dropout = model_dropout()
        cross = block.layer[1].EncDecAttention
        for name in ("q", "k", "v"):
            lora(getattr(cross, name))
        attention_masks.append(next(masks))
        lora(cross.o)
        block.layer[1].dropout = model_dropout()
        feed_forward(block.layer[2])
    base.decoder.dropout = Sequenced([*second_stack_dropouts, model_dropout()])
    assert next(masks, None) is None
    return lambda: attention_masks


class Sequenced(nn.Module):
    """A stack uses one dropout module twice: on the embeddings and at its end."""

    def __init__(self, steps: list[nn.Module]) -> None:
        super().__init__()
        self.steps, self.calls = steps, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.steps[self.calls - 1](x)


def test_every_dropout_of_the_reference_has_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reviews of one length: the masks have the reference's shapes, and loss and gradients agree in fp64."""
    rate, lora_rate = 0.25, 0.375
    model = build(rate, lora_rate)
    recorders: list[Recorder] = []

    def recording(seed: int, device: torch.device) -> Recorder:
        recorders.append(Recorder(seed, device))
        return recorders[-1]

    monkeypatch.setattr("rxtone.model.engine.core.TableMasks", recording)
    ids = torch.randint(2, 40, (4, 6), generator=torch.Generator().manual_seed(2))
    targets = torch.randint(2, 40, (4, 3), generator=torch.Generator().manual_seed(3))
    engine = Engine.plan(model, generator=torch.Generator().manual_seed(4))
    assert isinstance(engine, Engine)
    own = engine.target_log_probs(ids.flatten(), [6] * 4, targets)
    own.mean().backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    (recorder,) = recorders
    attention_masks = iter(replay(model, recorder.drawn, rate, lora_rate)())
    real = nn.functional.dropout

    def functional(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if x.dim() != 4:
            return real(x, p, training, inplace)
        return x * next(attention_masks).view(x.shape) / (1 - p)

    monkeypatch.setattr(nn.functional, "dropout", functional)
    model.get_base_model().set_attn_implementation("eager")
    logits = model(input_ids=ids, labels=targets).logits
    expected = torch.log_softmax(logits, -1).gather(2, targets[..., None])[..., 0]
    expected.mean().backward()
    assert next(attention_masks, None) is None
    assert (own - expected).abs().max() < 1e-10
    wanted = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert wanted.keys() == grads.keys()
    for name, grad in wanted.items():
        assert (grads[name] - grad).abs().max() < 1e-10, name


def test_generator_state_repeats_a_training_step() -> None:
    model = build(0.1, 0.1)
    ids, targets = torch.randint(2, 40, (12,)), torch.tensor([[5, 1], [9, 1]])
    generator = torch.Generator().manual_seed(8)
    engine = Engine.plan(model, generator=generator)
    assert isinstance(engine, Engine)
    engine.target_log_probs(ids, [5, 7], targets)
    state = generator.get_state()
    first = engine.target_log_probs(ids, [5, 7], targets)
    second = engine.target_log_probs(ids, [5, 7], targets)
    generator.set_state(state)
    assert torch.equal(engine.target_log_probs(ids, [5, 7], targets), first)
    assert not torch.equal(first, second)


def test_evaluation_mode_drops_nothing() -> None:
    model = build(0.3, 0.3).eval()
    ids, targets = torch.randint(2, 40, (12,)), torch.tensor([[5, 1], [9, 1]])
    engine = Engine.plan(model)
    assert isinstance(engine, Engine)
    state = torch.get_rng_state()
    with torch.no_grad():
        first = engine.target_log_probs(ids, [5, 7], targets)
        assert torch.equal(engine.target_log_probs(ids, [5, 7], targets), first)
    assert torch.equal(torch.get_rng_state(), state)  # no draw either
