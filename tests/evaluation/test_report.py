import copy
import itertools
import re
from dataclasses import dataclass

import numpy as np
import pytest
from html_pages import HOSTILE, Page
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import UndefinedError

from rxtone.data.reviews import Review
from rxtone.evaluation.baselines import Baseline
from rxtone.evaluation.compare import RunPredictions, compare
from rxtone.evaluation.evaluate import evaluate
from rxtone.evaluation.report import (
    confident_errors,
    format_figure,
    format_interval,
    format_moment,
    format_p,
    format_percent,
    format_plain,
    format_signed,
    render_comparison,
    render_report,
)
from rxtone.stats.metrics import classification_metrics
from rxtone.stats.operating import ordinal_cost
from rxtone.stats.policy import fit_policy


def context(labels=("positive", "neutral", "negative"), text="runs/first"):
    figures = classification_metrics([0, 0, 1, 2], [0, 0, 2, 2], labels)
    baseline = classification_metrics([0, 0, 1, 2], [0, 0, 0, 0], labels)
    truncation = {
        "n_truncated": 1,
        "share_truncated": 0.25,
        "tokens": {"mean": 9.5, "p50": 9.0, "p90": 12.0, "max": 1190},
    }
    return {
        "title": text,
        "created": "2026-01-02 03:04",
        "metrics": figures
        | {
            "split": "test",
            "truncation": truncation,
            "baselines": {
                "majority": {"title": text} | baseline,
                "tfidf_text": {"title": "linear", "unavailable": text},
            },
        },
        "facts": {"Data": {text: text}},
        "history": [{"step": 1, "loss": 1.0, "learning_rate": 0.1}],
        "cut_fields": {text: 1},
        "environment": {text: text},
        "commands": [text],
        "notes": [text],
    }


@pytest.fixture(scope="module")
def usual():
    return render_report(context())


def test_the_page_shows_the_figures(usual):
    text = Page(usual).text
    for part in (
        "0.750",
        "4 reviews (test)",
        "linear",
        "unavailable: runs/first",
        "25.0%",
        "1,190",
        "macro-F1",
    ):
        assert part in text
    assert "they are no test" not in text


def test_rows_used_for_selection_are_not_called_a_test():
    selected = context()
    selected["metrics"]["split"] = "validation, used for selection"
    page = Page(render_report(selected))
    assert "4 reviews (validation, used for selection)" in page.text
    assert "they are no test" in page.text


def test_hostile_text_stays_text():
    html = render_report(context(labels=(HOSTILE, "$x$", "ok"), text=HOSTILE))
    page = Page(html)
    assert not page.tags & {
        "script",
        "img",
        "iframe",
        "link",
        "object",
        "embed",
        "form",
        "a",
        "base",
        "image",
    }
    assert not [name for name, _ in page.attributes if name.startswith("on") or name in ("src", "srcset", "data")]
    assert page.text.count("alert(1)") >= 8
    assert "{{ 7*7 }}" in page.text


def test_the_page_asks_for_nothing(usual):
    html = usual
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert f'<meta http-equiv="Content-Security-Policy" content="{policy}">' in html
    assert html.index("Content-Security-Policy") < html.index("<style")
    links = [value for name, value in Page(html).attributes if name.endswith("href")]
    links += re.findall(r"url\(([^)]*)\)", html)
    assert links
    assert all(link.startswith("#") for link in links)
    assert set(re.findall(r"https?://[^\"' <]+", html)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }


def test_same_context_same_page(usual):
    assert usual == render_report(copy.deepcopy(context()))


def test_a_missing_part_is_an_error_not_a_gap():
    broken = context()
    del broken["environment"]
    with pytest.raises(UndefinedError, match="environment"):
        render_report(broken)


def test_a_run_without_training_or_truncation_has_a_page_too():
    bare = context() | {"history": [], "facts": {}, "cut_fields": {}}
    del bare["notes"], bare["metrics"]["truncation"], bare["metrics"]["baselines"]
    text = Page(render_report(bare)).text
    assert "Length and truncation" not in text
    assert "Learning rate." not in text


