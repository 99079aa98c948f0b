"""Commands of the documentation, made brief: in this process, on a tiny base, with a step each."""

import sys

import pytest

from rxtone.cli import main

FEW = [
    "train.max_steps=1",
    *(f"evaluation.{name}=false" for name in ("reload_check", "baselines", "zero_shot", "behaviour")),
]
BRIEF = [word for override in FEW for word in ("--set", override)]
SMALL = {
    "train": BRIEF,
    "doctor": BRIEF,
    "sweep": [*BRIEF, "--trials", "1", "--top", "1", "--folds", "2", "--seeds", "1"],
}
"""What is added to a command so that it takes seconds."""


def run(words: list[str], own: list[str], monkeypatch, capsys) -> str:
    """Run `rxtone ...`; what trains also gets the settings of `own` and few steps. Gives what it printed."""
    if len(words) > 2 and words[1] in SMALL:
        words = [*words, *own, *SMALL[words[1]]]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as caught:
        main()
    said = capsys.readouterr()
    assert (caught.value.code or 0) == 0, (words, said.err)
    return said.out
