"""Review -> prompt token ids, within a token budget that is fair to every field.

One path for training, evaluation and serving. White space in a review is folded, strings of special tokens
typed in a review are broken up, empty fields are left out. The uncut prompt is exactly the tokenizer's
encoding of ``PromptBuilder.render``.
"""

import re
import string
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from tokenizers import Encoding, Tokenizer

from rxtone.data.budget import share_tokens
from rxtone.data.reviews import Review
from rxtone.errors import ModelError, RecipeError

FREE_TEXT = "text"
# Set apart by a space, so that the last word before the cut keeps its tokens.
CUT_MARK = " ..."
_BATCH = 1024


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
        """Whether the review lost any token."""
        return bool(self.cut)


@dataclass(frozen=True)
class _Layout:
    """A prompt in pieces: before each text what leads to it, and what follows the last."""

    names: tuple[str, ...]
    heads: tuple[str, ...]
    texts: tuple[str, ...]
    tail: str

    def text(self) -> str:
        return "".join(head + text for head, text in zip(self.heads, self.texts, strict=True)) + self.tail

    def with_texts(self, texts: Sequence[str]) -> "_Layout":
        return replace(self, texts=tuple(texts))

    def spans(self) -> list[tuple[int, int]]:
        """Return where each text begins and ends in ``text()``."""
        spans: list[tuple[int, int]] = []
        position = 0
        for head, text in zip(self.heads, self.texts, strict=True):
            position += len(head)
            spans.append((position, position + len(text)))
            position += len(text)
        return spans


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


def labels_in_words(labels: Sequence[str]) -> str:
    """Return the labels as a prompt names them: "a or b", "a, b, or c".

    Args:
        labels: The label words in order.

    Returns:
        The enumeration.
    """
    if len(labels) < 3:
        return " or ".join(labels)
    return f"{', '.join(labels[:-1])}, or {labels[-1]}"


def _split_template(key: str, template: str, slot: str, labels: str) -> tuple[str, str]:
    """Fill in the labels and cut the template at its slot."""
    expected = f"{key}: expected a text with {{{slot}}} once and, if you like, {{labels}}"
    before: str | None = None
    current = ""
    try:
        pieces = list(string.Formatter().parse(template))
    except ValueError as error:
        raise RecipeError(f"{expected}; found {error}. Write a brace that is text twice.") from None
    for literal, name, spec, conversion in pieces:
        current += literal
        if name is None:
            continue
        if name not in (slot, "labels") or spec or conversion or (name == slot and before is not None):
            raise RecipeError(
                f"{expected}; found {{{name}}} in the wrong place or form. Correct the template."
            )
        if name == "labels":
            current += labels
        else:
            before, current = current, ""
    if before is None:
        raise RecipeError(f"{expected}; found no {{{slot}}}. Add it where the review goes.")
    return before, current


