import json
from unittest import mock

import pytest
from tiny import tiny_values

from rxtone import api, doctor
from rxtone.config import check_recipe
from rxtone.training import loop


def test_the_machine_is_described():
    report = doctor.examine(None)
    assert (report.problem, report.exit_code, report.estimate) == (None, 0, None)
    assert report.machine["packages"]["peft"].count(".") >= 1
    assert report.machine["cpu"]["native_bf16"] == (report.precision == "bf16") or report.machine["devices"] != ["cpu"]
    assert 1 << 28 < report.machine["free_memory_bytes"] < 1 << 50
    assert report.machine["offline"] is True  # the tests' own setting
    json.dumps(report.to_json())


@pytest.mark.parametrize(
    "changes", [{}, {"tokens_per_batch": 64}, {"gradient_accumulation_steps": 3, "num_train_epochs": 1.5}]
)
def test_the_estimate_counts_what_the_run_does(tiny_base, tiny_table, tmp_path, changes):
    values = tiny_values(tiny_base, tiny_table)
    values["train"] |= {"num_train_epochs": 2} | changes
    values["evaluation"] |= {"enabled": False}
    recipe = check_recipe(values, "tiny")
    report = doctor.examine(recipe)
    assert report.problem is None
    run = api.train(recipe, out=tmp_path / "run")
    steps = json.loads(run.environment.read_text())["training"]["steps"]
    assert report.estimate.steps == steps
    assert report.estimate.training_seconds > 0
    assert report.estimate.peak_memory_bytes > 1 << 26


def test_a_recipe_that_cannot_run_is_a_finding_with_its_exit_code(tiny_base, tiny_table, tmp_path):
    gone = check_recipe(tiny_values(tiny_base, tmp_path / "none.csv"), "tiny")
    report = doctor.examine(gone)
    assert (report.exit_code, report.estimate) == (3, None)
    assert "none.csv" in report.problem
    values = tiny_values(tiny_base, tiny_table)
    values["lora"]["target_modules"] = ["query"]
    assert doctor.examine(check_recipe(values, "tiny")).exit_code == 2
    assert doctor.examine(check_recipe(tiny_values(tmp_path / "no-base", tiny_table), "tiny")).exit_code == 1


def test_too_little_memory_is_said_before_the_run(tiny_base, tiny_table, monkeypatch):
    monkeypatch.setattr(doctor, "free_memory", lambda _: 0)
    monkeypatch.setattr(doctor, "peak_memory", lambda _: 3 << 30)
    monkeypatch.setattr(doctor, "ROOM", 0.5)
    report = doctor.examine(check_recipe(tiny_values(tiny_base, tiny_table), "tiny"))
    assert report.exit_code == 1
    assert report.problem.startswith("it needs 3.0 GiB, of which 1.5 GiB are here; lower train.per_device")


def test_nothing_is_left_behind(tiny_base, tiny_table, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    doctor.examine(check_recipe(tiny_values(tiny_base, tiny_table), "tiny"))
    assert list(tmp_path.iterdir()) == []


def test_a_few_steps_ask_the_further_tasks_and_soft_labels_of_their_own_rows(tiny_base, tiny_table):
    values = tiny_values(tiny_base, tiny_table)
    values["train"] |= {"loss": "label_ce", "rating_noise": 1.0}
    values["auxiliary"] = {"rating": {
        "column": "rating", "rule": {"great": ">=5", "awful": "<5"}, "template": "Rate : {fields}", "share": 0.5,
    }}  # fmt: skip
    recipe = check_recipe(values, "tiny")
    asked = []
    drawn = loop.auxiliary_groups
    with mock.patch.object(loop, "auxiliary_groups", lambda *a: asked.append(drawn(*a)) or asked[-1]):
        report = doctor.examine(recipe)
    assert report.problem is None
    assert {sum(map(len, groups)) for groups in asked} == {4}  # half of a step's 8 reviews, not of the whole table


def test_a_quantised_recipe_is_tried_quantised(tiny_base, tiny_table):
    values = tiny_values(tiny_base, tiny_table)
    values["model"]["quantization"] = "8bit"
    with mock.patch("rxtone.model.quantised.importlib.util.find_spec", return_value=None):
        report = doctor.examine(check_recipe(values, "tiny"))
    assert (report.exit_code, report.precision) == (2, "8bit")
    assert "8bit needs bitsandbytes" in report.problem
