"""The commands of the guides, page by page in the order of the site, as a reader would type them."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import doc_commands
import polars as pl
import pytest

from rxtone.config import cache_dir
from rxtone.data.tables import read_table

GUIDES = Path(__file__).parents[1] / "docs" / "howto"
ORDER = ("own-data", "labels", "languages", "abstain", "drift", "explain", "hardware", "quantised", "serve",
         "reproduce", "upgrade-peft")  # fmt: skip


def page(name: str) -> str:
    return (GUIDES / f"{name}.md").read_text("utf-8")


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page(name), re.MULTILINE | re.DOTALL)


def commands(name: str) -> list[str]:
    return doc_commands.lines_of(f"docs/howto/{name}.md")


def write_tables(folder: Path) -> None:
    """What the guides take for granted, out of the bundled sample: reviews with stars, and marks in German."""
    sample = pl.concat(read_table(f"sample:{split}", cache_dir()).frame for split in ("train", "test"))
    stars = (pl.col("rating").cast(pl.Int64) + 1) // 2
    texts = pl.concat_str(["benefitsReview", "sideEffectsReview", "commentsReview"], separator=" ")
    frame = sample.select(texts.alias("text"), stars.alias("stars"), pl.col("urlDrugName").alias("drug"))
    for name, first, count in (("reviews", 0, 240), ("more-reviews", 400, 60), ("new-reviews", 460, 60)):
        frame.slice(first, count).write_csv(folder / f"{name}.csv")
    marks = sample.select(
        pl.col("benefitsReview").alias("wirkung"),
        pl.col("sideEffectsReview").alias("nebenwirkungen"),
        (7 - (pl.col("rating").cast(pl.Int64) * 6 / 10).ceil().cast(pl.Int64)).alias("note"),
    )
    marks.head(240).write_csv(folder / "bewertungen.csv")


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder with the tables, recipes and the plain PEFT adapter that the guides name."""
    monkeypatch.chdir(tmp_path)
    write_tables(tmp_path)
    for file, name in (("reviews", "own-data"), ("two", "labels"), ("bewertungen", "languages")):
        Path(f"{file}.yaml").write_text(blocks(name, "yaml")[0])
    shipped = Path(__file__).parents[1] / "src" / "rxtone" / "bundled" / "adapters" / "druglib-mini"
    Path("old").mkdir()
    for part in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(shipped / part, "old")
    return tmp_path


def test_no_guide_is_forgotten():
    assert sorted(path.stem for path in GUIDES.glob("*.md")) == sorted([*ORDER, "index"])


def test_a_waived_line_is_left_out_and_no_other():
    assert "rxtone train laptop --out runs/laptop" not in commands("hardware")
    assert "rxtone doctor" in commands("hardware")
    assert commands("quantised") == ["pip install '.[quant]'"]


def test_every_command_of_the_guides_runs(place, tiny_base, monkeypatch, capsys):
    ran = []
    for name in ORDER:
        base = "bundled" if name == "languages" else tiny_base  # the tiny one cannot spell a German label
        own = ["--set", f"model.base={base}"]
        for line in commands(name):
            words = shlex.split(line)
            if line in doc_commands.NOT_RUN:
                continue
            if words[:2] == ["rxtone", "serve"]:
                doc_commands.serve(words, place)
                continue
            if words[0] != "rxtone":
                done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
                assert done.returncode == 0, (line, done.stderr)
                continue
            target = None
            if ">" in words:
                words, target = words[: words.index(">")], words[words.index(">") + 1]
            said = doc_commands.run(words, own, monkeypatch, capsys)
            if target is not None:
                Path(target).write_text(said)
            ran.append(words[1])
    assert set(ran) == {"data", "doctor", "train", "evaluate", "predict", "drift", "explain", "export"}
    for left in ("runs/first/evaluation/report.html", "runs/deutsch/adapter/classifier.json", "drift/drift.html",
                 "drift.json", "upgraded/model.safetensors", "token"):  # fmt: skip
        assert Path(left).is_file(), left
