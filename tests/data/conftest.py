"""What the tests of ``rxtone.data`` share: real files beside a checkout, small tokenizers."""

from pathlib import Path

import pytest
from hypothesis import settings
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from rxtone.data.reviews import Review, parse_rule, read_reviews
from rxtone.data.tables import Table, read_table

# A loaded machine is no defect of the code under test.
settings.register_profile("data", deadline=None)
settings.load_profile("data")

SHARED = Path(__file__).resolve().parents[3] / "shared"
DRUGLIB_TRAIN = SHARED / "data" / "druglib" / "drugLibTrain_raw.tsv"
DRUGLIB_FIELDS = {
    "Benefits": "benefitsReview",
    "Side Effects": "sideEffectsReview",
    "Comments": "commentsReview",
}


@pytest.fixture(scope="session")
def druglib_table() -> Table:
    """Return the published training file."""
    if not DRUGLIB_TRAIN.is_file():
        pytest.skip("the DrugLib file is not beside this checkout (../shared/data/druglib)")
    return read_table(DRUGLIB_TRAIN)


@pytest.fixture(scope="session")
def druglib_reviews(druglib_table: Table) -> list[Review]:
    """Return the labelled reviews of the published training file, grouped by drug."""
    rule = parse_rule({"positive": ">=7", "neutral": "5..6", "negative": "<=4"})
    return read_reviews(druglib_table, DRUGLIB_FIELDS, "rating", rule, group_by="urlDrugName")


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load a tokenizer that lies beside the checkout, or skip."""
    if not (folder / "tokenizer.json").is_file():
        pytest.skip(f"no tokenizer beside this checkout (../shared/{folder.relative_to(SHARED)})")
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.fixture(scope="session")
def t5_tokenizer() -> Tokenizer:
    """Return the tokenizer of Flan-T5."""
    return load_tokenizer(SHARED / "data" / "flan_t5_tokenizer")


@pytest.fixture(scope="session")
def reference_tokenizer() -> Tokenizer:
    """Return the tokenizer of the small reference model."""
    return load_tokenizer(SHARED / "models" / "reference_base")


@pytest.fixture(scope="session")
def word_tokenizer() -> Tokenizer:
    """Return a word-level tokenizer that lower-cases, with the special tokens of T5."""
    words = "classify the sentiment of this review as positive neutral or negative : ,"
    names = "benefits side effects comments"
    vocabulary = ["<pad>", "</s>", "<unk>", *words.split(), *names.split(), *"abcdefghij", "...", *"</s>"]
    order = {word: index for index, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(order, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer
