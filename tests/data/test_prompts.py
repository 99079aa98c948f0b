import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, processors

from rxtone.data.prompts import Prompt, PromptBuilder
from rxtone.data.reviews import Review
from rxtone.errors import ModelError, RecipeError

LABELS = ("positive", "neutral", "negative")
TEMPLATE = "Classify the sentiment of this review as {labels}:\n{fields}"
TEXT_TEMPLATE = "Classify the sentiment of this review as {labels}:\n{text}"
INSTRUCTION = "Classify the sentiment of this review as positive, neutral, or negative:\n"


def builder_of(tokenizer: Tokenizer, max_tokens: int = 256, truncation: str = "fields") -> PromptBuilder:
    return PromptBuilder(tokenizer, TEMPLATE, TEXT_TEMPLATE, LABELS, max_tokens, truncation)


def review_of(*texts: str) -> Review:
    return Review(fields=tuple(zip(("Benefits", "Side Effects", "Comments"), texts, strict=False)))


def test_fields_and_free_text_are_rendered(word_tokenizer: Tokenizer) -> None:
    builder = builder_of(word_tokenizer)
    assert builder.render(review_of("a \r\r\n b", "None", "c")) == (
        f"{INSTRUCTION}Benefits: a b Side Effects: None Comments: c"
    )
    assert builder.render(review_of("", "None", " ")) == f"{INSTRUCTION}Side Effects: None"
    assert builder.render(review_of("", "")) == INSTRUCTION
    assert builder.render(Review(text=" a\tb ")) == f"{INSTRUCTION}a b"
    assert builder.render(review_of("{labels}", "</s>")) == f"{INSTRUCTION}Benefits: {{labels}} Side Effects: < /s>"


def test_fields_without_names_are_asked_as_the_same_free_text(word_tokenizer: Tokenizer) -> None:
    for truncation in ("fields", "tail"):
        bare = PromptBuilder(word_tokenizer, "{text}", "{text}", LABELS, 8, truncation)
        assert bare.render(review_of("a  b", "", "c")) == bare.render(Review(text="a b c")) == "a b c"
        one, other = bare.build(review_of("a b c d e f g h i")), bare.build(Review(text="a b c d e f g h i"))
        assert (one.ids, one.cut) == (other.ids, {"Benefits": other.cut["text"]})
    asked = PromptBuilder(word_tokenizer, "{labels}: {text}!", "{text}", LABELS, 256)
    review = review_of("a b", "c")
    assert asked.render(review) == "positive, neutral, or negative: a b c!"
    assert [(word.field, word.text) for word in asked.reading(review).words] == [
        ("Benefits", "a"), ("Benefits", "b"), ("Side Effects", "c"),
    ]  # fmt: skip
    with pytest.raises(RecipeError, match=r"prompt\.template: expected a text with \{fields\} once"):
        PromptBuilder(word_tokenizer, "{fields} {text}", "{text}", LABELS, 256)


def test_a_short_prompt_is_whole(word_tokenizer: Tokenizer) -> None:
    prompt = builder_of(word_tokenizer).build(review_of("a b", "c"))
    instruction = "classify the sentiment of this review as positive , neutral , or negative :"
    words = f"{instruction} benefits : a b side effects : c"
    expected = [word_tokenizer.token_to_id(word) for word in words.split()] + [1]
    assert prompt == Prompt(tuple(expected), len(expected), {})
    assert not prompt.truncated


def test_fields_share_the_budget_and_cuts_are_marked_and_counted(word_tokenizer: Tokenizer) -> None:
    # The frame (instruction 14, names 2 + 3 + 2, end 1) takes 22 of 32 tokens and the marks of two cut
    # fields 2; "d" is left whole, the others share what remains: 7 tokens.
    review = review_of("a b c a b c a b", "d", "e f g h i j e f g h")
    prompt = builder_of(word_tokenizer, 32).build(review)
    assert len(prompt.ids) == 32
    text = word_tokenizer.decode(list(prompt.ids))
    assert text.endswith("benefits : a b c ... side effects : d comments : e f g h ...")
    assert prompt.cut == {"Benefits": 5, "Comments": 6}
    assert prompt.n_tokens_full == 22 + 8 + 1 + 10
    assert prompt.truncated


def test_a_field_without_room_is_only_marked(word_tokenizer: Tokenizer) -> None:
    prompt = builder_of(word_tokenizer, 25).build(review_of("a b c", "d e f", "g h i"))
    text = word_tokenizer.decode(list(prompt.ids))
    assert text.endswith("benefits : ... side effects : ... comments : ...")
    assert prompt.cut == {"Benefits": 3, "Side Effects": 3, "Comments": 3}


