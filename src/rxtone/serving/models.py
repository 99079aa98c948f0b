"""The runs that a server offers: loaded once, weights shared where equal, reloaded when a folder changes."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rxtone.errors import RxtoneError
from rxtone.model.host import in_passing
from rxtone.model.scoring import replan
from rxtone.serving.limits import RequestError
from rxtone.spec import adapter_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rxtone.classifier import Classifier, Prediction
    from rxtone.data.prompts import Prompt

WATCHED = {".json", ".safetensors", ".bin", ".onnx", ".model"}
"""Suffixes of the files that make up a classifier; the model card may change freely."""

Fingerprint = tuple[tuple[str, int, int, int], ...]

logger = logging.getLogger("rxtone.serving")


@dataclass(frozen=True, eq=False)
class Served:
    """One run as it was when it was loaded.

    Attributes:
        name: What clients call it.
        source: What the user named: a run folder, an adapter folder, an export or a bundled name.
        folder: Where its files are.
        classifier: The loaded classifier.
        fingerprint: Name, size, time and inode of its files.
        loaded: Unix time of loading.
        shared_bytes: Weights it shares with runs loaded before it.
        min_confidence: Below this probability the answer is "not sure"; None takes the run's own bound.
    """

    name: str
    source: str
    folder: Path
    classifier: Classifier
    fingerprint: Fingerprint
    loaded: float
    shared_bytes: int
    min_confidence: float | None

    def predict(self, prompts: Sequence[Prompt]) -> list[Prediction]:
        """Predictions in order, `abstained` set where the run or the server is to hold back."""
        return self.classifier.predict_prompts(
            prompts, batch_size=max(1, len(prompts)), min_confidence=self.min_confidence
        )


class ModelPool:
    """All runs of a server.

    Args:
        runs: What to serve; the first is the default.
        load: Loads a classifier from what the user named.
        min_confidence: See `Served`.

    Raises:
        RxtoneError: If a run cannot be loaded.
    """

    def __init__(
        self, runs: Sequence[str], load: Callable[[str], Classifier], *, min_confidence: float | None = None
    ) -> None:
        self._load = load
        self._min_confidence = min_confidence
        self._pending: dict[str, Fingerprint] = {}
        self._stop = threading.Event()
        self._watcher: threading.Thread | None = None
        self.reloads = 0
        self.failed_reloads = 0
        self._served: dict[str, Served] = {}
        for name, source in zip(run_names(runs), runs, strict=True):
            self._served[name] = self._open(name, source)

    def names(self) -> list[str]:
        """Names of the runs, the default first."""
        return list(self._served)

    def get(self, name: str | None = None) -> Served:
        """The run of this name as it is now.

        Args:
            name: None for the default.

        Returns:
            The run; a later reload does not change it.

        Raises:
            RequestError: 422 if there is none of the name.
        """
        if name is None:
            return next(iter(self._served.values()))
        if name not in self._served:
            offered = ", ".join(self._served)
            raise RequestError(422, "unknown_run", f"run: expected one of {offered}; see /info")
        return self._served[name]

    def refresh(self) -> None:
        """Reload the runs whose files changed and have been still since the last look.

        A run that cannot be loaded any more is served on as it was.
        """
        for name, served in list(self._served.items()):
            try:
                now = fingerprint(_folder(served.source))
            except (OSError, RxtoneError):
                continue  # being replaced just now
            if now == served.fingerprint or not now:
                self._pending.pop(name, None)
            elif self._pending.get(name) != now:
                self._pending[name] = now
            else:
                self._reload(name, served, now)

    def watch(self, seconds: float) -> None:
        """Call `refresh` every so many seconds in a thread, until `close`."""

        def look() -> None:
            while not self._stop.wait(seconds):
                self.refresh()

        self._watcher = threading.Thread(target=look, name="rxtone-watcher", daemon=True)
        self._watcher.start()

    def close(self) -> None:
        """End the watching."""
        self._stop.set()
        if self._watcher is not None:
            self._watcher.join(5)

    def _reload(self, name: str, served: Served, now: Fingerprint) -> None:
        try:
            self._served[name] = self._open(name, served.source)
        except Exception as error:  # the old one goes on, whatever is wrong with the new one
            self.failed_reloads += 1
            self._served[name] = replace(served, fingerprint=now)
            reason = str(error) if isinstance(error, RxtoneError) else type(error).__name__
            logger.error("run %s changed but cannot be loaded, the old one is served on: %s", name, reason)
        else:
            self.reloads += 1
            logger.warning("run %s changed and was reloaded", name)
        self._pending.pop(name, None)

    def _open(self, name: str, source: str) -> Served:
        folder = _folder(source)
        before = fingerprint(folder)
        classifier = in_passing(lambda: self._load(source))
        others = [served.classifier.model for served in self._served.values()]
        shared = share_weights(classifier.model, others)
        if shared:
            classifier = replace(classifier, scorer=replan(classifier.scorer))
        return Served(name, source, folder, classifier, before, time.time(), shared, self._min_confidence)


def run_names(runs: Sequence[str]) -> list[str]:
    """Short names for what the user named: the last part of each, or all of it where that is not unique.

    Args:
        runs: Run folders, adapter folders or bundled names.

    Returns:
        One name per run.
    """
    short = [Path(run).parent.name if Path(run).name == "adapter" else Path(run).name for run in runs]
    short = [name or run for name, run in zip(short, runs, strict=True)]
    names = [run if short.count(name) > 1 else name for name, run in zip(short, runs, strict=True)]
    return [f"{name}#{index + 1}" if names.index(name) != index else name for index, name in enumerate(names)]


def fingerprint(folder: Path) -> Fingerprint:
    """What tells that a classifier's files changed, without reading them."""
    files = sorted(path for path in folder.iterdir() if path.suffix in WATCHED and path.is_file())
    stats = [(path.name, path.stat()) for path in files]
    return tuple((name, stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in stats)


def share_weights(model: object, others: Sequence[object]) -> int:
    """Let a model use the tensors of other models wherever the values are the same.

    An adapter changes a few matrices of its base; merged, all others are equal to the bit. So several
    runs on one base cost one base and the changed matrices, at the speed of a merged model.

    Args:
        model: The newly loaded model; its equal parameters are replaced.
        others: Models loaded before.

    Returns:
        Bytes that are now shared.
    """
    if not isinstance(model, torch.nn.Module):
        return 0
    known: dict[str, list[torch.nn.Parameter]] = {}
    for other in others:
        if isinstance(other, torch.nn.Module) and other is not model:
            for name, parameter in other.named_parameters(remove_duplicate=False):
                known.setdefault(name, []).append(parameter)
    shared: dict[int, int] = {}
    for name, parameter in list(model.named_parameters(remove_duplicate=False)):
        twin = next((one for one in known.get(name, ()) if _equal(one, parameter)), None)
        if twin is not None:
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, twin)
            shared[twin.data_ptr()] = twin.numel() * twin.element_size()
    return sum(shared.values())


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    same = one.dtype == other.dtype and one.shape == other.shape and one.device == other.device
    return same and torch.equal(one, other)


def _folder(source: str) -> Path:
    try:
        return adapter_folder(source)
    except RxtoneError:
        if Path(source).is_dir():  # an export: its loader knows what to make of it
            return Path(source)
        raise
