"""Bytes -> text: UTF-8 only, with the place of the first bad byte."""

import codecs
from collections.abc import Callable

from rxtone.errors import DataError

_SAVE_AS = "save the file as UTF-8 text"
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def decode_utf8(data: bytes, name: str, locate: Callable[[str], str]) -> str:
    """Decode a text table; a leading byte-order mark is accepted and dropped.

    Args:
        data: The bytes of the file.
        name: The source as the user named it.
        locate: Says in words (row, column) where a text that precedes a bad byte ends.

    Returns:
        The text, without any change of line breaks.

    Raises:
        DataError: The bytes are not UTF-8, or hold a NUL character.
    """
    if data.startswith(_UTF16_MARKS):
        raise DataError(f"{name}: expected UTF-8, found UTF-16; {_SAVE_AS}.")
    body = data.removeprefix(codecs.BOM_UTF8)
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        place = locate(body[: error.start].decode("utf-8"))
        raise DataError(
            f"{name}: {place} holds the byte 0x{body[error.start]:02x}, which is not UTF-8 text; {_SAVE_AS}."
        ) from None
    nul = text.find("\0")
    if nul >= 0:
        raise DataError(f"{name}: {locate(text[:nul])} holds a NUL character; remove it or {_SAVE_AS}.")
    return text
