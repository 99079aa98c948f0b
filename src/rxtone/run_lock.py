"""One process per run folder: the second is refused with the first one's id.

The lock is the kernel's (`flock`), so that of a dead process is free at once, whatever it left behind;
the file only tells who holds it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import IO, TYPE_CHECKING

from rxtone.errors import RunError
from rxtone.run import LOCK, RunFolder, clear_leftovers, create_run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextlib.contextmanager
def hold_run(path: Path, *, resume: bool) -> Iterator[RunFolder]:
    """Make or open a run folder (see `create_run`) and keep other processes out of it.

    Args:
        path: Where the run lives.
        resume: Whether an existing run may be continued.

    Yields:
        The folder, cleared of what a killed process left half-written.

    Raises:
        RunError: If something else is in the way, or another process works there.
    """
    if path.is_dir():
        with _locked(path / LOCK):  # who works there matters more than what is there
            pass
    create_run(path, resume=resume)
    with _locked(path / LOCK):
        run = create_run(path, resume=resume)  # again: another process may have come and gone meanwhile
        clear_leftovers(run)
        yield run


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    stream = _acquire(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is held, so that nobody holds a file without a name
        stream.close()


def _acquire(path: Path) -> IO[str]:
    while True:
        try:
            # A link here would be someone else's file; it is never followed.
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            raise _unwritable(path, error) from None
        stream = os.fdopen(descriptor, "r+", encoding="utf-8", errors="replace")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = stream.read(32).strip()
            stream.close()
            stop = f" (or stop it with `kill {holder}`, which saves first)" if holder else ""
            msg = (
                f"{path.parent}: process {holder or 'of unknown id'} works in this run folder; wait until it ends"
                f"{stop}, or choose another --out"
            )
            raise RunError(msg) from None
        if _still_there(path, stream):
            try:
                stream.truncate(0)
                stream.write(f"{os.getpid()}\n")
                stream.flush()
            except OSError as error:  # a full disk takes the empty file and not the number
                path.unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # closing writes once more what could not be written
                    stream.close()
                raise _unwritable(path, error) from None
            return stream
        stream.close()  # its holder removed it between our opening and our locking it


def _unwritable(path: Path, error: OSError) -> RunError:
    return RunError(f"{path.parent}: cannot be written: {error.strerror}; choose another --out")


def _still_there(path: Path, stream: IO[str]) -> bool:
    try:
        return os.path.samestat(path.stat(follow_symlinks=False), os.fstat(stream.fileno()))
    except FileNotFoundError:
        return False
