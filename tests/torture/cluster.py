"""Nodes and processes of a Ray cluster that are killed under a bulk job and under a search. Loopback only."""

import contextlib
import itertools
import logging
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import polars as pl
import psutil
from tiny import tiny_values, write_tiny_table

from rxtone.config import check_recipe
from rxtone.loading import load
from rxtone.serving.bulk import BulkDone, predict_tables
from rxtone.space import Space
from rxtone.sweep import sweep
from rxtone.sweep_events import FoldDone, SweepDone, TrialEnded, TrialStarted
from torture.figure import Figure, World

MEMORY = 80 << 20
NODES = 2
LONGEST = 180
"""Seconds; a job takes twenty or less, and Ray half a minute to see that a node is gone."""
ROWS, CHUNK_ROWS = 600, 3
BUSY = ("ray::Worker", "ray::_run_trial", "ray::_run_fold")
"""How Ray names a process that labels, trains or confirms."""
COLUMNS = ["lora.r", "macro_f1", "epochs", "state"]


def cluster_faults(attempts: int, folder: Path, world: World) -> Figure:
    """SIGKILL for a node's raylet or for a worker, at a random moment of a bulk job and of a search, in turn."""
    figure, generator = Figure(), random.Random(21)
    figure.details = {"bulk": 0, "sweep": 0, "raylets": 0, "workers": 0, "before_the_first_answer": 0}
    jobs = {"bulk": _Bulk(folder, world), "sweep": _Sweep(folder, world)}
    with _cluster() as cluster:
        calm = {}
        for name, job in jobs.items():
            calm[name] = _Watch(cluster)
            fault = job.fault(cluster.address, calm[name].heard)
            assert not fault, f"{name} without a kill: {fault}"
        while figure.attempts < attempts:
            name = ("bulk", "sweep")[figure.attempts % 2]
            killer = _Killer(cluster, generator, calm[name])
            try:
                with _at_most(LONGEST):
                    fault = jobs[name].fault(cluster.address, killer.heard)
            except Exception as error:
                fault = repr(error.__cause__ or error)
            killer.timer.cancel()
            _mend(cluster)
            if not killer.victim and not fault:
                continue  # it was faster than the kill, or nothing was at work, which then does not count
            figure.details[name] += 1
            if killer.victim:
                figure.details[killer.victim] += 1
                figure.details["before_the_first_answer"] += killer.at == 0
            figure.attempt(not fault, f"{name}, {killer.victim or 'nothing'} killed at event {killer.at}: {fault}")
    return figure


class _Bulk:
    """Every row once, in order, with the bytes of the local engine; bad rows named once."""

    def __init__(self, folder: Path, world: World) -> None:
        self.classifier, self.source = load(world.run), write_tiny_table(folder / "in.csv", ROWS)
        lines = self.source.read_text("utf-8").splitlines()
        for row in random.Random(5).sample(range(1, ROWS), 30):
            lines[row] = "too,few"
        self.source.write_text("\n".join(lines) + "\n", "utf-8")
        self.rows = [line.split(",")[1:3] for line in lines[1:] if line != "too,few"]
        self.out, self.local = folder / "out.csv", folder / "local.csv"
        list(predict_tables(self.classifier, [str(self.source)], self.local, chunk_rows=CHUNK_ROWS))

    def fault(self, address: str, heard: Callable[[], None]) -> str:
        from rxtone.serving.bulk_cluster import ray_labels

        self.out.unlink(missing_ok=True)
        shutil.rmtree(f"{self.out}.parts", ignore_errors=True)
        with ray_labels(address=address) as runner:
            job = predict_tables(self.classifier, [str(self.source)], self.out, chunk_rows=CHUNK_ROWS, runner=runner)
            events = [event for event in job if heard() is None]
        if not isinstance(events[-1], BulkDone) or len(events) != ROWS // CHUNK_ROWS + 1:
            return f"{len(events)} events"
        if [line.split(",")[1:3] for line in self.out.read_text("utf-8").splitlines()[1:]] != self.rows:
            return "not every row once, in order"
        refused = [Path(f"{path}.rejected.jsonl").read_bytes() for path in (self.out, self.local)]
        same = self.out.read_bytes() == self.local.read_bytes() and refused[0] == refused[1]
        return "" if same else "not the bytes of the local engine"


