"""A process that has everything loaded and forks a fresh rxtone for each command: cheap to start, cheap to kill.

Requests come as JSON lines on standard input, answers go to standard output. This process itself computes
nothing, so that no thread pool exists when it forks.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).parents[2] / "src"


@dataclass(frozen=True)
class Done:
    """How a command ended; a negative code is the signal that ended it."""

    code: int
    err: str
    seconds: float
    calls: list[str]


class Forks:
    """The parent's end. Use as a context manager."""

    def __enter__(self):
        environment = os.environ | {"PYTHONPATH": str(SOURCES), "OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1",
                                    "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}  # fmt: skip
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        if self._process.stdout.readline() != "ready\n":
            self.__exit__()
            raise AssertionError("the process that forks did not start; its message is on standard error")
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(60)

    def rxtone(self, *argv, kill_after=None, signals=(), file_bytes=None, blocked=False, temporary=None) -> Done:
        """Run a command; kill it, limit the size of its files, or cut it off from all sockets."""
        ask = {"argv": [str(part) for part in argv], "kill_after": kill_after, "signals": list(signals),
               "file_bytes": file_bytes, "blocked": blocked, "temporary": temporary and str(temporary)}  # fmt: skip
        self._process.stdin.write(json.dumps(ask) + "\n")
        self._process.stdin.flush()
        return Done(**json.loads(self._process.stdout.readline()))


def serve() -> None:
    import torch

    import rxtone.judging
    import rxtone.loading
    import rxtone.pipeline
    import rxtone.progress
    import rxtone.serving.bulk  # noqa: F401  # all are for the children

    torch.set_num_threads(1)
    print("ready", flush=True)
    for line in sys.stdin:
        ask = json.loads(line)
        errors, calls = os.memfd_create("err"), os.memfd_create("calls")
        started = time.perf_counter()
        child = os.fork()
        if child == 0:
            _child(ask, errors, calls)
        if ask["kill_after"] is not None:
            time.sleep(ask["kill_after"])
            for number in ask["signals"] or [signal.SIGKILL]:
                os.kill(child, number)
        _, status = os.waitpid(child, 0)
        answer = {"code": os.waitstatus_to_exitcode(status), "err": _read(errors),
                  "seconds": time.perf_counter() - started, "calls": _read(calls).split("\n")[:-1]}  # fmt: skip
        print(json.dumps(answer), flush=True)


def _read(descriptor: int) -> str:
    with os.fdopen(descriptor, "rb") as stream:
        stream.seek(0)
        return stream.read().decode("utf-8", "replace")


def _child(ask: dict, errors: int, calls: int) -> None:
    os.dup2(errors, 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    warnings.simplefilter("ignore")
    if ask["temporary"]:
        import tempfile

        tempfile.tempdir = ask["temporary"]
    if ask["file_bytes"] is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write then fails, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (ask["file_bytes"], ask["file_bytes"]))

    def watch(event: str, arguments: tuple) -> None:
        if event in {"socket.connect", "socket.getaddrinfo", "socket.bind", "socket.sendto"}:
            os.write(calls, f"{event} {arguments[1:]!r}\n".encode())
            raise OSError(101, "Network is unreachable")

    if ask["blocked"]:
        sys.addaudithook(watch)
    from rxtone.cli import main

    sys.argv = ["rxtone", *ask["argv"]]
    code = 70
    try:
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