def test_figures_as_text():
    assert format_figure(-0.1234) == "−0.123"
    assert format_figure(None) == format_percent(None) == format_interval(None) == "–"
    assert format_signed(None) == "–"
    assert format_signed(0.05) == "+0.050"
    assert format_signed(-0.05) == "−0.050"
    assert format_percent(0.0049) == "0.5%"
    assert format_interval([-0.01, 0.2]) == "−0.010 to 0.200"


@dataclass(frozen=True)
class Scored:
    log_probs: np.ndarray
    truncated: np.ndarray
    n_tokens: np.ndarray


@dataclass(frozen=True)
class Table:
    """Scores drawn at random, a little better than chance: a classifier without a model."""

    labels: tuple[str, ...]

    def score(self, reviews):
        rng = np.random.default_rng(0)
        true = np.array([self.labels.index(review.label) for review in reviews])
        logits = 2 * np.eye(len(self.labels))[true] + rng.normal(size=(len(reviews), len(self.labels)))
        return Scored(2 * logits, rng.random(len(reviews)) < 0.2, rng.integers(20, 300, len(reviews)))


def judged(labels, group):
    """An evaluation with everything in it."""
    rng = np.random.default_rng(1)
    reviews = [Review((), "x", labels[i], f"{group} {i}", row) for row, i in enumerate(rng.choice(3, 240), 1)]
    true = np.array([labels.index(review.label) for review in reviews])
    classifier = Table(labels)
    fit = fit_policy(classifier.score(reviews).log_probs, true, cost=ordinal_cost(3), target_precision=0.8)
    flat = Baseline("flat", group, np.zeros(240, int))
    return evaluate(classifier, reviews, split_name="test", policy=fit.policy, baselines=[flat], n_resamples=300)


def test_the_whole_page_of_an_evaluation():
    found = judged(("positive", "neutral", "negative"), "drug")
    errors = confident_errors(found.predictions, 3)
    page = Page(
        render_report(context() | {"metrics": found.metrics, "confident_errors": errors, "suspects": errors[:1]})
    )
    for section in (
        *("Beside the baselines", "By label", "Operating points", "Calibration", "When it may stay silent"),
        *("Slices", "By length", "By group", "Most confident errors", "Suspect labels", "Environment"),
    ):
        assert section in page.text
    assert f"95% {format_interval(found.metrics['macro_f1_ci'])}" in page.text
    assert "300 resamples of 3 groups" in page.text
    assert "This classifier is" in page.text
    assert f"{found.metrics['abstention']['n_abstained']} answers are withheld" in page.text


def test_confident_errors_are_the_most_confident_errors():
    frame = judged(("a", "b", "c"), "drug").predictions
    errors = confident_errors(frame, 4)
    assert len(errors) == 4
    assert all(error["label"] != error["true_label"] for error in errors)
    scores = [error["score"] for error in errors]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == frame.filter(frame["label"] != frame["true_label"])["score"].max()


def test_hostile_labels_groups_and_words_stay_text():
    found = judged((HOSTILE, "$x$", "</svg><script>"), HOSTILE)
    error = confident_errors(found.predictions, 1)[0] | {"words": [(HOSTILE, -1.0), (HOSTILE, 0.5)]}
    page = Page(render_report(context() | {"metrics": found.metrics, "confident_errors": [error]}))
    assert not page.tags & {"script", "img", "iframe", "link", "object", "embed", "form", "a", "base", "image"}
    assert not [name for name, _ in page.attributes if name.startswith("on")]


