"""What a classifier has to beat: the majority label, and linear models over TF-IDF.

The linear models follow the usual recipe without any tuning on held-out reviews: word 1- and 2-grams,
sublinear counts, logistic regression with classes weighted by the inverse of their frequency.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, hstack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold

from rxtone.data.reviews import Review, dedupe_key
from rxtone.evaluation.inputs import label_indexes

MAJORITY = "majority"
TFIDF_FIELDS = "tfidf_fields"
TFIDF_TEXT = "tfidf_text"
_TITLES = {
    MAJORITY: "majority label",
    TFIDF_FIELDS: "linear, TF-IDF per field",
    TFIDF_TEXT: "linear, TF-IDF of the text",
}

# A word needs two reviews to count; with fewer reviews than this every word counts, or none would be left.
_SMALL_TRAINING_SET = 50


@dataclass(frozen=True)
class Baseline:
    """Predictions to stand beside those of the classifier, for the same reviews in the same order."""

    name: str
    """The key in `metrics.json`."""
    title: str
    """What it is, for people."""
    predicted: NDArray[np.int64] | None
    """Label indexes, shape (n,); -1 is an invalid output. None where it is unavailable."""
    unavailable: str | None = None
    """Why there are no predictions."""


def unavailable_baselines(reason: str) -> tuple[Baseline, ...]:
    """Stand in for baselines that cannot be fitted here.

    Args:
        reason: Why, for the report ("the training table is not at hand").

    Returns:
        The baselines of `fit_baselines`, without predictions.
    """
    names = {
        MAJORITY: _TITLES[MAJORITY],
        TFIDF_FIELDS: _TITLES[TFIDF_FIELDS],
        TFIDF_TEXT: _TITLES[TFIDF_TEXT],
    }
    return tuple(Baseline(name, title, None, reason) for name, title in names.items())


def fit_baselines(train: Sequence[Review], held_out: Sequence[Review], labels: Sequence[str]) -> tuple[Baseline, ...]:
    """Fit the baselines on the training reviews and let them predict the held-out ones.

    The result depends on the reviews alone: no random numbers are drawn.

    Args:
        train: Reviews to learn from, each with a label.
        held_out: Reviews to predict; their labels are not read.
        labels: The labels in recipe order.

    Returns:
        The majority label, TF-IDF per field (where there are several), and TF-IDF of the whole text.

    Raises:
        DataError: If a training review has no label or an unknown one.
    """
    y = label_indexes(train, labels)
    majority = np.full(len(held_out), np.bincount(y, minlength=len(labels)).argmax(), dtype=np.int64)
    names = sorted({name for review in (*train, *held_out) for name, _ in review.fields})
    per_field = [([_field(r, name) for r in train], [_field(r, name) for r in held_out]) for name in names]
    per_field.append(([r.text or "" for r in train], [r.text or "" for r in held_out]))
    whole = [([_whole(r) for r in train], [_whole(r) for r in held_out])]
    linear = {TFIDF_FIELDS: per_field, TFIDF_TEXT: whole}
    if len(names) + any(review.text for review in (*train, *held_out)) < 2:
        del linear[TFIDF_FIELDS]  # one field is the whole text: the same model under another name
    return (
        Baseline(MAJORITY, _TITLES[MAJORITY], majority),
        *(Baseline(name, _TITLES[name], _linear_predictions(columns, y, majority)) for name, columns in linear.items()),
    )


def cross_fitted(
    reviews: Sequence[Review], labels: Sequence[str], *, folds: int = 5, seed: int = 0
) -> NDArray[np.float64] | None:
    """Give each review the probabilities of a linear model that has not seen it, nor a repeat of its text.

    Args:
        reviews: Reviews with labels.
        labels: The k labels in recipe order.
        folds: The number of parts, each predicted by a model of the others.
        seed: Of the parts.

    Returns:
        Shape (n, k), rows sum to 1; None where a label has fewer reviews than there are folds.

    Raises:
        DataError: If a review has no label or an unknown one.
    """
    y = label_indexes(reviews, labels)
    if np.bincount(y, minlength=len(labels)).min() < folds:
        return None
    number: dict[str, int] = {}
    texts = [number.setdefault(dedupe_key(review), len(number)) for review in reviews]
    names = sorted({name for review in reviews for name, _ in review.fields})
    columns = [[_field(review, name) for review in reviews] for name in names] + [[r.text or "" for r in reviews]]
    found = np.zeros((len(reviews), len(labels)))
    for train, out in StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(y, y, texts):
        split = [([column[i] for i in train], [column[i] for i in out]) for column in columns]
        pairs = [pair for pair in (_tfidf(*one) for one in split) if pair is not None]
        if not pairs or len(np.unique(y[train])) < len(labels):
            return None
        model = LogisticRegression(C=1.0, class_weight="balanced", max_iter=1000)
        model.fit(hstack([seen for seen, _ in pairs], format="csr"), y[train])
        found[out] = model.predict_proba(hstack([unseen for _, unseen in pairs], format="csr"))
    return found


def _field(review: Review, name: str) -> str:
    return dict(review.fields).get(name, "")


def _whole(review: Review) -> str:
    return "\n".join([text for _, text in review.fields] + [review.text or ""])


def _linear_predictions(
    columns: list[tuple[list[str], list[str]]], y: NDArray[np.int64], majority: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Fit on the first text of each column, predict the second."""
    pairs = [pair for pair in (_tfidf(*column) for column in columns) if pair is not None]
    if not pairs or len(np.unique(y)) < 2:  # nothing to learn from, or nothing to tell apart
        return majority
    # 1000 iterations: the reference reviews need about 60, and a warning here would be nobody's to act on.
    model = LogisticRegression(C=1.0, class_weight="balanced", max_iter=1000)
    model.fit(hstack([train for train, _ in pairs], format="csr"), y)
    predicted = model.predict(hstack([held_out for _, held_out in pairs], format="csr"))
    return np.asarray(predicted, dtype=np.int64)


def _tfidf(train: list[str], held_out: list[str]) -> tuple[csr_matrix, csr_matrix] | None:
    """Vectorise one column, or return None where its training texts hold no word that counts."""
    vectorizer = TfidfVectorizer(
        ngram_range=(1, 2), sublinear_tf=True, min_df=2 if len(train) >= _SMALL_TRAINING_SET else 1
    )
    try:
        return vectorizer.fit_transform(train), vectorizer.transform(held_out)
    except ValueError:  # scikit-learn has no type for "empty vocabulary" nor for "no terms remain"
        return None
