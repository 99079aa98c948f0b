"""Named data sets: where they come from, how they are verified, where they are kept.

This is the only module under ``data/`` that may use the network, and only for a set that the user named.
"""

import hashlib
import io
import os
import re
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import BinaryIO

import polars as pl

from rxtone.errors import DataError

DEFAULT_CACHE = Path("~/.cache/rxtone")
_SPLITS = ("train", "test")
_NAMED = re.compile(r"(druglib|sample):(\w+)\Z")
_CHUNK = 1 << 16
_TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True)
class ArchivedFile:
    """A published file.

    Attributes:
        name: Its name in the archive and in the cache.
        sha256: Hex digest of its bytes.
    """

    name: str
    sha256: str


@dataclass(frozen=True)
class Archive:
    """A published zip file and the files in it that are wanted.

    Attributes:
        url: Where the zip is published.
        train: The training file.
        test: The test file.
        limit: The most bytes accepted for the zip, and for each file in it.
    """

    url: str
    train: ArchivedFile
    test: ArchivedFile
    limit: int


# Gräßer et al. 2018, "Aspect-Based Sentiment Analysis of Drug Reviews Applying Cross-Domain and Cross-Data
# Learning"; UCI Machine Learning Repository, data set 461.
DRUGLIB = Archive(
    url="https://archive.ics.uci.edu/static/public/461/drug+review+dataset+druglib+com.zip",
    train=ArchivedFile("drugLibTrain_raw.tsv", "b55635b01264a55f10f2b3c6071b25513461e2c071851c3b72b51e359ab29d5c"),
    test=ArchivedFile("drugLibTest_raw.tsv", "b6524b6ab1636ac4fcf2529f0de795e04fc5a555b29a735e5dabad18ba75ee01"),
    limit=32 << 20,
)


def is_named(source: str) -> bool:
    """Tell a named set (``druglib:train``, ``sample:test``) from a path.

    Args:
        source: What the user gave as a table.

    Returns:
        Whether ``resolve`` knows the set.
    """
    return _NAMED.match(source) is not None


def resolve(source: str, cache_dir: Path) -> Path:
    """Find the file of a named set, downloading it where it is not in the cache.

    Args:
        source: ``druglib:train|test`` or ``sample:train|test``.
        cache_dir: Where downloaded sets are kept.

    Returns:
        The path of the file; a downloaded file has the published SHA-256.

    Raises:
        DataError: The split is unknown, the file is damaged, or it cannot be downloaded.
    """
    match = _NAMED.match(source)
    if match is None or match[2] not in _SPLITS:
        raise DataError(f"{source}: expected druglib:train, druglib:test, sample:train or sample:test.")
    return fetch(match[1], cache_dir, splits=(match[2],))[0]


def fetch(
    name: str,
    cache_dir: Path,
    open_url: Callable[[str], BinaryIO] | None = None,
    archive: Archive = DRUGLIB,
    splits: tuple[str, ...] = _SPLITS,
) -> list[Path]:
    """Put a named set into the cache and return its files.

    Files that are there already are verified and kept; nothing is downloaded then.

    Args:
        name: ``druglib`` or ``sample``.
        cache_dir: Where downloaded sets are kept.
        open_url: Opens the archive's URL for reading; None for the network.
        archive: What is published under the name ``druglib``.
        splits: Which files have to be there; a download brings both.

    Returns:
        The paths of their files, in that order.

    Raises:
        DataError: The name is unknown, a file is damaged, or it cannot be downloaded.
    """
    if name == "sample":
        return [_sample(split) for split in splits]
    if name != "druglib":
        raise DataError(f'{name}: there is no set of this name; expected "druglib" or "sample".')
    folder = cache_dir.expanduser() / name
    every = dict(zip(_SPLITS, (archive.train, archive.test), strict=True))
    files = [every[split] for split in splits]
    missing = [file for file in every.values() if not (folder / file.name).is_file()]
    if any(file in missing for file in files):
        by_hand = (
            f"To do it by hand, download {archive.url} and put "
            f"{' and '.join(file.name for file in every.values())} into {folder}."
        )
        data = _download(archive, open_url or _open_url, by_hand)
        for file in missing:
            _write_whole(folder / file.name, _extract(data, file, archive, by_hand))
    for file in files:
        _verify(hashlib.sha256((folder / file.name).read_bytes()).hexdigest(), file, str(folder / file.name))
    return [folder / file.name for file in files]


