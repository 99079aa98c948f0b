"""Bulk work on a real cluster of two node processes: the local engine's bytes, whatever is lost on the way."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from tiny import write_tiny_table

from rxtone.errors import DataError, RecipeError, RunError
from rxtone.loading import load
from rxtone.serving import bulk_cluster
from rxtone.serving.bulk import BulkDone, predict_tables
from rxtone.serving.bulk_cluster import IN_HAND, ray_labels
from rxtone.serving.bulk_packed import pack_classifier, unpack_classifier

ray = pytest.importorskip("ray", reason="needs ray: install rxtone[cluster]")
pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{name}")
    for name in ("ResourceWarning", "DeprecationWarning", "FutureWarning", "pytest.PytestUnraisableExceptionWarning")
]
MEMORY = 80 * 2**20


@pytest.fixture(scope="module")
def classifier(tiny_run):
    return load(tiny_run)


@pytest.fixture(scope="module")
def cluster():
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")  # Ray's workers are nicer than the tests beside them: 15
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": MEMORY,
                                                             "include_dashboard": False})  # fmt: skip
        for _ in range(2):
            made.add_node(num_cpus=1, object_store_memory=MEMORY)
        yield made
        made.shutdown()


@pytest.fixture
def table(tmp_path):
    source = write_tiny_table(tmp_path / "in.csv", 300)
    lines = source.read_text("utf-8").splitlines()
    for row in (1, 60, 61, 299):
        lines[row] = "too,few"
    source.write_text("\n".join(lines) + "\n", "utf-8")
    return source


def finish(events):
    *chunks, done = events
    assert isinstance(done, BulkDone)
    return chunks, done


def check_same(output: Path, local: Path) -> None:
    assert output.read_bytes() == local.read_bytes()
    names = [path.with_name(f"{path.name}.rejected.jsonl") for path in (output, local)]
    assert names[0].read_bytes() == names[1].read_bytes()
    assert not output.with_name(f"{output.name}.parts").exists()


def worker_processes() -> list[int]:
    """The processes that hold a classifier, on any node: Ray names them, and they descend from this process."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::Worker"):
                found.append(process.pid)
    return found


def test_a_packed_classifier_answers_the_same_from_shared_memory(tiny_run, tiny_table, tiny_recipe, tmp_path):
    from rxtone.seeds import train_seeds
    from rxtone.serving.export import export

    texts = ["the pill was great", "awful pain and useless", "none", "some relief partly middling " * 30]
    list(train_seeds(tiny_recipe, tmp_path / "seeds", 2))
    export(str(tiny_run), tmp_path / "merged", canaries=str(tiny_table))
    loaded = [
        load(tiny_run), load(tiny_run, precision="bf16"), load(tiny_run, engine="reference"),
        load(tiny_run).with_coverage(0.9).with_min_confidence(0.7), load(tmp_path / "merged"), load(tmp_path / "seeds"),
    ]  # fmt: skip
    with contextlib.suppress(RecipeError):  # of a processor without 8-bit linear maps
        loaded.append(load(tiny_run, precision="int8"))
    for classifier in loaded:
        packed = pack_classifier(classifier)
        for array in packed.weights.arrays.values():
            array.flags.writeable = False  # as in the object store
        found = unpack_classifier(packed)
        assert found.predict(texts) == classifier.predict(texts)
        places = {array.ctypes.data for array in packed.weights.arrays.values()}
        assert {tensor.data_ptr() for tensor in found.model.state_dict().values()} <= places
    with pytest.raises(RecipeError, match=r"this one is quantised or for another runtime: use --engine local"):
        pack_classifier(replace(loaded[0], model=torch.nn.Linear(1, 1)))


