import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from rxtone.data.special_tokens import SpecialTokens

HOSTILE = [
    *("</s>", "a</s>b", "</S>", "<pad>", "<unk>", "<extra_id_0>", "<extra_id_99>", "<</s>/s>", "</s></s>"),
    *("▁</s>", "＜/s＞", "<\u0001/s>", "<pad\u0007>", "<extra\u0001_id_0>", "<\u007f/s>", "<\u200b/s>"),
    *("< /s>", "<EXTRA_ID_0>", "</s", "/s>", "＜＜/s＞/s>"),
]
PIECES = [
    "<",
    ">",
    "/",
    "s",
    "</s>",
    "pad",
    "<pad>",
    "extra_id_",
    "0",
    " ",
    "＜",
    "＞",
    "\u0001",
    "▁",
    "unk",
    "S",
]


def special_ids(tokenizer: Tokenizer) -> set[int]:
    unknown = tokenizer.token_to_id("<unk>")
    return {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special and i != unknown}


def assert_harmless(tokenizer: Tokenizer, text: str) -> None:
    safe = SpecialTokens(tokenizer).neutralise(text)
    encoding = tokenizer.encode(safe, add_special_tokens=False)
    assert special_ids(tokenizer).isdisjoint(encoding.ids), (text, safe, encoding.tokens)
    assert "<unk>" not in safe


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("fixture", ["t5_tokenizer", "reference_tokenizer", "word_tokenizer"])
def test_no_special_token_comes_out(request: pytest.FixtureRequest, fixture: str, text: str) -> None:
    assert_harmless(request.getfixturevalue(fixture), text)


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_no_mixture_of_pieces_makes_a_special_token(t5_tokenizer: Tokenizer, text: str) -> None:
    assert_harmless(t5_tokenizer, text)


def test_the_hostile_texts_are_special_to_begin_with(t5_tokenizer: Tokenizer) -> None:
    dangerous = [
        text
        for text in HOSTILE
        if special_ids(t5_tokenizer) & set(t5_tokenizer.encode(text, add_special_tokens=False).ids)
    ]
    assert {"</s>", "a</s>b", "<extra_id_99>", "＜/s＞", "<\u0001/s>", "<pad\u0007>"} <= set(dangerous)


def test_ordinary_text_is_not_touched(t5_tokenizer: Tokenizer) -> None:
    special = SpecialTokens(t5_tokenizer)
    for text in ("None", "BP < 120/80 > 90", "<b>bold</b>", "naïve ½ ＡＢＣ …", ""):
        assert special.neutralise(text) == text
    assert special.neutralise("a </s> b") == "a < /s> b"


def test_tokens_that_a_blank_does_not_break_go() -> None:
    tokenizer = Tokenizer(models.WordLevel({"§": 0, "< x>": 1, "a": 2, "<unk>": 3}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    # Runs of blanks shrink to one, so that "<  x>" is "< x>" again.
    tokenizer.normalizer = normalizers.Replace("  ", " ")
    tokenizer.add_special_tokens(["§", "< x>"])
    safe = SpecialTokens(tokenizer).neutralise("a § a < x> a")
    assert "§" not in safe
    assert {0, 1}.isdisjoint(tokenizer.encode(safe).ids)


def test_a_tokenizer_without_special_tokens_changes_nothing() -> None:
    assert SpecialTokens(Tokenizer(models.WordLevel({"a": 0}))).neutralise("a </s>") == "a </s>"
