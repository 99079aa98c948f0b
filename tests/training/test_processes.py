import json
import os
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny import tiny_values

from rxtone import api, pipeline
from rxtone.config import check_recipe
from rxtone.training.events import StepDone
from rxtone.training.processes import Processes

TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}
"""Of losses and weights in fp32 at dropout 0: sums of the same terms in another order."""


def values(base, table):
    """Batches of 9 and a last one of 6 on 168 reviews: shares of 5 and 4, and at last 3 and 3."""
    plain = tiny_values(base, table)
    plain["train"] |= {"num_train_epochs": 2, "per_device_train_batch_size": 9, "checkpoint_every": 7}
    plain["evaluation"] = {"enabled": False, "reload_check": False}
    return plain


def losses(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return (
        [(line["step"], line["reviews"]) for line in lines if "loss" in line],
        np.array([line["loss"] for line in lines if "loss" in line]),
        np.array([line["validation_loss"] for line in lines if "validation_loss" in line]),
    )


def same(one, two):
    (steps, loss, validation), (steps2, loss2, validation2) = losses(one), losses(two)
    assert steps2 == steps
    np.testing.assert_allclose(loss2, loss, **TOLERANCE)
    np.testing.assert_allclose(validation2, validation, **TOLERANCE)
    first, second = (load_file(run / "adapter" / "adapter_model.safetensors") for run in (one, two))
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def recipe_file(tiny_base, tiny_table, tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(yaml.safe_dump(values(tiny_base, tiny_table), sort_keys=False))
    return path


@pytest.fixture(scope="module")
def one_process(tiny_base, tiny_table, tmp_path_factory):
    out = tmp_path_factory.mktemp("one") / "run"
    api.train(check_recipe(values(tiny_base, tiny_table), "tiny"), out=out)
    return out


def test_two_processes_train_as_one_and_only_the_first_writes(recipe_file, one_process, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    started = []
    for rank in (0, 1):
        place = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
                 "MASTER_PORT": port}  # fmt: skip
        command = [sys.executable, "-m", "rxtone", "train", str(recipe_file), "--out", str(tmp_path / str(rank))]
        started.append(subprocess.Popen(command, env=os.environ | place, stdout=subprocess.PIPE, text=True))
    outputs = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    same(one_process, tmp_path / "0")
    assert not (tmp_path / "1").exists()
    assert f"run: {tmp_path / '0'}" in outputs[0]
    assert outputs[1] == ""


def test_a_run_of_one_process_is_resumed_by_two(recipe_file, one_process, tiny_base, tiny_table, tmp_path):
    recipe = check_recipe(values(tiny_base, tiny_table), "tiny")
    for event in pipeline.train(recipe, tmp_path / "run"):
        if isinstance(event, StepDone) and event.step == 10:
            break
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["step-000007"]
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
                "-m", "rxtone"]  # fmt: skip
    subprocess.run(
        [*launcher, "train", str(recipe_file), "--out", str(tmp_path / "run"), "--resume"], check=True,
        capture_output=True, timeout=300,
    )  # fmt: skip
    same(one_process, tmp_path / "run")


@pytest.mark.parametrize(("rows", "world"), [(9, 2), (1, 2), (5, 4), (0, 2)])
def test_shares_hold_every_row_once(rows, world):
    shares = [Processes(rank, world).share(np.arange(rows)).tolist() for rank in range(world)]
    assert sorted(row for share in shares for row in share) == list(range(rows))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_one_process_exchanges_nothing():
    alone, parameter = Processes(), torch.nn.Parameter(torch.ones(2))
    assert alone.first
    assert alone.sum_numbers(1.5, 2.0) == (1.5, 2.0)
    alone.sum_gradients([parameter])
    assert parameter.grad is None
