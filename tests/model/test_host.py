"""Threads follow a container's quota downwards only."""

import threading
from pathlib import Path

import pytest
import torch

from rxtone.model.host import in_passing, prepare_host, quota_cores


@pytest.mark.parametrize(
    ("text", "cores"),
    [("max 100000", None), ("100000 100000", 1), ("150000 100000", 2), ("5000 100000", 1), ("", None), ("x y", None)],
)
def test_quota_in_whole_cores(tmp_path: Path, text: str, cores: int | None) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert quota_cores(tmp_path / "cpu.max") == cores


def test_threads_are_lowered_to_the_quota_and_never_raised(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        (tmp_path / "cpu.max").write_text("800000 100000")
        prepare_host(tmp_path / "cpu.max")
        assert torch.get_num_threads() == 2
        (tmp_path / "cpu.max").write_text("100000 100000")
        prepare_host(tmp_path / "cpu.max")
        assert torch.get_num_threads() == 1
        prepare_host(tmp_path / "absent")
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_work_in_passing_has_a_thread_that_ends_and_its_error_is_raised() -> None:
    worker = in_passing(threading.current_thread)
    assert worker is not threading.current_thread()
    assert not worker.is_alive()
    with pytest.raises(ValueError, match="no such"):
        in_passing(lambda: int("no such"))