class _Sweep:
    """Every trial ends once, with the figures of the local engine; every fold of the confirmation is there."""

    def __init__(self, folder: Path, world: World) -> None:
        values = tiny_values(world.base, world.table)
        values["train"] |= {"num_train_epochs": 2}
        values["lora"] |= {"target_modules": ["q", "v"]}
        self.recipe = check_recipe(values, "tiny")
        self.space = Space.model_validate({
            "recipe": "tiny", "sampler": "grid", "pruner": "none", "confirm": {"top": 1, "folds": 2, "seeds": 1},
            "parameters": {"lora.r": [1, 2, 3, 4]},
        })  # fmt: skip
        self.folder = folder / "study"
        local = self.space.model_copy(update={"confirm": None})
        list(sweep(local, self.recipe, folder / "local"))
        self.table = _trials(folder / "local")

    def fault(self, address: str, heard: Callable[[], None]) -> str:
        from rxtone.cluster import ray_runner

        shutil.rmtree(self.folder, ignore_errors=True)
        with ray_runner(address=address) as runner:
            study = sweep(self.space, self.recipe, self.folder, runner=runner)
            events = [event for event in study if isinstance(event, TrialStarted) or heard() is None]
        ended = [(event.number, event.state) for event in events if isinstance(event, TrialEnded)]
        if sorted(ended) != [(number, "complete") for number in range(4)]:
            return f"trials that ended: {sorted(ended)}"
        if sum(isinstance(event, FoldDone) for event in events) != 2 or not isinstance(events[-1], SweepDone):
            return "not every fold once"
        return "" if _trials(self.folder).equals(self.table) else "not the trials of the local engine"


def _trials(folder: Path) -> pl.DataFrame:
    return pl.read_parquet(folder / "trials.parquet").select(COLUMNS).sort("lora.r")


@contextlib.contextmanager
def _at_most(seconds: int):
    """A job that hangs is a failure, too. Seconds are counted one by one: those of a suspended machine are not."""
    ticks = itertools.count(1)

    def tick(*_) -> None:
        if next(ticks) == seconds:
            raise TimeoutError(f"no end after {seconds} s")

    before = signal.signal(signal.SIGALRM, tick)
    signal.setitimer(signal.ITIMER_REAL, 1, 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _cluster():
    from ray.cluster_utils import Cluster

    logging.getLogger("ray").setLevel(logging.ERROR)
    # Ray's workers are nicer than what runs beside them: 15.
    with mock.patch.dict(os.environ, {"RAY_worker_niceness": "0"}):
        made = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "object_store_memory": MEMORY, "include_dashboard": False},
        )
        try:
            for _ in range(NODES):
                made.add_node(num_cpus=1, object_store_memory=MEMORY)
            yield made
        finally:
            made.shutdown()


class _Watch:
    """How many events a job has, and when the first one comes."""

    def __init__(self, cluster) -> None:
        self.cluster, self.started, self.first, self.events = cluster, time.perf_counter(), 0.0, 0

    def heard(self) -> None:
        self.events += 1
        if self.events == 1:
            self.first = time.perf_counter() - self.started


class _Killer(_Watch):
    """Kills once: after a random event, or, one time in four, at a random moment before the first."""

    def __init__(self, cluster, generator: random.Random, calm: _Watch) -> None:
        super().__init__(cluster)
        self.raylet, self.choice, self.victim = generator.random() < 0.5, generator.random(), ""
        self.at = 0 if generator.random() < 0.25 else generator.randrange(1, calm.events)
        self.timer = threading.Timer(generator.uniform(0.0, calm.first), self._kill)
        if self.at == 0:
            self.timer.start()

    def heard(self) -> None:
        super().heard()
        if self.events == self.at:
            self._kill()

    def _kill(self) -> None:
        nodes = sorted(self.cluster.worker_nodes, key=_raylet)
        if self.raylet:
            raylet = nodes[int(self.choice * len(nodes))].all_processes["raylet"][0].process
            raylet.kill()
            raylet.wait()  # this process is its parent; as a zombie it would look alive to its workers
            self.victim = "raylets"
        elif busy := sorted(pid for node in nodes for pid in _busy(node)):
            os.kill(busy[int(self.choice * len(busy))], signal.SIGKILL)
            self.victim = "workers"


def _raylet(node) -> int:
    return node.all_processes["raylet"][0].process.pid


def _busy(node) -> list[int]:
    found = []
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process(_raylet(node)).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if " ".join(process.cmdline()).startswith(BUSY):
                    found.append(process.pid)
    return found


def _mend(cluster) -> None:
    """A new node for each whose raylet is gone."""
    for node in list(cluster.worker_nodes):
        if node.all_processes["raylet"][0].process.poll() is not None:
            cluster.remove_node(node, allow_graceful=False)
            cluster.add_node(num_cpus=1, object_store_memory=MEMORY)


__all__ = ["cluster_faults"]
