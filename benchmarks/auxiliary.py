"""The table of auxiliary tasks in docs/quality.md, from a study of the space `auxiliary`.

    rxtone sweep auxiliary --set data.train=druglib:train --set data.test=null --set model.base=bundled --out STUDY
    python -m benchmarks.auxiliary STUDY

The lines and columns are those of `benchmarks.objectives`. `--print` shows the tables instead of writing them.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.objectives import PAGE, render
from benchmarks.pages import study_command

MARKERS = ("<!-- auxiliary: begin -->", "<!-- auxiliary: end -->")


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the tables into the page, or print them."""
    study_command(__doc__, render, PAGE, MARKERS, arguments)


if __name__ == "__main__":
    main()
