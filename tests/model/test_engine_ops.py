"""What the engine's sublayers share, against torch."""

from __future__ import annotations

import pytest
import torch

from rxtone.model.engine.ops import softmax

ROUNDING = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}


@pytest.mark.parametrize("length", [1, 8, 31, 32, 39, 40, 63, 64, 107])
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_softmax_is_exact_but_for_one_rounding(length: int, dtype: torch.dtype) -> None:
    scores = torch.randn(6, 5, length, generator=torch.Generator().manual_seed(length)).mul(4).to(dtype)
    scores[0, 0, -1] = -torch.inf
    if length == 1:
        scores[0, 0, -1] = 0.0
    exact = torch.softmax(scores.double(), -1)
    found = softmax(scores)
    assert found.dtype is dtype
    assert ((found.double() - exact).abs() <= ROUNDING[dtype] * exact + 1e-7).all()
