"""The parts of an unfinished bulk job: one file per chunk, so that a killed job goes on where it stopped.

`OUT.parts/` holds `manifest.json` (what the job is), and for each finished chunk a part in the output's
format. A part appears by one rename, after its rejected rows are on disk: it is there whole or not at all.
When all are there they are joined, in order, to the output, which appears by one rename too.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from dataclasses import asdict, dataclass
from typing import IO, TYPE_CHECKING, Any

import polars as pl

from rxtone.errors import RunError
from rxtone.run import atomic_path, write_json, write_text
from rxtone.serving.bulk_inputs import DELIMITERS, Rejected, rejected_path
from rxtone.serving.bulk_rows import delimited, write_frame

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

MANIFEST = "manifest.json"
LOCK = ".lock"
FORMAT = 1
_WHAT = {
    "format": "the layout of its parts", "inputs": "the inputs", "classifier": "the classifier",
    "columns": "the columns", "suffix": "the output format", "chunk_rows": "the rows per part",
    "safe_cells": "safe cells", "min_confidence": "the least confidence",
}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """What makes two bulk jobs the same.

    Attributes:
        inputs: SHA-256 of each input, in order.
        classifier: The fingerprint of the classifier.
        columns: The output's columns.
        suffix: The output's format.
        chunk_rows: Data rows per part.
        safe_cells: Whether formula cells are made inert.
        min_confidence: Probability below which an answer is marked as abstained, where the caller set one.
        format: Version of the parts' layout.
    """

    inputs: tuple[str, ...]
    classifier: str
    columns: tuple[str, ...]
    suffix: str
    chunk_rows: int
    safe_cells: bool
    min_confidence: float | None
    format: int = FORMAT


@dataclass(frozen=True)
class Parts:
    """The parts folder of one output, held under a lock.

    Attributes:
        folder: `OUT.parts`.
        output: OUT.
        job: What is done here.
    """

    folder: Path
    output: Path
    job: Job

    def part(self, index: int) -> Path:
        """The file of a chunk, by its position from 0."""
        return self.folder / f"part-{index:06d}{self.job.suffix}"

    def rejected(self, index: int) -> Path:
        """The rejected rows of a chunk; there only where it has some."""
        return self.folder / f"part-{index:06d}.rejected"

    def done(self, index: int) -> bool:
        """Whether a chunk is finished."""
        return self.part(index).is_file()

    def commit(self, index: int, frame: pl.DataFrame, source: str, rejected: Sequence[Rejected]) -> None:
        """Store a finished chunk.

        Args:
            index: Position of the chunk in the job.
            frame: Its rows with predictions.
            source: Name of its input, for the rejected rows.
            rejected: Its bad rows.

        Raises:
            RunError: If the disk refuses.
        """
        lines = [json.dumps({"input": source, "row": bad.row, "reason": bad.reason}) + "\n" for bad in rejected]
        if lines:
            write_text(self.rejected(index), "".join(lines))
        with atomic_path(self.part(index)) as temporary:
            write_frame(frame, temporary, self.job.suffix, safe_cells=self.job.safe_cells, header=False)

    def join(self, count: int) -> None:
        """Join all parts to the output, then drop them; done again after a kill, it gives the same.

        Args:
            count: Number of chunks.

        Raises:
            RunError: If the disk refuses.
        """
        whole, bad = self.folder / f"whole{self.job.suffix}", self.folder / "whole.rejected"
        parts = [self.part(index) for index in range(count)]
        with atomic_path(whole) as temporary:
            self._join_parts(parts, temporary)
        refused = [self.rejected(index) for index in range(count) if self.rejected(index).is_file()]
        with atomic_path(bad) as temporary, temporary.open("wb") as stream:
            for path in refused:
                _append(path, stream)
        try:
            if refused:
                bad.replace(rejected_path(self.output))
            else:
                rejected_path(self.output).unlink(missing_ok=True)
            whole.replace(self.output)
            # Without its manifest a folder is rubbish, which the next job on this output clears.
            (self.folder / MANIFEST).unlink()
            shutil.rmtree(self.folder)
        except OSError as error:
            msg = f"{self.output}: cannot be written: {error.strerror}; start the same command again"
            raise RunError(msg) from None

    def _join_parts(self, parts: list[Path], destination: Path) -> None:
        if self.job.suffix == ".parquet":
            # One part at a time in memory; the parts' schemas are the same by construction.
            pl.scan_parquet(parts, glob=False).sink_parquet(destination, maintain_order=True)
            return
        with destination.open("wb") as stream:
            if self.job.suffix in DELIMITERS:
                names = pl.DataFrame(schema=dict.fromkeys(self.job.columns, pl.String))
                stream.write(delimited(names, self.job.suffix, safe_cells=self.job.safe_cells, header=True))
            for path in parts:
                _append(path, stream)


@contextlib.contextmanager
def open_parts(output: Path, job: Job, *, restart: bool) -> Iterator[Parts]:
    """Open the parts of an output, old ones of the same job or none.

    Args:
        output: Where the predictions go.
        job: What is to be done.
        restart: Whether parts of another job may be dropped.

    Yields:
        The parts, which no other process writes meanwhile.

    Raises:
        RunError: If the parts belong to another job, another process is at work, or the disk refuses.
    """
    folder = output.with_name(f"{output.name}.parts")
    with _locked(folder, output):
        known = _read_manifest(folder)
        current = json.loads(json.dumps(asdict(job)))
        if known is not None and known != current and not restart:
            changed = ", ".join(_WHAT[key] for key in current if known.get(key) != current[key])
            msg = (
                f"{folder}: holds the unfinished parts of another job ({changed or 'its manifest'} differ); "
                "add --restart to drop them, or choose another -o"
            )
            raise RunError(msg)
        keep = known == current
        for path in folder.iterdir():
            if path.name.endswith(".tmp") or (not keep and path.name != LOCK):
                path.unlink()
        if not keep:
            write_json(folder / MANIFEST, current)
        yield Parts(folder, output, job)


@contextlib.contextmanager
def _locked(folder: Path, output: Path) -> Iterator[None]:
    try:
        folder.mkdir(exist_ok=True)
        handle = os.open(folder / LOCK, os.O_CREAT | os.O_RDWR, 0o600)
    except OSError as error:
        msg = f"{folder}: cannot be written: {error.strerror}"
        raise RunError(msg) from None
    try:
        _take(handle, output)
        yield
    finally:
        os.close(handle)


def _take(handle: int, output: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        msg = f"{output}: another process is writing it; wait for it, or choose another -o"
        raise RunError(msg) from None


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((folder / MANIFEST).read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _append(path: Path, stream: IO[bytes]) -> None:
    with path.open("rb") as source:
        shutil.copyfileobj(source, stream)
