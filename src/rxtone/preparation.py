"""A recipe to labelled, split reviews, and the record of what they are (data.json)."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from rxtone.config import cache_dir
from rxtone.data.reviews import Review, dedupe_key, parse_rule, read_reviews
from rxtone.data.splits import drop_repeats, make_split
from rxtone.data.tables import read_table
from rxtone.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rxtone.config import AuxiliaryTask, DataConfig
    from rxtone.data.prompts import Prompt
    from rxtone.data.tables import Table

TEST = "test"
SELECTION = "validation, used for selection"
SEEN = "includes training reviews, not a test"
UNKNOWN = "no record of the training reviews, so perhaps not a test"


@dataclass(frozen=True)
class Prepared:
    """Reviews ready to be learned from.

    Attributes:
        labels: Label words, in the recipe's order.
        train: Reviews to learn from.
        validation: Reviews that choose the checkpoint.
        held_out: Reviews to judge on.
        held_out_name: What they are: a test, or validation rows where there is no test.
        record: What data.json holds.
        ratings: Data row of the training table -> cell of its label column.
        auxiliary: For each further task its label words, and data row -> the review with that task's label.
    """

    labels: tuple[str, ...]
    train: list[Review]
    validation: list[Review]
    held_out: list[Review]
    held_out_name: str
    record: dict[str, Any]
    ratings: dict[int, str] = field(default_factory=dict)
    auxiliary: dict[str, tuple[tuple[str, ...], dict[int, Review]]] = field(default_factory=dict)


def prepare(data: DataConfig, seed: int, auxiliary: Mapping[str, AuxiliaryTask] | None = None) -> Prepared:
    """Read, label and split the reviews of a recipe.

    Args:
        data: The recipe's data group.
        seed: Seed of the split, where the recipe has no `split_seed`.
        auxiliary: Further tasks, whose columns are read for the training reviews.

    Returns:
        The reviews and their record.

    Raises:
        DataError: If a table cannot be read, labelled or split.
        RecipeError: If the label rule is wrong.
    """
    rule = parse_rule(data.label.rule)
    table = read_table(data.train, cache_dir())
    reviews = read_reviews(table, data.text_fields, data.label.column, rule, data.group_by)
    test_table = read_table(data.test, cache_dir()) if data.test else None
    split = make_split(
        reviews,
        validation_fraction=data.validation_fraction,
        test_fraction=0.0 if test_table else data.test_fraction,
        seed=seed if data.split_seed is None else data.split_seed,
    )
    train, validation = _pick(reviews, split.train), _pick(reviews, split.validation)
    record: dict[str, Any] = {
        "tables": {"train": _table_record(table)},
        "repeated_training_rows": split.repeats,
        "dropped_test_rows": 0,
    }
    test = _pick(reviews, split.test)
    if test_table is not None:
        rows = read_reviews(test_table, data.text_fields, data.label.column, rule, data.group_by, every_label=False)
        test, record["dropped_test_rows"] = drop_repeats(rows, reviews)
        record["tables"]["test"] = _table_record(test_table)
        if not test:
            msg = f"{data.test}: every row repeats a row of {data.train}, so nothing is left to test on"
            raise DataError(msg)
    record["splits"] = {
        name: _split_record(part, rule.labels)
        for name, part in (("train", train), ("validation", validation), ("test", test))
        if part
    }
    record["training_text_hashes"] = sorted({text_hash(review) for review in (*train, *validation)})
    name = TEST if test else SELECTION
    further = {task: _further(table, data, settings) for task, settings in (auxiliary or {}).items()}
    ratings = {row: str(cell) for row, cell in enumerate(table.frame[data.label.column], start=1)}
    return Prepared(rule.labels, train, validation, test or validation, name, record, ratings, further)


def _further(table: Table, data: DataConfig, task: AuxiliaryTask) -> tuple[tuple[str, ...], dict[int, Review]]:
    rule = parse_rule(task.rule)
    reviews = read_reviews(table, data.text_fields, task.column, rule)
    return rule.labels, {review.row: review for review in reviews}


def free_text(review: Review) -> Review:
    """The same review as one text: its fields without their names, one line each."""
    if not review.fields:
        return review
    joined = "\n".join(text for _, text in review.fields if text.strip())
    return Review(text=joined, label=review.label, group=review.group, row=review.row)


def with_free_text(reviews: Sequence[Review], share: float, seed: int) -> list[Review]:
    """Render a seeded share of the reviews as free text, the rest as they are."""
    chosen = np.random.Generator(np.random.PCG64([seed, 1])).permutation(len(reviews))[: round(share * len(reviews))]
    as_text = set(chosen.tolist())
    return [free_text(review) if index in as_text else review for index, review in enumerate(reviews)]


def label_indexes(reviews: Sequence[Review], labels: Sequence[str]) -> np.ndarray:
    """Position of each review's label in `labels`: int64, shape (n,)."""
    position = {label: index for index, label in enumerate(labels)}
    return np.array([position[str(review.label)] for review in reviews], dtype=np.int64)


def truncation_record(prompts: Sequence[Prompt]) -> dict[str, Any]:
    """How many prompts were cut, in which fields, and how long they were.

    Args:
        prompts: The n prompts of one split.

    Returns:
        Counts of reviews and of tokens cut per field, and quantiles of the uncut length in tokens.
    """
    lengths = np.array([prompt.n_tokens_full for prompt in prompts])
    fields: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    for prompt in prompts:
        fields.update(prompt.cut.keys())
        tokens.update(prompt.cut)
    return {
        "truncated": sum(prompt.truncated for prompt in prompts),
        "cut_reviews_by_field": dict(sorted(fields.items())),
        "cut_tokens_by_field": dict(sorted(tokens.items())),
        "tokens": {
            "mean": float(lengths.mean()),
            **{f"p{q}": float(np.percentile(lengths, q)) for q in (50, 90, 95)},
            "max": int(lengths.max()),
        },
    }


def text_hash(review: Review) -> str:
    """A short hash of the normalised text, to recognise a repeat without keeping the text."""
    return hashlib.sha256(dedupe_key(review).encode()).hexdigest()[:16]


def _pick(reviews: Sequence[Review], indexes: np.ndarray) -> list[Review]:
    return [reviews[int(index)] for index in indexes]


def _table_record(table: Table) -> dict[str, Any]:
    return {"source": table.path, "sha256": table.sha256, "rows": table.frame.height}


def _split_record(reviews: Sequence[Review], labels: Sequence[str]) -> dict[str, Any]:
    counts = Counter(review.label for review in reviews)
    return {
        "rows": len(reviews),
        "labels": {label: counts[label] for label in labels},
        "row_numbers": [review.row for review in reviews],
    }
