import json

import numpy as np
import pytest

from rxtone.stats.validation import ValidationScores, validation_from_dict


def test_scores_survive_json_to_six_decimals():
    scores = ValidationScores(np.log([[0.2, 0.8], [1 / 3, 2 / 3]]), np.array([1, 0]))
    read = validation_from_dict(json.loads(json.dumps(scores.to_dict())), 2)
    assert read.classes.tolist() == [1, 0]
    assert np.abs(read.log_probs - scores.log_probs).max() <= 5e-7


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"classes": [], "log_probs": []},
        {"classes": [0], "log_probs": [[-1.0, -1.0, -1.0]]},
        {"classes": [0, 1], "log_probs": [[-1.0, -1.0]]},
        {"classes": [2], "log_probs": [[-1.0, -1.0]]},
        {"classes": [0], "log_probs": [[float("nan"), -1.0]]},
        {"classes": ["a"], "log_probs": [[-1.0, -1.0]]},
    ],
)
def test_what_is_no_such_table_is_refused(data):
    with pytest.raises((ValueError, TypeError)):
        validation_from_dict(data, 2)
