import csv
import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rxtone.data.delimited import read_delimited
from rxtone.errors import DataError

# What a UTF-8 file can hold: no lone surrogates; NUL is refused.
cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
tables = st.integers(1, 4).flatmap(
    lambda width: st.lists(st.lists(cells, min_size=width, max_size=width), min_size=1, max_size=5)
)


@given(tables, st.sampled_from([",", "\t"]), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_what_the_csv_module_writes_is_read_back(
    rows: list[list[str]], delimiter: str, line_end: str, bom: bool
) -> None:
    header = [f"column {i}" for i in range(len(rows[0]))]
    out = io.StringIO(newline="")
    # Before Python 3.13 the writer leaves a lone \r unquoted where lines end in \n.
    quoting = csv.QUOTE_MINIMAL if line_end == "\r\n" else csv.QUOTE_ALL
    csv.writer(out, delimiter=delimiter, lineterminator=line_end, quoting=quoting).writerows([header, *rows])
    data = out.getvalue().encode("utf-8-sig" if bom else "utf-8")
    frame = read_delimited(data, "t", delimiter)
    assert frame.columns == header
    assert [list(row) for row in frame.rows()] == rows


def test_cells_are_kept_as_they_are_written() -> None:
    data = b'\ta\tb\r\n1\t"x \r\r\ny ""q"""\tNone\r\n2\tn/a\t007\r\n3\t\t""\r\n'
    frame = read_delimited(data, "t", "\t")
    assert frame.columns == ["row_id", "a", "b"]
    assert frame.rows() == [("1", 'x \r\r\ny "q"', "None"), ("2", "n/a", "007"), ("3", "", "")]


def test_blank_lines_are_no_rows() -> None:
    assert read_delimited(b"a,b\n\n1,2\n\n\n3,4\n\n", "t", ",").rows() == [("1", "2"), ("3", "4")]


def test_an_unnamed_first_column_gets_a_free_name() -> None:
    assert read_delimited(b",row_id,a\n1,2,3\n", "t", ",").columns == ["row_id_0", "row_id", "a"]


def test_a_ten_megabyte_cell_is_read() -> None:
    frame = read_delimited(b"a,b\n" + b"x" * 10_000_000 + b",1\n", "t", ",")
    assert frame["a"].str.len_bytes().to_list() == [10_000_000]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            b"a,b\n1\n1,2\n1,2,3\n",
            "expected 2 cells in every row, as in the header (2): data row 1 has 1; data row 3 has 3",
        ),
        (b"a,b\n1,\xff\n", 'data row 1, column "b", holds the byte 0xff, which is not UTF-8 text'),
        (b'a,b\n"x\n,y",1\n"z\n\xe9', 'data row 2, column "a", holds the byte 0xe9'),
        (b"a,\xe9\n1,2\n", "the header, column 2, holds the byte 0xe9"),
        (b"\xe9", "the header, column 1, holds the byte 0xe9"),
        (b"a,b\n1,2\n3,x\0y\n", 'data row 2, column "b", holds a NUL character'),
        (b"a,b\n1,2,\xff", "data row 1, column 3, holds the byte 0xff"),
        ("a,b\n1,2\n".encode("utf-16"), "expected UTF-8, found UTF-16; save the file as UTF-8 text"),
        (b'a,b\n1,"2\n', "data row 1 (up to line 2) is broken: unexpected end of data"),
        (b'a,b\n1,2\n3,"4"x\n', "data row 2 (up to line 3) is broken: ',' expected after '\"'"),
        (b'"a', "the header (up to line 1) is broken"),
        (b"", "expected a header and at least one data row, found only blank lines"),
        (b"\n\r\n", "expected a header and at least one data row, found only blank lines"),
        (b"a,a\n1,2\n", 'expected different column names (1): "a" names columns 1 and 2'),
        (b"a,,b,\n1,2,3,4\n", "expected a name for every column (2): column 2 has none; column 4 has none"),
        (b",b, \n1,2,3\n", "expected a name for every column (1): column 3 has none"),
    ],
)
def test_a_bad_file_is_refused_by_its_place(data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        read_delimited(data, "my.csv", ",")
    assert str(caught.value).startswith("my.csv: ")


@given(
    st.binary(max_size=60) | st.text('a,"\n\r\t\0é\ufeff', max_size=30).map(str.encode),
    st.sampled_from([",", "\t"]),
)
def test_any_bytes_are_read_or_refused(data: bytes, delimiter: str) -> None:
    try:
        frame = read_delimited(data, "t", delimiter)
    except DataError:
        return
    assert frame.width >= 1
    assert frame.null_count().row(0) == (0,) * frame.width
