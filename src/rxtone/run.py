"""The run folder: the only module that knows the file names in it, and how to write them safely.

A file is written beside its place, flushed to disk and renamed, so a reader sees the old state or
the new one, never half of it. A folder that must be whole (a checkpoint, an adapter) is filled under
another name, closed with a manifest of hashes and then renamed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polars.exceptions import ComputeError
from safetensors import SafetensorError

from rxtone.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MANIFEST = "manifest.json"
MANIFEST_BYTES = 1 << 20
"""Longer ones are none of ours."""
LOCK = ".lock"
"""Held by the process that works in a run folder (see `rxtone.run_lock`)."""
DISK_ERRORS = (OSError, SafetensorError)
"""What a disk that refuses raises; safetensors has a type of its own for it. Polars' is that of any failed query,
so its words are looked at too."""


@dataclass(frozen=True)
class RunFolder:
    """Paths inside one run.

    Attributes:
        path: The folder.
        adapter_at: Where the adapter goes, if not into `adapter`.
    """

    path: Path
    adapter_at: Path | None = None

    def __fspath__(self) -> str:
        """The folder's path, so that a run can stand wherever a path is expected."""
        return str(self.path)

    @property
    def config(self) -> Path:
        """The resolved recipe."""
        return self.path / "config.yaml"

    @property
    def data(self) -> Path:
        """Rows, splits, hashes, label and truncation counts."""
        return self.path / "data.json"

    @property
    def metrics_log(self) -> Path:
        """One JSON line per optimiser step and per validation."""
        return self.path / "metrics.jsonl"

    @property
    def environment(self) -> Path:
        """Versions, device, precision."""
        return self.path / "environment.json"

    @property
    def checkpoints(self) -> Path:
        """Folder of `step-NNNNNN` checkpoints."""
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        """The tuned adapter: a plain PEFT folder with classifier.json beside."""
        return self.path / "adapter" if self.adapter_at is None else self.adapter_at

    def aspect(self, name: str) -> RunFolder:
        """The run of one aspect: records in `aspects/<name>`, its adapter in `adapters/<name>`."""
        return RunFolder(self.path / "aspects" / name, self.path / "adapters" / name)

    @property
    def evaluation(self) -> Path:
        """Folder of the evaluation after training."""
        return self.path / "evaluation"

    @property
    def tensorboard(self) -> Path:
        """Folder of TensorBoard events."""
        return self.path / "tensorboard"

    def finished(self) -> bool:
        """Whether training ended, its adapter is in place, and the record that is written last as well."""
        return (self.adapter / CLASSIFIER).is_file() and self.environment.is_file()

    def has_training_state(self) -> bool:
        """Whether anything of a training run is here that a new run would overwrite."""
        return self.config.exists() or self.metrics_log.exists() or self.adapter.exists()


CLASSIFIER = "classifier.json"
"""What rxtone adds to a PEFT folder."""
VALIDATION = "validation.json"
"""Label scores of the validation rows, without text: thresholds are chosen on them after training."""
ENSEMBLE = "ensemble.json"
"""The adapters that answer together, by their paths from this file's folder."""
CARD = "README.md"
"""The model card: for people, rewritten with the figures after evaluation, so no part of the manifest."""


@dataclass(frozen=True)
class EvaluationFolder:
    """Paths inside one evaluation."""

    path: Path

    @property
    def metrics(self) -> Path:
        """All figures."""
        return self.path / "metrics.json"

    @property
    def predictions(self) -> Path:
        """One row per review."""
        return self.path / "predictions.parquet"

    @property
    def report(self) -> Path:
        """The self-contained page."""
        return self.path / "report.html"


def create_run(path: Path, *, resume: bool) -> RunFolder:
    """Make a run folder, or open the one to resume.

    Args:
        path: Where the run is to live.
        resume: Whether an existing run may be continued.

    Returns:
        The folder, which exists.

    Raises:
        RunError: If something else is in the way.
    """
    run = RunFolder(path)
    if path.exists() and not path.is_dir():
        msg = f"{path}: expected a folder for the run, found a file; choose another --out"
        raise RunError(msg)
    if not resume and run.has_training_state():
        msg = f"{path}: already holds a run; add --resume to continue it, or choose another --out"
        raise RunError(msg)
    if not resume and path.is_dir() and any(entry.name != LOCK for entry in path.iterdir()):
        msg = f"{path}: expected an empty or new folder for the run, found other files; choose another --out"
        raise RunError(msg)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        msg = f"{path}: cannot make the run folder: {error.strerror}"
        raise RunError(msg) from None
    _refuse_links_out(run)
    return run


