import re

import pytest

from rxtone.data.layout import Layout, labels_in_words, split_template
from rxtone.errors import RecipeError


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (("a",), "a"),
        (("a", "b"), "a or b"),
        (("positive", "neutral", "negative"), "positive, neutral, or negative"),
    ],
)
def test_labels_read_as_a_sentence(labels: tuple[str, ...], words: str) -> None:
    assert labels_in_words(labels) == words


def test_a_template_is_cut_at_its_slot() -> None:
    assert split_template("k", "As {labels}, {{so}}:\n{fields} {labels}?", "fields", "a or b") == (
        "As a or b, {so}:\n",
        " a or b?",
    )


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("no slot", "found no {fields}. Add it where the review goes."),
        ("{fields} {fields}", "found {fields} in the wrong place or form"),
        ("{text}", "found {text} in the wrong place or form"),
        ("{fields!r}", "found {fields} in the wrong place or form"),
        ("{fields:>9}", "found {fields} in the wrong place or form"),
        ("{}", "found {} in the wrong place or form"),
        ("{fields", "expected '}' before end of string"),
        ("}{fields}", "Single '}' encountered in format string"),
    ],
)
def test_a_bad_template_is_refused(template: str, message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)) as caught:
        split_template("prompt.template", template, "fields", "a or b")
    assert str(caught.value).startswith(
        "prompt.template: expected a text with {fields} once and, if you like, {labels}; found "
    )


def test_a_layout_knows_where_its_texts_are() -> None:
    layout = Layout(("A", "B"), ("Do: A: ", " B: "), ("xy", "z"), "!")
    assert layout.text() == "Do: A: xy B: z!"
    assert [layout.text()[low:high] for low, high in layout.spans()] == ["xy", "z"]
    assert layout.with_texts(("1", "2")).text() == "Do: A: 1 B: 2!"
