"""Review -> prompt token ids, within a token budget that is fair to every field.

One path for training, evaluation and serving. White space in a review is folded, strings of special tokens
typed in a review are broken up, empty fields are left out. The uncut prompt is exactly the tokenizer's
encoding of ``PromptBuilder.render``.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from tokenizers import Encoding, Tokenizer

from rxtone.data.budget import share_tokens
from rxtone.data.layout import Layout, labels_in_words, split_template
from rxtone.data.reviews import Review
from rxtone.data.special_tokens import SpecialTokens
from rxtone.errors import ModelError, RecipeError

FREE_TEXT = "text"
# Set apart by a space, so that the last word before the cut keeps its tokens.
CUT_MARK = " ..."
_BATCH = 1024
_WORTH_THREADS = 8


@dataclass(frozen=True)
class Prompt:
    """The tokens of one prompt.

    Attributes:
        ids: Token ids, end-of-sequence included; at most ``max_tokens``.
        n_tokens_full: How many tokens the uncut prompt has.
        cut: For each cut field (``text`` for free text) how many of its tokens were cut.
    """

    ids: tuple[int, ...]
    n_tokens_full: int
    cut: dict[str, int] = field(default_factory=dict)

    @property
    def truncated(self) -> bool:
        """Whether the prompt lost any token."""
        return len(self.ids) < self.n_tokens_full


@dataclass(frozen=True)
class Word:
    """One word of a review as it stands in a prompt.

    Attributes:
        field: The field it stands in; ``text`` for free text.
        text: The word, marks included.
        tokens: Positions of its tokens in the prompt.
    """

    field: str
    text: str
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Reading:
    """What of a review a model reads.

    Attributes:
        prompt: The prompt.
        texts: Pairs of field (``text`` for free text) and what is left of its text after any cut.
        words: The words that were not cut, in order.
    """

    prompt: Prompt
    texts: tuple[tuple[str, str], ...]
    words: tuple[Word, ...]


def _keep(text: str, encoding: Encoding, wanted: int) -> tuple[str, int]:
    """Keep the first tokens of a text and mark the cut; return the text and the tokens really kept."""
    if wanted >= len(encoding.ids):
        return text, len(encoding.ids)
    offsets = encoding.offsets
    # Several tokens can stand for one character; they stay or go together.
    while wanted and offsets[wanted - 1][1] > offsets[wanted][0]:
        wanted -= 1
    return (text[: offsets[wanted - 1][1]].rstrip() if wanted else "") + (
        CUT_MARK if wanted else CUT_MARK.strip()
    ), wanted


class PromptBuilder:
    """Build the prompts of one classifier.

    Args:
        tokenizer: The tokenizer of the model; it is copied and not changed.
        template: The prompt for reviews with fields; ``{fields}`` stands for ``Name: text`` pairs joined by
            a space, or ``{text}`` for the texts without their names; ``{labels}`` for the label words.
        text_template: The prompt for free text, with ``{text}`` and ``{labels}``.
        labels: The label words in order.
        max_tokens: The most tokens of a prompt, end-of-sequence included.
        truncation: ``fields`` never cuts the instruction or a field's name and shares the rest fairly among
            the fields, each cut marked by an ellipsis; ``tail`` cuts the end, as transformers does.

    Raises:
        RecipeError: A template lacks its placeholder, or the instruction alone exceeds ``max_tokens``.
        ModelError: The tokenizer adds no end-of-sequence token.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: str,
        text_template: str,
        labels: Sequence[str],
        max_tokens: int,
        truncation: Literal["fields", "tail"] = "fields",
    ) -> None:
        self._tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        end = self._tokenizer.encode("").ids
        if len(end) != 1:
            raise ModelError(
                "expected a tokenizer that adds one token, end-of-sequence, to every text; this one adds "
                f"{len(end)}. Use the tokenizer.json of a T5-family model."
            )
        self._end = end[0]
        words = labels_in_words(labels)
        self._named = "{fields}" in template or "{text}" not in template
        self._frame = split_template("prompt.template", template, "fields" if self._named else FREE_TEXT, words)
        self._text_frame = split_template("prompt.text_template", text_template, FREE_TEXT, words)
        self._max_tokens = max_tokens
        self._truncation = truncation
        self._mark_length = len(self._tokenizer.encode(CUT_MARK, add_special_tokens=False).ids)
        self._special = SpecialTokens(self._tokenizer)
        for before, after in (self._frame, self._text_frame):
            self._require_room(len(self._tokenizer.encode(before + after).ids))

    def build(self, review: Review) -> Prompt:
        """Build one prompt.

        Args:
            review: The review.

        Returns:
            The prompt.

        Raises:
            RecipeError: The instruction and the field names alone exceed ``max_tokens``.
        """
        return self.build_many([review])[0]

    def build_many(self, reviews: Iterable[Review]) -> list[Prompt]:
        """Build the prompts of many reviews; much faster than one by one.

        Args:
            reviews: The reviews.

        Returns:
            The prompts in order.

        Raises:
            RecipeError: The instruction and the field names alone exceed ``max_tokens``.
        """
        layouts = [self._lay_out(review) for review in reviews]
        prompts: list[Prompt] = []
        for start in range(0, len(layouts), _BATCH):
            batch = layouts[start : start + _BATCH]
            whole = self._encode_many([layout.text() for layout in batch])
            prompts += [self._fit(layout, ids) for layout, ids in zip(batch, whole, strict=True)]
        return prompts

    def reading(self, review: Review) -> Reading:
        """Tell what of a review is read, word by word.

        Args:
            review: The review.

        Returns:
            The prompt that ``build`` gives, and where each word stands in it.
        """
        layout = self._lay_out(review)
        prompt, layout = self._fit_layout(layout, self._tokenizer.encode(layout.text()).ids)
        text = layout.text()
        offsets = self._tokenizer.encode(text).offsets[: len(prompt.ids) - 1]
        end = offsets[-1][1] if offsets else 0
        texts, words = [], []
        for name, (low, high) in zip(layout.names, layout.spans(), strict=True):
            texts.append((name, text[low : min(high, end)]))
            found = [
                # The last character of a token counts: its first may be the blank before a word.
                Word(name, match[0], tuple(i for i, (_, to) in enumerate(offsets) if match.start() < to <= match.end()))
                for match in re.compile(r"\S+").finditer(text, low, high)
            ]
            if name in prompt.cut and self._truncation == "fields":
                found = found[:-1]  # the mark of the cut
            words += [word for word in found if word.tokens]
        return Reading(prompt, tuple(texts), tuple(words))

    def render(self, review: Review) -> str:
        """Return the text of the uncut prompt.

        Args:
            review: The review.

        Returns:
            The text that ``build`` encodes.
        """
        return self._lay_out(review).text()

    def _lay_out(self, review: Review) -> Layout:
        if review.text is not None:
            before, after = self._text_frame
            return Layout((FREE_TEXT,), (before,), (self._clean(review.text),), after)
        cleaned = [(self._clean(name), self._clean(text)) for name, text in review.fields]
        filled = [(name, text) for name, text in cleaned if text]
        before, after = self._frame
        heads = [
            (before if i == 0 else " ") + (f"{name}: " if self._named else "") for i, (name, _) in enumerate(filled)
        ]
        names = tuple(name for name, _ in filled)
        return Layout(names, tuple(heads), tuple(text for _, text in filled), after if filled else before + after)

    def _clean(self, text: str) -> str:
        return self._special.neutralise(" ".join(text.split()))

    def _encode_many(self, texts: Sequence[str]) -> list[list[int]]:
        # Waking the tokenizer's threads costs more than a few prompts take.
        if len(texts) < _WORTH_THREADS:
            return [self._tokenizer.encode(text).ids for text in texts]
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts))]

    def _fit(self, layout: Layout, ids: list[int]) -> Prompt:
        return self._fit_layout(layout, ids)[0]

    def _fit_layout(self, layout: Layout, ids: list[int]) -> tuple[Prompt, Layout]:
        if len(ids) <= self._max_tokens:
            return Prompt(tuple(ids), len(ids)), layout
        if self._truncation == "tail":
            return self._cut_tail(layout), layout
        return self._cut_fields(layout, len(ids))

    def _cut_tail(self, layout: Layout) -> Prompt:
        encoding = self._tokenizer.encode(layout.text())
        keep = self._max_tokens - 1
        cut: dict[str, int] = {}
        for start, end in encoding.offsets[keep:-1]:
            # The last character counts: a token may begin with the blank before a text.
            for name, (low, high) in zip(layout.names, layout.spans(), strict=True):
                if start < end and low < end <= high:
                    cut[name] = cut.get(name, 0) + 1
        return Prompt((*encoding.ids[:keep], self._end), len(encoding.ids), cut)

    def _cut_fields(self, layout: Layout, n_full: int) -> tuple[Prompt, Layout]:
        fields = [self._tokenizer.encode(text, add_special_tokens=False) for text in layout.texts]
        lengths = [len(own.ids) for own in fields]
        bare = layout.with_texts([CUT_MARK.strip()] * len(fields))
        fitted, kept, read = tuple(self._tokenizer.encode(bare.text()).ids), [0] * len(fields), bare
        self._require_room(len(fitted))
        # The bare frame pays for a mark in every field, so an uncut field has the mark's tokens to spare.
        mark = self._mark_length
        budget = self._max_tokens - len(fitted)
        while budget > 0:
            shares = share_tokens([max(0, length - mark) for length in lengths], budget)
            wanted = [n if share + mark >= n else share for n, share in zip(lengths, shares, strict=True)]
            cuts = [_keep(text, own, n) for text, own, n in zip(layout.texts, fields, wanted, strict=True)]
            trial = layout.with_texts([text for text, _ in cuts])
            ids = self._tokenizer.encode(trial.text()).ids
            if len(ids) <= self._max_tokens:
                fitted, kept, read = tuple(ids), [n for _, n in cuts], trial
                break
            # Pieces differ at the joints, so the sum can be a little off.
            budget -= len(ids) - self._max_tokens
        lost = [length - n for length, n in zip(lengths, kept, strict=True)]
        return Prompt(fitted, n_full, {name: n for name, n in zip(layout.names, lost, strict=True) if n}), read

    def _require_room(self, needed: int) -> None:
        if needed > self._max_tokens:
            raise RecipeError(
                f"prompt.max_tokens: the instruction and the field names alone take {needed} tokens, found "
                f"max_tokens {self._max_tokens}; raise it or shorten the template."
            )
