"""Labels are scored, never generated and parsed.

The score of a label is the sum of its tokens' log-probabilities given the prompt, </s> included only
where the labels differ in length (a longer label would otherwise pay for its length twice, and a
label that is the beginning of another could not be told from it). Probabilities are the softmax over
the labels' scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from rxtone.errors import RecipeError
from rxtone.model.batches import IGNORE, scoring_batches
from rxtone.model.engine import Engine, Unsupported, unpad
from rxtone.model.memory import out_of_memory, split

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenizers import Tokenizer

    from rxtone.model.batches import Batch, ReviewDataset


@dataclass(frozen=True)
class LabelTokens:
    """The labels as the model spells them.

    Attributes:
        ids: Token ids per label, without </s>.
        with_eos: Whether </s> counts in the score.
        eos: Id of </s>.
    """

    ids: tuple[tuple[int, ...], ...]
    with_eos: bool
    eos: int

    def targets(self) -> tuple[tuple[int, ...], ...]:
        """Token ids per label with </s>: what training teaches."""
        return tuple((*ids, self.eos) for ids in self.ids)

    def scored(self) -> tuple[tuple[int, ...], ...]:
        """Token ids per label that enter the score."""
        return self.targets() if self.with_eos else self.ids


def label_token_ids(tokenizer: Tokenizer, labels: Sequence[str], eos: int) -> LabelTokens:
    """Spell the labels in the base's tokens.

    Args:
        tokenizer: The base's tokenizer.
        labels: Label words, in the recipe's order.
        eos: Id of </s>.

    Returns:
        Their tokens.

    Raises:
        RecipeError: If two labels look the same to the tokenizer, or one has an unknown token.
    """
    ids = tuple(tuple(tokenizer.encode(label, add_special_tokens=False).ids) for label in labels)
    unknown = _unknown_id(tokenizer)
    for label, tokens in zip(labels, ids, strict=True):
        if not tokens or unknown in tokens:
            msg = f"label {label!r}: this base's tokenizer has no tokens for it; choose another label word"
            raise RecipeError(msg)
    for first in range(len(ids)):
        for second in range(first):
            if ids[first] == ids[second]:
                msg = f"labels {labels[second]!r} and {labels[first]!r} are the same tokens for this base; rename one"
                raise RecipeError(msg)
    return LabelTokens(ids, len({len(tokens) for tokens in ids}) > 1, eos)


Scorer = torch.nn.Module | Engine
"""What computes: the module itself (transformers + PEFT, the reference) or an engine planned on it."""


def plan_scorer(model: torch.nn.Module, engine: str, *, int8: bool = False) -> tuple[Scorer, str | None]:
    """Choose the forward.

    Args:
        model: T5ForConditionalGeneration, or PEFT around one.
        engine: `fast` or `reference`.
        int8: Score with 8-bit linear maps; only the fast engine has them, so there is no second choice.

    Returns:
        What computes, and why the fast engine could not be used where it was asked for.

    Raises:
        RecipeError: int8 was asked for and cannot be had.
    """
    if int8:
        exact: Engine | Unsupported = Engine.plan(model) if engine == "fast" else Unsupported("the reference has none")
        eight = exact.int8() if isinstance(exact, Engine) else exact
        if isinstance(eight, Unsupported):
            raise RecipeError(f"precision int8: {eight.reason}; choose bf16 or fp32")
        return eight, None
    if engine == "reference":
        return model, None
    planned = Engine.plan(model)
    return (model, planned.reason) if isinstance(planned, Unsupported) else (planned, None)


def replan(scorer: Scorer) -> Scorer:
    """Plan again after tensors of the module were replaced: an engine reads those that it found.

    Args:
        scorer: The module, or an engine planned on it.

    Returns:
        The module, or an engine of the same precision on its present tensors.
    """
    if not isinstance(scorer, Engine):
        return scorer
    return plan_scorer(scorer.model, "fast", int8=scorer.is_int8)[0]


def module_of(scorer: Scorer) -> torch.nn.Module:
    """The module whose weights a scorer reads."""
    return scorer.model if isinstance(scorer, Engine) else scorer


def score_labels(scorer: Scorer, batch: Batch, label_tokens: LabelTokens) -> torch.Tensor:
    """Score of every label for every review: one encoder pass, one decoder pass.

    Args:
        scorer: The model, or an engine planned on it.
        batch: Prompts; labels are not read.
        label_tokens: The k labels.

    Returns:
        float32 (float64 for a float64 model), shape (batch, k): sums of token log-probabilities, up to a
        constant per review that the softmax over the labels takes out.
    """
    if isinstance(scorer, Engine):
        ids, lengths = unpad(batch.input_ids, batch.attention_mask)
        return scorer.label_scores(ids, lengths, label_tokens.ids, with_eos=label_tokens.with_eos)
    scored = label_tokens.scored()
    if all(len(tokens) == 1 for tokens in scored):
        start = torch.full((len(batch.rows), 1), _start_id(scorer), device=batch.input_ids.device)
        logits = scorer(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, decoder_input_ids=start, use_cache=False
        ).logits
        log_probs: torch.Tensor = logits[:, 0].float().log_softmax(-1)
        return log_probs[:, [tokens[0] for tokens in scored]]
    return _score_sequences(scorer, batch, scored)


def target_token_log_probs(scorer: Scorer, batch: Batch, targets: torch.Tensor) -> torch.Tensor:
    """Log-probability of each target token under teacher forcing, over the full vocabulary.

    Args:
        scorer: The model, or an engine planned on it.
        batch: Prompts.
        targets: int64, shape (batch, length), -100 on padding.

    Returns:
        float32 (float64 for a float64 model), shape (batch, length); 0 on padding.
    """
    if isinstance(scorer, Engine):
        ids, lengths = unpad(batch.input_ids, batch.attention_mask)
        return scorer.target_log_probs(ids, lengths, targets)
    logits = scorer(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        decoder_input_ids=shift_right(targets, _start_id(scorer)),
        use_cache=False,
    ).logits
    return target_log_probs(logits, targets)


def score_dataset(
    scorer: Scorer, dataset: ReviewDataset, label_tokens: LabelTokens, *, batch_size: int, pad_token_id: int
) -> np.ndarray:
    """Score every review of a dataset, in batches of similar length, and keep only (rows, labels).

    Args:
        scorer: The model, or an engine planned on it; the model's mode is left as it was.
        dataset: n tokenised reviews.
        label_tokens: The k labels.
        batch_size: Most reviews per batch.
        pad_token_id: Filler of short prompts.

    Returns:
        float64, shape (n, k): label scores, in the dataset's order.
    """
    model = module_of(scorer)
    device = next(model.parameters()).device
    scores = np.zeros((len(dataset), len(label_tokens.ids)))
    training = model.training
    if training:  # hundreds of modules to visit, which a server would do for every review
        model.eval()
    try:
        with torch.inference_mode():
            waiting = scoring_batches(dataset.lengths, batch_size=batch_size)
            while waiting:
                indexes = waiting.pop(0)
                try:
                    batch = dataset.batch(indexes, pad_token_id).to(device)
                    scores[indexes] = score_labels(scorer, batch, label_tokens).cpu().numpy()
                except (RuntimeError, MemoryError) as error:
                    if len(indexes) == 1 or not out_of_memory(error):
                        raise
                    waiting = split([indexes, *waiting], 2)  # all of them: the longest come first
    finally:
        if training:
            model.train()
    return scores


def log_probabilities(scores: np.ndarray) -> np.ndarray:
    """Softmax over the labels, in logarithms: scores of shape (n, k) to log-probabilities, float64."""
    shifted = scores - scores.max(axis=1, keepdims=True)
    normalised: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return normalised


def _score_sequences(model: torch.nn.Module, batch: Batch, scored: tuple[tuple[int, ...], ...]) -> torch.Tensor:
    device = batch.input_ids.device
    rows, k = len(batch.rows), len(scored)
    targets = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(tokens, device=device) for tokens in scored], batch_first=True, padding_value=IGNORE
    ).repeat(rows, 1)  # (rows * k, longest)
    encoder = model.get_encoder()  # type: ignore[operator]
    states = encoder(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
    logits = model(
        encoder_outputs=(states.repeat_interleave(k, 0),),
        attention_mask=batch.attention_mask.repeat_interleave(k, 0),
        decoder_input_ids=shift_right(targets, _start_id(model)),
        use_cache=False,
    ).logits
    return target_log_probs(logits, targets).sum(-1).view(rows, k)


def target_log_probs(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Log-probability of each target token.

    Args:
        logits: shape (batch, length, vocabulary).
        targets: int64, shape (batch, length), -100 on padding.

    Returns:
        float32, shape (batch, length); 0 on padding.
    """
    return -torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="none"
    ).view(targets.shape)


def shift_right(targets: torch.Tensor, start: int) -> torch.Tensor:
    """Decoder inputs for targets of shape (batch, length): the start token, then all but the last.

    Padding (-100) becomes the start token, which only padded positions see.
    """
    shifted = targets.new_full(targets.shape, start)
    shifted[:, 1:] = targets[:, :-1]
    return shifted.masked_fill(shifted == IGNORE, start)


def _start_id(model: torch.nn.Module) -> int:
    return int(model.config.decoder_start_token_id)  # type: ignore[union-attr, arg-type]


def _unknown_id(tokenizer: Tokenizer) -> int | None:
    for token in ("<unk>", "[UNK]"):
        found = tokenizer.token_to_id(token)
        if found is not None:
            return found
    return None
