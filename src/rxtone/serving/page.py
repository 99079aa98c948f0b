"""What happens when someone uses the page: inputs in, HTML out; no Gradio in here."""

from __future__ import annotations

import asyncio
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from rxtone.errors import RxtoneError
from rxtone.run import CARD
from rxtone.serving import page_html
from rxtone.serving.corrections import Correction, add_correction
from rxtone.serving.limits import RequestError
from rxtone.serving.uploads import read_upload, with_predictions, write_result

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rxtone.classifier import Prediction
    from rxtone.data.reviews import Review
    from rxtone.serving.models import Served
    from rxtone.serving.service import Service

PREVIEW_ROWS = 100
PREVIEW_CHARS = 120

logger = logging.getLogger("rxtone.serving")


class Page:
    """The page's actions.

    Args:
        service: The runs and their queue.
        corrections: SQLite file for corrections; None keeps none.
        folder: Where results lie until they are downloaded.
    """

    def __init__(self, service: Service, corrections: Path | None, folder: Path) -> None:
        self.service = service
        self.corrections = corrections
        self._folder = folder

    async def answer(self, run: str | None, review: str | Mapping[str, str]) -> str:
        """The card of one review, or why there is none."""
        try:
            return await self._card(run, review)
        except Exception as error:
            return page_html.error(explain(error))

    async def why(self, run: str | None, review: str | Mapping[str, str]) -> str:
        """Which words and which field drove the answer, or why that cannot be told."""
        try:
            served, checked = self._checked(run, review)
            _, found = await self.service.explain(checked, served.name)
        except Exception as error:
            return page_html.error(explain(error))
        return page_html.why(found)

    async def compare(self, fields: Mapping[str, str]) -> str:
        """Cards of all runs for one review; each reads the fields it knows."""
        cards = []
        for name in self.service.pool.names():
            known = self.service.pool.get(name).classifier.spec.text_fields
            try:
                own = {field: text for field, text in fields.items() if field in known}
                cards.append(await self._card(name, own, title=name))
            except Exception as error:
                cards.append(page_html.error(f"{name}: {explain(error)}"))
        return page_html.comparison(cards)

    async def correct(self, run: str | None, review: str | Mapping[str, str], label: str | None, consent: bool) -> str:
        """Keep a correction; the answer that is corrected is computed anew, so that nothing is remembered."""
        if self.corrections is None:
            return page_html.error("this server keeps no corrections")
        if not label:
            return page_html.error("choose the right label first")
        if not consent:
            return page_html.error("nothing was kept: tick the box if you agree that the review is kept")
        try:
            served, checked = self._checked(run, review)
            prediction = (await self.service.predict([checked], served.name))[0]
            correction = Correction(
                served.name, checked, {} if checked.text is not None else served.classifier.spec.text_fields,
                prediction.label, prediction.probabilities[prediction.label], label,
            )  # fmt: skip
            await asyncio.to_thread(add_correction, self.corrections, correction)
        except Exception as error:
            return page_html.error(explain(error))
        return page_html.done(f"Thank you. Kept: {label} instead of {prediction.label}.")

    async def table(
        self, run: str | None, path: str | None, progress: Callable[[int, int], None]
    ) -> tuple[str, pl.DataFrame | None, str | None]:
        """Predict an uploaded table.

        Args:
            run: Which run.
            path: Where the upload lies; it is deleted.
            progress: Called with rows done and rows in all.

        Returns:
            A summary or a refusal as HTML, the first rows, and where the result lies.
        """
        if path is None:
            return page_html.error("choose a table first: CSV, TSV, Parquet or JSON Lines"), None, None
        try:
            served = self.service.pool.get(run)
            most = self.service.limits.stream_texts
            table, reviews = await asyncio.to_thread(read_upload, Path(path), served.classifier, most)
            predictions: list[Prediction] = []
            async for window in self.service.stream(reviews, served.name):
                predictions += window
                progress(len(predictions), len(reviews))
            if not predictions:
                return page_html.error(f"{Path(path).name}: expected rows, found only a header"), None, None
            frame = with_predictions(table.frame, predictions, served.classifier.labels)
            name = Path(path)
            folder = Path(tempfile.mkdtemp(dir=self._folder))
            output = folder / f"{name.stem}-labelled{name.suffix.lower()}"
            await asyncio.to_thread(write_result, frame, output)
        except Exception as error:
            return page_html.error(explain(error)), None, None
        return page_html.summary(predictions, served.classifier.labels), preview(frame), str(output)

    def cards(self) -> str:
        """The model cards of all runs, as Markdown."""
        parts = []
        for name in self.service.pool.names():
            served = self.service.pool.get(name)
            path = served.folder / CARD
            text = _body(path.read_text("utf-8")) if path.is_file() else "This run has no model card."
            parts.append(f"*Run {name}*\n\n{text}" if len(self.service.pool.names()) > 1 else text)
        return "\n\n---\n\n".join(parts)

    async def _card(self, run: str | None, review: str | Mapping[str, str], title: str | None = None) -> str:
        served, checked = self._checked(run, review)
        prediction = (await self.service.predict([checked], served.name))[0]
        prompt = served.classifier.prompts.build(checked)
        read = served.classifier.tokenizer.decode(list(prompt.ids), skip_special_tokens=True)
        return page_html.card(prediction, prompt, read, title=title)

    def _checked(self, run: str | None, review: str | Mapping[str, str]) -> tuple[Served, Review]:
        served = self.service.pool.get(run)
        texts = [review] if isinstance(review, str) else list(review.values())
        if not any(text and text.strip() for text in texts):
            raise RequestError(422, "no_text", "write something first")
        return served, self.service.check(served, review)


def explain(error: Exception) -> str:
    """What a user may read about an error; an unexpected one goes to the log, without its message."""
    if isinstance(error, RequestError):
        return error.message.removeprefix("review 0: ")
    if isinstance(error, RxtoneError):
        return str(error)
    logger.error("page: %s", type(error).__name__)
    return "an error in the server; see its log"


def preview(frame: pl.DataFrame) -> pl.DataFrame:
    """The first rows, predictions first, long texts shortened, probabilities rounded."""
    first = [name for name in ("label", "score") if name in frame.columns]
    rest = [name for name in frame.columns if name not in first]
    texts = [
        pl.when(pl.col(name).str.len_chars() > PREVIEW_CHARS)
        .then(pl.col(name).str.slice(0, PREVIEW_CHARS) + "…")
        .otherwise(pl.col(name))
        .alias(name)
        for name, kind in frame.schema.items()
        if kind == pl.String
    ]
    numbers = [pl.col(name).round(3) for name, kind in frame.schema.items() if kind == pl.Float64]
    return frame.head(PREVIEW_ROWS).with_columns(*texts, *numbers).select(*first, *rest)


def _body(card: str) -> str:
    """A model card without the YAML that the hub reads."""
    if card.startswith("---\n"):
        return card.partition("\n---\n")[2].strip()
    return card.strip()
