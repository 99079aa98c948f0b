import builtins
import hashlib
import io
import re
import zipfile
from pathlib import Path
from typing import Any, BinaryIO
from urllib.error import URLError

import polars as pl
import pytest

from rxtone.data.sources import DRUGLIB, Archive, ArchivedFile, fetch, is_named, load_hub, resolve
from rxtone.data.tables import read_table
from rxtone.errors import DataError

TRAIN, TEST = b"a\trating\nx\t1\n", b"a\trating\ny\t2\n"


def archive_of(limit: int = 10_000) -> Archive:
    return Archive(
        "https://example.org/set.zip",
        ArchivedFile("train.tsv", hashlib.sha256(TRAIN).hexdigest()),
        ArchivedFile("test.tsv", hashlib.sha256(TEST).hexdigest()),
        limit,
    )


def zipped(**files: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name, data in files.items():
            bundle.writestr(f"{name}.tsv", data)
    return out.getvalue()


class Server:
    """Answers with given bytes and counts the requests."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.urls: list[str] = []

    def __call__(self, url: str) -> BinaryIO:
        self.urls.append(url)
        return io.BytesIO(self.data)


def unreachable(url: str) -> BinaryIO:
    raise URLError("no route to host")


def test_a_set_is_downloaded_once_and_verified(tmp_path: Path) -> None:
    server = Server(zipped(train=TRAIN, test=TEST))
    paths = fetch("druglib", tmp_path, server, archive_of())
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == [
        "druglib/train.tsv",
        "druglib/test.tsv",
    ]
    assert [path.read_bytes() for path in paths] == [TRAIN, TEST]
    assert fetch("druglib", tmp_path, server, archive_of()) == paths
    assert server.urls == ["https://example.org/set.zip"]
    assert sorted(path.name for path in (tmp_path / "druglib").iterdir()) == ["test.tsv", "train.tsv"]


def test_a_file_put_there_by_hand_needs_no_network(tmp_path: Path) -> None:
    (tmp_path / "druglib").mkdir()
    (tmp_path / "druglib" / "train.tsv").write_bytes(TRAIN)
    (tmp_path / "druglib" / "test.tsv").write_bytes(TEST)
    assert len(fetch("druglib", tmp_path, unreachable, archive_of())) == 2


def test_offline_says_where_to_put_the_files(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        fetch("druglib", tmp_path, unreachable, archive_of())
    assert str(caught.value) == (
        "https://example.org/set.zip cannot be downloaded (no route to host). To do it by hand, download "
        f"https://example.org/set.zip and put train.tsv and test.tsv into {tmp_path / 'druglib'}."
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"<html>not found</html>", "gave no zip file with train.tsv (BadZipFile)"),
        (zipped(test=TEST), "gave no zip file with train.tsv (KeyError)"),
        (
            zipped(train=b"changed", test=TEST),
            "train.tsv in https://example.org/set.zip: expected the published file",
        ),
        (
            zipped(train=bytes(50_000), test=TEST),
            "train.tsv in https://example.org/set.zip: expected the published",
        ),
        (bytes(200_000), "the download exceeds 10000 bytes"),
    ],
)
def test_a_bad_download_leaves_nothing(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        fetch("druglib", tmp_path, Server(data), archive_of())
    assert not list(tmp_path.rglob("*.tsv"))


def test_a_changed_file_in_the_cache_is_refused(tmp_path: Path) -> None:
    server = Server(zipped(train=TRAIN, test=TEST))
    train = fetch("druglib", tmp_path, server, archive_of())[0]
    train.write_bytes(TRAIN + b"z\t3\n")
    with pytest.raises(DataError, match=r"train\.tsv: expected the published file with SHA-256 .*; delete it"):
        fetch("druglib", tmp_path, server, archive_of())


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "druglib").write_bytes(b"a file where the folder should be")
    with pytest.raises(DataError, match=r"cannot be written .*choose another folder"):
        fetch("druglib", tmp_path, Server(zipped(train=TRAIN, test=TEST)), archive_of())


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("druglib:train", True),
        ("sample:test", True),
        ("druglib:dev", True),
        ("druglib.csv", False),
        ("C:x.csv", False),
    ],
)
def test_names_are_told_from_paths(source: str, named: bool) -> None:
    assert is_named(source) is named


def test_the_bundled_sample_is_found_or_missed_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rxtone.data.sources.resources.files", lambda package: tmp_path)
    with pytest.raises(DataError, match=r"sample:train: the bundled sample is missing .*; reinstall rxtone"):
        read_table("sample:train")
    folder = tmp_path / "bundled" / "sample"
    folder.mkdir(parents=True)
    (folder / "train.tsv").write_bytes(TRAIN)
    (folder / "test.tsv").write_bytes(TEST)
    table = read_table("sample:test", tmp_path / "unused")
    assert table.path == "sample:test"
    assert table.frame.rows() == [("y", "2")]
    assert not (tmp_path / "unused").exists()


def test_unknown_names_and_splits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="druglib:dev: expected druglib:train, druglib:test"):
        resolve("druglib:dev", tmp_path)
    with pytest.raises(DataError, match='imdb: there is no set of this name; expected "druglib" or "sample"'):
        fetch("imdb", tmp_path)


def test_druglib_is_the_published_set() -> None:
    # UCI data set 461; digests of the two files in its zip.
    assert DRUGLIB.url.startswith("https://archive.ics.uci.edu/static/public/461/")
    assert DRUGLIB.train.sha256.startswith("b55635b0")
    assert DRUGLIB.test.sha256.startswith("b6524b6a")


@pytest.mark.parametrize("source", ["hf:", "hf:imdb", "hf::train", "hf:imdb:"])
def test_a_hub_source_needs_name_and_split(source: str) -> None:
    with pytest.raises(DataError, match="expected hf:name:split"):
        load_hub(source)


def test_a_missing_hub_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def without_datasets(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "datasets":
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_datasets)
    with pytest.raises(DataError, match=re.escape("pip install 'rxtone[hub]'")):
        read_table("hf:imdb:train")


def test_a_hub_set_is_read_from_a_local_folder(tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="the hub extra is not installed")
    folder = tmp_path / "reviews"
    folder.mkdir()
    pl.DataFrame({"text": ["None", "good"], "stars": [1, 5]}).write_parquet(folder / "train.parquet")
    table = read_table(f"hf:{folder}:train")
    assert table.frame.rows() == [("None", "1"), ("good", "5")]
    assert read_table(f"hf:{folder}:train[:1]").frame.height == 1
    with pytest.raises(DataError, match="could not be loaded"):
        read_table(f"hf:{folder}:nosuchsplit")


def test_one_file_in_the_cache_is_enough_for_its_split(tmp_path, monkeypatch):
    monkeypatch.setattr("rxtone.data.sources._open_url", lambda _: pytest.fail("the network was asked"))
    folder = tmp_path / "druglib"
    folder.mkdir()
    (folder / "drugLibTrain_raw.tsv").write_bytes(b"not the published file")
    with pytest.raises(DataError, match="drugLibTrain_raw"):
        resolve("druglib:train", tmp_path)
