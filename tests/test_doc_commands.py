"""The commands of the pages that no other test runs, as a reader would type them; and that no page is forgotten."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import doc_commands
import pytest
from doc_commands import NOT_RUN, ROOT, lines_of

from rxtone.config import cache_dir
from rxtone.data.tables import read_table

BIN = Path(sys.executable).parent
ELSEWHERE = {
    "README.md": "test_readme.py",
    **dict.fromkeys(("docs/interop/autotrain.md", "docs/interop/notebook.md"), "test_interop.py"),
    **{f"docs/howto/{path.name}": "test_howto.py" for path in (ROOT / "docs" / "howto").glob("*.md")},
}
"""Pages whose commands another test runs."""
HERE = (
    "CONTRIBUTING.md", "docs/index.md", "docs/clusters.md", "docs/experiments.md", "docs/quality.md",
    "docs/reliability.md", "docs/reference/http.md", "docs/tutorial/index.md",
)  # fmt: skip
RECORDS = ("docs/walk.md", "docs/walk-tutorial.md", "CHANGELOG.md")
"""What was typed once, with what came of it."""
RAY = "--engine ray"
"""What the lines have in common that need Ray, which has an environment of its own: `make test-extras`."""


def test_no_page_and_no_exception_is_forgotten():
    pages = {str(path.relative_to(ROOT)) for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]}
    shown = {page for page in pages if "_build" not in page and page not in RECORDS and lines_of(page)}
    assert shown - {*ELSEWHERE, *HERE} == set()
    for page, test in ELSEWHERE.items():
        assert (ROOT / page).is_file()
        assert (ROOT / "tests" / test).is_file()
    assert set(NOT_RUN) <= {line for page in shown for line in lines_of(page)}


@pytest.fixture
def place(tmp_path, monkeypatch, tiny_run) -> Path:
    """A folder with the tables that the pages name and, where `rxtone demo` leaves one, a run of the tiny base."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{BIN}:{os.environ['PATH']}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    shutil.copytree(ROOT / "docs" / "tutorial", "docs/tutorial")
    shutil.copytree(tiny_run, "runs/demo")
    read_table("sample:train", cache_dir()).frame.head(240).write_csv("reviews.csv")
    return tmp_path


def own(tiny_base: Path) -> list[str]:
    return ["--set", f"model.base={tiny_base}", "--set", "data.train=reviews.csv", "--set", "data.test=null"]


def shell(line: str, folder: Path) -> None:
    done = subprocess.run(["bash", "-c", line], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, (line, done.stdout, done.stderr)


def run_rxtone(words: list[str], place: Path, tiny_base: Path, monkeypatch, capsys) -> None:
    if words[1] == "serve":
        doc_commands.serve(words, place)
        return
    doc_commands.run(words, own(tiny_base), monkeypatch, capsys)


def run_other(line: str, words: list[str], place: Path, tiny_base: Path) -> None:
    """Of what make does only the steps are asked, and of pytest the tests; harnesses make one attempt."""
    match words:
        case ["make", *rest]:
            shell(f"make --dry-run {shlex.join(rest)}", ROOT)
        case [".venv/bin/pytest", *rest]:
            shell(f"pytest --collect-only -q {shlex.join(rest)}", ROOT)
        case [".venv/bin/python", *rest]:
            shell(f"python {shlex.join(rest)} --attempts 1 --out {place}/torture.json", ROOT)
        case ["python", "-m", module, study]:
            shell(f"PYTHONPATH={ROOT} python -m {module} {study} --print", place)
        case ["torchrun", *_]:
            shell(shlex.join([*words, *own(tiny_base), *doc_commands.BRIEF]), place)
        case ["curl", *_]:
            said = doc_commands.serve(["rxtone", "serve", "druglib-mini"], place, line)
            assert json.loads(said)[0]["label"] == "positive"
        case _:
            shell(line, place)


@pytest.mark.parametrize("page", HERE)
def test_every_command_of_a_page_runs(page, place, tiny_base, monkeypatch, capsys):
    variables = ""
    for line in lines_of(page):
        words = shlex.split(line)
        if RAY in line or (line in NOT_RUN and words[0] != "make"):
            continue
        if re.match(r"\w+=", line):
            variables = f"{line}; "
        elif words[0] == "rxtone" and "&" not in words:
            run_rxtone(words, place, tiny_base, monkeypatch, capsys)
        else:
            run_other(variables + line, words, place, tiny_base)
