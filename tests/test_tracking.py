import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import tiny_values

from rxtone import api
from rxtone.config import check_recipe
from rxtone.errors import RecipeError


def recipe(base, table, track):
    values = tiny_values(base, table) | {"train": {"max_steps": 3}, "track": track}
    values["evaluation"] = {"enabled": False, "reload_check": False}
    return check_recipe(values, "tiny")


def test_tensorboard_gets_every_step_and_validation(tiny_base, tiny_table, tmp_path):
    run = api.train(recipe(tiny_base, tiny_table, {"tensorboard": True}), out=tmp_path / "run")
    events = EventAccumulator(str(run.tensorboard))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3]
    assert [event.step for event in events.Scalars("validation/validation_macro_f1")] == [3]


def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_written(
    tiny_base, tiny_table, tmp_path, monkeypatch
):
    monkeypatch.setattr("rxtone.tracking.importlib.util.find_spec", lambda _: None)
    with pytest.raises(RecipeError, match=r"track\.mlflow: mlflow is not installed; install rxtone\[track\]"):
        api.train(recipe(tiny_base, tiny_table, {"mlflow": "sqlite:///x.db"}), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
