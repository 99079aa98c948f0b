"""Seeded splits that keep label shares, and keep groups and repeated texts on one side."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rxtone.data.reviews import Review, dedupe_key
from rxtone.errors import DataError, RecipeError

Indexes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Row indexes of the three parts; every row is in exactly one of them.

    Attributes:
        train: Indexes (n_train,) into the reviews, ascending.
        validation: Indexes (n_validation,), ascending, never empty.
        test: Indexes (n_test,), ascending, empty where ``test_fraction`` is 0.
        repeats: How many rows repeat the text of an earlier row; they are kept, on the side of that row.
    """

    train: Indexes
    validation: Indexes
    test: Indexes
    repeats: int


def make_split(reviews: Sequence[Review], *, validation_fraction: float, test_fraction: float, seed: int) -> Split:
    """Cut labelled reviews into train, validation and test.

    Rows that share a group or a normalised text form one block, and blocks are never cut. The same reviews
    and seed give the same split on every machine.

    Args:
        reviews: Labelled reviews.
        validation_fraction: Share of the rows for validation, in (0, 1).
        test_fraction: Share of the rows for the test, in [0, 1); 0 for none.
        seed: Seed of the generator.

    Returns:
        The split. Each label's share is kept as closely as the blocks allow.

    Raises:
        RecipeError: The fractions leave nothing to train on.
        DataError: A review has no label, or there are too few blocks to give each part its rows.
    """
    if not (0 < validation_fraction < 1 and 0 <= test_fraction < 1 and validation_fraction + test_fraction < 1):
        raise RecipeError(
            "data.validation_fraction and data.test_fraction: expected 0 < validation, 0 <= test and a sum "
            "below 1, "
            f"found {validation_fraction} and {test_fraction}."
        )
    shares = [1 - validation_fraction - test_fraction, validation_fraction]
    names = ["train", "validation"]
    if test_fraction:
        shares.append(test_fraction)
        names.append("test")
    blocks, repeats = _blocks(reviews)
    codes, labels = _codes(reviews)
    parts = _distribute(blocks, codes, len(labels), np.array(shares), seed)
    rows = [np.flatnonzero(parts == part) for part in range(len(names))]
    for name, own in zip(names, rows, strict=True):
        if own.size == 0:
            raise DataError(
                f"the {name} part would be empty: the {len(reviews)} rows form {len(blocks)} blocks that "
                f"share a "
                "group or a text and cannot be cut; give more rows, or another data.group_by."
            )
    _require_labels_in_train(codes[rows[0]], labels)
    return Split(rows[0], rows[1], rows[2] if test_fraction else np.empty(0, np.int64), repeats)


def folds(reviews: Sequence[Review], k: int, seed: int) -> list[Indexes]:
    """Cut labelled reviews into k parts for cross-validation, under the rules of ``make_split``.

    Args:
        reviews: Labelled reviews.
        k: Number of folds, at least 2.
        seed: Seed of the generator.

    Returns:
        The held-out indexes of each fold, ascending; together they hold every row once.

    Raises:
        RecipeError: k is below 2.
        DataError: There are fewer blocks than folds, or a label would be missing from the rest of a fold.
    """
    if k < 2:
        raise RecipeError(f"expected at least 2 folds, found {k}.")
    blocks, _ = _blocks(reviews)
    codes, labels = _codes(reviews)
    parts = _distribute(blocks, codes, len(labels), np.full(k, 1 / k), seed)
    held_out = [np.flatnonzero(parts == part) for part in range(k)]
    for own in held_out:
        if own.size == 0:
            raise DataError(
                f"{k} folds need at least {k} blocks of rows that share no group or text, found "
                f"{len(blocks)}; "
                "ask for fewer folds."
            )
        _require_labels_in_train(np.delete(codes, own), labels)
    return held_out


def drop_repeats(test: Sequence[Review], train: Sequence[Review]) -> tuple[list[Review], int]:
    """Drop the test rows whose normalised text occurs in train.

    Args:
        test: Reviews to be tested on.
        train: Reviews that are learned from or selected on.

    Returns:
        The test rows that are new, in order, and how many were dropped.

    Raises:
        DataError: No test row is left.
    """
    known = {dedupe_key(review) for review in train}
    kept = [review for review in test if dedupe_key(review) not in known]
    if test and not kept:
        raise DataError(
            f"all {len(test)} test rows repeat a training text; name another table as data.test, or null "
            f"to cut a "
            "test part from train."
        )
    return kept, len(test) - len(kept)


