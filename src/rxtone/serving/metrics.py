"""What `/metrics` shows, in Prometheus' format, on a registry of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from collections.abc import Callable

SECONDS = (0.005, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class ServerMetrics:
    """Counters of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "rxtone_requests", "Requests by path and status.", ["path", "status"], registry=self.registry
        )
        self._latency = Histogram(
            "rxtone_request_seconds", "Seconds from the request's head to its whole answer.", ["path"],
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self._batch = Histogram("rxtone_batch_reviews", "Reviews per batch.", buckets=SIZES, registry=self.registry)
        self._compute = Histogram(
            "rxtone_batch_seconds", "Seconds of computing per batch.", buckets=SECONDS, registry=self.registry
        )
        self._reviews = Counter("rxtone_reviews", "Reviews computed.", registry=self.registry)
        self._tokens = Counter("rxtone_tokens", "Prompt tokens computed.", registry=self.registry)

    def gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Show a number that is asked for at each scrape.

        Args:
            name: Its name.
            text: What it is.
            value: Gives it.
        """
        Gauge(name, text, registry=self.registry).set_function(value)

    def request(self, path: str, status: int, seconds: float) -> None:
        """Count a finished request."""
        self._requests.labels(path, str(status)).inc()
        self._latency.labels(path).observe(seconds)

    def batch(self, reviews: int, tokens: int, seconds: float) -> None:
        """Count a computed batch."""
        self._batch.observe(reviews)
        self._compute.observe(seconds)
        self._reviews.inc(reviews)
        self._tokens.inc(tokens)

    def text(self) -> bytes:
        """The exposition."""
        return generate_latest(self.registry)
