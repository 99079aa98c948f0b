"""The pages against the code: commands parse, links lead somewhere, keys and recipes exist."""

import ast
import importlib.util
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
import yaml

from rxtone.cli import app
from rxtone.config import Recipe, check_recipe, load_recipe, shipped_recipes
from rxtone.errors import RecipeError
from rxtone.run import CARD, CLASSIFIER, ENSEMBLE, LOCK, MANIFEST, VALIDATION, EvaluationFolder, RunFolder
from rxtone.space import Space
from rxtone.spec import ClassifierSpec
from rxtone.study import StudyFolder

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(
    [*ROOT.glob("*.md"), *(path for path in DOCS.rglob("*") if path.suffix in {".md", ".ipynb"} and path.is_file())]
)
PAGES = [path for path in PAGES if "_build" not in path.parts and ".ipynb_checkpoints" not in path.parts]
FENCE = re.compile(r"^( *)(`{3,})([^\n]*)\n(.*?)^\1\2 *$", re.MULTILINE | re.DOTALL)
SHELL = {"sh", "bash", "shell", "console"}
APP: Any = typer.main.get_command(app)


def _live() -> ModuleType:
    spec = importlib.util.spec_from_file_location("live", DOCS / "live.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


live = _live()


def text_of(path: Path) -> str:
    """A page as the site shows it; of a notebook the Markdown cells."""
    if path.suffix == ".ipynb":
        cells = json.loads(path.read_text("utf-8"))["cells"]
        return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return live.expand(path.read_text("utf-8"))


TEXTS = {path: text_of(path) for path in PAGES}


def blocks(text: str, languages: set[str]) -> list[str]:
    return [found[4] for found in FENCE.finditer(text) if found[3].strip().split(" ")[0] in languages]


def commands(block: str) -> Iterator[list[str]]:
    """The words of each `rxtone ...` in a shell block, without what the shell does around it."""
    known: dict[str, str] = {}
    for line in block.replace("\\\n", " ").splitlines():
        for name, value in known.items():
            line = re.sub(rf"\${name}\b", value, line)
        if assignment := re.fullmatch(r"""(\w+)=(?:"([^"]*)"|'([^']*)'|(\S*))\s*(?:#.*)?""", line):
            known[assignment[1]] = next(value for value in assignment.groups()[1:] if value is not None)
            continue
        lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        skip = False
        for word in [*lexer, ";"]:
            if re.fullmatch(r"[();|&]+", word):
                yield from _call(words)
                words, skip = [], False
            elif re.fullmatch(r"[<>]+&?", word):
                skip = True
            elif skip:
                skip = False
            else:
                words.append(word)


def _call(words: list[str]) -> Iterator[list[str]]:
    while words and re.fullmatch(r"\w+=.*|time|nice|!", words[0]):
        words = words[1:]
    if words and words[0].rpartition("/")[2] == "rxtone":
        yield words[1:]
    for at in range(len(words) - 1):
        if words[at : at + 2] == ["-m", "rxtone"]:
            yield words[at + 2 :]


def check_command(words: list[str]) -> None:
    """Parse a command with the app itself; of a shipped recipe the overrides as well."""
    command, names = APP, ["rxtone"]
    while hasattr(command, "commands"):
        if not words or words[0].startswith("-"):
            assert words in ([], ["--help"]), f"no command in: rxtone {' '.join(words)}"
            return
        assert words[0] in command.commands, f"no command {words[0]!r} in {' '.join(names)}"
        names.append(words[0])
        command, words = command.commands[words[0]], words[1:]
    if "--help" in words:
        return
    try:
        values = command.make_context(" ".join(names), list(words)).params
    except Exception as error:  # typer's own click has its errors where it likes
        raise AssertionError(f"{' '.join([*names, *words])}: {error}") from None
    if values.get("recipe") in shipped_recipes():
        load_recipe(str(values["recipe"]), values.get("overrides") or [])


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_exists(path: Path) -> None:
    for block in blocks(TEXTS[path], SHELL):
        for words in commands(block):
            check_command(words)


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        ("rxtone trian druglib", "no command 'trian' in rxtone"),
        ("cd here && rxtone train druglib --sed 2", "--sed"),
        ("rxtone predict", "rxtone predict: Missing"),
        ("rxtone data adit druglib  # look", "no command 'adit' in rxtone data"),
        ("torchrun -m rxtone train druglib --seeds many", "many"),
        ('S="--set lora.rank=4"\nrxtone train druglib $S', "lora.rank: unknown key"),
        ("rxtone train \\\n  druglib --set train.loss=bce > log", "train.loss"),
    ],
)
def test_a_wrong_command_is_found(block: str, reason: str) -> None:
    with pytest.raises((AssertionError, RecipeError), match=re.escape(reason)):
        for words in commands(block):
            check_command(words)


def test_commands_are_taken_out_of_the_shell_around_them() -> None:
    block = "make demo\nA=1 .venv/bin/rxtone demo --out x & rxtone config list | head > y  # rxtone none\npip install x"
    assert list(commands(block)) == [["demo", "--out", "x"], ["config", "list"]]
    assert sum(len(list(commands(block))) for block in blocks(TEXTS[ROOT / "README.md"], SHELL)) >= 10


