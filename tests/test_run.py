import json
import resource
from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors.torch import save_file

from rxtone.errors import RunError
from rxtone.run import (
    RunFolder,
    append_json_line,
    atomic_folder,
    atomic_path,
    create_run,
    file_sha256,
    read_json_lines,
    truncate_log,
    whole,
    write_json,
    write_text,
)


def test_the_layout_is_the_documented_one():
    run = RunFolder(Path("r"))
    names = [run.config, run.data, run.metrics_log, run.environment, run.checkpoints, run.adapter, run.evaluation]
    assert [str(path) for path in names] == [
        "r/config.yaml", "r/data.json", "r/metrics.jsonl", "r/environment.json", "r/checkpoints", "r/adapter",
        "r/evaluation",
    ]  # fmt: skip


def test_a_new_run_gets_its_folder(tmp_path):
    assert create_run(tmp_path / "a" / "b", resume=False).path.is_dir()


def test_an_existing_run_is_not_overwritten(tmp_path):
    write_text(tmp_path / "config.yaml", "x")
    with pytest.raises(RunError, match="already holds a run; add --resume"):
        create_run(tmp_path, resume=False)
    assert create_run(tmp_path, resume=True).path == tmp_path


def test_a_folder_with_other_files_is_refused(tmp_path):
    write_text(tmp_path / "thesis.txt", "x")
    with pytest.raises(RunError, match="expected an empty or new folder"):
        create_run(tmp_path, resume=False)


def test_a_file_in_the_way_is_refused(tmp_path):
    write_text(tmp_path / "runs", "x")
    with pytest.raises(RunError, match="expected a folder for the run, found a file"):
        create_run(tmp_path / "runs", resume=False)


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(RuntimeError, match="boom"), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("boom")
    assert json.loads(path.read_text()) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def test_json_stays_strict(tmp_path):
    write_json(tmp_path / "a.json", {"nan": float("nan"), "inf": [float("inf"), 1.5], "text": "é"})
    assert json.loads((tmp_path / "a.json").read_text()) == {"nan": None, "inf": [None, 1.5], "text": "é"}


def test_a_missing_folder_is_one_clear_error(tmp_path):
    with pytest.raises(RunError, match="cannot be written: No such file or directory; nothing was changed"):
        write_text(tmp_path / "none" / "a.txt", "x")


def test_a_folder_appears_whole_with_its_manifest(tmp_path):
    target = tmp_path / "deep" / "folder"
    with atomic_folder(target) as folder:
        (folder / "a.txt").write_text("a")
        assert not target.exists()
    assert whole(target)
    assert json.loads((target / "manifest.json").read_text()) == {"a.txt": file_sha256(target / "a.txt")}


def test_a_folder_that_fails_leaves_the_old_one(tmp_path):
    target = tmp_path / "folder"
    with atomic_folder(target) as folder:
        (folder / "a.txt").write_text("old")
    with pytest.raises(RuntimeError, match="boom"), atomic_folder(target) as folder:
        (folder / "a.txt").write_text("new")
        raise RuntimeError("boom")
    assert (target / "a.txt").read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


def test_a_folder_is_replaced_whole(tmp_path):
    target = tmp_path / "folder"
    for text in ("old", "new"):
        with atomic_folder(target) as folder:
            (folder / f"{text}.txt").write_text(text)
    assert sorted(entry.name for entry in target.iterdir()) == ["manifest.json", "new.txt"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("damage", [b"", b"aX", b"abc"])
def test_damage_is_noticed(tmp_path, damage):
    target = tmp_path / "folder"
    with atomic_folder(target) as folder:
        (folder / "a.txt").write_bytes(b"ab")
    (target / "a.txt").write_bytes(damage)
    assert not whole(target)


def test_a_missing_manifest_or_file_is_not_whole(tmp_path):
    assert not whole(tmp_path)
    write_text(tmp_path / "manifest.json", "{}")
    assert not whole(tmp_path)
    write_text(tmp_path / "manifest.json", '{"a": "b"}')
    assert not whole(tmp_path)
    write_text(tmp_path / "manifest.json", '["a"]')
    assert not whole(tmp_path)


def test_the_log_survives_a_cut_line_and_can_be_cut_back(tmp_path):
    log = tmp_path / "metrics.jsonl"
    for step in (1, 2, 3):
        append_json_line(log, {"step": step, "loss": float("nan")})
    with log.open("a") as stream:
        stream.write('{"step": 4, "lo')
    assert [record["step"] for record in read_json_lines(log)] == [1, 2, 3]
    truncate_log(log, 2)
    assert read_json_lines(log) == [{"step": 1, "loss": None}, {"step": 2, "loss": None}]
    assert read_json_lines(tmp_path / "none") == []


@pytest.fixture
def room_for_300_bytes():
    """Every file of this process; Python ignores the signal, so that the write fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


FRAME = pl.DataFrame({"text": [f"{number:080d}" for number in range(200)]})


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(b"x" * 1000),
        lambda path: FRAME.write_parquet(path),
        lambda path: FRAME.lazy().sink_parquet(path),
        lambda path: FRAME.write_ndjson(path),
        lambda path: save_file({"a": torch.rand(2000)}, path),
    ],
)
def test_a_full_disk_is_one_message_whoever_writes(tmp_path, room_for_300_bytes, write):
    (tmp_path / "out").write_text("old")
    with (
        pytest.raises(RunError, match="out: cannot be written: .*File too large"),
        atomic_path(tmp_path / "out") as path,
    ):
        write(path)
    assert (tmp_path / "out").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_full_disk_in_a_folder_keeps_the_old_one(tmp_path, room_for_300_bytes):
    with atomic_folder(tmp_path / "adapter") as folder:
        (folder / "a").write_text("old")
    with (
        pytest.raises(RunError, match="adapter: cannot be written: .*File too large"),
        atomic_folder(tmp_path / "adapter") as folder,
    ):
        save_file({"a": torch.rand(2000)}, folder / "a")
    assert (tmp_path / "adapter" / "a").read_text() == "old"
    assert whole(tmp_path / "adapter")


def test_a_full_disk_ends_a_log_line_in_one_message(tmp_path, room_for_300_bytes):
    with pytest.raises(RunError, match=r"log\.jsonl: cannot be written"):
        for _ in range(100):
            append_json_line(tmp_path / "log.jsonl", {"step": 1})


@pytest.mark.parametrize("name", ["../outside", "/dev/zero", "folder"])
def test_a_manifest_that_names_what_is_elsewhere_is_not_followed(tmp_path, name):
    (tmp_path / "outside").write_text("x")
    (tmp_path / "made" / "folder").mkdir(parents=True)
    write_json(tmp_path / "made" / "manifest.json", {name: file_sha256(tmp_path / "outside")})
    assert not whole(tmp_path / "made")
