"""Several LoRA adapters on one base, side by side in one forward.

The rows of a batch are laid out setting by setting, an equal number each. A frozen linear map is computed once for
all rows; the low-rank parts are two batched products over the settings. What a setting learns depends on its own
rows alone, so its numbers are those of a run of its own, up to the rounding of larger batches.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rxtone.errors import RecipeError
from rxtone.model.lora import adapted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from transformers import T5ForConditionalGeneration

    from rxtone.config import LoraSettings


@dataclass
class Owners:
    """Which settings own the rows of the next forward, in order; the one thing that changes between forwards."""

    settings: tuple[int, ...]


@dataclass(frozen=True)
class Pair:
    """The low-rank part of one setting at one linear map: y += scaling * B A dropout(x)."""

    down: nn.Parameter
    up: nn.Parameter
    scaling: float
    rate: float


class SharedLinear(nn.Module):
    """A frozen linear map with the low-rank parts of several settings.

    Args:
        base: The frozen map.
        owners: Shared by all maps of a model.
        pairs: Setting -> its part; a setting that does not adapt this map is not in it.
    """

    def __init__(self, base: nn.Linear, owners: Owners, pairs: dict[int, Pair]) -> None:
        super().__init__()
        self.base = base
        self.owners = owners
        self.pairs = pairs
        rank = max(pair.down.shape[0] for pair in pairs.values())
        first = next(iter(pairs.values()))
        self.nothing = (first.down.new_zeros(rank, base.in_features), first.up.new_zeros(base.out_features, rank))

    @property
    def weight(self) -> Tensor:
        """The frozen weight; T5's feed-forward looks at its type."""
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        """The map on rows that `owners` describes: (rows, length, in) to (rows, length, out)."""
        y: Tensor = self.base(x)
        settings = self.owners.settings
        if not any(setting in self.pairs for setting in settings):
            return y
        down, up = self.nothing
        downs = torch.stack([_padded(self.pairs[s].down, down) if s in self.pairs else down for s in settings])
        ups = torch.stack([
            _padded(self.pairs[s].up * self.pairs[s].scaling, up) if s in self.pairs else up for s in settings
        ])  # fmt: skip
        rows = x.reshape(len(settings), -1, x.shape[-1]).to(downs.dtype)
        if self.training and any(self.pairs[s].rate for s in settings if s in self.pairs):
            rows = torch.stack([
                nn.functional.dropout(part, self.pairs[s].rate) if s in self.pairs else part
                for s, part in zip(settings, rows, strict=True)
            ])  # fmt: skip
        low = torch.bmm(torch.bmm(rows, downs.transpose(1, 2)), ups.transpose(1, 2))
        return (y + low.view(y.shape)).to(y.dtype)


@dataclass(frozen=True)
class SharedModel:
    """A base with several adapters.

    Attributes:
        model: The base; its adapted maps are `SharedLinear`.
        owners: Says whose rows come next.
        parameters: Per setting its trainable tensors by name.
    """

    model: T5ForConditionalGeneration
    owners: Owners
    parameters: tuple[dict[str, nn.Parameter], ...] = field(repr=False)


def why_not_together(lora: LoraSettings) -> str | None:
    """Why an adapter cannot be trained together with others; None where it can."""
    if lora.variant in {"dora", "pissa"}:
        return f"lora.variant {lora.variant} changes or divides the base's own weights"
    return None


@contextlib.contextmanager
def share_base(
    model: T5ForConditionalGeneration, settings: Sequence[LoraSettings], seeds: Sequence[int]
) -> Iterator[SharedModel]:
    """Put several adapters on a base for the length of a block; afterwards the base is what it was.

    Args:
        model: The frozen base.
        settings: One adapter each.
        seeds: Seed of each adapter's random start: the start that a run of its own would have.

    Yields:
        The base with its adapters.

    Raises:
        RecipeError: If an adapter is of a kind that needs the base for itself, or its target matches nothing.
    """
    pairs: dict[str, dict[int, Pair]] = {}
    for index, (lora, seed) in enumerate(zip(settings, seeds, strict=True)):
        if (reason := why_not_together(lora)) is not None:
            msg = f"--together: {reason}"
            raise RecipeError(msg)
        with adapted(model, lora, seed) as (wrapped, summary):
            for name in summary.modules:
                layer = wrapped.get_base_model().get_submodule(name)
                own = Pair(
                    nn.Parameter(layer.lora_A["default"].weight.detach().clone()),  # type: ignore[union-attr, index]
                    nn.Parameter(layer.lora_B["default"].weight.detach().clone()),  # type: ignore[union-attr, index]
                    float(layer.scaling["default"]),  # type: ignore[index]
                    lora.lora_dropout,
                )
                pairs.setdefault(name, {})[index] = own
    owners = Owners(tuple(range(len(settings))))
    originals = {name: model.get_submodule(name) for name in pairs}
    try:
        for name, original in originals.items():
            assert isinstance(original, nn.Linear)
            shared = SharedLinear(original, owners, pairs[name])
            shared.train(model.training)
            model.set_submodule(name, shared)
        parameters: tuple[dict[str, nn.Parameter], ...] = tuple(
            {
                f"{name}.{part}": parameter
                for name, owned in pairs.items()
                if index in owned
                for part, parameter in (("lora_A", owned[index].down), ("lora_B", owned[index].up))
            }
            for index in range(len(settings))
        )
        yield SharedModel(model, owners, parameters)
    finally:
        for name, original in originals.items():
            model.set_submodule(name, original)
        model.eval()


class Given(nn.Module):
    """Stands for the model where its logits are known already: the losses and scores of one setting's rows.

    Args:
        logits: shape (rows, length, vocabulary).
        start: The decoder's first token.
    """

    def __init__(self, logits: Tensor, start: int) -> None:
        super().__init__()
        self.logits = logits
        self.config = _Start(start)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, decoder_input_ids: Tensor, use_cache: bool = False
    ) -> _Logits:
        """The logits of the first positions: a position never depends on later ones."""
        return _Logits(self.logits[:, : decoder_input_ids.shape[1]])


@dataclass(frozen=True)
class _Start:
    decoder_start_token_id: int


@dataclass(frozen=True)
class _Logits:
    logits: Tensor


def _padded(matrix: Tensor, like: Tensor) -> Tensor:
    """Zeros up to the largest rank; they stay zero, since their gradients are."""
    return nn.functional.pad(matrix, (0, like.shape[1] - matrix.shape[1], 0, like.shape[0] - matrix.shape[0]))
