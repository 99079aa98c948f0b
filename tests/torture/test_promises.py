"""Every promise in its short form; the long forms are `make torture`."""

import warnings

import pytest

from torture.figure import SHOWN, make_world
from torture.forks import Forks
from torture.promises import PROMISES


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with Forks() as forks:
        yield make_world(tmp_path_factory.mktemp("world"), forks)


# Processes that are killed leave sockets and files that only the garbage collector closes.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
@pytest.mark.parametrize(
    ("promise", "attempts"),
    [pytest.param(promise, promise.short, id=f"{promise.name}-short") for promise in PROMISES]
    + [
        pytest.param(promise, promise.long, id=f"{promise.name}-long", marks=pytest.mark.torture)
        for promise in PROMISES
    ],
)
def test_promise(promise, attempts, world, tmp_path):
    if promise.missing:
        pytest.skip(promise.missing)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # of clients that are cut off on purpose
        figure = promise.measure(attempts, tmp_path, world)
    assert figure.attempts >= attempts
    assert figure.failures[:SHOWN] == []
