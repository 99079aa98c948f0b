import numpy as np
import pytest
from scipy.stats import bootstrap as scipy_bootstrap

from rxtone.stats.bootstrap import bootstrap, metric_intervals, metric_names, metric_table

# A classifier like those of the reference task: rows are true labels (shares .686, .102, .212), columns
# predicted ones.
PRIOR = np.array([0.686, 0.102, 0.212])
GIVEN_TRUE = np.array([[0.90, 0.03, 0.07], [0.40, 0.25, 0.35], [0.15, 0.10, 0.75]])


def draw(rng, n, joint):
    cells = rng.choice(9, n, p=joint.ravel())
    return cells // 3, cells % 3


def truth_of(joint):
    return metric_table(np.hstack([joint, np.zeros((3, 1))]))


def covers(intervals, truth):
    return np.array([low <= value <= high for (low, high), value in zip(intervals, truth, strict=True)])


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng, joint = np.random.default_rng(0), PRIOR[:, None] * GIVEN_TRUE
    truth, hits, repeats = truth_of(joint), 0, 600
    for i in range(repeats):
        true, pred = draw(rng, 466, joint)
        hits += covers(metric_intervals(bootstrap(true, [pred], 3, n_resamples=800, seed=i)), truth)
    # 600 repeats of a 95% interval: the standard error is 0.9 points, three of them either way
    coverage = dict(zip(metric_names(3), hits / repeats, strict=True))
    assert {name: share for name, share in coverage.items() if not 0.923 <= share <= 0.977} == {}


def test_group_intervals_cover_where_row_intervals_do_not():
    # In each group of 10 rows all are classified well or all badly: its rows are no independent evidence.
    rng = np.random.default_rng(1)
    good, bad = np.eye(3) * PRIOR, PRIOR[:, None] * np.roll(np.eye(3), 1, axis=1)
    truth, repeats = truth_of((good + bad) / 2)[0], 300
    by_row = by_group = 0
    for i in range(repeats):
        luck = np.repeat(rng.random(80) < 0.5, 10)
        true = rng.choice(3, 800, p=PRIOR)
        pred = np.where(luck, true, (true + 1) % 3)
        by_row += covers(metric_intervals(bootstrap(true, [pred], 3, n_resamples=400, seed=i))[:1], [truth])[0]
        sample = bootstrap(true, [pred], 3, groups=np.arange(800) // 10, n_resamples=400, seed=i)
        by_group += covers(metric_intervals(sample)[:1], [truth])[0]
    # sqrt(10) too narrow: z = 1.96 / 3.16 covers 46%
    assert by_row / repeats < 0.60
    assert 0.91 <= by_group / repeats <= 0.985


def test_agrees_with_scipys_bca():
    rng = np.random.default_rng(3)
    true = rng.choice(3, 200, p=PRIOR)
    pred = np.where(rng.random(200) < 0.8, true, 0)
    ours = metric_intervals(bootstrap(true, [pred], 3, n_resamples=20_000, seed=0))[0]
    right = (true == pred).astype(float)
    theirs = scipy_bootstrap((right,), np.mean, n_resamples=5_000, method="BCa", rng=0).confidence_interval
    assert ours == pytest.approx([theirs.low, theirs.high], abs=0.006)  # one row is 0.005


def test_one_row_per_group_is_the_bootstrap_by_row():
    rng = np.random.default_rng(4)
    true, pred = draw(rng, 300, PRIOR[:, None] * GIVEN_TRUE)
    by_row = metric_intervals(bootstrap(true, [pred], 3, n_resamples=8000))
    by_group = metric_intervals(bootstrap(true, [pred], 3, groups=np.arange(300), n_resamples=8000))
    np.testing.assert_allclose(by_row, by_group, atol=0.012)


def test_same_seed_same_intervals_and_another_seed_others():
    rng = np.random.default_rng(5)
    true, pred = draw(rng, 300, PRIOR[:, None] * GIVEN_TRUE)
    first, same, other = (metric_intervals(bootstrap(true, [pred], 3, seed=seed)) for seed in (1, 1, 2))
    assert first == same
    assert first != other


def test_all_runs_share_their_resamples():
    rng = np.random.default_rng(6)
    true, pred = draw(rng, 100, PRIOR[:, None] * GIVEN_TRUE)
    sample = bootstrap(true, [pred, pred, np.full(100, -1)], 3, n_resamples=50)
    np.testing.assert_array_equal(sample.resampled[0], sample.resampled[1])
    np.testing.assert_array_equal(sample.resampled[0].sum(axis=-1), sample.resampled[2][..., 3])
    assert (sample.resampled.sum(axis=(-2, -1)) == 100).all()


def test_perfect_predictions_have_an_interval_that_is_not_a_point():
    # 20 of 20 right: the Wilson interval is [1 / (1 + z^2 / n), 1] with z = 1.95996
    true = np.repeat([0, 1], [15, 5])
    found = dict(zip(metric_names(2), metric_intervals(bootstrap(true, [true], 2)), strict=True))
    assert found["accuracy", None] == pytest.approx([1 / (1 + 3.841459 / 20), 1.0])
    assert found["recall", 1] == pytest.approx([1 / (1 + 3.841459 / 5), 1.0])
    assert found["macro_f1", None] is None


def test_perfect_predictions_of_a_few_groups_count_as_a_few():
    true = np.repeat([0, 1], [20, 20])
    sample = bootstrap(true, [true], 2, groups=np.arange(40) // 10)
    assert metric_intervals(sample)[0] == pytest.approx([1 / (1 + 3.841459 / 4), 1.0])


def test_a_label_never_predicted_has_no_precision_interval():
    true = np.repeat([0, 1], [15, 5])
    found = dict(zip(metric_names(2), metric_intervals(bootstrap(true, [np.zeros(20, int)], 2)), strict=True))
    assert found["precision", 1] is None
    assert found["f1", 1] is None
    assert found["recall", 1] == pytest.approx([0.0, 1 - 1 / (1 + 3.841459 / 5)])


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_handful_of_rows_gives_no_warning(n):
    for interval in metric_intervals(bootstrap(np.arange(n) % 2, [np.zeros(n, int)], 2)):
        assert interval is None or 0 - 1e-9 <= interval[0] <= interval[1] <= 1 + 1e-9
