import json
import os
import random
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from tiny import write_tiny_table

from rxtone.classifier import Classifier
from rxtone.data.tables import read_table
from rxtone.errors import DataError, RecipeError, RunError
from rxtone.loading import load
from rxtone.serving.bulk import BulkDone, ChunkDone, check_output, predict_table, predict_tables
from rxtone.serving.bulk_rows import with_predictions

ADDED = ["label", "score", "p_positive", "p_neutral", "p_negative", "truncated", "abstained"]
SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")


@pytest.fixture(scope="module")
def classifier(tiny_run: Path) -> Classifier:
    return load(tiny_run)


def finish(events) -> tuple[list[ChunkDone], BulkDone]:
    *chunks, done = events
    assert isinstance(done, BulkDone)
    assert all(isinstance(chunk, ChunkDone) for chunk in chunks)
    return chunks, done


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("out_suffix", SUFFIXES)
def test_chunks_give_the_rows_of_the_whole_table(classifier, tmp_path, suffix, out_suffix):
    source = write_tiny_table(tmp_path / "in.csv", 70)
    frame = pl.read_csv(source, infer_schema=False)
    given = tmp_path / f"given{suffix}"
    {".csv": lambda: frame.write_csv(given), ".tsv": lambda: frame.write_csv(given, separator="\t"),
     ".jsonl": lambda: frame.write_ndjson(given), ".parquet": lambda: frame.write_parquet(given)}[suffix]()  # fmt: skip
    out, whole = tmp_path / f"out{out_suffix}", tmp_path / f"whole{out_suffix}"
    chunks, done = finish(predict_tables(classifier, [str(given)], out, chunk_rows=30))
    predict_table(classifier, str(source), whole)
    assert [(chunk.rows, chunk.done_rows, chunk.total_rows) for chunk in chunks] == [
        (30, 30, 70),
        (30, 60, 70),
        (10, 70, 70),
    ]
    assert (done.rows, done.rejected, done.rejected_path) == (70, 0, None)
    got, expected = read_table(out).frame, read_table(whole).frame
    assert got.columns == ["rating", "benefits", "effects", *ADDED]
    exact = ["rating", "benefits", "effects", "label", "truncated", "abstained"]
    assert got.select(exact).equals(expected.select(exact))
    # The batches differ, so the kernels may differ in the last bits.
    for name in ("score", "p_positive", "p_neutral", "p_negative"):
        assert (got[name].cast(pl.Float64) - expected[name].cast(pl.Float64)).abs().max() < 1e-6
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({"in.csv", given.name, out.name, whole.name})


def test_bad_rows_are_named_and_the_rest_is_labelled(classifier, tmp_path):
    source = tmp_path / "in.csv"
    source.write_bytes(
        b"benefits,effects\n"
        b"great relief,none\n"
        b"secret words,b,c\n"  # row 2: three cells
        b"\n"  # a blank line is no row
        b"secret \xff words,none\n"  # row 3: a byte that is not UTF-8
        b" ,\t\n"  # row 4: no text
        b'"awful\r\npain",\n'
        b"secret\x00words,none\n"  # row 6: NUL
    )
    out = tmp_path / "out.csv"
    _, done = finish(predict_tables(classifier, [str(source)], out, chunk_rows=2))
    assert (done.rows, done.rejected) == (2, 4)
    assert read_table(out).frame["benefits"].to_list() == ["great relief", "awful\r\npain"]
    assert done.rejected_path == tmp_path / "out.csv.rejected.jsonl"
    text = done.rejected_path.read_text("utf-8")
    assert "secret" not in text
    assert [json.loads(line) for line in text.splitlines()] == [
        {"input": str(source), "row": 2, "reason": "expected 2 cells, as in the header, found 3"},
        {"input": str(source), "row": 3, "reason": 'column "benefits" holds a byte that is not UTF-8 text'},
        {"input": str(source), "row": 4, "reason": 'expected text in at least one of "benefits", "effects"'},
        {"input": str(source), "row": 6, "reason": 'column "benefits" holds a NUL character'},
    ]
    write_tiny_table(source, 3)
    _, done = finish(predict_tables(classifier, [str(source)], out))
    assert done.rejected_path is None
    assert not (tmp_path / "out.csv.rejected.jsonl").exists()