def test_free_text_is_cut_too(word_tokenizer: Tokenizer) -> None:
    prompt = builder_of(word_tokenizer, 20).build(Review(text="a b c d e f g h i j"))
    assert word_tokenizer.decode(list(prompt.ids)).endswith("negative : a b c d ...")
    assert prompt.cut == {"text": 6}


def test_the_tail_policy_cuts_the_end(word_tokenizer: Tokenizer) -> None:
    prompt = builder_of(word_tokenizer, 22, "tail").build(review_of("a b c", "d e", "f g"))
    assert word_tokenizer.decode(list(prompt.ids)).endswith("benefits : a b c side effects")
    assert prompt.ids[-1] == 1
    assert prompt.cut == {"Side Effects": 2, "Comments": 2}


def test_too_small_a_limit_is_refused(word_tokenizer: Tokenizer) -> None:
    with pytest.raises(RecipeError, match="alone take 15 tokens, found max_tokens 14; raise it"):
        builder_of(word_tokenizer, 14)
    builder = builder_of(word_tokenizer, 18)
    assert builder.build(review_of("a")).ids[-1] == 1
    with pytest.raises(RecipeError, match="alone take 25 tokens, found max_tokens 18"):
        builder.build(review_of("a b c", "d e f", "g h i"))


def test_a_tokenizer_without_end_of_sequence_is_refused(word_tokenizer: Tokenizer) -> None:
    plain = Tokenizer.from_str(word_tokenizer.to_str())
    plain.post_processor = processors.TemplateProcessing(single="$A")
    with pytest.raises(ModelError, match="end-of-sequence, to every text; this one adds 0"):
        builder_of(plain)


def test_the_tokenizer_is_not_changed(word_tokenizer: Tokenizer) -> None:
    own = Tokenizer.from_str(word_tokenizer.to_str())
    own.enable_truncation(5)
    own.enable_padding(length=9)
    before = own.to_str()
    assert len(builder_of(own).build(review_of("a b c")).ids) == 20
    assert own.to_str() == before


fields = st.lists(
    st.text(st.sampled_from("abc dé…½ﷺ<>/s.👍😀️🏽\u200b\n"), max_size=60) | st.text(max_size=40),
    min_size=1,
    max_size=3,
)


@given(fields, st.sampled_from([45, 52, 70]))
def test_a_prompt_stays_within_the_budget(t5_tokenizer: Tokenizer, texts: list[str], max_tokens: int) -> None:
    builder = cached_builder(t5_tokenizer, max_tokens)
    review = review_of(*texts)
    whole = t5_tokenizer.encode(builder.render(review)).ids
    prompt = builder.build(review)
    instruction = t5_tokenizer.encode(INSTRUCTION.strip(), add_special_tokens=False).ids
    assert prompt.n_tokens_full == len(whole)
    assert len(prompt.ids) <= max_tokens
    assert list(prompt.ids[: len(instruction)]) == instruction
    assert prompt.ids[-1] == 1
    assert prompt.truncated is (len(whole) > max_tokens)
    assert bool(prompt.cut) is prompt.truncated
    assert all(lost > 0 for lost in prompt.cut.values())
    if not prompt.truncated:
        assert list(prompt.ids) == whole
        return
    text = t5_tokenizer.decode(list(prompt.ids))
    assert text.count("...") >= len(prompt.cut)
    for name, field in zip(("Benefits", "Side Effects", "Comments"), texts, strict=False):
        if t5_tokenizer.encode(field, add_special_tokens=False).ids:
            assert f"{name}:" in text


@given(fields, st.sampled_from([30, 43, 60]))
def test_the_tail_policy_is_that_of_the_tokenizer(t5_tokenizer: Tokenizer, texts: list[str], max_tokens: int) -> None:
    builder = cached_builder(t5_tokenizer, max_tokens, "tail")
    prompt = builder.build(review_of(*texts))
    t5_tokenizer.enable_truncation(max_tokens)
    try:
        assert list(prompt.ids) == t5_tokenizer.encode(builder.render(review_of(*texts))).ids
    finally:
        t5_tokenizer.no_truncation()


BUILDERS: dict[tuple[int, str], PromptBuilder] = {}


def cached_builder(tokenizer: Tokenizer, max_tokens: int, truncation: str = "fields") -> PromptBuilder:
    """Keep the builders of the property tests: copying a tokenizer of 32,100 pieces takes a while."""
    key = (max_tokens, truncation)
    if key not in BUILDERS:
        BUILDERS[key] = builder_of(tokenizer, *key)
    return BUILDERS[key]


