import os
import resource
import signal
import subprocess
import sys

import pytest

from rxtone.errors import RunError
from rxtone.run import create_run
from rxtone.run_lock import hold_run

HOLD = "import sys, time; from pathlib import Path; from rxtone.run_lock import hold_run\n"
HOLD += "with hold_run(Path(sys.argv[1]), resume=True): print('held', flush=True); time.sleep(60)"


@pytest.fixture
def holder(tmp_path):
    """Another process that holds tmp_path/run."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


@pytest.mark.parametrize("resume", [False, True])
def test_the_second_process_is_refused_with_the_first_ones_id(holder, tmp_path, resume):
    (tmp_path / "run" / "config.yaml").touch()  # as a run that is under way has it
    with (
        pytest.raises(RunError, match=f"process {holder.pid} works in this run folder"),
        hold_run(tmp_path / "run", resume=resume),
    ):
        pass


def test_the_lock_of_a_killed_process_is_no_obstacle(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "run" / ".lock").read_text() == f"{holder.pid}\n"
    with hold_run(tmp_path / "run", resume=False) as run:
        assert (run.path / ".lock").read_text() == f"{os.getpid()}\n"
    assert list((tmp_path / "run").iterdir()) == []


def test_leftovers_of_a_killed_process_go(tmp_path):
    (tmp_path / "checkpoints" / ".step-000002.x1.tmp").mkdir(parents=True)
    (tmp_path / ".metrics.jsonl.77.tmp").touch()
    (tmp_path / "config.yaml").touch()
    with hold_run(tmp_path, resume=True):
        assert sorted(path.name for path in tmp_path.rglob("*")) == [".lock", "checkpoints", "config.yaml"]


def test_a_folder_that_refuses_is_one_message(tmp_path):
    (tmp_path / "lead").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "elsewhere")
    with (
        pytest.raises(RunError, match="cannot be written: Too many levels of symbolic links"),
        hold_run(tmp_path / "run", resume=True),
    ):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_a_disk_that_takes_the_lock_and_not_its_number_is_one_message(tmp_path):
    (tmp_path / "run").mkdir()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))  # files can be made, and nothing be written
    try:
        with (
            pytest.raises(RunError, match="run: cannot be written: File too large; choose another --out"),
            hold_run(tmp_path / "run", resume=True),
        ):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize("name", ["checkpoints", "adapter", "metrics.jsonl", "evaluation"])
def test_a_run_folder_with_a_link_that_leads_out_is_refused(tmp_path, name):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(tmp_path / "outside")
    with pytest.raises(RunError, match=f"{name}: a link that leads out of the run folder"):
        create_run(tmp_path / "run", resume=True)


def test_processes_that_start_at_once_never_hold_together(tmp_path):
    """Three processes lock and unlock, each until it was inside ten times: never two at once, none kept out."""
    code = (
        "import sys, time; from pathlib import Path\n"
        "from rxtone.errors import RunError; from rxtone.run_lock import hold_run\n"
        "root = Path(sys.argv[1]); (root / sys.argv[2]).touch(); entered = 0\n"
        "while len(list(root.glob('ready-*'))) < 3: time.sleep(0.001)\n"
        "while entered < 10:\n"
        "    try:\n"
        "        with hold_run(root / 'run', resume=True):\n"
        "            (root / 'inside').mkdir(); (root / 'inside').rmdir(); entered += 1\n"
        "    except RunError: pass"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), f"ready-{number}"], stderr=subprocess.PIPE)
        for number in range(3)
    ]
    try:
        errors = [process.communicate(timeout=60)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0, 0], errors