def test_bad_json_lines_are_named(classifier, tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_bytes(
        b'\xef\xbb\xbf{"benefits": "great", "effects": null}\n'
        b'{"benefits": "secret", "effects": ["x"]}\n'
        b"   \n"
        b'{"benefits": "secret"\n'
        b'{"benefits": "secret \xff", "effects": ""}\n'
        b"{}\n"
        b'{"benefits": "secret", "effects": "\\u0000"}\n'
        b'{"effects": "awful", "extra": 7.0}'
    )
    out = tmp_path / "out.jsonl"
    _, done = finish(predict_tables(classifier, [str(source)], out))
    rows = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert [(row["benefits"], row["effects"], row["extra"]) for row in rows] == [
        ("great", None, None),
        (None, "awful", "7"),
    ]
    assert done.rejected == 5
    text = done.rejected_path.read_text("utf-8")
    assert "secret" not in text
    reasons = {row["row"]: row["reason"] for row in map(json.loads, text.splitlines())}
    assert reasons == {
        2: "expected one flat JSON object; it has a nested value",
        3: "expected one flat JSON object; it is no valid JSON",
        4: "expected one flat JSON object; it holds the byte 0xff, which is not UTF-8 text",
        5: 'expected text in at least one of "benefits", "effects"',
        6: "expected one flat JSON object; it holds an escape that is no character (\\u0000, \\ud800)",
    }


def test_strict_stops_before_the_work(classifier, tmp_path):
    source = tmp_path / "in.csv"
    source.write_text("benefits,effects\ngreat,none\n,\nsecret\n", "utf-8")
    with pytest.raises(DataError, match=r"2 faults[\s\S]*data row 2[\s\S]*data row 3") as caught:
        list(predict_tables(classifier, [str(source)], tmp_path / "out.csv", strict=True))
    assert "secret" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("in.csv", b'benefits,effects\na,b\n"open,b\nc,d\n', r"data row 2 \(up to line 4\) is broken"),
        ("in.csv", b"benefits,effects\n", "expected at least one data row"),
        ("in.csv", b"", "expected a header"),
        ("in.csv", "benefits,effects\na,b\n".encode("utf-16"), "found UTF-16"),
        ("in.csv", b"benefits,benefits\na,b\n", "different column names"),
        ("in.csv", b"benefit,effects\na,b\n", r'the column "benefits" \(is it "benefit"\?\)'),
        ("in.tsv", b"\xff\n", "the header, column 1, holds the byte 0xff"),
        ("in.jsonl", '{"benefits": "a"}'.encode("utf-16"), "found UTF-16"),
        ("in.jsonl", b'{"benefits": "a"}\n', '"effects"'),
        ("in.parquet", b"PAR1 nothing PAR1", "damaged"),
        ("in.parquet", b"", "no whole Parquet file"),
        ("in.xlsx", b"", "expected a .csv"),
    ],
)  # fmt: skip
def test_a_table_that_cannot_be_read_stops_before_the_work(classifier, tmp_path, name, content, message):
    source = tmp_path / name
    source.write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(predict_tables(classifier, [str(source)], tmp_path / "out.csv"))
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_folders_and_patterns_are_one_table_in_order(classifier, tmp_path):
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    (folder / "b.csv").write_text("benefits,effects\nsecond,x\n", "utf-8")
    (folder / "a.jsonl").write_text('{"effects": "x", "benefits": "first"}\n', "utf-8")
    (folder / "sub" / "c.tsv").write_text("effects\tbenefits\nx\tthird\n", "utf-8")
    (folder / ".hidden.csv").write_text("no table", "utf-8")
    (folder / "notes.txt").write_text("no table", "utf-8")
    out = folder / "out.csv"
    for _ in range(2):  # the second time the output is there, and is no input
        chunks, done = finish(predict_tables(classifier, [str(folder), str(folder / "*.csv")], out))
        assert [Path(chunk.source).name for chunk in chunks] == ["a.jsonl", "b.csv", "c.tsv"]
        assert done.rows == 3
        assert read_table(out).frame["benefits"].to_list() == ["first", "second", "third"]


