"""CSV and TSV text -> a frame of text cells, or one message with every ragged row.

Python's ``csv`` reader and not polars: polars fills a short row with nulls in silence, and a short row is a
fault here that must be named by its row.
"""

import csv
import io
from functools import partial

import polars as pl

from rxtone.data.decode import decode_utf8
from rxtone.data.faults import Faults
from rxtone.errors import DataError

_QUOTING = 'put a cell that holds quotes, separators or line breaks in double quotes, and write a quote in it as ""'


def read_delimited(data: bytes, name: str, delimiter: str) -> pl.DataFrame:
    r"""Read CSV or TSV; cells stay as written, line breaks such as ``\r\r\n`` in quoted cells included.

    Args:
        data: The bytes of the file.
        name: The source as the user named it.
        delimiter: "," or a tab.

    Returns:
        A frame of ``String`` columns, one row for each data row; blank lines are no rows.

    Raises:
        DataError: Bad encoding, broken quotes, ragged rows or bad column names.
    """
    text = decode_utf8(data, name, partial(_place_after, delimiter=delimiter))
    # The limit protects readers of endless streams; this text is in memory already. It is only ever raised.
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[list[str]] = []
    try:
        rows.extend(row for row in reader if row)
    except csv.Error as error:
        where = "the header" if not rows else f"data row {len(rows)}"
        line = reader.line_num
        raise DataError(f"{name}: {where} (up to line {line}) is broken: {error}; {_QUOTING}.") from None
    if not rows:
        raise DataError(f"{name}: expected a header and at least one data row, found only blank lines.")
    header = _header(rows[0])
    _refuse_ragged_rows(rows, name)
    columns = zip(*rows[1:], strict=True) if len(rows) > 1 else ([] for _ in header)
    check_names(header, name)
    series = [pl.Series(column, cells, pl.String) for column, cells in zip(header, columns, strict=True)]
    return pl.DataFrame(series)


def _place_after(before: str, delimiter: str) -> str:
    csv.field_size_limit(max(csv.field_size_limit(), len(before)))
    # "x" makes the reader see the cell that a bad byte would begin.
    reader = csv.reader(io.StringIO(before + "x", newline=""), delimiter=delimiter)
    rows = [row for row in reader if row]
    header = _header(rows[0])
    index = len(rows[-1]) - 1
    if len(rows) == 1:
        return f"the header, column {index + 1},"
    column = f'"{header[index]}"' if index < len(header) else str(index + 1)
    return f"data row {len(rows) - 1}, column {column},"


def _header(names: list[str]) -> list[str]:
    # A table saved with its index has one unnamed column, the first.
    if names[0].strip() or len(names) == 1:
        return names
    free = next(name for name in ("row_id", *(f"row_id_{i}" for i in range(len(names)))) if name not in names)
    return [free, *names[1:]]


def _refuse_ragged_rows(rows: list[list[str]], name: str) -> None:
    width = len(rows[0])
    faults = Faults(name)
    for number, row in enumerate(rows[1:], start=1):
        if len(row) != width:
            kind = f"expected {width} cells in every row, as in the header"
            faults.add(kind, f"complete these rows; {_QUOTING}", f"data row {number} has {len(row)}")
    faults.raise_if_any()


def check_names(names: list[str], source: str) -> None:
    """Refuse column names that cannot tell the columns apart.

    Args:
        names: The column names in order.
        source: The source as the user named it.

    Raises:
        DataError: A name is empty, or two columns have the same.
    """
    faults = Faults(source)
    seen: dict[str, int] = {}
    for position, column in enumerate(names, start=1):
        if not column.strip():
            faults.add("expected a name for every column", "name it in the header", f"column {position} has none")
        elif column in seen:
            place = f'"{column}" names columns {seen[column]} and {position}'
            faults.add("expected different column names", "rename one of them", place)
        seen.setdefault(column, position)
    faults.raise_if_any()
