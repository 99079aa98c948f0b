"""The engine's norm against that of transformers."""

from __future__ import annotations

import pytest
import torch
from transformers.models.t5.modeling_t5 import T5LayerNorm

from rxtone.model.engine.norms import norm

ROUNDING = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_the_norm_is_that_of_transformers(dtype: torch.dtype, gradients: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(9, 48, generator=generator, dtype=torch.float64).mul(20).to(dtype)
    module = T5LayerNorm(48, eps=1e-6).to(dtype)
    with torch.no_grad():
        module.weight.copy_(torch.rand(48, generator=generator) + 0.5)
    kept = rows.clone()
    with torch.set_grad_enabled(gradients):
        found = norm(rows, module.weight.detach(), 1e-6)
    expected = module(rows).detach()
    assert found.dtype is dtype
    assert torch.equal(rows, kept)
    assert (found.double() - expected.double()).abs().max() <= 2 * ROUNDING[dtype] * expected.double().abs().max()


def test_the_norm_of_a_wider_residual_stream_has_the_dtype_of_its_weight() -> None:
    rows, weight = torch.full((2, 4), 300.0), torch.ones(4, dtype=torch.float16)  # their squares exceed fp16
    with torch.no_grad():
        found = norm(rows, weight, 1e-6)
    assert found.dtype is torch.float16
    assert found.tolist() == [[1.0] * 4] * 2
