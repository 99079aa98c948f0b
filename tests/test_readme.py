"""README keeps its word: the tree is true, pictures are there, commands run; test_docs.py parses them and its links."""

import fnmatch
import inspect
import re
import shlex
import shutil
from pathlib import Path

import doc_commands
import polars as pl
import pytest

from rxtone import cli
from rxtone.config import cache_dir, load_recipe
from rxtone.data.tables import read_table

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
PACKAGE = ROOT / "src" / "rxtone"
UNNAMED = {"__init__.py", "__main__.py", "py.typed", "__pycache__"}
OTHERS = {"pip", "make"}
"""Commands that are not rxtone's; docs/walk.md shows them at work."""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.M | re.S)


def commands() -> list[list[str]]:
    return [shlex.split(line) for line in doc_commands.lines_of("README.md")]


def tree() -> list[tuple[str, str]]:
    """(names, what) of each entry of the tree; indented ones lie in src/rxtone."""
    text = README[README.index("## The tree") :]
    lines = re.search(r"```\n(.*?)```", text, re.S)[1].splitlines()
    entries = [line for line in lines if re.match(r" {0,2}\S", line)]
    return [(re.split(r"  +", line.strip())[0], line) for line in entries]


def named_in_tree(*, inside: bool) -> list[str]:
    rows = [names for names, line in tree() if line.startswith("  ") == inside]
    found = [name.rstrip("/") for names in rows for name in names.split(", ")]
    if inside:  # a line may tell of a second file: "explain.py  ...; explain_views.py shows it"
        found += [more for _, line in tree() for more in re.findall(r"; (\w+\.py)", line)]
    return found


def test_every_entry_of_the_tree_is_there():
    inside, outside = named_in_tree(inside=True), named_in_tree(inside=False)
    assert len(inside) > 30
    for name in inside:
        assert list(PACKAGE.glob(name)), name
    for name in outside:
        assert (ROOT / name).is_dir(), name


def test_every_module_and_folder_is_in_the_tree():
    patterns = named_in_tree(inside=True)
    missing = [
        path.name for path in PACKAGE.iterdir()
        if path.name not in UNNAMED and not any(fnmatch.fnmatch(path.name, pattern) for pattern in patterns)
    ]  # fmt: skip
    assert missing == []
    kept = {path.name for path in ROOT.iterdir() if (path / ".").is_dir() and list(path.glob("*.*"))}
    shown = {name.split("/")[0] for name in named_in_tree(inside=False)}
    assert {name for name in kept if name in {"benchmarks", "deploy", "docs", "examples", "pretraining"}} <= shown


def test_pictures_are_small_and_described():
    pictures = re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", README)
    assert [path for _, path in pictures] == ["docs/images/report.png", "docs/images/page.png"]
    for described, path in pictures:
        assert len(described) > 40
        assert (ROOT / path).stat().st_size < 150_000


def test_it_is_short():
    assert len(README.splitlines()) < 170


def test_other_commands_are_those_of_the_walk():
    assert {command[0] for command in commands()} == {"rxtone", *OTHERS}
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for command in commands():
        if command[0] == "make":
            assert f"\n{command[1]}:" in makefile


@pytest.fixture
def place(tmp_path, tiny_run, monkeypatch) -> Path:
    """A folder with the tables that README names, out of the bundled sample, and a run where the demo leaves one."""
    monkeypatch.chdir(tmp_path)
    train, test = (read_table(f"sample:{split}", cache_dir()).frame for split in ("train", "test"))
    aspects = load_recipe("druglib-aspects").aspects  # the sample lacks the columns that DrugLib has for them
    for aspect in aspects.values():
        words = list(aspect.label.rule.values())
        answers = [words[index % len(words)] for index in range(train.height)]
        train = train.with_columns(pl.Series(aspect.label.column, answers))
    for name, frame in (("reviews", train.head(240)), ("more-reviews", test.head(60)), ("new", test.head(20))):
        frame.write_csv(tmp_path / f"{name}.csv")
    test.tail(60).write_csv(tmp_path / "new-reviews.csv")
    shutil.copytree(tiny_run, inspect.signature(cli.demo).parameters["out"].default)
    return tmp_path


def test_every_command_and_the_python_run(place, tiny_base, monkeypatch, capsys):
    """In order, on the tiny base, with a step each; the seeds are two."""
    own = ["--set", f"model.base={tiny_base}", "--set", "data.train=reviews.csv", "--set", "data.test=null"]
    ran = []
    for command in (c for c in commands() if c[0] == "rxtone" and shlex.join(c) not in doc_commands.NOT_RUN):
        if command[1] == "serve":
            doc_commands.serve(command, place)
            continue
        words = ["2" if before == "--seeds" else word for before, word in zip(["", *command], command, strict=False)]
        bundled = "druglib-aspects" in words  # the tiny base has no words for its labels
        doc_commands.run(words, [*own[2:], "--set", "model.base=bundled"] if bundled else own, monkeypatch, capsys)
        ran.append(words[1])
    assert set(ran) == {
        "predict", "config", "doctor", "data", "train", "evaluate", "explain", "export", "sweep", "compare", "drift",
    }  # fmt: skip
    assert pl.read_parquet(place / "out.parquet").height == 20
    for left in ("runs/first/evaluation/report.html", "exported/model.onnx", "comparison/comparison.html"):
        assert (place / left).is_file(), left
    (block,) = blocks("python")
    names: dict = {}
    exec(
        block.replace('"model.base=bundled"', ", ".join(map(repr, [f"model.base={tiny_base}", *doc_commands.FEW]))),
        names,
    )
    assert names["classifier"].labels == ("positive", "neutral", "negative")
