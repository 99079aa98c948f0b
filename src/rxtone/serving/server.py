"""`rxtone serve`: load, bind, tell the address, serve, finish what was admitted, go."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import shlex
import shutil
import signal
import socket
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn

from rxtone.errors import RecipeError, RunError
from rxtone.loading import load
from rxtone.serving.api import create_app
from rxtone.serving.auth import is_loopback, read_token
from rxtone.serving.limits import Limits
from rxtone.serving.models import ModelPool
from rxtone.serving.service import Service

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fastapi import FastAPI

    from rxtone.classifier import Classifier
    from rxtone.config import Recipe

DRAIN_SECONDS = 30
"""Time that admitted requests have after the server was told to stop."""
WATCH_SECONDS = 1.0
"""How often run folders are looked at."""
RECEIVE_BYTES = 64 << 10
"""Kernel buffer of each connection: it also bounds each read, and so what a sender can make this process hold
before its request is judged. With the system's default 24 slow senders cost 15 MB, with this 7 MB."""

BACKLOG = 2048
"""Connections that wait to be accepted, as many as uvicorn asks for."""

logger = logging.getLogger("rxtone.serving")


def run_server(
    runs: Sequence[str],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    share: bool = False,
    token_file: Path | None = None,
    page: bool = True,
    base: str | None = None,
    recipe: Recipe | None = None,
    precision: str | None = None,
    min_confidence: float | None = None,
    corrections: Path | None = None,
    limits: Limits | None = None,
) -> None:
    """Serve runs until interrupted.

    Args:
        runs: Run folders, adapter folders, exports or bundled names; the first is the default.
        host: Address to listen on; another than loopback needs a token.
        port: Port; 0 takes a free one.
        share: Open a public link through Gradio, behind a login; a link that fails is not fatal.
        token_file: File with the token that clients show and that is the page's password.
        page: Whether to mount the page.
        base: Where the base is now, if it moved.
        recipe: Prompt, labels and base for plain PEFT folders.
        precision: Precision of the weights.
        min_confidence: Probability below which the answer is "not sure"; None takes each run's own bound.
        corrections: SQLite file for the page's corrections; None keeps none.
        limits: Bounds; None takes the defaults.

    Raises:
        RecipeError: If the options do not fit together.
        RunError: If the port is taken.
    """
    if share and not page:
        msg = "--share: it shares the page; leave --no-page out"
        raise RecipeError(msg)
    token = _token(host, share, token_file)

    def load_run(source: str) -> Classifier:
        return load(source, base=base, recipe=recipe, precision=precision)

    listener = _listen(host, port)
    folder = tempfile.mkdtemp(prefix="rxtone-page-")  # private to this user; what is uploaded ends with the server
    try:
        pool = ModelPool(runs, load_run, min_confidence=min_confidence)
        service = Service(pool, limits or Limits())
        app = create_app(service, token=token)
        on_stop = _mount(app, service, token, corrections, Path(folder)) if page else _nothing
        pool.watch(WATCH_SECONDS)
        bound = listener.getsockname()[1]
        _greet(service, host, bound, token, token_file)
        if share:
            _share(bound)
        if threading.current_thread() is threading.main_thread():
            # uvicorn drains on SIGTERM and then raises it again; having drained, the process ends well.
            signal.signal(signal.SIGTERM, lambda *_: None)
        asyncio.run(_serve(app, listener, on_stop))
    finally:
        listener.close()
        shutil.rmtree(folder, ignore_errors=True)


async def _serve(app: FastAPI, listener: socket.socket, on_stop: Callable[[], None]) -> None:
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=DRAIN_SECONDS,
            ws="none",
            proxy_headers=False,
        )
    )

    async def tell() -> None:
        while not server.should_exit:  # uvicorn has a flag and no event
            await asyncio.sleep(0.05)
        on_stop()

    watcher = asyncio.create_task(tell())
    try:
        await server.serve(sockets=[listener])
    finally:
        watcher.cancel()


def _token(host: str, share: bool, token_file: Path | None) -> str | None:
    if token_file is not None:
        return read_token(token_file)
    if share:
        return secrets.token_urlsafe(24)
    if not is_loopback(host):
        msg = (
            f"--host {host}: other machines can reach this address, so clients must show a token: "
            "give --token-file FILE, or leave --host out to serve this machine only"
        )
        raise RecipeError(msg)
    return None


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol spelt out: asyncio turns Nagle's algorithm off only where it sees TCP, and with it on every
    # answer, which is written in two parts, waits 40 ms for the client's delayed acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)  # who reads the printed address and connects at once waits; it is not refused
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or str(error)
        msg = f"cannot listen on {host} port {port}: {reason}; choose another with --host and --port"
        raise RunError(msg) from None
    return listener


def _mount(
    app: FastAPI, service: Service, token: str | None, corrections: Path | None, folder: Path
) -> Callable[[], None]:
    from rxtone.serving.ui import mount_page  # Gradio takes seconds to load

    return mount_page(app, service, token=token, corrections=corrections, folder=folder)


def _nothing() -> None:
    return


def _greet(service: Service, host: str, port: int, token: str | None, token_file: Path | None) -> None:
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    served = service.pool.get()
    first = next(iter(served.classifier.spec.text_fields))
    body = shlex.quote(json.dumps({"fields": {first: "It helped within a day."}}))
    shown = ""
    if token_file is not None:
        shown = f' -H "Authorization: Bearer $(cat {shlex.quote(str(token_file))})"'
    elif token is not None:
        shown = f' -H "Authorization: Bearer {token}"'
        print(f"login: user rxtone, password {token}")
    print(f"serving {', '.join(service.pool.names())} at {address}")
    print(f"try: curl {address}/predict{shown} -H 'Content-Type: application/json' -d {body}", flush=True)


def _share(port: int) -> None:
    from gradio.networking import setup_tunnel

    try:
        link = setup_tunnel("127.0.0.1", port, secrets.token_urlsafe(32), None, None)
    except Exception as error:  # no network, no helper binary, service down: the local page works all the same
        print(f"no public link ({type(error).__name__}); the page is served here all the same", file=sys.stderr)
    else:
        print(f"public link, behind the login: {link}", flush=True)
