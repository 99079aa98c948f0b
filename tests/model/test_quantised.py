import importlib.util
import json

import pytest
import torch
from tiny import tiny_values

from rxtone import api
from rxtone.config import check_recipe
from rxtone.errors import RecipeError
from rxtone.loading import load
from rxtone.model.base import load_base
from rxtone.model.lora import adapted
from rxtone.serving.export import export

HERE = importlib.util.find_spec("bitsandbytes") is not None
needs_bitsandbytes = pytest.mark.skipif(not HERE, reason="needs bitsandbytes: install rxtone[quant]")
quiet = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


def values(base, table, bits):
    plain = tiny_values(base, table)
    plain["model"] |= {"quantization": bits}
    plain["lora"] |= {"target_modules": ["q", "v"]}
    plain["train"] |= {"num_train_epochs": 2}
    return plain


@pytest.mark.skipif(HERE, reason="bitsandbytes is installed")
def test_without_bitsandbytes_it_is_refused_with_the_remedy(tiny_base):
    with pytest.raises(RecipeError, match=r"8bit needs bitsandbytes; install rxtone\[quant\]"):
        load_base(str(tiny_base), precision="8bit")


def test_pissa_is_refused_with_quantised_weights(tiny_base, tiny_table):
    plain = values(tiny_base, tiny_table, "8bit")
    plain["lora"] |= {"variant": "pissa"}
    with pytest.raises(RecipeError, match="pissa takes the base's weights apart"):
        check_recipe(plain, "tiny")


@needs_bitsandbytes
@quiet
@pytest.mark.parametrize(("bits", "share"), [("8bit", 0.75), ("4bit", 0.65)])
def test_the_bundled_base_shrinks_and_scores_alike(bits, share):
    whole, small = load_base("bundled", precision="fp32"), load_base("bundled", precision=bits)
    assert small.precision == bits
    assert small.model.get_memory_footprint() < share * whole.model.get_memory_footprint()
    wo = small.model.encoder.block[0].layer[1].DenseReluDense.wo
    assert type(wo) is torch.nn.Linear  # what transformers keeps whole, stays whole
    ids = torch.arange(100, 140)[None]
    with torch.inference_mode():
        one, other = (
            base.model(input_ids=ids, decoder_input_ids=ids[:, :1] * 0).logits.float().softmax(-1)
            for base in (whole, small)
        )
    assert float((one - other).abs().max()) < 0.25


@needs_bitsandbytes
@quiet
@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_gradients_reach_the_adapter_before_and_after_scoring(tiny_base, tiny_recipe, bits):
    model = load_base(str(tiny_base), precision=bits).model
    ids, labels = torch.arange(3, 15)[None].repeat(2, 1), torch.full((2, 2), 5)
    with adapted(model, tiny_recipe.lora.model_copy(update={"target_modules": ["q", "v"]}), 1) as (wrapped, _):
        for _ in range(2):
            wrapped.train()
            wrapped.zero_grad()
            wrapped(input_ids=ids, labels=labels).loss.backward()
            grads = [p.grad for name, p in wrapped.named_parameters() if "lora_B" in name]
            assert all(grad is not None for grad in grads)
            assert any(bool(grad.any()) for grad in grads)
            wrapped.eval()
            with torch.inference_mode():
                wrapped(input_ids=ids[:1], decoder_input_ids=ids[:1, :1])


@needs_bitsandbytes
@quiet
def test_a_run_on_eight_bits_trains_reloads_and_merges_through_the_whole_base(tiny_base, tiny_table, tmp_path):
    plain = values(tiny_base, tiny_table, "8bit")
    plain["evaluation"] = {"reload_check": True, "baselines": False}
    run = api.train(check_recipe(plain, "tiny"), out=tmp_path / "run")
    environment = json.loads(run.environment.read_text())
    assert environment["precision"] == "8bit"
    assert environment["reload_check"]["max_probability_change"] < 0.02
    classifier = load(run)
    assert type(classifier.model).__name__ == "PeftModelForSeq2SeqLM"  # beside the weights, not in them
    report = export(str(run.path), tmp_path / "merged", form="merged", tolerance=0.5)
    assert report.format == "merged"
    merged = load(tmp_path / "merged")
    review = {"Benefits": "the pill was great", "Side Effects": "none"}
    one, other = classifier.predict([review])[0], merged.predict([review])[0]
    assert one.probabilities == pytest.approx(other.probabilities, abs=0.2)
