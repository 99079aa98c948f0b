"""What is installed beside rxtone: floors above known holes, hashes, nobody who reports home."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
FLOORS = {
    "torch": "2.10",  # CVE-2025-32434, CVE-2026-24747: weights_only loading that ran code
    "transformers": "5.15",  # CVE-2026-1839: a pickled generator state in the trainer's checkpoints
    "jinja2": "3.1.6",  # CVE-2025-27516: a way out of the sandbox
    "pyyaml": "5.4",  # CVE-2020-14343: full_load ran code
    "gradio": "6.10",  # the holes of 4 and 5: path traversal, SSRF
    "starlette": "0.49.1",  # CVE-2025-62727: quadratic Range headers
    "python-multipart": "0.0.18",  # CVE-2024-53981: endless logging of a bad body
    "h11": "0.16",  # CVE-2025-43859: request smuggling by chunk ends
    "onnx": "1.17",  # CVE-2024-7776, CVE-2024-5187: path traversal in archives
}


def requirements() -> dict[str, Requirement]:
    """Every requirement by name, all extras included."""
    lists = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    return {one.name.lower(): one for one in (Requirement(text) for part in lists for text in part)}


@pytest.mark.parametrize("name", FLOORS)
def test_the_declared_range_begins_above_the_holes(name):
    one = requirements()[name]
    lowest = min(Version(part.version) for part in one.specifier if part.operator in {">=", "=="})
    assert lowest >= Version(FLOORS[name])


@pytest.mark.parametrize("name", FLOORS)
def test_what_is_installed_is_above_the_holes(name):
    try:
        installed = version(name)
    except PackageNotFoundError:
        pytest.skip(f"{name} is not installed here")
    assert Version(installed) >= Version(FLOORS[name])


def test_every_requirement_has_a_floor():
    assert [
        name for name, one in requirements().items() if not any(p.operator in {">=", "=="} for p in one.specifier)
    ] == []


def test_the_lock_has_hashes_for_everything_but_torch():
    text = (ROOT / "requirements.lock").read_text("utf-8")
    blocks = re.split(r"\n(?=[a-z0-9])", re.sub(r"(?m)^\s*#.*\n?", "", text).strip())
    names = set()
    for block in blocks:
        name, pinned = re.match(r"([a-z0-9._-]+)==(\S+)", block).groups()
        names.add(name)
        assert "--hash=sha256:" in block, name
        if name in FLOORS:
            assert Version(pinned) >= Version(FLOORS[name])
    assert {"transformers", "peft", "safetensors", "polars", "gradio", "starlette", "onnxruntime"} <= names
    assert "torch" not in names
    assert "://" not in text
    assert "--index-url" not in text


def test_constraints_pin_torch_alone_and_have_no_hash():
    lines = [line for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines() if not line.startswith("#")]
    assert lines == ["torch==2.13.0"]


def test_no_dependency_reports_home():
    """In a process of its own, since each reads its switch when it is imported."""
    code = (
        "import rxtone, huggingface_hub.constants as hub, os\n"
        "print(hub.HF_HUB_DISABLE_TELEMETRY, os.environ['GRADIO_ANALYTICS_ENABLED'], "
        "os.environ['RAY_USAGE_STATS_ENABLED'], os.environ['MLFLOW_DISABLE_TELEMETRY'], os.environ['DO_NOT_TRACK'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False", "0", "true", "1"]