def test_inputs_that_do_not_fit_are_refused(classifier, tmp_path):
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    one.write_text("benefits,effects,x\na,b,c\n", "utf-8")
    two.write_text("benefits,effects,y\na,b,c\n", "utf-8")
    out = tmp_path / "out.csv"
    with pytest.raises(DataError, match='only one of both has "x", "y"'):
        list(predict_tables(classifier, [str(one), str(two)], out))
    with pytest.raises(DataError, match="is also the output"):
        list(predict_tables(classifier, [str(one)], one))
    with pytest.raises(DataError, match="there is none"):
        list(predict_tables(classifier, [str(tmp_path / "*.parquet")], out))
    with pytest.raises(RecipeError, match="does not exist"):
        list(predict_tables(classifier, [str(one)], tmp_path / "no" / "out.csv"))
    with pytest.raises(RecipeError, match="--safe-cells"):
        list(predict_tables(classifier, [str(one)], tmp_path / "out.jsonl", safe_cells=True))


def test_an_own_column_named_as_an_added_one_is_kept(classifier, tmp_path):
    source = tmp_path / "in.csv"
    source.write_text("label,input_label,benefits,effects\n1,2,great,none\n", "utf-8")
    out = tmp_path / "out.csv"
    list(predict_tables(classifier, [str(source)], out))
    frame = read_table(out).frame
    assert frame.columns == ["input_input_label", "input_label", "benefits", "effects", *ADDED]
    assert frame.row(0)[:2] == ("1", "2")


HOSTILE = [
    "=1+1",
    "+cmd|' /C calc'!A0",
    "-2+3",
    "@SUM(A1)",
    " =1",
    "\t=1",
    "\r=1",
    "＝1",
    "a;=1",
    "-3",
    "+.5e2",
    "'quoted",
    'say "hi"',
]


def test_cells_are_lossless_by_default_and_inert_on_request(classifier, tmp_path):
    source = tmp_path / "in.csv"
    pl.DataFrame({"benefits": HOSTILE, "effects": ["great"] * len(HOSTILE), "=h": [""] * len(HOSTILE)}).write_csv(
        source
    )
    raw, safe = tmp_path / "raw.csv", tmp_path / "safe.csv"
    list(predict_tables(classifier, [str(source)], raw))
    assert read_table(raw).frame["benefits"].to_list() == HOSTILE
    list(predict_tables(classifier, [str(source)], safe, safe_cells=True))
    frame = read_table(safe).frame
    assert frame.columns[2] == "'=h"
    assert frame["benefits"].to_list() == [
        "'=1+1", "'+cmd|' /C calc'!A0", "'-2+3", "'@SUM(A1)", "' =1", "'\t=1", "'\r=1", "'＝1", "a;=1", "-3", "+.5e2",
        "'quoted", 'say "hi"',
    ]  # fmt: skip
    # In quotes, so that a program which splits at ; finds no formula either.
    assert '"a;=1"' in safe.read_text("utf-8")


def test_a_stopped_job_goes_on_and_another_job_is_refused(classifier, tmp_path):
    source = write_tiny_table(tmp_path / "in.csv", 50)
    out = tmp_path / "out.csv"
    events = predict_tables(classifier, [str(source)], out, chunk_rows=20)
    assert next(events).resumed is False
    other = predict_tables(classifier, [str(source)], out, chunk_rows=20)
    with pytest.raises(RunError, match="another process is writing it"):
        next(other)
    events.close()
    assert not out.exists()
    with pytest.raises(RunError, match=r"another job \(the rows per part differ\)"):
        next(predict_tables(classifier, [str(source)], out, chunk_rows=10))
    chunks, done = finish(predict_tables(classifier, [str(source)], out, chunk_rows=20))
    assert [(chunk.resumed, chunk.seconds_left is None) for chunk in chunks] == [
        (True, True),
        (False, False),
        (False, False),
    ]
    assert done.rows == 50
    assert read_table(out).frame["benefits"].to_list() == read_table(source).frame["benefits"].to_list()

    next(predict_tables(classifier, [str(source)], out, chunk_rows=20))
    write_tiny_table(source, 50, seed=2)
    with pytest.raises(RunError, match=r"another job \(the inputs differ\)"):
        next(predict_tables(classifier, [str(source)], out, chunk_rows=20))
    chunks, _ = finish(predict_tables(classifier, [str(source)], out, chunk_rows=20, restart=True))
    assert not any(chunk.resumed for chunk in chunks)


