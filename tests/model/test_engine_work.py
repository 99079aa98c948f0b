"""Speed that does not depend on a clock: operations, bytes and random draws, engine and reference.

The model has Flan-T5's proportions (d_ff = 2.67 d) at a small width. Limits are loose: they catch a lost
elimination, not a percent.
"""

import importlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import T5Config, T5ForConditionalGeneration

from rxtone.model.engine import Engine, flatten

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

LENGTHS = (24, 40, 64, 30, 12, 38, 50, 22)
WIDTH = 64


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The counter of the benchmarks, which are no part of the installed package."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    return importlib.import_module("benchmarks.work")


def build() -> PeftModel:
    torch.manual_seed(1)
    config = T5Config(
        vocab_size=500,
        d_model=96,
        d_kv=16,
        d_ff=256,
        num_layers=4,
        num_heads=6,
        feed_forward_proj="gated-gelu",
    )
    config.decoder_start_token_id = 0
    lora = LoraConfig(r=4, lora_dropout=0.1, target_modules=["q", "v"])
    return get_peft_model(T5ForConditionalGeneration(config), lora).train()


def prompts() -> list[list[int]]:
    return [[*torch.randint(2, 500, (n - 1,)).tolist(), 1] for n in LENGTHS]


def reference_step(model: PeftModel, rows: list[list[int]], targets: torch.Tensor) -> None:
    ids = torch.tensor([[*r, *[0] * (WIDTH - len(r))] for r in rows])
    model(input_ids=ids, attention_mask=(ids != 0).long(), labels=targets).loss.backward()


def engine_step(model: PeftModel, rows: list[list[int]], targets: torch.Tensor) -> None:
    engine = Engine.plan(model)
    assert isinstance(engine, Engine)
    (-engine.target_log_probs(*flatten(rows), targets).mean()).backward()


def test_a_training_step_does_a_fraction_of_the_references_work(work: Any) -> None:
    model, rows, targets = build(), prompts(), torch.tensor([[7, 1]] * len(LENGTHS))
    padded_targets = torch.nn.functional.pad(targets, (0, 8), value=-100)
    own = work.count(lambda: engine_step(model, rows, targets))
    reference = work.count(lambda: reference_step(model, rows, padded_targets))
    share_of_tokens = sum(LENGTHS) / (WIDTH * len(LENGTHS))  # 0.55
    assert own.operations < 0.85 * share_of_tokens * reference.operations
    assert own.bytes < 0.6 * reference.bytes
    assert own.draws < 10  # seeds; the reference draws one number per dropped element
    assert reference.draws > 500_000


def test_scoring_computes_one_position_and_the_labels_logits(work: Any) -> None:
    model, rows = build().eval(), prompts()
    engine = Engine.plan(model)
    assert isinstance(engine, Engine)
    with torch.no_grad():
        own = work.count(lambda: engine.label_scores(*flatten(rows), [(7,), (8,), (9,)], with_eos=False))
        long = work.count(lambda: engine.label_scores(*flatten(rows), [(7,), (8,), (9,)], with_eos=True))
    tokens, layers, d, ff, inner = sum(LENGTHS), 4, 96, 256, 96
    encoder = tokens * layers * 2 * (4 * d * inner + 3 * d * ff)
    assert encoder < own.operations < 1.35 * encoder  # attention, adapters, decoder and head add little
    assert long.operations > 1.1 * own.operations


def test_work_of_linear_maps_grows_with_tokens_not_with_the_longest_review(work: Any) -> None:
    engine = Engine.plan(build().eval())
    assert isinstance(engine, Engine)

    def operations(lengths: list[int]) -> int:
        rows = [[2] * n for n in lengths]
        with torch.no_grad():
            return work.count(lambda: engine.label_scores(*flatten(rows), [(7,), (8,)], with_eos=False)).operations

    even, skewed = operations([32] * 16), operations([200] + [21] * 14 + [18])
    assert skewed < 1.25 * even  # 512 tokens each; padded to the longest, the second would cost 6 times the first


def reference_scores(model: PeftModel, rows: list[list[int]]) -> None:
    ids = torch.tensor([[*r, *[0] * (WIDTH - len(r))] for r in rows])
    start = torch.zeros(len(rows), 1, dtype=torch.int64)
    model(input_ids=ids, attention_mask=(ids != 0).long(), decoder_input_ids=start, use_cache=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_scoring_allocates_and_calls_less_than_the_reference(
    work: Any, dtype: torch.dtype, record_property: Callable[[str, object], None]
) -> None:
    model, rows = build().merge_and_unload().to(dtype).eval(), prompts()
    engine = Engine.plan(model)
    assert isinstance(engine, Engine)

    def score() -> None:
        engine.label_scores(*flatten(rows), [(7,), (8,), (9,)], with_eos=False)

    with torch.inference_mode():
        own, reference = work.count(score), work.count(lambda: reference_scores(model, rows))
        begun = time.perf_counter()
        score()
    record_property("scoring_seconds", time.perf_counter() - begun)  # reported, never asserted
    share_of_tokens = sum(LENGTHS) / (WIDTH * len(LENGTHS))  # 0.55
    assert own.operations < 0.95 * share_of_tokens * reference.operations
    assert own.bytes < 0.5 * reference.bytes
    assert own.calls < 2 * reference.calls  # views and blocks of similar lengths included
    assert own.draws == 0


def test_kernel_calls_do_not_grow_with_reviews_of_one_length(work: Any) -> None:
    engine = Engine.plan(build().eval())
    assert isinstance(engine, Engine)

    def calls(reviews: int) -> int:
        rows = [[2] * 30] * reviews
        with torch.no_grad():
            return work.count(lambda: engine.label_scores(*flatten(rows), [(7,), (8,)], with_eos=False)).calls

    calls(3)  # the labels are laid out once and kept
    assert calls(24) == calls(3)


@pytest.mark.skipif(not torch.cpu._is_vnni_supported(), reason="this CPU has no 8-bit dot products")
def test_int8_multiplies_no_row_in_full_precision_that_it_can_multiply_in_8_bits(work: Any) -> None:
    model = build().merge_and_unload().eval()
    exact = Engine.plan(model)
    assert isinstance(exact, Engine)
    eight = exact.int8()
    assert isinstance(eight, Engine)
    rows = prompts()
    with torch.inference_mode():
        full = work.count(lambda: exact.label_scores(*flatten(rows), [(7,), (8,)], with_eos=False))
        rest = work.count(lambda: eight.label_scores(*flatten(rows), [(7,), (8,)], with_eos=False))
    tokens, layers, d, ff, inner = sum(LENGTHS), 4, 96, 256, 96
    assert full.operations - rest.operations > tokens * layers * 2 * (4 * d * inner + 3 * d * ff)
