"""The door of the server, before API and page: hosts, tokens, bodies, headers, counts.

Plain ASGI, because only there a body is counted while it arrives, not after it filled the memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders

from rxtone.logs import place
from rxtone.serving.auth import bearer_fits, is_loopback
from rxtone.serving.limits import Limits, RequestError

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from rxtone.serving.metrics import ServerMetrics

OPEN = ("/health", "/ready")
API = ("/predict", "/predict_batch", "/info", "/metrics", "/openapi.json")
WORK = ("/predict", "/predict_batch")
PAGE = "page"
"""Under this name the metrics count all that is no path of the API, so that clients cannot make up names."""
UPLOAD = "/gradio_api/upload"
CLOSED = re.compile(r"(/proxy=|/monitoring|/vibe-|/undo-vibe|/run-history/|/runs/?$|/dev/|/pwa_icon|=https?:)")
"""Parts of Gradio that fetch from elsewhere, watch users or edit code; none is used here."""
_PORT = re.compile(r":\d+\Z")
DRAIN_SECONDS = 3.0
DRAIN_BYTES = 16 << 20
DRAINS = 4
"""Refused senders that are read out at the same time; each costs a read buffer."""
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
        "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
    ),
}

logger = logging.getLogger("rxtone.serving")


class Guard:
    """ASGI middleware around the whole server.

    Args:
        app: What is guarded.
        limits: Body bounds.
        metrics: Where requests are counted.
        token: What clients of the API must show; None lets in whoever reaches this machine's loopback.
        check_room: Refuses work, by raising, while too much waits.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        limits: Limits,
        metrics: ServerMetrics,
        token: str | None,
        check_room: Callable[[], None],
    ) -> None:
        self._app = app
        self._limits = limits
        self._metrics = metrics
        self._token = token
        self._check_room = check_room
        self._held = 0
        self.drains = asyncio.Semaphore(DRAINS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection's request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return  # no websockets here
        started = time.perf_counter()
        path = str(scope["path"])
        exchange = _Exchange(self, scope, receive, send, self._most_bytes(path))
        try:
            self._check(path, scope["method"], Headers(scope=scope))
            if path in WORK and scope["method"] == "POST":
                await exchange.begin(self._check_room)
            await self._app(scope, exchange.receive, exchange.send)
        except RequestError as error:
            await exchange.refuse(error)
        except Exception as error:
            # The message may quote what a client sent; type and place are enough to find the fault.
            if not exchange.refused:
                told = RequestError(500, "internal", "an error in the server; its log has more under this id")
                logger.error(
                    "%s at %s: %s at %s", told.id, self._known(path), type(error).__name__, place(error),
                    extra={"id": told.id, "path": self._known(path), "place": place(error)},
                )  # fmt: skip
                await exchange.refuse(told)
        finally:
            self._held -= exchange.held
            self._metrics.request(self._known(path), exchange.status, time.perf_counter() - started)

    def hold(self, size: int) -> None:
        """Count body bytes that are kept until their request ends.

        Args:
            size: How many more.

        Raises:
            RequestError: 503 if all requests together hold too much.
        """
        if self._held + size > self._limits.held_bytes:
            raise RequestError(503, "busy", "too many requests are being received; try again", 1)
        self._held += size

    def _known(self, path: str) -> str:
        return path if path in API or path in OPEN else PAGE

    def _most_bytes(self, path: str) -> int:
        if path.startswith(UPLOAD):
            return self._limits.upload_bytes + 4096  # the multipart frame around the file
        return self._limits.stream_bytes if path == "/predict_batch" else self._limits.body_bytes

    def _check(self, path: str, method: str, headers: Headers) -> None:
        if CLOSED.search(path):
            raise RequestError(404, "not_found", "there is nothing at this address")
        if self._token is None:
            # Loopback without a token: another site's page in the user's browser must not get in, neither
            # directly (Origin) nor under a name of its own that resolves here (Host).
            if not is_loopback(_PORT.sub("", headers.get("host", ""))):
                raise RequestError(403, "bad_host", "expected this machine's own address as the host")
        elif path in API and not bearer_fits(self._token, headers.get("authorization", "")):
            raise RequestError(401, "bad_token", "expected the header Authorization: Bearer TOKEN")
        origin = headers.get("origin")
        if origin and method not in {"GET", "HEAD"} and origin.partition("://")[2] != headers.get("host"):
            raise RequestError(403, "bad_origin", "requests from other sites are refused")


class _Exchange:
    """One request and its answer, as the application sees them."""

    def __init__(self, guard: Guard, scope: Scope, receive: Receive, send: Send, most: int) -> None:
        self._guard, self._scope, self._receive, self._send = guard, scope, receive, send
        self._most = most
        self._deadline = time.monotonic() + guard._limits.body_seconds  # one unit
        self._whole = False
        self.came = 0
        self.held = 0
        self.answered = False
        self.refused = False
        self.status = 499
        length = Headers(scope=scope).get("content-length", "")
        self._announced = int(length) if length.isdecimal() else 0

    async def begin(self, check_room: Callable[[], None]) -> None:
        """Take up work if there is room: it is refused before its body is understood."""
        try:
            check_room()
        except RequestError:
            await self._discard()
            raise

    async def receive(self) -> Message:
        """The next part of the body, counted; after the body whatever the server says."""
        if self.refused:
            return {"type": "http.disconnect"}
        if self._whole:
            return await self._receive()
        try:
            if self._announced > self._most:
                raise self._too_large()
            message = await asyncio.wait_for(self._receive(), max(0.0, self._deadline - time.monotonic()))
            if message["type"] == "http.request":
                self._whole = not message.get("more_body", False)
                size = len(message.get("body", b""))
                if self.came + size > self._most:
                    raise self._too_large()
                self.came += size
                if not self._scope["path"].startswith(UPLOAD):  # Gradio writes those to disk as they come
                    self._guard.hold(size)
                    self.held += size
        except TimeoutError:
            await self.refuse(RequestError(408, "too_slow", "the body did not arrive in time"))
        except RequestError as error:
            await self._discard()
            await self.refuse(error)
        else:
            return message
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Pass an answer on, unless the request was refused meanwhile."""
        if self.refused:
            return
        if message["type"] == "http.response.start":
            self.answered = True
            self.status = message["status"]
            headers = MutableHeaders(raw=message["headers"])
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
            if self._scope["path"] in API:
                headers["Cache-Control"] = "no-store"  # answers tell about reviews
        await self._send(message)

    async def refuse(self, error: RequestError) -> None:
        """Answer in place of the application."""
        if self.answered:
            return
        response = error.response()
        response.headers["Connection"] = "close"
        await response(self._scope, self._receive, self.send)
        self.refused = True

    def _too_large(self) -> RequestError:
        message = f"expected a body of at most {self._most} bytes; send less, or use /predict_batch"
        return RequestError(413, "body_too_large", message)

    async def _discard(self) -> None:
        # Clients that are still sending read no answer; what comes is thrown away for a moment.
        thrown = 0 if not self._whole else DRAIN_BYTES
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS), self._guard.drains:
                while thrown < DRAIN_BYTES:
                    message = await self._receive()
                    thrown += len(message.get("body", b""))
                    if message["type"] != "http.request" or not message.get("more_body", False):
                        return
