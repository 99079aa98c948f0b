"""Commands of the documentation, made brief: in this process, on a tiny base, with a step each."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from serving_tools import await_address

from rxtone.cli import main

ROOT = Path(__file__).parents[1]
NOT_RUN = {
    **dict.fromkeys(("rxtone demo", "rxtone demo --out runs/demo"), "minutes: tests/test_bundled.py types it"),
    **dict.fromkeys(
        ("make torture", "make torture SHARE=0.1"), "half an hour: tests/torture/test_promises.py is its short form"
    ),
    **dict.fromkeys(
        (
            "make bench",
            "python -m benchmarks --window 10m",
            "python -m benchmarks.training",
            "python -m benchmarks --only inference",
        ),
        "minutes of an idle machine: `python -m benchmarks --quick` counts the same work",
    ),
    "python -m benchmarks.gpu": "needs a GPU",
    "python -m benchmarks.together": "ten minutes of an idle machine: tests/benchmarks/test_together.py, in the small",
    "make reproduce": "the hub and hours: tests/test_reproduce.py makes its page in the small",
    # CI installs the same extras with pip (`make setup`); tests/test_supply_chain.py reads the lock.
    "pip install --constraint constraints.txt torch": "installs",
    "pip install --require-hashes --no-deps -r requirements.lock": "installs",
    "pip install --no-deps .": "installs",
    "pip install '.[cluster]'": "installs",
    "pip install '.[quant]'": "installs",
    "pip install --constraint constraints.txt '.[serve,export]'": "installs",
    "python3 -m venv .venv && . .venv/bin/activate": "installs",
    "pip install --constraint constraints.txt '.[serve,export]' jupyterlab": "installs",
    "jupyter lab runs/tutorial": "waits for a reader; tests/docs/run_notebooks.py runs the chapters",
    **dict.fromkeys(
        (
            "sbatch --nodes=2 deploy/slurm/train.sbatch druglib runs/druglib",
            "sbatch --nodes=4 deploy/slurm/sweep.sbatch tutorial runs/tutorial-study",
            "kubectl apply -f deploy/kuberay/rayjob.yaml",
            "kubectl logs -f job/rxtone-sweep",
        ),
        "nobody, as the page says: tests/test_deploy_clusters.py checks the form of the files",
    ),
    ".venv-extras/bin/python -W ignore -m tests.torture --only cluster-faults": "its short form: make test-extras",
}
"""Lines of the pages that are not run where they stand, and why or who runs them; no other line is left out, but what
the pages themselves mark with a comment "not run here": hardware or a network that nobody had at hand."""

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


def lines_of(page: str) -> list[str]:
    """The lines of a page's shell blocks, comments taken off; what follows a comment "not run here" is left out."""
    text = (ROOT / page).read_text("utf-8")
    found = []
    for block in re.findall(r"^ *```(?:sh|bash|shell|console)\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL):
        waived = False
        for line in block.splitlines():
            if line.strip().startswith("#"):
                waived = "not run here" in line
            elif line.strip():
                found += [] if waived else [re.sub(r"\s+# .*", "", line)]
                waived = False
    return found


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
