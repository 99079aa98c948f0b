"""The engine's activations against torch's own and autograd."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rxtone.model.engine import activations
from rxtone.model.engine.activations import activate, activate_backward, gated, gated_backward

TORCH = {
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu": F.gelu,
    "silu": F.silu,
    "relu": F.relu,
}
LIMITS = {torch.float64: 1e-12, torch.float32: 2e-6}


def values(rows: int, dtype: torch.dtype, seed: int) -> Tensor:
    """Rows of 48 values from -12 to 12, where every form of GELU has gone to 0 or to x."""
    return torch.empty(rows, 48, dtype=dtype).uniform_(-12, 12, generator=torch.Generator().manual_seed(seed))


def by_autograd(name: str, grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """act(gate) * up and both gradients."""
    gate, up = gate.clone().requires_grad_(), up.clone().requires_grad_()
    out = TORCH[name](gate) * up
    out.backward(grad)
    assert gate.grad is not None
    assert up.grad is not None
    return out.detach(), gate.grad, up.grad


@pytest.mark.parametrize("name", TORCH)
@pytest.mark.parametrize("dtype", LIMITS, ids=str)
def test_values_and_gradients_are_those_of_torch(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activations, "_TILE", 48 * 5)  # 13 rows are two tiles and a part of one
    grad, gate, up = (values(13, dtype, seed) for seed in range(3))
    out, to_gate, to_up = by_autograd(name, grad, gate, up)
    scale = 12.0**2
    assert (gated(gate, up, name) - out).abs().max() <= LIMITS[dtype] * scale
    ones = torch.ones_like(up)
    alone, slope, _ = by_autograd(name, grad, gate, ones)
    assert (activate(gate, name) - alone).abs().max() <= LIMITS[dtype] * scale
    assert (activate_backward(grad, gate, name) - slope).abs().max() <= LIMITS[dtype] * scale
    own_gate, own_up = gated_backward(grad.clone(), gate, up, name)
    assert (own_gate - to_gate).abs().max() <= LIMITS[dtype] * scale
    assert (own_up - to_up).abs().max() <= LIMITS[dtype] * scale


@pytest.mark.parametrize("rows", [0, 1, 5, 6])
def test_any_number_of_rows_and_inputs_stay_as_they_are(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "_TILE", 48 * 5)
    for dtype in (torch.float32, torch.bfloat16):
        grad, gate, up = (values(rows, dtype, seed) for seed in range(3))
        kept = gate.clone(), up.clone(), grad.clone()
        assert gated(gate, up, "gelu_new").shape == activate(gate, "gelu_new").shape == (rows, 48)
        assert activate_backward(grad, gate, "gelu_new").dtype is dtype
        assert [part.shape for part in gated_backward(grad, gate, up, "gelu_new")] == [(rows, 48)] * 2
        for now, before in zip((gate, up, grad), kept, strict=True):
            assert torch.equal(now, before)


def test_in_bf16_the_tanh_form_is_nearer_to_the_truth_than_torchs() -> None:
    grad, gate, up = (values(64, torch.bfloat16, seed) for seed in range(3))
    truth = by_autograd("gelu_new", *(value.double() for value in (grad, gate, up)))
    theirs = by_autograd("gelu_new", grad, gate, up)
    ours = (gated(gate, up, "gelu_new"), *gated_backward(grad, gate, up, "gelu_new"))
    for exact, own, other in zip(truth, ours, theirs, strict=True):
        assert (own.double() - exact).abs().mean() < (other.double() - exact).abs().mean()


def test_far_out_the_tanh_form_is_x_or_nothing() -> None:
    x = torch.tensor([[-3e18, -1e4, -0.0, 0.0, 1e4, 3e18]])
    assert torch.equal(activate(x, "gelu_new"), F.relu(x))
    slope = activate_backward(torch.ones_like(x), x, "gelu_new")
    assert slope.tolist() == [[0.0, 0.0, 0.5, 0.5, 1.0, 1.0]]
