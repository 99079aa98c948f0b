"""The stored notebooks as a reader finds them, without executing anything (`make test-docs` does that)."""

import copy

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
