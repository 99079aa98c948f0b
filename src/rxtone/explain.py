"""Which field and which words drove a prediction: by leaving them out and asking again.

All figures are changes of one number, the log-odds of a label after calibration, so they can be checked by
hand: ask with the words and without.

Fields share the change from a prompt without any review to the whole one by their Shapley value (Shapley 1953;
Lundberg and Lee 2017): the mean effect of adding the field, over all orders of adding fields. The shares sum to
the whole change.

So many orders of words cannot be asked. The weight of a word is the mean of the two extreme ones: what it adds
when it comes first, to a prompt with no other word, and what it takes away when it leaves last, from the whole
review. That is the Shapley value exactly as long as words act alone or in pairs. Leaving out alone ("occlusion",
Zeiler and Fergus 2014) would give two words that say the same no weight at all: each can be missed.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rxtone.data.reviews import Review
from rxtone.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from rxtone.classifier import Classifier
    from rxtone.data.prompts import Reading, Word

MOST_PARTS = 64
"""More words than this are taken in runs of neighbours: an explanation asks about so many whole prompts."""
EXACT_FIELDS = 8
"""With more fields, orders of adding them are drawn instead of all being tried."""
_ORDERS = 64


@dataclass(frozen=True)
class Part:
    """A word, or a run of neighbouring words of a long review.

    Attributes:
        field: The field it stands in; `text` for free text.
        text: The words.
        weight: By how much it moves the log-odds of the label; negative: it speaks against.
    """

    field: str
    text: str
    weight: float


@dataclass(frozen=True)
class Explanation:
    """What drove a prediction.

    Attributes:
        label: The label that is explained.
        predicted: The label of the answer.
        probability: Calibrated probability of the explained label.
        log_odds: Its log-odds, given all that was read.
        without_review: Its log-odds, given the instruction alone.
        fields: Field -> its share of the way from `without_review` to `log_odds`; empty for free text.
        parts: What was read, in order.
        words_per_part: 1, or how many neighbours were taken together.
        cut: Field -> tokens of it that did not fit the prompt and drove nothing.
    """

    label: str
    predicted: str
    probability: float
    log_odds: float
    without_review: float
    fields: dict[str, float]
    parts: tuple[Part, ...]
    words_per_part: int
    cut: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-ready data."""
        return asdict(self) | {"parts": [asdict(part) for part in self.parts]}


def explain(
    classifier: Classifier,
    review: Review | str | Mapping[str, str],
    *,
    label: str | None = None,
    batch_size: int = 32,
) -> Explanation:
    """Find out what drove a prediction.

    Args:
        classifier: Any loaded classifier, exported ones included.
        review: A review, a free text, or a mapping of field to text.
        label: The label to explain; None takes the answer.
        batch_size: Prompts per batch.

    Returns:
        The weights of fields and words.

    Raises:
        DataError: If the review has no text, or the label is none of the classifier's.
    """
    if label is not None and label not in classifier.labels:
        msg = f"explain: expected a label among {', '.join(classifier.labels)}, got {label!r}"
        raise DataError(msg)
    asked = classifier.as_review(review)
    reading = classifier.prompts.reading(asked)
    if not reading.words:
        msg = "explain: expected a review with some text, got none"
        raise DataError(msg)
    parts, size = _parts(reading.words)
    subsets, fields = _subsets([name for name, text in reading.texts if text] if asked.text is None else [])
    rebuilt = classifier.prompts.build_many([_kept(asked, reading, subset) for subset in subsets])
    whole = reading.prompt.ids
    bare = _without(whole, reading.words)
    ids = [whole, bare, *(_without(whole, part) for part in parts)]
    ids += [_without(whole, [word for word in reading.words if word not in part]) for part in parts]
    log_probs = classifier.score_ids([*ids, *(prompt.ids for prompt in rebuilt)], batch_size=batch_size)
    answer = int(classifier.policy.decide(log_probs[:1]).predicted[0])
    index = answer if label is None else classifier.labels.index(label)
    odds = _log_odds(classifier.policy.calibration.log_probabilities(log_probs), index)
    values = dict(zip(subsets, odds[len(ids) :].tolist(), strict=True))
    shares = _shapley(fields, values) if fields else {}
    return Explanation(
        label=classifier.labels[index],
        predicted=classifier.labels[answer],
        probability=float(1 / (1 + math.exp(-odds[0]))),
        log_odds=float(odds[0]),
        without_review=float(values[frozenset()]),
        fields={name: shares.get(name, 0.0) for name, _ in asked.fields},
        parts=tuple(
            Part(part[0].field, " ".join(word.text for word in part), float(odds[0] - without + alone - odds[1]) / 2)
            for part, without, alone in zip(parts, *odds[2 : len(ids)].reshape(2, -1), strict=True)
        ),
        words_per_part=size,
        cut=dict(reading.prompt.cut),
    )