def test_the_output_is_the_local_one_and_either_engine_goes_on(classifier, cluster, table, tmp_path):
    more = write_tiny_table(tmp_path / "more.csv", 55, seed=3)
    inputs = [str(table), str(more)]
    out, local = tmp_path / "out.parquet", tmp_path / "local.parquet"
    finish(predict_tables(classifier, inputs, local, chunk_rows=20, min_confidence=0.6))
    with ray_labels(address=cluster.address) as runner:
        events = predict_tables(classifier, inputs, out, chunk_rows=20, min_confidence=0.6, runner=runner)
        for _ in range(4):
            next(events)
        events.close()
        assert len(list(tmp_path.glob("out.parquet.parts/part-*.parquet"))) == 4
        # The local engine goes on with what the cluster left, and the cluster with what that one left.
        events = predict_tables(classifier, inputs, out, chunk_rows=20, min_confidence=0.6)
        resumed = [next(events).resumed for _ in range(10)]
        events.close()
        assert sum(resumed) >= 3
        chunks, done = finish(predict_tables(classifier, inputs, out, chunk_rows=20, min_confidence=0.6, runner=runner))
    assert sum(chunk.resumed for chunk in chunks) >= 10
    assert len(chunks) == 15 + 3
    assert [chunk.done_rows for chunk in chunks][-1] == 355
    assert (done.rows, done.rejected) == (351, 4)
    check_same(out, local)


def test_a_lost_process_and_a_lost_node_cost_no_row(classifier, cluster, table, tmp_path):
    finish(predict_tables(classifier, [str(table)], tmp_path / "local.csv", chunk_rows=4))
    node = cluster.add_node(num_cpus=1, object_store_memory=MEMORY)
    with ray_labels(address=cluster.address) as runner:
        seen, done = 0, None
        for event in predict_tables(classifier, [str(table)], tmp_path / "out.csv", chunk_rows=4, runner=runner):
            seen += 1
            if seen == 5:
                os.kill(worker_processes()[0], signal.SIGKILL)
            if seen == 25:
                cluster.remove_node(node, allow_graceful=False)
            done = event
    assert seen == 75 + 1
    assert (done.rows, done.rejected) == (296, 4)
    check_same(tmp_path / "out.csv", tmp_path / "local.csv")


def test_what_is_read_ahead_is_bounded(classifier, cluster, table, tmp_path, monkeypatch):
    read, ahead = [], []

    def counted(works):
        for work in works:
            read.append(work.index)
            yield work

    with ray_labels(address=cluster.address) as runner:

        def counting(classifier, works, ask):
            yield from runner(classifier, counted(works), ask)

        for labelled, _ in enumerate(
            predict_tables(classifier, [str(table)], tmp_path / "out.csv", chunk_rows=3, runner=counting)
        ):
            ahead.append(len(read) - labelled)
    assert len(read) == 100
    assert max(ahead) <= 2 * IN_HAND + 1


class _Deadly(bulk_cluster.Worker):
    def label(self, frame, source, ask):
        if any("deadly" in text for text in frame["benefits"]):
            os._exit(1)
        return super().label(frame, source, ask)


def test_a_chunk_that_kills_its_process_stops_the_job_and_keeps_the_rest(
    classifier, cluster, table, tmp_path, monkeypatch
):
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(bulk_cluster, "Worker", _Deadly)
    monkeypatch.setattr(bulk_cluster, "ATTEMPTS", 2)
    lines = table.read_text("utf-8").splitlines()
    lines[150] = "9,deadly,words"
    table.write_text("\n".join(lines) + "\n", "utf-8")
    with (
        ray_labels(address=cluster.address) as runner,
        pytest.raises(RunError, match=r"a chunk could not be labelled: lost 2 nodes or processes over it"),
    ):
        list(predict_tables(classifier, [str(table)], tmp_path / "out.csv", chunk_rows=20, runner=runner))
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    kept = len(list(tmp_path.glob("out.csv.parts/part-*.csv")))
    assert kept >= 5
    chunks, _ = finish(predict_tables(classifier, [str(table)], tmp_path / "out.csv", chunk_rows=20))
    assert sum(chunk.resumed for chunk in chunks) == kept


def test_an_error_of_a_process_is_the_error_of_the_job(classifier, cluster, table, tmp_path):
    broken = replace(classifier, policy=replace(classifier.policy, calibration=None))
    with ray_labels(address=cluster.address) as runner, pytest.raises(AttributeError):
        list(predict_tables(broken, [str(table)], tmp_path / "out.csv", runner=runner))


