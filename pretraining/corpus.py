"""The public texts that the base model learns from, and the rows held out to probe it.

No row of the DrugLib data is read here: neither its text nor its vocabulary may reach the base model.
"""

import gzip
import hashlib
import html
import json
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_TAG = re.compile(r"<[^>]*>")
_SPACE = re.compile(r"\s+")
_PRODUCT_MARK = re.compile(r"\[([+-])\d\]")
_HELD_OUT_SHARE = {"imdb": 0.02, "drugscom": 0.12}


@dataclass(frozen=True)
class Passage:
    """One text of the corpus.

    Attributes:
        source: Name of the data set.
        text: The text, white space collapsed.
        rating: Star rating on a 1-10 scale, or None where the source has none.
        tag: The source's own label, e.g. a domain, a question type or a polarity; "" where it has none.
        held_out: True where the passage may only be used to probe a model.
    """

    source: str
    text: str
    rating: int | None = None
    tag: str = ""
    held_out: bool = False


def sentiment_of(rating: int) -> str:
    """The label rule of the reference task: 7 and above positive, 4 and below negative."""
    return "positive" if rating >= 7 else "negative" if rating <= 4 else "neutral"


def clean(text: str) -> str:
    """Removes mark-up and collapses white space."""
    return _SPACE.sub(" ", _TAG.sub(" ", html.unescape(text))).strip()


def is_held_out(source: str, text: str) -> bool:
    """Says whether a text belongs to the probe set, decided by its hash so that it never depends on order."""
    share = _HELD_OUT_SHARE.get(source, 0.0)
    digest = hashlib.sha256(text.lower().encode()).digest()
    return int.from_bytes(digest[:4], "big") < share * 2**32


def _jsonl(path: Path) -> Iterator[dict[str, object]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def _zip_lines(path: Path, member: str) -> list[str]:
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if member in name and "README" not in name]
        return [
            line for name in sorted(names) for line in archive.read(name).decode("utf-8", errors="replace").splitlines()
        ]


def _rated(folder: Path) -> Iterator[Passage]:
    files = {
        "imdb": ("imdb_train_labeled", "imdb_test_labeled"),
        "amazon": ("amazon_mdsd",),
        "drugscom": ("drugscom_subset",),
    }
    for source, names in files.items():
        for name in names:
            for row in _jsonl(folder / f"{name}.jsonl.gz"):
                text = clean(str(row["text"]))
                rating = int(str(row["rating"])) * (2 if source == "amazon" else 1)
                tag = str(row.get("domain") or row.get("condition") or "")
                yield Passage(source, text, rating, tag, is_held_out(source, text))


def _unrated(folder: Path) -> Iterator[Passage]:
    for row in _jsonl(folder / "imdb_train_unsup.jsonl.gz"):
        yield Passage("imdb_unrated", clean(str(row["text"])))
    for row in _jsonl(folder / "medquad.jsonl.gz"):
        yield Passage("medquad", clean(str(row["answer"])), tag="")
        yield Passage("medquad_question", clean(str(row["question"])), tag=str(row["qtype"]))
    for line in (folder / "ade_negative.txt").read_text(encoding="utf-8", errors="replace").splitlines():
        yield Passage("ade", clean(line.split(" NEG ", 1)[-1]))
    for name in ("valid", "test"):
        for line in (folder / f"wikitext2_{name}.txt").read_text(encoding="utf-8").splitlines():
            if len(line) > 60:
                yield Passage("wikitext", clean(line.replace("<unk>", "something").replace(" @-@ ", "-")))


def _polar(folder: Path) -> Iterator[Passage]:
    for name in ("train", "dev"):
        for line in (folder / f"sst2_{name}.tsv").read_text(encoding="utf-8").splitlines()[1:]:
            text, _, label = line.rpartition("\t")
            yield Passage("sst2", clean(text), tag="positive" if label.strip() == "1" else "negative")
    for member, tag in (("pos", "positive"), ("neg", "negative")):
        for line in _zip_lines(folder / "nltk_sentence_polarity.zip", f"rt-polarity.{member}"):
            yield Passage("sentence", clean(line), tag=tag)
        for line in _zip_lines(folder / "nltk_pros_cons.zip", "Pros" if member == "pos" else "Cons"):
            yield Passage("pros_cons", clean(line), tag=tag)
    for member, tag in (("plot", "objective"), ("quote", "subjective")):
        for line in _zip_lines(folder / "nltk_subjectivity.zip", member):
            yield Passage("subjectivity", clean(line), tag=tag)


def _products(folder: Path) -> Iterator[Passage]:
    for part in ("1", "2"):
        for line in _zip_lines(folder / f"nltk_product_reviews_{part}.zip", "product_reviews"):
            marks, _, text = line.partition("##")
            signs = set(_PRODUCT_MARK.findall(marks))
            if text and len(signs) == 1:
                yield Passage("product", clean(text), tag="positive" if "+" in signs else "negative")


def read_corpus(folder: Path) -> list[Passage]:
    """Reads every source once.

    Args:
        folder: The folder that holds the source files.

    Returns:
        Passages of at least two words, in a fixed order.

    Raises:
        FileNotFoundError: A source file is missing.
    """
    passages = [*_rated(folder), *_unrated(folder), *_polar(folder), *_products(folder)]
    return [passage for passage in passages if " " in passage.text]
