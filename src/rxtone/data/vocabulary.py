"""How far the words of two parts differ, measured against what chance alone would give."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import CountVectorizer

_WORD = re.compile(r"[^\W\d_]+")
_SHUFFLES = 50
_SHOWN = 15
_LEAST_ROWS = 3


@dataclass(frozen=True)
class VocabularyDrift:
    """The words of a part against those of the first.

    Attributes:
        reference: The name of the first part.
        part: The name of the other part.
        divergence: Jensen-Shannon divergence of their word frequencies, in bits (0 equal, 1 disjoint).
        divergence_by_chance: The mean of the same after rows are shuffled between the parts.
        p_value: Share of shuffles with at least the divergence found, with the add-one correction.
        unseen_share: Share of the part's words that never occur in the first part.
        more_often: Words that are more frequent in the part, by z-score.
        less_often: Words that are less frequent in the part, by z-score.
    """

    reference: str
    part: str
    divergence: float
    divergence_by_chance: float
    p_value: float
    unseen_share: float
    more_often: dict[str, float]
    less_often: dict[str, float]


def words_of(text: str) -> list[str]:
    """Return the words of a text: runs of letters, in lower case.

    Args:
        text: Any text.

    Returns:
        The words in order.
    """
    return _WORD.findall(text.casefold())


def vocabulary_drift(
    reference: tuple[str, Sequence[str]], part: tuple[str, Sequence[str]], seed: int = 0
) -> VocabularyDrift:
    """Compare the words of two parts.

    Args:
        reference: Name and texts of the first part.
        part: Name and texts of the other part.
        seed: Seed of the shuffles.

    Returns:
        The drift; the z-scores are those of the log-odds ratio with an informative Dirichlet prior (Monroe,
        Colaresi and Quinn 2008), over words that occur in at least 3 rows.
    """
    texts = [*reference[1], *part[1]]
    vectorizer = CountVectorizer(analyzer=words_of)
    try:
        counts = vectorizer.fit_transform(texts).tocsr()
    except ValueError:  # there is no word at all
        return VocabularyDrift(reference[0], part[0], 0.0, 0.0, 1.0, 0.0, {}, {})
    words = vectorizer.get_feature_names_out()
    is_part = np.arange(len(texts)) >= len(reference[1])
    first, second = _sums(counts, ~is_part), _sums(counts, is_part)
    divergence = _divergence(first, second)
    generator = np.random.Generator(np.random.PCG64(seed))
    shuffled = []
    for _ in range(_SHUFFLES):
        mixed = generator.permutation(is_part)
        shuffled.append(_divergence(_sums(counts, ~mixed), _sums(counts, mixed)))
    in_rows = np.asarray((counts > 0).sum(axis=0)).ravel()
    scores = np.where(in_rows >= _LEAST_ROWS, _log_odds(first, second), 0.0)
    order = np.argsort(-scores, kind="stable")
    return VocabularyDrift(
        reference=reference[0],
        part=part[0],
        divergence=round(divergence, 6),
        divergence_by_chance=round(float(np.mean(shuffled)), 6),
        p_value=(1 + sum(value >= divergence for value in shuffled)) / (1 + _SHUFFLES),
        unseen_share=round(float(second[first == 0].sum() / max(1.0, second.sum())), 6),
        more_often={str(words[i]): round(float(scores[i]), 2) for i in order[:_SHOWN] if scores[i] > 0},
        less_often={str(words[i]): round(float(scores[i]), 2) for i in order[::-1][:_SHOWN] if scores[i] < 0},
    )


def _sums(counts: csr_matrix, rows: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    sums: npt.NDArray[np.float64] = rows.astype(np.float64) @ counts
    return sums


def _divergence(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> float:
    if not first.sum() or not second.sum():
        return 0.0
    p, q = first / first.sum(), second / second.sum()
    middle = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        left = np.where(p > 0, p * np.log2(p / middle), 0.0)
        right = np.where(q > 0, q * np.log2(q / middle), 0.0)
    return float((left.sum() + right.sum()) / 2)


def _log_odds(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    prior = first + second
    total = prior.sum()
    with_first, with_second = first + prior, second + prior
    # A vocabulary of one word has no odds.
    with np.errstate(divide="ignore", invalid="ignore"):
        odds_second = with_second / (second.sum() + total - with_second)
        odds_first = with_first / (first.sum() + total - with_first)
        z = (np.log(odds_second) - np.log(odds_first)) / np.sqrt(1 / with_first + 1 / with_second)
    finite: npt.NDArray[np.float64] = np.where(np.isfinite(z), z, 0.0)
    return finite
