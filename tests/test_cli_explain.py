import json

import pytest

from rxtone.cli_explain import review_of
from rxtone.errors import RecipeError


def test_explain_prints_fields_words_and_json(call, tiny_run):
    fields = ("--field", "Benefits=the pill was awful", "--field", "Side Effects=pain = none")
    code, out, _ = call("explain", tiny_run, *fields)
    assert code == 0
    assert "Benefits: the pill was awful" in out
    assert "strongest: “awful” +" in out
    found = json.loads(call("explain", tiny_run, *fields, "--json")[1])
    assert found["label"] == "negative"
    assert out.startswith(f"negative  probability {found['probability']:.3f}\n")
    assert [part["text"] for part in found["parts"]] == ["the", "pill", "was", "awful", "pain", "=", "none"]
    assert json.loads(call("explain", tiny_run, "--text", "great", "--label", "neutral", "--json")[1])["fields"] == {}


def test_mistakes_have_their_exit_code(call, tiny_run):
    for arguments, code, reason in (
        ((), 2, "give either --text TEXT or --field NAME=TEXT"),
        (("--text", "a", "--field", "Benefits=b"), 2, "give either"),
        (("--field", "Benefits"), 2, "expected NAME=TEXT"),
        (("--field", "Mood=b"), 3, "expected a review with fields among Benefits, Side Effects, got 'Mood'"),
        (("--text", "a", "--label", "x"), 3, "got 'x'"),
    ):
        got, out, err = call("explain", tiny_run, *arguments)
        assert (got, out) == (code, "")
        assert reason in err


def test_a_field_keeps_what_follows_the_first_equals_sign():
    assert review_of(None, ["A=b=c", " B =d"]) == {"A": "b=c", "B": "d"}
    with pytest.raises(RecipeError, match="given twice"):
        review_of(None, ["A=b", "A=c"])
