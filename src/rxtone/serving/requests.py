"""Bytes of a request -> reviews, with one clear message for whatever is wrong with them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic_core import from_json

from rxtone.serving.limits import RequestError

if TYPE_CHECKING:
    from collections.abc import Mapping

    RawReview = str | Mapping[str, str]

KEYS = ("text", "fields", "top_k", "run", "explain")

# A string is skipped whole; one that never ends reaches to the end, so that the search stays linear.
_STRING_OR_BRACKET = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)|[\[\]{}]', re.DOTALL)


@dataclass(frozen=True)
class Ask:
    """What a client wants.

    Attributes:
        reviews: Texts or mappings of field to text.
        many: Whether the client sent a list.
        top_k: Labels per review; None for all.
        run: Which run; None for the default.
        explain: Whether to tell what drove the answer; of one review only.
    """

    reviews: list[RawReview]
    many: bool
    top_k: int | None = None
    run: str | None = None
    explain: bool = False


def parse_predict(body: bytes, *, depth: int, top_k: int | None = None, run: str | None = None) -> Ask:
    """Read the body of `/predict`.

    Args:
        body: A JSON object with `text` or `fields`, or a list of texts and such objects.
        depth: Deepest nesting.
        top_k: From the query string; the body's own wins.
        run: From the query string; the body's own wins.

    Returns:
        What is asked.

    Raises:
        RequestError: 422.
    """
    data = parse_json(body, depth)
    if isinstance(data, list):
        if not data:
            raise RequestError(422, "no_text", "expected at least one review, got an empty list")
        return Ask([_review(item, f"review {index}") for index, item in enumerate(data)], True, top_k, run)
    review = _review(data, "body", options=True)
    own_k, own_run = (data.get("top_k"), data.get("run")) if isinstance(data, dict) else (None, None)
    if own_k is not None and (isinstance(own_k, bool) or not isinstance(own_k, int) or own_k < 1):
        raise RequestError(422, "bad_request", "top_k: expected a whole number from 1, or null for all labels")
    if own_run is not None and not isinstance(own_run, str):
        raise RequestError(422, "bad_request", "run: expected a name; see /info")
    explain = data.get("explain", False) if isinstance(data, dict) else False
    if not isinstance(explain, bool):
        raise RequestError(422, "bad_request", f"explain: expected true or false, got {_kind(explain)}")
    return Ask([review], False, top_k if own_k is None else own_k, run if own_run is None else own_run, explain)


def parse_lines(body: bytes, *, depth: int) -> list[RawReview]:
    """Read the body of `/predict_batch`.

    Args:
        body: JSON Lines, one text or object per line, blank lines ignored; or one JSON list.
        depth: Deepest nesting.

    Returns:
        The reviews.

    Raises:
        RequestError: 422, naming the line.
    """
    if body.lstrip()[:1] == b"[":
        return parse_predict(body, depth=depth).reviews
    reviews = []
    for number, line in enumerate(body.split(b"\n"), start=1):
        if line.strip():
            reviews.append(_review(parse_json(line, depth, f"line {number}"), f"line {number}"))
    if not reviews:
        raise RequestError(422, "no_text", "expected at least one review, got an empty body")
    return reviews


def parse_json(body: bytes, depth: int, where: str = "body") -> object:
    """Parse JSON of limited depth.

    Args:
        body: UTF-8 bytes.
        depth: Deepest nesting.
        where: For the message.

    Returns:
        The value.

    Raises:
        RequestError: 422.
    """
    level = 0
    for match in _STRING_OR_BRACKET.finditer(body):
        mark = match[0][:1]
        level += (mark in b"[{") - (mark in b"]}")
        if level > depth:
            raise RequestError(
                422, "too_deep", f"{where}: expected JSON of at most {depth} levels; it is nested deeper"
            )
    try:
        return from_json(body)
    except ValueError as error:
        place = re.search(r"at line \d+ column \d+", str(error))
        message = f"{where}: expected JSON in UTF-8, found a fault {place[0] if place else 'in it'}"
        raise RequestError(422, "bad_json", message) from None


def _review(item: object, where: str, *, options: bool = False) -> RawReview:
    if isinstance(item, str):
        return item
    expected = 'a text, {"text": "..."} or {"fields": {"...": "..."}}'
    if not isinstance(item, dict):
        raise RequestError(422, "bad_request", f"{where}: expected {expected}, got {_kind(item)}")
    unknown = [key for key in item if key not in (KEYS if options else KEYS[:2])]
    if unknown:
        raise RequestError(422, "bad_request", f"{where}: expected {expected}, found the key {unknown[0][:40]!r}")
    if (item.get("text") is None) == (item.get("fields") is None):
        raise RequestError(422, "bad_request", f"{where}: expected either text or fields")
    if item.get("text") is not None:
        if not isinstance(item["text"], str):
            raise RequestError(422, "bad_request", f"{where}: text: expected a text, got {_kind(item['text'])}")
        return item["text"]
    fields = item["fields"]
    if not isinstance(fields, dict):
        raise RequestError(422, "bad_request", f"{where}: fields: expected an object, got {_kind(fields)}")
    for name, text in fields.items():
        if text is not None and not isinstance(text, str):
            raise RequestError(422, "bad_request", f"{where}: fields.{name[:40]}: expected a text, got {_kind(text)}")
    return {name: text or "" for name, text in fields.items()}


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")
