import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from serving_tools import error_of
from starlette.testclient import TestClient
from transformers import T5Config

import rxtone
from rxtone.classifier import Prediction
from rxtone.data.prompts import PromptBuilder
from rxtone.explain import explain
from rxtone.serving.api import create_app, scored_labels
from rxtone.serving.limits import Limits
from rxtone.serving.models import ModelPool
from rxtone.serving.service import Service

HERE = "http://127.0.0.1:8000"
LIMITS = Limits(body_bytes=4000, stream_bytes=60_000, texts=5, stream_texts=300, text_chars=1000)
TEXT = "the pill was great for me"
CANARY = "zebrafish quokka narwhal"


@pytest.fixture(scope="module")
def app_client(tiny_run: Path, second_run: Path) -> Iterator[TestClient]:
    service = Service(ModelPool([str(tiny_run), str(second_run)], rxtone.load), LIMITS)
    with TestClient(create_app(service), base_url=HERE) as client:
        yield client


@pytest.fixture(scope="module")
def classifier(tiny_run: Path) -> rxtone.Classifier:
    return rxtone.load(tiny_run)


def test_one_review_is_answered_by_labels_and_scores(app_client: TestClient, classifier: rxtone.Classifier) -> None:
    answer = app_client.post("/predict", json={"text": TEXT})
    assert answer.status_code == 200
    expected = classifier.predict([TEXT])[0]
    assert answer.json()[0]["label"] == expected.label
    assert [item["label"] for item in answer.json()] == sorted(
        expected.probabilities, key=lambda label: -expected.probabilities[label]
    )
    for item in answer.json():
        assert item["score"] == pytest.approx(expected.probabilities[item["label"]], abs=1e-6)
        assert (item["truncated"], item["abstained"]) == (False, False)


def test_fields_by_prompt_name_and_by_column(app_client: TestClient, classifier: rxtone.Classifier) -> None:
    fields = {"Benefits": "great relief", "Side Effects": "none"}
    expected = classifier.predict([fields])[0]
    for names in (fields, {"benefits": "great relief", "effects": "none"}):
        answer = app_client.post("/predict", json={"fields": names, "top_k": 1}).json()
        assert [item["label"] for item in answer] == [expected.label]
        assert answer[0]["score"] == pytest.approx(expected.probabilities[expected.label], abs=1e-6)


def test_a_list_keeps_its_order(app_client: TestClient, classifier: rxtone.Classifier) -> None:
    texts = ["great pill", "awful useless pill and pain", "average"]
    answer = app_client.post("/predict?top_k=1", json=[texts[0], {"text": texts[1]}, texts[2]]).json()
    assert [[item["label"] for item in one] for one in answer] == [[p.label] for p in classifier.predict(texts)]


