import copy
import re
from html.parser import HTMLParser

import pytest
from jinja2 import UndefinedError

from rxtone.evaluation.report import format_figure, format_interval, format_percent, render_report
from rxtone.stats.metrics import classification_metrics

HOSTILE = "</title></style><script>alert(1)</script><img src=x onerror=alert(1)>'\"{{ 7*7 }}"


class Page(HTMLParser):
    """Collects what a browser would act on."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.text = set(), [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


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


def test_the_page_shows_the_figures():
    text = Page(render_report(context())).text
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


def test_the_page_asks_for_nothing():
    html = render_report(context())
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


def test_same_context_same_page():
    assert render_report(context()) == render_report(copy.deepcopy(context()))


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
    assert format_percent(0.0049) == "0.5%"
    assert format_interval([-0.01, 0.2]) == "−0.010 to 0.200"
