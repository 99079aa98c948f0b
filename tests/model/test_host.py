"""Threads follow a container's quota downwards only; kernels of shapes that do not return are not kept."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from rxtone.model.base import native_bf16
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


@pytest.mark.skipif(
    not native_bf16(torch.device("cpu")) or not Path("/proc/self/status").exists(),
    reason="smaller kernels without native bf16, or no count of memory",
)
@pytest.mark.parametrize(("arguments", "least", "most"), [("", 0, 150), ("shapes_return=True", 250, 1000)])
def test_kernels_of_shapes_that_do_not_return_are_not_kept(arguments: str, least: int, most: int) -> None:
    """700 products, no two of the same shape: a training grew by half a megabyte with each of them."""
    code = (
        "import torch; from rxtone.model.host import prepare_host\n"
        f"prepare_host({arguments})\n"
        "def held(): return int(open('/proc/self/status').read().split('VmRSS:')[1].split()[0]) >> 10\n"
        "a, b = torch.ones(1800, 64, dtype=torch.bfloat16), torch.ones(64, 64, dtype=torch.bfloat16)\n"
        "a[:100] @ b; before = held()\n"
        "for rows in range(101, 801): a[:rows] @ b\n"
        "print(held() - before)"
    )
    own = {name: value for name, value in os.environ.items() if "CACHE_CAPACITY" not in name}
    grown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=own).stdout
    assert least <= int(grown) <= most


def test_subnormal_numbers_are_zero_in_every_thread() -> None:
    """Intel's processors are slow on them, and gradients of peaked attention are full of them."""
    code = (
        "import threading, torch; from rxtone.model.host import prepare_host\n"
        "prepare_host(); torch.set_num_threads(2)\n"
        "numbers = torch.full((1 << 20,), 0xffff, dtype=torch.int32).view(torch.float32)  # 9e-41\n"
        "counts = [int((numbers * 1).count_nonzero())]\n"
        "other = threading.Thread(target=lambda: counts.append(int((numbers * 1).count_nonzero())))\n"
        "other.start(); other.join(); print(*counts)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["0", "0"]


def test_who_has_set_a_cache_keeps_it() -> None:
    code = "import os; from rxtone.model.host import prepare_host as p; p(); print(os.environ['LRU_CACHE_CAPACITY'])"
    own = os.environ | {"LRU_CACHE_CAPACITY": "7"}
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=own).stdout
    assert said.strip() == "7"
