"""The HTTP API of a server: predictions, health, facts and figures."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from rxtone.errors import RxtoneError
from rxtone.serving.examples import (
    ERRORS,
    PREDICT_ANSWERS,
    PREDICT_BODY,
    STREAM_ANSWERS,
    STREAM_BODY,
)
from rxtone.serving.guard import Guard
from rxtone.serving.limits import RequestError
from rxtone.serving.requests import parse_lines, parse_predict

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Sequence

    from rxtone.classifier import Prediction
    from rxtone.serving.models import Served
    from rxtone.serving.service import Service

T = TypeVar("T")
TopK = Annotated[int | None, Query(ge=1, description="Most probable labels per review; all by default.")]
Run = Annotated[str | None, Query(description="Which run answers; the first by default. See /info.")]


def create_app(service: Service, *, token: str | None = None) -> FastAPI:
    """The API as an application, without a page.

    Args:
        service: The runs and their queue; closed with the application.
        token: What clients must show, or None on loopback.

    Returns:
        The application, its door guarded.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(
        title="rxtone", version=version("rxtone"), docs_url=None, redoc_url=None, lifespan=lifespan,
        description="Sentiment of reviews. Limits: see /info. Errors: {error: {code, message}}.",
    )  # fmt: skip
    app.add_middleware(
        Guard, limits=service.limits, metrics=service.metrics, token=token, check_room=service.batcher.check_room
    )
    _add_errors(app)
    _add_predict(app, service)
    _add_predict_batch(app, service)
    _add_facts(app, service)
    return app


def scored_labels(prediction: Prediction, top_k: int | None = None) -> list[dict[str, Any]]:
    """A prediction in the shape of the field's pipelines: the answer first, then the others by probability.

    The answer is the most probable label, unless the run was tuned to another operating point.

    Args:
        prediction: One prediction.
        top_k: Most labels; None for all.

    Returns:
        `label` and `score` per label; `truncated` and `abstained` tell about the review.
    """
    ranked = sorted(prediction.probabilities.items(), key=lambda item: (item[0] != prediction.label, -item[1]))
    flags = {"truncated": prediction.truncated, "abstained": prediction.abstained}
    return [{"label": label, "score": score, **flags} for label, score in ranked[:top_k]]


def _add_predict(app: FastAPI, service: Service) -> None:
    @app.post("/predict", responses=PREDICT_ANSWERS | ERRORS, openapi_extra=PREDICT_BODY, summary="Label reviews")
    async def predict(request: Request, top_k: TopK = None, run: Run = None) -> Response:
        """One review or a list; a list is answered by a list of lists, in order.

        With `"explain": true` beside one review, its first label carries `explanation`: what each field and each
        word moved.
        """
        body = await request.body()
        ask = parse_predict(body, depth=service.limits.json_depth, top_k=top_k, run=run)
        if ask.explain:
            prediction, why = await _unless_gone(request, service.explain(ask.reviews[0], ask.run))
            first, *others = scored_labels(prediction, ask.top_k)
            return JSONResponse([first | {"explanation": why.to_dict()}, *others])
        predictions = await _unless_gone(request, service.predict(ask.reviews, ask.run))
        answers = [scored_labels(prediction, ask.top_k) for prediction in predictions]
        return JSONResponse(answers if ask.many else answers[0])


def _add_predict_batch(app: FastAPI, service: Service) -> None:
    @app.post(
        "/predict_batch", responses=STREAM_ANSWERS | ERRORS, openapi_extra=STREAM_BODY, summary="Label many reviews"
    )
    async def predict_batch(request: Request, top_k: TopK = None, run: Run = None) -> Response:
        """JSON Lines in, JSON Lines out, one line per review, in order, as they are computed."""
        reviews = parse_lines(await request.body(), depth=service.limits.json_depth)
        windows = service.stream(reviews, run)
        # The first window decides about the status; after it only lines can follow.
        first = await _unless_gone(request, _next(windows))

        async def lines() -> AsyncIterator[bytes]:
            yield _lines(first, top_k)
            try:
                async for window in windows:
                    yield _lines(window, top_k)
            except RequestError as error:
                error.log()
                yield json.dumps(error.body()).encode() + b"\n"

        return StreamingResponse(lines(), media_type="application/x-ndjson")


def _add_facts(app: FastAPI, service: Service) -> None:
    @app.get("/health", summary="Is the process alive")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/ready", summary="Does it take work")
    async def ready() -> Response:
        takes = service.batcher.alive()
        return JSONResponse({"status": "ready" if takes else "closing"}, 200 if takes else 503)

    @app.get("/info", summary="Runs, labels, fields, limits")
    async def info() -> dict[str, Any]:
        runs = [_facts(service.pool.get(name)) for name in service.pool.names()]
        return {"version": version("rxtone"), "runs": runs, "limits": vars(service.limits)}

    @app.get("/metrics", summary="Prometheus")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _facts(served: Served) -> dict[str, Any]:
    spec, policy = served.classifier.spec, served.classifier.policy
    return {
        "name": served.name,
        "labels": list(spec.labels),
        "fields": list(spec.text_fields),
        "max_tokens": spec.prompt.max_tokens,
        "truncation": spec.prompt.truncation,
        "min_confidence": served.min_confidence if served.min_confidence is not None else policy.min_confidence,
        "base": str(spec.base.get("name")).rpartition("/")[2],
        "precision": served.classifier.precision,
        "loaded": served.loaded,
        "shared_bytes": served.shared_bytes,
    }


def _lines(predictions: Sequence[Prediction], top_k: int | None) -> bytes:
    return b"".join(json.dumps(scored_labels(one, top_k)).encode() + b"\n" for one in predictions)


async def _next(windows: AsyncIterator[list[Prediction]]) -> list[Prediction]:
    return await anext(windows)


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of some work, which is cancelled when its client closes the connection."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestError)
    async def refused(_: Request, error: RequestError) -> Response:
        return error.response()

    @app.exception_handler(RxtoneError)
    async def explained(_: Request, error: RxtoneError) -> Response:
        return RequestError(422, "bad_request", str(error)).response()

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"][1:]))
        return RequestError(422, "bad_request", f"{where}: {first['msg']}").response()

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> Response:
        return RequestError(error.status_code, "http", str(error.detail)).response()

    @app.exception_handler(ClientDisconnect)
    async def gone(_: Request, __: ClientDisconnect) -> Response:
        return Response(status_code=499)  # nobody reads it; the metrics count it
