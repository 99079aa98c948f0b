"""Predictions beside their rows, how the rows are written, and what tells two classifiers apart."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

import polars as pl
import torch

from rxtone.errors import RecipeError
from rxtone.serving.bulk_inputs import DELIMITERS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rxtone.classifier import Classifier, Prediction


_NUMBER = r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"
# What a spreadsheet computes: these first characters (OWASP, "CSV Injection"), their full-width forms, and
# blanks before them; a number is no formula.
FORMULA = r"^\s*[=+\-@＝＋－＠]|^[\t\r\n]"
PLAIN_NUMBER = rf"^{_NUMBER}$"


def with_predictions(
    frame: pl.DataFrame, predictions: Sequence[Prediction], labels: Sequence[str], *, sets: bool = False
) -> pl.DataFrame:
    """Put predictions beside their rows.

    Args:
        frame: n rows.
        predictions: Their n predictions.
        labels: The labels in the recipe's order.
        sets: Whether `label_set` is added, its labels joined by `|`.

    Returns:
        The rows with `label, score, p_<label>..., truncated, abstained`; an own column of such a name is
        kept as `input_<name>`.
    """
    added = pl.DataFrame(
        {
            "label": [prediction.label for prediction in predictions],
            "score": [prediction.probabilities[prediction.label] for prediction in predictions],
            **{f"p_{label}": [p.probabilities[label] for p in predictions] for label in labels},
            "truncated": [prediction.truncated for prediction in predictions],
            "abstained": [prediction.abstained for prediction in predictions],
        },
        schema={
            "label": pl.String, "score": pl.Float64, **{f"p_{label}": pl.Float64 for label in labels},
            "truncated": pl.Boolean, "abstained": pl.Boolean,
        },
    )  # fmt: skip
    if sets:
        joined = ["|".join(prediction.label_set or ()) for prediction in predictions]
        added = added.with_columns(pl.Series("label_set", joined, dtype=pl.String))
    return pl.concat([frame.rename(_renamed(frame.columns, added.columns)), added], how="horizontal")


def output_columns(columns: Sequence[str], labels: Sequence[str], *, sets: bool = False) -> tuple[str, ...]:
    """The columns that `with_predictions` gives for input columns and labels."""
    nothing = pl.DataFrame(schema=dict.fromkeys(columns, pl.String))
    return tuple(with_predictions(nothing, [], labels, sets=sets).columns)


def _renamed(columns: Sequence[str], added: Sequence[str]) -> dict[str, str]:
    taken = {*columns, *added}
    renamed = {}
    for name in columns:
        if name in added:
            new = f"input_{name}"
            while new in taken:
                new = f"input_{new}"
            taken.add(new)
            renamed[name] = new
    return renamed


def fingerprint(classifier: Classifier) -> str:
    """Hex SHA-256 of all that decides a prediction: weights, prompt, labels; the same wherever the files are."""
    digest = hashlib.sha256(classifier.spec.model_dump_json().encode())
    digest.update(str(getattr(classifier.model, "digest", "")).encode())
    for name, tensor in classifier.model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_frame(frame: pl.DataFrame, path: Path, suffix: str, *, safe_cells: bool = False, header: bool = True) -> None:
    """Write a frame in the format of a suffix.

    Args:
        frame: What to write.
        path: Where.
        suffix: `.csv`, `.tsv`, `.jsonl` or `.parquet`.
        safe_cells: Make formula cells inert with a leading apostrophe; CSV and TSV only.
        header: Whether CSV and TSV begin with the column names.
    """
    if suffix == ".parquet":
        frame.write_parquet(path)
    elif suffix == ".jsonl":
        frame.write_ndjson(path)
    else:
        path.write_bytes(delimited(frame, suffix, safe_cells=safe_cells, header=header))


def check_safe_cells(suffix: str, *, safe_cells: bool) -> None:
    """Refuse safe cells in a format that no spreadsheet computes.

    Args:
        suffix: The output's format.
        safe_cells: Whether they were asked for.

    Raises:
        RecipeError: If both do not fit.
    """
    if safe_cells and suffix not in DELIMITERS:
        msg = f"--safe-cells: is for .csv and .tsv, got {suffix}; leave it out"
        raise RecipeError(msg)


def delimited(frame: pl.DataFrame, suffix: str, *, safe_cells: bool, header: bool) -> bytes:
    """A frame as CSV or TSV (see `write_frame`)."""
    if safe_cells:
        # Every cell in quotes, or a program that splits at another separator finds a formula inside a cell.
        names = [_safe_name(name) for name in frame.columns]
        frame = frame.with_columns(_safe(pl.col(name)) for name in frame.columns if frame.schema[name] == pl.String)
        frame.columns = names
    text = frame.write_csv(
        separator=DELIMITERS[suffix], include_header=header, quote_style="always" if safe_cells else "necessary"
    )
    return text.encode("utf-8")


def _safe(column: pl.Expr) -> pl.Expr:
    formula = column.str.contains(FORMULA) & ~column.str.contains(PLAIN_NUMBER)
    return pl.when(formula).then(pl.concat_str(pl.lit("'"), column)).otherwise(column).name.keep()


def _safe_name(name: str) -> str:
    return f"'{name}" if re.search(FORMULA, name) else name
