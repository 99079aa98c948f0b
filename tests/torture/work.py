"""Bulk work that is killed, and what leaves the process: nothing."""

import os
import random
import subprocess
import sys
from pathlib import Path

from tiny import write_tiny_table

from torture.figure import Figure, World

CANARY = "zebrafish quokka narwhal"
KILLER = Path(__file__).parents[1] / "serving" / "bulk_killed.py"


def bulk_rows(attempts: int, folder: Path, world: World) -> Figure:
    """A bulk job killed again and again: every row once, in order, bad rows named."""
    figure = Figure()
    source = write_tiny_table(folder / "in.csv", 400)
    lines = source.read_text("utf-8").splitlines()
    for row in random.Random(5).sample(range(1, 400), 30):
        lines[row] = "too,few"
    source.write_text("\n".join(lines) + "\n", "utf-8")
    out = folder / "out.csv"
    environment = os.environ | {"PYTHONWARNINGS": "ignore", "POLARS_MAX_THREADS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(KILLER), str(world.run), str(source), str(out), str(attempts), "1"],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    same = done.returncode == 0 and out.read_bytes() == (folder / "whole.csv").read_bytes()
    rows = [line.split(",")[1:3] for line in lines[1:] if line != "too,few"]
    kept = same and [line.split(",")[1:3] for line in out.read_text("utf-8").splitlines()[1:]] == rows
    for _ in range(attempts):
        figure.attempt(kept, done.stderr[-300:] or "rows differ")
    return figure


def privacy(attempts: int, folder: Path, world: World) -> Figure:
    """Commands without any socket: no attempt to connect, and no word of a review in what they say."""
    figure = Figure()
    table = folder / "private.csv"
    rows = world.table.read_text("utf-8").splitlines()
    table.write_text("\n".join([rows[0], *(f"{row} {CANARY}" for row in rows[1:])]) + "\n", "utf-8")
    bad = folder / "bad.csv"
    bad.write_text(table.read_text("utf-8") + f"{CANARY},{CANARY},{CANARY}\n9,{CANARY}\n", "utf-8")
    temporary = folder / "temporary"
    temporary.mkdir()
    recipe = world.run / "config.yaml"
    commands = [
        (
            "train",
            recipe,
            "--set",
            f"data.train={table}",
            "--set",
            "train.max_steps=2",
            "--set",
            "evaluation.enabled=true",
            "--out",
            folder / "RUN",
        ),
        ("train", recipe, "--set", f"data.train={bad}", "--out", folder / "RUN"),
        (
            "train",
            recipe,
            "--set",
            f"data.train={table}",
            "--set",
            "data.label.column=benefits",
            "--out",
            folder / "RUN",
        ),
        ("predict", world.run, table, "-o", folder / "RUN.csv"),
        ("predict", world.run, bad, "-o", folder / "RUN.jsonl"),
        ("predict", world.run, bad, "-o", folder / "RUN.tsv", "--strict"),
        ("evaluate", world.run, bad, "--json"),
        ("data", "audit", recipe, "--set", f"data.train={table}"),
    ]
    words = CANARY.split()
    for number in range(attempts):
        argv = [str(part).replace("RUN", f"run-{number}") for part in commands[number % len(commands)]]
        done = world.forks.rxtone(*argv, blocked=True, temporary=temporary)
        said = any(word in done.err for word in words)
        for log in folder.glob("run-*/metrics.jsonl"):
            said = said or any(word in log.read_text("utf-8") for word in words)
        left = list(temporary.iterdir())
        good = done.code in {0, 1, 2, 3} and not said and not done.calls and not left and "Traceback" not in done.err
        figure.attempt(
            good, f"{argv[:2]}: code {done.code}, calls {done.calls[:2]}, left {left[:2]}: {done.err[-400:]}"
        )
    return figure
