"""The benchmark of `--together`, in the small."""

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.together import main


def test_it_prints_seconds_and_ratios_of_three_ways(tiny_base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--base", str(tiny_base), "--adapters", "2", "--steps", "2", "--batch", "4", "--turns", "1"])
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith("2 adapters x 2 steps of 4 reviews")
    found = [
        re.fullmatch(r"(.+?) +([\d.]+) s +([\d.]+) reviews/s  together is ([\d.]+)x as fast", one) for one in lines
    ]
    assert [one[1] for one in found if one] == [
        "one after another, fast engine", "one after another, reference engine", "together",
    ]  # fmt: skip
    assert found[2] is not None
    assert found[2][4] == "1.00"
