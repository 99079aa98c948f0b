"""Ctrl-C and SIGTERM: finish the step, save, exit 130 or 143; a second one stops at once.

While a step may be finished the wish is only noted, and the loop grants it between two steps. Outside of
the loop nothing is worth waiting for, and the signal ends the work as KeyboardInterrupt. A second signal
ends the process from a thread of its own, since the main thread may be inside one long backward pass;
the state on disk is then the last whole one, as after a crash.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """A wish to stop, and whether it has to wait for the end of a step."""

    def __init__(self) -> None:
        self._signal: int | None = None
        self._waits = 0

    def wanted(self) -> bool:
        """Whether somebody asked to stop."""
        return self._signal is not None

    def exit_code(self) -> int:
        """130 after Ctrl-C, 143 after SIGTERM, as shells say it."""
        return 128 + (self._signal or signal.SIGINT)

    @contextlib.contextmanager
    def after_the_step(self) -> Iterator[None]:
        """Within this block a wish is only noted: the block looks at `wanted` when it can stop."""
        self._waits += 1
        try:
            yield
        finally:
            self._waits -= 1

    def ask(self, number: int, frame: FrameType | None = None) -> None:
        """A signal handler.

        Args:
            number: The signal.
            frame: What was interrupted; not needed.

        Raises:
            KeyboardInterrupt: Where nothing needs to be finished first.
        """
        del frame
        self._signal = number
        if not self._waits:
            raise KeyboardInterrupt


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Handle SIGINT and SIGTERM for the time of the block; main thread only.

    Yields:
        The wish that the work is to look at.
    """
    stop = Stop()
    before = [(number, signal.signal(number, stop.ask)) for number in SIGNALS]
    # The kernel writes each signal here as it comes, whatever the main thread is busy with.
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    previous = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_end_at_the_second, args=(reader,), daemon=True).start()
    try:
        yield stop
    finally:
        signal.set_wakeup_fd(previous)
        writer.close()
        for number, handler in before:
            signal.signal(number, handler)


def _end_at_the_second(reader: socket.socket) -> None:
    seen = 0
    with reader:
        while came := reader.recv(1):
            if came[0] in SIGNALS:
                seen += 1
                if seen == 1:
                    os.write(2, b"stopping, after the step under way; once more stops at once\n")
                else:
                    os.write(2, b"stopped at once; the last checkpoint is whole\n")
                    os._exit(128 + came[0])
