"""An audit's numbers -> findings in words, the gravest first."""

from collections.abc import Iterator, Mapping, Sequence

from rxtone.data.audit_result import CrossAudit, Finding, PartAudit

_LEVELS = ("error", "warning", "note")
# A column that beats the majority by this much tells the label; a text model must not read it.
_LEAK_MARGIN = 0.05
_RARE_SHARE = 0.15
_TRUNCATED_SHARE = 0.05
_CHANCE = 0.05


def findings_of(parts: Mapping[str, PartAudit], across: Sequence[CrossAudit]) -> list[Finding]:
    """Say in words what matters in an audit.

    Args:
        parts: Name -> what was found in the part.
        across: What was found between each two parts.

    Returns:
        The findings, the gravest first.
    """
    found = [
        finding
        for name, part in parts.items()
        for look in (_labels, _fields, _repeats, _leaks, _lengths, _suspects, _variants)
        for finding in look(name, part)
    ]
    found += [finding for cross in across for finding in _cross(cross)]
    return sorted(found, key=lambda finding: _LEVELS.index(finding.level))


def _labels(name: str, part: PartAudit) -> Iterator[Finding]:
    for label, n in part.label_counts.items():
        share = n / part.rows
        if n == 0:
            yield Finding("error", "label_counts", f'{name}: no row has the label "{label}".')
        elif share < _RARE_SHARE:
            yield Finding(
                "warning",
                "label_counts",
                f'{name}: the label "{label}" has {n:,} of {part.rows:,} rows ({share:.1%}); '
                "accuracy hides how "
                "it fares, macro-F1 does not.",
            )


def _fields(name: str, part: PartAudit) -> Iterator[Finding]:
    for own in part.fields:
        if own.nulls or own.blanks:
            yield Finding(
                "note",
                "fields",
                f"{name}: {own.field} is empty in {own.nulls + own.blanks:,} rows ({own.nulls:,} of "
                "them null); "
                "prompts leave it out there.",
            )
        if own.placeholder_rows:
            shown = ", ".join(f'"{answer}" {n:,}' for answer, n in list(own.placeholders.items())[:4])
            yield Finding(
                "note",
                "fields",
                f"{name}: answers in {own.field} that look like missing values: {own.placeholder_rows:,} "
                f"({shown}); they are answers and stay text.",
            )


def _repeats(name: str, part: PartAudit) -> Iterator[Finding]:
    if part.exact_repeats:
        yield Finding(
            "note",
            "exact_repeats",
            f"{name}: rows that repeat an earlier text: {len(part.exact_repeats):,}; splits keep them together.",
        )
    if part.near_duplicates:
        differing = sum(not pair.same_label for pair in part.near_duplicates)
        yield Finding(
            "warning" if differing else "note",
            "near_duplicates",
            f"{name}: pairs of different texts that say nearly the same: {len(part.near_duplicates):,}, with "
            f"different labels: {differing:,}.",
        )
    if part.conflicts:
        yield Finding(
            "warning",
            "conflicts",
            f"{name}: texts that occur with different labels: {len(part.conflicts):,}; no model can get all right.",
        )


def _leaks(name: str, part: PartAudit) -> Iterator[Finding]:
    for leak in part.column_leaks:
        if leak.accuracy >= leak.majority + _LEAK_MARGIN:
            yield Finding(
                "warning",
                "column_leaks",
                f'{name}: the column "{leak.column}" alone tells the label in {leak.accuracy:.1%} '
                "of the rows "
                f"(majority {leak.majority:.1%}); keep it out of the text fields.",
            )
    if part.rating_mentions:
        yield Finding(
            "note",
            "rating_mentions",
            f"{name}: reviews that name a rating in the text: {part.rating_mentions:,}.",
        )


def _lengths(name: str, part: PartAudit) -> Iterator[Finding]:
    if part.lengths is None or not part.lengths.truncated_rows:
        return
    fields = ", ".join(f"{field} {rows:,}" for field, rows in part.lengths.cut_rows.items())
    yield Finding(
        "warning" if part.lengths.truncated_share > _TRUNCATED_SHARE else "note",
        "lengths",
        f"{name}: prompts that are cut: {part.lengths.truncated_rows:,} "
        f"({part.lengths.truncated_share:.1%}); "
        f"rows that lose tokens, by field: {fields}.",
    )


def _suspects(name: str, part: PartAudit) -> Iterator[Finding]:
    if part.suspects:
        far = sum(suspect.distance > 1 for suspect in part.suspects)
        yield Finding(
            "warning",
            "suspects",
            f"{name}: labels that contradict a model that did not see them: {len(part.suspects):,} "
            f"({len(part.suspects) / part.rows:.1%}){f', by more than one step: {far:,}' if far else ''}; "
            "read the first ones.",  # two labels are never more than one step apart
        )


def _variants(name: str, part: PartAudit) -> Iterator[Finding]:
    shares = [variant.changed_share for variant in part.rule_variants[1:]]
    if shares:
        yield Finding(
            "note",
            "rule_variants",
            f"{name}: moving one boundary of the label rule by one changes {min(shares):.1%} to "
            f"{max(shares):.1%} "
            "of the labels.",
        )


def _cross(cross: CrossAudit) -> Iterator[Finding]:
    pair = f"{cross.first} and {cross.second}"
    if cross.exact_repeats:
        yield Finding(
            "error",
            "exact_repeats",
            f"{pair}: rows of {cross.second} that repeat a text of {cross.first}: "
            f"{len(cross.exact_repeats):,}; drop "
            f"them before {cross.second} judges a model that learned from {cross.first}.",
        )
    if cross.near_duplicates:
        yield Finding(
            "warning",
            "near_duplicates",
            f"{pair}: pairs of texts across the parts that say nearly the same: {len(cross.near_duplicates):,}.",
        )
    for column, share in cross.shared_groups.items():
        if share:
            yield Finding(
                "note",
                "shared_groups",
                f'{pair}: {share:.1%} of the rows of {cross.second} have a "{column}" that {cross.first} has too.',
            )
    drift = cross.drift
    if drift.p_value < _CHANCE:
        yield Finding(
            "warning",
            "drift",
            f"{pair}: the words differ by {drift.divergence:.4f} bits, by chance "
            f"{drift.divergence_by_chance:.4f} "
            f"(p = {drift.p_value:.2f}).",
        )
