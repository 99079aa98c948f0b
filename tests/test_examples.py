"""The examples run as they stand; only the number of steps is cut, and the places are those of the test."""

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import polars as pl
import pytest
import yaml

from rxtone.config import load_recipe

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
BRIEF = [
    "train.max_steps=1",
    "evaluation.baselines=false",
    "evaluation.zero_shot=false",
    "evaluation.reload_check=false",
]
QUEUES = ["billing", "bug", "access", "question"]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the examples in it, to work in."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(EXAMPLES, folder / "examples")
    return folder


@pytest.fixture(scope="module")
def script(checkout: Path) -> subprocess.CompletedProcess[str]:
    """The script, run."""
    return run([sys.executable, "examples/script.py", *BRIEF], checkout)


def run(command: list[str], folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, with this environment's `rxtone` and `python` first on the path."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path} | variables
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def rows(name: str) -> list[dict[str, str]]:
    with (EXAMPLES / "tickets" / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_script_has_fifteen_lines_and_runs(checkout, script):
    assert len((EXAMPLES / "script.py").read_text("utf-8").splitlines()) == 15
    assert script.returncode == 0, script.stderr
    first, *answers = script.stdout.splitlines()
    assert re.fullmatch(r"macro-F1 0\.\d{3} on 20 tickets", first)
    assert len(answers) == 2
    assert all(answer.split()[0] in QUEUES for answer in answers)
    assert (checkout / "runs" / "tickets" / "evaluation" / "report.html").is_file()


def test_the_tickets_are_what_is_said_of_them():
    train, test = rows("train.csv"), rows("test.csv")
    assert (len(train), len(test)) == (52, 20)
    assert Counter(row["queue"] for row in train) == dict.fromkeys(QUEUES, 13)
    assert Counter(row["queue"] for row in test) == dict.fromkeys(QUEUES, 5)
    messages = [row["message"] for row in train + test]
    assert len({message.lower() for message in messages}) == 72
    assert len({tuple(message.lower().split()[:3]) for message in messages}) == 72  # no two begin alike
    recipe = load_recipe(EXAMPLES / "tickets" / "recipe.yaml")
    assert list(recipe.data.label.rule) == QUEUES


@pytest.mark.usefixtures("script")
def test_the_gate_fails_with_exit_code_4_and_holds_with_0(checkout):
    """The gate takes up the script's run: the same recipe, finished, is not trained again."""
    gate = ["sh", "examples/ci/gate.sh", "examples/tickets/recipe.yaml", "examples/tickets/test.csv"]
    brief = [word for override in BRIEF for word in ("--set", override)]
    failed = run([*gate, "1", *brief], checkout, OUT="runs/tickets")
    assert failed.returncode == 4, failed.stderr
    figures = json.loads((checkout / "runs" / "tickets" / "gate.json").read_text("utf-8"))
    assert failed.stderr.endswith(
        f"error: macro-F1 {figures['macro_f1']:.4f} on 20 reviews is below --min-macro-f1 1.0\n"
    )
    held = run([*gate, "0", *brief], checkout, OUT="runs/tickets")
    assert held.returncode == 0, held.stderr
    missing = run(["sh", "examples/ci/gate.sh"], checkout)
    assert missing.returncode == 2
    assert "name the recipe" in missing.stderr


def test_the_workflow_runs_the_gate_of_this_checkout():
    workflow = yaml.safe_load((EXAMPLES / "ci" / "github-actions.yaml").read_text("utf-8"))
    commands = [step["run"] for step in workflow["jobs"]["macro-f1"]["steps"] if "run" in step]
    install, gate = map(shlex.split, commands)
    assert install == ["pip", "install", "--constraint", "constraints.txt", "."]
    assert gate[0] == "sh"
    assert all((ROOT / path).is_file() for path in gate[1:4])
    assert 0 < float(gate[4]) < 1


def test_the_nightly_job_labels_what_is_new_and_goes_on_after_a_bad_table(checkout, tiny_run):
    inbox, outbox = checkout / "inbox", checkout / "outbox"
    inbox.mkdir()
    (inbox / "a.csv").write_text("benefits,effects\ngreat relief,none\n", "utf-8")
    (inbox / "b.csv").write_text("wrong,columns\n1,2\n", "utf-8")
    (inbox / "c.csv").write_text("benefits,effects\nawful,worse\npartly,some\n", "utf-8")
    job = ["sh", "examples/bulk/nightly.sh", str(tiny_run), str(inbox), str(outbox), "--min-confidence", "0.5"]
    first = run(job, checkout)
    assert first.returncode == 3
    assert "b.csv" in first.stderr
    assert sorted(path.name for path in outbox.iterdir()) == ["a.parquet", "c.parquet"]
    labelled = pl.read_parquet(outbox / "c.parquet")
    assert labelled["effects"].to_list() == ["worse", "some"]
    assert labelled.columns[-2:] == ["truncated", "abstained"]
    (inbox / "b.csv").unlink()
    times = {path: path.stat().st_mtime_ns for path in outbox.iterdir()}
    again = run(job, checkout)
    assert (again.returncode, again.stderr) == (0, "")
    assert {path: path.stat().st_mtime_ns for path in outbox.iterdir()} == times


def test_the_units_name_the_job_and_the_line_for_cron_is_the_same():
    service = (EXAMPLES / "bulk" / "rxtone-nightly.service").read_text("utf-8")
    start = re.search(r"^ExecStart=(.*)$", service, re.M)[1].split()
    cron = re.search(r"^#   30 2 \* \* \* (.*)$", service, re.M)[1].split()
    assert start[0] == "/bin/sh"
    assert start[1].endswith("/examples/bulk/nightly.sh")
    assert cron[1:] == start[1:5]
    timer = (EXAMPLES / "bulk" / "rxtone-nightly.timer").read_text("utf-8")
    assert "OnCalendar=*-*-* 02:30\n" in timer