def anchors(path: Path) -> set[str]:
    """Slugs of a page's headings, as GitHub and the site make them, and targets set by hand."""
    text = FENCE.sub("", TEXTS.get(path) or text_of(path))
    titles = re.findall(r"^#{1,6} +(.+?) *#*$", text, re.MULTILINE)
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title) for title in titles]
    slugs = {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in plain}
    return slugs | set(re.findall(r"^\((.+)\)=$", text, re.MULTILINE)) | set(re.findall(r'(?:id|name)="([^"]+)"', text))


def broken_links(path: Path, text: str) -> list[str]:
    """Relative links of a page that lead nowhere."""
    prose = re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))
    broken = []
    for target in re.findall(r"\]\(<?([^)\s>]+)>?(?: \"[^\"]*\")?\)", prose):
        if re.match(r"[a-z][a-z0-9+.-]*:", target):
            continue
        name, _, anchor = target.partition("#")
        place = (path.parent / name).resolve() if name else path
        page = place.suffix in {".md", ".ipynb"}
        if not place.exists() or (anchor and page and anchor not in anchors(place)):
            broken.append(target)
    return broken


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(path: Path) -> None:
    assert broken_links(path, TEXTS[path]) == []


def test_a_broken_link_is_found() -> None:
    text = (
        "[a](index.md) [b](index.md#where-to-go) [c](nowhere.md) [d](index.md#no-such) [e](#missing) "
        "[f](https://example.org/x) `[g](h.md)` ![p](no.png)"
    )
    assert broken_links(DOCS / "made-up.md", text) == ["nowhere.md", "index.md#no-such", "#missing", "no.png"]


def recipe_keys(model: Any = Recipe, prefix: str = "") -> Iterator[str]:
    for key, value in model.model_fields.items():
        yield prefix + key
        for inner in re.findall(r"rxtone\.config\.(\w+)", str(value.annotation)):
            yield from recipe_keys(getattr(__import__("rxtone.config").config, inner), f"{prefix}{key}.")


KEYS = set(recipe_keys())
GROUPS = {key.partition(".")[0] for key in KEYS} - {"auxiliary", "aspects"}


def unknown_keys(text: str) -> list[str]:
    """Recipe keys in inline code, such as `lora.r` or `lora.r: 8`, that no recipe has."""
    groups = "|".join(sorted(GROUPS))
    named = re.findall(rf"`((?:{groups})\.[a-z_.]+)(?:[:=][^`]*)?`", FENCE.sub("", text))
    return [key for key in named if key not in KEYS and not key.endswith((".json", ".safetensors"))]  # files


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_key_and_recipe_is_real(path: Path) -> None:
    text = TEXTS[path]
    assert unknown_keys(text) == []
    for block in blocks(text, {"yaml"}):
        values = yaml.safe_load(block)
        if isinstance(values, dict) and "train" in (values.get("data") or {}):
            check_recipe(values, str(path))
        if isinstance(values, dict) and "parameters" in values:
            Space.model_validate(values)


def test_a_made_up_key_is_found() -> None:
    assert unknown_keys("`lora.r` `lora.rank` `train.seed=3` `train.sed: 3` `model.base` `data.json`") == [
        "lora.rank", "train.sed",
    ]  # fmt: skip
    assert "data.label.rule" in KEYS


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_in_pages_is_python(path: Path) -> None:
    for block in blocks(TEXTS[path], {"python"}):
        ast.parse(block)


def test_nothing_in_the_reference_lacks_its_words() -> None:
    for words, command in live.commands():
        assert command.help, words
        assert [one.name for one in command.params if not one.help] == [], words
    page = live.recipe_keys()
    leaves = {key for key in KEYS if not any(other.startswith(f"{key}.") for other in KEYS)}
    titles = {title.replace(".NAME", "") for title in re.findall(r"^### (.+)$", page, re.MULTILINE)}
    assert leaves <= titles
    assert "### train.learning_rate\n\nnumber > 0; default `0.0003`\n\nPeak learning rate of AdamW.\n" in page
    assert "| `--seeds` `SEEDS` | Train so many seeds, and their ensemble. Default: `1`. |" in live.cli()
    assert "| 4 | `GateError` | A quality gate (parity, minimum metric) failed. |" in live.exit_codes()
    assert all(f"| `{key}` |" in live.classifier_json() for key in ClassifierSpec.model_fields)


def test_every_file_of_a_run_and_a_study_is_described() -> None:
    page = TEXTS[DOCS / "reference" / "files.md"]
    places = [RunFolder(Path("r")), EvaluationFolder(Path("r")), StudyFolder(Path("r"))]
    names = {
        value.name
        for place in places
        for key in dir(type(place))
        if isinstance(getattr(type(place), key), property) and isinstance(value := getattr(place, key), Path)
    }
    assert {"config.yaml", "predictions.parquet", "study.journal"} <= names
    names |= {CLASSIFIER, VALIDATION, ENSEMBLE, CARD, MANIFEST, LOCK}
    assert [name for name in sorted(names) if f"`{name}`" not in page and f"`{name}/" not in page] == []
