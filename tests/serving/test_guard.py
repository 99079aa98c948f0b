from collections.abc import Iterator
from pathlib import Path

import pytest
from serving_tools import error_of
from starlette.testclient import TestClient

import rxtone
from rxtone.errors import RecipeError
from rxtone.serving.api import create_app
from rxtone.serving.auth import bearer_fits, is_loopback, read_token
from rxtone.serving.limits import Limits, RequestError
from rxtone.serving.models import ModelPool
from rxtone.serving.service import Service

TOKEN = "correct-horse-battery"


@pytest.fixture(scope="module")
def service(tiny_run: Path) -> Iterator[Service]:
    service = Service(ModelPool([str(tiny_run)], rxtone.load), Limits())
    yield service
    service.close()


@pytest.fixture
def local(service: Service) -> TestClient:
    return TestClient(create_app(service), base_url="http://127.0.0.1:8000")


@pytest.fixture
def remote(service: Service) -> TestClient:
    return TestClient(create_app(service, token=TOKEN), base_url="http://reviews.example:8000")


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost:8000", "[::1]:8000", "127.9.9.9"])
def test_loopback_names_are_served(local: TestClient, host: str) -> None:
    assert local.post("/predict", json="a", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8000", "0.0.0.0:8000", "", "[", "[::1"]
)
def test_names_that_resolve_here_are_not(local: TestClient, host: str) -> None:
    assert error_of(local.post("/predict", json="a", headers={"Host": host})) == (403, "bad_host")


def test_other_sites_are_refused_and_get_no_cors_headers(local: TestClient) -> None:
    for origin in ("https://evil.example", "null", "http://127.0.0.1:9000"):
        answer = local.post("/predict", json="a", headers={"Origin": origin})
        assert error_of(answer) == (403, "bad_origin")
        assert not [name for name in answer.headers if name.startswith("access-control")]
    assert local.post("/predict", json="a", headers={"Origin": "http://127.0.0.1:8000"}).status_code == 200
    assert local.options("/predict", headers={"Origin": "https://evil.example"}).status_code == 403


def test_the_token(remote: TestClient) -> None:
    for path in ("/info", "/metrics", "/openapi.json"):
        assert error_of(remote.get(path)) == (401, "bad_token")
    answer = remote.post("/predict", json="a")
    assert error_of(answer) == (401, "bad_token")
    assert answer.headers["www-authenticate"] == "Bearer"
    for header in (f"Bearer {TOKEN}x", f"Basic {TOKEN}", TOKEN, "Bearer", ""):
        assert error_of(remote.post("/predict", json="a", headers={"Authorization": header})) == (401, "bad_token")
    for header in (f"Bearer {TOKEN}", f"bearer {TOKEN}"):
        assert remote.post("/predict", json="a", headers={"Authorization": header}).status_code == 200
    assert remote.get("/health").status_code == 200
    assert remote.get("/ready").status_code == 200


def test_token_files(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(TOKEN + "\n")
    assert read_token(path) == TOKEN
    path.write_text("short")
    with pytest.raises(RecipeError, match="expected at least 16 ASCII characters without blanks, got 5 characters"):
        read_token(path)
    path.write_text("two words of a long secret")
    with pytest.raises(RecipeError, match="without blanks"):
        read_token(path)
    with pytest.raises(RecipeError, match="No such file"):
        read_token(tmp_path / "none")


def test_addresses() -> None:
    hosts = ("127.0.0.1", "localhost", "::1", "[::1]", "0.0.0.0", "::", "10.0.0.1", "example.org", "")
    assert [is_loopback(host) for host in hosts] == [True] * 4 + [False] * 5
    assert bearer_fits("ä" * 16, "Bearer " + "ä" * 16)


@pytest.mark.parametrize(
    "path",
    ["/gradio_api/proxy=http://127.0.0.1/", "/monitoring", "/gradio_api/vibe-edit/", "/gradio_api/file=https://evil.example/x",
     "/gradio_api/dev/reload", "/gradio_api/run-history/connect"],
)  # fmt: skip
def test_what_fetches_or_watches_is_closed(local: TestClient, path: str) -> None:
    assert error_of(local.get(path)) == (404, "not_found")


def test_every_answer_has_the_safety_headers(local: TestClient) -> None:
    for answer in (local.get("/health"), local.get("/none"), local.post("/predict", content=b"{")):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert local.post("/predict", json="a").headers["cache-control"] == "no-store"


def test_a_body_without_an_announced_length_is_counted_as_it_comes(local: TestClient) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(100):
            yield b"x" * 65_536

    assert error_of(local.post("/predict", content=endless())) == (413, "body_too_large")


def test_while_too_much_waits_work_is_refused_before_its_body_is_understood(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> None:
        raise RequestError(429, "busy", "8 reviews wait already", 1)

    monkeypatch.setattr(service.batcher, "check_room", full)
    client = TestClient(create_app(service), base_url="http://127.0.0.1:8000")
    for path in ("/predict", "/predict_batch"):
        assert error_of(client.post(path, content=b"no JSON at all")) == (429, "busy")
    assert [client.get(path).status_code for path in ("/health", "/ready", "/info")] == [200, 200, 200]