def forward_passes(reading: Reading) -> int:
    """How many prompts an explanation of a review scores."""
    filled = sum(bool(text) for _, text in reading.texts)
    return 2 + 2 * len(_parts(reading.words)[0]) + (2**filled if filled <= EXACT_FIELDS else 2 * _ORDERS * filled)


def _parts(words: Sequence[Word]) -> tuple[list[list[Word]], int]:
    """Words to runs of neighbours in one field, of one word each where there are few."""
    size = max(1, math.ceil(len(words) / MOST_PARTS))
    parts: list[list[Word]] = []
    for word in words:
        if parts and len(parts[-1]) < size and parts[-1][0].field == word.field:
            parts[-1].append(word)
        else:
            parts.append([word])
    return parts, size


def _without(ids: Sequence[int], part: Sequence[Word]) -> tuple[int, ...]:
    gone = {position for word in part for position in word.tokens}
    return tuple(token for position, token in enumerate(ids) if position not in gone)


def _kept(review: Review, reading: Reading, subset: frozenset[str]) -> Review:
    """The review as it was read, with the fields of the subset only."""
    if review.text is not None:
        return Review(text="")
    return Review(fields=tuple((name, text) for name, text in reading.texts if name in subset))


def _subsets(names: Sequence[str]) -> tuple[list[frozenset[str]], list[tuple[str, ...]]]:
    """The sets of fields to ask with, and the orders of adding fields that need them."""
    if len(names) <= EXACT_FIELDS:
        chosen = [frozenset(name for i, name in enumerate(names) if mask >> i & 1) for mask in range(2 ** len(names))]
        return chosen, [tuple(names)] if names else []
    draw = np.random.Generator(np.random.PCG64(0))
    orders = [tuple(names[i] for i in draw.permutation(len(names))) for _ in range(_ORDERS)]
    orders += [order[::-1] for order in orders]  # an order and its reverse: less variance
    return list(dict.fromkeys(frozenset(order[:n]) for order in orders for n in range(len(names) + 1))), orders


def _shapley(orders: Sequence[tuple[str, ...]], values: Mapping[frozenset[str], float]) -> dict[str, float]:
    names = orders[0]
    if len(names) > EXACT_FIELDS:
        return {
            name: float(np.mean([_step(order, order.index(name), values) for order in orders]))
            for name in sorted(names)
        }
    shares = dict.fromkeys(names, 0.0)
    for subset, value in values.items():
        n = len(subset)
        for name in names:
            if name not in subset:
                orders_before = math.factorial(n) * math.factorial(len(names) - n - 1) / math.factorial(len(names))
                shares[name] += orders_before * (values[subset | {name}] - value)
    return shares


def _step(order: tuple[str, ...], at: int, values: Mapping[frozenset[str], float]) -> float:
    return values[frozenset(order[: at + 1])] - values[frozenset(order[:at])]


def _log_odds(log_probs: NDArray[np.float64], label: int) -> NDArray[np.float64]:
    """log(p / (1 - p)) of one label, from log-probabilities of shape (n, k)."""
    others = np.delete(log_probs, label, axis=1)
    return np.asarray(log_probs[:, label] - np.logaddexp.reduce(others, axis=1))
