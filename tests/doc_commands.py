"""Commands of the documentation, made brief: in this process, on a tiny base, with a step each."""

import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from serving_tools import await_address

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


def serve(words: list[str], folder: Path, ask: str | None = None) -> str | None:
    """Start `rxtone serve ...` on a free port, see that it takes work, ask with a shell line, stop it."""
    log = folder / "serve.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [Path(sys.executable).with_name(words[0]), *words[1:], "--port", "0"], stdout=out, stderr=subprocess.STDOUT
        )
    try:
        url = await_address(process, log)
        assert httpx.get(f"{url}/ready", timeout=30).status_code == 200
        assert httpx.get(url, timeout=30, follow_redirects=True).status_code in {200, 401}  # the page, or its login
        said = None
        if ask is not None:
            line = ask.replace("http://127.0.0.1:8000", url)
            assert line != ask
            said = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60, check=True).stdout
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
    assert code == 0, log.read_text()
    return said
