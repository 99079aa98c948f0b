"""Explanations keep the promises of their methods, on a tiny model that learned telling words."""

import itertools
import json
import math

import numpy as np
import pytest

import rxtone
from rxtone import explain as explaining
from rxtone.classifier import Classifier
from rxtone.errors import DataError
from rxtone.explain import Explanation, Part, explain, forward_passes
from rxtone.explain_views import EXPLANATION_CSS, explanation_html, explanation_text, levels

FIELDS = {"Benefits": "the pill was awful and useless", "Side Effects": "pain then great sleep for me"}


@pytest.fixture(scope="module")
def classifier(tiny_run) -> Classifier:
    return rxtone.load(tiny_run)


def log_odds(classifier: Classifier, review, label: str) -> float:
    p = classifier.predict([review])[0].probabilities[label]
    return math.log(p / (1 - p))


def test_the_shares_of_the_fields_sum_to_the_whole_change(classifier):
    found = explain(classifier, FIELDS)
    assert sum(found.fields.values()) == pytest.approx(found.log_odds - found.without_review, abs=1e-9)
    assert found.log_odds == pytest.approx(log_odds(classifier, FIELDS, found.label), abs=1e-5)


def test_a_share_is_the_mean_effect_over_both_orders(classifier):
    found = explain(classifier, FIELDS)
    one, other = ({name: FIELDS[name]} for name in FIELDS)
    alone, last = log_odds(classifier, one, found.label), found.log_odds - log_odds(classifier, other, found.label)
    expected = ((alone - found.without_review) + last) / 2
    assert found.fields["Benefits"] == pytest.approx(expected, abs=1e-5)


def test_an_empty_field_drove_nothing(classifier):
    assert explain(classifier, {"Benefits": "great", "Side Effects": " "}).fields["Side Effects"] == 0.0


def test_a_word_weighs_the_mean_of_what_it_adds_alone_and_what_its_absence_takes_away(classifier):
    """The definition, checked through the front door: the review asked with the word alone, and without it."""
    words = ["the", "pill", "was", "awful", "and", "useless"]
    found = explain(classifier, " ".join(words))
    assert [part.text for part in found.parts] == words
    for i, part in enumerate(found.parts):
        without = log_odds(classifier, " ".join(words[:i] + words[i + 1 :]), found.label)
        alone = log_odds(classifier, words[i], found.label) - found.without_review
        assert part.weight == pytest.approx((found.log_odds - without + alone) / 2, abs=1e-5)


def test_two_words_share_the_whole_change(classifier):
    found = explain(classifier, "awful pill")
    assert sum(part.weight for part in found.parts) == pytest.approx(found.log_odds - found.without_review, abs=1e-9)


def test_two_words_that_say_the_same_share_their_effect(classifier):
    """Each can be missed; occlusion alone would give both nothing."""
    found = explain(classifier, {"Benefits": "awful", "Side Effects": "awful"})
    first, second = (part.weight for part in found.parts)
    assert first + second == pytest.approx(found.log_odds - log_odds_of_names(classifier, found.label), abs=1e-5)
    assert min(first, second) > 0.5


def log_odds_of_names(classifier: Classifier, label: str) -> float:
    reading = classifier.prompts.reading(classifier.as_review({"Benefits": "awful", "Side Effects": "awful"}))
    gone = {i for word in reading.words for i in word.tokens}
    ids = [token for i, token in enumerate(reading.prompt.ids) if i not in gone]
    p = float(classifier.policy.decide(classifier.score_ids([ids])).probabilities[0, classifier.labels.index(label)])
    return math.log(p / (1 - p))


@pytest.mark.parametrize("word", ["awful", "worse", "wonderful"])  # those that change the tiny model's answer
def test_the_telling_word_weighs_most(classifier, word):
    found = explain(classifier, {"Benefits": f"the pill was {word} for me", "Side Effects": "the pain"})
    assert max(found.parts, key=lambda part: part.weight).text == word


def test_leaving_out_the_heaviest_words_changes_more_than_leaving_out_others(classifier):
    found = explain(classifier, FIELDS)
    ranked = sorted(found.parts, key=lambda part: -part.weight)
    falls = []
    for gone in ({part.text for part in ranked[:2]}, {part.text for part in ranked[-2:]}):
        kept = {name: " ".join(w for w in text.split() if w not in gone) for name, text in FIELDS.items()}
        falls.append(found.log_odds - log_odds(classifier, kept, found.label))
    assert falls[0] > falls[1] + 0.5


def test_another_label_can_be_explained(classifier):
    found = explain(classifier, "awful", label="positive")
    assert (found.label, found.predicted) == ("positive", "negative")
    assert found.probability == pytest.approx(classifier.predict(["awful"])[0].probabilities["positive"], abs=1e-6)
    assert found.log_odds == pytest.approx(log_odds(classifier, "awful", "positive"), abs=1e-5)
    assert found.log_odds < explain(classifier, "awful").log_odds
    assert found.parts[0].weight == pytest.approx(found.log_odds - found.without_review, abs=1e-9)
    assert found.fields == {}