@pytest.mark.parametrize("fixture", ["t5_tokenizer", "reference_tokenizer"])
def test_druglib_prompts_of_real_tokenizers(
    request: pytest.FixtureRequest, fixture: str, druglib_reviews: list[Review]
) -> None:
    tokenizer = request.getfixturevalue(fixture)
    builder = builder_of(tokenizer)
    sample = druglib_reviews[::6]
    whole = [tokenizer.encode(builder.render(review)).ids for review in sample]
    prompts = builder.build_many(sample)
    assert [prompt.n_tokens_full for prompt in prompts] == [len(ids) for ids in whole]
    assert all(list(p.ids) == ids for p, ids in zip(prompts, whole, strict=True) if len(ids) <= 256)
    cut = [prompt for prompt in prompts if prompt.truncated]
    assert [prompt.truncated for prompt in prompts] == [len(ids) > 256 for ids in whole]
    # The budget is used to the last few tokens.
    assert min(len(prompt.ids) for prompt in cut) >= 252
    assert max(len(prompt.ids) for prompt in cut) == 256


def test_druglib_prompts_have_the_published_lengths(t5_tokenizer: Tokenizer, druglib_reviews: list[Review]) -> None:
    builder = builder_of(t5_tokenizer)
    lengths = np.array([prompt.n_tokens_full for prompt in builder.build_many(druglib_reviews)])
    # Measured on the published train file with the tokenizer of Flan-T5.
    assert round(float(lengths.mean()), 1) == 185.6
    assert [float(np.percentile(lengths, q)) for q in (50, 75, 90)] == [157, 224, 310]
    assert round(float(np.percentile(lengths, 95)), 1) == 378.7
    assert int(lengths.max()) == 1190
    assert round(float((lengths > 256).mean()), 2) == 0.18


def test_prompts_cost_little_more_than_their_encoding(t5_tokenizer: Tokenizer, druglib_reviews: list[Review]) -> None:
    builder = builder_of(t5_tokenizer)
    sample = druglib_reviews[:400]
    texts = [builder.render(review) for review in sample]
    start = time.process_time()
    t5_tokenizer.encode_batch(texts)
    plain = time.process_time() - start
    start = time.process_time()
    builder.build_many(sample)
    # 1.7 on an idle machine, where a fifth of the prompts is cut and encoded again.
    assert time.process_time() - start < 6 * plain


def test_the_tail_policy_is_that_of_transformers(t5_tokenizer: Tokenizer, druglib_reviews: list[Review]) -> None:
    transformers = pytest.importorskip("transformers")
    reference = transformers.PreTrainedTokenizerFast(tokenizer_object=t5_tokenizer)
    builder = builder_of(t5_tokenizer, 256, "tail")
    sample = druglib_reviews[:200]
    texts = [builder.render(review) for review in sample]
    expected = reference(texts, truncation=True, max_length=256)["input_ids"]
    assert [list(prompt.ids) for prompt in builder.build_many(sample)] == expected


def test_a_reading_finds_every_word_in_the_prompt(word_tokenizer: Tokenizer) -> None:
    reading = builder_of(word_tokenizer).reading(review_of("a b", "", "c d"))
    assert reading.texts == (("Benefits", "a b"), ("Comments", "c d"))
    assert [(word.field, word.text) for word in reading.words] == [
        ("Benefits", "a"), ("Benefits", "b"), ("Comments", "c"), ("Comments", "d"),
    ]  # fmt: skip
    ids = reading.prompt.ids
    assert reading.prompt == builder_of(word_tokenizer).build(review_of("a b", "", "c d"))
    for word in reading.words:
        assert [word_tokenizer.id_to_token(ids[i]) for i in word.tokens] == [word.text]


@pytest.mark.parametrize("truncation", ["fields", "tail"])
def test_a_reading_holds_only_what_was_not_cut(word_tokenizer: Tokenizer, truncation: str) -> None:
    review = review_of("a b c a b c a b", "d", "e f g h i j e f g h")
    reading = builder_of(word_tokenizer, 32, truncation).reading(review)
    words = " ".join(word.text for word in reading.words)
    assert words == {"fields": "a b c d e f g h", "tail": "a b c a b c a b d e"}[truncation]
    positions = [i for word in reading.words for i in word.tokens]
    assert positions == sorted(set(positions))
    assert max(positions) < 31
