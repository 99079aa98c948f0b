"""What rxtone writes to its log: one line per happening, as text or as JSON, never a review's text.

A log line carries types, places, codes and counts. The message of an unforeseen exception may quote
what a reader, a tokenizer or a client put into it, so it is left out; an id ties the line to the error
that the user or the client saw.
"""

from __future__ import annotations

import json
import logging
import secrets
import sys
import traceback
from datetime import UTC, datetime
from typing import Any

EXTRAS = ("id", "code", "status", "path", "place", "event", "step")
"""What a line may carry beside its message."""


def new_id() -> str:
    """An id for one error, short enough to be read out."""
    return secrets.token_hex(6)


def start_logging(*, as_json: bool) -> None:
    """Send rxtone's log to standard error.

    Args:
        as_json: One JSON object per line, refusals included; else plain text, from warnings up.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if as_json else logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("rxtone")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO if as_json else logging.WARNING)
    logger.propagate = False


def json_line(level: str, message: str, **extras: Any) -> str:
    """One line of a JSON log.

    Args:
        level: `info`, `warning` or `error`.
        message: What happened.
        **extras: What else is known, as JSON values.

    Returns:
        The line, without its end.
    """
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    return json.dumps({"time": now, "level": level, "message": message, **extras}, ensure_ascii=False)


def place(error: BaseException) -> str:
    """Where an exception was raised, as `file.py:line`."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno}" if frames else "?"


def stack(error: BaseException) -> list[str]:
    """The way to an exception, outermost call first: files, lines and functions, no values and no message."""
    frames = traceback.extract_tb(error.__traceback__)
    return [f"{frame.filename.rpartition('site-packages/')[2]}:{frame.lineno} in {frame.name}" for frame in frames]


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        extras = {name: getattr(record, name) for name in EXTRAS if hasattr(record, name)}
        return json_line(record.levelname.lower(), record.getMessage(), logger=record.name, **extras)
