"""Names that the system cannot even look up are one message, wherever they are given."""

from pathlib import Path

import pytest

import rxtone
from rxtone.config import load_recipe
from rxtone.errors import DataError, ModelError, RecipeError
from rxtone.model.base import load_base
from rxtone.paths import given_path
from rxtone.serving.bulk import predict_tables

LONG = "x" * 300


def test_a_path_that_may_exist_is_returned(tmp_path):
    assert given_path(tmp_path, ModelError) == tmp_path
    assert given_path("~/none", ModelError) == Path.home() / "none"
    assert given_path(tmp_path / "none", ModelError) == tmp_path / "none"


def test_a_name_that_is_too_long_is_refused_and_not_repeated():
    with pytest.raises(DataError, match=r"^x{100}\.\.\.: cannot be looked at \(File name too long\)"):
        given_path(LONG, DataError)


def test_so_it_is_for_runs_bases_recipes_and_tables(tiny_run, tmp_path):
    with pytest.raises(ModelError, match="File name too long"):
        rxtone.load(LONG)
    with pytest.raises(ModelError, match="File name too long"):
        load_base(LONG)
    with pytest.raises(RecipeError, match="File name too long"):
        load_recipe(LONG)
    with pytest.raises(DataError, match="File name too long"):
        list(predict_tables(rxtone.load(tiny_run), [LONG], tmp_path / "out.csv"))