def test_long_reviews_are_explained_in_runs_of_words_and_say_what_was_cut(classifier):
    spec = classifier.spec.prompt.model_copy(update={"max_tokens": 300})
    from dataclasses import replace

    from rxtone.spec import prompt_builder

    wide = replace(classifier, prompts=prompt_builder(classifier.tokenizer, spec, classifier.labels))
    found = explain(wide, {"Benefits": "pill " * 100, "Side Effects": "pain " * 30})
    assert found.words_per_part == 3
    assert [part.text for part in found.parts][33:35] == ["pill", "pain pain pain"]
    assert len(found.parts) == 34 + 10
    assert explain(classifier, {"Benefits": "pill " * 100}).cut["Benefits"] > 0


def test_the_cost_is_known_before(classifier, monkeypatch):
    asked = []
    real = Classifier.score_ids
    monkeypatch.setattr(Classifier, "score_ids", lambda self, ids, **k: asked.append(len(ids)) or real(self, ids, **k))
    explain(classifier, FIELDS)
    assert asked == [forward_passes(classifier.prompts.reading(classifier.as_review(FIELDS)))] == [2 + 2 * 12 + 4]


def test_drawn_orders_sum_exactly_too_and_come_near_the_exact_shares(monkeypatch):
    """With a known game: v is quadratic, so a Shapley value is its linear term plus half of its pair terms."""
    names = [f"f{i}" for i in range(9)]
    pairs = dict.fromkeys(itertools.pairwise(names), 1.0)

    def value(subset):
        return sum(int(name[1]) for name in subset) + sum(w for (a, b), w in pairs.items() if {a, b} <= subset)

    exact = {name: int(name[1]) + sum(w / 2 for pair, w in pairs.items() if name in pair) for name in names}
    subsets, orders = explaining._subsets(names)
    drawn = explaining._shapley(orders, {subset: value(subset) for subset in subsets})
    assert sum(drawn.values()) == pytest.approx(value(frozenset(names)), abs=1e-9)
    assert all(drawn[name] == pytest.approx(exact[name], abs=0.15) for name in names)
    monkeypatch.setattr(explaining, "EXACT_FIELDS", 9)
    subsets, orders = explaining._subsets(names)
    all_orders = explaining._shapley(orders, {subset: value(subset) for subset in subsets})
    assert all_orders == pytest.approx(exact)


@pytest.mark.parametrize(
    ("review", "label", "reason"),
    [
        ("", None, "expected a review with some text"),
        ("great", "good", "among positive, neutral, negative, got 'good'"),
    ],
)
def test_what_cannot_be_explained_is_refused(classifier, review, label, reason):
    with pytest.raises(DataError, match=reason):
        explain(classifier, review, label=label)


HOSTILE = Explanation(
    label="<i>", predicted="a&b", probability=0.5, log_odds=0.0, without_review=-1.0, fields={"<u>": 1.0},
    parts=(Part("<u>", "<script>x</script>", 2.0), Part("<u>", '"on=', -1.0), Part("<u>", "plain", 0.1)),
    words_per_part=1, cut={"<u>": 3},
)  # fmt: skip


def test_the_fragment_escapes_everything_and_marks_both_directions():
    html = explanation_html(HOSTILE)
    assert "<script" not in html
    assert "<i>" not in html
    assert "<u>" not in html
    assert '<mark class="rx-f4" title="+2.00">&lt;script&gt;x&lt;/script&gt;</mark>' in html
    assert '<mark class="rx-a2" title="−1.00">&quot;on=</mark>' in html
    assert " plain</p>" in html
    assert "3 tokens of &lt;u&gt; were not read" in html
    for step in (1, 2, 3, 4):
        assert f".rx-f{step}" in EXPLANATION_CSS
        assert f".rx-a{step}" in EXPLANATION_CSS


def test_the_terminal_shows_colours_and_without_them_the_figures():
    from rich.console import Console

    def printed(**options):
        console = Console(width=100, **options)
        with console.capture() as capture:
            console.print(explanation_text(HOSTILE))
        return capture.get()

    plain = printed(no_color=True, color_system=None)
    assert "\x1b[" not in plain
    assert '“<script>x</script>” +2.00, “"on=” −1.00' in plain
    assert "The answer is a&b; what is explained is <i>." in plain
    assert "48;5;25m<script>" in printed(force_terminal=True, color_system="256")


def test_levels_are_relative_to_the_largest():
    assert levels([2.0, -1.0, 0.2, 0.0]) == [4, -2, 0, 0]
    assert levels([]) == []
    assert levels([0.0]) == [0]


def test_json_is_plain(classifier):
    assert json.loads(json.dumps(explain(classifier, FIELDS).to_dict(), allow_nan=False))["parts"][0].keys() == {
        "field", "text", "weight",
    }  # fmt: skip
    assert np.isfinite(explain(classifier, FIELDS).log_odds)
