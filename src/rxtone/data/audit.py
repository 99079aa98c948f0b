"""What is wrong with this data, in numbers and in words.

The audit reads, it changes nothing. Token counts (as prompts) and out-of-fold probabilities come as
arguments, because models are above this layer.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from rxtone.data.audit_result import Audit, CrossAudit, PartAudit
from rxtone.data.findings import findings_of
from rxtone.data.leaks import column_leak, label_mentions, rating_mentions
from rxtone.data.near_duplicates import Pair, conflicting_texts, exact_repeats, near_duplicates
from rxtone.data.profile import field_profiles, group_profile, length_profile
from rxtone.data.prompts import Prompt
from rxtone.data.reviews import Review
from rxtone.data.rule_variants import rule_variant, shifted_rules
from rxtone.data.rules import LabelRule
from rxtone.data.suspects import Suspect, suspect_labels
from rxtone.data.tables import Table
from rxtone.data.vocabulary import vocabulary_drift
from rxtone.errors import DataError

__all__ = ["Audit", "AuditPart", "audit"]

NEAR_THRESHOLD = 0.8


@dataclass(frozen=True)
class AuditPart:
    """One part of the data (train, validation, test) with what is known about it.

    Attributes:
        table: The table that the reviews come from.
        reviews: Labelled reviews; ``row`` says where each stands in the table.
        prompts: The prompts of the same reviews, or None.
        probabilities: Out-of-fold probabilities (n, labels) of the same reviews, or None.
    """

    table: Table
    reviews: Sequence[Review]
    prompts: Sequence[Prompt] | None = None
    probabilities: npt.NDArray[np.float64] | None = None


def audit(
    parts: Mapping[str, AuditPart],
    *,
    text_fields: Mapping[str, str],
    label_column: str,
    rule: LabelRule,
    group_columns: Sequence[str] = (),
    threshold: float = NEAR_THRESHOLD,
    seed: int = 0,
) -> Audit:
    """Audit the parts of a data set.

    Args:
        parts: Name -> part, what is learned from first.
        text_fields: Name in the prompt -> column.
        label_column: The column that the rule reads.
        rule: The label rule.
        group_columns: Columns such as drug or condition.
        threshold: The least Jaccard similarity of near-duplicates, in (0, 1].
        seed: Seed of the shuffles.

    Returns:
        The audit.

    Raises:
        DataError: A part has no reviews, or its prompts or probabilities do not fit them.
    """
    for name, part in parts.items():
        if not part.reviews:
            raise DataError(f"{name}: expected at least one review to audit, found none.")
        if part.prompts is not None and len(part.prompts) != len(part.reviews):
            raise DataError(f"{name}: expected {len(part.reviews)} prompts, found {len(part.prompts)}.")
    reviews = {name: part.reviews for name, part in parts.items()}
    near = near_duplicates(reviews, threshold)
    found = {
        name: _audit_part(name, part, near, text_fields, label_column, rule, group_columns)
        for name, part in parts.items()
    }
    across = [
        _audit_across(first, second, parts, near, group_columns, seed) for first, second in combinations(parts, 2)
    ]
    return Audit(rule.labels, found, across, findings_of(found, across))


def _audit_part(
    name: str,
    part: AuditPart,
    near: Sequence[Pair],
    text_fields: Mapping[str, str],
    label_column: str,
    rule: LabelRule,
    group_columns: Sequence[str],
) -> PartAudit:
    rows = [review.row - 1 for review in part.reviews]
    frame = part.table.frame[rows].fill_null("")
    values = {column: [cell.strip() for cell in frame[column].to_list()] for column in frame.columns}
    others = [column for column in frame.columns if column not in (label_column, *text_fields.values())]
    leaks = [column_leak(values[column], part.reviews, column) for column in others]
    counts = Counter(review.label for review in part.reviews)
    given = [review.label for review in part.reviews]
    return PartAudit(
        rows=len(part.reviews),
        sha256=part.table.sha256,
        label_counts={label: counts[label] for label in rule.labels},
        fields=field_profiles(part.table.frame[rows], dict(text_fields)),
        lengths=None if part.prompts is None else length_profile(part.prompts),
        exact_repeats=exact_repeats({name: part.reviews}),
        near_duplicates=[pair for pair in near if pair.first_part == pair.second_part == name],
        conflicts=conflicting_texts(part.reviews),
        rating_mentions=rating_mentions(part.reviews),
        label_mentions=label_mentions(part.reviews, rule.labels),
        column_leaks=sorted(leaks, key=lambda leak: -leak.accuracy),
        groups=[group_profile(values[column], part.reviews, column) for column in group_columns],
        suspects=_suspects(part, rule),
        rule_variants=[
            rule_variant(variant, other, values[label_column], given, part.probabilities, rule.labels)
            for variant, other in {"the rule of the recipe": rule, **shifted_rules(rule)}.items()
        ],
    )


def _suspects(part: AuditPart, rule: LabelRule) -> list[Suspect] | None:
    if part.probabilities is None:
        return None
    codes = np.array([rule.labels.index(str(review.label)) for review in part.reviews], np.int64)
    return suspect_labels(codes, part.probabilities, rule.labels, [review.row for review in part.reviews])


def _audit_across(
    first: str,
    second: str,
    parts: Mapping[str, AuditPart],
    near: Sequence[Pair],
    group_columns: Sequence[str],
    seed: int,
) -> CrossAudit:
    names = {first, second}
    pairs = exact_repeats({name: parts[name].reviews for name in (first, second)})
    return CrossAudit(
        first=first,
        second=second,
        exact_repeats=[pair for pair in pairs if pair.first_part != pair.second_part],
        near_duplicates=[p for p in near if p.first_part != p.second_part and {p.first_part, p.second_part} == names],
        shared_groups={column: _shared_share(parts[first], parts[second], column) for column in group_columns},
        drift=vocabulary_drift((first, _texts(parts[first])), (second, _texts(parts[second])), seed),
    )


def _texts(part: AuditPart) -> list[str]:
    return [" ".join((review.text or "", *(text for _, text in review.fields))) for review in part.reviews]


def _groups(part: AuditPart, column: str) -> list[str]:
    cells = part.table.frame[column].fill_null("")
    return [str(cells[review.row - 1]).strip() for review in part.reviews]


def _shared_share(first: AuditPart, second: AuditPart, column: str) -> float:
    known = set(_groups(first, column))
    own = _groups(second, column)
    return round(sum(value in known for value in own) / len(own), 6)
