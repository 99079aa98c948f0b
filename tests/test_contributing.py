"""CONTRIBUTING names what is there, and its worked examples are right; CITATION says what the package says."""

import math
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from sklearn.metrics import matthews_corrcoef

from rxtone.stats import metrics
from rxtone.training.objective import Objective

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
NEW = {
    "poly_epsilon",
    "poly_epsilon: float = 1.0",
    "_open_openvino",
    "_write_openvino",
    '"mcc"',
    '"poly"',
    "--format",
    "make lock",
}
"""What the examples add, and what is called, not changed."""


def named() -> list[tuple[str, str]]:
    """(file, name in it) for every row of the tables; a row with several files names one thing of each in turn."""
    found = []
    for files, what in re.findall(r"^\| (`[^|]+`) \| (.+) \|$", GUIDE, re.M):
        paths, names = re.findall(r"`([^`]+)`", files), re.findall(r"`([^`]+)`", what)
        known = [name for name in names if name not in NEW]
        found += zip(paths, known, strict=True) if len(paths) > 1 else [(paths[0], name) for name in known]
    return found


def block(opening: str) -> str:
    (code,) = re.findall(rf"^```python\n({re.escape(opening)}.*?)^```$", GUIDE, re.M | re.S)
    return code


def test_every_file_and_name_of_the_worked_examples_is_there():
    assert len(named()) == 23
    for path, name in named():
        assert name in (ROOT / path).read_text("utf-8"), (path, name)
    for path in re.findall(r"`((?:src|tests)/[\w/.]+)`", GUIDE):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("seed", range(3))
def test_the_metric_of_the_worked_example_is_scikit_learns(seed):
    generator = np.random.default_rng(seed)
    true = generator.integers(0, 3, 80)
    predicted = np.where(generator.random(80) < 0.6, true, generator.integers(0, 3, 80))
    cells = metrics.confusion_counts(true, predicted, 3).astype(float)
    names = {
        "np": np, "_ratio": metrics._ratio, "k": 3, "hits": np.diagonal(cells), "support": cells.sum(axis=-1),
        "predicted": cells.sum(axis=-2), "total": cells.sum(), "out": {},
    }  # fmt: skip
    exec(block("# Gorodkin"), names)
    assert names["out"]["mcc"] == pytest.approx(matthews_corrcoef(true, predicted))


def test_the_loss_of_the_worked_example():
    body = "".join(f"    {line}\n" for line in block("# Leng").splitlines())
    names: dict = {}
    exec(f"def poly(objective, true):\n{body}", names)
    objective = type("Objective", (), {"loss": "poly", "poly_epsilon": 1.0})
    found = names["poly"](objective, torch.tensor([0.3], dtype=torch.float64).log())
    assert found.tolist() == pytest.approx([-math.log(0.3) + 0.7])
    assert not hasattr(Objective(), "poly_epsilon")  # once it is there, the guide needs another example


def test_the_citation_agrees_with_the_package():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()  # what the schema of 1.2.0 requires
    assert (cited["cff-version"], cited["title"]) == ("1.2.0", project["name"])
    assert (str(cited["version"]), cited["license"]) == (project["version"], project["license"])
    assert cited["authors"] == [{"name": "The rxtone authors"}]
