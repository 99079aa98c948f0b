"""The tokenised corpus on disk, and batches drawn from it by step number alone, so that a run resumes exactly."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from pretraining.corpus import Passage

EOS_ID = 1
# Share of the training tokens by source: close to the target domain first, never one source alone.
SOURCE_SHARES: Mapping[str, float] = {
    "imdb": 0.24, "imdb_unrated": 0.16, "drugscom": 0.16, "amazon": 0.12, "medquad": 0.13, "ade": 0.04,
    "wikitext": 0.02, "medquad_question": 0.01, "sst2": 0.03, "sentence": 0.02, "pros_cons": 0.03,
    "subjectivity": 0.02, "product": 0.02,
}  # fmt: skip


@dataclass(frozen=True)
class Bucket:
    """Batches of one length: at most `length` tokens a text, with this share of all training tokens."""

    length: int
    share: float


BUCKETS = (Bucket(32, 0.15), Bucket(64, 0.25), Bucket(128, 0.35), Bucket(224, 0.25))


@dataclass(frozen=True)
class TokenStore:
    """Token ids of all training texts, end to end.

    Attributes:
        ids: All ids, without end marks, uint16.
        starts: Where each text begins, with the total at the end, (n + 1,).
        sources: Index into `names` of each text's source, (n,).
        names: Source names.
    """

    ids: NDArray[np.uint16]
    starts: NDArray[np.int64]
    sources: NDArray[np.int64]
    names: tuple[str, ...]


def build_store(passages: Sequence[Passage], tokenizer: Tokenizer, file: Path) -> None:
    """Tokenises the passages that are not held out and writes them to an `.npz` file."""
    kept = [passage for passage in passages if not passage.held_out]
    names = sorted({passage.source for passage in kept})
    parts: list[NDArray[np.uint16]] = []
    for start in range(0, len(kept), 4000):
        texts = [passage.text for passage in kept[start : start + 4000]]
        encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
        parts.extend(np.array(encoding.ids, dtype=np.uint16) for encoding in encodings)
    starts = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
    sources = np.array([names.index(passage.source) for passage in kept], dtype=np.int64)
    np.savez(file, ids=np.concatenate(parts), starts=starts, sources=sources, names=np.array(names))


def load_store(file: Path) -> TokenStore:
    """Reads what `build_store` wrote."""
    with np.load(file) as arrays:
        names = tuple(str(name) for name in arrays["names"])
        return TokenStore(arrays["ids"], arrays["starts"], arrays["sources"], names)


def pad(texts: Sequence[Sequence[int]], length: int) -> tuple[Tensor, Tensor]:
    """Ids and mask, both (n, length) int64, padded with 0 on the right."""
    ids = np.zeros((len(texts), length), dtype=np.int64)
    mask = np.zeros((len(texts), length), dtype=np.int64)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = text
        mask[row, : len(text)] = 1
    return torch.from_numpy(ids), torch.from_numpy(mask)


class BatchSampler:
    """Draws the batch of any step from the seed and the step number."""

    def __init__(self, store: TokenStore, tokens: int, seed: int) -> None:
        self._store = store
        self._tokens = tokens
        self._seed = seed
        lengths = np.diff(store.starts)
        self._cumulative: list[tuple[NDArray[np.int64], NDArray[np.float64]]] = []
        for bucket in BUCKETS:
            eligible = np.flatnonzero(lengths >= min(4 if bucket.length <= 32 else bucket.length // 2, lengths.max()))
            counts = np.bincount(store.sources[eligible], minlength=len(store.names))
            share = np.array([SOURCE_SHARES.get(name, 0.01) for name in store.names])
            weights = (share / np.maximum(counts, 1))[store.sources[eligible]]
            self._cumulative.append((eligible, np.cumsum(weights / weights.sum())))

    def texts(self, step: int) -> tuple[list[list[int]], int]:
        """Token lists, each closed by `</s>`, and the length they are to be padded to."""
        rng = np.random.default_rng([self._seed, step])
        number = int(rng.choice(len(BUCKETS), p=[bucket.share for bucket in BUCKETS]))
        length = BUCKETS[number].length
        eligible, cumulative = self._cumulative[number]
        drawn = eligible[
            np.searchsorted(cumulative, rng.random(self._tokens // length), side="right").clip(max=len(eligible) - 1)
        ]
        texts = []
        for text in drawn:
            start, end = int(self._store.starts[text]), int(self._store.starts[text + 1])
            start += int(rng.integers(0, max(1, end - start - (length - 1) + 1)))
            texts.append([*self._store.ids[start : min(end, start + length - 1)].tolist(), EOS_ID])
        return texts, length

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Ids and mask of a step, (b, s)."""
        texts, length = self.texts(step)
        return pad(texts, length)