def load_hub(source: str) -> pl.DataFrame:
    """Load one split of a data set from the Hugging Face hub or from a local folder.

    Args:
        source: ``hf:name:split``; ``name`` is a hub id or a folder, ``split`` may carry a slice such as
            ``train[:500]``.

    Returns:
        The rows with the column types of the set.

    Raises:
        DataError: The ``datasets`` library is not installed, or it cannot load the split.
    """
    name, _, split = source.removeprefix("hf:").partition(":")
    if not name or not split:
        raise DataError(f"{source}: expected hf:name:split, for example hf:imdb:train.")
    try:
        import datasets
    except ImportError:
        raise DataError(f"{source}: hub data sets need the `datasets` library; pip install 'rxtone[hub]'.") from None
    try:
        frame = datasets.load_dataset(name, split=split).to_polars()
    except Exception as error:  # the library raises a dozen unrelated types
        reason = str(error).strip().split("\n", 1)[0][:200]
        raise DataError(
            f"{source}: the data set could not be loaded ({type(error).__name__}: {reason}); check the "
            f"name, the "
            "split and the connection, or save the rows as a .jsonl file and name that."
        ) from None
    assert isinstance(frame, pl.DataFrame)
    return frame


def _sample(split: str) -> Path:
    path = Path(str(resources.files("rxtone") / "bundled" / "sample" / f"{split}.tsv"))
    if not path.is_file():
        raise DataError(f"sample:{split}: the bundled sample is missing from this installation; reinstall rxtone.")
    return path


def _open_url(url: str) -> BinaryIO:
    request = urllib.request.Request(url, headers={"User-Agent": "rxtone"})  # noqa: S310 - https, a constant
    response: BinaryIO = urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)  # noqa: S310
    return response


def _download(archive: Archive, open_url: Callable[[str], BinaryIO], by_hand: str) -> bytes:
    received = io.BytesIO()
    try:
        with closing(open_url(archive.url)) as response:
            while chunk := response.read(_CHUNK):
                received.write(chunk)
                if received.tell() > archive.limit:
                    raise DataError(f"{archive.url}: the download exceeds {archive.limit} bytes. {by_hand}")
    except OSError as error:  # URLError, timeouts and broken connections are all OSError
        reason = getattr(error, "reason", None) or error
        raise DataError(f"{archive.url} cannot be downloaded ({reason}). {by_hand}") from None
    return received.getvalue()


def _extract(data: bytes, file: ArchivedFile, archive: Archive, by_hand: str) -> bytes:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as bundle, bundle.open(file.name) as member:
            content = member.read(archive.limit + 1)
    except (zipfile.BadZipFile, KeyError, RuntimeError, NotImplementedError, EOFError, OSError) as error:
        raise DataError(
            f"{archive.url} gave no zip file with {file.name} ({type(error).__name__}). {by_hand}"
        ) from None
    _verify(hashlib.sha256(content).hexdigest(), file, f"{file.name} in {archive.url}")
    return content


def _verify(digest: str, file: ArchivedFile, where: str) -> None:
    if digest != file.sha256:
        raise DataError(
            f"{where}: expected the published file with SHA-256 {file.sha256}, found {digest}; "
            "delete it and fetch it again."
        )


def _write_whole(path: Path, content: bytes) -> None:
    """Write beside, flush to disk, then rename: a reader sees the whole file or none."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, delete=False) as part:
            try:
                part.write(content)
                part.flush()
                os.fsync(part.fileno())
                Path(part.name).replace(path)
            except BaseException:
                Path(part.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        raise DataError(f"{path}: the file cannot be written ({error.strerror}); choose another folder.") from None
