import numpy as np
import pytest

from rxtone.data.suspects import Suspect, suspect_labels
from rxtone.errors import DataError

LABELS = ("good", "so-so", "bad")


def test_a_label_that_the_model_contradicts_is_suspect() -> None:
    # Mean probability of "good" among the rows labelled so: (0.9 + 0.8 + 0.1) / 3 = 0.6; of "bad": 0.85.
    codes = np.array([0, 0, 0, 2, 2])
    probabilities = np.array([[0.9, 0.1, 0.0], [0.8, 0.1, 0.1], [0.1, 0.0, 0.9], [0.1, 0.0, 0.9], [0.1, 0.1, 0.8]])
    assert suspect_labels(codes, probabilities, LABELS, [11, 12, 13, 14, 15]) == [
        Suspect(
            row=13,
            label="good",
            suggested="bad",
            given_probability=0.1,
            suggested_probability=0.9,
            distance=2,
        )
    ]


def test_an_unsure_model_makes_no_suspects() -> None:
    # 0.55 for "bad" stays below the 0.7 that "bad" rows reach on average.
    probabilities = np.array([[0.45, 0.0, 0.55], [0.9, 0.0, 0.1], [0.3, 0.0, 0.7]])
    assert suspect_labels(np.array([0, 0, 2]), probabilities, LABELS, [1, 2, 3]) == []


def test_planted_label_errors_come_first() -> None:
    generator = np.random.Generator(np.random.PCG64(0))
    truth = generator.integers(0, 3, 600)
    probabilities = generator.dirichlet([1, 1, 1], 600) * 0.4
    probabilities[np.arange(600), truth] += 0.6
    given = truth.copy()
    planted = generator.choice(600, 30, replace=False)
    given[planted] = (given[planted] + 1) % 3
    suspects = suspect_labels(given, probabilities, LABELS, list(range(600)))
    # A row must reach the mean confidence of the other label, as about half of them do.
    assert {suspect.row for suspect in suspects} <= set(planted.tolist())
    assert 10 <= len(suspects) <= 20


@pytest.mark.parametrize(
    ("probabilities", "message"),
    [
        (np.full((2, 2), 0.5), r"expected out-of-fold probabilities of shape \(2, 3\), found \(2, 2\)"),
        (np.full((2, 3), 0.5), "finite and sum to 1 in every row"),
        (np.full((2, 3), np.nan), "finite and sum to 1 in every row"),
    ],
)
def test_probabilities_that_are_none_are_refused(probabilities: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        suspect_labels(np.array([0, 1]), probabilities, LABELS, [1, 2])
