"""A file, a named set or a hub data set -> a table of text, read without loss.

Every cell is text exactly as written: ``None``, ``n/a`` and ``007`` stay what they are, and line breaks
inside a quoted cell are kept, so that a table can be written back as it came. Prompts fold white space later.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from rxtone.data.delimited import read_delimited
from rxtone.data.faults import Faults
from rxtone.data.records import read_jsonl, read_parquet, text_frame
from rxtone.data.sources import DEFAULT_CACHE, is_named, load_hub, resolve
from rxtone.errors import DataError

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_SUFFIXES = (*_DELIMITERS, ".jsonl", ".parquet")


@dataclass(frozen=True)
class Table:
    """A table in which every cell is text.

    Attributes:
        path: The source as the user named it, for messages.
        frame: All columns are ``String``; an empty cell is "", and null stands only where JSON or Parquet has
            a true null.
        sha256: Hex digest of the file's bytes (for a hub data set: of its rows as JSON lines).
    """

    path: str
    frame: pl.DataFrame
    sha256: str


def read_table(source: str | Path, cache_dir: Path = DEFAULT_CACHE) -> Table:
    """Read a whole table into memory.

    Args:
        source: A ``.csv``, ``.tsv``, ``.jsonl`` or ``.parquet`` file, or ``druglib:train|test``,
            ``sample:train|test``, ``hf:name:split``.
        cache_dir: Where downloaded sets are kept.

    Returns:
        The table; its data rows are numbered from 1 in every message.

    Raises:
        DataError: The source is missing or cannot be read without guessing; the message names file, row,
            column and remedy.
    """
    name = str(source)
    if name.startswith("hf:"):
        frame = text_frame(load_hub(name), name)
        digest = hashlib.sha256(frame.write_ndjson().encode())
    else:
        path = resolve(name, cache_dir) if isinstance(source, str) and is_named(name) else Path(source)
        data = _read_bytes(path, name)
        digest = hashlib.sha256(data)
        suffix = path.suffix.lower()
        if suffix in _DELIMITERS:
            frame = read_delimited(data, name, _DELIMITERS[suffix])
        else:
            frame = read_jsonl(data, name) if suffix == ".jsonl" else read_parquet(data, name)
    _check_rows(frame, name)
    return Table(name, frame, digest.hexdigest())


def _read_bytes(path: Path, name: str) -> bytes:
    suffix = path.suffix.lower()
    expected = f"a {', '.join(_SUFFIXES[:-1])} or {_SUFFIXES[-1]} file"
    try:
        if path.is_dir():
            raise DataError(f"{name}: expected {expected}, found a folder; name a file in it.")
        if suffix not in _SUFFIXES:
            found = f'the suffix "{suffix}"' if suffix else "no suffix"
            raise DataError(f"{name}: expected {expected}, found {found}; name the file by its format or convert it.")
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{name}: there is no such file; check the path.") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise DataError(f"{name}: the file cannot be read ({reason}); check its path and rights.") from None


def _check_rows(frame: pl.DataFrame, name: str) -> None:
    if frame.height == 0:
        raise DataError(f"{name}: expected at least one data row, found none; check that this is the right file.")
    faults = Faults(name)
    for column in frame.columns:
        # CSV and JSON lines were checked as text; Parquet and hub rows come here unchecked.
        for row in frame[column].str.contains("\0", literal=True).fill_null(value=False).arg_true():
            place = f'data row {row + 1}, column "{column}"'
            faults.add("expected text without NUL characters", "remove them", place)
    faults.raise_if_any()
