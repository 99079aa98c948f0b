"""What the engine accepts, and how it says what it does not."""

import pytest
import torch
from peft import IA3Config, LoraConfig, PromptTuningConfig, get_peft_model
from torch import nn
from transformers import T5Config, T5EncoderModel, T5ForConditionalGeneration

from rxtone.model.engine import Engine, Unsupported
from rxtone.model.engine.layout import plan_layout, relative_bias

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


def tiny(activation: str = "gated-gelu") -> T5ForConditionalGeneration:
    config = T5Config(
        vocab_size=30, d_model=8, d_kv=4, d_ff=12, num_layers=1, num_heads=2, feed_forward_proj=activation
    )
    config.decoder_start_token_id = 0
    return T5ForConditionalGeneration(config)


def reason(model: nn.Module) -> str:
    plan = Engine.plan(model)
    assert isinstance(plan, Unsupported)
    return plan.reason


def lora(**options: object) -> LoraConfig:
    return LoraConfig(r=2, target_modules=["q", "v"], **options)


def test_weights_are_the_parameters_themselves() -> None:
    model = get_peft_model(tiny(), lora())
    engine = Engine.plan(model)
    assert isinstance(engine, Engine)
    own = {p.data_ptr() for p in model.parameters()}
    layer = engine.weights.encoder[0].attention
    assert layer.q.weight.data_ptr() in own
    assert layer.q.adapter is not None
    assert layer.k.adapter is None
    assert layer.q.adapter.down.data_ptr() in own
    assert len(engine.weights.adapters) == 2 * 2 * 3  # A and B of q and v in three attention sublayers
    assert engine.weights.frozen


def test_scaling_is_pefts_own() -> None:
    """lora_alpha / r = 8 / 2; rank-stabilised: 8 / sqrt(2) (Kalajdzievski 2023)."""
    for rslora, expected in ((False, 4.0), (True, 8 / 2**0.5)):
        engine = Engine.plan(get_peft_model(tiny(), lora(lora_alpha=8, use_rslora=rslora)))
        assert isinstance(engine, Engine)
        adapter = engine.weights.decoder[0].cross.v.adapter
        assert adapter is not None
        assert adapter.scaling == pytest.approx(expected)


@pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings=True.:UserWarning")
def test_other_models_and_adapters_are_refused_with_the_reason() -> None:
    assert reason(nn.Linear(2, 2)) == "the engine reads T5ForConditionalGeneration, not Linear"
    assert "not T5EncoderModel" in reason(T5EncoderModel(tiny().config))
    assert "DoraLinearVariant" in reason(get_peft_model(tiny(), lora(use_dora=True)))
    assert "has a LoRA bias" in reason(_with_lora_bias())
    ia3 = IA3Config(target_modules=["k", "v", "wo"], feedforward_modules=["wo"])
    assert "peft.tuners.ia3" in reason(get_peft_model(tiny(), ia3))
    prompt = PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=2)
    assert "PROMPT_TUNING is not LoRA" in reason(get_peft_model(tiny(), prompt))
    assert "lm_head is" in reason(get_peft_model(tiny(), lora(modules_to_save=["lm_head"])))
    assert "activation 'tanh'" in reason(tiny("tanh"))


def _with_lora_bias() -> nn.Module:
    model = get_peft_model(tiny(), lora())
    model.get_base_model().encoder.block[0].layer[0].SelfAttention.q.lora_bias["default"] = True
    return model


def test_mixed_dtypes_hooks_and_quarter_floats_are_refused() -> None:
    assert "torch.float8_e4m3fn" in reason(tiny().to(torch.float8_e4m3fn))
    mixed = tiny()
    mixed.decoder.block[0].layer[2].DenseReluDense.wo.double()
    assert "one dtype and one device" in reason(mixed)
    hooked = tiny()
    hooked.encoder.block[0].register_forward_hook(lambda *_: None)
    assert "encoder.block.0 has forward hooks" in reason(hooked)


def test_a_model_that_was_asked_for_its_hidden_states_stays_fast() -> None:
    """transformers leaves hooks on it that note outputs for who asks again."""
    model = tiny()
    ids = torch.tensor([[5, 6, 1]])
    with torch.no_grad():
        model(input_ids=ids, decoder_input_ids=ids, output_hidden_states=True)
    assert any(module._forward_hooks for module in model.modules())
    assert isinstance(Engine.plan(model), Engine)


def test_two_active_adapters_are_refused_and_one_of_two_is_fine() -> None:
    model = get_peft_model(tiny(), lora())
    model.add_adapter("other", lora())
    assert isinstance(Engine.plan(model), Engine)
    model.base_model.set_adapter(["default", "other"])
    assert "2 active adapters" in reason(model)


def test_relative_bias_is_the_references() -> None:
    attention = tiny().encoder.block[0].layer[0].SelfAttention
    expected = attention.compute_bias(300, 300)[0]
    table = attention.relative_attention_bias.weight
    own = relative_bias(table, 300, bidirectional=True, buckets=32, max_distance=128)
    assert torch.equal(own, expected)
    attention.is_decoder = True
    own = relative_bias(table, 300, bidirectional=False, buckets=32, max_distance=128)
    assert torch.equal(own, attention.compute_bias(300, 300)[0])


def test_layout_sorts_and_blocks_cover_every_row_once() -> None:
    lengths = [7, 1, 300, 7, 2, 41, 40, 7]
    layout = plan_layout(lengths, heads=12, device=torch.device("cpu"))
    assert layout.order == (1, 4, 0, 3, 7, 6, 5, 2)
    assert [layout.order[i] for i in layout.inverse] == list(range(8))
    assert sorted(layout.tokens.tolist()) == list(range(sum(lengths)))
    assert layout.tokens[:3].tolist() == [7, 315, 316]  # review 1, then review 4, at their places
    assert [(b.first, b.reviews, b.start, b.stop, b.length) for b in layout.blocks.attention] == [
        (0, 1, 0, 1, 1),
        (1, 1, 1, 3, 2),
        (2, 3, 3, 24, 7),
        (5, 2, 24, 105, 41),
        (7, 1, 105, 405, 300),
    ]
    assert [b.padding is None for b in layout.blocks.attention] == [True, True, True, False, True]
    padded = layout.blocks.attention[3]
    rows = torch.arange(405.0)[:, None]
    assert padded.pad(rows, zero=True)[0, :, 0].tolist() == [*range(24, 64), 0]
    back = torch.zeros_like(rows)
    padded.unpad_to(back, padded.pad(rows), 2.0)
    assert torch.equal(back[24:105], 2 * rows[24:105])
    # Blocks of cross-attention hold as many reviews as half again as many rows allow.
    assert [(b.first, b.reviews, b.start, b.stop, b.length) for b in layout.blocks.cross] == [
        (0, 2, 0, 3, 2),
        (2, 3, 3, 24, 7),
        (5, 2, 24, 105, 41),
        (7, 1, 105, 405, 300),
    ]


@pytest.mark.parametrize("lengths", [[], [3, 0]])
def test_empty_prompts_are_refused(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="at least one token"):
        plan_layout(lengths, heads=2, device=torch.device("cpu"))
