import re

import numpy as np
import polars as pl
import pytest

from rxtone.evaluation.study_page import importances, pareto, render_study

LABELS = ["positive", "negative"]
KEYS = ["lora.r", "train.learning_rate", "lora.target_modules"]


def table(n=16):
    """Macro-F1 follows the learning rate; rank and modules do nothing. The last trials were pruned and failed."""
    generator = np.random.default_rng(0)
    rows = []
    for number in range(n):
        rate = float(10 ** generator.uniform(-4, -2))
        state = {n - 2: "pruned", n - 1: "failed"}.get(number, "complete")
        value = 0.5 + 0.1 * np.log10(rate / 1e-4) if state == "complete" else None
        rows.append({
            "number": number, "state": state, "macro_f1": value,
            "reason": "<script>alert(1)</script> & $x$" if state == "failed" else None,
            "lora.r": int(generator.choice([4, 8])), "train.learning_rate": rate,
            "lora.target_modules": str(generator.choice(["[q, v]", "<b>$k$"])),
            "epochs": [0.4, value] if value else [0.3], "trainable": 1000 * (number + 1), "seconds": 10.0 + number,
            "peak_memory_bytes": 2**30 + number, "f1_positive": value, "f1_negative": value,
        })  # fmt: skip
    return pl.DataFrame(rows)


def context(**changes):
    plain = {
        "title": "study", "created": "2026-01-01T00:00:00+00:00", "keys": KEYS, "labels": LABELS,
        "search": {"sampler": "tpe"}, "wanted": 16, "confirmation": None, "commands": ["rxtone train best.yaml"],
    }  # fmt: skip
    return plain | changes


def test_the_key_that_matters_is_found_with_its_uncertainty():
    done = table().filter(pl.col("state") == "complete")
    found = importances(done, KEYS)
    assert set(found) == set(KEYS)
    assert found["train.learning_rate"][0] > 0.6
    for middle, low, high in found.values():
        assert 0 <= low <= middle <= high <= 1
    assert found["lora.r"][2] < found["train.learning_rate"][1]


def test_few_trials_say_nothing_of_importance():
    done = table().filter(pl.col("state") == "complete").head(5)
    assert importances(done, KEYS) == {}


def test_the_pareto_front_holds_what_nothing_beats():
    done = pl.DataFrame({
        "macro_f1": [0.6, 0.7, 0.6, 0.5], "trainable": [10, 20, 20, 10], "seconds": [1.0, 2.0, 2.0, 1.0],
        "peak_memory_bytes": [None, None, None, None],
    })  # fmt: skip
    assert pareto(done) == [True, True, False, False]


def test_the_page_shows_all_and_runs_nothing():
    row = {"trial": 3, "settings": {"lora.r": 8}, "screened_macro_f1": 0.66, "mean": 0.641, "sd": 0.02, "runs": [0.6],
           "interval": [0.621, 0.661], "probability_best": 0.7, "lead": [-0.01, 0.03],
           "accuracy": 0.68, "per_class_f1": {"positive": 0.7, "negative": 0.6}}  # fmt: skip
    record = {"seeds": [1, 2], "folds": 3, "reviews": 1234, "labels": LABELS, "against": None,
              "settings": [row, row | {"trial": 4}]}  # fmt: skip
    page = render_study(context(confirmation=record), table())
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "&lt;b&gt;$k$" in page
    assert not re.search(r'(src|href)="(?!#)', page.replace('xlink:href="#', "").replace('xmlns:xlink="http', ""))
    assert "default-src 'none'" in page
    for words in ("0.641", "0.621 to 0.661", "70.0%", "14 trials complete, 1 pruned, 1 failed", "1,234 reviews"):
        assert words in page
    assert page.count("<svg") == 1 + 2 + 1 + 1 + 3 + 3  # confirmed, history and curves, importance, parallel, 3 + 3
    assert "Each of these 2 settings" in page
    alone = render_study(context(confirmation=record | {"settings": [row]}), table())
    assert "The best setting was trained again" in alone
    assert "70.0%" not in alone  # without a rival there is no chance of being best


def test_a_choice_among_mappings_is_shown_by_their_names():
    tasks = "{effectiveness: {column: effect, template: How well}, pain: {column: pain}}"
    columns = [pl.Series("lora.target_modules", ["{}"] * 8 + [tasks] * 8)]
    page = render_study(context(), table().with_columns(columns))
    assert "effectiveness + pain" in page
    assert "How well" not in page


@pytest.mark.parametrize("rows", [0, 1])
def test_a_study_that_has_hardly_begun_has_a_page(rows):
    page = render_study(context(), table().head(rows))
    assert ("No trial has ended with a result yet" in page) == (rows == 0)


def test_the_same_study_gives_the_same_page():
    assert render_study(context(), table()) == render_study(context(), table())
