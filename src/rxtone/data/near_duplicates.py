"""Reviews that repeat each other, exactly or nearly, within a part and across parts."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from datasketch import MinHash, MinHashLSH

from rxtone.data.reviews import Review, dedupe_key

_PERMUTATIONS = 128
_SHINGLE = 3
# Candidates are checked exactly, so the index may be generous: at threshold 0.8 it misses 1 pair in 20,000.
_SLACK = 0.3


@dataclass(frozen=True)
class Pair:
    """Two reviews that say nearly the same.

    Attributes:
        first_part: The part of the first review.
        first_row: Its data row, from 1.
        second_part: The part of the second review.
        second_row: Its data row, from 1.
        similarity: Jaccard similarity of their word 3-grams; 1 for equal normalised texts.
        same_label: Whether they have the same label.
    """

    first_part: str
    first_row: int
    second_part: str
    second_row: int
    similarity: float
    same_label: bool


def shingles(key: str) -> frozenset[str]:
    """Return the word 3-grams of a normalised text; a shorter text is its only shingle.

    Args:
        key: A text as ``dedupe_key`` gives it.

    Returns:
        The distinct shingles.
    """
    words = key.split()
    spans = range(len(words) - _SHINGLE + 1)
    return frozenset(" ".join(words[start : start + _SHINGLE]) for start in spans) or frozenset((key,))


def exact_repeats(parts: Mapping[str, Sequence[Review]]) -> list[Pair]:
    """Pair every review with the first earlier one of the same normalised text.

    Args:
        parts: Name -> reviews, in the order in which a repeat counts as one.

    Returns:
        One pair for each repeat, in order.
    """
    first: dict[str, tuple[str, Review]] = {}
    pairs: list[Pair] = []
    for name, reviews in parts.items():
        for review in reviews:
            origin, earlier = first.setdefault(dedupe_key(review), (name, review))
            if earlier is not review:
                pairs.append(Pair(origin, earlier.row, name, review.row, 1.0, earlier.label == review.label))
    return pairs


def near_duplicates(parts: Mapping[str, Sequence[Review]], threshold: float) -> list[Pair]:
    """Find pairs of different texts whose word 3-grams overlap.

    MinHash with locality-sensitive hashing (Broder 1997) proposes, the exact Jaccard similarity decides.
    Exact repeats are left out: of each text only the first review takes part.

    Args:
        parts: Name -> reviews.
        threshold: The least Jaccard similarity, in (0, 1].

    Returns:
        The pairs, most similar first.
    """
    firsts: dict[str, tuple[str, Review]] = {}
    for name, reviews in parts.items():
        for review in reviews:
            firsts.setdefault(dedupe_key(review), (name, review))
    sets = [shingles(key) for key in firsts]
    owners = list(firsts.values())
    found = [
        (similarity, low, high)
        for low, high in _candidates(sets, threshold)
        if (similarity := _jaccard(sets[low], sets[high])) >= threshold
    ]
    found.sort(key=lambda item: (-item[0], item[1], item[2]))
    return [
        Pair(
            owners[low][0],
            owners[low][1].row,
            owners[high][0],
            owners[high][1].row,
            round(similarity, 4),
            owners[low][1].label == owners[high][1].label,
        )
        for similarity, low, high in found
    ]


def _candidates(sets: Sequence[frozenset[str]], threshold: float) -> Iterator[tuple[int, int]]:
    index = MinHashLSH(threshold=max(0.1, threshold - _SLACK), num_perm=_PERMUTATIONS)
    encoded = [[shingle.encode() for shingle in sorted(own)] for own in sets]
    for number, sketch in enumerate(MinHash.generator(encoded, num_perm=_PERMUTATIONS, seed=1)):
        for earlier in sorted(index.query(sketch)):
            yield earlier, number
        index.insert(number, sketch)


def _jaccard(first: frozenset[str], second: frozenset[str]) -> float:
    shared = len(first & second)
    return shared / (len(first) + len(second) - shared)


def conflicting_texts(reviews: Sequence[Review]) -> list[tuple[int, ...]]:
    """Find texts that occur with different labels.

    Args:
        reviews: Labelled reviews.

    Returns:
        The data rows of each such text.
    """
    rows: dict[str, list[Review]] = defaultdict(list)
    for review in reviews:
        rows[dedupe_key(review)].append(review)
    return [
        tuple(review.row for review in own)
        for own in rows.values()
        if any(before.label != after.label for before, after in pairwise(own))
    ]
