"""The page's actions and its mounting, without a browser (test_browser.py has one)."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import polars as pl
import pytest
from serving_tools import LiveServer, error_of

import rxtone
from rxtone.serving import page_html
from rxtone.serving.corrections import read_corrections
from rxtone.serving.limits import Limits
from rxtone.serving.models import ModelPool
from rxtone.serving.page import Page, preview
from rxtone.serving.service import Service

HOSTILE = "<img src=x onerror=alert(1)> great"
TOKEN = "correct-horse-battery"
PROBES = (
    "/gradio_api/file=/etc/passwd",
    "/gradio_api/file=../../etc/passwd",
    "/gradio_api/file=%2e%2e%2f%2e%2e%2fetc/passwd",
    "/gradio_api/file=http://127.0.0.1/",
    "/gradio_api/proxy=http://127.0.0.1/x",
    "/monitoring",
    "/static/../../../etc/passwd",
)
FIELDS = {"Benefits": "great relief", "Side Effects": "none"}


@pytest.fixture(scope="module")
def service(tiny_run: Path, second_run: Path) -> Iterator[Service]:
    limits = Limits(text_chars=1000, stream_texts=120)
    service = Service(ModelPool([str(tiny_run), str(second_run)], rxtone.load, min_confidence=0.0), limits)
    yield service
    service.close()


@pytest.fixture
def page(service: Service, tmp_path: Path) -> Page:
    (tmp_path / "results").mkdir()
    return Page(service, tmp_path / "corrections.sqlite", tmp_path / "results")


def test_the_answer_shows_label_bars_and_what_was_read(page: Page, tiny_run: Path) -> None:
    html = asyncio.run(page.answer("tiny", FIELDS))
    expected = rxtone.load(tiny_run).predict([FIELDS])[0]
    assert f"<h2>{expected.label}</h2>" in html
    for label, share in expected.probabilities.items():
        assert f"<span>{label}</span>" in html
        assert f"<span>{page_html.percent(share)}</span>" in html.replace("&gt;", ">").replace("&lt;", "<")
    assert "Benefits : great relief" in html  # the tiny tokenizer's own spacing
    assert "rx-note" not in html


def test_an_answer_that_is_not_the_likeliest_label_says_so(page: Page, tiny_run: Path) -> None:
    classifier = rxtone.load(tiny_run)
    (prediction,) = classifier.predict([FIELDS])
    least = min(prediction.probabilities, key=prediction.probabilities.__getitem__)
    likeliest = max(prediction.probabilities, key=prediction.probabilities.__getitem__)
    prompt = classifier.prompts.build(page._checked("tiny", FIELDS)[1])
    told = f"; {likeliest} is likelier, but this run was tuned to find rarer labels too"
    assert told in page_html.card(replace(prediction, label=least), prompt, "read")
    assert "is likelier" not in page_html.card(replace(prediction, label=likeliest), prompt, "read")


def test_percentages_never_claim_certainty() -> None:
    shares = (1.0, 0.9999, 0.914, 0.0001, 0.0)
    assert [page_html.percent(share) for share in shares] == ["100.0 %", "> 99.9 %", "91.4 %", "< 0.1 %", "0.0 %"]


def test_a_cut_is_marked_with_the_field_and_the_tokens(page: Page) -> None:
    html = asyncio.run(page.answer("tiny", {"Benefits": "great", "Side Effects": "pain " * 100}))
    assert "Too long for the prompt: " in html
    assert "tokens of Side Effects were not read" in html
    assert "the prompt holds 48" in html


def test_foreign_text_is_inert(page: Page) -> None:
    for html in (asyncio.run(page.answer("tiny", HOSTILE)), asyncio.run(page.answer("<script>", HOSTILE)),
                 asyncio.run(page.compare({"Benefits": HOSTILE})), page_html.error(HOSTILE),
                 page_html.done(HOSTILE)):  # fmt: skip
        assert "<img" not in html
        assert "<script" not in html


def test_refusals_are_shown_in_words(page: Page) -> None:
    assert "write something first" in asyncio.run(page.answer("tiny", "  "))
    assert "expected at most 1000 characters, got 1001; shorten it" in asyncio.run(page.answer("tiny", "x" * 1001))
    assert 'role="alert"' in asyncio.run(page.answer("tiny", ""))


def test_not_sure_is_shown_as_such(tiny_run: Path, tmp_path: Path) -> None:
    service = Service(ModelPool([str(tiny_run)], rxtone.load, min_confidence=1.0), Limits())
    html = asyncio.run(Page(service, None, tmp_path).answer(None, FIELDS))
    service.close()
    assert "<h2>Not sure</h2>" in html
    assert "the nearest label is" in html


def test_comparing_shows_every_run(page: Page, tiny_run: Path, second_run: Path) -> None:
    html = asyncio.run(page.compare(FIELDS))
    assert html.count("<section") == 2
    for run, name in ((tiny_run, "tiny"), (second_run, "other")):
        prediction = rxtone.load(run).predict([FIELDS])[0]
        card = html[html.index(f"<h3>{name}</h3>") :]
        assert f"<h2>{prediction.label}</h2>" in card


def test_a_correction_is_kept_only_with_consent(page: Page, tiny_run: Path) -> None:
    assert "tick the box" in asyncio.run(page.correct("tiny", FIELDS, "negative", False))
    assert "choose the right label" in asyncio.run(page.correct("tiny", FIELDS, None, True))
    assert page.corrections is not None
    assert not page.corrections.exists()
    assert "Thank you. Kept: negative" in asyncio.run(page.correct("tiny", FIELDS, "negative", True))
    asyncio.run(page.correct("other", "great pill", "neutral", True))
    kept = read_corrections(page.corrections)
    expected = rxtone.load(tiny_run).predict([FIELDS])[0]
    assert (kept[0].run, kept[0].predicted, kept[0].label) == ("tiny", expected.label, "negative")
    assert kept[0].review.fields == tuple(FIELDS.items())
    assert kept[0].columns == {"Benefits": "benefits", "Side Effects": "effects"}
    assert (kept[1].run, kept[1].review.text) == ("other", "great pill")


def run_table(page: Page, path: Path) -> tuple[str, pl.DataFrame | None, str | None, list[tuple[int, int]]]:
    seen: list[tuple[int, int]] = []
    html, shown, output = asyncio.run(page.table("tiny", str(path), lambda done, of: seen.append((done, of))))
    assert not path.exists()  # the upload is gone in any case
    return html, shown, output, seen


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".jsonl"])
def test_a_table_comes_back_with_predictions_in_its_format(
    page: Page, tiny_run: Path, tmp_path: Path, suffix: str
) -> None:
    frame = pl.DataFrame({
        "id": [f"{i:03}" for i in range(100)],
        "benefits": ["great relief", "awful, \"useless\"", "average"] * 33 + ["None"],
        "effects": ["none"] * 100, "label": ["mine"] * 100,
    })  # fmt: skip
    path = tmp_path / f"reviews{suffix}"
    {".csv": frame.write_csv, ".tsv": lambda to: frame.write_csv(to, separator="\t"), ".parquet": frame.write_parquet,
     ".jsonl": frame.write_ndjson}[suffix](path)  # fmt: skip
    html, shown, output, seen = run_table(page, path)
    assert output is not None
    assert Path(output).name == f"reviews-labelled{suffix}"
    from rxtone.data.tables import read_table

    result = read_table(Path(output)).frame
    assert result.columns == [
        "id", "benefits", "effects", "input_label", "label", "score", "p_positive", "p_neutral", "p_negative",
        "truncated", "abstained",
    ]  # fmt: skip
    assert result["id"].to_list() == frame["id"].to_list()
    assert result["benefits"].to_list() == frame["benefits"].to_list()
    alone = rxtone.load(tiny_run).predict([{"benefits": b, "effects": "none"} for b in frame["benefits"]])
    assert result["label"].to_list() == [one.label for one in alone]
    scores = [float(score) for score in result["score"]]
    assert scores == pytest.approx([max(one.probabilities.values()) for one in alone], abs=1e-5)
    assert seen == [(64, 100), (100, 100)]
    assert "<h2>100 reviews read</h2>" in html
    assert shown is not None
    assert shown.columns[:2] == ["label", "score"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("reviews.txt", "x", "reviews.txt: expected a table ending in .csv, .tsv, .parquet, .jsonl, got .txt"),
        ("reviews.csv", "a,b\n1,2\n", "reviews.csv: expected columns"),
        ("reviews.csv", "benefits,effects\n" + "great,none\n" * 121, "reviews.csv: expected at most 120 rows"),
        ("reviews.csv", "benefits,effects\ngreat,none\n,\n", "data row 2"),
        ("reviews.parquet", "no parquet", "reviews.parquet"),
        ("reviews.csv", "benefits,effects\n" + "x" * 1001 + ",none\n", "expected at most 1000 characters"),
    ],
)  # fmt: skip
def test_bad_tables_are_refused_without_naming_the_place(
    page: Page, tmp_path: Path, name: str, content: str, message: str
) -> None:
    path = tmp_path / name
    path.write_text(content)
    html, shown, output, _ = run_table(page, path)
    assert message in html.replace("&quot;", '"')
    assert str(tmp_path) not in html
    assert (shown, output) == (None, None)
    assert "choose a table first" in asyncio.run(page.table("tiny", None, lambda *_: None))[0]


def test_the_preview_is_short() -> None:
    frame = pl.DataFrame({"text": ["x" * 500] * 300, "label": ["a"] * 300, "score": [0.123456] * 300})
    shown = preview(frame)
    assert shown.height == 100
    assert shown.row(0) == ("a", 0.123, "x" * 120 + "…")


def test_the_model_card_is_shown_without_its_yaml_head(page: Page) -> None:
    cards = page.cards()
    assert cards.startswith("*Run tiny*\n\n# positive / neutral / negative for reviews")
    assert "library_name" not in cards


def test_the_page_behind_a_login(serve: Callable[[str], LiveServer], tiny_run: Path, tmp_path: Path) -> None:
    # In a process of its own: Gradio leaves event loops behind, which warns.
    (tmp_path / "token").write_text(TOKEN)
    server = serve(f"run_server([{str(tiny_run)!r}], port=0, token_file=Path({str(tmp_path / 'token')!r}))")
    with httpx.Client(base_url=server.url, timeout=60) as client:
        assert client.get("/config").status_code == 401
        assert client.post("/gradio_api/queue/join", json={}).status_code == 401
        assert client.post("/gradio_api/upload", files={"files": b"x"}).status_code == 401
        for user, password in (("rxtone", "wrong"), ("admin", TOKEN)):
            assert client.post("/login", data={"username": user, "password": password}).status_code == 400
        assert client.post("/login", data={"username": "rxtone", "password": TOKEN}).status_code == 200
        config = client.get("/config")
        assert config.status_code == 200
        assert config.json()["analytics_enabled"] is False
        for path in PROBES:
            assert client.get(path).status_code in {400, 403, 404}, path
        assert client.get(f"/gradio_api/file={tiny_run}/config.yaml").status_code in {403, 404}
        assert client.post("/gradio_api/upload", files={"files": b"x" * (9 << 20)}).status_code == 413
        assert error_of(client.get("/info")) == (401, "bad_token")  # the page's login is none for the API
    assert server.stop() == 0
    assert not list(tmp_path.glob("rxtone-page-*"))  # its folder for uploads ends with it
