"""Training that is killed, runs out of disk, memory or numbers."""

import contextlib
import math
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from safetensors.torch import load_file

from rxtone.config import LoraSettings, TrainConfig
from rxtone.errors import RunError
from rxtone.model import scoring
from rxtone.model.base import load_base
from rxtone.model.batches import ReviewDataset
from rxtone.model.lora import add_adapter
from rxtone.model.scoring import LabelTokens
from rxtone.training import loop
from rxtone.training.checkpoint import Progress, newest_checkpoint, save_checkpoint
from rxtone.training.data import TrainingData
from rxtone.training.events import MemoryShort, StepDone
from rxtone.training.loop import fit
from torture.figure import Figure, World, log_steps, quiet, training_state, write_recipe


def exact_resume(attempts: int, folder: Path, world: World) -> Figure:
    """SIGKILL at random moments; the resumed run ends in the bytes of the uninterrupted one."""
    figure, generator = Figure(), random.Random(8)
    recipe = write_recipe(folder / "resume.yaml", world.base, world.table)
    whole = world.forks.rxtone("train", recipe, "--out", folder / "whole")
    assert whole.code == 0, whole.err
    expected, steps = training_state(folder / "whole"), log_steps(folder / "whole")
    counts = {"killed": 0, "mid_save": 0, "without_checkpoint": 0}
    while figure.attempts < attempts:
        run = folder / "run"
        shutil.rmtree(run, ignore_errors=True)
        killed = world.forks.rxtone(
            "train", recipe, "--out", run, kill_after=generator.uniform(0.05, 1.0) * whole.seconds
        )
        if killed.code >= 0:
            continue  # it was faster than the kill, which then does not count
        counts["killed"] += 1
        counts["mid_save"] += any(run.glob("**/.*.tmp"))
        counts["without_checkpoint"] += newest_checkpoint(run / "checkpoints") is None
        resumed = world.forks.rxtone("train", recipe, "--out", run, "--resume")
        same = resumed.code == 0 and training_state(run) == expected and log_steps(run) == steps
        figure.attempt(
            same and not any(run.glob("**/.*")), f"kill {figure.attempts}: {resumed.code} {resumed.err[-300:]}"
        )
    figure.details = counts
    return figure


def determinism(attempts: int, folder: Path, world: World) -> Figure:
    """The same recipe again and again gives the same bytes."""
    figure = Figure()
    recipe = write_recipe(folder / "same.yaml", world.base, world.table, checkpoint_every=100)
    states = []
    for number in range(attempts):
        done = world.forks.rxtone("train", recipe, "--out", folder / f"same-{number}")
        states.append(training_state(folder / f"same-{number}") if done.code == 0 else {})
        figure.attempt(bool(states[-1]) and states[-1] == states[0], f"run {number} differs")
    return figure


