"""Tables that measurements write into the documentation, between two markers of a page."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from rxtone.run import write_text


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table.

    Args:
        head: Names of the columns.
        rows: Cells, as many as names in each row.

    Returns:
        Markdown.
    """
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def rewrite(page: Path, markers: tuple[str, str], content: str) -> None:
    """Put a text between the markers of a page.

    Args:
        page: A Markdown file with both markers.
        markers: Where the text begins and ends.
        content: What stands between them from now on.

    Raises:
        SystemExit: If the page lacks a marker.
    """
    begin, end = markers
    text = page.read_text("utf-8") if page.is_file() else ""
    if begin not in text or end not in text:
        raise SystemExit(f"{page}: expected the markers {begin} and {end}; put them where the table goes")
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    write_text(page, f"{before}{begin}\n{content}\n{end}{after}")


def study_command(
    description: str | None,
    render: Callable[[Path], str],
    page: Path,
    markers: tuple[str, str],
    arguments: Sequence[str] | None,
) -> None:
    """The command that writes what a study tells into a page, or prints it.

    Args:
        description: What it says of itself.
        render: Folder of a finished study -> Markdown.
        page: Where the Markdown goes, unless another page is named.
        markers: Where it stands there.
        arguments: Of the command; None for those of the process.
    """  # fmt: skip
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--print", action="store_true", dest="show", help="print, write nothing")
    parser.add_argument("--page", type=Path, default=page)
    given = parser.parse_args(arguments)
    text = render(given.study)
    if given.show:
        print(text)
    else:
        rewrite(given.page, markers, text)
