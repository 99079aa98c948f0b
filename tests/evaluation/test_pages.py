"""The pages of the audit and of drift: everything escaped, nothing that runs, the figures of the JSON."""

import json

import pytest
from html_pages import HOSTILE, Page
from tiny import tiny_values, write_tiny_table

from rxtone.auditing import audit_recipe
from rxtone.config import check_recipe
from rxtone.evaluation.pages import render_audit, render_drift


def inert(html: str) -> Page:
    page = Page(html)
    assert page.tags.isdisjoint({"script", "iframe", "object", "link", "img", "form", "base"})
    assert not any(name.startswith("on") for name, _ in page.attributes)
    assert "default-src 'none'" in html
    return page


@pytest.fixture(scope="module")
def audited(tiny_base, tiny_table, tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit")
    table = folder / "hostile.csv"
    lines = tiny_table.read_text().splitlines()
    rows = [lines[0] + ",drug", *(f'{line},"<script>alert({i % 3})</script>"' for i, line in enumerate(lines[1:]))]
    table.write_text("\n".join([*rows, rows[1]]) + "\n")
    values = tiny_values(tiny_base, table)
    values["data"] |= {"group_by": "drug", "test": str(write_tiny_table(folder / "test.csv", n=30, seed=5))}
    values["data"]["test"] = str(table)
    found = audit_recipe(check_recipe(values, "tiny"), folder / "out", "<b>tiny</b>")
    return found, folder / "out"


def test_the_audit_page_shows_what_audit_json_holds(audited):
    found, out = audited
    kept = json.loads((out / "audit.json").read_text())
    assert kept == json.loads(json.dumps(found.to_dict()))
    html = (out / "audit.html").read_text()
    page = inert(html)
    assert "Data audit: <b>tiny</b>" in page.text
    assert "<script>alert(0)</script>" in page.text
    for finding in kept["findings"]:
        assert " ".join(finding["text"].split()) in " ".join(page.text.split())


def test_the_audit_counts_lengths_and_cross_fits_suspects(audited):
    found, _ = audited
    part = found.parts["train"]
    assert part.lengths is not None
    assert part.lengths.max <= 48
    assert part.suspects is not None
    assert part.rule_variants[0].macro_f1 is not None
    assert part.rule_variants[0].macro_f1 > 0.5


def test_the_audit_goes_on_without_the_tokenizer_and_says_so(tiny_table, tmp_path):
    values = tiny_values(tmp_path / "no-base", tiny_table)
    found = audit_recipe(check_recipe(values, "tiny"), tmp_path / "out")
    assert found.parts["train"].lengths is None
    assert "Lengths in tokens and cuts were not counted" in (tmp_path / "out" / "audit.html").read_text()


def test_drift_writes_its_page(call, tiny_run, tmp_path):
    table = write_tiny_table(tmp_path / "new.csv", n=60, seed=44)
    code, out, _ = call("drift", tiny_run, table, "--out", tmp_path / "page")
    assert code == 0
    kept = json.loads((tmp_path / "page" / "drift.json").read_text())
    page = inert((tmp_path / "page" / "drift.html").read_text())
    assert kept["verdict"] in page.text
    assert kept["verdict"] in out
    assert "svg" in page.tags


def test_a_hostile_name_stays_text():
    drift = {
        "n_reference": 30, "n_current": 40, "drifted": True, "verdict": HOSTILE,
        "accuracy": {"reference": 0.8, "estimated_current": 0.7},
        "features": [{"name": HOSTILE, "psi": 0.3, "p_value": 0.01, "p_adjusted": 0.02, "drifted": True,
                      "reference": {HOSTILE: 0.4, "b": 0.6}, "current": {HOSTILE: 0.7, "b": 0.3}}],
        "label_shares": {key: {HOSTILE: 1.0} for key in ("reference_true", "current_predicted", "current_estimated")},
    }  # fmt: skip
    html = render_drift(
        {"title": HOSTILE, "created": "2026-01-02", "table": HOSTILE, "drift": drift, "commands": [HOSTILE]}
    )
    assert inert(html).text.count("alert(1)") >= 5
    audit = {
        "labels": [HOSTILE],
        "parts": {},
        "across": [],
        "findings": [{"level": "note", "subject": "x", "text": HOSTILE}],
    }
    inert(render_audit({"title": HOSTILE, "created": "2026-01-02", "audit": audit, "commands": [HOSTILE]}))
