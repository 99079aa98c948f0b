"""One review over HTTP, and many clients at once against the same server without batching.

    python -m benchmarks.serving RUN [--base BASE] [--precision fp32] [--table sample:test] [--clients 32]

Two servers are started in processes of their own, one with the default batching and one that computes review
by review; they are measured in turns, so that a drift of the machine falls on both. The client runs beside them
on the same cores. Served probabilities are compared with those of `rxtone.load` on the same reviews.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rxtone
from rxtone.data.reviews import read_reviews
from rxtone.data.tables import read_table
from rxtone.model.base import quiet_transformers

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SERVER = """
import sys
from rxtone.model.base import quiet_transformers
from rxtone.model.host import prepare_host
from rxtone.serving.limits import Limits
from rxtone.serving.server import run_server
quiet_transformers()
prepare_host(shapes_return=True)
limits = Limits(batch_texts=int(sys.argv[3]), queue_seconds=1e9)
run_server([sys.argv[1]], base=sys.argv[2] or None, port=0, page=False, precision=sys.argv[4] or None, limits=limits)
"""


@contextmanager
def server(options: argparse.Namespace, batch_texts: int) -> Iterator[tuple[str, int]]:
    """Start a server; give its host and port."""
    arguments = (options.run, options.base or "", str(batch_texts), options.precision or "")
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, *arguments], stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    try:
        line = process.stdout.readline() if process.stdout is not None else ""
        if " at http://" not in line:
            raise SystemExit(f"the server did not start: {line}")
        host, _, port = line.split(" at http://")[1].strip().rpartition(":")
        yield host, int(port)
    finally:
        process.terminate()
        process.wait(40)


def ask(connection: http.client.HTTPConnection, body: bytes) -> list[dict[str, Any]]:
    """One request."""
    connection.request("POST", "/predict", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    content = answer.read()
    if answer.status != 200:
        raise SystemExit(f"HTTP {answer.status}: {content!r}")
    answers: list[dict[str, Any]] = json.loads(content)
    return answers


def latencies(address: tuple[str, int], bodies: Sequence[bytes]) -> list[float]:
    """Seconds of each request, one after the other on one connection."""
    connection = http.client.HTTPConnection(*address)
    seconds = []
    for body in bodies:
        started = time.perf_counter()
        ask(connection, body)
        seconds.append(time.perf_counter() - started)
    connection.close()
    return seconds


def throughput(address: tuple[str, int], bodies: Sequence[bytes], clients: int) -> tuple[float, list[float]]:
    """Reviews per second of many clients that each ask one review at a time, and all latencies."""
    waiting = list(bodies)
    lock = threading.Lock()
    seconds: list[float] = []

    def client() -> None:
        connection = http.client.HTTPConnection(*address)
        while True:
            with lock:
                if not waiting:
                    break
                body = waiting.pop()
            started = time.perf_counter()
            ask(connection, body)
            with lock:
                seconds.append(time.perf_counter() - started)
        connection.close()

    threads = [threading.Thread(target=client) for _ in range(clients)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(bodies) / (time.perf_counter() - started), seconds


def quantile(seconds: Sequence[float], share: float) -> float:
    """In milliseconds."""
    ordered = sorted(seconds)
    return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def difference(address: tuple[str, int], reviews: Sequence[dict[str, str]], classifier: rxtone.Classifier) -> float:
    """Largest difference of a probability between the server and Python."""
    connection = http.client.HTTPConnection(*address)
    worst = 0.0
    for review, prediction in zip(reviews, classifier.predict(reviews), strict=True):
        served = {item["label"]: item["score"] for item in ask(connection, json.dumps({"fields": review}).encode())}
        worst = max(worst, *(abs(served[label] - p) for label, p in prediction.probabilities.items()))
    connection.close()
    return worst


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    classifier = rxtone.load(options.run, base=options.base, precision=options.precision)
    rows = read_reviews(read_table(options.table), classifier.spec.text_fields, None, None)[: options.reviews]
    tokens = [len(prompt.ids) for prompt in classifier.prompts.build_many(rows)]
    reviews = [dict(row.fields) for row in rows]
    bodies = [json.dumps({"fields": review}).encode() for review in reviews]
    single: list[float] = []
    rates: dict[str, list[float]] = {"batched": [], "one by one": []}
    with server(options, 32) as batched, server(options, 1) as alone:
        worst = difference(batched, reviews[:20], classifier)
        for address in (batched, alone):
            latencies(address, bodies[:20])
        for _ in range(options.rounds):
            single += latencies(batched, bodies[:100])
            for name, address in (("batched", batched), ("one by one", alone)):
                rate, _ = throughput(address, bodies, options.clients)
                rates[name].append(rate)
    ratios = [b / a for b, a in zip(rates["batched"], rates["one by one"], strict=True)]
    return {
        "precision": classifier.precision,
        "cores": len(os.sched_getaffinity(0)),
        "reviews": len(rows),
        "tokens": {"median": statistics.median(tokens), "mean": statistics.mean(tokens), "max": max(tokens)},
        "one_review_ms": {"p50": quantile(single, 0.5), "p99": quantile(single, 0.99)},
        "clients": options.clients,
        "reviews_per_second": {name: statistics.median(values) for name, values in rates.items()},
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "largest_difference_to_python": worst,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--base")
    parser.add_argument("--precision", help="fp32 or bf16; the run's own by default")
    parser.add_argument("--table", default="sample:test")
    parser.add_argument("--reviews", type=int, default=144)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    quiet_transformers()
    figures = measure(options)
    text = json.dumps(figures, indent=2)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
