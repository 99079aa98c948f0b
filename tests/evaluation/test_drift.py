import json

import numpy as np
import polars as pl
import pytest

from rxtone.errors import DataError
from rxtone.evaluation.drift import drift, stability_index

LABELS = ("positive", "neutral", "negative")
CONFUSION = np.array([[0.9, 0.03, 0.07], [0.3, 0.5, 0.2], [0.1, 0.1, 0.8]])


def predictions(n, shares, rng, *, accuracy_shift=0.0, tokens=150):
    true = rng.choice(3, n, p=shares)
    pred = (rng.random(n)[:, None] > CONFUSION[true].cumsum(axis=1)).sum(axis=1).clip(max=2)
    score = rng.beta(8, 2, n) - accuracy_shift
    frame = pl.DataFrame({"label": [LABELS[i] for i in pred], "true_label": [LABELS[i] for i in true]})
    columns = {f"p_{label}": score for label in LABELS}
    return frame.with_columns(
        score=pl.Series(score),
        truncated=pl.Series(rng.random(n) < 0.1),
        n_tokens=pl.Series(rng.poisson(tokens, n)),
        **{name: pl.Series(values) for name, values in columns.items()},
    )


def test_reviews_of_the_same_kind_do_not_drift():
    rng, called = np.random.default_rng(0), 0
    for _ in range(40):
        before, now = (predictions(500, [0.65, 0.1, 0.25], rng) for _ in range(2))
        called += drift(before, now.drop("true_label"), LABELS)["drifted"]
    assert called <= 5  # 5% of 40 and three standard errors


def test_other_shares_of_labels_are_seen_and_estimated():
    rng = np.random.default_rng(1)
    before = predictions(3000, [0.65, 0.1, 0.25], rng)
    now = predictions(3000, [0.2, 0.3, 0.5], rng)
    found = drift(before, now, LABELS)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert [f["name"] for f in found["features"] if f["drifted"]] == ["predicted label"]
    assert found["verdict"].startswith("The new reviews differ in predicted label (strongly).")
    shares = found["label_shares"]
    assert list(shares["current_estimated"].values()) == pytest.approx([0.2, 0.3, 0.5], abs=0.06)
    # predicted shares are not the true ones: .2 * .9 + .3 * .3 + .5 * .1 = .32
    assert shares["current_predicted"]["positive"] == pytest.approx(0.32, abs=0.03)


def test_lower_confidence_lowers_the_estimated_accuracy():
    rng = np.random.default_rng(2)
    before = predictions(2000, [0.65, 0.1, 0.25], rng)
    now = predictions(2000, [0.65, 0.1, 0.25], rng, accuracy_shift=0.15, tokens=300)
    found = drift(before, now, LABELS)
    assert [f["name"] for f in found["features"] if f["drifted"]] == ["confidence", "length in tokens"]
    assert found["accuracy"]["reference"] - found["accuracy"]["estimated_current"] == pytest.approx(0.15, abs=0.02)


def test_stability_index_by_hand():
    # (.6 - .5) ln(.6 / .5) + (.4 - .5) ln(.4 / .5)
    assert stability_index(np.array([0.5, 0.5]), np.array([0.6, 0.4])) == pytest.approx(0.0405465, abs=1e-6)
    assert np.isfinite(stability_index(np.array([1.0, 0.0]), np.array([0.0, 1.0])))


def test_tables_that_cannot_be_compared_are_refused():
    frame = predictions(100, [0.65, 0.1, 0.25], np.random.default_rng(3))
    with pytest.raises(DataError, match="the new predictions lack the column score, truncated; predict again"):
        drift(frame, frame.drop("score", "truncated"), LABELS)
    with pytest.raises(DataError, match="the reference predictions lack the column true_label"):
        drift(frame.drop("true_label"), frame, LABELS)
    with pytest.raises(DataError, match="at least 30 new reviews, got 5"):
        drift(frame, frame.head(5), LABELS)


def test_one_label_everywhere_is_no_drift():
    frame = predictions(100, [1.0, 0.0, 0.0], np.random.default_rng(4))
    same = frame.with_columns(label=pl.lit("positive"), truncated=pl.lit(value=False)).drop("n_tokens")
    found = drift(same, same, LABELS)
    assert not found["drifted"]
    assert found["label_shares"]["current_estimated"]["positive"] == pytest.approx(1.0)
