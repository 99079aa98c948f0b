"""What a server accepts, and how it says no."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from starlette.responses import JSONResponse

from rxtone.logs import new_id

logger = logging.getLogger("rxtone.serving")


@dataclass(frozen=True)
class Limits:
    """Bounds on what one server takes in, so that memory and waiting time stay bounded.

    Attributes:
        body_bytes: Largest body of a request.
        stream_bytes: Largest body of `/predict_batch`.
        upload_bytes: Largest table that the page takes.
        held_bytes: Bytes of all bodies held in memory at the same time; uploads go to disk and do not count.
        body_seconds: Time a client has to send its body.
        json_depth: Deepest nesting of brackets in a body.
        texts: Reviews per request.
        stream_texts: Reviews per `/predict_batch` and per table of the page.
        text_chars: Characters per review, all fields together.
        queue_texts: Reviews waiting, over all clients, from which on new work is refused.
        queue_seconds: Expected wait beyond which new work is refused.
        batch_tokens: Padded tokens per batch.
        batch_texts: Reviews per batch; 1 turns batching off.
    """

    body_bytes: int = 1 << 20
    stream_bytes: int = 4 << 20
    upload_bytes: int = 8 << 20
    held_bytes: int = 6 << 20
    body_seconds: float = 20.0
    json_depth: int = 5
    texts: int = 256
    stream_texts: int = 10_000
    text_chars: int = 20_000
    queue_texts: int = 1024
    queue_seconds: float = 5.0
    batch_tokens: int = 8192
    batch_texts: int = 32


class RequestError(Exception):
    """A request is refused; the message is for the client and quotes no review text.

    Args:
        status: HTTP status.
        code: A word for programs, such as `text_too_long`.
        message: What was expected, what came, what to do.
        retry_after: Seconds after which another try makes sense.
    """

    def __init__(self, status: int, code: str, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.retry_after = retry_after
        self.id = new_id()

    def response(self) -> JSONResponse:
        """The refusal as JSON; the log repeats its id."""
        self.log()
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body(), self.status, headers)

    def body(self) -> dict[str, dict[str, str]]:
        """What the JSON says."""
        return {"error": {"code": self.code, "message": self.message, "id": self.id}}

    def log(self) -> None:
        """Note the refusal: its id and its kind, nothing that the client sent."""
        logger.info("refused", extra={"id": self.id, "code": self.code, "status": self.status})
