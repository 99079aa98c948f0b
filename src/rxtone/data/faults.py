"""Collect every fault of a table, so that one message tells them all."""

from rxtone.errors import DataError

SHOWN_ROWS = 10
SHOWN_CHARACTERS = 24


def quote(value: str) -> str:
    """Quote a cell of the label column for an error message.

    A label column named by mistake holds review text, which no message may repeat: a long value is only
    measured.

    Args:
        value: Any cell value.

    Returns:
        The value in quotes, with escapes for what does not print; "a text of n characters" beyond 24
        characters.
    """
    return repr(value) if len(value) <= SHOWN_CHARACTERS else f"a text of {len(value)} characters"


class Faults:
    """The faults of one table by kind: the first rows of each kind and the count."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._counts: dict[str, int] = {}
        self._shown: dict[str, list[str]] = {}
        self._remedies: dict[str, str] = {}

    def add(self, kind: str, remedy: str, place: str) -> None:
        """Note one fault.

        Args:
            kind: What was expected, and where; faults of the same kind are told together.
            remedy: What the user can do about this kind.
            place: The data row, with what was found there.
        """
        self._counts[kind] = self._counts.get(kind, 0) + 1
        self._remedies.setdefault(kind, remedy)
        shown = self._shown.setdefault(kind, [])
        if len(shown) < SHOWN_ROWS:
            shown.append(place)

    def raise_if_any(self) -> None:
        """Raise all faults as one message.

        Raises:
            DataError: Where at least one fault was noted.
        """
        if not self._counts:
            return
        total = sum(self._counts.values())
        lines = [f"{self._where}: {total} {'fault' if total == 1 else 'faults'}; nothing was read."]
        for kind, count in self._counts.items():
            shown = "; ".join(self._shown[kind])
            more = f"; and {count - SHOWN_ROWS} more" if count > SHOWN_ROWS else ""
            lines.append(f"  {kind} ({count}): {shown}{more}")
            lines.append(f"    what to do: {self._remedies[kind]}")
        raise DataError("\n".join(lines))
