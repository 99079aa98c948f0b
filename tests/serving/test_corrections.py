import sqlite3
import stat
from pathlib import Path

import polars as pl
import pytest

from rxtone.data.reviews import Review, parse_rule, read_reviews
from rxtone.data.tables import read_table
from rxtone.errors import DataError, RecipeError
from rxtone.serving.corrections import (
    CONSENT,
    Correction,
    add_correction,
    corrections_table,
    read_corrections,
    write_corrections,
)

COLUMNS = {"Benefits": "benefitsReview", "Side Effects": "sideEffectsReview"}


def correction(benefits: str, label: str, run: str = "a", time: str = "2026-01-02T03:04:05+00:00") -> Correction:
    review = Review((("Benefits", benefits), ("Side Effects", "none")))
    return Correction(run, review, COLUMNS, "neutral", 0.5, label, time)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "kept" / "corrections.sqlite"
    for one in (
        correction('It "helped", me;\nNone', "positive"),
        correction("Bad.", "negative", run="b"),
        Correction("a", Review((), text="Just text."), {}, "neutral", 0.4, "positive", "2026-01-02T03:04:06+00:00"),
        correction("bad", "neutral"),
    ):
        add_correction(path, one)
    return path


def test_what_is_kept_is_read_back(store: Path) -> None:
    kept = read_corrections(store)
    assert [one.label for one in kept] == ["positive", "negative", "positive", "neutral"]
    assert kept[0] == correction('It "helped", me;\nNone', "positive")
    assert kept[2].review == Review((), text="Just text.")
    assert kept[2].consent == CONSENT
    assert stat.S_IMODE(store.stat().st_mode) == 0o600


def test_the_time_is_utc_by_itself(tmp_path: Path) -> None:
    add_correction(tmp_path / "c", Correction("a", Review((), text="x"), {}, "p", 0.5, "n"))
    time = read_corrections(tmp_path / "c")[0].time
    assert time is not None
    assert time.endswith("+00:00")


def test_the_table_has_the_columns_of_the_training_table_and_the_latest_label(store: Path) -> None:
    table = corrections_table(store)
    # "Bad." and "bad" are the same review; the later correction stands
    assert table.frame.to_dict(as_series=False) == {
        "benefitsReview": ['It "helped", me;\nNone', "bad"],
        "sideEffectsReview": ["none", "none"],
        "label": ["positive", "neutral"],
        "predicted": ["neutral", "neutral"],
        "run": ["a", "a"],
        "time": ["2026-01-02T03:04:05+00:00"] * 2,
    }
    assert (table.repeated, table.free_texts) == (1, 1)
    assert corrections_table(store, run="b").frame["label"].to_list() == ["negative"]
    assert "Just text." in corrections_table(store, free_text_column="benefitsReview").frame["benefitsReview"].to_list()


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_a_recipe_can_read_the_table(store: Path, tmp_path: Path, suffix: str) -> None:
    output = tmp_path / f"more{suffix}"
    write_corrections(corrections_table(store), output)
    rule = parse_rule({"positive": "positive", "neutral": "neutral", "negative": "negative"})
    reviews = read_reviews(read_table(output), COLUMNS, "label", None)
    assert rule.labels == ("positive", "neutral", "negative")
    assert [review.label for review in reviews] == ["positive", "neutral"]
    assert reviews[0].fields == (("Benefits", 'It "helped", me;\nNone'), ("Side Effects", "none"))


def test_a_text_column_named_label_is_not_lost(tmp_path: Path) -> None:
    review = Review((("Label text", "on the box"),))
    add_correction(tmp_path / "c", Correction("a", review, {"Label text": "label"}, "p", 0.5, "n"))
    frame = corrections_table(tmp_path / "c").frame
    assert frame.select("label_text", "label").row(0) == ("on the box", "n")


def test_refusals(store: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found no file"):
        read_corrections(tmp_path / "none")
    (tmp_path / "other").write_text("this is no database, however long it may be")
    with pytest.raises(DataError, match="expected the corrections that `rxtone serve` keeps: file is not a database"):
        read_corrections(tmp_path / "other")
    with pytest.raises(DataError, match="of the run z with fields, found none among 0"):
        corrections_table(store, run="z")
    with pytest.raises(RecipeError, match=r"more\.xlsx: expected a name ending in"):
        write_corrections(corrections_table(store), tmp_path / "more.xlsx")
    with pytest.raises(sqlite3.IntegrityError), sqlite3.connect(store) as database:
        database.execute(
            "INSERT INTO corrections (time, run, predicted, score, label, consent) VALUES ('', '', '', 0, '', '')"
        )
    database.close()


def test_many_writers_at_once(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    path = tmp_path / "c.sqlite"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: add_correction(path, correction(f"number {i}", "positive")), range(40)))
    assert len(read_corrections(path)) == 40
    assert isinstance(corrections_table(path).frame, pl.DataFrame)
