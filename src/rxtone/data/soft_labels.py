"""Label distributions for ratings that carry noise: a 7 might have been a 6."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from rxtone.data.intervals import parse_number
from rxtone.data.rules import LabelRule
from rxtone.errors import RecipeError


def soft_labels(rule: LabelRule, ratings: Sequence[str], noise: float) -> npt.NDArray[np.float32]:
    """What a rating says about the label, if the same writer could as well have given a neighbouring rating.

    The chance of each rating that occurs in `ratings` falls with its distance like a normal density; a label's
    chance is the sum over the ratings that the rule gives it.

    Args:
        rule: A rule that compares numbers.
        ratings: The n cells of the label column, each covered by the rule.
        noise: Standard deviation of the noise, in units of the rating, above 0.

    Returns:
        shape (n, k), rows sum to 1.

    Raises:
        RecipeError: The rule compares text, so there is no distance.
    """
    if rule.intervals is None:
        msg = (
            "train.rating_noise: expected a data.label.rule that compares numbers, "
            f"found one that compares text ({rule.describe()}); set train.rating_noise=null"
        )
        raise RecipeError(msg)
    numbers = np.array([float(str(parse_number(rating.strip()))) for rating in ratings])
    support = np.unique(numbers)
    member = np.zeros((len(support), len(rule.labels)))
    for place, value in enumerate(support):
        member[place, rule.labels.index(rule.label_of(repr(float(value))))] = 1.0
    chance = np.exp(-0.5 * ((numbers[:, None] - support[None]) / noise) ** 2)
    found: npt.NDArray[np.float32] = (chance @ member / chance.sum(1, keepdims=True)).astype(np.float32)
    return found
