"""The page in Chromium, as people use it."""

import csv
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving_tools import LiveServer

import rxtone
from rxtone.serving.corrections import read_corrections

playwright = pytest.importorskip("playwright.sync_api", reason="needs the Python package playwright")
CHROMIUM = Path("/usr/bin/chromium")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync")  # fmt: skip
PATIENCE = 60_000
pytestmark = pytest.mark.skipif(not CHROMIUM.is_file(), reason="needs Debian's chromium")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="module")
def server(tiny_run: Path, second_run: Path, folder: Path) -> Iterator[LiveServer]:
    runs = [str(tiny_run), str(second_run)]
    server = LiveServer(folder, f"run_server({runs!r}, port=0, corrections=Path({str(folder / 'c.sqlite')!r}))")
    yield server
    server.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator["playwright.Browser"]:
    with playwright.sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=str(CHROMIUM), args=list(FLAGS))
        yield browser
        browser.close()


def open_page(browser: "playwright.Browser", url: str, width: int = 1280, scheme: str = "light") -> "playwright.Page":
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.goto(url)
    page.get_by_role("heading", name="What does this review say?").wait_for()
    # Gradio shows the heading before the rest is there; what is mounted later takes the focus from what is typed into.
    page.get_by_text("My headaches are gone within half an hour.").first.wait_for()
    page.wait_for_load_state("networkidle")
    return page


@pytest.fixture
def page(browser: "playwright.Browser", server: LiveServer) -> Iterator["playwright.Page"]:
    page = open_page(browser, server.url)
    yield page
    page.context.close()


def answer(page: "playwright.Page") -> "playwright.Locator":
    return page.get_by_role("status", name="Answer").locator("visible=true")


def test_typing_a_review_shows_its_label_and_asks_no_other_server(
    page: "playwright.Page", server: LiveServer, tiny_run: Path
) -> None:
    elsewhere: list[str] = []
    page.on(
        "request",
        lambda request: (
            elsewhere.append(request.url) if not request.url.startswith((server.url, "data:", "blob:")) else None
        ),
    )
    page.get_by_label("Benefits").locator("visible=true").fill("great relief")
    page.get_by_label("Side Effects").locator("visible=true").fill("<img src=x onerror=document.title='broken'> none")
    page.get_by_role("button", name="Read the review").locator("visible=true").click()
    expected = rxtone.load(tiny_run).predict(
        [{"Benefits": "great relief", "Side Effects": "<img src=x onerror=document.title='broken'> none"}]
    )
    assert answer(page).get_by_role("heading").inner_text() == expected[0].label
    assert page.title() == "rxtone"
    page.reload()
    page.get_by_role("heading", name="What does this review say?").wait_for()
    assert elsewhere == []


def test_the_keyboard_is_enough(page: "playwright.Page") -> None:
    page.get_by_label("Benefits").locator("visible=true").focus()
    page.keyboard.type("awful")
    page.keyboard.press("Tab")
    page.keyboard.type("worse")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent.trim()") == "Read the review"
    page.keyboard.press("Enter")
    answer(page).wait_for()
    assert answer(page).get_by_role("listitem").count() == 3


def test_too_long_a_text_is_refused_and_a_long_one_marked(page: "playwright.Page") -> None:
    page.get_by_role("tab", name="Free text").click()
    box = page.get_by_label("Review", exact=True).locator("visible=true")
    box.fill("x" * 20_001)
    page.get_by_role("button", name="Read the review").locator("visible=true").click()
    page.get_by_role("alert").filter(has_text="expected at most 20000 characters, got 20001; shorten it").wait_for()
    box.fill("pain " * 200)
    page.get_by_role("button", name="Read the review").locator("visible=true").click()
    note = answer(page).get_by_text("Too long for the prompt").inner_text()
    assert re.search(r"\d+ tokens of text were not read", note)


def test_a_table_is_uploaded_and_its_result_downloaded(
    page: "playwright.Page", server: LiveServer, folder: Path, tmp_path: Path, tiny_run: Path
) -> None:
    path = tmp_path / "mine.csv"
    path.write_text('id,benefits,effects\n007,"great, relief",none\n008,useless quokka,awful\n')
    page.get_by_role("tab", name="Table").click()
    page.locator("input[type=file]").set_input_files(path)
    page.get_by_text("mine.csv").or_(page.get_by_text("mine")).first.wait_for()
    page.get_by_role("button", name="Read the table").click()
    page.get_by_role("heading", name="2 reviews read").wait_for()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download the result").or_(
            page.get_by_role("link", name="Download the result")
        ).first.click()
    assert download.value.suggested_filename == "mine-labelled.csv"
    download.value.save_as(tmp_path / "result.csv")
    with (tmp_path / "result.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    expected = rxtone.load(tiny_run).predict(
        [{"benefits": "great, relief", "effects": "none"}, {"benefits": "useless quokka", "effects": "awful"}]
    )
    assert [(row["id"], row["label"]) for row in rows] == [("007", expected[0].label), ("008", expected[1].label)]
    left = [file for file in folder.rglob("*") if file.is_file() and b"quokka" in file.read_bytes()]
    assert {file.name for file in left} <= {"mine-labelled.csv"}  # the upload is gone


