"""The engine: log-probabilities of target tokens and scores of labels."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import torch
import torch.nn.functional as F  # noqa: N812 - the customary name
from torch import Tensor, nn

from rxtone.errors import ModelError
from rxtone.model.batches import IGNORE
from rxtone.model.engine.decoder import decode, dropped, embedded, final_norm, token_log_probs
from rxtone.model.engine.dropout import DrawnMasks, MaskSource, TableMasks
from rxtone.model.engine.encoder import Pass, attention, feed_forward
from rxtone.model.engine.graphs import Graphs, filled
from rxtone.model.engine.int8 import quantise, why_not
from rxtone.model.engine.layout import Blocks, block_bias, plan_layout, relative_bias
from rxtone.model.engine.plan import Unsupported, Weights, read_weights
from rxtone.model.engine.workers import side_by_side, workers_for

_TOKENS = 2048  # of a scoring batch: enough rows for the matrix kernels, few enough for the last-level cache
_GPU_TOKENS = 1 << 15  # of a GPU's scoring batch: from here on its kernels take longer than their launches
_GRAPH_TOKENS = 1 << 16  # of a training batch: the backward has more, and smaller, kernels


@dataclass(frozen=True)
class LabelRows:
    """Labels as the decoder reads and scores them, on the device.

    Attributes:
        count: How many.
        single: Whether each is one token: then one decoder row serves all.
        tokens: Decoder inputs (1, alternatives, positions).
        columns: Per position the labels that have a token there.
        chosen: Per position the tokens of those labels.
    """

    count: int
    single: bool
    tokens: Tensor
    columns: tuple[Tensor, ...]
    chosen: tuple[Tensor, ...]


@lru_cache(maxsize=64)
def label_rows(sequences: tuple[tuple[int, ...], ...], start: int, pad: int, device: torch.device) -> LabelRows:
    """Lay labels out for the decoder.

    Args:
        sequences: Token ids of every label.
        start: First decoder input.
        pad: Decoder input behind the end of a label; nothing reads what comes of it.
        device: Where the index tensors go.

    Returns:
        The labels.
    """
    longest = max(len(sequence) for sequence in sequences)
    single = longest == 1
    inputs = [[start]] if single else [[start, *s[:-1], *[pad] * (longest - len(s))] for s in sequences]
    columns = [[i for i, sequence in enumerate(sequences) if len(sequence) > at] for at in range(longest)]
    with torch.inference_mode(mode=False):  # who scores first may train next
        return LabelRows(
            len(sequences),
            single,
            torch.tensor(inputs, device=device)[None],
            tuple(torch.tensor(own, device=device) for own in columns),
            tuple(torch.tensor([sequences[i][at] for i in own], device=device) for at, own in enumerate(columns)),
        )


def _token_batches(order: Sequence[int], lengths: Sequence[int], workers: int, tokens: int) -> list[list[int]]:
    """Cut reviews, in the given order, into batches of about equal tokens.

    There are a multiple of ``workers`` where the reviews suffice, each of ``tokens`` and one review more at most.
    """
    total, seen = sum(lengths), 0
    count = min(len(order), -(-total // (tokens * workers)) * workers)
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
        generator: Seeds the dropout masks; None for torch's default generator. A GPU's masks come from the default
            generator of the device.
        graphs: Of a GPU: passes that are recorded once for each shape.
    """

    weights: Weights
    model: nn.Module
    generator: torch.Generator | None = None
    graphs: Graphs | None = None

    @staticmethod
    def plan(model: nn.Module, *, generator: torch.Generator | None = None) -> Engine | Unsupported:
        """Inspect a model.

        Args:
            model: ``T5ForConditionalGeneration``, or ``PeftModel`` with LoRA around one.
            generator: A CPU generator that seeds the dropout masks: one draw per training forward, so its
                state is all that an exact resume needs. None for torch's default generator. On a GPU that is
                the default generator of the device.

        Returns:
            The engine, or why the model needs the reference path.
        """
        weights = read_weights(model)
        if isinstance(weights, Unsupported):
            return weights
        return Engine(weights, model, generator, Graphs() if weights.embedding.is_cuda else None)

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
        columns = torch.nonzero((targets != IGNORE).any(0))
        positions = int(columns[-1]) + 1 if columns.numel() else 1
        log_probs = self._run("targets", Engine._target_log_probs, ids, lengths, targets[:, :positions])
        return F.pad(log_probs, (0, targets.shape[1] - positions))

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
        sequences = tuple((*tokens, *eos) for tokens in label_tokens)
        workers = 1 if torch.is_grad_enabled() else workers_for(ids.device, len(lengths))
        labels = label_rows(sequences, self.weights.start_token, self.weights.pad_token, ids.device)
        compute = partial(Engine._label_scores, labels=labels)
        tokens = _GPU_TOKENS if ids.is_cuda else _TOKENS
        if torch.is_grad_enabled() or (workers == 1 and len(ids) <= tokens):
            return self._run(sequences, compute, ids, lengths, None)
        pieces = torch.split(ids, list(lengths))
        order = sorted(range(len(lengths)), key=lambda i: -lengths[i])  # the dearest first, so that all end together

        def scored(batch: list[int]) -> Tensor:
            own = torch.cat([pieces[i] for i in batch])
            return self._run(sequences, compute, own, [lengths[i] for i in batch], None)

        tasks = [partial(scored, batch) for batch in _token_batches(order, lengths, workers, tokens)]
        scores = torch.cat(side_by_side(tasks, workers))
        return torch.empty_like(scores).index_copy_(0, torch.tensor(order, device=ids.device), scores)

    def _run(
        self,
        kind: Hashable,
        compute: Callable[[Engine, Tensor, Blocks, Tensor | None], Tensor],
        ids: Tensor,
        lengths: Sequence[int],
        targets: Tensor | None,
    ) -> Tensor:
        """Compute something of every review, in the caller's order; by a graph of the GPU where there is one."""
        if torch.is_grad_enabled() and not self.weights.frozen:
            raise ModelError(
                "the fast engine gives gradients to LoRA adapters only, but weights of the base require"
                " gradients; freeze them, call under torch.no_grad(), or use train.engine: reference"
            )
        if self.graphs is not None and len(ids) <= (_GRAPH_TOKENS if torch.is_grad_enabled() else _GPU_TOKENS):
            inputs = filled(ids, lengths, targets, self.weights.pad_token)
            key = (kind, self.model.training)
            out = self.graphs.run(key, lambda own: partial(compute, replace(self, weights=own)), inputs, self.weights)
            return out[: len(lengths)]
        layout = plan_layout(lengths, self.weights.heads, ids.device)
        order = torch.tensor(layout.order, device=ids.device)
        ordered = None if targets is None else targets[order]
        out = compute(self, ids[layout.tokens], layout.blocks, ordered)
        return out[torch.tensor(layout.inverse, device=ids.device)]

    def _target_log_probs(self, ids: Tensor, blocks: Blocks, targets: Tensor | None) -> Tensor:
        """Log-probabilities (reviews, positions) of targets, 0 where there is none."""
        assert targets is not None
        wanted = targets != IGNORE
        inputs = targets[:, :-1].masked_fill(~wanted[:, :-1], self.weights.pad_token)
        start = torch.full_like(targets[:, :1], self.weights.start_token)
        hidden = self._hidden(ids, blocks, torch.cat([start, inputs], 1)[:, None, :])[:, 0]
        tokens = targets.masked_fill(~wanted, 0)
        own = token_log_probs(hidden.flatten(0, 1), self.weights.head.detach(), tokens.flatten(), self._wide)
        return own.view(targets.shape).masked_fill(~wanted, 0.0)

    def _label_scores(self, ids: Tensor, blocks: Blocks, targets: Tensor | None, *, labels: LabelRows) -> Tensor:
        """Scores (reviews, labels); labels of several tokens have a decoder row each, with its own normalisers."""
        reviews = blocks.cross[-1].first + blocks.cross[-1].reviews
        head = self.weights.head.detach()
        hidden = self._hidden(ids, blocks, labels.tokens.expand(reviews, -1, -1))
        if labels.single:
            return (hidden[:, 0, 0] @ head[labels.chosen[0]].t()).to(self._wide)
        total = torch.zeros(reviews, labels.count, dtype=self._wide, device=ids.device)
        for position, (columns, chosen) in enumerate(zip(labels.columns, labels.chosen, strict=True)):
            logits = (hidden.index_select(1, columns)[:, :, position] @ head.t()).to(self._wide)
            own = torch.log_softmax(logits, -1).gather(2, chosen.expand(reviews, -1)[..., None])[..., 0]
            total = total.index_add(1, columns, own)
        return total

    @property
    def _wide(self) -> torch.dtype:
        return torch.float64 if self.weights.embedding.dtype is torch.float64 else torch.float32

    def _hidden(self, ids: Tensor, blocks: Blocks, tokens: Tensor) -> Tensor:
        """Decoder states (reviews, alternatives, positions, d_model) of decoder inputs `tokens`, in the blocks' order.

        Nothing here waits for the device, which a graph could not do.
        """
        weights = self.weights
        bias = relative_bias(
            weights.encoder_bias,
            max(block.length for block in blocks.attention),
            bidirectional=True,
            buckets=weights.buckets,
            max_distance=weights.max_distance,
        )
        biases = tuple(block_bias(bias, block) for block in blocks.attention)
        rate = weights.rate if self.model.training else 0.0
        run = Pass(blocks, biases, weights.heads, weights.epsilon, rate, self._masks(ids.device))
        return decode(weights, self._encode(ids, run), tokens, run)

    def _masks(self, device: torch.device) -> MaskSource | None:
        if not self.model.training:
            return None
        if device.type == "cuda":
            return DrawnMasks(device)
        return TableMasks(int(torch.randint(0, 2**62, (), generator=self.generator)), device)

    def _encode(self, ids: Tensor, run: Pass) -> Tensor:
        hidden = dropped(embedded(self.weights, ids), run)
        for layer in self.weights.encoder:
            hidden = attention(hidden, layer.attention, run)
            hidden = feed_forward(hidden, layer.feed_forward, run)
        return final_norm(hidden, self.weights.encoder_norm, run)
