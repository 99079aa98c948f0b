"""Prompt templates and prompts in pieces."""

import string
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rxtone.errors import RecipeError


@dataclass(frozen=True)
class Layout:
    """A prompt in pieces.

    Attributes:
        names: The name of each text, for counts.
        heads: What stands before each text.
        texts: The texts.
        tail: What follows the last text.
    """

    names: tuple[str, ...]
    heads: tuple[str, ...]
    texts: tuple[str, ...]
    tail: str

    def text(self) -> str:
        """Return the whole prompt."""
        return "".join(head + text for head, text in zip(self.heads, self.texts, strict=True)) + self.tail

    def with_texts(self, texts: Sequence[str]) -> "Layout":
        """Return the same prompt around other texts.

        Args:
            texts: As many texts as before.

        Returns:
            The new layout.
        """
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


def split_template(key: str, template: str, slot: str, labels: str) -> tuple[str, str]:
    """Fill in the labels and cut the template at its slot.

    Args:
        key: Where the template stands in the recipe, for messages.
        template: Text with ``{slot}`` once and ``{labels}`` at will; ``{{`` and ``}}`` are braces.
        slot: The placeholder to cut at.
        labels: The label words in a row.

    Returns:
        What stands before and what stands after the slot.

    Raises:
        RecipeError: The slot is missing or given twice, or there are other placeholders.
    """
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
            raise RecipeError(f"{expected}; found {{{name}}} in the wrong place or form. Correct the template.")
        if name == "labels":
            current += labels
        else:
            before, current = current, ""
    if before is None:
        raise RecipeError(f"{expected}; found no {{{slot}}}. Add it where the review goes.")
    return before, current
