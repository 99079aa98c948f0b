"""The server under more work, larger bodies and worse requests than it is made for. Loopback only."""

import asyncio
import contextlib
import itertools
import json
import random
import socket
import string
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
from serving_tools import LiveServer, thread_server

from rxtone.serving.limits import Limits
from torture.figure import Figure, World
from torture.work import CANARY

ALLOWED = {200, 413, 422, 429, 503}
QUEUE = Limits(queue_texts=256, batch_texts=8)


def overload(attempts: int, folder: Path, world: World) -> Figure:
    """Ten times the measured capacity: only the named answers, bounded waits for the admitted, quick recovery."""
    figure = Figure()
    body = ["the pill was great for me and then pain some"] * 256
    server = LiveServer(
        folder, f"run_server([{str(world.run)!r}], port=0, page=False, limits=Limits(queue_texts=512, batch_texts=4))"
    )
    try:
        process = psutil.Process(server.process.pid)
        capacity = _capacity(server.url, body)
        calm = asyncio.run(_load(server.url, body, 0.8 * capacity, max(20, attempts // 10)))
        before = process.memory_info().rss
        flood = asyncio.run(_load(server.url, body, 10 * capacity, attempts))
        started = time.perf_counter()
        answer = httpx.post(server.url + "/predict", json="great", timeout=30)
        recovery = time.perf_counter() - started
        for status, _ in flood:
            figure.attempt(status in ALLOWED, f"status {status}")
        p99_calm, p99_flood = [_p99([seconds for status, seconds in part if status == 200]) for part in (calm, flood)]
        figure.attempt(answer.status_code == 200 and recovery < 1, f"recovered after {recovery:.2f} s")
        grown = process.memory_info().rss - before
        figure.attempt(grown < 40 << 20, f"memory grew by {grown >> 20} MiB")
        shed = sum(status in {429, 503} for status, _ in flood) / len(flood)
        if len(calm) >= 100:  # fewer have no 99th percentile
            figure.attempt(
                p99_flood <= 2 * p99_calm, f"admitted requests wait {p99_flood:.2f} s, calm {p99_calm:.2f} s"
            )
        figure.details = {
            "capacity_requests_per_second": round(capacity, 1),
            "shed_share": round(shed, 3),
            "p99_at_80_percent_s": round(p99_calm, 3),
            "p99_admitted_under_overload_s": round(p99_flood, 3),
            "recovery_s": round(recovery, 3),
            "memory_growth_mib": grown >> 20,
        }
    finally:
        server.stop()
    return figure


def bodies(attempts: int, folder: Path, world: World) -> Figure:
    """Bodies that are endless, deep, slow or false about their length: refused, memory grows under 20 MB."""
    figure, generator = Figure(), random.Random(11)
    server = LiveServer(
        folder, f"run_server([{str(world.run)!r}], port=0, page=False, limits=Limits(body_seconds=1.0))"
    )
    try:
        process = psutil.Process(server.process.pid)
        httpx.post(server.url + "/predict", json="great")
        before, peak = process.memory_info().rss, 0
        for number in range(attempts):
            status = _bad_body(server.url, number % 6, generator)
            peak = max(peak, process.memory_info().rss - before)
            figure.attempt(status in {0, 408, 413, 422, 503}, f"kind {number % 6}: {status}")
        figure.attempt(peak < 20 << 20, f"memory grew by {peak >> 20} MiB")
        figure.attempt(httpx.post(server.url + "/predict", json="great").status_code == 200, "no answer afterwards")
        figure.details = {"memory_growth_mib": round(peak / 2**20, 1)}
    finally:
        server.stop()
    return figure


def safe_page(attempts: int, folder: Path, world: World) -> Figure:
    """Requests for files of this machine and for addresses elsewhere: none is answered with either."""
    figure, generator = Figure(), random.Random(12)
    secret = folder / "secret.txt"
    secret.write_text(CANARY)
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.setblocking(False)
        elsewhere = f"http://127.0.0.1:{trap.getsockname()[1]}/x"
        server = LiveServer(folder, f"run_server([{str(world.run)!r}], port=0)")
        try:
            with httpx.Client(base_url=server.url, timeout=30) as client:
                for _ in range(attempts):
                    path = _probe(secret, elsewhere, generator)
                    answer = _get(client, path)
                    text = answer.text if answer is not None else ""
                    trapped = _knocked(trap)
                    good = CANARY not in text and "root:" not in text and not trapped
                    server_error = answer is not None and answer.status_code >= 500
                    figure.attempt(
                        good and not server_error, f"{path}: {answer and answer.status_code} trapped={trapped}"
                    )
        finally:
            server.stop()
    log = server.log.read_text()
    figure.attempt(CANARY not in log and "Traceback" not in log, "the log holds a trace or a text")
    return figure


def silent_log(attempts: int, folder: Path, world: World) -> Figure:
    """A canary sentence in good and bad requests: in no log line, no error text and no file that is left."""
    figure, generator = Figure(), random.Random(13)
    call = f"run_server([{str(world.run)!r}], port=0, page=False)"
    server = LiveServer(folder, f"from rxtone.logs import start_logging\nstart_logging(as_json=True)\n{call}")
    bad = [
        f'{{"text": "{CANARY}',
        f'{{"fields": {{"{CANARY}": 1}}}}',
        f'[["{CANARY}"]]',
        f'{{"text": ["{CANARY}"]}}',
        f'{{"fields": {{"Benefits": ["{CANARY}"]}}}}',
        f'"{CANARY * 2000}"',
        f'{{"text": "{CANARY}", "run": 3}}',
        f'{{"text": "{CANARY}", "top_k": "{CANARY}"}}',
        f"\xff{CANARY}",
    ]
    good = [f'"{CANARY}"', f'{{"fields": {{"Benefits": "{CANARY}"}}}}', f'["{CANARY}", "{CANARY}"]']
    ids = []
    try:
        with httpx.Client(base_url=server.url, timeout=30) as client:
            for number in range(attempts):
                body = generator.choice(bad if number % 2 else good).encode("latin-1")
                answer = client.post(generator.choice(["/predict", "/predict_batch"]), content=body)
                # An unknown key may be named in the answer, up to 40 characters; a text never is.
                quoted = CANARY in answer.text and f'"{CANARY}": 1'.encode() not in body
                if answer.status_code >= 400:
                    ids.append(answer.json()["error"]["id"])
                figure.attempt(not quoted and answer.status_code in ALLOWED, f"{body[:60]!r}: {answer.text[:200]}")
    finally:
        server.stop()
    log = server.log.read_text()
    figure.attempt(not any(word in log for word in CANARY.split()), "the log quotes a review")
    figure.attempt(all(one in log for one in ids), "an error's id is not in the log")
    left = [
        path
        for path in folder.rglob("*")
        if path.is_file() and path != server.log and CANARY.encode() in path.read_bytes()
    ]
    figure.attempt(not left, f"left in {left[:3]}")
    return figure


def api_schema(attempts: int, folder: Path, world: World) -> Figure:
    """Requests that schemathesis derives from /openapi.json: no 5xx, and answers as the document says."""
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, seed, settings

    figure = Figure()
    schemathesis.serializer.alias("application/x-ndjson", "text/plain")
    with thread_server([world.run], QUEUE) as url:
        schema = schemathesis.openapi.from_url(url + "/openapi.json")
        operations = [result.ok() for result in schema.get_all_operations()]
        # Two operations have a body; the others are asked in all their ways after one example.
        for operation in operations:

            @seed(1)
            @settings(
                max_examples=max(1, attempts // 2),
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
                phases=[Phase.generate],
            )
            @given(case=operation.as_strategy())
            def one(case) -> None:
                answer = case.call(base_url=url)
                explained = answer.status_code < 400 or answer.json()["error"].keys() == {"code", "message", "id"}
                good = explained and (answer.status_code < 500 or answer.status_code == 503)
                figure.attempt(good, f"{case.method} {case.path}: {answer.status_code} {answer.text[:200]}")

            one()
    figure.details = {"operations": len(operations)}
    return figure


def _capacity(url: str, body: list[str]) -> float:
    with httpx.Client(timeout=60) as client:
        client.post(url + "/predict", json=body)
        started = time.perf_counter()
        for _ in range(8):
            assert client.post(url + "/predict", json=body).status_code == 200
        return 8 / (time.perf_counter() - started)


async def _load(url: str, body: list[str], rate: float, count: int) -> list[tuple[int, float]]:
    """`count` requests at random moments of a mean rate, whatever the server does with them.

    Each has a connection of its own and costs the sender next to nothing: a client library's pool would let requests
    wait for a connection, and its own work would be counted as the server's.
    """
    generator = random.Random(14)
    moments = list(itertools.accumulate(generator.expovariate(rate) for _ in range(count)))
    address, content = urlsplit(url), json.dumps(body).encode()
    head = f"POST /predict HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(content)}\r\nConnection: close\r\n\r\n".encode() + content
    begin = time.perf_counter()

    async def one(number: int) -> tuple[int, float]:
        await asyncio.sleep(max(0.0, begin + moments[number] - time.perf_counter()))
        started = time.perf_counter()
        try:
            async with asyncio.timeout(60):
                reader, writer = await asyncio.open_connection(address.hostname, address.port)
                try:
                    writer.write(request)
                    answer = await reader.read()
                finally:
                    writer.close()
            return int(answer.split(b" ", 2)[1]), time.perf_counter() - started
        except (OSError, TimeoutError, IndexError, ValueError):
            return 599, 0.0  # no HTTP at all, which is not among the allowed answers

    return list(await asyncio.gather(*(one(number) for number in range(count))))


def _p99(seconds: list[float]) -> float:
    return sorted(seconds)[min(len(seconds) - 1, int(0.99 * len(seconds)))] if seconds else float("nan")


def _bad_body(url: str, kind: int, generator: random.Random) -> int:
    def endless():
        for _ in range(400):
            yield b"x" * 65_536

    content = {
        0: lambda: b"[" * 200_000,
        1: lambda: b'{"text": ' * 5000 + b"1",
        2: endless,
        3: lambda: ('"' + "x" * generator.randrange(900_000)).encode(),
    }.get(kind)
    if content is not None:
        try:
            return httpx.post(
                url + generator.choice(["/predict", "/predict_batch"]), content=content(), timeout=30
            ).status_code
        except httpx.TransportError:
            return 0  # it was still sending when the connection was closed
    address = urlsplit(url)
    with socket.create_connection((str(address.hostname), int(address.port or 0)), timeout=10) as sender:
        said = 900_000 if kind == 4 else generator.choice([-1, 10**12, 10**30])
        sender.sendall(f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {said}\r\n\r\n".encode())
        with contextlib.suppress(OSError):
            sender.sendall(b"x" * 200_000)
        try:
            words = sender.recv(100).split()
            status = int(words[1]) if len(words) > 1 else 0
        except OSError:
            return 0
    return 422 if status == 400 else status  # the HTTP parser's own word for a length that is none


def _probe(secret: Path, elsewhere: str, generator: random.Random) -> str:
    dots = generator.choice(["../", "..%2f", "%2e%2e/", "%252e%252e%252f", "..\\", "....//", "/", "%00/", "..;/"])
    target = generator.choice([str(secret), "/etc/passwd", elsewhere, "file:///etc/passwd", "//127.0.0.1/x"])
    front = generator.choice(
        [
            "/",
            "/gradio_api/file=",
            "/file=",
            "/static/",
            "/assets/",
            "/gradio_api/proxy=",
            "/theme.css/",
            "/gradio_api/upload?url=",
            "/custom_component/",
            "/gradio_api/stream/",
            "/gradio_api/cancel/",
            "/svelte/",
            "/predict?run=",
            "/gradio_api/file/",
            "/_app/",
            "/monitoring/",
            "/gradio_api/" + "".join(generator.choices(string.ascii_lowercase, k=4)) + "=",
        ]
    )
    return front + dots * generator.randint(0, 6) + target.lstrip("/" if generator.random() < 0.5 else "")


def _get(client: httpx.Client, path: str) -> httpx.Response | None:
    try:
        url = client.base_url.copy_with(raw_path=path.encode())
        return client.get(url)
    except (httpx.TransportError, httpx.InvalidURL):
        return None


def _knocked(trap: socket.socket) -> bool:
    try:
        connection, _ = trap.accept()
    except BlockingIOError:
        return False
    connection.close()
    return True


__all__ = ["api_schema", "bodies", "overload", "safe_page", "silent_log"]
