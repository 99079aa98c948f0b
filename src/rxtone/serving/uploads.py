"""A table that a user of the page gives -> the same table with predictions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from rxtone.data.reviews import read_reviews
from rxtone.data.tables import read_table
from rxtone.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rxtone.classifier import Classifier, Prediction
    from rxtone.data.reviews import Review
    from rxtone.data.tables import Table

SUFFIXES = (".csv", ".tsv", ".parquet", ".jsonl")


def read_upload(path: Path, classifier: Classifier, most_rows: int) -> tuple[Table, list[Review]]:
    """Read an uploaded table and delete it.

    Args:
        path: Where the page put it; it is gone afterwards, whatever happens.
        classifier: Says which columns hold the text.
        most_rows: Rows that are accepted.

    Returns:
        The table and its reviews, row by row.

    Raises:
        DataError: If it cannot be read, lacks a column or has too many rows; the message has the file's
            name and not its place.
    """
    try:
        if path.suffix.lower() not in SUFFIXES:
            msg = f"{path.name}: expected a table ending in {', '.join(SUFFIXES)}, got {path.suffix or 'no suffix'}"
            raise DataError(msg)
        table = read_table(path)
        if table.frame.height > most_rows:
            msg = (
                f"{path.name}: expected at most {most_rows} rows, found {table.frame.height}; "
                "use `rxtone predict` for large tables"
            )
            raise DataError(msg)
        return table, read_reviews(table, classifier.spec.text_fields, None, None)
    except DataError as error:
        raise DataError(str(error).replace(str(path), path.name)) from None
    finally:
        path.unlink(missing_ok=True)


def with_predictions(frame: pl.DataFrame, predictions: Sequence[Prediction], labels: Sequence[str]) -> pl.DataFrame:
    """Add the columns that bulk prediction adds.

    Args:
        frame: n rows.
        predictions: One per row.
        labels: The classifier's labels.

    Returns:
        The same rows with `label, score, p_<label>, truncated, abstained`; a column of such a name in the
        input is kept as `input_<name>`.
    """
    added = pl.DataFrame(
        {
            "label": [one.label for one in predictions],
            "score": [one.probabilities[one.label] for one in predictions],
            **{f"p_{label}": [one.probabilities[label] for one in predictions] for label in labels},
            "truncated": [one.truncated for one in predictions],
            "abstained": [one.abstained for one in predictions],
        }
    )
    clashes = {name: f"input_{name}" for name in frame.columns if name in added.columns}
    return pl.concat([frame.rename(clashes), added], how="horizontal")


def write_result(frame: pl.DataFrame, path: Path) -> None:
    """Write a table in the format of the suffix."""
    match path.suffix.lower():
        case ".parquet":
            frame.write_parquet(path)
        case ".jsonl":
            frame.write_ndjson(path)
        case suffix:
            frame.write_csv(path, separator="\t" if suffix == ".tsv" else ",")
