"""The result of an audit as plain frozen data."""

from dataclasses import asdict, dataclass
from typing import Literal

from rxtone.data.leaks import ColumnLeak
from rxtone.data.near_duplicates import Pair
from rxtone.data.profile import FieldProfile, GroupProfile, LengthProfile
from rxtone.data.rule_variants import RuleVariant
from rxtone.data.suspects import Suspect
from rxtone.data.vocabulary import VocabularyDrift


@dataclass(frozen=True)
class PartAudit:
    """What was found in one part.

    Attributes:
        rows: Number of reviews.
        sha256: Digest of the table.
        label_counts: Label -> rows.
        fields: The text fields.
        lengths: Prompt lengths and cuts; None without prompts.
        exact_repeats: Rows that repeat an earlier text of the part.
        near_duplicates: Pairs of different texts that say nearly the same.
        conflicts: Data rows of each text that occurs with different labels.
        rating_mentions: Reviews that name a rating in the text.
        label_mentions: Label word in the text -> given label -> reviews.
        column_leaks: Columns beside text and label, the most telling first.
        groups: How rows and labels spread over the group columns.
        suspects: Labels that the out-of-fold model contradicts; None without probabilities.
        rule_variants: The label shares under the rule and under shifted ones.
    """

    rows: int
    sha256: str
    label_counts: dict[str, int]
    fields: list[FieldProfile]
    lengths: LengthProfile | None
    exact_repeats: list[Pair]
    near_duplicates: list[Pair]
    conflicts: list[tuple[int, ...]]
    rating_mentions: int
    label_mentions: dict[str, dict[str, int]]
    column_leaks: list[ColumnLeak]
    groups: list[GroupProfile]
    suspects: list[Suspect] | None
    rule_variants: list[RuleVariant]


@dataclass(frozen=True)
class CrossAudit:
    """What was found between two parts.

    Attributes:
        first: The name of the earlier part.
        second: The name of the later part.
        exact_repeats: Rows of the later part that repeat a text of the earlier one.
        near_duplicates: Pairs of different texts across the parts that say nearly the same.
        shared_groups: For each group column the share of the later part's rows whose group occurs in the
            earlier part.
        drift: How far the words differ.
    """

    first: str
    second: str
    exact_repeats: list[Pair]
    near_duplicates: list[Pair]
    shared_groups: dict[str, float]
    drift: VocabularyDrift


@dataclass(frozen=True)
class Finding:
    """One thing to know or to mend.

    Attributes:
        level: How much it matters for the figures.
        subject: What it is about, as a key of the audit.
        text: The finding in words.
    """

    level: Literal["error", "warning", "note"]
    subject: str
    text: str


@dataclass(frozen=True)
class Audit:
    """All that was found.

    Attributes:
        labels: The label words.
        parts: Name -> what was found in the part.
        across: What was found between each two parts.
        findings: The findings in words, the gravest first.
    """

    labels: tuple[str, ...]
    parts: dict[str, PartAudit]
    across: list[CrossAudit]
    findings: list[Finding]

    def to_dict(self) -> dict[str, object]:
        """Return everything as JSON-ready data."""
        return asdict(self)
