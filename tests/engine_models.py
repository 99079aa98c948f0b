"""Tiny T5 models with every part that the engine reads, their adapters, and what transformers makes of them."""

from collections.abc import Sequence

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import T5Config, T5ForConditionalGeneration

from rxtone.model.batches import IGNORE
from rxtone.model.engine import Engine

ALL_TARGETS = ["q", "k", "v", "o", "wi", "wi_0", "wi_1", "wo"]
RAGGED = (5, 1, 9, 9, 3, 40, 2, 33)


def tiny(
    *,
    gated: bool = True,
    tied: bool = False,
    scaled: bool = False,
    dtype: torch.dtype = torch.float64,
    dropout: float = 0.0,
    act: str = "gelu",
    seed: int = 7,
) -> T5ForConditionalGeneration:
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=61,
        d_model=24,
        d_kv=5,
        d_ff=37,
        num_layers=3,
        num_decoder_layers=2,
        num_heads=4,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=20,
        dropout_rate=dropout,
        feed_forward_proj=f"gated-{act}" if gated else act,
        decoder_start_token_id=0,
    )
    config.scale_decoder_outputs = scaled
    model = T5ForConditionalGeneration(config)
    if not tied:
        model.lm_head.weight = nn.Parameter(torch.randn(61, 24) * 0.2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif name.endswith(".q.weight"):  # as wide as k: attention that is neither flat nor a single peak
                parameter.mul_(2.0)
    return model.to(dtype)


def adapted(
    model: T5ForConditionalGeneration,
    targets: Sequence[str] = ALL_TARGETS,
    *,
    dropout: float = 0.0,
    rslora: bool = False,
    dtype: torch.dtype | None = None,
) -> PeftModel:
    present = [t for t in targets if any(n.endswith(f".{t}") for n, _ in model.named_modules())]
    config = LoraConfig(
        r=3,
        lora_alpha=7,
        lora_dropout=dropout,
        target_modules=present,
        use_rslora=rslora,
        task_type="SEQ_2_SEQ_LM",
    )
    peft = get_peft_model(model, config, autocast_adapter_dtype=False)
    torch.manual_seed(11)
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_" in name:
                # Drawn in double precision, so that models of different dtypes get the same adapters.
                drawn = torch.empty(parameter.shape, dtype=torch.float64).normal_(0, 0.1)
                parameter.data = drawn.to(dtype or parameter.dtype)
    return peft


def prompts(lengths: Sequence[int]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [[*torch.randint(2, 61, (n - 1,), generator=generator).tolist(), 1] for n in lengths]


def padded(rows: Sequence[Sequence[int]], width: int | None = None) -> tuple[Tensor, Tensor]:
    width = width or max(map(len, rows))
    ids = torch.tensor([[*r, *[0] * (width - len(r))] for r in rows])
    mask = torch.tensor([[*[1] * len(r), *[0] * (width - len(r))] for r in rows])
    return ids, mask


def targets_of(count: int, positions: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    targets = torch.randint(2, 61, (count, positions), generator=generator)
    targets[:, -1] = 1
    for row in range(0, count, 3):  # every third label is one token shorter
        if positions > 2:
            targets[row, -2:] = torch.tensor([1, IGNORE])
    return targets


def reference_log_probs(
    model: nn.Module, rows: Sequence[Sequence[int]], targets: Tensor, encoded: tuple[Tensor] | None = None
) -> Tensor:
    ids, mask = (tensor.to(targets.device) for tensor in padded(rows))
    logits = model(input_ids=ids, attention_mask=mask, labels=targets, encoder_outputs=encoded).logits
    wide = torch.float64 if logits.dtype is torch.float64 else torch.float32
    own = torch.log_softmax(logits.to(wide), -1).gather(2, targets.clamp(min=0)[..., None])[..., 0]
    return own * (targets != IGNORE)


def engine_of(model: nn.Module) -> Engine:
    engine = Engine.plan(model)
    assert isinstance(engine, Engine), engine
    return engine


def gradients(model: nn.Module, log_probs: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    loss = -log_probs.sum() / (targets != IGNORE).sum()
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def in_dtype(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A base in a dtype as transformers loads it: beside fp16 `wo` stays in fp32."""
    model = model.to(dtype)
    for name, parameter in model.named_parameters():
        if dtype is torch.float16 and ".wo." in name:
            parameter.data = parameter.data.float()
    return model
