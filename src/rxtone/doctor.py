"""Will this recipe run here: what the machine is, what the recipe needs, and a few steps of the real thing.

The estimate is measured, not modelled: the recipe's own model takes one step on its longest reviews (for
the memory) and some on typical ones (for the time).
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rxtone.artefacts import PACKAGES
from rxtone.config import cache_dir, offline
from rxtone.errors import RxtoneError
from rxtone.model.base import default_device, load_base, native_bf16, resolve_precision
from rxtone.model.lora import add_adapter
from rxtone.model.memory import peak_memory
from rxtone.pipeline import scorer_for, tokenise, validation_scores
from rxtone.preparation import prepare
from rxtone.tracking import check_trackers
from rxtone.training.events import StepDone
from rxtone.training.loop import fit
from rxtone.training.schedule import step_groups, total_steps

if TYPE_CHECKING:
    from rxtone.config import Recipe, TrainConfig
    from rxtone.model.scoring import Scorer
    from rxtone.training.data import TrainingData

OPTIONAL = ("accelerate", "gradio", "fastapi", "starlette", "uvicorn", "onnxruntime", "ctranslate2", "optuna", "ray")
FEATURES = ("avx2", "avx512_f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
TYPICAL_STEPS = 4
ROOM = 0.9
"""Share of the free memory that a run may take."""
DISK_BYTES = 200 << 20
"""What a run folder may need: two checkpoints, the adapter, the report."""


@dataclass(frozen=True)
class Estimate:
    """What a recipe will take here, from a few of its own steps.

    Attributes:
        steps: Optimiser steps, if the run is not stopped early.
        seconds_per_step: Mean over the run.
        training_seconds: All steps.
        validation_seconds: All validations together.
        peak_memory_bytes: Of the process on a CPU, of the device on a GPU.
        free_memory_bytes: What is free for it there.
    """

    steps: int
    seconds_per_step: float
    training_seconds: float
    validation_seconds: float
    peak_memory_bytes: int
    free_memory_bytes: int


@dataclass(frozen=True)
class Report:
    """What `rxtone doctor` found.

    Attributes:
        machine: Python, packages, CPU, devices, threads, cache.
        precision: What the recipe (or `auto`) will compute with.
        estimate: None without a recipe, or where it cannot run.
        problem: Why the recipe will not run here; None where it will.
        exit_code: 0, or that of the problem's branch.
    """

    machine: dict[str, Any]
    precision: str
    estimate: Estimate | None
    problem: str | None
    exit_code: int

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"will_run": self.problem is None}


def examine(recipe: Recipe | None) -> Report:
    """Look at the machine, and try the recipe on it.

    Args:
        recipe: What is to run; None looks at the machine only.

    Returns:
        The findings; a recipe that cannot run is a finding, not an error.
    """
    machine = describe_machine()
    precision = resolve_precision(recipe.model.precision if recipe else "auto", default_device())
    if recipe is not None and recipe.model.quantization:
        precision = recipe.model.quantization
    if recipe is None:
        return Report(machine, precision, None, None, 0)
    try:
        check_trackers(recipe)
        estimate = try_recipe(recipe)
    except RxtoneError as error:
        return Report(machine, precision, None, str(error), error.exit_code)
    problem = _shortage(estimate, machine)
    return Report(machine, precision, estimate, problem, 0 if problem is None else RxtoneError.exit_code)


def describe_machine() -> dict[str, Any]:
    """Python, packages and versions, CPU, devices, threads, memory, cache and offline state."""
    found = torch.cpu.get_capabilities()
    cpu = torch.device("cpu")
    cache = cache_dir()
    return {
        "python": sys.version.split()[0],
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {name: _version(name) for name in (*PACKAGES, *OPTIONAL)},
        "cpu": {
            "name": found.get("cpu_name") or platform.processor() or platform.machine(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "features": [name for name in FEATURES if found.get(name)],
            "native_bf16": native_bf16(cpu),
        },
        "devices": [_device(index) for index in range(torch.cuda.device_count())] or ["cpu"],
        "threads": torch.get_num_threads(),
        "free_memory_bytes": free_memory(cpu),
        "free_disk_bytes": shutil.disk_usage(Path.cwd()).free,
        "here_writable": os.access(Path.cwd(), os.W_OK),
        "cache": {"path": str(cache), "exists": cache.is_dir(), "writable": _writable(cache)},
        "offline": offline(),
    }


def try_recipe(recipe: Recipe) -> Estimate:
    """Take a few steps of a recipe, saving nothing.

    Args:
        recipe: What is to run.

    Returns:
        What the whole run will take.

    Raises:
        RxtoneError: For whatever would stop the run itself.
    """
    device = default_device()
    prepared = prepare(recipe.data, recipe.train.seed, recipe.auxiliary)
    base = load_base(recipe.model.base, revision=recipe.model.revision, precision=recipe.model.weights, device=device)
    data, _ = tokenise(recipe, base, prepared)
    model, _ = add_adapter(base.model, recipe.lora, recipe.train.seed)
    scorer, _ = scorer_for(model, recipe)
    train = recipe.train
    groups = step_groups(data.train.lengths, train, 0)
    by_tokens = sorted(groups, key=lambda group: int(data.train.lengths[np.concatenate(group)].sum()))
    _steps(scorer, data, train, [by_tokens[-1]])  # the heaviest first: it shows the memory, and warms up
    places = np.linspace(0, len(by_tokens) - 1, min(TYPICAL_STEPS, len(by_tokens)) + 2)[1:-1].astype(int)
    # A GPU computes a new shape without a graph and records it when it comes again; a run soon has seen them all.
    times = 3 if device.type == "cuda" else 1
    taken = [[_steps(scorer, data, train, [by_tokens[place]]) for _ in range(times)][-1] for place in places]
    events = [event for own in taken for event in own]
    per_token = sum(event.seconds for event in events) / sum(event.tokens for event in events)
    steps = total_steps(data.train.lengths, train)
    passes = steps / len(groups)
    seconds = per_token * float(data.train.lengths.sum()) * passes
    validations = max(1, int(np.ceil(passes)))
    validation = [_validation_seconds(scorer, data) for _ in range(times)][-1] * validations
    return Estimate(steps, seconds / steps, seconds, validation, peak_memory(model), free_memory(device))


def free_memory(device: torch.device) -> int:
    """Bytes that this process may still take: of the device, or of the machine or its container."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) + torch.cuda.memory_reserved(device)
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        most = int(Path("/sys/fs/cgroup/memory.max").read_text("ascii"))
        used = int(Path("/sys/fs/cgroup/memory.current").read_text("ascii"))
    except (OSError, ValueError):  # no container, or one without a bound
        return free
    return min(free, most - used)


