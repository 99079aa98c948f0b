import datetime as dt
import io
import json
import random
import re
from decimal import Decimal

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rxtone.data.records import read_jsonl, read_parquet, text_frame
from rxtone.errors import DataError


def parquet(frame: pl.DataFrame) -> bytes:
    out = io.BytesIO()
    frame.write_parquet(out)
    return out.getvalue()


def test_json_lines_become_text() -> None:
    data = (
        b'{"a": "None", "n": 7, "f": 7.0, "h": 7.50, "t": true, "z": null}\n\n'
        + '{"a": "é\u2028x", "late": -1e400, "n": 123456789012345678901234567890}\r\n'.encode()
    )
    frame = read_jsonl(data, "t")
    assert frame.columns == ["a", "n", "f", "h", "t", "z", "late"]
    assert frame.rows() == [
        ("None", "7", "7", "7.50", "true", None, None),
        ("é\u2028x", "123456789012345678901234567890", None, None, None, None, "-1e400"),
    ]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"a": 1}\n{"a": \n', "data row 2 is no valid JSON"),
        (
            b'{"a": 1}\n[1]\n"x"\n3',
            "(3): data row 2 is no object; data row 3 is no object; data row 4 is no object",
        ),
        (b'{"a": {"b": 1}}\n{"a": [1]}', "(2): data row 1 has a nested value; data row 2 has a nested value"),
        (b'{"a": 1, "a": 2}', "data row 1 has two values for one key"),
        (b'{"a": NaN}', "data row 1 is no valid JSON"),
        (b'{"a": Infinity}', "data row 1 is no valid JSON"),
        (rb'{"a": "\ud800"}', "data row 1 holds an escape that is no character"),
        (rb'{"a\u0000": 1}', "data row 1 holds an escape that is no character"),
        (b"[" * 100_000, "data row 1 is no valid JSON"),
        (b'{"a": 1}\n{"a": "\xff"}', "line 2 holds the byte 0xff, which is not UTF-8 text"),
        (b'{"a": 1}\n{"a": "\0"}', "line 2 holds a NUL character"),
        (b'{"": 1}', "expected a name for every column (1): column 1 has none"),
    ],
)
def test_bad_json_lines_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        read_jsonl(data, "my.jsonl")
    assert str(caught.value).startswith("my.jsonl: ")


text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)


@given(st.lists(st.dictionaries(text.filter(str.strip), st.none() | text), min_size=1, max_size=4), st.booleans())
def test_text_survives_json_lines(rows: list[dict[str, str | None]], escape: bool) -> None:
    data = "\n".join(json.dumps(row, ensure_ascii=escape) for row in rows).encode()
    frame = read_jsonl(data, "t")
    for row, cells in zip(rows, frame.rows(named=True), strict=False):
        assert {key: cell for key, cell in cells.items() if key in row} == row
        assert all(cell is None for key, cell in cells.items() if key not in row)


@given(st.binary(max_size=40) | st.text('{}[]":,0\\ud8\n', max_size=30).map(str.encode))
def test_any_bytes_are_json_lines_or_refused(data: bytes) -> None:
    try:
        assert all(kind == pl.String for kind in read_jsonl(data, "t").dtypes)
    except DataError:
        return


def test_parquet_columns_become_text() -> None:
    frame = pl.DataFrame(
        {
            "text": ["None", None],
            "int": [7, 10],
            "float": [7.0, 7.5],
            "narrow": pl.Series([0.1, 100.0], dtype=pl.Float32),
            "flag": [True, False],
            "day": [dt.date(2026, 1, 2), None],
            "time": [dt.datetime(2026, 1, 2, 3, 4, 5), None],
            "price": pl.Series([Decimal("7.00"), Decimal("100.50")], dtype=pl.Decimal(6, 2)),
            "kind": pl.Series(["a", "b"], dtype=pl.Categorical),
            "none": [None, None],
        }
    )
    read = read_parquet(parquet(frame), "t")
    assert set(read.dtypes) == {pl.String}
    assert read.rows() == [
        ("None", "7", "7", "0.1", "true", "2026-01-02", "2026-01-02 03:04:05.000000", "7", "a", None),
        (None, "10", "7.5", "100", "false", None, None, "100.5", "b", None),
    ]


def test_nested_and_binary_columns_are_refused() -> None:
    frame = pl.DataFrame({"ok": [1], "list": [[1]], "bytes": [b"x"], "struct": [{"a": 1}]})
    with pytest.raises(DataError) as caught:
        text_frame(frame, "t.parquet")
    assert 'expected columns of text, numbers or dates (3): column "list" is List(Int64); ' in str(caught.value)


def test_what_is_no_whole_parquet_file_is_refused() -> None:
    whole = parquet(pl.DataFrame({"a": ["x" * 50, "y"]}))
    for data in (b"", whole[:-1], whole[4:]):
        with pytest.raises(DataError, match="no whole Parquet file"):
            read_parquet(data, "t.parquet")


@pytest.mark.parametrize("seed", range(4))
def test_damaged_parquet_neither_crashes_nor_prints(seed: int, capfd: pytest.CaptureFixture[str]) -> None:
    frame = pl.DataFrame({"a": ["x" * 50, "y", None] * 20, "b": [1.5, 2.5, 3.0] * 20, "c": range(60)})
    damaged = bytearray(parquet(frame))
    generator = random.Random(seed)
    for _ in range(8):
        damaged[generator.randrange(4, len(damaged) - 4)] = generator.randrange(256)
    with pytest.raises(DataError, match=r"t\.parquet: this Parquet file is damaged; write or copy it again"):
        read_parquet(bytes(damaged), "t.parquet")
    assert capfd.readouterr() == ("", "")


def test_a_length_that_no_memory_holds_is_refused() -> None:
    # A footer length beyond the file.
    with pytest.raises(DataError, match="damaged"):
        read_parquet(b"PAR1" + b"\xff" * 8 + b"PAR1", "t.parquet")
