import contextlib
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rxtone.serving.limits import RequestError
from rxtone.serving.requests import Ask, parse_json, parse_lines, parse_predict


@pytest.mark.parametrize(
    ("body", "ask"),
    [
        ('{"text": "Good."}', Ask(["Good."], False)),
        ('"Good."', Ask(["Good."], False)),
        ('{"fields": {"Benefits": "a", "Side Effects": null}, "top_k": 2, "run": "b"}',
         Ask([{"Benefits": "a", "Side Effects": ""}], False, 2, "b")),
        ('["a", {"text": "b"}, {"fields": {"x": "c"}}]', Ask(["a", "b", {"x": "c"}], True)),
        ('{"text": "None"}', Ask(["None"], False)),
    ],
)  # fmt: skip
def test_the_forms_of_a_body(body: str, ask: Ask) -> None:
    assert parse_predict(body.encode(), depth=5) == ask


def test_the_query_gives_options_and_the_body_wins() -> None:
    assert parse_predict(b'{"text": "a", "top_k": 1}', depth=5, top_k=3, run="r") == Ask(["a"], False, 1, "r")


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        (b"{", "bad_json", "body: expected JSON in UTF-8, found a fault at line 1 column 1"),
        (b'{"text": "\\ud800"}', "bad_json", "body: expected JSON in UTF-8, found a fault at line 1 column 17"),
        (b'{"text": "\xff"}', "bad_json", "body: expected JSON in UTF-8, found a fault at line 1 column 11"),
        (b"[[[[[[1]]]]]]", "too_deep", "body: expected JSON of at most 5 levels; it is nested deeper"),
        (b"[]", "no_text", "expected at least one review, got an empty list"),
        (b"3", "bad_request", 'body: expected a text, {"text": "..."} or {"fields": {"...": "..."}}, got a number'),
        (b"{}", "bad_request", "body: expected either text or fields"),
        (b'{"text": "a", "fields": {}}', "bad_request", "body: expected either text or fields"),
        (b'{"text": ["secret"]}', "bad_request", "body: text: expected a text, got a list"),
        (b'{"text": "a", "top_k": 0}', "bad_request", "top_k: expected a whole number from 1, or null for all labels"),
        (b'{"text": "a", "top_k": true}', "bad_request",
         "top_k: expected a whole number from 1, or null for all labels"),
        (b'{"text": "a", "run": 3}', "bad_request", "run: expected a name; see /info"),
        (b'[{"fields": {"x": 3}}]', "bad_request", "review 0: fields.x: expected a text, got a number"),
        (b'["a", null]', "bad_request",
         'review 1: expected a text, {"text": "..."} or {"fields": {"...": "..."}}, got null'),
        (b'[{"text": "a", "run": "b"}]', "bad_request",
         """review 0: expected a text, {"text": "..."} or {"fields": {"...": "..."}}, found the key 'run'"""),
    ],
)  # fmt: skip
def test_faults_are_named(body: bytes, code: str, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_predict(body, depth=5)
    assert (caught.value.status, caught.value.code, caught.value.message) == (422, code, message)


def test_lines() -> None:
    assert parse_lines(b'"a"\n\n{"fields": {"x": "b"}}\r\n', depth=5) == ["a", {"x": "b"}]
    assert parse_lines(b' ["a", "b"]', depth=5) == ["a", "b"]
    with pytest.raises(RequestError, match=r"^line 2: expected JSON in UTF-8"):
        parse_lines(b'"a"\nb\n', depth=5)
    with pytest.raises(RequestError, match="got an empty body"):
        parse_lines(b" \n ", depth=5)


def test_brackets_in_a_text_are_no_levels() -> None:
    assert parse_json(b'{"text": "[[[[[[\\"{{{{{{"}', 1) == {"text": '[[[[[["{{{{{{'}


def test_depth_is_found_in_linear_time() -> None:
    bodies = [b'"\\' * 500_000, b"[" * 1_000_000, b'"' * 999_999, b'"\\"' * 300_000 + b"\\"]
    started = time.perf_counter()
    for body in bodies:
        with pytest.raises(RequestError):
            parse_json(body, 5)
    assert time.perf_counter() - started < 5  # quadratic would take minutes


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    for parse in (parse_predict, parse_lines):
        with contextlib.suppress(RequestError):  # and nothing else
            assert parse(body, depth=5)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["text", "fields", "run", "x"]), inner, max_size=3)
    ),
)


@given(JSON)
def test_any_json_is_read_or_refused(value: object) -> None:
    with contextlib.suppress(RequestError):  # and nothing else
        assert parse_predict(json.dumps(value).encode(), depth=5).reviews