def atomic_state(attempts: int, folder: Path, world: World) -> Figure:
    """Checkpoints cut, changed or stripped anywhere are never chosen; the newest whole one is."""
    figure, generator = Figure(), random.Random(2)
    model, optimizer = _state(world.base)
    saved = folder / "checkpoints"
    save_checkpoint(saved, model, optimizer, Progress(step=1, best_step=1))
    save_checkpoint(saved, model, optimizer, Progress(step=2, best_step=1))
    older, newer = saved / "step-000001", saved / "step-000002"
    content = {path.name: path.read_bytes() for path in newer.iterdir()}
    for name, data in content.items():
        for length in {0, 1, 8, len(data) // 2, len(data) - 1}:
            (newer / name).write_bytes(data[:length])
            chosen = newer if _same_manifest(name, data[:length], data) else older
            figure.attempt(newest_checkpoint(saved) == chosen, f"{name} cut to {length}")
        (newer / name).unlink()
        figure.attempt(newest_checkpoint(saved) == older, f"{name} gone")
        (newer / name).write_bytes(data)
    while figure.attempts < attempts:
        name = generator.choice(sorted(content))
        data = bytearray(content[name])
        at = generator.randrange(len(data))
        if generator.random() < 0.5:
            data[at] ^= 1 << generator.randrange(8)
        else:
            del data[at:]
        (newer / name).write_bytes(data)
        chosen = newer if _same_manifest(name, bytes(data), content[name]) else older
        figure.attempt(newest_checkpoint(saved) == chosen, f"{name} damaged at {at}")
        (newer / name).write_bytes(content[name])
    assert newest_checkpoint(saved) == newer
    return figure


def _same_manifest(name: str, data: bytes, whole: bytes) -> bool:
    """A manifest that lost only its last line break still says the same."""
    return name == "manifest.json" and data.strip() == whole.strip()


def full_disk(attempts: int, folder: Path, world: World) -> Figure:
    """A file system without room, or files that cannot grow: one message, and the run goes on when there is room."""
    figure, generator = Figure(), random.Random(3)
    recipe = write_recipe(folder / "disk.yaml", world.base, world.table)
    assert world.forks.rxtone("train", recipe, "--out", folder / "whole").code == 0
    expected = training_state(folder / "whole")
    largest = max(path.stat().st_size for path in (folder / "whole").rglob("*") if path.is_file())
    disks = 0
    for number in range(attempts):
        with _small_disk(folder / "disk", wanted=number % 2 == 0) as disk:
            disks += disk is not None
            room = generator.randrange(100, largest)
            figure.attempt(*_fills_up(disk, room, number, recipe, folder, world, expected))
    figure.details = {"on_a_full_file_system": disks}
    return figure


def _fills_up(
    disk: Path | None, room: int, number: int, recipe: Path, folder: Path, world: World, expected: object
) -> tuple[bool, str]:
    """One attempt: train where there is room for a few bytes, then again where there is enough."""
    run = (disk or folder) / "run"
    shutil.rmtree(run, ignore_errors=True)
    # Every third time the disk fills up after some checkpoints are there.
    if number % 3 == 2:
        world.forks.rxtone("train", recipe, "--out", run, kill_after=0.6)
    before = newest_checkpoint(run / "checkpoints")
    if disk is None:
        full = world.forks.rxtone("train", recipe, "--out", run, "--resume", file_bytes=room)
    else:
        filler = disk / "filler"
        with filler.open("wb") as stream:
            os.posix_fallocate(stream.fileno(), 0, shutil.disk_usage(disk).free - room)
        full = world.forks.rxtone("train", recipe, "--out", run, "--resume")
        filler.unlink()
    told = full.code == 1 and quiet(full.err) and "cannot be written" in full.err
    kept = before is None or newest_checkpoint(run / "checkpoints") is not None
    again = world.forks.rxtone("train", recipe, "--out", run, "--resume")
    good = told and kept and again.code == 0 and training_state(run) == expected
    return good, f"room for {room} bytes: {full.code} {full.err[-300:]} then {again.code} {again.err[-200:]}"


@contextlib.contextmanager
def _small_disk(path: Path, *, wanted: bool) -> Iterator[Path | None]:
    """A file system of 64 MiB, where this process may mount one; else None, and the size of files is limited."""
    path.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(path)]
    if not wanted or shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        yield None
        return
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


def out_of_memory(attempts: int, folder: Path, world: World) -> Figure:
    """Memory that runs out at any step and in scoring: the same effective batches, the same answers."""
    figure, generator = Figure(), random.Random(4)
    data = _data()
    train = TrainConfig(learning_rate=1e-3, num_train_epochs=2, per_device_train_batch_size=8, seed=3)
    whole, steps = _fit(world.base, data, train, folder / "whole")
    scores = _score(whole, data)
    for number in range(attempts):
        first, most = generator.randrange(1, 7), generator.choice([1, 2, 3, 5])
        if number % 3 == 2:
            with _short(scoring, "score_labels", first, most):
                same = np.allclose(_score(whole, data), scores, atol=1e-5)
            figure.attempt(same, f"scoring with room for {most}")
            continue
        with _short(loop, "loss_sum", first, most):
            _, events = _fit(world.base, data, train, folder / f"short-{number}")
        # Weights are no measure: AdamW's first steps follow the sign of gradients that are zero but for rounding.
        done = [[event for event in part if isinstance(event, StepDone)] for part in (steps, events)]
        same = [event.reviews for event in done[0]] == [event.reviews for event in done[1]]
        near = np.allclose([event.loss for event in done[0]], [event.loss for event in done[1]], rtol=1e-3)
        parted = any(isinstance(event, MemoryShort) for event in events)
        figure.attempt(same and parted and near, f"room for {most} from call {first}: {same} {parted} {near}")
    return figure