def _codes(reviews: Sequence[Review]) -> tuple[Indexes, tuple[str, ...]]:
    labels = tuple(dict.fromkeys(review.label for review in reviews if review.label is not None))
    unlabelled = [review.row for review in reviews if review.label is None]
    if unlabelled:
        raise DataError(
            f"expected a label on every row to split, found {len(unlabelled)} rows without one, the first "
            f"of them "
            f"data row {unlabelled[0]}."
        )
    order = {label: code for code, label in enumerate(labels)}
    return np.array([order[str(review.label)] for review in reviews], np.int64), labels


def _blocks(reviews: Sequence[Review]) -> tuple[list[list[int]], int]:
    """Join rows that share a text or a group (union-find); return the blocks and the number of repeats."""
    parents = list(range(len(reviews)))

    def root(index: int) -> int:
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index

    first_of: dict[tuple[str, str], int] = {}
    repeats = 0
    for index, review in enumerate(reviews):
        keys = [("text", dedupe_key(review))]
        repeats += keys[0] in first_of
        if review.group is not None:
            keys.append(("group", review.group))
        for key in keys:
            low, high = sorted((root(first_of.setdefault(key, index)), root(index)))
            parents[high] = low
    members: dict[int, list[int]] = defaultdict(list)
    for index in range(len(reviews)):
        members[root(index)].append(index)
    return list(members.values()), repeats


def _distribute(
    blocks: list[list[int]], codes: Indexes, n_labels: int, shares: npt.NDArray[np.float64], seed: int
) -> Indexes:
    """Give every block to a part so that each part gets its share of each label.

    Large blocks go first, each to the part that lacks its labels most; blocks of one row fill the counts up.
    The answer is the part of each row (n,).
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    counts = np.bincount(codes, minlength=n_labels)
    lacking = np.stack([_apportion(int(count), shares) for count in counts], axis=1)  # (parts, labels)
    weight = 1 / np.maximum(counts, 1)
    parts = np.zeros(codes.size, np.int64)
    order = [blocks[int(index)] for index in generator.permutation(len(blocks))]
    order.sort(key=len, reverse=True)  # stable: ties stay in random order
    for block in order:
        if len(block) == 1:
            break
        need = np.bincount(codes[block], minlength=n_labels)
        # The change of the squared distance to the targets, each label on its own scale.
        cost = ((need * (need - 2 * lacking)) * weight**2).sum(axis=1)
        part = int(np.argmin(cost))
        parts[block] = part
        lacking[part] -= need
    rows = np.array([block[0] for block in order if len(block) == 1], np.int64)
    for label in range(n_labels):
        own = rows[codes[rows] == label]
        if own.size:
            room = np.maximum(lacking[:, label], 0)
            parts[own] = np.repeat(np.arange(shares.size), _apportion(own.size, room / room.sum()))
    _fill_empty_parts(parts, order, shares.size)
    return parts


def _fill_empty_parts(parts: Indexes, blocks: list[list[int]], n_parts: int) -> None:
    """Give an empty part the smallest block of the part with most blocks, where there are enough."""
    for part in range(n_parts if len(blocks) >= n_parts else 0):
        if not (parts == part).any():
            owners = np.bincount([parts[block[0]] for block in blocks], minlength=n_parts)
            richest = int(np.argmax(owners))
            smallest = [block for block in blocks if parts[block[0]] == richest][-1]
            parts[smallest] = part


def _apportion(total: int, shares: npt.NDArray[np.float64]) -> Indexes:
    """Cut a count by largest remainders; every part gets one where there are enough."""
    exact = total * shares
    sizes = np.floor(exact + 1e-9).astype(np.int64)
    order = np.argsort(-(exact - sizes), kind="stable")
    sizes[order[: total - sizes.sum()]] += 1
    wanted = shares > 0
    while total >= np.count_nonzero(wanted) and (sizes[wanted] == 0).any():
        sizes[np.argmax(sizes)] -= 1
        sizes[np.flatnonzero(wanted & (sizes == 0))[0]] += 1
    return sizes


def _require_labels_in_train(codes: Indexes, labels: tuple[str, ...]) -> None:
    present = np.bincount(codes, minlength=len(labels)) > 0
    lacking = [label for label, there in zip(labels, present, strict=True) if not there]
    if lacking:
        named = ", ".join(f'"{label}"' for label in lacking)
        raise DataError(
            f"the training part would have no row of {named}; add rows of this label with other texts or "
            f"groups, or "
            "make the other parts smaller."
        )
