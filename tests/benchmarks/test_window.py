"""`python -m benchmarks`: what fits the window, what does not, and the table of targets."""

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    return importlib.import_module("benchmarks.__main__")


def test_durations(runner: Any) -> None:
    assert [runner.seconds(text) for text in ("90s", "20m", "1h")] == [90, 1200, 3600]
    with pytest.raises(argparse.ArgumentTypeError, match="expected a duration such as 20m, got '20'"):
        runner.seconds("20")


def test_what_the_window_does_not_hold_is_not_measured(runner: Any) -> None:
    measurement = runner.Measurement("training", least=0.5)
    sleep = [sys.executable, "-c", "import time; time.sleep(30)"]
    assert runner.run(measurement, sleep, 0.2) == "not measured: 0 s of the window left"
    assert runner.run(measurement, sleep, 0.6) == "not measured: stopped after 1 s, at the end of the window"
    assert runner.run(measurement, [sys.executable, "-c", "raise SystemExit(3)"], 20) == "not measured: exit code 3"
    assert runner.run(measurement, [sys.executable, "-c", ""], 20).startswith("measured in ")


def test_targets_beside_what_was_reached(runner: Any) -> None:
    results = {
        "training": {"ratios": {"training vs (a)": [5.0, 4.0, 4.6], "training vs (b)": [1.5]}},
        "memory": {"ratios": {"peak memory, training vs (a)": [0.39]}},
        "serving": {"one_review_ms": {"p50": 9.0, "p99": 14.0}, "ratio": 2.0, "ratios": [1.9, 2.1], "clients": 32},
    }
    rows = {row[0]: row[1:] for row in runner.reached(results)}
    assert rows["training vs (a)"] == [">= 4.5x", "4.60x", "4.00-5.00", "yes"]
    assert rows["training vs (b)"] == [">= 1.6x", "1.50x", "1.50-1.50", "no"]
    assert rows["inference vs (d), int8"] == [">= 1.5x", "not measured", "", ""]
    assert rows["peak memory, training vs (a)"][3] == "yes"
    assert rows["one review over HTTP, p50"] == ["<= 15 ms", "9.0 ms", "p99 14.0", "yes"]
    assert rows["32 clients vs no batching"][3] == "no"
    assert runner.reached({})[-1] == ["32 clients vs no batching", ">= 3x", "not measured", "", ""]


def test_the_most_important_comes_first_and_every_target_has_its_measurement(runner: Any) -> None:
    modules = [measurement.module for measurement in runner.WHOLE]
    assert modules[:3] == ["training", "inference", "memory"]
    assert {target[3] for target in runner.TARGETS} <= set(modules)
