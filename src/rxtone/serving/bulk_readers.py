"""CSV, TSV, JSON lines and Parquet, a piece at a time, by the rules of `data.tables`."""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import re
from typing import TYPE_CHECKING

import polars as pl

from rxtone.data.delimited import read_delimited
from rxtone.data.records import read_jsonl, text_frame
from rxtone.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LONGEST_CELL = 1 << 24
"""Characters; bounds the memory that a quote which is never closed can take."""
_QUOTING = 'put a cell that holds quotes, separators or line breaks in double quotes, and write a quote in it as ""'
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# A blank line is no row; before a piece it keeps a byte-order mark within the file from passing as one at its start.
_AFTER_THE_START = b"\n"
_FIRST_ROW = re.compile(r"(?:data row 1|line 2) ([^;\n]*)")  # line 1 is `_AFTER_THE_START`
Piece = tuple[pl.DataFrame, dict[int, str]]
"""A chunk's frame, a bad row being any row of nulls, and the reasons by data row (from 1)."""


def delimited_pieces(path: Path, name: str, delimiter: str, chunk_rows: int) -> Iterator[Piece]:
    """Read CSV or TSV piece by piece.

    Args:
        path: The file.
        name: Its name in messages.
        delimiter: "," or a tab.
        chunk_rows: Data rows per piece; blank lines are no rows.

    Yields:
        The pieces, in order.

    Raises:
        DataError: If the header is bad or the rows' borders are uncertain.
    """
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_CELL))
    with path.open("rb") as start:
        if start.read(2) in _UTF16_MARKS:
            msg = f"{name}: expected UTF-8, found UTF-16; save the file as UTF-8 text"
            raise DataError(msg)
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        reader = csv.reader(stream, delimiter=delimiter, strict=True)
        rows = _checked_rows(reader, name)
        header = next(rows, None)
        if header is None:
            msg = f"{name}: expected a header and at least one data row, found only blank lines"
            raise DataError(msg)
        columns = _header(header, name, delimiter)
        while batch := list(itertools.islice(rows, chunk_rows)):
            reasons = {
                position: reason for position, row in enumerate(batch) if (reason := _fault(row, columns)) is not None
            }
            cells = zip(*(_blank(len(columns)) if i in reasons else row for i, row in enumerate(batch)), strict=True)
            series = [pl.Series(column, values, pl.String) for column, values in zip(columns, cells, strict=True)]
            yield pl.DataFrame(series), reasons


def _checked_rows(reader: Iterator[list[str]], name: str) -> Iterator[list[str]]:
    count = 0
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            where = "the header" if count == 0 else f"data row {count}"
            msg = f"{name}: {where} (up to line {reader.line_num}) is broken: {error}; {_QUOTING}"  # type: ignore[attr-defined]
            raise DataError(msg) from None
        if row:
            count += 1
            yield row


def _header(names: list[str], name: str, delimiter: str) -> list[str]:
    # Through the reader of whole tables, so that both name an unnamed column and refuse the same headers.
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, quoting=csv.QUOTE_ALL).writerow(names)
    return read_delimited(text.getvalue().encode("utf-8", "surrogateescape"), name, delimiter).columns


def _fault(row: list[str], columns: list[str]) -> str | None:
    if len(row) != len(columns):
        return f"expected {len(columns)} cells, as in the header, found {len(row)}"
    if "".join(row).isascii():
        return None
    for column, cell in zip(columns, row, strict=True):
        try:
            cell.encode("utf-8")
        except UnicodeEncodeError:
            return f'column "{column}" holds a byte that is not UTF-8 text'
    return None


def _blank(width: int) -> list[None]:
    return [None] * width


def json_line_pieces(path: Path, name: str, chunk_rows: int) -> Iterator[Piece]:
    """Read JSON lines piece by piece.

    Args:
        path: The file.
        name: Its name in messages.
        chunk_rows: Lines per piece; blank lines are no rows.

    Yields:
        The pieces, in order; each has the columns that its own lines have, and a column without a name where
        a line has none.

    Raises:
        DataError: If the file is UTF-16.
    """
    with path.open("rb") as stream:
        start = stream.read(3)
        if start.startswith(_UTF16_MARKS):
            msg = f"{name}: expected UTF-8, found UTF-16; save the file as UTF-8 text"
            raise DataError(msg)
        stream.seek(len(codecs.BOM_UTF8) if start == codecs.BOM_UTF8 else 0)
        # As in `read_jsonl`, a line of white space alone is no row.
        lines = (line for line in stream if line.decode("utf-8", "replace").strip())
        while batch := list(itertools.islice(lines, chunk_rows)):
            try:
                frame = read_jsonl(_AFTER_THE_START + b"".join(_with_break(line) for line in batch), name)
                if frame.height == len(batch):
                    yield frame, {}
                    continue
            except DataError:
                pass
            yield _line_by_line(batch, name)


def _with_break(line: bytes) -> bytes:
    return line if line.endswith(b"\n") else line + b"\n"


def _line_by_line(batch: list[bytes], name: str) -> Piece:
    frames: list[pl.DataFrame] = []
    reasons: dict[int, str] = {}
    nothing = pl.DataFrame({"": [None]}, schema={"": pl.String})  # a row, though it has no column
    for position, line in enumerate(batch):
        try:
            frame = read_jsonl(_AFTER_THE_START + line, name)
        except DataError as error:
            reasons[position] = _line_reason(str(error))
            frame = nothing
        frames.append(frame if frame.height else nothing)
    return pl.concat(frames, how="diagonal"), reasons


def _line_reason(message: str) -> str:
    found = _FIRST_ROW.search(message)
    detail = f"; it {found[1]}" if found else ""
    return f"expected one flat JSON object{detail}"


def parquet_pieces(path: Path, name: str, chunk_rows: int) -> Iterator[Piece]:
    """Read Parquet piece by piece.

    Args:
        path: The file.
        name: Its name in messages.
        chunk_rows: Rows per piece.

    Yields:
        The pieces, in order.

    Raises:
        DataError: If the file is damaged, or a column holds no text, numbers or dates.
    """
    with path.open("rb") as stream:
        marks = [stream.read(4)]
        stream.seek(max(0, stream.seek(0, io.SEEK_END) - 4))
        marks.append(stream.read(4))
    if marks != [b"PAR1", b"PAR1"]:
        msg = f"{name}: this is no whole Parquet file; write or copy it again"
        raise DataError(msg)
    try:
        lazy = pl.scan_parquet(path, glob=False)
        text_frame(pl.DataFrame(schema=lazy.collect_schema()), name)
        for frame in _even(lazy.collect_batches(chunk_size=chunk_rows, maintain_order=True), chunk_rows):
            yield text_frame(frame, name), {}
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, ValueError):
        msg = f"{name}: this Parquet file is damaged; write or copy it again"
        raise DataError(msg) from None


def _even(frames: Iterator[pl.DataFrame], chunk_rows: int) -> Iterator[pl.DataFrame]:
    """The same rows in frames of exactly `chunk_rows`, so that a resumed run cuts where the first one did."""
    held: list[pl.DataFrame] = []
    count = 0
    for frame in frames:
        rest = frame
        while count + rest.height >= chunk_rows:
            taken = chunk_rows - count
            yield pl.concat([*held, rest.head(taken)])
            rest, held, count = rest.slice(taken), [], 0
        if rest.height:
            held.append(rest)
            count += rest.height
    if held:
        yield pl.concat(held)
