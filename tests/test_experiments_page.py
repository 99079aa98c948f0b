"""The tables of docs/experiments.md, from a study with known effects."""

import json
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

from rxtone.config import load_recipe
from rxtone.space import Space, check_space, load_space

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import experiments  # noqa: E402


@pytest.fixture
def study(tmp_path):
    """All 72 settings: rank 16 gives +0.05, alpha 64 takes 0.04 from neutral, dropout and modules do nothing."""
    noise = np.random.default_rng(1).normal(0, 0.01, (72, 2))
    rows = []
    for r in (8, 16):
        for alpha in (16.0, 32.0, 64.0):
            for dropout in (0.05, 0.1, 0.2):
                for modules, size in (("[q, v]", 2), ("[q, v, o]", 3), ("[q, k, v, o]", 4), ("[all-linear]", 7)):
                    one, other = noise[len(rows)]
                    rows.append({
                        "number": len(rows), "state": "complete", "lora.r": r, "lora.lora_alpha": alpha,
                        "lora.lora_dropout": dropout, "lora.target_modules": modules,
                        "macro_f1": 0.6 + 0.05 * (r == 16) + one, "f1_neutral": 0.4 - 0.04 * (alpha == 64) + other,
                        "trainable": 1000 * r * size, "seconds": 60.0, "peak_memory_bytes": 2**30 + size * 2**20,
                    })  # fmt: skip
    pl.DataFrame(rows).write_parquet(tmp_path / "trials.parquet")
    setting = {"trial": 3, "settings": {"lora.r": 16}, "screened_macro_f1": 0.66, "mean": 0.64, "sd": 0.02,
               "interval": [0.62, 0.66], "probability_best": 0.7}  # fmt: skip
    record = {"folds": 5, "seeds": [1, 2, 3], "reviews": 3107, "seconds": 7200.0, "settings": [setting]}
    (tmp_path / "confirmation.json").write_text(json.dumps(record))
    return tmp_path


def test_known_effects_get_the_right_verdicts(study):
    table = pl.read_parquet(study / "trials.parquet")
    found = {}
    for claim in experiments.CLAIMS:
        estimate, low, high = experiments.contrast(table, claim)
        assert low < estimate < high
        found[claim.text] = (round(estimate, 2), experiments.verdict(claim, low, high))
    assert found == {
        "r=16 generalises better than r=8": (0.05, "supported"),
        "alpha 64 helps the neutral class": (-0.04, "not supported"),
        "dropout 0.1 is best": (pytest.approx(0, abs=0.01), "undecidable"),
        "adding `o` to `q, v` keeps quality": (pytest.approx(0, abs=0.01), "supported"),
    }


def test_the_page_is_rewritten_between_its_markers(study, tmp_path):
    page = tmp_path / "page.md"
    page.write_text((ROOT / "docs" / "experiments.md").read_text())
    experiments.main([str(study), "--page", str(page)])
    text = page.read_text()
    assert text.startswith("# Which settings are best?")
    assert "Not run yet" not in text
    assert "adding `o` to `q, v` makes 24,000 trainable parameters of 16,000: x1.50, not fewer" in text
    assert "72 settings screened (0 more pruned or failed)" in text
    assert "| r=16 | 0.660 | 0.640 | 0.620 to 0.660 | 0.020 | 70% |" in text
    experiments.main([str(study), "--page", str(page)])
    assert page.read_text() == text


def test_memory_that_is_not_known_is_left_out(study):
    table = pl.read_parquet(study / "trials.parquet")
    assert "time 60 s -> 60 s, peak memory 1.00 GiB -> 1.00 GiB." in experiments.render(study)
    table.with_columns(peak_memory_bytes=pl.lit(None, pl.Int64)).write_parquet(study / "trials.parquet")
    assert "time 60 s -> 60 s.\n" in experiments.render(study)
    assert "GiB ->" not in experiments.render(study)


def test_the_space_shown_in_the_page_is_one():
    text = (ROOT / "docs" / "experiments.md").read_text()
    shown = Space.model_validate(yaml.safe_load(text.split("```yaml\n")[1].split("```")[0]))
    check_space(shown, load_recipe(shown.recipe))
    assert load_space("tutorial").confirm == shown.confirm