def test_a_review_is_made_into_tokens_once(app_client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tokens say how long it will take, and are what is computed."""
    build, built = PromptBuilder.build_many, []
    monkeypatch.setattr(
        PromptBuilder, "build_many", lambda self, reviews: built.append(len(reviews)) or build(self, reviews)
    )
    assert app_client.post("/predict", json=[TEXT, TEXT]).status_code == 200
    assert built == [2]


def test_the_run_is_chosen_per_request(app_client: TestClient, second_run: Path) -> None:
    expected = rxtone.load(second_run).predict([TEXT])[0].probabilities
    for options in ({"json": {"text": TEXT, "run": "other"}}, {"json": {"text": TEXT}, "params": {"run": "other"}}):
        answer = app_client.post("/predict", **options).json()
        assert {item["label"]: item["score"] for item in answer} == pytest.approx(expected, abs=1e-6)
    assert {item["label"]: item["score"] for item in app_client.post("/predict", json=TEXT).json()} != pytest.approx(
        expected, abs=1e-3
    )


def test_a_long_text_within_the_limits_is_marked_truncated(app_client: TestClient) -> None:
    answer = app_client.post("/predict", json={"text": "pain " * 100}).json()
    assert {item["truncated"] for item in answer} == {True}


def test_many_lines_come_back_in_order(app_client: TestClient, classifier: rxtone.Classifier) -> None:
    texts = [("great", "awful", "average")[i % 3] + " pill" * (i % 7) for i in range(200)]
    body = "\n".join(json.dumps(text if i % 2 else {"text": text}) for i, text in enumerate(texts))
    answer = app_client.post("/predict_batch?top_k=1", content=body)
    assert answer.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert [line[0]["label"] for line in lines] == [p.label for p in classifier.predict(texts)]


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/predict", b'{"text": "' + b"x" * 4000 + b'"}', (413, "body_too_large")),
        ("/predict", json.dumps({"text": "x " * 501}).encode(), (413, "text_too_long")),
        ("/predict", b'{"fields": {"Benefits": "' + b"x" * 999 + b'", "Side Effects": "xy"}}', (413, "text_too_long")),
        ("/predict", b'["a","a","a","a","a","a"]', (413, "too_many_reviews")),
        ("/predict_batch", b'"a"\n' * 301, (413, "too_many_reviews")),
        ("/predict_batch", b'"a"\n' * 20_000, (413, "body_too_large")),
        ("/predict", b"{", (422, "bad_json")),
        ("/predict", b"", (422, "bad_json")),
        ("/predict", b'{"text": "  "}', (422, "no_text")),
        ("/predict", b'{"fields": {"Benefits": " ", "Side Effects": ""}}', (422, "no_text")),
        ("/predict", b'{"fields": {"Costs": "x"}}', (422, "bad_field")),
        ("/predict", b'{"fields": {}}', (422, "bad_field")),
        ("/predict", b'{"text": "a", "run": "none"}', (422, "unknown_run")),
        ("/predict?top_k=0", b'"a"', (422, "bad_request")),
        ("/predict_batch", b'"a"\n{"text": 3}\n', (422, "bad_request")),
        ("/predict_batch", b'"a"\n"  "\n', (422, "no_text")),
        ("/nothing", b"", (404, "http")),
        ("/health", b"", (405, "http")),
    ],
)  # fmt: skip
def test_refusals_are_json(app_client: TestClient, path: str, body: bytes, expected: tuple[int, str]) -> None:
    assert error_of(app_client.post(path, content=body)) == expected


def test_messages_say_what_was_expected_and_what_came(app_client: TestClient) -> None:
    def message(body: object) -> str:
        return app_client.post("/predict", json=body).json()["error"]["message"]

    assert message(["a", "x" * 1001]) == "review 1: expected at most 1000 characters, got 1001; shorten it"
    assert (
        message({"fields": {"Costs": "x"}})
        == "review 0: expected a review with fields among Benefits, Side Effects, got 'Costs'"
    )
    assert message(["a"] * 6) == "expected at most 5 reviews, got 6; use /predict_batch"


def test_facts(app_client: TestClient) -> None:
    assert app_client.get("/health").json() == {"status": "ok"}
    assert app_client.get("/ready").json() == {"status": "ready"}
    runs = app_client.get("/info").json()["runs"]
    assert [run["name"] for run in runs] == ["tiny", "other"]
    assert runs[0]["labels"] == ["positive", "neutral", "negative"]
    assert runs[0]["fields"] == ["Benefits", "Side Effects"]
    assert runs[1]["shared_bytes"] > 0


def test_metrics_count_requests_batches_and_tokens(tiny_run: Path, classifier: rxtone.Classifier) -> None:
    service = Service(ModelPool([str(tiny_run)], rxtone.load), LIMITS)
    with TestClient(create_app(service), base_url=HERE) as client:
        client.post("/predict", json=[TEXT, TEXT])
        client.post("/predict", content=b"{")
        client.get("/anything/at/all")
        lines = client.get("/metrics").text.splitlines()
    tokens = 2 * len(classifier.prompts.build(classifier.as_review(TEXT)).ids)
    for line in (
        'rxtone_requests_total{path="/predict",status="200"} 1.0',
        'rxtone_requests_total{path="/predict",status="422"} 1.0',
        'rxtone_requests_total{path="page",status="404"} 1.0',
        "rxtone_reviews_total 2.0",
        f"rxtone_tokens_total {tokens}.0",
        'rxtone_batch_reviews_bucket{le="2.0"} 1.0',
        'rxtone_batch_reviews_bucket{le="1.0"} 0.0',
        "rxtone_queue_reviews 0.0",
        'rxtone_request_seconds_count{path="/predict"} 2.0',
    ):
        assert line in lines


def test_openapi_has_examples_that_work(app_client: TestClient) -> None:
    spec = app_client.get("/openapi.json").json()
    assert set(spec["paths"]) == {"/predict", "/predict_batch", "/health", "/ready", "/info", "/metrics"}
    body = spec["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]
    for example in body["examples"].values():
        assert app_client.post("/predict", json=example["value"]).status_code == 200
    lines = spec["paths"]["/predict_batch"]["post"]["requestBody"]["content"]["application/x-ndjson"]["example"]
    assert len(app_client.post("/predict_batch", content=lines).text.splitlines()) == 2
    assert set(spec["paths"]["/predict"]["post"]["responses"]) == {"200", "401", "413", "422", "429", "503"}


def test_a_fault_in_the_model_is_a_plain_500_without_the_text(tiny_run: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(torch.nn.Linear):
        config = T5Config(decoder_start_token_id=0)

        def forward(self, *_: object, **__: object) -> torch.Tensor:
            raise ValueError(CANARY)

    def load(run: str) -> rxtone.Classifier:
        return replace(rxtone.load(run), scorer=Broken(1, 1))

    service = Service(ModelPool([str(tiny_run)], load), LIMITS)
    with TestClient(create_app(service), base_url=HERE) as client:
        answer = client.post("/predict", json=CANARY)
        assert error_of(answer) == (500, "internal")
        assert client.get("/ready").status_code == 200
    assert "ValueError" in caplog.text
    assert CANARY not in caplog.text + answer.text


def test_a_closing_server_is_not_ready(tiny_run: Path) -> None:
    service = Service(ModelPool([str(tiny_run)], rxtone.load), LIMITS)
    client = TestClient(create_app(service), base_url=HERE)
    service.close()
    assert client.get("/ready").status_code == 503
    assert client.get("/health").status_code == 200
    assert error_of(client.post("/predict", json="a")) == (503, "closing")


def test_the_answer_comes_first_even_where_another_label_is_more_probable() -> None:
    tuned = Prediction("negative", {"positive": 0.5, "neutral": 0.2, "negative": 0.3}, False)
    assert [item["label"] for item in scored_labels(tuned)] == ["negative", "positive", "neutral"]
    assert [item["label"] for item in scored_labels(tuned, 1)] == ["negative"]


def test_an_explanation_comes_with_the_answer(app_client: TestClient, classifier: rxtone.Classifier) -> None:
    fields = {"Benefits": "the pill was awful", "Side Effects": ""}
    plain = app_client.post("/predict", json={"fields": fields}).json()
    answer = app_client.post("/predict", json={"fields": fields, "explain": True}).json()
    why = answer[0].pop("explanation")
    assert answer == plain
    assert why == explain(classifier, fields).to_dict()
    assert max(why["parts"], key=lambda part: part["weight"])["text"] == "awful"
    assert [part["field"] for part in why["parts"]] == ["Benefits"] * 4


def test_an_explanation_is_of_one_review_and_asked_for_by_true(app_client: TestClient) -> None:
    assert error_of(app_client.post("/predict", json={"text": TEXT, "explain": "yes"})) == (422, "bad_request")
    assert error_of(app_client.post("/predict", json=[{"text": TEXT, "explain": True}])) == (422, "bad_request")
    assert error_of(app_client.post("/predict", json={"text": " ", "explain": True})) == (422, "no_text")
