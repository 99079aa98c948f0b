"""A second run, and servers that end with their test."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from serving_tools import LiveServer, altered_run


@pytest.fixture(scope="session")
def second_run(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return altered_run(tiny_run, tmp_path_factory.mktemp("second") / "other")


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[str], LiveServer]]:
    """Start servers by the text of their call; all are ended with the test."""
    servers: list[LiveServer] = []

    def start(call: str) -> LiveServer:
        servers.append(LiveServer(tmp_path, call))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()
