"""What a harness gives back, and what it works with."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from tiny import tiny_values, write_tiny_base, write_tiny_table

from torture.forks import Forks

SHOWN = 5


@dataclass
class Figure:
    """The count of one promise."""

    attempts: int = 0
    failures: list[str] = field(default_factory=list)
    details: dict = field(default_factory=dict)

    def attempt(self, good: bool, failure: str) -> None:
        """Count one attempt; a failure is kept in words."""
        self.attempts += 1
        if not good:
            self.failures.append(failure)


@dataclass(frozen=True)
class World:
    """The tiny base, its table and its finished run, and a process to fork rxtone from."""

    base: Path
    table: Path
    run: Path
    forks: Forks


def make_world(folder: Path, forks: Forks) -> World:
    """Build the world in a folder."""
    base = write_tiny_base(folder / "base", dropout=0.1)
    table = write_tiny_table(folder / "reviews.csv", n=90)
    recipe = write_recipe(folder / "world.yaml", base, table)
    done = forks.rxtone("train", recipe, "--out", folder / "run")
    assert done.code == 0, done.err
    return World(base, table, folder / "run", forks)


def write_recipe(path: Path, base: Path, table: Path, **train) -> Path:
    """A recipe of the tiny base with dropout and accumulation, without what takes seconds."""
    values = tiny_values(base, table)
    values["lora"]["lora_dropout"] = 0.2
    values["train"] |= {"num_train_epochs": 3, "gradient_accumulation_steps": 2, "checkpoint_every": 1} | train
    values["evaluation"] = {"enabled": False, "reload_check": False}
    path.write_text(yaml.safe_dump(values), "utf-8")
    return path


def hashes(folder: Path) -> dict[str, str]:
    """File name -> SHA-256, for all files of a folder that hold state."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def training_state(run: Path) -> dict[str, str]:
    """Hashes of the adapter and of all checkpoints: weights, moments, random generators, position."""
    state = {f"adapter/{name}": value for name, value in hashes(run / "adapter").items()}
    return state | {f"checkpoints/{name}": value for name, value in hashes(run / "checkpoints").items()}


def quiet(done_err: str) -> bool:
    """Whether an error is one message and no traceback."""
    return "Traceback" not in done_err and " inside rxtone, id " not in done_err


def log_steps(run: Path) -> list[int]:
    """The optimiser steps in metrics.jsonl, in order."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    return [line["step"] for line in lines if "loss" in line]
