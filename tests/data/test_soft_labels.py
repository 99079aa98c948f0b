import math

import numpy as np
import pytest

from rxtone.data.rules import parse_rule
from rxtone.data.soft_labels import soft_labels
from rxtone.errors import RecipeError

RULE = parse_rule({"positive": ">=7", "neutral": "5..6", "negative": "<=4"})


def test_a_rating_near_a_border_leans_over_it():
    found = soft_labels(RULE, ["6", "7", "9"], noise=1.0)
    near, far = math.exp(-0.5), math.exp(-4.5)  # one and three points away
    two = math.exp(-2.0)
    np.testing.assert_allclose(found[0], [(near + far) / (1 + near + far), 1 / (1 + near + far), 0], rtol=1e-6)
    np.testing.assert_allclose(found[1], [(1 + two) / (1 + near + two), near / (1 + near + two), 0], rtol=1e-6)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-6)


def test_little_noise_leaves_the_label():
    found = soft_labels(RULE, ["1", " 4 ", "5.0", "6", "7", "10"], noise=0.05)
    np.testing.assert_allclose(found, np.eye(3)[[2, 2, 1, 1, 0, 0]], atol=1e-6)


def test_text_has_no_distance():
    with pytest.raises(RecipeError, match=r"train\.rating_noise: expected a data\.label\.rule that compares numbers"):
        soft_labels(parse_rule({"good": "yes", "bad": "no"}), ["yes"], noise=1.0)
