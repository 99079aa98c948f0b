"""Files larger than memory -> chunks of rows, as strict as `data.tables`, with each bad row named.

A fault that leaves the rows' borders uncertain (an open quote, UTF-16) stops the work before it begins. A
fault inside one row (a missing cell, a byte that is not UTF-8, a review without text) costs that row alone.
"""

from __future__ import annotations

import glob
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from rxtone.config import cache_dir
from rxtone.data.sources import is_named, resolve
from rxtone.data.tables import read_table
from rxtone.errors import DataError
from rxtone.paths import given_path
from rxtone.run import file_sha256
from rxtone.serving.bulk_readers import Piece, delimited_pieces, json_line_pieces, parquet_pieces

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

DELIMITERS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (*DELIMITERS, ".jsonl", ".parquet")


@dataclass(frozen=True)
class Rejected:
    """A row that could not be labelled.

    Attributes:
        row: The data row in its input, from 1.
        reason: What was wrong; never the text of a review.
    """

    row: int
    reason: str


@dataclass(frozen=True)
class Chunk:
    """Consecutive data rows of one input.

    Attributes:
        frame: The good rows, in order; every column is `String`.
        rejected: The bad ones, in order.
    """

    frame: pl.DataFrame
    rejected: tuple[Rejected, ...]

    @property
    def rows(self) -> int:
        """Data rows that were read, good or bad."""
        return self.frame.height + len(self.rejected)


@dataclass(frozen=True)
class Source:
    """One input.

    Attributes:
        name: As the user named it, or the path that a glob or a folder gave.
        path: The file; None for a hub data set, which is held in memory.
    """

    name: str
    path: Path | None

    @property
    def suffix(self) -> str:
        """The format: the file's suffix in lower case, or `hf` for a hub data set."""
        return self.path.suffix.lower() if self.path is not None else "hf"


def resolve_inputs(inputs: Sequence[str], output: Path) -> list[Source]:
    """Find the files that inputs mean.

    Args:
        inputs: Files, folders (searched to the bottom for tables, sorted by path), glob patterns (sorted), or
            named sets (`druglib:test`, `hf:name:split`).
        output: Where the predictions go; neither it nor what belongs to it is an input.

    Returns:
        One source per file, each file once, in the order of its first mention.

    Raises:
        DataError: If an input matches nothing, has an unknown suffix, or is the output itself.
    """
    sources: dict[str, Source] = {}
    for given in inputs:
        for source in _expand(given, output):
            if source.path is not None and source.path.resolve() == output.resolve():
                msg = f"{given}: is also the output; name another -o"
                raise DataError(msg)
            key = source.name if source.path is None else str(source.path.resolve())
            sources.setdefault(key, source)
    if not sources:
        msg = f"expected a file, a folder, a pattern or a named set as input, got {', '.join(inputs) or 'none'}"
        raise DataError(msg)
    return list(sources.values())


def source_sha256(source: Source) -> str:
    """Hex SHA-256 of a source's bytes (see `data.tables.Table`)."""
    if source.path is None:
        return read_table(source.name, cache_dir()).sha256
    try:
        return file_sha256(source.path)
    except OSError as error:
        msg = f"{source.name}: the file cannot be read ({error.strerror}); check its path and rights"
        raise DataError(msg) from None


def read_chunks(
    source: Source, text_columns: Sequence[str], chunk_rows: int, columns: Sequence[str] | None = None
) -> Iterator[Chunk]:
    """Read an input piece by piece; memory holds one chunk.

    Args:
        source: The input.
        text_columns: Columns of which at least one must hold text; those that are missing are left to the caller.
        chunk_rows: Data rows per chunk, good and bad.
        columns: Columns and order of the frames; None takes those of each chunk, which differ only for JSON
            lines.

    Yields:
        The chunks in order; all but the last have `chunk_rows` rows.

    Raises:
        DataError: If the input cannot be read, or where its rows begin is uncertain.
    """
    try:
        for frame, rejected in _frames(source, chunk_rows):
            wanted = [name for name in frame.columns if name] if columns is None else columns
            full = frame.select(
                pl.col(name) if name in frame.columns else pl.lit(None, pl.String).alias(name) for name in wanted
            )
            yield _refuse_unusable(full, rejected, text_columns)
    except OSError as error:
        msg = f"{source.name}: the file cannot be read ({error.strerror}); check its path and rights"
        raise DataError(msg) from None


