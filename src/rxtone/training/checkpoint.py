"""The state of a run on disk: safetensors and JSON, nothing that can run code.

`checkpoints/step-NNNNNN/` holds the adapter, AdamW's moments, the random generators and the position
in the run. A folder counts only when its manifest fits every byte; older ones go only after a newer
one is whole.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from rxtone.errors import ModelError, RunError
from rxtone.model.lora import adapter_state, set_adapter_state
from rxtone.run import atomic_folder, whole

if TYPE_CHECKING:
    from pathlib import Path

    from peft import PeftModel

ADAPTER, OPTIMIZER, RANDOM, PROGRESS = (
    "adapter.safetensors", "optimizer.safetensors", "random.safetensors", "progress.json",
)  # fmt: skip
NAME = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    Attributes:
        step: Optimiser steps done.
        epoch: The pass under way, from 0.
        position: Steps done in this pass.
        epoch_loss: Sum of the losses of this pass, and
        epoch_weight: the weight it is the sum over.
        best_step: Step of the best validation, whose checkpoint is kept; None before the first.
        best_macro_f1: Its macro-F1.
        stale: Validations since then.
    """

    step: int = 0
    epoch: int = 0
    position: int = 0
    epoch_loss: float = 0.0
    epoch_weight: float = 0.0
    best_step: int | None = None
    best_macro_f1: float = -1.0
    stale: int = 0


def save_checkpoint(folder: Path, model: PeftModel, optimizer: torch.optim.Optimizer, progress: Progress) -> Path:
    """Write a checkpoint whole, then drop those that are neither this one nor the best.

    Args:
        folder: The run's `checkpoints` folder.
        model: The adapted model.
        optimizer: AdamW over its trainable parameters.
        progress: Where the run stands.

    Returns:
        The new checkpoint's folder.

    Raises:
        RunError: If a value is not finite, or the disk refuses; nothing is written then, and nothing dropped.
    """
    target = checkpoint_path(folder, progress.step)
    adapter, moments = adapter_state(model), _optimizer_tensors(model, optimizer)
    _refuse_non_finite(adapter | moments, progress.step)
    with atomic_folder(target) as temporary:
        save_file(adapter, temporary / ADAPTER)
        save_file(moments, temporary / OPTIMIZER)
        save_file(random_state(), temporary / RANDOM)
        (temporary / PROGRESS).write_text(json.dumps(asdict(progress)), "utf-8")
    for step, path in _numbered(folder):
        if step not in {progress.step, progress.best_step}:
            shutil.rmtree(path, ignore_errors=True)
    return target


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step stands."""
    return folder / f"step-{step:06d}"


def newest_checkpoint(folder: Path) -> Path | None:
    """The latest whole checkpoint, or None; damaged ones are passed over."""
    for _, path in sorted(_numbered(folder), reverse=True):
        if whole(path):
            return path
    return None


def read_progress(checkpoint: Path) -> Progress:
    """Where the run stood at a checkpoint."""
    try:
        progress = Progress(**json.loads((checkpoint / PROGRESS).read_text("utf-8")))
        _check_types(progress)
    except (TypeError, ValueError, OSError, RecursionError) as error:
        msg = f"{checkpoint}: its {PROGRESS} cannot be used: {error}; remove this checkpoint and resume again"
        raise RunError(msg) from None
    return progress


def load_checkpoint(checkpoint: Path, model: PeftModel, optimizer: torch.optim.Optimizer) -> Progress:
    """Put a run back to where it stood.

    Args:
        checkpoint: A whole checkpoint folder.
        model: The adapted model, freshly made from the same recipe.
        optimizer: A fresh AdamW over its trainable parameters.

    Returns:
        The progress; adapter, optimiser and random generators are restored in place.

    Raises:
        RunError: If its files are not those of this run.
    """
    progress = read_progress(checkpoint)
    try:
        _restore(checkpoint, model, optimizer)
    except (SafetensorError, ModelError, RuntimeError, TypeError, KeyError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        msg = f"{checkpoint}: its state cannot be used: {reason}; remove this checkpoint and resume again"
        raise RunError(msg) from None
    return progress


def _restore(checkpoint: Path, model: PeftModel, optimizer: torch.optim.Optimizer) -> None:
    set_adapter_state(model, load_file(checkpoint / ADAPTER))
    saved = load_file(checkpoint / OPTIMIZER)
    fused = bool(optimizer.defaults.get("fused"))  # its kernel counts the steps where the parameters are
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and f"{name}.step" in saved:
            moments = {key: saved[f"{name}.{key}"] for key in ("step", "exp_avg", "exp_avg_sq")}
            if moments["exp_avg"].shape != parameter.shape or moments["exp_avg_sq"].shape != parameter.shape:
                msg = f"the moments of {name} have another shape"
                raise RuntimeError(msg)
            optimizer.state[parameter] = {
                key: tensor.to("cpu" if key == "step" and not fused else parameter.device)
                for key, tensor in moments.items()
            }
    restore_random_state(load_file(checkpoint / RANDOM))


def _check_types(progress: Progress) -> None:
    whole = {"step", "epoch", "position", "stale"}
    for name, value in asdict(progress).items():
        if name == "best_step" and value is None:
            continue
        kinds = (int,) if name in whole | {"best_step"} else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds) or (name in whole and value < 0):
            msg = f"{name} is {value!r:.40}"
            raise TypeError(msg)


def _refuse_non_finite(tensors: dict[str, torch.Tensor], step: int) -> None:
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            msg = (
                f"after step {step} {name} holds values that are not finite; this state was not saved, the last "
                "checkpoint stays. Lower train.learning_rate, or set model.precision=fp32"
            )
            raise RunError(msg)


def load_best(folder: Path, progress: Progress, model: PeftModel) -> None:
    """Put the adapter of the best validation into the model.

    Args:
        folder: The run's `checkpoints` folder.
        progress: Where the run ended.
        model: The adapted model.

    Raises:
        RunError: If that checkpoint is gone or damaged.
    """
    if progress.best_step is None or progress.best_step == progress.step:
        return
    path = checkpoint_path(folder, progress.best_step)
    if not whole(path):
        msg = f"{path}: the best checkpoint is missing or damaged; train again from the recipe"
        raise RunError(msg)
    set_adapter_state(model, load_file(path / ADAPTER))


def _numbered(folder: Path) -> list[tuple[int, Path]]:
    if not folder.is_dir():
        return []
    found = ((NAME.fullmatch(path.name), path) for path in folder.iterdir() if path.is_dir())
    return [(int(match[1]), path) for match, path in found if match]


def _optimizer_tensors(model: PeftModel, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{key}": optimizer.state[parameter][key].detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter in optimizer.state
        for key in ("step", "exp_avg", "exp_avg_sq")
    }


def random_state() -> dict[str, torch.Tensor]:
    """The states of torch's default generators: of the CPU, and of the GPU where there is one."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: dict[str, torch.Tensor]) -> None:
    """Put the generators back to what `random_state` gave."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
