"""What all tests share: no network, one thread, the tiny model and its run."""

import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tiny import tiny_values, write_tiny_base, write_tiny_table

from rxtone.cli import main
from rxtone.config import Recipe, check_recipe

torch.set_num_threads(1)  # the models are tiny, and tests run side by side


@pytest.fixture(autouse=True)
def _subnormal_numbers() -> Iterator[None]:
    """Zero to a command's own process (`prepare_host`); here many share one, and hypothesis draws such numbers."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="session")
def tiny_table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_table(tmp_path_factory.mktemp("table") / "reviews.csv")


@pytest.fixture
def tiny_recipe(tiny_base: Path, tiny_table: Path) -> Recipe:
    return check_recipe(tiny_values(tiny_base, tiny_table), "tiny")


@pytest.fixture(scope="session")
def tiny_run(tiny_base: Path, tiny_table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the tiny recipe; read it, never write into it."""
    from rxtone import api

    out = tmp_path_factory.mktemp("runs") / "tiny"
    api.train(check_recipe(tiny_values(tiny_base, tiny_table) | {"evaluation": {}}, "tiny"), out=out)
    return out


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command in this process; gives exit code, standard output, standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["rxtone", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), out, err

    return run
