import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.pages import markdown, rewrite

MARKERS = ("<!-- a -->", "<!-- b -->")


def test_a_table_has_a_rule_under_its_head():
    assert markdown(("x", "y"), [("1", "2")]) == "| x | y |\n|---|---|\n| 1 | 2 |"


def test_only_what_stands_between_the_markers_changes(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- a -->\nold\n<!-- b -->\nafter\n")
    rewrite(page, MARKERS, "new")
    rewrite(page, MARKERS, "newer")
    assert page.read_text() == "before\n<!-- a -->\nnewer\n<!-- b -->\nafter\n"


def test_a_page_without_markers_is_refused_and_left(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("nothing here")
    with pytest.raises(SystemExit, match="expected the markers <!-- a --> and <!-- b -->"):
        rewrite(page, MARKERS, "x")
    assert page.read_text() == "nothing here"