def finite_state(attempts: int, folder: Path, world: World) -> Figure:
    """A loss, a gradient, a moment or a weight that is not finite: a clear stop, no such state on disk."""
    figure, generator = Figure(), random.Random(5)
    data = _data()
    train = TrainConfig(
        learning_rate=1e-3, num_train_epochs=2, per_device_train_batch_size=8, seed=3, checkpoint_every=1
    )
    for number in range(attempts):
        kind = ("loss", "gradient", "weight", "moment")[number % 4]
        value = generator.choice([math.nan, math.inf, -math.inf])
        at = generator.randrange(1, 6)
        where = folder / f"finite-{number}"
        stopped = _poisoned(world.base, data, train, where, kind, value, at)
        bad = [
            path
            for path in where.rglob("*.safetensors")
            if path.name != "random.safetensors" and not all(torch.isfinite(t).all() for t in load_file(path).values())
        ]
        newest = newest_checkpoint(where)
        kept = newest is not None if at > 1 else True
        figure.attempt(stopped and not bad and kept, f"{kind} {value} at step {at}: {bad or 'went on'}")
        shutil.rmtree(where, ignore_errors=True)
    return figure


def _poisoned(  # noqa: C901  # one place for each kind
    base: Path, data: TrainingData, train: TrainConfig, where: Path, kind: str, value: float, at: int
) -> bool:
    model = _model(base)
    parameter = next(p for name, p in model.named_parameters() if "lora_B" in name)
    seen = {}
    with contextlib.ExitStack() as stack:
        if kind == "loss":
            real = loop.loss_sum
            calls = []

            def broken(*arguments, **options):
                calls.append(1)
                loss, weight = real(*arguments, **options)
                return (loss * value if len(calls) == at else loss), weight

            stack.enter_context(mock.patch.object(loop, "loss_sum", broken))
        if kind == "gradient":
            steps = []

            def hook(gradient):
                steps.append(1)
                return gradient * value if len(steps) == at else gradient

            parameter.register_hook(hook)
        if kind == "moment":
            adamw = torch.optim.AdamW

            def kept(*arguments, **options):
                seen["optimizer"] = adamw(*arguments, **options)
                return seen["optimizer"]

            stack.enter_context(mock.patch.object(torch.optim, "AdamW", kept))
        try:
            for event in fit(model, data, train, where):
                if isinstance(event, StepDone) and event.step == at:
                    with torch.no_grad():
                        if kind == "weight":
                            parameter[0, 0] = value
                        if kind == "moment":
                            seen["optimizer"].state[parameter]["exp_avg_sq"][0, 0] = value
        except RunError as error:
            return "not finite" in str(error) or "the loss is" in str(error)
    return False


def _short(module, name: str, first: int, most: int):
    real = getattr(module, name)
    calls = []

    def measured(scorer, batch, *arguments, **options):
        calls.append(1)
        if len(calls) >= first and len(batch.rows) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(scorer, batch, *arguments, **options)

    return mock.patch.object(module, name, measured)


def _data() -> TrainingData:
    generator = np.random.default_rng(0)
    classes = np.arange(48) % 2
    prompts = [[*map(int, generator.integers(22, 40, 5)), 20 + int(c), 1] for c in classes]
    tokens = LabelTokens(((10,), (11,)), with_eos=False, eos=1)
    dataset = ReviewDataset(prompts, [[10 + int(c), 1] for c in classes])
    return TrainingData(dataset, classes, dataset, classes, ("a", "b"), tokens, pad_token_id=0)


def _model(base: Path):
    loaded = load_base(str(base), precision="fp32").model
    for module in loaded.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "dropout", None), float):  # of the attention
            module.dropout = 0.0
    lora = LoraSettings(r=4, lora_alpha=8, lora_dropout=0.0, target_modules=["q", "v"])
    return add_adapter(loaded, lora, seed=1)[0]


def _fit(base: Path, data: TrainingData, train: TrainConfig, where: Path):
    model = _model(base)
    return model, list(fit(model, data, train, where))


def _score(model, data: TrainingData) -> np.ndarray:
    return scoring.score_dataset(model, data.validation, data.label_tokens, batch_size=16, pad_token_id=0)


def _state(base: Path):
    model = _model(base)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.01)
    sum((p * torch.randn_like(p)).sum() for p in parameters).backward()
    optimizer.step()
    return model, optimizer


__all__ = ["atomic_state", "determinism", "exact_resume", "finite_state", "full_disk", "out_of_memory"]