def clear_leftovers(run: RunFolder) -> None:
    """Remove what a killed process left half-written; only the holder of the run's lock may call this.

    Args:
        run: An existing run folder.
    """
    for folder in (run.path, run.checkpoints, run.evaluation):
        for path in [*folder.glob(".*.tmp"), *folder.glob(".*.old")]:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def run_of_adapter(folder: Path) -> RunFolder | None:
    """The run whose records tell about an adapter.

    Args:
        folder: A run folder, or an adapter folder in one.

    Returns:
        The run, None where no data.json is near.
    """
    for place in (folder, folder.parent, folder.parent.parent / "aspects" / folder.name):
        if RunFolder(place).data.is_file():
            return RunFolder(place)
    return None


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file in one step: whole or not at all.

    Args:
        path: Destination; its folder must exist.
        content: Bytes to write.

    Raises:
        RunError: If the disk refuses; nothing is left behind.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Write a UTF-8 text file in one step (see `write_bytes`)."""
    write_bytes(path, content.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON in one step; NaN and infinities are written as null (see `write_bytes`)."""
    write_text(path, json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path that replaces `path` when the block ends well.

    Args:
        path: Destination file; its folder must exist.

    Yields:
        Where to write; on an error it is removed and the destination is untouched.

    Raises:
        RunError: If the disk refuses.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    except DISK_ERRORS as error:
        raise RunError(_refused(path, error)) from None
    except ComputeError as error:
        if "os error" not in str(error):
            raise
        raise RunError(_refused(path, error)) from None
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder that becomes `path`, with a manifest, when the block ends well.

    Args:
        path: Destination folder; replaced if it exists.

    Yields:
        Folder to fill.

    Raises:
        RunError: If the disk refuses; the destination then holds what it held before.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        temporary.chmod(0o755)
    except OSError as error:
        msg = f"{path}: cannot be written: {error.strerror or error}"
        raise RunError(msg) from None
    try:
        yield temporary
        _write_manifest(temporary)
        old = temporary.with_suffix(".old")
        if path.exists():
            path.rename(old)
        temporary.rename(path)
        _sync(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    except DISK_ERRORS as error:
        raise RunError(_refused(path, error)) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def whole(folder: Path) -> bool:
    """Whether a folder written by `atomic_folder` is exactly as it was written.

    A manifest may be foreign: only plain files inside the folder are opened, so that no name in it leads
    elsewhere or to something that never ends.
    """
    try:
        if (folder / MANIFEST).stat().st_size > MANIFEST_BYTES:
            return False
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
        inside = folder.resolve()
        return bool(manifest) and all(
            (folder / name).resolve().is_relative_to(inside)
            and (folder / name).is_file()
            and file_sha256(folder / name) == digest
            for name, digest in manifest.items()
        )
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        return False


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def append_json_line(path: Path, record: Mapping[str, Any]) -> None:
    """Append one JSON line (see `write_json` for numbers that are not finite).

    Args:
        path: The log.
        record: What happened.

    Raises:
        RunError: If the disk refuses.
    """
    try:
        with path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(_finite(dict(record)), allow_nan=False) + "\n")
    except OSError as error:
        raise RunError(_refused(path, error)) from None


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Read a JSON-lines log; a last line cut off by a crash is left out.

    Args:
        path: The log; a missing one is empty.

    Returns:
        One dictionary per whole line.
    """
    if not path.exists():
        return []
    records = []
    for line in path.read_text("utf-8").splitlines():
        with contextlib.suppress(ValueError):
            records.append(json.loads(line))
    return records


def truncate_log(path: Path, last_step: int) -> None:
    """Drop the lines of a metrics log that come after an optimiser step, for a resumed run."""
    kept = [record for record in read_json_lines(path) if record["step"] <= last_step]
    write_text(path, "".join(json.dumps(record) + "\n" for record in kept))


def _write_manifest(folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CARD)
    for path in files:
        _sync(path)
    write_json(folder / MANIFEST, {str(path.relative_to(folder)): file_sha256(path) for path in files})
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refused(path: Path, error: Exception) -> str:
    reason = getattr(error, "strerror", None) or str(error)
    return f"{path}: cannot be written: {reason}; nothing was changed. Free or unlock the disk and start again"


def _refuse_links_out(run: RunFolder) -> None:
    """A run folder may come from elsewhere: what is written into it must stay in it."""
    inside = run.path.resolve()
    for path in (run.config, run.data, run.metrics_log, run.environment, run.checkpoints, run.adapter,
                 run.evaluation, run.tensorboard):  # fmt: skip
        if path.is_symlink() and not path.resolve().is_relative_to(inside):
            msg = f"{path}: a link that leads out of the run folder; replace it by what it points to"
            raise RunError(msg)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
