"""Linear maps in 8-bit integers: the kernel's arithmetic, its error, and what it refuses."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import T5Config, T5ForConditionalGeneration

from rxtone.model.engine import Engine, Unsupported, flatten
from rxtone.model.engine.int8 import Int8Weight, matmul, quantise, quantise_rows

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.skipif(not torch.cpu._is_vnni_supported(), reason="this CPU has no 8-bit dot products"),
]


def model(dtype: torch.dtype = torch.float32) -> T5ForConditionalGeneration:
    torch.manual_seed(3)
    config = T5Config(
        vocab_size=64, d_model=64, d_kv=16, d_ff=96, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
    )
    config.decoder_start_token_id = 0
    return T5ForConditionalGeneration(config).to(dtype).eval()


def engine_of(module: torch.nn.Module) -> Engine:
    engine = Engine.plan(module)
    assert isinstance(engine, Engine)
    return engine


def prompts(count: int) -> tuple[torch.Tensor, tuple[int, ...]]:
    generator = torch.Generator().manual_seed(2)
    lengths = torch.randint(1, 60, (count,), generator=generator).tolist()
    return flatten([torch.randint(2, 64, (n,), generator=generator).tolist() for n in lengths])


def test_rows_are_quantised_by_their_own_largest_value() -> None:
    x = torch.tensor([[127.0, -1.0, 0.4, 0.6], [-2.54, 0.02, 0.0, 1.27], [0.0, 0.0, 0.0, 0.0]])
    rows = quantise_rows(x)
    # 2.54 / 127 = 0.02, in bf16 0.02001953125: 1.27 / 0.02002 = 63.4 -> 63.
    assert rows.scales[:, 0].tolist()[:2] == [1.0, 0.02001953125]
    assert (rows.codes[:2].int() - 128).tolist() == [[127, -1, 0, 1], [-127, 1, 0, 63]]
    assert (rows.codes[2] == 128).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 7, 700])
def test_product_is_that_of_the_integers(dtype: torch.dtype, count: int) -> None:
    torch.manual_seed(1)
    x, weight = torch.randn(count, 256, dtype=dtype), torch.randint(-127, 128, (32, 256), dtype=torch.int8)
    scales = torch.rand(32) + 0.1
    packed = torch.ops.onednn.qlinear_prepack(weight, None)
    rows = quantise_rows(x)
    got = matmul(rows, Int8Weight(packed, scales, torch.zeros(32, dtype=torch.int32)))
    integers = (rows.codes.double() - 128) @ weight.double().t()
    expected = integers * scales.double() * rows.scales.double()
    assert got.dtype is dtype
    tolerance = 1e-5 if dtype is torch.float32 else 2**-7
    torch.testing.assert_close(got.double(), expected, rtol=tolerance, atol=tolerance * expected.abs().max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_stay_close_and_flips_are_near_ties(dtype: torch.dtype) -> None:
    base = model(dtype)
    ids, lengths = prompts(200)
    labels = [(7,), (50,), (23,)]
    with torch.no_grad():
        exact = engine_of(base).label_scores(ids, lengths, labels, with_eos=False)
        eight = engine_of(base).int8()
        assert isinstance(eight, Engine)
        scores = eight.label_scores(ids, lengths, labels, with_eos=False)
    spread = exact.std()
    error = (scores - exact).abs()
    assert error.mean() < 0.03 * spread
    assert error.max() > 0  # the integers were used
    flips = scores.argmax(1) != exact.argmax(1)
    best = exact.topk(2, 1).values
    assert flips.float().mean() < 0.03
    assert ((best[:, 0] - best[:, 1])[flips] < 0.1 * spread).all()


def test_order_of_reviews_and_batches_does_not_matter() -> None:
    engine = engine_of(model()).int8()
    assert isinstance(engine, Engine)
    ids, lengths = prompts(300)  # several batches of tokens
    pieces = ids.split(list(lengths))
    with torch.no_grad():
        together = engine.label_scores(ids, lengths, [(7,), (50,)], with_eos=False)
        for i in (0, 17, 299):
            alone = engine.label_scores(pieces[i], [lengths[i]], [(7,), (50,)], with_eos=False)
            torch.testing.assert_close(alone[0], together[i], rtol=1e-4, atol=1e-4)


def test_only_whole_row_maps_are_quantised_and_the_rest_is_shared() -> None:
    weights = engine_of(model()).weights
    eight = quantise(weights)
    assert eight.embedding is weights.embedding
    layer = eight.decoder[0]
    assert layer.cross.k.int8 is None
    assert layer.cross.v.int8 is None
    assert layer.cross.q.int8 is not None
    assert layer.feed_forward.down.int8 is not None
    assert weights.encoder[0].attention.q.int8 is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quantising_leaves_the_model_as_it_was(dtype: torch.dtype) -> None:
    module = model(dtype)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    assert isinstance(engine_of(module).int8(), Engine)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_adapters_and_double_precision_are_refused() -> None:
    adapted = engine_of(get_peft_model(model(), LoraConfig(r=2, target_modules=["q"]))).int8()
    assert adapted == Unsupported("an adapter is active; merge it first")
    assert "float64" in str(engine_of(model(torch.float64)).int8())
