import json
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rxtone.data.tables import read_table
from rxtone.errors import DataError
from rxtone.serving.bulk_inputs import Source, read_chunks, resolve_inputs

CELLS = st.text(alphabet=st.sampled_from(list("ab,\"'\t\r\n é\u2028\x85\ufeff=")), max_size=6)
PIECES = st.sampled_from(
    [b"a", b",", b"\t", b'"', b'""', b"\n", b"\r\n", b"\r", b" ", "é".encode(), b"\xff", b"\0", b"\xef\xbb\xbf"]
)
LINES = st.sampled_from(
    [b'{"a": "x"}', b'{"b": 7.0, "a": "\xc3\xa9"}', b'{"a": null}', b"{}", b"[]", b"7", b'{"a": "x", "a": "y"}',
     b'{"": "x"}', b'{"a": [1]}', b'{"a": "\xff"}', b'{"a": "\\ud800"}', b'{"a": NaN}', b"  ", b"", b'{"a": "\x00"}',
     "\u2028".encode(), '{"a": "\u2028"}'.encode(), b'{"a": true}\r', b"\xef\xbb\xbf{}"]
)  # fmt: skip
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def whole(path: Path, chunk_rows: int) -> tuple[pl.DataFrame | None, int]:
    """All good rows, and how many were rejected for another reason than that they have no text."""
    source = Source(path.name, path)
    columns = dict.fromkeys(
        name for chunk in read_chunks(source, [], chunk_rows) for name in chunk.frame.columns
    )  # fmt: skip
    chunks = list(read_chunks(source, list(columns), chunk_rows, list(columns)))
    bad = [row for chunk in chunks for row in chunk.rejected if not row.reason.startswith("expected text in")]
    numbers = [row.row for chunk in chunks for row in chunk.rejected]
    assert numbers == sorted(set(numbers))
    return (pl.concat([chunk.frame for chunk in chunks]) if chunks else None), len(bad)


def agree(path: Path, chunk_rows: int) -> None:
    """Where the whole table is accepted the chunks hold its rows with text; where it is refused, so are they."""
    try:
        expected = read_table(path).frame
    except DataError:
        try:
            frame, bad = whole(path, chunk_rows)
        except DataError:
            return
        assert bad or frame is None or not frame.height
        return
    frame, bad = whole(path, chunk_rows)
    assert not bad
    has_text = [any((cell or "").strip() for cell in row) for row in expected.iter_rows()]
    assert frame.rows() == expected.filter(pl.Series(has_text, dtype=pl.Boolean)).rows()
    assert frame.columns == expected.columns


@quick
@given(st.lists(PIECES, max_size=14), st.integers(1, 3), st.sampled_from([".csv", ".tsv"]))
def test_any_bytes_are_read_as_the_whole_table_is(tmp_path, pieces, chunk_rows, suffix):
    path = tmp_path / f"in{suffix}"
    path.write_bytes(b"x,y\n".replace(b",", b"," if suffix == ".csv" else b"\t") + b"".join(pieces))
    agree(path, chunk_rows)


@quick
@given(st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=6), st.integers(1, 3))
def test_written_tables_are_read_as_the_whole_table_is(tmp_path, rows, chunk_rows):
    path = tmp_path / "in.csv"
    pl.DataFrame(rows, schema={"x": pl.String, "y": pl.String}, orient="row").write_csv(path)
    agree(path, chunk_rows)


@quick
@given(st.lists(LINES, max_size=7), st.integers(1, 3))
def test_any_json_lines_are_read_as_the_whole_table_is(tmp_path, lines, chunk_rows):
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\n".join(lines))
    agree(path, chunk_rows)


@pytest.mark.parametrize("row_group", [3, 7, 1000])
def test_parquet_is_cut_evenly_whatever_its_row_groups(tmp_path, row_group):
    path = tmp_path / "in.parquet"
    frame = pl.DataFrame(
        {"a": [f"r{i}" for i in range(23)], "n": [i / 2 for i in range(23)], "b": [True, None] * 11 + [None]}
    )
    frame.write_parquet(path, row_group_size=row_group)
    chunks = list(read_chunks(Source("in.parquet", path), ["a"], 5))
    assert [chunk.rows for chunk in chunks] == [5, 5, 5, 5, 3]
    assert pl.concat([chunk.frame for chunk in chunks]).equals(read_table(path).frame)


def test_a_quote_that_is_never_closed_is_told_before_memory_runs_out(tmp_path, monkeypatch):
    import csv

    before = csv.field_size_limit(1000)
    monkeypatch.setattr("rxtone.serving.bulk_readers.LONGEST_CELL", 1000)
    path = tmp_path / "in.csv"
    path.write_text('x,y\na,b\n"a' + "word,word\n" * 1000, "utf-8")
    try:
        with pytest.raises(DataError, match=r"data row 2 \(up to line .* is broken: field larger than field limit"):
            list(read_chunks(Source("in.csv", path), ["x"], 5))
    finally:
        csv.field_size_limit(before)


def test_named_sets_and_files_are_inputs(tmp_path):
    (tmp_path / "a.csv").write_text("x\n1\n", "utf-8")
    (tmp_path / "b [1].csv").write_text("x\n1\n", "utf-8")
    out = tmp_path / "out.csv"
    sample, one, two = resolve_inputs(["sample:test", str(tmp_path / "b [1].csv"), str(tmp_path / "[a].csv")], out)
    assert (sample.name, sample.suffix) == ("sample:test", ".tsv")
    assert [one.path.name, two.path.name] == ["b [1].csv", "a.csv"]
    chunks = list(read_chunks(sample, ["benefitsReview", "sideEffectsReview", "commentsReview"], 50))
    assert sum(chunk.rows for chunk in chunks) == read_table("sample:test").frame.height


def test_hub_sets_are_read_in_chunks(tmp_path):
    pytest.importorskip("datasets")
    (tmp_path / "train.jsonl").write_text("".join(json.dumps({"x": f"t{i}"}) + "\n" for i in range(7)), "utf-8")
    chunks = list(read_chunks(Source(f"hf:{tmp_path}:train", None), ["x"], 3))
    assert [chunk.rows for chunk in chunks] == [3, 3, 1]


@pytest.mark.parametrize("chunk_rows", [1, 2])
def test_a_byte_order_mark_within_a_file_is_refused_wherever_a_chunk_begins(tmp_path, chunk_rows):
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"a": "x"}\n\xef\xbb\xbf{"a": "y"}\n')
    chunks = list(read_chunks(Source(path.name, path), ["a"], chunk_rows))
    assert [row.row for chunk in chunks for row in chunk.rejected] == [2]
