"""Tables in, the same rows with predictions out; larger than memory, resumable, nothing lost.

`predict_tables` streams: it reads chunks, has them labelled, stores each as a part and yields an event, so that the
caller draws progress, logs or stops. `predict_table` does one small table in memory.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from rxtone.config import cache_dir
from rxtone.data.faults import Faults
from rxtone.data.reviews import read_reviews
from rxtone.data.tables import Table, read_table
from rxtone.errors import DataError, RecipeError, RunError
from rxtone.run import atomic_path
from rxtone.serving.bulk_inputs import (
    SUFFIXES,
    Source,
    read_chunks,
    rejected_path,
    resolve_inputs,
    source_sha256,
)
from rxtone.serving.bulk_labels import Ask, Runner, Work, label_here
from rxtone.serving.bulk_parts import Job, Parts, open_parts
from rxtone.serving.bulk_rows import check_safe_cells, fingerprint, output_columns, with_predictions, write_frame

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rxtone.classifier import Classifier

CHUNK_ROWS = 2000


@dataclass(frozen=True)
class ChunkDone:
    """Progress: a chunk is in the parts folder.

    Attributes:
        source: Its input, as named by the user.
        rows: Its data rows, good and bad.
        rejected: Its bad rows.
        done_rows: Rows of all finished chunks.
        total_rows: Rows of all inputs.
        resumed: Whether an earlier, interrupted call had done it.
        seconds_left: Estimate from the rows labelled by this call; None until there are some.
    """

    source: str
    rows: int
    rejected: int
    done_rows: int
    total_rows: int
    resumed: bool
    seconds_left: float | None


@dataclass(frozen=True)
class BulkDone:
    """The output is in place.

    Attributes:
        output: The table with predictions.
        rows: Its rows.
        rejected: Rows that could not be labelled.
        rejected_path: The JSON lines that name them, with reasons; None where there are none.
        seconds: Duration of this call.
    """

    output: Path
    rows: int
    rejected: int
    rejected_path: Path | None
    seconds: float


@dataclass(frozen=True)
class _Scan:
    """One input, read once before the work."""

    source: Source
    sha256: str
    columns: tuple[str, ...]
    rows: int
    rejected: int
    stamp: tuple[int, int]


def predict_tables(
    classifier: Classifier,
    inputs: Sequence[str],
    output: Path,
    *,
    chunk_rows: int = CHUNK_ROWS,
    batch_size: int = 32,
    min_confidence: float | None = None,
    strict: bool = False,
    safe_cells: bool = False,
    restart: bool = False,
    runner: Runner = label_here,
) -> Iterator[ChunkDone | BulkDone]:
    """Predict every row of many or large tables; memory holds one chunk, or as many as the runner has in hand.

    The inputs are read once before the work, to count rows and find faults, and once for it. A call that was
    interrupted, even killed, is continued by the same call: finished chunks stay in `OUTPUT.parts`.

    Args:
        classifier: The loaded classifier.
        inputs: Files, folders, glob patterns or named sets; together they are one table and must have the
            same columns, in any order.
        output: Destination; its suffix gives the format. Rows keep their order; columns are those of
            `predict_table`.
        chunk_rows: Rows per chunk.
        batch_size: Reviews per batch.
        min_confidence: Mark answers of less probability as abstained; None takes the run's own bound.
        strict: Stop before the work at any bad row, instead of naming it in `OUTPUT.rejected.jsonl`.
        safe_cells: Put an apostrophe before cells that a spreadsheet would compute (`=`, `+`, `-`, `@`); CSV
            and TSV only. Without it every cell is as in the input.
        restart: Drop the unfinished parts of another job on this output.
        runner: Where chunks are labelled: in this process, or on a cluster (`bulk_cluster.ray_labels`). The output
            is the same, and so is the job: either goes on where the other stopped.

    Yields:
        `ChunkDone` for each chunk as it is done, then `BulkDone`.

    Raises:
        DataError: If an input cannot be read, or `strict` finds bad rows.
        RecipeError: If the output has no known suffix or its folder does not exist.
        RunError: If an unfinished other job is in the way, or an input changes during the work.
    """
    check_output(output)
    suffix = output.suffix.lower()
    check_safe_cells(suffix, safe_cells=safe_cells)
    text_fields = classifier.spec.text_fields
    scans = [_scan(source, text_fields, chunk_rows, strict=strict) for source in resolve_inputs(list(inputs), output)]
    columns = _common_columns(scans)
    job = Job(
        inputs=tuple(scan.sha256 for scan in scans), classifier=fingerprint(classifier),
        columns=output_columns(columns, classifier.labels, sets=classifier.label_sets),
        suffix=suffix, chunk_rows=chunk_rows,
        safe_cells=safe_cells, min_confidence=min_confidence,
    )  # fmt: skip
    progress = _Progress(sum(scan.rows for scan in scans), time.perf_counter())
    with open_parts(output, job, restart=restart) as parts:
        works = _works(scans, parts, list(text_fields.values()), columns)
        ask = Ask(batch_size, min_confidence, sum(-(-scan.rows // chunk_rows) for scan in scans))
        with contextlib.closing(runner(classifier, works, ask)) as labelled:
            for work, predictions in labelled:
                if predictions is not None:
                    frame = with_predictions(
                        work.chunk.frame, predictions, classifier.labels, sets=classifier.label_sets
                    )
                    parts.commit(work.index, frame, work.source, work.chunk.rejected)
                progress = progress.after(work.chunk.rows, resumed=work.done)
                yield progress.event(work)
        parts.join(ask.chunks)
    rejected = sum(scan.rejected for scan in scans)
    where = rejected_path(output) if rejected else None
    yield BulkDone(output, progress.total - rejected, rejected, where, time.perf_counter() - progress.started)


def predict_table(
    classifier: Classifier, source: str, output: Path, *, batch_size: int = 32, min_confidence: float | None = None
) -> int:
    """Predict every row of a table that fits into memory; the first bad row stops it.

    Args:
        classifier: The loaded classifier.
        source: The table; it needs the text columns that classifier.json names, and no label.
        output: Destination; its suffix gives the format. All columns of the input are kept, in order,
            and `label, score, p_<label>..., truncated, abstained` are added; an input column of such a
            name is kept as `input_<name>`.
        batch_size: Reviews per batch.
        min_confidence: See `predict_tables`.

    Returns:
        The number of rows, all of which are in the output.

    Raises:
        DataError: If the table cannot be read.
        RecipeError: If the output has no known suffix or its folder does not exist.
    """
    check_output(output)
    table = read_table(source, cache_dir())
    reviews = read_reviews(table, classifier.spec.text_fields, None, None)
    predictions = classifier.predict(reviews, batch_size=batch_size, min_confidence=min_confidence)
    write_table(with_predictions(table.frame, predictions, classifier.labels, sets=classifier.label_sets), output)
    return table.frame.height


def check_output(output: Path) -> None:
    """Refuse an output that could not be written, before any work is done.

    Args:
        output: Where a table is to go.

    Raises:
        RecipeError: If the suffix is unknown or the folder does not exist.
    """
    if output.suffix.lower() not in SUFFIXES:
        msg = f"-o {output}: expected a name ending in {', '.join(SUFFIXES)}, got {output.suffix or 'no suffix'}"
        raise RecipeError(msg)
    if not output.parent.is_dir():
        msg = f"-o {output}: the folder {output.parent} does not exist; make it first"
        raise RecipeError(msg)


def write_table(frame: pl.DataFrame, output: Path) -> None:
    """Write a table whole or not at all, in the format of the suffix."""
    with atomic_path(output) as temporary:
        write_frame(frame, temporary, output.suffix.lower())


@dataclass(frozen=True)
class _Progress:
    total: int
    started: float
    done: int = 0
    labelled: int = 0

    def after(self, rows: int, *, resumed: bool) -> _Progress:
        return replace(self, done=self.done + rows, labelled=self.labelled + (0 if resumed else rows))

    def event(self, work: Work) -> ChunkDone:
        left = None
        if self.labelled:
            left = (time.perf_counter() - self.started) / self.labelled * (self.total - self.done)
        chunk = work.chunk
        return ChunkDone(work.source, chunk.rows, len(chunk.rejected), self.done, self.total, work.done, left)


def _works(scans: Sequence[_Scan], parts: Parts, text_columns: Sequence[str], columns: Sequence[str]) -> Iterator[Work]:
    """All chunks of all inputs, numbered; read when they are asked for."""
    index = 0
    for scan in scans:
        for chunk in read_chunks(scan.source, text_columns, parts.job.chunk_rows, columns):
            yield Work(index, scan.source.name, chunk, parts.done(index))
            index += 1
        if _stamp(scan.source) != scan.stamp:
            msg = f"{scan.source.name}: changed while it was read; start again with --restart"
            raise RunError(msg)


def _scan(source: Source, text_fields: Mapping[str, str], chunk_rows: int, *, strict: bool) -> _Scan:
    stamp = _stamp(source)
    columns: dict[str, None] = {}
    faults = Faults(source.name)
    rows = rejected = 0
    for chunk in read_chunks(source, list(text_fields.values()), chunk_rows):
        columns.update(dict.fromkeys(chunk.frame.columns))
        rows += chunk.rows
        rejected += len(chunk.rejected)
        for bad in chunk.rejected if strict else ():
            faults.add(bad.reason, "correct or remove these rows, or leave out --strict", f"data row {bad.row}")
    if rows == 0:
        msg = f"{source.name}: expected at least one data row, found none; check that this is the right file"
        raise DataError(msg)
    # An empty table of these columns: the reader of whole tables says which are missing.
    nothing = pl.DataFrame(schema=dict.fromkeys(columns, pl.String))
    read_reviews(Table(source.name, nothing, ""), text_fields, None, None)
    faults.raise_if_any()
    return _Scan(source, source_sha256(source), tuple(columns), rows, rejected, stamp)


def _stamp(source: Source) -> tuple[int, int]:
    if source.path is None:
        return 0, 0
    status = source.path.stat()
    return status.st_size, status.st_mtime_ns


def _common_columns(scans: Sequence[_Scan]) -> tuple[str, ...]:
    first = scans[0]
    for scan in scans[1:]:
        odd = sorted(set(first.columns) ^ set(scan.columns))
        if odd and not {first.source.suffix, scan.source.suffix} <= {".jsonl"}:
            named = ", ".join(f'"{name}"' for name in odd)
            msg = (
                f"{scan.source.name}: expected the columns of {first.source.name}; only one of both has {named}; "
                "predict them apart, or make the columns the same"
            )
            raise DataError(msg)
    return tuple(dict.fromkeys(name for scan in scans for name in scan.columns))
