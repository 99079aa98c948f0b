"""The stored notebooks as a reader finds them, without executing anything (`make test-docs` does that)."""

import copy
import re

import numpy as np
import pytest
from docs.run_notebooks import ALL_BYTES, NOTEBOOK_BYTES, TUTORIAL, faults, read

NOTEBOOKS = sorted(TUTORIAL.glob("*.ipynb"))


def code(source, *outputs, count=1):
    return {"cell_type": "code", "source": source, "metadata": {}, "execution_count": count, "outputs": list(outputs)}


def printed(text, name="stdout"):
    return {"output_type": "stream", "name": name, "text": [text]}


GOOD = {
    "cells": [
        {"cell_type": "markdown", "source": ["# A title"], "metadata": {}},
        code('# Colab\nBASE = "bundled"\n'),
        code("print(1)", printed("1\n")),
    ]
}


def test_there_are_nine_chapters_in_order():
    assert [path.name[:2] for path in NOTEBOOKS] == [f"{number}-" for number in range(1, 10)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_stored_notebook_can_be_read_without_running_it(path):
    notebook = read(path)
    assert faults(notebook) == []
    assert path.stat().st_size <= NOTEBOOK_BYTES
    exercises = [cell for cell in notebook["cells"] if "answer = ..." in "".join(cell["source"])]
    solutions = [cell for cell in notebook["cells"] if "hide-cell" in cell["metadata"].get("tags", [])]
    assert 2 <= len(exercises) <= 4
    assert len(solutions) == len(exercises)
    for cell in exercises:
        assert cell["outputs"][0]["text"] == ["no answer yet\n"]
    for cell in solutions:
        assert cell["outputs"][-1]["text"][-1] == "right\n"


def cells_of(path):
    return ["".join(cell["source"]) for cell in read(path)["cells"] if cell["cell_type"] == "code"]


def check_of(path):
    """`check` as the set-up cell defines it, without the imports of the cell."""
    names = {"np": np}
    exec(cells_of(path)[0].partition("class TryAgain")[1] + cells_of(path)[0].partition("class TryAgain")[2], names)
    return names["check"], names["TryAgain"]


def test_every_chapter_has_the_same_set_up_cell():
    assert len({cells_of(path)[0] for path in NOTEBOOKS}) == 1


@pytest.mark.parametrize(
    ("answer", "right", "said"),
    [
        (5, 12, "5 is too small"),
        (54.3, 0.543, "54.3 is too large"),
        ([40, 10, 40], [10, 40, 40], "[40, 10, 40] is not right"),
        (True, False, "True is not right"),
        ("12", 12, "'12': expected a number"),
        ([1, 2], [1, 2, 3], "[1, 2]: expected a list of 3 numbers"),
        ([12], 12, "[12]: expected a number"),
        (None, 12, "None: expected a number"),
    ],
)
def test_a_wrong_answer_is_told_in_one_line_that_does_not_show_the_right_one(answer, right, said):
    check, try_again = check_of(NOTEBOOKS[0])
    with pytest.raises(try_again) as caught:
        check(answer, right)
    assert str(caught.value) == said
    assert caught.value._render_traceback_() == [said]  # what Jupyter shows


def test_a_right_answer_is_told_and_three_dots_are_none(capsys):
    check, _ = check_of(NOTEBOOKS[0])
    for answer, right in ((12, 12), (0.5, 0.504), ([1, 2], [1, 2]), (np.float32(2), 2), (False, False), (..., 12)):
        check(answer, right, tolerance=0.005)
    assert capsys.readouterr().out == "right\n" * 5 + "no answer yet\n"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_chapter_can_be_run_again(path):
    """A run and an export want a new folder, so a cell removes what it left there before."""
    for source in cells_of(path):
        made = re.findall(r'(?:rxtone\.train\(|rxtone export ).*?(?:out=(f?"[^"]+")|-o (\w+))', source, re.DOTALL)
        for quoted, word in made:
            assert f"shutil.rmtree({quoted or repr(word)}".replace("'", '"') in source


def test_all_together_stay_small():
    assert sum(path.stat().st_size for path in NOTEBOOKS) <= ALL_BYTES


def test_a_good_notebook_has_no_faults():
    assert faults(GOOD) == []


@pytest.mark.parametrize(
    ("output", "fault"),
    [
        (printed("in /home/someone/run\n"), "cell 2: an absolute path is stored: 'in /home/someone/run\\n'"),
        (printed("Traceback (most recent call last)\n"), "cell 2: a traceback is stored"),
        (printed("careful\n", "stderr"), "cell 2: a warning is stored: 'careful\\n'"),
        ({"output_type": "error", "ename": "ValueError"}, "cell 2: an error is stored: ValueError"),
        (
            {"output_type": "display_data", "data": {"image/png": "QUJD"}, "metadata": {}},
            "cell 2: a picture without alt text; show it with picture(figure, alt)",
        ),
        (
            {"output_type": "display_data", "data": {"image/png": "A" * 120_000},
             "metadata": {"image/png": {"alt": "a line"}}},
            "cell 2: a picture of 90,000 bytes, at most 80,000 are allowed",
        ),
    ],
)  # fmt: skip
def test_what_must_not_be_stored_is_named(output, fault):
    notebook = copy.deepcopy(GOOD)
    notebook["cells"][2]["outputs"] = [output]
    assert faults(notebook) == [fault]


def test_a_relative_path_and_an_address_are_no_faults():
    notebook = copy.deepcopy(GOOD)
    notebook["cells"][2]["outputs"] = [printed("runs/first/adapter https://example.org/home/ and/or 3/4\n")]
    assert faults(notebook) == []


def test_a_missing_title_set_up_or_execution_is_named():
    cells = [code("print(1)", count=None), code("print(2)")]
    assert faults({"cells": cells}) == [
        "cell 0: expected a title",
        'cell 1: expected the set-up cell, with BASE = "bundled"',
        "cell 0: not executed",
    ]
