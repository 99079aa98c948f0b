"""`make reproduce` on the tiny base: the same command, the same table."""

import sys
from pathlib import Path

import yaml
from tiny import tiny_values

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import reproduce

PAGE = "# Quality\n\nbefore\n\n<!-- reproduce:begin -->\nold\n<!-- reproduce:end -->\n\nafter\n"


def test_both_recipes_run_and_fill_the_table(tiny_base, tiny_table, tmp_path):
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(tiny_values(tiny_base, tiny_table)))
    page = tmp_path / "quality.md"
    page.write_text(PAGE)
    arguments = ["--base", str(tiny_base), "--recipes", str(recipe), "--seeds", "2", "--out", str(tmp_path / "runs"),
                 "--page", str(page), "--set", "train.max_steps=3"]  # fmt: skip
    reproduce.main(arguments)
    text = page.read_text()
    assert text.startswith("# Quality\n\nbefore\n")
    assert text.endswith("\n\nafter\n")
    assert "old" not in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    name = f"| {tiny_base} | tiny | "
    assert [row.count("|") for row in rows] == [8] * len(rows)
    assert any(row.startswith(f"{name}mean ± sd of 2 seeds with train.max_steps=3 | 0.") for row in rows)
    for what in ("ensemble of the seeds", "the base without adapter (zero-shot)", "linear, TF-IDF per field"):
        assert any(row.startswith((f"{name}{what} | 0.", f"{name}{what} | 1.")) for row in rows)
    assert "| google/flan-t5-base | tiny | not measured | – | – | – | – |" in rows
    again = text
    reproduce.main([*arguments, "--table-only"])
    assert page.read_text() == again


def test_the_page_in_the_repository_has_its_markers_and_its_rows():
    text = (Path(__file__).parents[1] / "docs" / "quality.md").read_text("utf-8")
    inside = text.partition(reproduce.MARKERS[0])[2].partition(reproduce.MARKERS[1])[0]
    for base in reproduce.BASES:
        for recipe in reproduce.RECIPES:
            assert f"| {base} | {recipe} |" in inside
