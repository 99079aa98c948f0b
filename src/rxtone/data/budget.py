"""Share a number of tokens among texts: a short text leaves what it does not need to the long ones."""

from collections.abc import Sequence


def share_tokens(lengths: Sequence[int], budget: int) -> list[int]:
    """Share a budget by water-filling: equal shares, the unused part of each given to the others.

    Args:
        lengths: Tokens that each text needs.
        budget: Tokens to share, at least 0.

    Returns:
        For each text the tokens it gets: never more than it needs, in sum never more than the budget, and
        the whole budget where the texts need it.
    """
    shares = [0] * len(lengths)
    left = budget
    # The shortest first: what it does not use is there for all that follow.
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    for done, index in enumerate(order):
        shares[index] = min(lengths[index], left // (len(order) - done))
        left -= shares[index]
    return shares
