import numpy as np
import pytest
from sklearn.metrics import f1_score

from rxtone.stats.ranking import rank_settings


def predictions(true, wrong_share, seed):
    generator = np.random.default_rng(seed)
    wrong = generator.random(len(true)) < wrong_share
    return np.where(wrong, (true + 1) % 3, true)


TRUE = np.arange(300) % 3


def test_the_mean_is_macro_f1_of_each_repetition_averaged_over_seeds():
    runs = np.array(
        [[predictions(TRUE, 0.2, seed) for seed in (1, 2)], [predictions(TRUE, 0.4, seed) for seed in (3, 4)]]
    )
    ranking = rank_settings(TRUE, runs, 3, n_resamples=50)
    expected = [np.mean([f1_score(TRUE, run, average="macro") for run in setting]) for setting in runs]
    assert ranking.mean == pytest.approx(expected)
    assert (ranking.interval[:, 0] < ranking.mean).all()
    assert (ranking.mean < ranking.interval[:, 1]).all()


def test_a_clear_winner_wins_always_and_twins_share():
    good, bad = predictions(TRUE, 0.05, 1), predictions(TRUE, 0.5, 2)
    ranking = rank_settings(TRUE, np.array([[bad], [good], [good]]), 3, n_resamples=200)
    assert ranking.probability_best.tolist() == [0.0, 0.5, 0.5]
    assert ranking.difference[1].tolist() == [0.0, 0.0]
    assert ranking.difference[0, 1] < 0


def test_the_gain_over_a_setting_is_paired_and_nothing_over_itself():
    good, bad = predictions(TRUE, 0.1, 1), predictions(TRUE, 0.3, 2)
    ranking = rank_settings(TRUE, np.array([[good], [bad]]), 3, against=1, n_resamples=300)
    low, high = ranking.gain[0]
    assert 0.1 < low < ranking.mean[0] - ranking.mean[1] < high < 0.4
    assert ranking.gain[1].tolist() == [0.0, 0.0]
    assert rank_settings(TRUE, np.array([[good]]), 3, n_resamples=10).gain is None


def test_settings_that_differ_by_chance_are_not_told_apart():
    runs = np.array([[predictions(TRUE, 0.3, seed)] for seed in (5, 6, 7)])
    ranking = rank_settings(TRUE, runs, 3, n_resamples=300)
    assert ranking.probability_best.sum() == pytest.approx(1)
    assert ranking.probability_best.max() < 0.95


def test_groups_are_drawn_whole_and_widen_the_interval():
    # ten reviews of each group are right or wrong together: a group is one piece of evidence
    groups = np.repeat(np.arange(30), 10)
    true = groups % 3
    wrong = np.random.default_rng(0).random(30) < 0.3
    run = np.where(wrong[groups], (true + 1) % 3, true)[None, None]
    single, grouped = (rank_settings(true, run, 3, groups=g, n_resamples=300) for g in (None, groups))
    width = [float(ranking.interval[0, 1] - ranking.interval[0, 0]) for ranking in (single, grouped)]
    assert width[1] > 2 * width[0]