def _expand(given: str, output: Path) -> list[Source]:
    if given.startswith("hf:"):
        return [Source(given, None)]
    if is_named(given):
        return [Source(given, resolve(given, cache_dir()))]
    path = given_path(given, DataError)
    if path.is_dir():
        found = [file for file in sorted(path.rglob("*")) if _is_table(file, path, output)]
    elif not path.exists() and glob.has_magic(given):
        found = [file for file in map(Path, sorted(glob.glob(given, recursive=True))) if file.is_file()]  # noqa: PTH207
        found = [file for file in found if file.resolve() not in _own_files(output)]
    else:
        found = [path] if path.is_file() else []
    expected = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
    if not found:
        msg = f"{given}: expected a table ({expected}), or a folder or pattern with some; there is none"
        raise DataError(msg)
    for file in found:
        if file.suffix.lower() not in SUFFIXES:
            msg = f"{file}: expected a {expected} file; name the file by its format or convert it"
            raise DataError(msg)
    return [Source(str(file), file) for file in found]


def _is_table(file: Path, folder: Path, output: Path) -> bool:
    parts = file.relative_to(folder).parts
    hidden = any(part.startswith(".") or part.endswith(".parts") for part in parts)
    return (
        file.suffix.lower() in SUFFIXES and file.is_file() and not hidden and file.resolve() not in _own_files(output)
    )


def _own_files(output: Path) -> set[Path]:
    return {output.resolve(), rejected_path(output).resolve()}


def rejected_path(output: Path) -> Path:
    """Where the rows go that could not be labelled."""
    return output.with_name(f"{output.name}.rejected.jsonl")


def _frames(source: Source, chunk_rows: int) -> Iterator[tuple[pl.DataFrame, tuple[int, dict[int, str]]]]:
    """Frames of `chunk_rows` rows, bad rows as nulls, with the rows before them and the reasons by position."""
    if source.path is None:
        whole = read_table(source.name, cache_dir()).frame
        pieces: Iterator[Piece] = ((part, {}) for part in whole.iter_slices(chunk_rows))
    elif source.suffix in DELIMITERS:
        pieces = delimited_pieces(source.path, source.name, DELIMITERS[source.suffix], chunk_rows)
    elif source.suffix == ".jsonl":
        pieces = json_line_pieces(source.path, source.name, chunk_rows)
    else:
        pieces = parquet_pieces(source.path, source.name, chunk_rows)
    before = 0
    for frame, reasons in pieces:
        yield frame, (before, reasons)
        before += frame.height


def _refuse_unusable(frame: pl.DataFrame, found: tuple[int, dict[int, str]], text_columns: Sequence[str]) -> Chunk:
    before, reasons = found
    reasons = dict(reasons)
    present = [name for name in text_columns if name in frame.columns]
    named = ", ".join(f'"{name}"' for name in text_columns)
    texts = [frame[name].fill_null("").to_list() for name in present]
    for position in range(frame.height):
        if position not in reasons and not any(column[position].strip() for column in texts):
            reasons[position] = f"expected text in at least one of {named}"
    for name in frame.columns:
        for position in frame[name].str.contains("\0", literal=True).fill_null(value=False).arg_true():
            reasons.setdefault(position, f'column "{name}" holds a NUL character')
    if not reasons:
        return Chunk(frame, ())
    good = pl.Series([position not in reasons for position in range(frame.height)], dtype=pl.Boolean)
    rejected = tuple(Rejected(before + position + 1, reasons[position]) for position in sorted(reasons))
    return Chunk(frame.filter(good), rejected)
