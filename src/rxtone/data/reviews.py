"""A table -> reviews with labels, or one message with every fault of the table."""

import difflib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from rxtone.data.faults import Faults, quote
from rxtone.data.rules import LabelRule, parse_rule
from rxtone.data.tables import Table
from rxtone.errors import DataError, RecipeError

__all__ = ["LabelRule", "Review", "dedupe_key", "parse_rule", "read_reviews"]

_MARKS = re.compile(r"[^\w\s]|_")


@dataclass(frozen=True)
class Review:
    """One review: either named fields or free text.

    Attributes:
        fields: Pairs of the name shown in the prompt and the text, in the order of the recipe; empty for
            free text.
        text: Free text; None where there are fields.
        label: The label, or None where it is not known.
        group: What must not be on both sides of a split (a drug, a patient), or None.
        row: The data row in the table, from 1; 0 for a review that comes from no table.
    """

    fields: tuple[tuple[str, str], ...] = ()
    text: str | None = None
    label: str | None = None
    group: str | None = None
    row: int = 0


def read_reviews(
    table: Table,
    text_fields: Mapping[str, str],
    label_column: str | None,
    rule: LabelRule | None,
    group_by: str | None = None,
    *,
    every_label: bool = True,
) -> list[Review]:
    """Turn the rows of a table into reviews.

    Text is taken as it is: ``None`` and ``n/a`` are answers. A true null (JSON, Parquet) is an empty answer.

    Args:
        table: The table.
        text_fields: Name shown in the prompt -> column, in the order of the prompt.
        label_column: The column that gives the label; None leaves the labels unknown.
        rule: Which values make which label; None takes the stripped value as the label.
        group_by: The column whose values must not be on both sides of a split; blank cells belong to no
            group.
        every_label: Whether a label of the rule without any row is a fault. A table to learn from needs them
            all.

    Returns:
        One review for each data row, in order.

    Raises:
        RecipeError: There are no text fields, or one has no name.
        DataError: All faults in one message: missing columns, rows without text, values without a label,
            labels without a row.
    """
    if not text_fields or not all(name.strip() for name in text_fields):
        raise RecipeError("data.text_fields: expected at least one field, each as name in the prompt: column.")
    _require_columns(table, [*text_fields.values(), *(c for c in (label_column, group_by) if c is not None)])
    faults = Faults(table.path)
    cells = {name: _cells(table.frame, column) for name, column in text_fields.items()}
    height = table.frame.height
    labels: Sequence[str | None] = [None] * height
    groups: Sequence[str | None] = [None] * height
    if label_column is not None:
        labels = _labels(table, label_column, rule, faults)
    if group_by is not None:
        groups = [value.strip() or None for value in _cells(table.frame, group_by)]
    reviews: list[Review] = []
    for index in range(height):
        fields = tuple((name, column[index]) for name, column in cells.items())
        if not any(text.strip() for _, text in fields):
            columns = ", ".join(f'"{column}"' for column in text_fields.values())
            remedy = "remove these rows, or name the column that holds the text"
            faults.add(f"expected text in at least one of {columns}", remedy, f"data row {index + 1}")
        reviews.append(Review(fields=fields, label=labels[index], group=groups[index], row=index + 1))
    faults.raise_if_any()
    if every_label and rule is not None and label_column is not None:
        _require_every_label(table, label_column, rule, labels)
    return reviews


def dedupe_key(review: Review) -> str:
    """Return a text that is equal for reviews that differ only in case, punctuation, white space or fields.

    Symbols that are no punctuation (emoji, +, $) count. A review of nothing but punctuation is its own key.

    Args:
        review: Any review.

    Returns:
        The normalised text.
    """
    parts = [text for _, text in review.fields] if review.text is None else [review.text]
    text = unicodedata.normalize("NFKC", " ".join(parts)).casefold()
    words = _MARKS.sub(_blank_punctuation, text).split()
    return " ".join(words or text.split())


def _blank_punctuation(match: re.Match[str]) -> str:
    mark = match[0]
    return " " if unicodedata.category(mark).startswith("P") else mark


def _cells(frame: pl.DataFrame, column: str) -> list[str]:
    return frame[column].fill_null("").to_list()


def _require_columns(table: Table, wanted: Sequence[str]) -> None:
    present = table.frame.columns
    missing = [column for column in dict.fromkeys(wanted) if column not in present]
    if not missing:
        return
    hints: list[str] = []
    for column in missing:
        near = difflib.get_close_matches(column, present, n=1)
        hints.append(f'"{column}"' + (f' (is it "{near[0]}"?)' if near else ""))
    listed = ", ".join(f'"{column}"' for column in present)
    raise DataError(
        f"{table.path}: expected {'columns' if len(missing) > 1 else 'the column'} {', '.join(hints)}, "
        f"found {listed}; "
        "correct data.text_fields, data.label.column or data.group_by in the recipe, or the header of the "
        "table."
    )


def _labels(table: Table, column: str, rule: LabelRule | None, faults: Faults) -> list[str | None]:
    labels: list[str | None] = []
    where = f'column "{column}"'
    for row, value in enumerate(_cells(table.frame, column), start=1):
        label = rule.find(value) if rule is not None else value.strip() or None
        labels.append(label)
        if label is not None:
            continue
        place = f"data row {row} has {quote(value)}"
        if rule is None or not value.strip():
            faults.add(f"{where}: expected a label value, found a blank", "fill in or remove these rows", place)
        elif rule.wants_number(value):
            faults.add(f"{where}: expected a number", "correct or remove these rows", place)
        else:
            faults.add(
                f"{where}: expected a value that a rule covers ({rule.describe()})",
                "extend data.label.rule in the recipe, or remove these rows",
                place,
            )
    return labels


def _require_every_label(table: Table, column: str, rule: LabelRule, labels: Sequence[str | None]) -> None:
    lacking = [label for label in rule.labels if label not in labels]
    if lacking:
        named = ", ".join(f'"{label}"' for label in lacking)
        raise DataError(
            f'{table.path}: expected rows of every label, found none of {named} in column "{column}" with '
            f"the rules "
            f"{rule.describe()}; add such rows, or take the label out of data.label.rule in the recipe."
        )