def test_runs_are_compared(page: "playwright.Page") -> None:
    page.get_by_role("tab", name="Compare").click()
    page.get_by_label("Benefits").locator("visible=true").fill("great")
    page.get_by_role("button", name="Compare the runs").click()
    answer(page).first.wait_for()
    assert answer(page).get_by_role("heading", level=3).all_inner_texts() == ["tiny", "other"]


def test_a_wrong_answer_is_corrected_with_consent(page: "playwright.Page", folder: Path) -> None:
    page.get_by_label("Benefits").locator("visible=true").fill("some relief")
    page.get_by_role("button", name="This is wrong").locator("visible=true").click()
    page.get_by_label("neutral").locator("visible=true").check()
    keep = page.get_by_role("button", name="Keep my correction").locator("visible=true")
    keep.click()
    page.get_by_role("alert").filter(has_text="tick the box").wait_for()
    page.get_by_label("I agree that").locator("visible=true").check()
    keep.click()
    page.get_by_text("Thank you. Kept: neutral").wait_for()
    kept = read_corrections(folder / "c.sqlite")
    assert [(one.label, one.review.fields[0]) for one in kept] == [("neutral", ("Benefits", "some relief"))]


def test_typing_asks_the_server_nothing_and_a_click_one_request(page: "playwright.Page", server: LiveServer) -> None:
    """Gradio's event stream lost a click that came while an earlier event's stream closed."""
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "/gradio_api/" in request.url else None)
    page.get_by_label("Benefits").locator("visible=true").fill("great relief")
    page.wait_for_timeout(300)
    assert asked == []
    page.get_by_role("button", name="Read the review").locator("visible=true").click()
    answer(page).wait_for()
    page.wait_for_timeout(300)
    assert len(asked) == 1
    assert "/queue/" not in asked[0]


def test_it_fits_360_pixels(browser: "playwright.Browser", server: LiveServer) -> None:
    page = open_page(browser, server.url, width=360)
    page.get_by_label("Benefits").locator("visible=true").fill("great relief")
    page.get_by_role("button", name="Read the review").locator("visible=true").click()
    answer(page).wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.get_by_role("button", name="More tabs").or_(page.locator(".overflow-menu > button")).first.click()
    page.get_by_role("button", name="About").or_(page.get_by_role("tab", name="About")).last.click()
    page.get_by_text("a LoRA adapter on").locator("visible=true").first.wait_for()
    page.context.close()


def test_dark_mode_follows_the_system(browser: "playwright.Browser", server: LiveServer) -> None:
    page = open_page(browser, server.url, scheme="dark")
    page.locator("body.dark").wait_for()
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(map(int, re.findall(r"\d+", colour)[:3])) < 64
    page.context.close()


def test_the_page_says_which_words_drove_the_answer(page: "playwright.Page") -> None:
    box = page.get_by_label("Benefits").locator("visible=true")
    box.fill("the pill was <b>awful</b>")
    page.get_by_role("button", name="Why?").locator("visible=true").click()
    shown = page.get_by_role("status", name="Explanation").locator("visible=true")
    shown.wait_for()
    assert "Benefits" in shown.inner_text()
    assert "<b>awful</b>" in shown.inner_text()  # escaped: the page shows the marks, it does not obey them
    assert shown.locator("mark").count() >= 1
    box.fill("great")
    shown.wait_for(state="detached")


def test_a_server_that_stops_lets_open_pages_go(page: "playwright.Page", server: LiveServer) -> None:
    """Last in this file: it ends the server."""
    box = page.get_by_label("Benefits").locator("visible=true")
    box.fill("great relief")
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(20) == 0  # and not after the 30 s that admitted requests have
    page.get_by_role("button", name="Read the review").locator("visible=true").click()
    page.wait_for_timeout(1000)
    assert box.input_value() == "great relief"  # what was typed is still there
    assert "Traceback" not in server.log.read_text()
