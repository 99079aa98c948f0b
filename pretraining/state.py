"""Training state: tensors in safetensors, numbers in JSON, replaced in one move so a kill leaves one whole."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def _moments(named: dict[str, nn.Parameter], optimizer: Optimizer) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in named.items():
        for key in _MOMENTS:
            if key in optimizer.state.get(parameter, {}):
                yield f"{key}:{name}", optimizer.state[parameter][key]


def save_state(folder: Path, step: int, module: nn.Module, optimizer: Optimizer) -> None:
    """Writes parameters, Adam moments and the number of finished steps."""
    fresh = folder.with_name(folder.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    named = dict(module.named_parameters())
    save_file({name: value.detach().contiguous() for name, value in named.items()}, fresh / "parameters.safetensors")
    moments = {name: value.clone() for name, value in _moments(named, optimizer)}
    save_file(moments, fresh / "moments.safetensors")
    (fresh / "state.json").write_text(json.dumps({"step": step}) + "\n", encoding="utf-8")
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def load_parameters(folder: Path, module: nn.Module) -> None:
    """Reads the parameters that `save_state` wrote into a module of the same shape."""
    stored = load_file(folder / "parameters.safetensors")
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(stored[name])


def load_state(folder: Path, module: nn.Module, optimizer: Optimizer) -> int:
    """Restores what `save_state` wrote and returns the number of finished steps; 0 where there is nothing yet."""
    for candidate in (folder, folder.with_name(folder.name + ".old")):
        if (candidate / "state.json").exists():
            load_parameters(candidate, module)
            moments = load_file(candidate / "moments.safetensors")
            for name, parameter in module.named_parameters():
                if f"exp_avg:{name}" in moments:
                    optimizer.state[parameter] = {key: moments[f"{key}:{name}"] for key in _MOMENTS}
            return int(json.loads((candidate / "state.json").read_text(encoding="utf-8"))["step"])
    return 0


def log(file: Path, figures: dict[str, float]) -> None:
    """Appends one line of figures to a JSON-lines file."""
    rounded = {key: round(value, 6) if isinstance(value, float) else value for key, value in figures.items()}
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(rounded) + "\n")
