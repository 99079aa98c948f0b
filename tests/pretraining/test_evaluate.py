"""Cross-validation figures, against values worked out by hand or by scikit-learn's own functions."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import cohen_kappa_score, f1_score

from pretraining.evaluate import ahead, figures, main, summarise

LABELS = ("positive", "neutral", "negative")


def noisy(truth: np.ndarray, share: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    wrong = rng.random(len(truth)) < share
    return np.where(wrong, rng.integers(0, 3, len(truth)), truth)


def test_figures_equal_scikit_learn() -> None:
    truth = np.random.default_rng(0).integers(0, 3, 200)
    guess = noisy(truth, 0.5, 1)
    found = figures(truth, guess, LABELS)
    assert found["macro_f1"] == pytest.approx(f1_score(truth, guess, average="macro"))
    assert found["kappa"] == pytest.approx(cohen_kappa_score(truth, guess))
    assert found["f1_neutral"] == pytest.approx(f1_score(truth, guess, average=None)[1])


def test_a_clear_lead_has_an_interval_above_zero_and_a_tie_does_not() -> None:
    truth = np.random.default_rng(0).integers(0, 3, 600)
    good, same, poor = noisy(truth, 0.2, 1), noisy(truth, 0.2, 2), noisy(truth, 0.6, 3)
    lead = ahead(truth, good, poor, 3)["macro_f1"]
    assert lead[0] == pytest.approx(f1_score(truth, good, average="macro") - f1_score(truth, poor, average="macro"))
    assert 0 < lead[1] < lead[0] < lead[2]
    tie = ahead(truth, good, same, 3)["kappa"]
    assert tie[1] < 0 < tie[2]
    assert ahead(truth, good, good, 3)["accuracy"] == (0.0, 0.0, 0.0)


def test_bootstrap_agrees_with_resampling_rows() -> None:
    truth = np.random.default_rng(0).integers(0, 3, 150)
    first, second = noisy(truth, 0.3, 1), noisy(truth, 0.4, 2)
    rng = np.random.default_rng(5)
    draws = rng.integers(0, 150, size=(4000, 150))
    by_rows = [(first[d] == truth[d]).mean() - (second[d] == truth[d]).mean() for d in draws]
    _, low, high = ahead(truth, first, second, 3)["accuracy"]
    assert (low, high) == pytest.approx(tuple(np.quantile(by_rows, [0.025, 0.975])), abs=0.012)


def test_summary_keeps_folds_apart() -> None:
    truth = np.array([0, 1, 2, 0, 1, 2])
    guess = np.array([0, 1, 2, 0, 0, 0])
    summary = summarise(truth, {"tuned": guess}, [np.arange(3), np.arange(3, 6)], LABELS)
    assert [fold["accuracy"] for fold in summary["folds"]["tuned"]] == [1.0, pytest.approx(1 / 3)]
    assert summary["mean_of_folds"]["tuned"]["accuracy"] == pytest.approx(2 / 3)
    assert summary["sd_of_folds"]["tuned"]["accuracy"] == pytest.approx(np.std([1, 1 / 3], ddof=1))
    assert summary["all_rows"]["majority"]["accuracy"] == pytest.approx(1 / 3)
    assert set(summary["tuned_minus"]) == {"majority"}


@pytest.mark.parametrize("seeds", [1, 2])
def test_the_command_runs_through_the_pipeline(
    tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], seeds: int
) -> None:
    words = {9: "great", 5: "fair", 2: "awful"}
    rows = [(r, f"{words[r]} {n}", f"none {n}", words[r]) for n in range(15) for r in (9, 5, 2)]
    table = pl.DataFrame(rows, schema=["rating", "benefitsReview", "sideEffectsReview", "commentsReview"], orient="row")
    table.with_columns(pl.col("rating").cast(pl.String)).write_parquet(tmp_path / "reviews.parquet")
    arguments = ["evaluate", "--table", str(tmp_path / "reviews.parquet"), "--base", str(tiny_base), "--folds", "3",
                 "--out", str(tmp_path / "out"), "--set", "train.max_steps=2", "--only", "1", "--threads", "1",
                 "--seeds", str(seeds), "--set", "prompt.max_tokens=48"]  # fmt: skip
    monkeypatch.setattr("sys.argv", arguments)
    main()
    summary = json.loads(capsys.readouterr().out)
    assert summary["rows"] == 15
    single = {"tuned", "tuned_argmax", "zero_shot", "tfidf", "majority"}
    assert set(summary["all_rows"]) == (single if seeds == 1 else single | {"seed-42", "seed-43"})
    assert set(summary["alone_minus_tfidf"]) == (set() if seeds == 1 else {"seed-42", "seed-43"})
    assert summary["all_rows"]["tfidf"]["accuracy"] == 1.0
    with np.load(tmp_path / "out" / "predictions.npz") as stored:
        assert stored["tuned"].shape == (15,)
    assert sorted(path.name for path in (tmp_path / "out").glob("fold-*")) == ["fold-1"]


def test_a_fold_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["evaluate", "--folds", "3", "--only", "0", "3"])
    with pytest.raises(SystemExit) as refused:
        main()
    assert refused.value.code == 2
    assert "--only: expected folds from 0 to 2, got [0, 3]" in capsys.readouterr().err
