import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from rxtone.data.audit import Audit, AuditPart, audit
from rxtone.data.prompts import Prompt
from rxtone.data.reviews import Review, parse_rule, read_reviews
from rxtone.data.tables import Table
from rxtone.errors import DataError

RULE = parse_rule({"good": ">=4", "bad": "<=3"})
FIELDS = {"Text": "text"}
LONG = "this drug worked very well for my back pain and i will take it again next {}"


def part_of(texts: list[str], stars: list[str], drugs: list[str]) -> AuditPart:
    frame = pl.DataFrame({"drug": drugs, "text": texts, "stars": stars})
    table = Table("my.csv", frame, "0" * 64)
    return AuditPart(table, read_reviews(table, FIELDS, "stars", RULE))


def audit_of(**parts: AuditPart) -> Audit:
    return audit(parts, text_fields=FIELDS, label_column="stars", rule=RULE, group_columns=["drug"])


TRAIN = part_of(
    [LONG.format("year"), "None", "bad stuff", "BAD stuff!", "fine", "no good"],
    ["5", "4", "1", "4", "5", "2"],
    ["x", "x", "y", "y", "x", "z"],
)
TEST = part_of([LONG.format("month"), "Fine.", "new words here"], ["5", "5", "1"], ["x", "y", "w"])


def test_a_part_is_described() -> None:
    part = audit_of(train=TRAIN).parts["train"]
    assert part.rows == 6
    assert part.label_counts == {"good": 4, "bad": 2}
    assert [(pair.first_row, pair.second_row) for pair in part.exact_repeats] == [(3, 4)]
    assert part.conflicts == [(3, 4)]
    assert part.fields[0].placeholders == {"None": 1}
    assert part.lengths is part.suspects is None
    assert [leak.column for leak in part.column_leaks] == ["drug"]
    assert part.groups[0].largest["x"] == {"good": 3}
    assert [variant.name for variant in part.rule_variants] == [
        "the rule of the recipe",
        "good from 3 instead of 4",
        "good from 5 instead of 4",
    ]


def test_parts_are_compared() -> None:
    [cross] = audit_of(train=TRAIN, test=TEST).across
    assert (cross.first, cross.second) == ("train", "test")
    assert [(pair.first_row, pair.second_row) for pair in cross.exact_repeats] == [(5, 2)]
    # 17 words, the last differs: 14 shared triples of 16.
    assert [(p.first_row, p.second_row, p.similarity) for p in cross.near_duplicates] == [(1, 1, 0.875)]
    assert cross.shared_groups == {"drug": 0.666667}
    assert 0 < cross.drift.divergence < 1


def test_findings_are_words_with_the_gravest_first() -> None:
    findings = audit_of(train=TRAIN, test=TEST).findings
    levels = [finding.level for finding in findings]
    assert levels == sorted(levels, key=["error", "warning", "note"].index)
    texts = [finding.text for finding in findings]
    assert texts[0] == (
        "train and test: rows of test that repeat a text of train: 1; drop them before test judges a model "
        "that learned from train."
    )
    assert "train: texts that occur with different labels: 1; no model can get all right." in texts
    assert (
        'train: answers in Text that look like missing values: 1 ("None" 1); they are answers and stay text.' in texts
    )


def test_prompts_and_probabilities_add_lengths_and_suspects() -> None:
    prompts = [Prompt((1,) * 5, 5)] * 5 + [Prompt((1,) * 5, 8, {"Text": 4})]
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.05, 0.95], [0.9, 0.1], [0.1, 0.9]])
    found = audit_of(train=replace(TRAIN, prompts=prompts, probabilities=probabilities))
    part = found.parts["train"]
    assert part.lengths is not None
    assert (part.lengths.truncated_rows, part.lengths.cut_tokens) == (1, {"Text": 4})
    assert part.suspects is not None
    assert [(suspect.row, suspect.label, suspect.suggested) for suspect in part.suspects] == [(4, "good", "bad")]
    assert part.rule_variants[0].accuracy == 0.833333
    # Of two labels none is more than one step from the other, so steps are not spoken of.
    said = "train: labels that contradict a model that did not see them: 1 (16.7%); read the first ones."
    assert said in [finding.text for finding in found.findings]


def test_an_audit_is_json() -> None:
    found = audit_of(train=TRAIN, test=TEST)
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert list(data) == ["labels", "parts", "across", "findings"]
    assert data["parts"]["train"]["label_counts"] == {"good": 4, "bad": 2}
    assert data["across"][0]["exact_repeats"][0]["second_row"] == 2


def test_no_finding_repeats_a_review() -> None:
    canary = "Jane Canary of Elm Street took it twice"
    part = part_of([canary, canary, "x"], ["5", "1", "1"], ["a", "a", "b"])
    assert not any("Canary" in finding.text for finding in audit_of(train=part, test=part).findings)


def test_a_label_without_rows_is_an_error() -> None:
    table = Table("my.csv", pl.DataFrame({"text": ["x"], "stars": ["5"], "drug": ["a"]}), "0" * 64)
    part = AuditPart(table, read_reviews(table, FIELDS, "stars", RULE, every_label=False))
    assert audit_of(train=part).findings[0].text == 'train: no row has the label "bad".'


def test_a_part_that_is_a_share_of_its_table_is_audited_alone() -> None:
    part = audit_of(train=replace(TRAIN, reviews=TRAIN.reviews[4:])).parts["train"]
    assert part.label_counts == {"good": 1, "bad": 1}
    assert part.fields[0].placeholders == {}
    assert part.groups[0].largest == {"x": {"good": 1}, "z": {"bad": 1}}


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(DataError, match="train: expected at least one review to audit, found none"):
        audit_of(train=replace(TRAIN, reviews=[]))
    with pytest.raises(DataError, match="train: expected 6 prompts, found 1"):
        audit_of(train=replace(TRAIN, prompts=[Prompt((1,), 1)]))
    with pytest.raises(DataError, match=r"expected out-of-fold probabilities of shape \(6, 2\)"):
        audit_of(train=replace(TRAIN, probabilities=np.ones((6, 3)) / 3))


def test_druglib_tells_its_labels_in_two_other_columns(druglib_reviews: list[Review], druglib_table: Table) -> None:
    fields = {"Benefits": "benefitsReview", "Side Effects": "sideEffectsReview", "Comments": "commentsReview"}
    rule = parse_rule({"positive": ">=7", "neutral": "5..6", "negative": "<=4"})
    found = audit(
        {"train": AuditPart(druglib_table, druglib_reviews)},
        text_fields=fields,
        label_column="rating",
        rule=rule,
    )
    leaks = {leak.column: round(leak.accuracy, 3) for leak in found.parts["train"].column_leaks}
    # The patient's own answers; measured on the published train file.
    assert {name: leaks[name] for name in ("effectiveness", "sideEffects")} == {
        "effectiveness": 0.806,
        "sideEffects": 0.795,
    }
    warned = [finding.text for finding in found.findings if finding.subject == "column_leaks"]
    assert len(warned) == 2
