import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from rxtone.errors import ModelError, RecipeError, RxtoneError
from rxtone.serving.export import export
from rxtone.serving.push import plan_push, push


class StandIn(ThreadingHTTPServer):
    """As much of the hub as a push speaks to: repositories, upload modes, commits of small files."""

    def __init__(self, refuse: int | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.refuse = refuse
        self.created: list[dict] = []
        self.committed: dict[str, bytes] = {}
        self.tokens: set[str | None] = set()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: StandIn

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.tokens.add(self.headers["Authorization"])
        if self.server.refuse is not None:
            self.answer({"error": "refused"}, self.server.refuse)
        elif self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            self.answer({"url": f"{self.server.address}/team/model", "name": "team/model", "id": "team/model"})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif self.path == "/api/models/team/model/preupload/main":
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self.answer({"files": files})
        elif self.path == "/api/models/team/model/commit/main":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.committed[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer({"commitUrl": f"{self.server.address}/team/model/commit/abc", "commitOid": "abc"})
        else:
            self.answer({"error": self.path}, 404)

    def do_GET(self) -> None:
        self.answer({"error": self.path}, 404)

    def answer(self, value: dict, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch):
    # The tests run offline; the stand-in is on this machine.
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    server = StandIn()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_run_pushes_its_adapter_and_nothing_else(tiny_run, hub):
    plan = plan_push(tiny_run, "team/model")
    assert plan.card.startswith("---\nbase_model:")
    url = push(plan, private=True, endpoint=hub.address, token="hf_secret")
    assert url == f"{hub.address}/team/model/commit/abc"
    assert hub.created[0]["name"] == "model"
    assert hub.created[0]["organization"] == "team"
    assert hub.created[0].get("private") is True or hub.created[0].get("visibility") == "private"
    adapter = tiny_run / "adapter"
    assert set(hub.committed) == {
        "README.md", "adapter_config.json", "adapter_model.safetensors", "classifier.json", "manifest.json",
        "tokenizer.json", "validation.json",
    }  # fmt: skip
    assert hub.committed == {name: (adapter / name).read_bytes() for name in hub.committed}
    assert plan.bytes == sum(map(len, hub.committed.values()))
    assert hub.tokens == {"Bearer hf_secret"}


def test_an_export_is_pushed_whole(tiny_run, tmp_path, hub):
    folder = tmp_path / "onnx"
    export(tiny_run, folder, form="onnx")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "x").write_text("x")
    plan = plan_push(folder, "team/model")
    assert plan.warnings == ()
    push(plan, endpoint=hub.address, token="hf_secret")
    assert set(hub.committed) == {
        "README.md", "classifier.json", "export.json", "manifest.json", "model.onnx", "tokenizer.json",
        "validation.json",
    }  # fmt: skip


def test_a_base_that_is_a_folder_is_warned_about(tiny_run, tiny_base):
    (warning,) = plan_push(tiny_run, "team/model").warnings
    assert str(tiny_base) in warning
    assert "push an export" in warning


def test_a_plan_needs_no_network_and_a_push_does(tiny_run):
    plan = plan_push(tiny_run, "team/model")
    with pytest.raises(RxtoneError, match="HF_HUB_OFFLINE is set"):
        push(plan)


@pytest.mark.parametrize(
    "name", ["model", "team/model/x", "team/mo--del", "team/-model", "te am/model", "../model", ""]
)
def test_names_that_the_hub_refuses(tiny_run, name):
    with pytest.raises(RecipeError, match="expected org/name"):
        plan_push(tiny_run, name)


def test_a_folder_without_adapter_is_told(tmp_path):
    with pytest.raises(ModelError, match="found none of these"):
        plan_push(tmp_path, "team/model")


def test_refusal_and_silence_are_told(tiny_run, hub):
    plan = plan_push(tiny_run, "team/model")
    hub.refuse = 403
    with pytest.raises(RxtoneError, match=r"refused \(403\); log in with `hf auth login`") as caught:
        push(plan, endpoint=hub.address, token="hf_secret")
    hub.refuse = 400
    with pytest.raises(RxtoneError, match="the upload failed") as other:
        push(plan, endpoint=hub.address, token="hf_secret")
    assert "hf_secret" not in f"{caught.value}{other.value}"
    assert hub.committed == {}


def test_the_card_is_missing_before_evaluation(tiny_run, tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    for path in (Path(tiny_run) / "adapter").iterdir():
        if path.name != "README.md":
            (folder / path.name).write_bytes(path.read_bytes())
    plan = plan_push(folder, "team/model")
    assert plan.card is None
    assert "no README.md with figures" in plan.warnings[0]
