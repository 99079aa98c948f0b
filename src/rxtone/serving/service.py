"""What the API and the page both call: reviews in, checked, batched, predictions out."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rxtone.errors import DataError
from rxtone.explain import Explanation, explain, forward_passes
from rxtone.serving.batching import Batcher
from rxtone.serving.limits import Limits, RequestError
from rxtone.serving.metrics import ServerMetrics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from rxtone.classifier import Prediction
    from rxtone.data.reviews import Review
    from rxtone.serving.models import ModelPool, Served

    RawReview = str | Mapping[str, str] | Review

INLINE_CHARS = 4_000
"""Text that is tokenised faster than another thread could be asked to do it."""
WINDOW = 64
"""Reviews of one stream that are in the queue at the same time."""


@dataclass(eq=False)
class Explainer:
    """Stands in the queue for a run: what it computes is kept beside the predictions.

    Attributes:
        served: The run.
        found: The explanations, in order.
    """

    served: Served
    found: list[Explanation] = field(default_factory=list)

    def predict(self, reviews: Sequence[Review]) -> list[Prediction]:
        """Predictions of reviews; each is explained, too."""
        predictions = self.served.predict(self.served.classifier.prompts.build_many(reviews))
        self.found += [explain(self.served.classifier, review) for review in reviews]
        return predictions


class Service:
    """The runs, their queue and their limits.

    Args:
        pool: The runs.
        limits: Bounds.
    """

    def __init__(self, pool: ModelPool, limits: Limits) -> None:
        self.pool = pool
        self.limits = limits
        self.metrics = ServerMetrics()
        self.batcher = Batcher(limits, self.metrics.batch)
        self.metrics.gauge("rxtone_queue_reviews", "Reviews that wait.", self.batcher.waiting)
        self.metrics.gauge("rxtone_reloads", "Runs reloaded.", lambda: pool.reloads)
        self.metrics.gauge("rxtone_failed_reloads", "Runs that changed and could not be loaded.",
                           lambda: pool.failed_reloads)  # fmt: skip

    async def predict(self, reviews: Sequence[RawReview], run: str | None = None) -> list[Prediction]:
        """Predict a request's reviews.

        Args:
            reviews: Texts, mappings of field to text, or reviews; at most `limits.texts`.
            run: Which run; None for the default.

        Returns:
            Predictions in order.

        Raises:
            RequestError: 413, 422, 429 or 503.
        """
        if len(reviews) > self.limits.texts:
            message = f"expected at most {self.limits.texts} reviews, got {len(reviews)}; use /predict_batch"
            raise RequestError(413, "too_many_reviews", message)
        served = self.pool.get(run)
        checked = [self.check(served, review, index) for index, review in enumerate(reviews)]
        return await self._compute(served, checked)

    async def explain(self, review: RawReview, run: str | None = None) -> tuple[Prediction, Explanation]:
        """Predict one review and tell what drove the answer: the work of up to some hundred predictions.

        Args:
            review: A text, a mapping of field to text, or a review.
            run: Which run; None for the default.

        Returns:
            The prediction and its explanation.

        Raises:
            RequestError: 413, 422, 429 or 503.
        """
        served = self.pool.get(run)
        checked = self.check(served, review)
        reading = await asyncio.to_thread(served.classifier.prompts.reading, checked)
        if not reading.words:
            raise RequestError(422, "no_text", "review 0: nothing of it fits the prompt, so nothing can be explained")
        explainer = Explainer(served)
        # The queue's estimates count tokens, so that who waits behind an explanation is told the truth.
        tokens = [len(reading.prompt.ids) * (1 + forward_passes(reading))]
        job = self.batcher.submit(explainer, [checked], tokens)
        predictions = await asyncio.wrap_future(job.future)
        return predictions[0], explainer.found[0]

    async def stream(self, reviews: Sequence[RawReview], run: str | None = None) -> AsyncIterator[list[Prediction]]:
        """Predict many reviews window by window, waiting for room in the queue instead of giving up.

        Args:
            reviews: Any number of them, all checked before the first is computed.
            run: Which run; None for the default.

        Yields:
            Predictions of up to `WINDOW` reviews, in order.

        Raises:
            RequestError: 413 or 422 before the first window, 429 for the first window, 503.
        """
        if len(reviews) > self.limits.stream_texts:
            message = f"expected at most {self.limits.stream_texts} reviews, got {len(reviews)}; send them in parts"
            raise RequestError(413, "too_many_reviews", message)
        served = self.pool.get(run)
        checked = [self.check(served, review, index) for index, review in enumerate(reviews)]
        for start in range(0, len(checked), WINDOW):
            while True:
                try:
                    yield await self._compute(served, checked[start : start + WINDOW])
                    break
                except RequestError as error:
                    if error.status != 429 or start == 0:
                        raise
                    await asyncio.sleep(0.05)

    def check(self, served: Served, review: RawReview, index: int = 0) -> Review:
        """Refuse what cannot be predicted.

        Args:
            served: The run.
            review: One review as it came.
            index: Its position in the request, for the message.

        Returns:
            The review.

        Raises:
            RequestError: 413 if it is too long, 422 if it has no text or an unknown field.
        """
        try:
            made = served.classifier.as_review(review)
        except DataError as error:
            raise RequestError(422, "bad_field", f"review {index}: {error}") from None
        texts = [made.text] if made.text is not None else [text for _, text in made.fields]
        length = sum(map(len, texts))
        if length > self.limits.text_chars:
            message = f"review {index}: expected at most {self.limits.text_chars} characters, got {length}; shorten it"
            raise RequestError(413, "text_too_long", message)
        if not any(text.strip() for text in texts):
            raise RequestError(422, "no_text", f"review {index}: expected some text, got none")
        return made

    def close(self) -> None:
        """Finish what was admitted and stop."""
        self.batcher.close()
        self.pool.close()

    async def _compute(self, served: Served, reviews: list[Review]) -> list[Prediction]:
        if not reviews:
            return []
        build = served.classifier.prompts.build_many
        chars = sum(len(review.text or "") + sum(len(text) for _, text in review.fields) for review in reviews)
        if chars <= INLINE_CHARS:
            prompts = build(reviews)
        else:
            prompts = await asyncio.to_thread(build, reviews)
        job = self.batcher.submit(served, prompts, [len(prompt.ids) for prompt in prompts])
        # Cancelling the wait cancels the job: work of a gone client is not computed.
        return await asyncio.wrap_future(job.future)
