"""Runs to serve and servers in processes of their own, for the tests in tests/serving."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import uvicorn
from safetensors.torch import load_file, save_file

import rxtone
from rxtone.serving.api import create_app
from rxtone.serving.limits import Limits
from rxtone.serving.models import ModelPool
from rxtone.serving.service import Service

SOURCES = Path(__file__).parents[1] / "src"


def altered_run(run: Path, out: Path, scale: float = -1.0) -> Path:
    """A copy of a run whose decoder's query adapters are scaled; all else stays equal."""
    shutil.copytree(run / "adapter", out / "adapter")
    weights = out / "adapter" / "adapter_model.safetensors"
    tensors = load_file(weights)
    changed = {
        name: value * scale if "decoder" in name and ".q.lora_B" in name else value for name, value in tensors.items()
    }
    save_file(changed, weights, metadata={"format": "pt"})
    return out


def await_address(process: subprocess.Popen, log: Path) -> str:
    """Where a server that has just been started listens; one that never does is killed."""
    for _ in range(3000):
        text = log.read_text()
        if " at http" in text:
            return text.split(" at ")[1].split()[0]
        if process.poll() is not None:
            break
        time.sleep(0.1)
    process.kill()
    process.wait()
    raise AssertionError(log.read_text())


class LiveServer:
    """`run_server` in a process of its own, as users have it."""

    def __init__(self, folder: Path, call: str) -> None:
        self.log = folder / "server.log"
        self._out = self.log.open("w")
        names = (
            "pathlib import Path",
            "rxtone.serving.limits import Limits",
            "rxtone.serving.server import run_server",
        )
        code = "\n".join([*(f"from {name}" for name in names), call])
        environment = os.environ | {
            "PYTHONPATH": str(SOURCES),
            "OMP_NUM_THREADS": "1",
            "TMPDIR": str(folder),
            "PYTHONUNBUFFERED": "1",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=self._out, stderr=subprocess.STDOUT, env=environment
        )
        try:
            self.url = await_address(self.process, self.log)
        except AssertionError:
            self._out.close()
            raise

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(40)
        finally:
            self.process.kill()
            self._out.close()
        return code


@contextmanager
def thread_server(runs: list[Path], limits: Limits, *, watch: float | None = None) -> Iterator[str]:
    """The API over real sockets, in a thread; gives its address."""
    pool = ModelPool([str(run) for run in runs], rxtone.load)
    if watch is not None:
        pool.watch(watch)
    server = uvicorn.Server(uvicorn.Config(create_app(Service(pool, limits)), port=0, log_config=None, ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)


def error_of(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, json.loads(response.text)["error"]["code"]
