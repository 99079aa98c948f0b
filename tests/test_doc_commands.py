"""The commands of the pages that no other test runs, as a reader would type them; and that no page is forgotten."""

import importlib.util
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
    "docs/reliability.md", "docs/reference/http.md", "docs/tutorial/index.md", "docs/benchmarks/README.md",
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


def test_ci_makes_what_the_pages_make():
    """The targets of `.ci/run` and what they stand on; the long ones are exceptions with a reason."""
    makefile = (ROOT / "Makefile").read_text("utf-8")
    made = (ROOT / ".ci" / "run").read_text("utf-8").splitlines()[-1].split()[1:]
    assert {"test", "test-docs", "test-extras", "docs"} <= set(made)
    made += [name for target in made for name in re.search(rf"^{target}:(.*)$", makefile, re.MULTILINE)[1].split()]
    told = (ROOT / "CONTRIBUTING.md").read_text("utf-8").split("## What CI does not run")[1].split("\n## ")[0]
    targets = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split()
    assert set(targets) - set(made) == set(re.findall(r"`make ([\w-]+)`", told))
    for page in (*ELSEWHERE, *HERE):
        for line in lines_of(page):
            if line.startswith("make ") and line not in NOT_RUN:
                assert set(line.split()[1:]) <= set(made), line


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
        case ["python", "-m", "benchmarks", "--quick"]:
            (place / "shared").symlink_to(ROOT.parent / "shared")
            (place / "rxtone").mkdir()
            shell(f"PYTHONPATH={ROOT} {line} --threads 1", place / "rxtone")
            assert (place / "rxtone" / "docs" / "benchmarks" / "work-small.md").is_file()
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
        if line == "python -m benchmarks --quick" and not (ROOT.parent / "shared").is_dir():
            pytest.skip("needs ../shared: real reviews")
        if re.match(r"\w+=", line):
            variables = f"{line}; "
        elif words[0] == "rxtone" and "&" not in words:
            run_rxtone(words, place, tiny_base, monkeypatch, capsys)
        else:
            run_other(variables + line, words, place, tiny_base)


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray: make test-extras has it")
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_every_command_for_ray_runs(place, tiny_base, tiny_run, tiny_table, monkeypatch, capsys):
    """On a node that promises a GPU, which only Ray's bookkeeping asks for: the work falls back to the CPU."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # a cluster that Ray starts here switches this process to tokens
    from ray.cluster_utils import Cluster

    resources = {"num_cpus": 4, "num_gpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=resources)
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)  # "the one that runs here", should there be two
    shutil.copytree(tiny_run, "runs/druglib")
    Path("reviews").mkdir()
    shutil.copy(tiny_table, "reviews")
    ran = []
    try:
        for line in (line for page in HERE for line in lines_of(page) if RAY in line):
            shutil.rmtree("runs/sweep-quick", ignore_errors=True)
            Path("labelled.parquet").unlink(missing_ok=True)
            words = shlex.split(line.replace("HOST:6379", cluster.address))
            doc_commands.run(words, own(tiny_base), monkeypatch, capsys)
            ran.append(words[1])
            assert Path("labelled.parquet" if words[1] == "predict" else "runs/sweep-quick/best.yaml").is_file()
    finally:
        cluster.shutdown()
    assert ran == ["sweep"] * 3 + ["predict"] * 3
