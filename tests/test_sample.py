"""The bundled sample table: literal counts, schema, and a split that leaks nothing."""

import csv
import re
from collections import Counter
from pathlib import Path

import pytest

import rxtone
from rxtone.data.reviews import Review
from rxtone.data.splits import make_split

SAMPLE = Path(rxtone.__file__).parent / "bundled" / "sample"
# The header of drugLibTrain_raw.tsv: the row id has no name.
HEADER = [
    "",
    "urlDrugName",
    "rating",
    "effectiveness",
    "sideEffects",
    "condition",
    "benefitsReview",
    "sideEffectsReview",
    "commentsReview",
]
TEXTS = ("benefitsReview", "sideEffectsReview", "commentsReview")
EFFECTIVENESS = {f"{level} Effective" for level in ("Marginally", "Moderately", "Considerably", "Highly")} | {
    "Ineffective"
}
SIDE_EFFECTS = {f"{level} Side Effects" for level in ("No", "Mild", "Moderate", "Severe", "Extremely Severe")}


def read(split: str) -> list[dict[str, str]]:
    with (SAMPLE / f"{split}.tsv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", strict=True))


def label_of(row: dict[str, str]) -> str:
    rating = int(row["rating"])
    return "positive" if rating >= 7 else "negative" if rating <= 4 else "neutral"


def words_of(row: dict[str, str]) -> list[str]:
    return re.findall(r"[a-z0-9]+", " ".join(row[name] for name in TEXTS).lower())


TRAIN, TEST = read("train"), read("test")
BOTH = TRAIN + TEST


@pytest.mark.parametrize("split", ["train", "test"])
def test_file_is_written_like_the_original(split: str) -> None:
    raw = (SAMPLE / f"{split}.tsv").read_bytes()
    assert raw.decode("ascii").split("\n", 1)[0] == "\t".join(HEADER)
    assert b"\r" not in raw
    assert raw.endswith(b"\n")


def test_every_row_follows_the_schema() -> None:
    for row in BOTH:
        assert list(row) == HEADER  # a surplus cell would add the key None
        assert all(value is not None and value.strip() == value != "" for value in row.values()), row[""]
        assert row["rating"] in {str(rating) for rating in range(1, 11)}
        assert row["effectiveness"] in EFFECTIVENESS
        assert row["sideEffects"] in SIDE_EFFECTS
        assert re.fullmatch(r"[a-z0-9-]+", row["urlDrugName"])
    assert sorted(int(row[""]) for row in BOTH) == list(range(1, 556))


@pytest.mark.parametrize(
    ("rows", "labels", "ratings"),
    [
        (
            TRAIN,
            {"positive": 181, "neutral": 56, "negative": 95},
            [26, 19, 24, 26, 30, 26, 38, 48, 58, 37],
        ),
        (TEST, {"positive": 121, "neutral": 38, "negative": 64}, [7, 19, 19, 19, 17, 21, 27, 41, 29, 24]),
    ],
    ids=["train", "test"],
)
def test_counts_are_those_of_the_readme(rows: list[dict[str, str]], labels: dict[str, int], ratings: list[int]) -> None:
    assert Counter(map(label_of, rows)) == labels
    counted = Counter(int(row["rating"]) for row in rows)
    assert [counted[rating] for rating in range(1, 11)] == ratings
    readme = (SAMPLE / "README.md").read_text(encoding="utf-8")
    drugs = len({row["urlDrugName"] for row in rows})
    words = sum(len(row[name].split()) for row in rows for name in TEXTS)
    counts = " | ".join(str(labels[name]) for name in ("positive", "neutral", "negative"))
    assert f"| {len(rows)} | {counts} | {drugs} | {words:,} |" in readme
    assert ", ".join(map(str, ratings)) in " ".join(readme.split())


def test_label_shares_are_alike_in_train_and_test() -> None:
    train, test = Counter(map(label_of, TRAIN)), Counter(map(label_of, TEST))
    for name, share in {"positive": 0.544, "neutral": 0.169, "negative": 0.286}.items():
        assert train[name] / 332 == pytest.approx(share, abs=0.003)
        assert test[name] / 223 == pytest.approx(share, abs=0.003)


def test_drugs_and_conditions_are_many() -> None:
    assert len({row["urlDrugName"] for row in BOTH}) == 381
    assert len({row["condition"] for row in BOTH}) == 459


def test_no_drug_and_no_text_is_on_both_sides_of_the_split() -> None:
    assert {row["urlDrugName"] for row in TRAIN}.isdisjoint(row["urlDrugName"] for row in TEST)
    assert len({" ".join(words_of(row)) for row in BOTH}) == 555


def test_the_split_was_cut_by_the_seed_not_by_hand() -> None:
    rows = sorted(BOTH, key=lambda row: int(row[""]))
    reviews = [
        Review(tuple((name, row[name]) for name in TEXTS), label=label_of(row), group=row["urlDrugName"])
        for row in rows
    ]
    cut = make_split(reviews, validation_fraction=0.1, test_fraction=0.4, seed=0)
    assert {rows[index][""] for index in cut.test} == {row[""] for row in TEST}


def test_no_two_reviews_are_nearly_alike() -> None:
    # Shared runs of six words, as a share of the shorter review: 0.05 at most, a turn of phrase.
    runs = [{tuple(words[i : i + 6]) for i in range(len(words) - 5)} for words in (words_of(row) for row in BOTH)]
    owners: dict[tuple[str, ...], list[int]] = {}
    for row, found in enumerate(runs):
        for run in found:
            owners.setdefault(run, []).append(row)
    shared = Counter((a, b) for rows in owners.values() for n, a in enumerate(rows) for b in rows[n + 1 :])
    worst = max(count / min(len(runs[a]), len(runs[b])) for (a, b), count in shared.items())
    assert 0 < worst < 0.05


def test_none_is_an_answer_and_the_text_is_varied() -> None:
    none = [Counter(row[name] for row in BOTH if row[name].lower() in {"none", "n/a"}) for name in TEXTS]
    assert [sum(counts.values()) for counts in none] == [3, 16, 9]
    lengths = sorted(sum(len(row[name].split()) for name in TEXTS) for row in BOTH)
    assert lengths[0] < 12
    assert lengths[-1] > 250
    assert sum(40 <= length <= 150 for length in lengths) / 555 > 0.88
    assert sum(any(len(row[name].split()) >= 150 for name in TEXTS) for row in BOTH) == 10
    assert sum("\n" in row[name] for row in BOTH for name in TEXTS) == 11
    assert sum('"' in row[name] for row in BOTH for name in TEXTS) == 26
