"""Tables in, the same rows with predictions out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from rxtone.config import cache_dir
from rxtone.data.reviews import read_reviews
from rxtone.data.tables import read_table
from rxtone.errors import RecipeError
from rxtone.run import atomic_path

if TYPE_CHECKING:
    from rxtone.classifier import Classifier

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")


def predict_table(classifier: Classifier, source: str, output: Path, *, batch_size: int = 32) -> int:
    """Predict every row of a table.

    Args:
        classifier: The loaded classifier.
        source: The table; it needs the text columns that classifier.json names, and no label.
        output: Destination; its suffix gives the format. All columns of the input are kept, in order,
            and `label, score, p_<label>..., truncated, abstained` are added; an input column of such a
            name is kept as `input_<name>`.
        batch_size: Reviews per batch.

    Returns:
        The number of rows, all of which are in the output.

    Raises:
        DataError: If the table cannot be read.
        RecipeError: If the output has no known suffix or its folder does not exist.
    """
    check_output(output)
    table = read_table(source, cache_dir())
    reviews = read_reviews(table, classifier.spec.text_fields, None, None)
    predictions = classifier.predict(reviews, batch_size=batch_size)
    added = pl.DataFrame(
        {
            "label": [prediction.label for prediction in predictions],
            "score": [max(prediction.probabilities.values()) for prediction in predictions],
            **{f"p_{label}": [p.probabilities[label] for p in predictions] for label in classifier.labels},
            "truncated": [prediction.truncated for prediction in predictions],
            "abstained": [prediction.abstained for prediction in predictions],
        }
    )
    clashes = {name: f"input_{name}" for name in table.frame.columns if name in added.columns}
    write_table(pl.concat([table.frame.rename(clashes), added], how="horizontal"), output)
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
        match output.suffix.lower():
            case ".parquet":
                frame.write_parquet(temporary)
            case ".jsonl":
                frame.write_ndjson(temporary)
            case suffix:
                frame.write_csv(temporary, separator="\t" if suffix == ".tsv" else ",")
