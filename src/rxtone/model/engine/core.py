"""The engine: log-probabilities of target tokens and scores of labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from rxtone.errors import ModelError
from rxtone.model.batches import IGNORE
from rxtone.model.engine.decoder import decode, dropped, final_norm
from rxtone.model.engine.dropout import MaskSource
from rxtone.model.engine.encoder import Pass, attention, feed_forward
from rxtone.model.engine.int8 import quantise, why_not
from rxtone.model.engine.layout import Layout, block_bias, plan_layout, relative_bias
from rxtone.model.engine.plan import Unsupported, Weights, read_weights
from rxtone.model.engine.workers import side_by_side, workers_for

_TOKENS = 2048  # of a scoring batch: enough rows for the matrix kernels, few enough for the last-level cache


def _token_batches(order: Sequence[int], lengths: Sequence[int], workers: int) -> list[list[int]]:
    """Cut reviews, in the given order, into batches of about equal tokens.

    There are a multiple of ``workers`` where the reviews suffice, each of ``_TOKENS`` and one review more at most.
    """
    total, seen = sum(lengths), 0
    count = min(len(order), -(-total // (_TOKENS * workers)) * workers)
    batches: list[list[int]] = [[] for _ in range(count)]
    for review in order:
        middle = seen + lengths[review] / 2
        batches[min(count - 1, int(middle * count / total))].append(review)
        seen += lengths[review]
    return [batch for batch in batches if batch]


def flatten(input_ids: Sequence[Sequence[int]]) -> tuple[Tensor, tuple[int, ...]]:
    """Lay prompts one after another.

    Args:
        input_ids: Token ids of every prompt, end-of-sequence token included.

    Returns:
        Flat ids (tokens,) int64 and the length of every prompt.
    """
    lengths = tuple(len(ids) for ids in input_ids)
    return torch.tensor([token for ids in input_ids for token in ids], dtype=torch.int64), lengths


def unpad(input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """Drop the padding of a padded batch.

    Args:
        input_ids: (reviews, longest).
        attention_mask: (reviews, longest), non-zero where a token is real.

    Returns:
        Flat ids (tokens,) and the length of every row.
    """
    real = attention_mask.bool()
    return input_ids[real], tuple(real.sum(1).tolist())


@dataclass(frozen=True)
class Engine:
    """A T5 classifier's forward on flat tokens, with the weights of a loaded model in place.

    Made by ``plan``. The model stays what it was: its parameters are read at every call, an optimiser may
    change them in between. After a structural change (another adapter made active, merged, disabled) plan
    again.

    Attributes:
        weights: The model's weights in place.
        model: The module, asked only whether it is training.
        generator: Seeds the dropout masks; None for torch's default generator.
    """

    weights: Weights
    model: nn.Module
    generator: torch.Generator | None = None

    @staticmethod
    def plan(model: nn.Module, *, generator: torch.Generator | None = None) -> Engine | Unsupported:
        """Inspect a model.

        Args:
            model: ``T5ForConditionalGeneration``, or ``PeftModel`` with LoRA around one.
            generator: A CPU generator that seeds the dropout masks: one draw per training forward, so its
                state is all that an exact resume needs. None for torch's default generator.

        Returns:
            The engine, or why the model needs the reference path.
        """
        weights = read_weights(model)
        return weights if isinstance(weights, Unsupported) else Engine(weights, model, generator)

    def int8(self) -> Engine | Unsupported:
        """Quantise the linear maps, for scoring on a CPU.

        Returns:
            An engine of its own with 8-bit copies of the linear maps, without gradients; or why it cannot be
            had.
        """
        reason = why_not(self.weights)
        return Unsupported(reason) if reason else Engine(quantise(self.weights), self.model, self.generator)

    @property
    def is_int8(self) -> bool:
        """Whether the linear maps are quantised."""
        return self.weights.encoder[0].attention.q.int8 is not None

    def target_log_probs(self, ids: Tensor, lengths: Sequence[int], targets: Tensor) -> Tensor:
        """Log-probability of every target token under teacher forcing, over the full vocabulary.

        In training mode the model's dropout and the adapters' are applied.

        Args:
            ids: Flat prompt tokens (tokens,).
            lengths: Tokens of every prompt; they sum to ``tokens``.
            targets: (reviews, positions) target tokens; -100 for positions without a target.

        Returns:
            (reviews, positions) in fp32 (fp64 for an fp64 model); 0 where there is no target.
        """
        wanted = targets != IGNORE
        columns = torch.nonzero(wanted.any(0))
        positions = int(columns[-1]) + 1 if columns.numel() else 1
        inputs = targets[:, : positions - 1].masked_fill(~wanted[:, : positions - 1], self.weights.pad_token)
        start = torch.full_like(targets[:, :1], self.weights.start_token)
        hidden = self._hidden(ids, lengths, torch.cat([start, inputs], 1)[:, None, :])[:, 0]
        wanted_here = wanted[:, :positions]
        chosen = targets[:, :positions][wanted_here]
        logits = (hidden[wanted_here] @ self.weights.head.detach().t()).to(self._wide)
        log_probs = torch.log_softmax(logits, -1).gather(1, chosen[:, None])[:, 0]
        out = log_probs.new_zeros(targets.shape)
        return out.index_put((torch.nonzero(wanted)[:, 0], torch.nonzero(wanted)[:, 1]), log_probs)

    def label_scores(
        self, ids: Tensor, lengths: Sequence[int], label_tokens: Sequence[Sequence[int]], *, with_eos: bool
    ) -> Tensor:
        """Scores of the labels, whose softmax is the distribution over labels.

        Without gradients, any number of reviews may come at once: they are sorted by length and scored in
        batches of a few thousand tokens, so that memory does not grow with their number, and on a CPU with
        several threads in as many batches side by side.

        A score is the sum of the label's token log-probabilities, up to one constant per review that all
        labels share: where every label is a single token without end-of-sequence, the constant is the
        normaliser over the vocabulary, and only the labels' own logits are computed, at a single decoder
        position.

        Args:
            ids: Flat prompt tokens (tokens,).
            lengths: Tokens of every prompt.
            label_tokens: Token ids of every label, without end-of-sequence.
            with_eos: Whether the end-of-sequence token belongs to the labels; needed where label lengths
                differ or one label begins another.

        Returns:
            (reviews, labels) in fp32 (fp64 for an fp64 model).
        """
        eos = (self.weights.eos_token,) if with_eos else ()
        sequences = [(*tokens, *eos) for tokens in label_tokens]
        workers = 1 if torch.is_grad_enabled() else workers_for(ids.device, len(lengths))
        if torch.is_grad_enabled() or (workers == 1 and len(ids) <= _TOKENS):
            return self._scores(ids, lengths, sequences)
        pieces = torch.split(ids, list(lengths))
        order = sorted(range(len(lengths)), key=lambda i: -lengths[i])  # the dearest first, so that all end together

        def scored(batch: list[int]) -> Tensor:
            own = torch.cat([pieces[i] for i in batch])
            return self._scores(own, [lengths[i] for i in batch], sequences)

        tasks = [partial(scored, batch) for batch in _token_batches(order, lengths, workers)]
        scores = torch.cat(side_by_side(tasks, workers))
        return torch.empty_like(scores).index_copy_(0, torch.tensor(order, device=ids.device), scores)

    def _scores(self, ids: Tensor, lengths: Sequence[int], sequences: list[tuple[int, ...]]) -> Tensor:
        """Scores of reviews that fit one batch."""
        device = ids.device
        if all(len(sequence) == 1 for sequence in sequences):
            start = torch.full((len(lengths), 1, 1), self.weights.start_token, device=device)
            hidden = self._hidden(ids, lengths, start)[:, 0, 0]
            rows = self.weights.head.detach()[torch.tensor([s[0] for s in sequences], device=device)]
            return (hidden @ rows.t()).to(self._wide)
        return self._sequence_scores(ids, lengths, sequences)

    def _sequence_scores(self, ids: Tensor, lengths: Sequence[int], sequences: list[tuple[int, ...]]) -> Tensor:
        """Labels of several tokens: one decoder row per review and label, each with its own normalisers."""
        device, count, longest = ids.device, len(sequences), max(len(s) for s in sequences)
        targets = torch.tensor([[*s, *[IGNORE] * (longest - len(s))] for s in sequences], device=device)
        inputs = targets[:, :-1].masked_fill(targets[:, :-1] == IGNORE, self.weights.pad_token)
        start = torch.full((count, 1), self.weights.start_token, device=device)
        tokens = torch.cat([start, inputs], 1)[None].expand(len(lengths), -1, -1)
        hidden = self._hidden(ids, lengths, tokens)
        total = torch.zeros(len(lengths), count, dtype=self._wide, device=device)
        for position in range(longest):
            wanted = targets[:, position] != IGNORE
            logits = (hidden[:, wanted, position] @ self.weights.head.detach().t()).to(self._wide)
            chosen = targets[wanted, position].expand(len(lengths), -1)
            own = torch.log_softmax(logits, -1).gather(2, chosen[..., None])[..., 0]
            total = total.index_add(1, torch.nonzero(wanted)[:, 0], own)
        return total

    @property
    def _wide(self) -> torch.dtype:
        return torch.float64 if self.weights.embedding.dtype is torch.float64 else torch.float32

    def _hidden(self, ids: Tensor, lengths: Sequence[int], tokens: Tensor) -> Tensor:
        """Decoder states (reviews, alternatives, positions, d_model) in the caller's order."""
        if torch.is_grad_enabled() and not self.weights.frozen:
            raise ModelError(
                "the fast engine gives gradients to LoRA adapters only, but weights of the base require"
                " gradients; freeze them, call under torch.no_grad(), or use train.engine: reference"
            )
        layout = plan_layout(lengths, self.weights.heads, ids.device)
        run = self._pass(layout, ids.device)
        rows = self._encode(ids[layout.tokens], run)
        order = torch.tensor(layout.order, device=ids.device)
        hidden = decode(self.weights, rows, tokens[order], run)
        return hidden[torch.tensor(layout.inverse, device=ids.device)]

    def _pass(self, layout: Layout, device: torch.device) -> Pass:
        weights = self.weights
        bias = relative_bias(
            weights.encoder_bias,
            layout.longest,
            bidirectional=True,
            buckets=weights.buckets,
            max_distance=weights.max_distance,
        )
        biases = tuple(block_bias(bias, block) for block in layout.blocks)
        masks: MaskSource | None = None
        if self.model.training:
            seed = int(torch.randint(0, 2**62, (), generator=self.generator))
            masks = MaskSource(seed, device)
        rate = weights.rate if self.model.training else 0.0
        return Pass(layout.blocks, biases, weights.heads, weights.epsilon, rate, masks)

    def _encode(self, ids: Tensor, run: Pass) -> Tensor:
        hidden = dropped(self.weights.embedding.detach()[ids], run)
        for layer in self.weights.encoder:
            hidden = attention(hidden, layer.attention, run)
            hidden = feed_forward(hidden, layer.feed_forward, run)
        return final_norm(hidden, self.weights.encoder_norm, run)
