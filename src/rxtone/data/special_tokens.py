"""Strings of special tokens typed in a review are broken up, so that they are read as ordinary text."""

import re
from collections.abc import Callable

from tokenizers import Tokenizer

_ROUNDS = 4


class SpecialTokens:
    """The strings that a tokenizer would read as special tokens.

    Args:
        tokenizer: The tokenizer of the model.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        normalizer = tokenizer.normalizer
        self._normalize: Callable[[str], str] = str if normalizer is None else normalizer.normalize_str
        added = tokenizer.get_added_tokens_decoder().values()
        contents = {token.content for token in added if token.special}
        # A tokenizer may look a special token up before or after it normalises the text.
        contents |= {self._normalize(content).strip(" \u2581") for content in contents}
        ordered = sorted(contents - {""}, key=lambda content: (-len(content), content))
        self._pattern = re.compile("|".join(map(re.escape, ordered)) or r"(?!)")

    def neutralise(self, text: str) -> str:
        """Put a blank after the first character of each special token in a text.

        Full-width brackets or control characters can hide a token until the tokenizer normalises the text;
        such a text is returned normalised.

        Args:
            text: Text of a review.

        Returns:
            A text in which the tokenizer finds no special token.
        """
        for _ in range(_ROUNDS):
            text = self._pattern.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)
            normal = self._normalize(text)
            if self._pattern.search(normal) is None:
                return text
            text = normal
        # A token that a blank does not break (one character, or a normaliser that drops blanks) goes.
        while self._pattern.search(self._normalize(text)) is not None:
            text = self._pattern.sub(" ", self._normalize(text))
        return text
