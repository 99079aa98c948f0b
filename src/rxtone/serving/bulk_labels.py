"""From the chunks of a bulk job to their labels: here, one after another, or wherever another runner puts them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from rxtone.classifier import Classifier, Prediction
from rxtone.data.reviews import read_reviews
from rxtone.data.tables import Table
from rxtone.serving.bulk_inputs import Chunk

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True)
class Work:
    """A chunk with its place in the job.

    Attributes:
        index: Position from 0; its part is numbered by it.
        source: Its input, as named by the user.
        chunk: The rows.
        done: Whether its part is there already, from an earlier call: there is nothing to label.
    """

    index: int
    source: str
    chunk: Chunk
    done: bool


@dataclass(frozen=True)
class Ask:
    """How all chunks of a job are labelled.

    Attributes:
        batch_size: Reviews per batch.
        min_confidence: Mark answers of less probability as abstained; None takes the run's own bound.
        chunks: How many chunks the job has.
    """

    batch_size: int
    min_confidence: float | None
    chunks: int


Runner: TypeAlias = Callable[
    [Classifier, Iterator[Work], Ask], Generator[tuple[Work, list[Prediction] | None], None, None]
]
"""Labels every chunk once, in any order, and reads ahead by a bounded number of them; None beside those that are done.

The caller numbers parts by `Work.index` and joins them by number, so the order of answers does not matter.
"""


def label_here(
    classifier: Classifier, works: Iterator[Work], ask: Ask
) -> Generator[tuple[Work, list[Prediction] | None], None, None]:
    """The runner of this process: one chunk after another, in order.

    Args:
        classifier: The loaded classifier.
        works: The chunks.
        ask: How they are labelled.

    Yields:
        Each chunk with the predictions of its good rows.
    """
    for work in works:
        yield work, None if work.done else label_frame(classifier, work.chunk.frame, work.source, ask)


def label_frame(classifier: Classifier, frame: pl.DataFrame, source: str, ask: Ask) -> list[Prediction]:
    """Label the good rows of a chunk.

    Args:
        classifier: The loaded classifier.
        frame: n rows with at least the text columns.
        source: Their input, for messages.
        ask: How they are labelled.

    Returns:
        n predictions.
    """
    reviews = read_reviews(Table(source, frame, ""), classifier.spec.text_fields, None, None)
    return classifier.predict(reviews, batch_size=ask.batch_size, min_confidence=ask.min_confidence)
