import re

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rxtone.data.reviews import Review, dedupe_key, parse_rule, read_reviews
from rxtone.data.tables import Table
from rxtone.errors import DataError, RecipeError

RULE = parse_rule({"good": ">=4", "bad": "<=3"})


def table_of(**columns: list[str | None]) -> Table:
    return Table("my.csv", pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.String)), "0" * 64)


def test_rows_become_reviews_with_fields_in_the_order_of_the_recipe() -> None:
    table = table_of(a=["None", "x\r\r\ny"], b=["n/a", None], stars=["5.0", "1"], drug=[" zoloft ", ""])
    assert read_reviews(table, {"Second": "b", "First": "a"}, "stars", RULE, group_by="drug") == [
        Review(fields=(("Second", "n/a"), ("First", "None")), label="good", group="zoloft", row=1),
        Review(fields=(("Second", ""), ("First", "x\r\r\ny")), label="bad", group=None, row=2),
    ]


def test_labels_may_be_unknown_or_taken_as_they_are() -> None:
    table = table_of(a=["x", "y"], stars=[" up ", "down"])
    assert [review.label for review in read_reviews(table, {"A": "a"}, None, RULE)] == [None, None]
    assert [review.label for review in read_reviews(table, {"A": "a"}, "stars", None)] == ["up", "down"]


def test_all_faults_of_a_table_are_told_at_once() -> None:
    table = table_of(
        a=["x"] * 11 + [" ", "x", "x"], b=["y"] * 11 + ["", "y", "y"], stars=["n/a"] * 11 + ["5", " ", "3.5"]
    )
    with pytest.raises(DataError) as caught:
        read_reviews(table, {"A": "a", "B": "b"}, "stars", RULE)
    listed = "; ".join(f"data row {row} has 'n/a'" for row in range(1, 11))
    assert str(caught.value) == (
        "my.csv: 14 faults; nothing was read.\n"
        f'  column "stars": expected a number (11): {listed}; and 1 more\n'
        "    what to do: correct or remove these rows\n"
        "  column \"stars\": expected a label value, found a blank (1): data row 13 has ' '\n"
        "    what to do: fill in or remove these rows\n"
        '  column "stars": expected a value that a rule covers (good: >=4, bad: <=3) (1): '
        "data row 14 has '3.5'\n"
        "    what to do: extend data.label.rule in the recipe, or remove these rows\n"
        '  expected text in at least one of "a", "b" (1): data row 12\n'
        "    what to do: remove these rows, or name the column that holds the text"
    )


@pytest.mark.parametrize("value", ["11 stars", "nan", "inf", "seven", "1_0"])
def test_what_is_no_number_is_quoted(value: str) -> None:
    with pytest.raises(DataError, match=re.escape(f"expected a number (1): data row 2 has '{value}'")):
        read_reviews(table_of(a=["x", "y"], stars=["5", value]), {"A": "a"}, "stars", RULE)


def test_missing_columns_are_named_with_the_nearest_present_one() -> None:
    with pytest.raises(DataError) as caught:
        read_reviews(table_of(reveiw=["x"], stars=["5"]), {"A": "review", "B": "zzz"}, "stars", RULE)
    assert str(caught.value) == (
        'my.csv: expected columns "review" (is it "reveiw"?), "zzz", found "reveiw", "stars"; correct '
        "data.text_fields, data.label.column or data.group_by in the recipe, or the header of the table."
    )
    with pytest.raises(DataError, match='expected the column "drug", found'):
        read_reviews(table_of(a=["x"], stars=["5"]), {"A": "a"}, "stars", RULE, group_by="drug")


def test_a_label_without_rows_is_refused_where_all_are_needed() -> None:
    table = table_of(a=["x"], stars=["5"])
    with pytest.raises(DataError, match='expected rows of every label, found none of "bad" in column "stars"'):
        read_reviews(table, {"A": "a"}, "stars", RULE)
    assert read_reviews(table, {"A": "a"}, "stars", RULE, every_label=False)[0].label == "good"


@pytest.mark.parametrize("fields", [{}, {" ": "a"}])
def test_fields_need_names(fields: dict[str, str]) -> None:
    with pytest.raises(RecipeError, match=re.escape("data.text_fields: expected at least one field")):
        read_reviews(table_of(a=["x"], stars=["5"]), fields, "stars", RULE)


def test_no_message_repeats_a_review() -> None:
    canary = "The patient Jane Canary of Elm Street told everyone about this."
    with pytest.raises(DataError) as caught:
        read_reviews(table_of(a=[canary, " "], stars=["5", "1"]), {"A": "stars", "B": "stars"}, "a", RULE)
    assert "Canary" not in str(caught.value)
    assert "data row 1 has a text of 63 characters" in str(caught.value)


def test_keys_ignore_case_punctuation_white_space_and_fields() -> None:
    key = dedupe_key(Review(fields=(("A", "No side-effects."), ("B", "GREAT  drug!"))))
    assert key == "no side effects great drug"
    assert key == dedupe_key(Review(text="no side effects\r\ngreat, drug"))
    assert key == dedupe_key(Review(text="Ｎｏ side_effects great drug"))


def test_keys_keep_what_carries_meaning() -> None:
    keys = {dedupe_key(Review(text=text)) for text in ("good 👍", "good 👎", "good +", "good", "good 7")}
    assert len(keys) == 5
    assert dedupe_key(Review(text="...")) == "..."
    assert dedupe_key(Review(text="...")) != dedupe_key(Review(text="!!!"))


@given(st.text(max_size=30))
def test_keys_are_stable(text: str) -> None:
    key = dedupe_key(Review(text=text))
    assert key == " ".join(key.split())
    assert dedupe_key(Review(text=f" {text}\n")) == key
    if key and key.isalnum():
        assert dedupe_key(Review(text=key)) == key


def test_the_druglib_labels_and_repeats(druglib_reviews: list[Review]) -> None:
    # Ratings of 7 and more, 5 and 6, 4 and less of the published train file.
    labels = [review.label for review in druglib_reviews]
    assert {label: labels.count(label) for label in ("positive", "negative", "neutral")} == {
        "positive": 2130,
        "negative": 661,
        "neutral": 316,
    }
    assert len(druglib_reviews) - len({dedupe_key(review) for review in druglib_reviews}) == 31
    assert druglib_reviews[0].group == "enalapril"
    assert [name for name, _ in druglib_reviews[0].fields] == ["Benefits", "Side Effects", "Comments"]
