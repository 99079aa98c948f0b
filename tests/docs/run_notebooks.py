"""`make test-docs`: execute every notebook of the tutorial, and look at what is stored in them.

Copies are executed, each in an empty folder, offline; the stored notebooks stay as they are. With `--write` the
outputs of a run without faults take the place of the stored ones.
"""

import argparse
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial"
SECONDS = 1200
"""A cell that takes longer hangs."""
NOTEBOOK_BYTES = 600_000
ALL_BYTES = 3_000_000
PICTURE_BYTES = 80_000
PATH = re.compile(r"(?<![\w.:/<-])/(?:home|root|tmp|work|usr|opt|var|mnt|content|Users|private)/|\b[A-Z]:\\\\?Users")
"""The beginning of a path that only one machine has."""

Notebook = dict[str, Any]


def faults(notebook: Notebook) -> list[str]:
    """What must not be stored, or is missing.

    Args:
        notebook: In nbformat 4's JSON.

    Returns:
        One line per fault.
    """
    found = []
    cells = notebook["cells"]
    if not (cells and cells[0]["cell_type"] == "markdown" and _text(cells[0]["source"]).startswith("# ")):
        found.append("cell 0: expected a title")
    if not (len(cells) > 1 and '\nBASE = "bundled"\n' in _text(cells[1]["source"])):
        found.append('cell 1: expected the set-up cell, with BASE = "bundled"')
    for index, cell in enumerate(cells):
        if cell["cell_type"] != "code":
            continue
        if cell["execution_count"] is None and "skip-execution" not in cell["metadata"].get("tags", []):
            found.append(f"cell {index}: not executed")
        for output in cell["outputs"]:
            found += [f"cell {index}: {fault}" for fault in _output_faults(output)]
    return found


def _output_faults(output: Notebook) -> Iterator[str]:
    if output["output_type"] == "error":
        yield f"an error is stored: {output['ename']}"
    if output.get("name") == "stderr":
        yield f"a warning is stored: {_text(output['text'])[:200]!r}"
    texts = [output.get("text", ""), *(value for kind, value in output.get("data", {}).items() if "image" not in kind)]
    for text in map(_text, texts):
        if match := PATH.search(text):
            yield f"an absolute path is stored: {text[max(0, match.start() - 20) : match.end() + 40]!r}"
        if "Traceback (most recent call last)" in text:
            yield "a traceback is stored"
    picture = output.get("data", {}).get("image/png")
    if picture is not None:
        if len(_text(picture)) * 3 // 4 > PICTURE_BYTES:
            yield f"a picture of {len(_text(picture)) * 3 // 4:,} bytes, at most {PICTURE_BYTES:,} are allowed"
        if not output.get("metadata", {}).get("image/png", {}).get("alt"):
            yield "a picture without alt text; show it with picture(figure, alt)"


def _text(value: Any) -> str:
    return "".join(value) if isinstance(value, list) else str(value)


def read(path: Path) -> Notebook:
    """Read a notebook."""
    notebook: Notebook = json.loads(path.read_text("utf-8"))
    return notebook


def run(notebook: Notebook) -> Notebook:
    """Execute a copy of a notebook, top to bottom, in an empty folder.

    Args:
        notebook: What to execute; it is not changed.

    Returns:
        The copy with its outputs.

    Raises:
        CellExecutionError: The first cell that failed, with its code.
    """
    import nbformat  # an extra, as nbclient is
    from nbclient import NotebookClient

    copy = nbformat.reads(json.dumps(notebook), as_version=4)
    with tempfile.TemporaryDirectory(prefix="tutorial-") as folder:
        client = NotebookClient(
            copy, timeout=SECONDS, kernel_name="python3", record_timing=False, coalesce_streams=True,
            resources={"metadata": {"path": folder}}, extra_arguments=["--log-level=ERROR"],
        )  # fmt: skip
        client.execute(env=os.environ | {"HF_HUB_OFFLINE": "1"})
    executed: Notebook = json.loads(nbformat.writes(copy))
    for cell in executed["cells"]:
        for output in cell.get("outputs", []):
            alt = output.get("metadata", {}).get("image/png", {}).get("alt")
            if alt:  # the site's generator looks for it here
                cell["metadata"]["mystnb"] = {"image": {"alt": alt}}
    return executed


def main(arguments: Sequence[str] | None = None) -> int:
    """Execute the notebooks that are named, or all.

    Args:
        arguments: The command line; None takes the process's own.

    Returns:
        0, or 1 where anything is wrong.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notebooks", nargs="*", type=Path, help="all of docs/tutorial if none")
    parser.add_argument("--write", action="store_true", help="store the outputs")
    chosen = parser.parse_args(arguments)
    paths = chosen.notebooks or sorted(TUTORIAL.glob("*.ipynb"))
    wrong = [] if paths else [f"{TUTORIAL}: no notebooks"]
    for path in paths:
        started = time.perf_counter()
        notebook = read(path)
        try:
            executed = run(notebook)
        except Exception as error:  # whatever a cell raises, the other notebooks are run too
            wrong.append(f"{path.name}: {error}")
            continue
        # A warning that another machine gives is no fault until it is stored.
        found = faults(executed if chosen.write else notebook)
        wrong += [f"{path.name}: {fault}" for fault in found]
        if chosen.write and not found:
            path.write_text(json.dumps(executed, indent=1, ensure_ascii=False, sort_keys=True) + "\n", "utf-8")
        print(f"{path.name}: {time.perf_counter() - started:.0f} s", flush=True)
    for fault in wrong:
        print(fault, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
