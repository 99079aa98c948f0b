"""`run_server` as a process: addresses, overload, slow and gone clients, stopping."""

import asyncio
import contextlib
import json
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from serving_tools import LiveServer, error_of, thread_server

from rxtone.errors import RecipeError, RunError
from rxtone.serving.limits import Limits
from rxtone.serving.server import _listen, run_server

Start = Callable[[str], LiveServer]
CANARY = "zebrafish quokka narwhal"
TOKEN = "correct-horse-battery"


def call(run: Path, options: str = "page=False") -> str:
    return f"run_server([{str(run)!r}], port=0, {options})"


def count(url: str, name: str) -> float:
    lines = httpx.get(url + "/metrics").text.splitlines()
    return float(next(line.split()[-1] for line in lines if line.startswith(name + " ")))


def stop_reading(url: str, reviews: list[str]) -> None:
    """Ask for much and go after half a second."""
    with httpx.stream("POST", url, json=reviews, timeout=0.5) as answer:
        deadline = time.monotonic() + 0.5
        for _ in answer.iter_raw():
            if time.monotonic() > deadline:
                raise httpx.ReadTimeout("gone")


def test_greeting_token_privacy_and_a_clean_end(serve: Start, tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    server = serve(call(tiny_run, f"page=False, token_file=Path({str(tmp_path / 'token')!r})"))
    line = next(line for line in server.log.read_text().splitlines() if line.startswith("try: curl "))
    assert TOKEN not in line  # the file is named, the token is not printed
    answer = subprocess.run(line.removeprefix("try: "), shell=True, capture_output=True, text=True, check=True)
    assert {item["label"] for item in json.loads(answer.stdout)} == {"positive", "neutral", "negative"}
    assert error_of(httpx.get(server.url + "/info")) == (401, "bad_token")

    with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {TOKEN}"}) as client:
        assert client.post("/predict", json=CANARY).status_code == 200
        assert client.post("/predict", content=f'{{"text": "{CANARY}'.encode()).status_code == 422
        assert client.post("/predict", json={"fields": {"Benefits": [CANARY]}}).status_code == 422
        assert client.post("/predict", json={"text": CANARY * 2000}).status_code == 413
        assert client.post("/predict_batch", content=f'"{CANARY}"\n"{CANARY}'.encode()).status_code == 422
    assert server.stop() == 0
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or CANARY.encode() not in path.read_bytes(), path


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"host": "0.0.0.0"},
            RecipeError,
            "--host 0.0.0.0: other machines can reach this address, so clients must show a token",
        ),
        ({"share": True, "page": False}, RecipeError, "--share: it shares the page"),
        ({"token_file": Path("none")}, RecipeError, "--token-file none: cannot be read"),
    ],
)
def test_unsafe_options_are_refused(options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run_server(["nothing"], **options)


def test_a_taken_port_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            RunError, match=f"cannot listen on 127.0.0.1 port {port}: Address already in use; choose another"
        ):
            run_server(["nothing"], port=port)


def test_stopping_finishes_what_was_admitted(serve: Start, tiny_run: Path) -> None:
    server = serve(call(tiny_run, "page=False, limits=Limits(batch_texts=1, queue_texts=100000)"))
    answers: list[httpx.Response] = []
    body = "\n".join(['"the pill was great for me"'] * 800)
    sender = threading.Thread(
        target=lambda: answers.append(httpx.post(server.url + "/predict_batch", content=body, timeout=60))
    )
    sender.start()
    while count(server.url, "rxtone_reviews_total") < 5:
        time.sleep(0.01)
    server.process.send_signal(signal.SIGTERM)
    sender.join(60)
    assert answers[0].status_code == 200
    assert len(answers[0].text.splitlines()) == 800
    assert server.stop() == 0
    assert "Traceback" not in server.log.read_text()


def test_overload_is_shed_with_429_and_recovers(tiny_run: Path) -> None:
    async def flood(url: str) -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=url, timeout=60, limits=httpx.Limits(max_connections=80)) as client:
            requests = (client.post("/predict", json=["the pill was great"] * 4) for _ in range(150))
            answers = await asyncio.gather(*requests)
        await asyncio.sleep(0.1)  # transports close one turn of the loop later
        return answers

    with thread_server([tiny_run], Limits(queue_texts=8, batch_texts=1)) as url:
        answers = asyncio.run(flood(url))
        assert {answer.status_code for answer in answers} == {200, 429}
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert refused.headers["retry-after"].isdecimal()
        assert error_of(refused) == (429, "busy")
        started = time.perf_counter()
        assert httpx.post(url + "/predict", json="great").status_code == 200
        assert time.perf_counter() - started < 1


