"""The teacher's word pieces, pruned to what the corpus uses, as a plain `tokenizers` tokenizer."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece

PAD, EOS, UNK = "<pad>", "</s>", "<unk>"
ANSWERS = (
    "positive", "neutral", "negative", "mixed", "good", "bad", "great", "terrible", "excellent", "poor", "okay",
    "yes", "no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "film", "book", "music", "electronics", "kitchen",
    "medicine", "health", "opinion", "fact", "information", "symptoms", "treatment", "inheritance", "frequency",
    "causes", "genetic", "tests", "research", "outlook", "risk", "prevention", "stages", "benefit", "benefits",
    "side", "effects", "comments", "rating", "review", "sentiment", "classify",
)  # fmt: skip


def _assemble(pieces: list[str]) -> Tokenizer:
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token=UNK, max_input_chars_per_word=64))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {EOS}", pair=f"$A {EOS} $B {EOS}", special_tokens=[(EOS, 1)]
    )
    tokenizer.add_special_tokens([PAD, EOS, UNK])
    return tokenizer


def prune(teacher_file: Path, groups: Iterable[list[str]], size: int) -> Tokenizer:
    """Keeps the pieces that the corpus uses most, every group of texts weighing the same.

    Args:
        teacher_file: The teacher's `tokenizer.json`.
        groups: Texts by source; a piece's score is the mean over groups of its share of the group.
        size: Pieces to keep, special tokens included.

    Returns:
        A tokenizer with `<pad>` 0, `</s>` 1 and `<unk>` 2 that appends `</s>`.
    """
    teacher = Tokenizer.from_file(str(teacher_file))
    teacher.no_truncation()
    teacher.no_padding()
    score: Counter[str] = Counter()
    for texts in groups:
        counts: Counter[str] = Counter()
        for start in range(0, len(texts), 2000):
            for encoding in teacher.encode_batch(texts[start : start + 2000], add_special_tokens=False):
                counts.update(encoding.tokens)
        total = sum(counts.values())
        score.update({piece: round(1e12 * n / total) for piece, n in counts.items()})
    known = teacher.get_vocab()
    always = [p for p in known if len(p.removeprefix("##")) == 1 and p.isascii()] + [a for a in ANSWERS if a in known]
    kept = dict.fromkeys([PAD, EOS, UNK, *sorted(set(always), key=known.__getitem__)])
    for piece, _ in sorted(score.items(), key=lambda item: (-item[1], item[0])):
        if len(kept) == size:
            break
        if piece in known and not (piece.startswith("[") and len(piece) > 1):
            kept.setdefault(piece)
    return _assemble(list(kept))


def teacher_ids(tokenizer: Tokenizer, teacher_file: Path) -> list[int]:
    """Maps each id of the pruned tokenizer to the teacher's id of the same piece.

    Args:
        tokenizer: The pruned tokenizer.
        teacher_file: The teacher's `tokenizer.json`.

    Returns:
        One teacher id per pruned id; `</s>` stands for `[SEP]`.
    """
    known = json.loads(teacher_file.read_text(encoding="utf-8"))["model"]["vocab"]
    special = {PAD: "[PAD]", EOS: "[SEP]", UNK: "[UNK]"}
    pieces = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return [known[special.get(piece, piece)] for piece, _ in pieces]


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes `tokenizer.json` and the configuration that `AutoTokenizer` needs."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD,
        "eos_token": EOS,
        "unk_token": UNK,
        "model_max_length": 512,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
