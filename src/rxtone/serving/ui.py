"""The page: Gradio components, and which action each of them starts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from rxtone.serving import page_html
from rxtone.serving.auth import USER, token_fits
from rxtone.serving.corrections import CONSENT
from rxtone.serving.page import Page
from rxtone.serving.uploads import SUFFIXES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fastapi import FastAPI

    from rxtone.serving.service import Service

EXAMPLES = (
    {"Benefits": "My headaches are gone within half an hour.", "Side Effects": "None that I noticed.",
     "Comments": "One tablet when the pain starts."},
    {"Benefits": "It took the edge off, not more.", "Side Effects": "Dry mouth and a little dizzy in the mornings.",
     "Comments": "Two tablets a day for three weeks."},
    {"Benefits": "I saw no change at all.", "Side Effects": "Nausea every day, I could not work.",
     "Comments": "Stopped after ten days."},
)  # fmt: skip
"""Written for this page; their names are those of the reference task's fields."""
KEEP_SECONDS = 600
"""How long a result waits for its download."""
WAITING = 64
"""Tables of all open pages that may wait."""
PLAIN: dict[str, Any] = {"queue": False, "api_visibility": "private", "show_progress": "minimal"}
"""An action is one request and its answer: the service has a queue of its own, and Gradio's, which answers over an
event stream, loses an action that comes while the stream of an earlier one closes."""
FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "monospace")


def mount_page(
    app: FastAPI, service: Service, *, token: str | None, corrections: Path | None, folder: Path
) -> Callable[[], None]:
    """Mount the page at `/`, behind what the API serves.

    Args:
        app: The API.
        service: The runs and their queue.
        token: The password of the page's login; None asks for none.
        corrections: SQLite file for corrections; None hides the button.
        folder: For uploads and results; the caller removes it.

    Returns:
        To be called when the server is told to stop: lets go of the pages that are open.
    """
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    blocks = build_page(Page(service, corrections, folder))
    gr.mount_gradio_app(
        app, blocks, path="/", footer_links=[], run_history=False, max_file_size=service.limits.upload_bytes,
        auth=None if token is None else (lambda user, password: user == USER and token_fits(token, password)),
        auth_message=f"User {USER}; the password is the server's token.", enable_monitoring=False, mcp_server=False,
        pwa=False, ssr_mode=False, show_error=False, head=f"<style>{page_html.CSS}</style>", theme=_theme(),
        app_kwargs={"docs_url": None, "redoc_url": None, "openapi_url": None},
    )  # fmt: skip
    page_app = next(route.app for route in app.routes if getattr(route, "path", None) == "")  # type: ignore[attr-defined]

    def let_go() -> None:
        page_app.stop_event.set()

    return let_go


def build_page(page: Page) -> gr.Blocks:
    """The page's components.

    Args:
        page: Its actions.

    Returns:
        The page, not yet mounted.
    """
    pool = page.service.pool
    names = pool.names()
    fields = list(dict.fromkeys(field for name in names for field in pool.get(name).classifier.spec.text_fields))
    labels = list(pool.get().classifier.labels)
    blocks: gr.Blocks = gr.Blocks(title="rxtone", analytics_enabled=False, delete_cache=(60, KEEP_SECONDS))
    with blocks:
        gr.HTML(page_html.head(names, labels), padding=False)
        run = gr.Dropdown(names, value=names[0], label="Run", visible=len(names) > 1, interactive=True)
        with gr.Tab("Fields"):
            _fields_tab(page, run, fields)
        with gr.Tab("Free text"):
            _text_tab(page, run)
        if len(names) > 1:
            with gr.Tab("Compare"):
                _compare_tab(page, fields)
        with gr.Tab("Table"):
            _table_tab(page, run)
        with gr.Tab("About"):
            gr.Markdown(page.cards(), sanitize_html=True)
    blocks.queue(default_concurrency_limit=16, max_size=WAITING, api_open=False)
    built: gr.Blocks = blocks
    return built


def _fields_tab(page: Page, run: gr.Dropdown, fields: Sequence[str]) -> None:
    pool = page.service.pool

    def review(run_name: str, texts: tuple[Any, ...]) -> dict[str, str]:
        known = pool.get(run_name).classifier.spec.text_fields
        return {field: text or "" for field, text in zip(fields, texts, strict=True) if field in known}

    with gr.Row(equal_height=False):
        with gr.Column():
            boxes = [gr.Textbox(label=field, lines=2, max_lines=8) for field in fields]
            ask = gr.Button("Read the review", variant="primary")
        with gr.Column():
            answer = gr.HTML(page_html.HINT, padding=False)
            _why(page, run, boxes, review)
            _correction(page, run, boxes, review)
    rows = [[example.get(field, "") for field in fields] for example in EXAMPLES]
    if any(any(row) for row in rows):
        gr.Examples(rows, boxes, label="Examples", cache_examples=False, api_visibility="private")

    async def read(run_name: str, *texts: str) -> str:
        return await page.answer(run_name, review(run_name, texts))

    ask.click(read, [run, *boxes], answer, **PLAIN)

    def shown(run_name: str) -> list[Any]:
        known = pool.get(run_name).classifier.spec.text_fields
        return [gr.update(visible=field in known) for field in fields]

    run.change(shown, run, boxes, **PLAIN)


