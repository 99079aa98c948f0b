"""What `/openapi.json` says about bodies and answers: schemas and examples."""

from __future__ import annotations

from typing import Any

_REVIEW: dict[str, Any] = {
    "type": "object",
    "description": "Either text or fields.",
    "properties": {
        "text": {"type": "string", "description": "The review as one free text."},
        "fields": {
            "type": "object",
            "additionalProperties": {"type": "string"},
            "description": "Field name or column -> text; see /info for the names.",
        },
    },
    "additionalProperties": False,
}
_OPTIONS: dict[str, Any] = {
    "top_k": {"type": "integer", "minimum": 1, "description": "Most probable labels; all by default."},
    "run": {"type": "string", "description": "Which run answers; the first by default."},
    "explain": {"type": "boolean", "description": "Tell what each field and each word moved, in `explanation`."},
}
_ONE: dict[str, Any] = {**_REVIEW, "properties": {**_REVIEW["properties"], **_OPTIONS}}
_MANY: dict[str, Any] = {"type": "array", "items": {"anyOf": [{"type": "string"}, _REVIEW]}}
_SCORES: dict[str, Any] = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "label": {"type": "string"},
            "score": {"type": "number"},
            "truncated": {"type": "boolean", "description": "The prompt did not hold the whole review."},
            "abstained": {"type": "boolean", "description": "The classifier is not sure enough."},
            "explanation": {"type": "object", "description": "With the first label, where `explain` asked for it."},
        },
    },
}
_FLAGS = {"truncated": False, "abstained": False}
_ANSWER = [
    {"label": "positive", "score": 0.94, **_FLAGS},
    {"label": "neutral", "score": 0.04, **_FLAGS},
    {"label": "negative", "score": 0.02, **_FLAGS},
]

PREDICT_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"anyOf": [_ONE, _MANY]},
                "examples": {
                    "text": {"value": {"text": "It took my headache away within the hour.", "top_k": 1}},
                    "fields": {"value": {"fields": {"Benefits": "Less pain.", "Side Effects": "Slept badly."}}},
                    "many": {"value": ["It helped.", {"fields": {"Benefits": "None at all."}}]},
                },
            }
        },
    }
}
PREDICT_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Labels with scores, the answer first; for a list, one such list per review.",
        "content": {
            "application/json": {
                "schema": {"anyOf": [_SCORES, {"type": "array", "items": _SCORES}]},
                "examples": {"one": {"value": _ANSWER}, "many": {"value": [_ANSWER, _ANSWER]}},
            }
        },
    }
}
STREAM_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/x-ndjson": {
                "schema": {"type": "string"},
                "example": '{"text": "It helped."}\n{"fields": {"Benefits": "None at all."}}\n',
            }
        },
    }
}
STREAM_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "One JSON list of labels per line; a fault after the first lines is a last line with `error`.",
        "content": {"application/x-ndjson": {"schema": {"type": "string"}}},
    }
}
_ERROR: dict[str, Any] = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "code": {"type": "string"},
                "message": {"type": "string"},
                "id": {"type": "string", "description": "Stands in the server's log too."},
            },
        }
    },
}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {"application/json": {"schema": _ERROR}}}
    for status, text in (
        (401, "The token is missing or wrong."),
        (413, "The body, a text or the list is too long."),
        (422, "The request is not understood, or names an unknown run or field."),
        (429, "Too much waits already; see Retry-After."),
        (503, "The server is closing, or too much is being received; see Retry-After."),
    )
}
