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

from rxtone.config import cache_dir
from rxtone.data.tables import read_table

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
ELSEWHERE = {
    "README.md": "test_readme.py",
    "docs/interop/notebook.md": "test_interop.py",
    **{f"docs/howto/{path.name}": "test_howto.py" for path in (ROOT / "docs" / "howto").glob("*.md")},
}
"""Pages whose commands another test runs."""
HERE = (
    "CONTRIBUTING.md", "docs/index.md", "docs/clusters.md", "docs/experiments.md", "docs/quality.md",
    "docs/reliability.md", "docs/reference/http.md", "docs/tutorial/index.md",
)  # fmt: skip
RECORDS = ("docs/walk.md", "docs/walk-tutorial.md", "CHANGELOG.md")
"""What was typed once, with what came of it."""
NOT_RUN = {
    # CI installs the same extras with pip (`make setup`); tests/test_supply_chain.py reads the lock.
    "pip install --constraint constraints.txt torch": "installs",
    "pip install --require-hashes --no-deps -r requirements.lock": "installs",
    "pip install --no-deps .": "installs",
    "pip install '.[cluster]'": "installs",
    "python3 -m venv .venv && . .venv/bin/activate": "installs",
    "pip install --constraint constraints.txt '.[serve,export]' jupyterlab": "installs",
    "jupyter lab runs/tutorial": "waits for a reader; tests/docs/run_notebooks.py runs the chapters",
    # Ray has an environment of its own: `make test-extras` runs these on clusters of two nodes.
    "rxtone sweep quick --engine ray": "tests/test_cluster.py",
    "rxtone sweep quick --engine ray --address auto --gpus 1": "tests/test_cluster.py, without a GPU",
    "rxtone sweep quick --engine ray --address HOST:6379 --gpus 0.5": "tests/test_cluster.py, without a GPU",
    "rxtone predict runs/druglib reviews/ -o labelled.parquet --engine ray": "tests/serving/test_bulk_cluster.py",
    "rxtone predict runs/druglib reviews/ -o labelled.parquet --engine ray --address auto --gpus 1": (
        "tests/serving/test_bulk_cluster.py, without a GPU"
    ),
    "rxtone predict runs/druglib reviews/ -o labelled.parquet --engine ray --address HOST:6379 --cpus 4": (
        "tests/serving/test_bulk_cluster.py"
    ),
    **dict.fromkeys(
        (
            "sbatch --nodes=2 deploy/slurm/train.sbatch druglib runs/druglib",
            "sbatch --nodes=4 deploy/slurm/sweep.sbatch tutorial runs/tutorial-study",
            "kubectl apply -f deploy/kuberay/rayjob.yaml",
            "kubectl logs -f job/rxtone-sweep",
        ),
        "nobody, as the page says: tests/test_deploy_clusters.py checks the form of the files",
    ),
    ".venv-extras/bin/python -W ignore -m tests.torture --only cluster-faults": "its short form: make test-extras",
}
"""Lines that CI does not run, and who does; the pages mark with "not run here" what nobody has run."""


def lines_of(page: str) -> list[str]:
    """The lines of a page's shell blocks, comments taken off; what follows a comment "not run here" is left out."""
    text = (ROOT / page).read_text("utf-8")
    found = []
    for block in re.findall(r"^ *```(?:sh|bash|shell|console)\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL):
        waived = False
        for line in block.splitlines():
            if line.strip().startswith("#"):
                waived = "not run here" in line
            elif line.strip():
                found += [] if waived else [re.sub(r"\s+# .*", "", line)]
                waived = False
    return found


def test_no_page_and_no_exception_is_forgotten():
    pages = {str(path.relative_to(ROOT)) for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]}
    shown = {page for page in pages if "_build" not in page and page not in RECORDS and lines_of(page)}
    assert shown - {*ELSEWHERE, *HERE} == set()
    for page, test in ELSEWHERE.items():
        assert (ROOT / page).is_file()
        assert (ROOT / "tests" / test).is_file()
    assert set(NOT_RUN) <= {line for page in HERE for line in lines_of(page)}


@pytest.fixture
def place(tmp_path, monkeypatch, tiny_base) -> Path:
    """A folder with the tables that the pages name and, as `rxtone demo` leaves one, a run of the tiny base."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{BIN}:{os.environ['PATH']}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    shutil.copytree(ROOT / "docs" / "tutorial", "docs/tutorial")
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
    if words[1] == "demo":  # minutes: tests/test_bundled.py trains it; here a run of its kind
        words = ["rxtone", "train", "druglib", *words[2:]]
    doc_commands.run(words, own(tiny_base), monkeypatch, capsys)


def run_other(line: str, words: list[str], place: Path, tiny_base: Path) -> None:
    """What CI does as a whole, its test suite, is only begun here; harnesses make one attempt."""
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
        if line in NOT_RUN:
            continue
        if re.match(r"\w+=", line):
            variables = f"{line}; "
        elif words[0] == "rxtone" and "&" not in words:
            run_rxtone(words, place, tiny_base, monkeypatch, capsys)
        else:
            run_other(variables + line, words, place, tiny_base)
