"""What users corrected, kept in SQLite with their consent, and turned into a training table."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import polars as pl

from rxtone.data.reviews import Review, dedupe_key
from rxtone.errors import DataError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

CONSENT = "I agree that this review and my correction are kept on this server to train later versions."
"""What users agree to; kept with every correction."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS corrections (
    id INTEGER PRIMARY KEY,
    time TEXT NOT NULL,
    run TEXT NOT NULL,
    fields TEXT,
    columns TEXT,
    text TEXT,
    predicted TEXT NOT NULL,
    score REAL NOT NULL,
    label TEXT NOT NULL,
    consent TEXT NOT NULL,
    CHECK ((fields IS NULL) <> (text IS NULL))
)
"""
_NAMES = "time, run, fields, columns, text, predicted, score, label, consent"


@dataclass(frozen=True)
class Correction:
    """One answer that a user corrected.

    Attributes:
        run: The run that answered.
        review: What it was asked.
        columns: Field name -> column of a table; empty for free text.
        predicted: Its label.
        score: The probability it gave.
        label: The right label, as the user says.
        time: When, in UTC, ISO 8601; None takes the present.
        consent: What the user agreed to.
    """

    run: str
    review: Review
    columns: Mapping[str, str]
    predicted: str
    score: float
    label: str
    time: str | None = None
    consent: str = CONSENT


@dataclass(frozen=True)
class CorrectionsTable:
    """Corrections as a table to train on.

    Attributes:
        frame: The text columns, `label`, `predicted`, `run` and `time`; every cell is text.
        repeated: Corrections left out because the same review was corrected again later.
        free_texts: Corrections of free texts, left out because no column was named for them.
    """

    frame: pl.DataFrame
    repeated: int
    free_texts: int


def add_correction(path: Path, correction: Correction) -> None:
    """Keep a correction.

    Args:
        path: The SQLite file; made if it is not there, readable by its owner alone.
        correction: What to keep.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    review = correction.review
    fields = None if review.text is not None else json.dumps(dict(review.fields))
    columns = None if review.text is not None else json.dumps(dict(correction.columns))
    time = correction.time or datetime.now(UTC).isoformat(timespec="seconds")
    row = (time, correction.run, fields, columns, review.text, correction.predicted, correction.score,
           correction.label, correction.consent)  # fmt: skip
    with closing(sqlite3.connect(path, timeout=10)) as database, database:
        database.execute(_SCHEMA)
        marks = ", ".join("?" * len(row))
        database.execute(f"INSERT INTO corrections ({_NAMES}) VALUES ({marks})", row)  # noqa: S608  # our own names


def read_corrections(path: Path) -> list[Correction]:
    """All corrections, the oldest first.

    Args:
        path: The SQLite file.

    Returns:
        The corrections.

    Raises:
        DataError: If there is no such file, or it holds something else.
    """
    if not path.is_file():
        msg = f"{path}: expected the corrections that `rxtone serve` keeps, found no file; name it with --from"
        raise DataError(msg)
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            rows = database.execute(f"SELECT {_NAMES} FROM corrections ORDER BY id").fetchall()  # noqa: S608
    except sqlite3.DatabaseError as error:
        msg = f"{path}: expected the corrections that `rxtone serve` keeps: {error}"
        raise DataError(msg) from None
    return [
        Correction(
            run, Review(tuple(json.loads(fields).items()) if fields else (), text=text), json.loads(columns or "{}"),
            predicted, score, label, time, consent,
        )
        for time, run, fields, columns, text, predicted, score, label, consent in rows
    ]  # fmt: skip


def corrections_table(path: Path, *, run: str | None = None, free_text_column: str | None = None) -> CorrectionsTable:
    """Turn corrections into a training table; of a review corrected twice the later label stands.

    Args:
        path: The SQLite file.
        run: Take this run's corrections only.
        free_text_column: Column for reviews that were one free text; None leaves them out.

    Returns:
        The table, with the label words in the column `label`. A recipe reads it with
        `data.label: {column: label, rule: {positive: positive, ...}}`.

    Raises:
        DataError: If the file cannot be read or holds nothing of the kind.
    """
    corrections = [one for one in read_corrections(path) if run in {None, one.run}]
    usable = [one for one in corrections if one.review.text is None or free_text_column is not None]
    if not usable:
        of_run = f" of the run {run}" if run else ""
        hint = "; name a column for free texts with --free-text" if corrections else ""
        msg = f"{path}: expected corrections{of_run} with fields, found none among {len(corrections)}{hint}"
        raise DataError(msg)
    latest = {dedupe_key(one.review): one for one in usable}
    rows = [_cells(one, free_text_column) for one in latest.values()]
    columns = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in _LAST]
    schema = dict.fromkeys([*columns, *_LAST], pl.String)
    frame = pl.DataFrame([{name: row.get(name, "") for name in schema} for row in rows], schema=schema)
    return CorrectionsTable(frame, len(usable) - len(latest), len(corrections) - len(usable))


def write_corrections(table: CorrectionsTable, output: Path) -> None:
    """Write the table in the format of the suffix.

    Args:
        table: What to write.
        output: A .csv, .tsv, .jsonl or .parquet file.

    Raises:
        RecipeError: If the suffix is another.
    """
    match output.suffix.lower():
        case ".csv":
            table.frame.write_csv(output)
        case ".tsv":
            table.frame.write_csv(output, separator="\t")
        case ".jsonl":
            table.frame.write_ndjson(output)
        case ".parquet":
            table.frame.write_parquet(output)
        case suffix:
            msg = f"{output}: expected a name ending in .csv, .tsv, .jsonl or .parquet, got {suffix or 'no suffix'}"
            raise RecipeError(msg)


_LAST = ("label", "predicted", "run", "time")


def _cells(correction: Correction, free_text_column: str | None) -> dict[str, str]:
    review = correction.review
    if review.text is not None:
        texts = {str(free_text_column): review.text}
    else:
        texts = {correction.columns.get(name, name): text for name, text in review.fields}
    # A text column of such a name would be lost behind rxtone's own.
    cells = {f"{name}_text" if name in _LAST else name: text for name, text in texts.items()}
    return cells | {"label": correction.label, "predicted": correction.predicted, "run": correction.run,
                    "time": str(correction.time)}  # fmt: skip