def test_ten_thousand_hostile_reviews_are_inert(usual):
    openings = ["<", "</", "<!--", "&lt;", "\x00<", "<<", "]]>", "<svg><", "'\"><", "{{", "{%", "</blockquote><"]
    tags = ["script>alert(1)", "img src=x onerror=alert(1)", "iframe src=//x", "style>*{}", "a href=javascript:x"]
    tags += ["meta http-equiv=refresh", "object data=x", "svg onload=alert(1)", "base href=//x", "x' onclick='a"]
    made = itertools.product(openings, tags, ["", ">", "/>", "-->", "}}"], ["", "\n", "\u2028", "\ufeff"], range(5))
    texts = [f"{opening}{tag}{end}{space}{i}" for opening, tag, end, space, i in made][:10_000]
    assert len(texts) == 10_000
    reviews = [{"row": 1, "true_label": "a", "label": "b", "score": 0.5, "text": text} for text in texts]
    clean, page = Page(usual), Page(render_report(context() | {"suspects": reviews}))
    assert page.tags - clean.tags == {"blockquote"}
    assert not [name for name, _ in page.attributes if name.startswith("on") or name in ("src", "data")]
    assert page.text.count("alert(1)") == sum("alert(1)" in text for text in texts)


def test_the_page_of_a_comparison():
    rng = np.random.default_rng(2)
    true = rng.integers(0, 3, 200)
    runs = [RunPredictions(name, np.where(rng.random(200) < 0.8, true, 0)) for name in ("one", HOSTILE)]
    flat = Baseline("flat", "always the first", np.zeros(200, int))
    page = Page(
        render_comparison(
            {
                "title": "one against another",
                "created": "2026-01-02",
                "table": HOSTILE,
                "comparison": compare(runs, true, ("a", "b", "c"), baselines=[flat], n_resamples=300),
                "commands": ["rxtone compare one another --on table.tsv"],
                "notes": [HOSTILE],
                "seeds": {"one": {"n": 3, "mean": 0.5, "sd": 0.01, "interval": [0.48, 0.52]}},
            }
        )
    )
    assert not page.tags & {"script", "img", "iframe", "link", "object", "embed", "form", "a", "base", "image"}
    for part in ("Verdict", "always the first", "0.480 to 0.520", "McNemar", "300 resamples of 200 reviews"):
        assert part in page.text


@settings(max_examples=6, deadline=None)
@given(
    text=st.text(min_size=1, max_size=80) | st.sampled_from([HOSTILE, "<a href='javascript:x'>", "<!--<script>", "]]>"])
)
def test_any_text_of_a_user_stays_text(text):
    page = Page(render_report(context(text=text)))
    assert page.tags <= PLAIN.tags
    assert not [name for name, value in page.attributes if name.startswith("on") or "javascript:" in (value or "")]


PLAIN = Page(render_report(context(text="x")))


def test_p_values_are_never_shown_as_zero_and_large_numbers_whole():
    assert [format_p(p) for p in (0.0004, 0.001, 0.25, None)] == ["< 0.001", "0.001", "0.250", "–"]
    assert [format_plain(x) for x in (0.5, 9.96, 10.2, 1234.5)] == ["0.500", "9.960", "10", "1,234"]


def test_a_moment_is_shown_to_the_minute():
    assert format_moment("2026-11-25T19:47:07+00:00") == "2026-11-25 19:47 UTC"
    assert format_moment("2026-01-02 03:04") == "2026-01-02 03:04"


def test_the_suite_shows_its_failures_as_text():
    given = context()
    part = {"title": HOSTILE, "n": 4, "passed": 3, "pass_rate": 0.75, "pass_rate_ci": [0.3, 0.95],
            "failures": [{"text": HOSTILE, "change": HOSTILE, "expected": "a", "label": "b", "score": 1.0}],
            }  # fmt: skip
    given["metrics"] |= {"behaviour": {"capabilities": {"x": part}, "n": 4, "passed": 3, "pass_rate": 0.75}}
    page = Page(render_report(given))
    assert "script" not in page.tags
    assert "3 of 4" in page.text
    assert "30.0% to 95.0%" in page.text
    assert "b instead of a" in page.text