def test_the_least_confidence_marks_and_belongs_to_the_job(classifier, tmp_path):
    source, out = write_tiny_table(tmp_path / "in.csv", 50), tmp_path / "out.csv"
    next(predict_tables(classifier, [str(source)], out, chunk_rows=20))
    with pytest.raises(RunError, match=r"another job \(the least confidence differ\)"):
        next(predict_tables(classifier, [str(source)], out, chunk_rows=20, min_confidence=1.0))
    finish(predict_tables(classifier, [str(source)], out, chunk_rows=20, min_confidence=1.0, restart=True))
    frame = read_table(out).frame
    assert set(frame["abstained"]) == {"true"}
    for row in frame.iter_rows(named=True):
        assert row["score"] == row[f"p_{row['label']}"]


def test_an_input_that_changes_meanwhile_is_no_output(classifier, tmp_path):
    source = write_tiny_table(tmp_path / "in.csv", 50)
    events = predict_tables(classifier, [str(source)], tmp_path / "out.csv", chunk_rows=20)
    next(events)
    os.utime(source, (1, 1))
    with pytest.raises(RunError, match="changed while it was read"):
        list(events)
    assert not (tmp_path / "out.csv").exists()


def run_killed(run: Path, tmp_path: Path, kills: int) -> None:
    source = write_tiny_table(tmp_path / "in.csv", 400)
    lines = source.read_text("utf-8").splitlines()
    for row in random.Random(5).sample(range(1, 400), 30):
        lines[row] = "too,few"
    source.write_text("\n".join(lines) + "\n", "utf-8")
    out = tmp_path / "out.csv"
    script = Path(__file__).with_name("bulk_killed.py")
    answer = subprocess.run(
        [sys.executable, str(script), str(run), str(source), str(out), str(kills), "1"],
        capture_output=True, text=True, check=False, timeout=900,
        env=os.environ | {"PYTHONWARNINGS": "ignore", "POLARS_MAX_THREADS": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert answer.stdout.strip() == str(kills), answer.stderr
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    good = [line.split(",")[1:3] for line in lines[1:] if line != "too,few"]
    assert [list(row) for row in read_table(out).frame.select("benefits", "effects").iter_rows()] == good
    refused = (tmp_path / "out.csv.rejected.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["row"] for line in refused] == [i for i, line in enumerate(lines) if line == "too,few"]
    assert {path.name for path in tmp_path.iterdir()} == {
        "in.csv", "out.csv", "whole.csv", "out.csv.rejected.jsonl", "whole.csv.rejected.jsonl"
    }  # fmt: skip


def test_killed_at_random_every_row_is_there_once(tiny_run, tmp_path):
    run_killed(tiny_run, tmp_path, 5)


@pytest.mark.torture
def test_killed_a_hundred_times_every_row_is_there_once(tiny_run, tmp_path):
    run_killed(tiny_run, tmp_path, 100)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["in.csv", "-o", "OUT", "--engine", "dask"], "--engine: expected local or ray, got 'dask'"),
        (["--text", "great", "--engine", "ray"], "--engine ray labels tables; leave it out with --text"),
        (["in.csv", "-o", "OUT", "--engine", "ray"], "--engine ray: ray is not installed; install rxtone[cluster]"),
    ],
)
def test_engines_that_cannot_be_had_are_refused_before_the_work(call, monkeypatch, tmp_path, options, message):
    monkeypatch.setitem(sys.modules, "ray", None)  # as where it is not installed
    words = [str(tmp_path / "out.csv") if word == "OUT" else word for word in options]
    code, _, err = call("predict", "no-such-run", *words)
    assert (code, err) == (2, f"error: {message}\n")
    assert list(tmp_path.iterdir()) == []


def test_check_output_names_the_formats(tmp_path):
    with pytest.raises(RecipeError, match=r"expected a name ending in .csv, .tsv, .jsonl, .parquet, got .xlsx"):
        check_output(tmp_path / "out.xlsx")


def test_no_predictions_give_the_columns():
    frame = with_predictions(pl.DataFrame(schema={"a": pl.String}), [], ("yes", "no"))
    assert frame.columns == ["a", "label", "score", "p_yes", "p_no", "truncated", "abstained"]