def _steps(scorer: Scorer, data: TrainingData, train: TrainConfig, groups: list[list[np.ndarray]]) -> list[StepDone]:
    """Real steps over given reviews; the adapter is a throw-away."""
    some = data.part(np.concatenate([part for group in groups for part in group]))
    short = train.model_copy(update={"num_train_epochs": 1, "max_steps": None, "checkpoint_every": 1 << 30})
    events: list[StepDone] = []
    with tempfile.TemporaryDirectory() as folder:
        for event in fit(scorer, some, short, Path(folder)):
            if isinstance(event, StepDone):
                events.append(event)
                if event.step == event.total_steps:
                    break  # before it validates and saves
    return events


def _validation_seconds(scorer: Scorer, data: TrainingData) -> float:
    """Time of one validation, from every k-th review: the long and the short ones alike."""
    n = len(data.validation)
    part = data.validation.part(np.argsort(data.validation.lengths)[:: max(1, n // 64)])
    started = time.perf_counter()
    validation_scores(scorer, replace(data, validation=part))
    return (time.perf_counter() - started) * float(data.validation.lengths.sum() / part.lengths.sum())


def _shortage(estimate: Estimate, machine: dict[str, Any]) -> str | None:
    used = 0 if torch.cuda.is_available() else estimate.peak_memory_bytes  # it has been taken already
    room = (estimate.free_memory_bytes + used) * ROOM
    if estimate.peak_memory_bytes > room:
        return (
            f"it needs {estimate.peak_memory_bytes / 2**30:.1f} GiB, of which {room / 2**30:.1f} GiB are here; lower "
            "train.per_device_train_batch_size or prompt.max_tokens, or choose a smaller model.base"
        )
    if not machine["here_writable"] or machine["free_disk_bytes"] < DISK_BYTES:
        return f"a run folder needs {DISK_BYTES >> 20} MiB on a disk that can be written; name another with --out"
    return None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _device(index: int) -> dict[str, Any]:
    device = torch.device("cuda", index)
    return {
        "name": torch.cuda.get_device_name(device),
        "memory_bytes": torch.cuda.get_device_properties(device).total_memory,
        "native_bf16": native_bf16(device),
    }


def _writable(folder: Path) -> bool:
    while not folder.exists():
        folder = folder.parent
    return os.access(folder, os.W_OK)
