"""Counts that describe a part of a data set: its fields, lengths and groups."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from rxtone.data.prompts import Prompt
from rxtone.data.reviews import Review

# What people write where they have nothing to say; all of these are answers and stay text.
_PLACEHOLDERS = frozenset(
    (
        *("none", "n/a", "na", "n.a", "nil", "null", "nan", "nothing", "no", "unknown"),
        *("see above", "same as above", "-", "--", "?"),
        "",  # dots at the end are taken off first, so this is "."
    )
)
_SHOWN = 20


@dataclass(frozen=True)
class FieldProfile:
    """One text field of a part.

    Attributes:
        field: The name in the prompt.
        nulls: Cells that are null in JSON or Parquet.
        blanks: Cells of nothing but white space, nulls not counted.
        distinct: How many different texts there are.
        placeholders: Answers such as ``None`` or ``n/a`` as typed, and how often, the most frequent 20.
        placeholder_rows: How many rows have such an answer.
        words_p50: Median number of words.
        words_p95: 95th percentile of the number of words.
        words_max: The longest text in words.
    """

    field: str
    nulls: int
    blanks: int
    distinct: int
    placeholders: dict[str, int]
    placeholder_rows: int
    words_p50: float
    words_p95: float
    words_max: int


@dataclass(frozen=True)
class LengthProfile:
    """The prompts of a part in tokens, uncut.

    Attributes:
        mean: Mean length.
        p50: Median length.
        p90: 90th percentile.
        p95: 95th percentile.
        max: The longest.
        truncated_rows: Prompts that lost tokens.
        truncated_share: Their share of all.
        cut_rows: For each field the prompts in which it lost tokens.
        cut_tokens: For each field the tokens lost.
    """

    mean: float
    p50: float
    p90: float
    p95: float
    max: int
    truncated_rows: int
    truncated_share: float
    cut_rows: dict[str, int]
    cut_tokens: dict[str, int]


@dataclass(frozen=True)
class GroupProfile:
    """How the rows spread over the values of a column such as drug or condition.

    Attributes:
        column: The column.
        groups: How many values there are.
        singletons: Values with one row.
        largest_share: Share of the rows in the ten largest groups.
        label_spread: How closely groups and labels are associated, 0..1 (Cramér's V with the correction for
            bias of Bergsma 2013).
        largest: The ten largest groups: value -> label -> rows.
    """

    column: str
    groups: int
    singletons: int
    largest_share: float
    label_spread: float
    largest: dict[str, dict[str, int]]


def field_profiles(frame: pl.DataFrame, text_fields: dict[str, str]) -> list[FieldProfile]:
    """Describe the text fields of a table.

    Args:
        frame: A table's frame of text.
        text_fields: Name in the prompt -> column.

    Returns:
        One profile for each field.
    """
    profiles: list[FieldProfile] = []
    for name, column in text_fields.items():
        cells = frame[column]
        texts = [text.strip() for text in cells.fill_null("").to_list()]
        answers = Counter(text for text in texts if text.casefold().rstrip(".") in _PLACEHOLDERS and text)
        words = np.array([len(text.split()) for text in texts])
        nulls = cells.null_count()
        profiles.append(
            FieldProfile(
                field=name,
                nulls=nulls,
                blanks=texts.count("") - nulls,
                distinct=len(set(texts)),
                placeholders=dict(answers.most_common(_SHOWN)),
                placeholder_rows=answers.total(),
                words_p50=float(np.percentile(words, 50)),
                words_p95=float(np.percentile(words, 95)),
                words_max=int(words.max()),
            )
        )
    return profiles


def length_profile(prompts: Sequence[Prompt]) -> LengthProfile:
    """Describe the lengths and cuts of prompts.

    Args:
        prompts: At least one prompt.

    Returns:
        The profile.
    """
    lengths = np.array([prompt.n_tokens_full for prompt in prompts])
    cut_rows: Counter[str] = Counter()
    cut_tokens: Counter[str] = Counter()
    for prompt in prompts:
        cut_rows.update(prompt.cut.keys())
        cut_tokens.update(prompt.cut)
    truncated = sum(prompt.truncated for prompt in prompts)
    p50, p90, p95 = (float(np.percentile(lengths, q)) for q in (50, 90, 95))
    return LengthProfile(
        mean=round(float(lengths.mean()), 2),
        p50=p50,
        p90=p90,
        p95=round(p95, 2),
        max=int(lengths.max()),
        truncated_rows=truncated,
        truncated_share=round(truncated / len(prompts), 6),
        cut_rows=dict(cut_rows.most_common()),
        cut_tokens=dict(cut_tokens.most_common()),
    )


def group_profile(values: Sequence[str], reviews: Sequence[Review], column: str) -> GroupProfile:
    """Describe how rows and labels spread over groups.

    Args:
        values: The group of each row (n,), stripped; "" is a group of its own.
        reviews: The labelled reviews of the same rows.
        column: The column that the values come from.

    Returns:
        The profile.
    """
    table: dict[str, Counter[str]] = {}
    for value, review in zip(values, reviews, strict=True):
        table.setdefault(value, Counter())[review.label or ""] += 1
    largest = sorted(table, key=lambda value: (-table[value].total(), value))[:10]
    return GroupProfile(
        column=column,
        groups=len(table),
        singletons=sum(own.total() == 1 for own in table.values()),
        largest_share=round(sum(table[value].total() for value in largest) / len(reviews), 6),
        label_spread=round(_cramers_v(list(table.values())), 6),
        largest={value: dict(table[value].most_common()) for value in largest},
    )


def _cramers_v(rows: Sequence[Counter[str]]) -> float:
    labels = sorted({label for row in rows for label in row})
    counts = np.array([[row[label] for label in labels] for row in rows], np.float64)
    n = counts.sum()
    expected = counts.sum(axis=1, keepdims=True) * counts.sum(axis=0, keepdims=True) / n
    r, c = counts.shape
    if n < 2 or min(r, c) < 2:
        return 0.0
    phi = ((counts - expected) ** 2 / expected).sum() / n
    corrected = max(0.0, phi - (r - 1) * (c - 1) / (n - 1))
    smaller = min(r - (r - 1) ** 2 / (n - 1), c - (c - 1) ** 2 / (n - 1))
    return float(np.sqrt(corrected / (smaller - 1))) if smaller > 1 else 0.0