def test_work_of_a_gone_client_is_dropped(tiny_run: Path) -> None:
    with thread_server([tiny_run], Limits(batch_texts=1, texts=5000, queue_texts=100_000)) as url:
        for path in ("/predict", "/predict_batch"):
            with pytest.raises(httpx.ReadTimeout):
                stop_reading(url + path, ["the pill was great for me"] * 3000)
        time.sleep(0.3)
        done = count(url, "rxtone_reviews_total")
        time.sleep(0.5)
        assert count(url, "rxtone_reviews_total") == done  # nothing goes on
        assert done < 5000
        assert count(url, "rxtone_queue_reviews") == 0
        assert count(url, 'rxtone_requests_total{path="/predict",status="499"}') == 1


def test_slow_and_large_senders_cost_no_memory(serve: Start, tiny_run: Path) -> None:
    server = serve(call(tiny_run, "page=False, limits=Limits(body_seconds=1.5)"))
    httpx.post(server.url + "/predict", json="great")
    process = psutil.Process(server.process.pid)
    before = process.memory_info().rss
    address = urlsplit(server.url)
    sockets = []
    for _ in range(32):  # 32 times 900 kB announced and sent but for the last byte
        sockets.append(socket.create_connection((str(address.hostname), int(address.port or 0))))
        sockets[-1].sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900001\r\n\r\n")
    peak = before
    for sender in sockets:
        sender.settimeout(0.2)
        with contextlib.suppress(OSError):
            sender.sendall(b"x" * 900_000)
        peak = max(peak, process.memory_info().rss)
    assert httpx.post(server.url + "/predict", json="great", timeout=10).status_code in {200, 503}
    statuses = set()
    for sender in sockets:
        sender.settimeout(8)
        try:
            statuses.add(int(sender.recv(100).split()[1]))
        except (OSError, IndexError):
            statuses.add(0)
        peak = max(peak, process.memory_info().rss)
        sender.close()
    assert statuses <= {408, 503, 0}
    assert {408, 503} & statuses
    assert peak - before < 20 << 20
    time.sleep(0.2)
    assert httpx.post(server.url + "/predict", json="great").status_code == 200

    def endless() -> object:
        for _ in range(2000):
            yield b"x" * 65_536

    with contextlib.suppress(httpx.TransportError):  # it may be sending on when the answer comes
        assert httpx.post(server.url + "/predict", content=endless(), timeout=20).status_code == 413
    assert process.memory_info().rss - before < 20 << 20


def test_a_changed_run_is_reloaded_without_dropping_a_request(tiny_run: Path, second_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "live"
    shutil.copytree(tiny_run / "adapter", run / "adapter")
    shutil.copytree(second_run / "adapter", tmp_path / "next")
    with thread_server([run], Limits(), watch=0.05) as url:

        def ask() -> float:
            answer = httpx.post(url + "/predict", json="the pill was great for me")
            assert answer.status_code == 200
            return {item["label"]: item["score"] for item in answer.json()}["positive"]

        seen = {ask()}
        (run / "adapter").rename(tmp_path / "old")
        (tmp_path / "next").rename(run / "adapter")
        deadline = time.monotonic() + 20
        while count(url, "rxtone_reloads") < 1 and time.monotonic() < deadline:
            seen.add(ask())
        seen.add(ask())
    assert len(seen) == 2


def test_answers_do_not_wait_for_an_acknowledgement() -> None:
    """asyncio turns Nagle's algorithm off only for sockets that say they are TCP: else 40 ms are lost per answer."""

    async def accepted() -> int:
        delay: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def connected(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            peer = writer.get_extra_info("socket")
            delay.set_result(peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        listener = _listen("127.0.0.1", 0)
        async with await asyncio.start_server(connected, sock=listener):
            _, writer = await asyncio.open_connection(*listener.getsockname())
            found = await delay
            writer.close()
        return found

    assert asyncio.run(accepted()) != 0