class _SpecialTokens:
    """Breaks up the strings of special tokens in a review, so that they are read as ordinary text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        normalizer = tokenizer.normalizer
        self._normalize: Callable[[str], str] = normalizer.normalize_str if normalizer is not None else str
        contents = {
            token.content
            for token in tokenizer.get_added_tokens_decoder().values()
            if token.special and token.content
        }
        # A tokenizer may look a special token up before or after normalisation.
        contents |= {self._normalize(content).strip(" \u2581") for content in contents} - {""}
        ordered = sorted(contents, key=lambda content: (-len(content), content))
        self._pattern = re.compile("|".join(map(re.escape, ordered)) or r"(?!)")

    def neutralise(self, text: str) -> str:
        """Return the text with a blank after the first character of each special token in it."""
        while True:
            text = self._pattern.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)
            # Full-width brackets or control characters inside can hide a token until the tokenizer
            # normalises.
            normal = self._normalize(text)
            if self._pattern.search(normal) is None:
                return text
            text = normal


class PromptBuilder:
    """Build the prompts of one classifier.

    Args:
        tokenizer: The tokenizer of the model; it is copied and not changed.
        template: The prompt for reviews with fields; ``{fields}`` stands for ``Name: text`` pairs joined by
            a space, ``{labels}`` for the label words.
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
                f"expected a tokenizer that adds one token, end-of-sequence, to a text; this one adds "
                f"{len(end)}. "
                "Use the tokenizer.json of a T5-family model."
            )
        self._end = end[0]
        words = labels_in_words(labels)
        self._frame = _split_template("prompt.template", template, "fields", words)
        self._text_frame = _split_template("prompt.text_template", text_template, FREE_TEXT, words)
        self._max_tokens = max_tokens
        self._truncation = truncation
        self._special = _SpecialTokens(self._tokenizer)
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
            encodings = self._tokenizer.encode_batch([layout.text() for layout in batch])
            prompts += [
                self._fit(layout, encoding) for layout, encoding in zip(batch, encodings, strict=True)
            ]
        return prompts

    def render(self, review: Review) -> str:
        """Return the text of the uncut prompt.

        Args:
            review: The review.

        Returns:
            The text that ``build`` encodes.
        """
        return self._lay_out(review).text()

    def _lay_out(self, review: Review) -> _Layout:
        if review.text is not None:
            before, after = self._text_frame
            return _Layout((FREE_TEXT,), (before,), (self._clean(review.text),), after)
        cleaned = [(name, self._clean(text)) for name, text in review.fields]
        filled = [(name, text) for name, text in cleaned if text]
        before, after = self._frame
        heads = [f"{before if i == 0 else ' '}{name}: " for i, (name, _) in enumerate(filled)]
        names = tuple(name for name, _ in filled)
        return _Layout(
            names, tuple(heads), tuple(text for _, text in filled), after if filled else before + after
        )

    def _clean(self, text: str) -> str:
        return self._special.neutralise(" ".join(text.split()))

    def _fit(self, layout: _Layout, encoding: Encoding) -> Prompt:
        n_full = len(encoding.ids)
        if n_full <= self._max_tokens:
            return Prompt(tuple(encoding.ids), n_full)
        if self._truncation == "tail":
            return self._cut_tail(layout, encoding)
        return self._cut_fields(layout, n_full)

    def _cut_tail(self, layout: _Layout, encoding: Encoding) -> Prompt:
        keep = self._max_tokens - 1
        spans = layout.spans()
        cut: dict[str, int] = {}
        for start, end in encoding.offsets[keep:-1]:
            # The last character counts: a token may begin with the blank before a field.
            for name, (low, high) in zip(layout.names, spans, strict=True):
                if low < end <= high and end > start:
                    cut[name] = cut.get(name, 0) + 1
        return Prompt((*encoding.ids[:keep], self._end), len(encoding.ids), cut)

    def _cut_fields(self, layout: _Layout, n_full: int) -> Prompt:
        fields = self._tokenizer.encode_batch(list(layout.texts), add_special_tokens=False)
        lengths = [len(own.ids) for own in fields]
        bare = layout.with_texts([CUT_MARK.strip()] * len(fields))
        fitted, kept = tuple(self._tokenizer.encode(bare.text()).ids), [0] * len(fields)
        self._require_room(len(fitted))
        # The bare frame pays for a mark in every field; a field that is not cut has the mark's tokens to
        # spare.
        mark = len(self._tokenizer.encode(CUT_MARK, add_special_tokens=False).ids)
        budget = self._max_tokens - len(fitted)
        while budget > 0:
            shares = share_tokens([max(0, length - mark) for length in lengths], budget)
            wanted = [n if share + mark >= n else share for n, share in zip(lengths, shares, strict=True)]
            cuts = [_keep(text, own, n) for text, own, n in zip(layout.texts, fields, wanted, strict=True)]
            ids = self._tokenizer.encode(layout.with_texts([text for text, _ in cuts]).text()).ids
            if len(ids) <= self._max_tokens:
                fitted, kept = tuple(ids), [n for _, n in cuts]
                break
            # Pieces differ at the joints, so the sum can be a little off.
            budget -= len(ids) - self._max_tokens
        lost = [length - n for length, n in zip(lengths, kept, strict=True)]
        return Prompt(fitted, n_full, {name: n for name, n in zip(layout.names, lost, strict=True) if n})

    def _require_room(self, needed: int) -> None:
        if needed > self._max_tokens:
            raise RecipeError(
                f"prompt.max_tokens: the instruction and the field names alone take {needed} tokens, found "
                f"max_tokens {self._max_tokens}; raise it or shorten the template."
            )
