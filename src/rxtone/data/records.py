"""JSON lines, Parquet and hub rows -> a frame of text cells."""

import io
import json
import subprocess
import sys
from typing import cast

import polars as pl

from rxtone.data.decode import decode_utf8
from rxtone.data.delimited import check_names
from rxtone.data.faults import Faults
from rxtone.errors import DataError

_MAGIC = b"PAR1"
_READ_PARQUET = """
import io, sys, polars
polars.read_parquet(io.BytesIO(sys.stdin.buffer.read())).write_ipc(sys.stdout.buffer)
"""
# Beyond 2**53 a float no longer tells neighbouring integers apart.
_EXACT_INTEGERS = 2.0**53


def read_jsonl(data: bytes, name: str) -> pl.DataFrame:
    """Read JSON lines: one object of scalars on each line.

    Numbers keep their spelling, except that a whole float loses its fraction ("7.0" is "7"); true and false
    are those words; a key that a row lacks and ``null`` are both null.

    Args:
        data: The bytes of the file.
        name: The source as the user named it.

    Returns:
        A frame of ``String`` columns in the order of their first appearance; blank lines are no rows.

    Raises:
        DataError: Bad encoding, or lines that are no flat objects.
    """
    text = decode_utf8(data, name, lambda before: f"line {before.count(chr(10)) + 1}")
    decoder = json.JSONDecoder(
        object_pairs_hook=_Pairs, parse_int=str, parse_float=_whole, parse_constant=_refuse_constant
    )
    faults = Faults(name)
    rows: list[dict[str, str | None]] = []
    # Not splitlines(): JSON text may hold U+2028 and its like.
    lines = (line for line in text.split("\n") if line.strip())
    for number, line in enumerate(lines, start=1):
        rows.append(_row(line.strip(), number, decoder, faults))
    faults.raise_if_any()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    check_names(columns, name)
    return pl.DataFrame([pl.Series(column, [row.get(column) for row in rows], pl.String) for column in columns])


def read_parquet(data: bytes, name: str) -> pl.DataFrame:
    """Read Parquet; columns of other types are cast as in ``text_frame``.

    Args:
        data: The bytes of the file.
        name: The source as the user named it.

    Returns:
        A frame of ``String`` columns.

    Raises:
        DataError: The file is damaged, or a column holds no text, numbers or dates.
    """
    if not (data.startswith(_MAGIC) and data.endswith(_MAGIC)):
        raise DataError(f"{name}: this is no whole Parquet file; write or copy it again.")
    # Damaged pages make the reader panic in its threads or abort the process (polars 2.1: one flipped byte
    # asks for 2**61 bytes), so a child process reads, and hands the rows over as Arrow.
    child = subprocess.run(  # noqa: S603 - our own interpreter and a constant program
        [sys.executable, "-P", "-c", _READ_PARQUET], input=data, capture_output=True, check=False
    )
    if child.returncode != 0:
        raise DataError(f"{name}: this Parquet file is damaged; write or copy it again.")
    return text_frame(pl.read_ipc(io.BytesIO(child.stdout)), name)


def text_frame(frame: pl.DataFrame, name: str) -> pl.DataFrame:
    """Cast every column to text: 7 and 7.0 become "7", true becomes "true", dates become ISO 8601.

    Args:
        frame: Columns of any flat type.
        name: The source as the user named it.

    Returns:
        The same rows as ``String`` columns; nulls stay null.

    Raises:
        DataError: A column is nested or binary.
    """
    faults = Faults(name)
    for column, kind in frame.schema.items():
        if kind.is_nested() or kind in (pl.Binary, pl.Object):
            remedy = "drop the column or write it as text"
            faults.add("expected columns of text, numbers or dates", remedy, f'column "{column}" is {kind}')
    faults.raise_if_any()
    check_names(frame.columns, name)
    return frame.select(_as_text(frame.schema[column], column) for column in frame.columns)


def _as_text(kind: pl.DataType, column: str) -> pl.Expr:
    text = pl.col(column).cast(pl.String)
    if kind.is_float():
        return text.str.replace(r"\.0$", "")
    if kind.is_decimal():
        return text.str.replace(r"(\.\d*?)0+$", "$1").str.replace(r"\.$", "")
    return text


class _Pairs(list[tuple[str, object]]):
    """A JSON object as its pairs, so that it is told from an array and repeated keys are seen."""


def _whole(literal: str) -> str:
    value = float(literal)
    return str(int(value)) if value.is_integer() and abs(value) < _EXACT_INTEGERS else literal


def _refuse_constant(literal: str) -> str:
    raise ValueError(literal)


def _row(line: str, number: int, decoder: json.JSONDecoder, faults: Faults) -> dict[str, str | None]:
    kind = "expected one flat JSON object on each line"
    remedy = 'write {"column": "text", ...} with text, numbers, true, false or null as values'
    try:
        value = decoder.decode(line)
    except (ValueError, RecursionError):
        faults.add(kind, remedy, f"data row {number} is no valid JSON")
        return {}
    if not isinstance(value, _Pairs):
        faults.add(kind, remedy, f"data row {number} is no object")
        return {}
    row: dict[str, str | None] = {}
    for key, cell in cast("list[tuple[str, object]]", value):
        if key in row:
            faults.add(kind, remedy, f"data row {number} has two values for one key")
        elif isinstance(cell, list):
            faults.add(kind, remedy, f"data row {number} has a nested value")
        elif isinstance(cell, bool):
            row[key] = "true" if cell else "false"
        elif not _is_text(cell) or not _is_text(key):
            faults.add(kind, remedy, f"data row {number} holds an escape that is no character (\\u0000, \\ud800)")
        else:
            row[key] = cast("str | None", cell)
    return row


def _is_text(value: object) -> bool:
    """Tell whether a decoded string can be stored as UTF-8 (a lone surrogate cannot) and holds no NUL."""
    if value is None:
        return True
    text = str(value)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return "\0" not in text
