import hashlib
import re
from pathlib import Path

import polars as pl
import pytest

from rxtone.data.tables import Table, read_table
from rxtone.errors import DataError


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("t.csv", b"a,b\nNone,7\n,n/a\n"),
        ("t.TSV", b"a\tb\r\nNone\t7\r\n\tn/a\r\n"),
        ("t.jsonl", b'{"a": "None", "b": 7.0}\n{"a": "", "b": "n/a"}\n'),
    ],
)
def test_formats_agree(tmp_path: Path, name: str, data: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    table = read_table(path)
    assert table.path == str(path)
    assert table.frame.rows() == [("None", "7"), ("", "n/a")]
    assert table.frame.schema == {"a": pl.String, "b": pl.String}
    assert table.sha256 == hashlib.sha256(data).hexdigest()


def test_parquet_is_read(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pl.DataFrame({"a": ["None", None], "b": [7.0, 7.5]}).write_parquet(path)
    assert read_table(str(path)).frame.rows() == [("None", "7"), (None, "7.5")]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("t.txt", b"a", 'expected a .csv, .tsv, .jsonl or .parquet file, found the suffix ".txt"'),
        ("t", b"a", "expected a .csv, .tsv, .jsonl or .parquet file, found no suffix"),
        ("t.csv", None, "there is no such file; check the path"),
        ("t.csv", b"", "expected a header and at least one data row, found only blank lines"),
        ("t.csv", b"a,b\n", "expected at least one data row, found none"),
        ("t.jsonl", b"\n", "expected at least one data row, found none"),
        ("t.parquet", b"", "this is no whole Parquet file"),
    ],
)
def test_a_bad_source_is_refused(tmp_path: Path, name: str, data: bytes | None, message: str) -> None:
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        read_table(path)
    assert caught.value.exit_code == 3
    assert str(caught.value).startswith(f"{path}: ")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found a folder; name a file in it"):
        read_table(tmp_path)


def test_a_path_that_no_system_takes_is_refused() -> None:
    with pytest.raises(DataError, match=r"cannot be read|no such file"):
        read_table("a\0b.csv")
    with pytest.raises(DataError, match="cannot be read"):
        read_table("x" * 5000 + ".csv")


def test_parquet_with_nul_or_without_rows_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pl.DataFrame({"a": ["x", "y\0", None]}).write_parquet(path)
    with pytest.raises(DataError, match=re.escape('NUL characters (1): data row 2, column "a"')):
        read_table(path)
    pl.DataFrame({"a": []}, schema={"a": pl.String}).write_parquet(path)
    with pytest.raises(DataError, match="found none"):
        read_table(path)


def test_the_druglib_file_is_read_to_the_byte(druglib_table: Table) -> None:
    # Published facts of the file: 3,107 reviews; the digest is that of the UCI archive's train file.
    assert druglib_table.sha256 == "b55635b01264a55f10f2b3c6071b25513461e2c071851c3b72b51e359ab29d5c"
    assert druglib_table.frame.shape == (3107, 9)
    assert druglib_table.frame.columns == [
        "row_id", "urlDrugName", "rating", "effectiveness", "sideEffects", "condition", "benefitsReview",
        "sideEffectsReview", "commentsReview",
    ]  # fmt: skip
    assert druglib_table.frame.row(0)[:4] == ("2202", "enalapril", "4", "Highly Effective")
    assert druglib_table.frame.null_count().row(0) == (0,) * 9
    assert not any((druglib_table.frame[column] == "").any() for column in druglib_table.frame.columns)
    counts = dict(druglib_table.frame["rating"].value_counts().rows())
    assert [counts[str(rating)] for rating in range(1, 11)] == [
        305,
        103,
        146,
        107,
        159,
        157,
        350,
        558,
        480,
        742,
    ]


def test_answers_that_look_like_missing_values_stay_text(druglib_table: Table) -> None:
    answers = ["None", "n/a", "NA"]
    found = {
        column: int(druglib_table.frame[column].is_in(answers).sum())
        for column in ("sideEffectsReview", "benefitsReview", "commentsReview")
    }
    assert found == {"sideEffectsReview": 75, "benefitsReview": 18, "commentsReview": 12}


def test_line_breaks_and_replacement_characters_stay(druglib_table: Table) -> None:
    text = druglib_table.frame.select(pl.concat_str(pl.all())).to_series()
    # The file holds 1,419 times \r\r\n and 46 times U+FFFD, and no other character beyond ASCII.
    assert int(text.str.count_matches("\r\r\n", literal=True).sum()) == 1419
    assert int(text.str.count_matches("\ufffd", literal=True).sum()) == 46
    assert int(text.str.contains("\ufffd", literal=True).sum()) == 20
    assert not text.str.contains(r"[^\x00-\x7f\x{fffd}]").any()