DRIVER = """
import sys
from rxtone.loading import load
from rxtone.serving.bulk import predict_tables
from rxtone.serving.bulk_cluster import ray_labels
with ray_labels(address=sys.argv[4]) as runner:
    for event in predict_tables(load(sys.argv[1]), [sys.argv[2]], sys.argv[3], chunk_rows=4, runner=runner):
        print(event, flush=True)
"""


def test_a_killed_driver_goes_on_and_leaves_no_process(classifier, cluster, table, tiny_run, tmp_path):
    out = tmp_path / "out.csv"
    code = DRIVER.replace("sys.argv[3]", "__import__('pathlib').Path(sys.argv[3])")
    words = [sys.executable, "-W", "ignore", "-c", code, str(tiny_run), str(table), str(out), cluster.address]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as driver:
        for _ in range(3):
            assert b"ChunkDone" in driver.stdout.readline()
        driver.kill()
    with ray_labels(address=cluster.address) as runner:
        end = time.monotonic() + 60
        while worker_processes() and time.monotonic() < end:
            time.sleep(0.2)
        assert worker_processes() == []
        chunks, _ = finish(predict_tables(classifier, [str(table)], out, chunk_rows=4, runner=runner))
    assert sum(chunk.resumed for chunk in chunks) >= 3
    finish(predict_tables(classifier, [str(table)], tmp_path / "local.csv", chunk_rows=4))
    check_same(out, tmp_path / "local.csv")


def test_bad_input_is_told_as_by_the_local_engine(classifier, cluster, table, tmp_path):
    empty = tmp_path / "empty.csv"
    empty.write_text("benefits,effects\n", "utf-8")
    with ray_labels(address=cluster.address) as runner:
        with pytest.raises(DataError, match="expected at least one data row"):
            list(predict_tables(classifier, [str(empty)], tmp_path / "out.csv", runner=runner))
        with pytest.raises(DataError, match=r"4 faults[\s\S]*data row 60"):
            list(predict_tables(classifier, [str(table)], tmp_path / "out.csv", strict=True, runner=runner))
    assert not list(tmp_path.glob("out*"))


def test_the_command_labels_on_a_cluster(call, cluster, table, tiny_run, tmp_path):
    out = tmp_path / "out.jsonl"
    code, _, err = call("predict", tiny_run, table, "-o", out, "--engine", "ray", "--address", cluster.address)
    assert (code, f"296 rows -> {out}; 4 bad rows -> {out}.rejected.jsonl" in err) == (0, True)
    assert [json.loads(line)["row"] for line in Path(f"{out}.rejected.jsonl").read_text().splitlines()] == [
        1, 60, 61, 299,
    ]  # fmt: skip
    code, _, _ = call("predict", tiny_run, table, "-o", tmp_path / "local.jsonl")
    check_same(out, tmp_path / "local.jsonl")


def test_more_than_this_machine_has_is_refused(monkeypatch):
    # A cluster that Ray starts here switches this process to tokens for good, which the cluster of the tests has not.
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    told = r"--cpus 1 --gpus 99: this machine has \d+ CPUs, \d GPUs; ask for less"
    with pytest.raises(RecipeError, match=told), ray_labels(gpus=99):
        pass


@pytest.mark.parametrize("by_variable", [False, True])
def test_a_cluster_that_is_not_there_is_told_soon(call, tiny_run, table, tmp_path, monkeypatch, by_variable):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        if by_variable:
            monkeypatch.setenv("RAY_ADDRESS", address)
        asked, shown = ("auto", f"auto (RAY_ADDRESS={address})") if by_variable else (address, address)
        started = time.monotonic()
        code, _, err = call("predict", tiny_run, table, "-o", tmp_path / "o.csv", "--engine", "ray", "--address", asked)
    assert code == 2
    assert err.startswith(f"error: --address {shown}: the cluster cannot be reached: ")
    assert err.count("\n") == 1
    assert time.monotonic() - started < 20


def test_work_that_is_dropped_after_the_session_does_not_connect_again(classifier, cluster, table, tmp_path):
    with ray_labels(address=cluster.address) as runner:
        events = predict_tables(classifier, [str(table)], tmp_path / "out.csv", chunk_rows=20, runner=runner)
        next(events)
    events.close()
    assert not ray.is_initialized()
