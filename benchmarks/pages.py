"""Tables that measurements write into the documentation, between two markers of a page."""

from __future__ import annotations

from collections.abc import Sequence
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
