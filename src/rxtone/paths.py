"""Paths that someone else wrote: a user, a recipe, the settings of an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rxtone.errors import RxtoneError

SHOWN = 100
"""Characters of a name that a message repeats."""


def given_path(name: str | Path, refuse: type[RxtoneError]) -> Path:
    """A path whose ``is_file`` and ``is_dir`` answer; what may not be looked at, or cannot be a name, is refused.

    ``Path.is_file`` raises where a name is too long for the file system or a folder above it may not be searched.

    Args:
        name: As it was given; ``~`` is the user's home.
        refuse: Kind of the error.

    Returns:
        The path, of which nothing need exist.

    Raises:
        RxtoneError: Of the kind asked for.
    """
    path = Path(name).expanduser()
    try:
        path.is_dir()
    except OSError as error:
        shown = str(name) if len(str(name)) <= SHOWN else f"{str(name)[:SHOWN]}..."
        msg = f"{shown}: cannot be looked at ({error.strerror}); check the name and the rights"
        raise refuse(msg) from None
    return path
