"""The pages of docs/interop: their Python runs, in order, with the recipes that they show, on the tiny base."""

import contextlib
import csv
import io
import re
import shlex
import shutil
from pathlib import Path

import doc_commands
import pytest
import torch
import yaml
from peft import LoraConfig, TaskType, get_peft_model
from tiny import tiny_rows
from transformers import PreTrainedTokenizerFast, T5ForConditionalGeneration

from rxtone import api
from rxtone.config import LoraSettings, PromptConfig, TrainConfig

PAGES = Path(__file__).parents[1] / "docs" / "interop"
HUB = "google/flan-t5-base"
ELSEWHERE = "# not run here"
"""How a block begins that needs what is not installed."""
BRIEF = {"max_steps": 2}


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", (PAGES / page).read_text("utf-8"), re.M | re.S)


@pytest.fixture
def place(tmp_path, tiny_base, monkeypatch) -> Path:
    """A working folder with the tables that the pages name, and a base that AutoTokenizer opens, too."""
    base = shutil.copytree(tiny_base, tmp_path / "base")
    PreTrainedTokenizerFast(
        tokenizer_file=str(base / "tokenizer.json"), pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(base)
    with (tmp_path / "reviews.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("rating", "benefits", "effects"), *tiny_rows(48, seed=1)])
    numbers = {"9": 2, "5": 1, "2": 0}
    words = {"9": "positive", "5": "neutral", "2": "negative"}
    with (tmp_path / "texts.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "target"])
        writer.writerows((text, numbers[rating], words[rating]) for rating, text, _ in tiny_rows(60, seed=1))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_recipes(page: str, place: Path) -> None:
    """The page's recipes under the names in their first lines, on the tiny base, with few steps."""
    for block in blocks(page, "yaml"):
        name = re.match(r"# (\S+\.yaml)\n", block)[1]
        values = yaml.safe_load(block.replace(HUB, str(place / "base")))
        values["train"] = values.get("train", {}) | BRIEF
        values["evaluation"] = {"reload_check": False, "baselines": False, "zero_shot": False}
        (place / name).write_text(yaml.safe_dump(values, sort_keys=False), "utf-8")


def execute(page: str, place: Path) -> str:
    """Run the page's Python in one namespace; returns what it printed."""
    names: dict[str, object] = {}
    said = io.StringIO()
    for block in blocks(page, "python"):
        if block.startswith(ELSEWHERE):
            compile(block, page, "exec")
            continue
        with contextlib.redirect_stdout(said):
            exec(compile(block.replace(HUB, str(place / "base")), page, "exec"), names)
    return said.getvalue()


def test_a_notebooks_adapter_gives_the_notebooks_probabilities(place):
    write_recipes("notebook.md", place)
    execute("notebook.md", place)
    assert (place / "notebook-adapter" / "adapter_model.safetensors").is_file()
    run = api.train("notebook.yaml", out="runs/first")
    assert (run.adapter / "classifier.json").is_file()


def test_the_commands_for_a_notebooks_adapter_run(place, monkeypatch, capsys):
    write_recipes("notebook.md", place)
    execute("notebook.md", place)
    for name in ("more-reviews.csv", "new.csv"):
        shutil.copy("reviews.csv", name)
    lines = [shlex.split(line) for block in blocks("notebook.md", "sh") for line in block.splitlines()]
    for words in lines:
        if words[1] == "serve":
            doc_commands.serve(words, place)
            continue
        doc_commands.run(words, [], monkeypatch, capsys)
    assert [words[1] for words in lines] == ["evaluate", "predict", "serve", "export"]
    assert Path("out.parquet").is_file()
    assert Path("exported/model.safetensors").is_file()


def test_an_adapter_of_rxtone_opens_in_plain_peft(place):
    write_recipes("notebook.md", place)
    api.train("notebook.yaml", out="runs/first")
    said = execute("plain-peft.md", place)
    assert said.startswith("{'positive': 0.")
    reopened = T5ForConditionalGeneration.from_pretrained(place / "merged")
    assert sum(p.numel() for p in reopened.parameters()) == sum(
        p.numel() for p in T5ForConditionalGeneration.from_pretrained(place / "base").parameters()
    )


def test_a_table_of_setfit_trains_a_run(place):
    write_recipes("setfit.md", place)
    assert execute("setfit.md", place).startswith("Prediction(label=")
    assert [block.startswith(ELSEWHERE) for block in blocks("setfit.md", "python")] == [False, True]


def test_an_adapter_of_autotrains_kind_is_judged(place, monkeypatch, capsys):
    """Its LoraConfig: rank 16, alpha 32, every linear layer; saved by PEFT."""
    torch.manual_seed(0)
    config = LoraConfig(
        r=16, lora_alpha=32, lora_dropout=0.05, target_modules="all-linear", bias="none",
        task_type=TaskType.SEQ_2_SEQ_LM,
    )  # fmt: skip
    get_peft_model(T5ForConditionalGeneration.from_pretrained(place / "base"), config).save_pretrained("project-name")
    write_recipes("autotrain.md", place)
    said = execute("autotrain.md", place)
    assert said.startswith("Prediction(label=")
    with (place / "for-autotrain.csv").open(encoding="utf-8", newline="") as file:
        first = next(csv.DictReader(file))
    with (place / "texts.csv").open(encoding="utf-8", newline="") as file:
        assert first == {key: value for key, value in next(csv.DictReader(file)).items() if key in first}
    shutil.copy("texts.csv", "new.csv")
    for line in doc_commands.lines_of("docs/interop/autotrain.md"):
        doc_commands.run(shlex.split(line), [], monkeypatch, capsys)
    assert Path("out.parquet").is_file()
    assert Path("runs/again/adapter/classifier.json").is_file()


@pytest.mark.parametrize("page", ["setfit.md", "autotrain.md"])
def test_the_defaults_that_a_page_names_are_those_of_a_recipe(page):
    """`train.learning_rate` (3e-4) in a table of settings: the default in the source."""
    groups = {"train": TrainConfig(), "lora": LoraSettings(), "prompt": PromptConfig()}
    named = re.findall(r"`(train|lora|prompt)\.(\w+)` \(([\d.e-]+)\)", (PAGES / page).read_text("utf-8"))
    assert len(named) >= 6
    for group, key, value in named:
        assert getattr(groups[group], key) == float(value), (group, key)