def _text_tab(page: Page, run: gr.Dropdown) -> None:
    with gr.Row(equal_height=False):
        with gr.Column():
            box = gr.Textbox(label="Review", lines=6, max_lines=16)
            ask = gr.Button("Read the review", variant="primary")
        with gr.Column():
            answer = gr.HTML(page_html.HINT, padding=False)
            _why(page, run, [box], lambda _, texts: str(texts[0] or ""))
            _correction(page, run, [box], lambda _, texts: str(texts[0] or ""))
    rows = [[" ".join(example.values())] for example in EXAMPLES]
    gr.Examples(rows, [box], label="Examples", cache_examples=False, api_visibility="private")

    async def read(run_name: str, text: str) -> str:
        return await page.answer(run_name, text or "")

    ask.click(read, [run, box], answer, **PLAIN)


def _why(
    page: Page, run: gr.Dropdown, boxes: Sequence[gr.Textbox], review: Callable[[str, tuple[Any, ...]], Any]
) -> None:
    """The "Why?" part below an answer."""
    ask = gr.Button("Why? Show what drove the answer")
    shown = gr.HTML(padding=False)

    async def why(run_name: str, *texts: str) -> str:
        return await page.why(run_name, review(run_name, texts))

    ask.click(why, [run, *boxes], shown, **PLAIN)
    # An explanation of another text would mislead. The browser clears it: typing asks the server nothing.
    gr.on(
        [run.change, *(box.change for box in boxes)], None, None, shown, js="() => ''", api_visibility="private",
        show_progress="hidden",
    )  # fmt: skip


def _correction(
    page: Page, run: gr.Dropdown, boxes: Sequence[gr.Textbox], review: Callable[[str, tuple[Any, ...]], Any]
) -> None:
    """The "This is wrong" part below an answer."""
    if page.corrections is None:
        return
    pool = page.service.pool
    with gr.Accordion("This is wrong", open=False):
        right = gr.Radio(list(pool.get().classifier.labels), label="The right label")
        consent = gr.Checkbox(label=CONSENT)
        keep = gr.Button("Keep my correction")
        outcome = gr.HTML(padding=False)

    async def correct(run_name: str, label: str | None, agreed: bool, *texts: str) -> str:
        return await page.correct(run_name, review(run_name, texts), label, agreed)

    keep.click(correct, [run, right, consent, *boxes], outcome, **PLAIN)

    def choices(run_name: str) -> Any:  # Gradio's own update
        return gr.update(choices=list(pool.get(run_name).classifier.labels), value=None)

    run.change(choices, run, right, **PLAIN)


def _compare_tab(page: Page, fields: Sequence[str]) -> None:
    boxes = [gr.Textbox(label=field, lines=2, max_lines=8) for field in fields]
    ask = gr.Button("Compare the runs", variant="primary")
    answer = gr.HTML(page_html.HINT, padding=False)

    async def compare(*texts: str) -> str:
        return await page.compare(dict(zip(fields, (text or "" for text in texts), strict=True)))

    ask.click(compare, boxes, answer, **PLAIN)


def _table_tab(page: Page, run: gr.Dropdown) -> None:
    limits = page.service.limits
    columns = ", ".join(page.service.pool.get().classifier.spec.text_fields.values())
    gr.Markdown(
        f"A table with the columns {columns}; at most {limits.stream_texts:,} rows and "
        f"{limits.upload_bytes >> 20} MB. It is deleted as soon as it is read, its result after "
        f"{KEEP_SECONDS // 60} minutes."
    )
    upload = gr.File(
        label="Table (CSV, TSV, Parquet, JSON Lines)", file_types=list(SUFFIXES), type="filepath", height=130
    )
    ask = gr.Button("Read the table", variant="primary")
    summary = gr.HTML(padding=False)
    result = gr.DownloadButton("Download the result", visible=False)
    shown = gr.Dataframe(label="First rows", visible=False, interactive=False, wrap=True, max_height=480)

    async def read(
        run_name: str, path: str | None, progress: gr.Progress = gr.Progress()  # noqa: B008  # Gradio's way
    ) -> list[Any]:  # fmt: skip
        def tell(done: int, of: int) -> None:
            progress((done, of), desc="reading", unit="reviews")

        html, frame, output = await page.table(run_name, path, tell)
        return [
            html,
            gr.update(value=output, visible=output is not None),
            gr.update(value=frame, visible=frame is not None),
            None,  # the upload is gone
        ]

    ask.click(read, [run, upload], [summary, result, shown, upload], api_visibility="private", show_progress_on=summary)


def _theme() -> gr.themes.Base:
    return gr.themes.Base(
        primary_hue="teal", neutral_hue="slate", font=FONTS, font_mono=MONO, radius_size="md"
    ).set(  # AA contrast of white on the button
        button_primary_background_fill="#0f766e", button_primary_background_fill_hover="#115e59",
        button_primary_background_fill_dark="#0f766e", button_primary_background_fill_hover_dark="#115e59",
        button_primary_text_color="white", button_primary_text_color_dark="white",
    )  # fmt: skip
