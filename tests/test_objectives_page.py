"""The table of losses, from a study on the tiny base."""

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import yaml
from tiny import tiny_values

from rxtone.config import load_recipe
from rxtone.data.reviews import Review
from rxtone.space import check_space, load_space
from rxtone.sweep import sweep

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import auxiliary, objectives  # noqa: E402


def test_the_shipped_space_fits_its_recipe_and_tries_six_losses_at_least():
    space = load_space("objectives")
    check_space(space, load_recipe(space.recipe))
    assert len(space.parameters["train.loss"].choice) >= 5
    assert space.confirm.against == {"train.loss": "token_ce", "train.class_weights": None}


def test_the_shipped_space_of_auxiliary_tasks_fits_its_recipe_and_has_sentiment_alone_to_beat():
    space = load_space("auxiliary")
    check_space(space, load_recipe(space.recipe))
    alone, beside = space.parameters["auxiliary"].choice
    assert (alone, sorted(beside)) == ({}, ["effectiveness", "side-effects"])
    assert space.confirm.against == {"auxiliary": {}}


def test_a_study_becomes_a_table_with_gains_and_a_linear_model(tiny_base, tiny_table, tmp_path):
    values = tiny_values(tiny_base, tiny_table)
    values["train"] |= {"num_train_epochs": 2}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    plain = {"train.loss": "token_ce", "train.learning_rate": 1e-6}
    spec = {
        "recipe": str(tmp_path / "tiny.yaml"), "sampler": "grid", "pruner": "none",
        "parameters": {"train.loss": ["token_ce", "label_ce"], "train.learning_rate": [1e-6, 0.02]},
        "confirm": {"top": 1, "folds": 2, "seeds": 2,
                    "against": plain},
    }  # fmt: skip
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    for _ in sweep(load_space(tmp_path / "space.yaml"), load_recipe(tmp_path / "tiny.yaml"), tmp_path / "study"):
        pass
    page = tmp_path / "quality.md"
    page.write_text((ROOT / "docs" / "quality.md").read_text())
    objectives.main([str(tmp_path / "study"), "--page", str(page)])
    text = page.read_text().partition(objectives.MARKERS[0])[2].partition(objectives.MARKERS[1])[0]
    assert "4 settings screened on one split, 2 confirmed on 2 folds x 2 seeds, 204 reviews" in text
    confirmed, screened = text.split("### Screened")
    rows = {cells[1].strip(): cells for cells in (line.split("|") for line in confirmed.splitlines()) if len(cells) > 5}
    best = next(name for name in rows if name.endswith("learning_rate=0.02"))
    plain, linear = rows["loss=token_ce, learning_rate=1e-06"], rows[objectives.LINEAR]
    assert rows[best][4].strip().startswith("+")  # its gain over the setting to be beaten
    assert plain[4].strip() == linear[5].strip() == linear[-2].strip() == "–"
    assert linear[4].strip().startswith("+")
    assert float(rows[f"{best}; 2 seeds averaged"][2]) > float(plain[2])
    offsets = rows["loss=token_ce, learning_rate=1e-06; offsets"]
    assert offsets[-2] == plain[-2]  # offsets move the threshold, not the order of the reviews
    assert float(rows[best][-2]) > float(plain[-2])
    assert len(screened.strip().splitlines()) == 2 + 4


def test_offsets_of_a_row_are_fitted_without_its_fold():
    """Fold 1 is all neutral: offsets from fold 0, which has no neutral row, cannot favour it."""
    true = np.array([0] * 30 + [2] * 30 + [1] * 30)
    probabilities = np.tile([0.5, 0.3, 0.2], (1, 90, 1))
    probabilities[0, 30:60] = [0.2, 0.3, 0.5]
    fold_of = np.array([[0] * 60 + [1] * 30])
    answers = objectives._with_offsets(probabilities, true, fold_of)
    assert set(answers[0, 60:]) == {0}


def test_a_table_of_one_field_has_a_linear_model_too():
    words = {"good": "wonderful relief", "bad": "terrible rash"}
    rows = [
        Review((("Text", words[label]),), label=label, row=2 * i + j)
        for i in range(1, 9)
        for j, label in enumerate(words)
    ]
    for number, row in enumerate(rows):  # texts differ, or all copies would be one block
        rows[number] = replace(row, fields=(("Text", f"{row.fields[0][1]} {number}"),))
    prepared = SimpleNamespace(train=rows, validation=[])
    answers = objectives._linear(prepared, 0, 2, {row.row: i for i, row in enumerate(rows)}, list(words))
    assert answers.tolist() == [0, 1] * 8


def test_a_study_of_auxiliary_tasks_becomes_a_table_between_markers_of_its_own(tiny_base, tiny_table, tmp_path):
    values = tiny_values(tiny_base, tiny_table)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    task = {"column": "rating", "rule": {"great": ">=5", "awful": "<5"}, "template": "{fields}"}
    spec = {
        "recipe": str(tmp_path / "tiny.yaml"), "sampler": "grid", "pruner": "none",
        "parameters": {"auxiliary": [{}, {"score": task}]},
        "confirm": {"top": 2, "folds": 2, "seeds": 1, "against": {"auxiliary": {}}},
    }  # fmt: skip
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    for _ in sweep(load_space(tmp_path / "space.yaml"), load_recipe(tmp_path / "tiny.yaml"), tmp_path / "study"):
        pass
    page = tmp_path / "quality.md"
    page.write_text((ROOT / "docs" / "quality.md").read_text())
    auxiliary.main([str(tmp_path / "study"), "--page", str(page)])
    text = page.read_text().partition(auxiliary.MARKERS[0])[2].partition(auxiliary.MARKERS[1])[0]
    rows = {cells[1].strip(): cells for cells in (line.split("|") for line in text.splitlines()) if len(cells) > 6}
    assert rows["auxiliary=none"][4].strip() == "–"
    assert " to " in rows["auxiliary=score"][4]  # its gain over sentiment alone
    other = page.read_text().partition(objectives.MARKERS[0])[2].partition(objectives.MARKERS[1])[0]
    assert other in (ROOT / "docs" / "quality.md").read_text()


def test_the_page_in_the_repository_has_its_markers():
    text = (ROOT / "docs" / "quality.md").read_text("utf-8")
    assert all(marker in text for marker in (*objectives.MARKERS, *auxiliary.MARKERS))
