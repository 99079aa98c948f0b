from hypothesis import given
from hypothesis import strategies as st

from rxtone.data.budget import share_tokens


def test_a_short_text_leaves_its_share_to_the_long_ones() -> None:
    # 60 tokens for three: 20 each; the first needs 2, so 58 are left for two: 29 each.
    assert share_tokens([2, 100, 50], 60) == [2, 29, 29]
    assert share_tokens([2, 25, 50], 60) == [2, 25, 33]
    assert share_tokens([5, 5], 3) == [1, 2]
    assert share_tokens([], 3) == []


@given(st.lists(st.integers(0, 200), max_size=6), st.integers(0, 500))
def test_shares_are_fair_and_use_the_budget(lengths: list[int], budget: int) -> None:
    shares = share_tokens(lengths, budget)
    assert sum(shares) == min(budget, sum(lengths))
    assert all(0 <= share <= length for share, length in zip(shares, lengths, strict=True))
    # Water-filling: whoever is cut has, to within one token, the largest share.
    cut = [share for share, length in zip(shares, lengths, strict=True) if share < length]
    assert not cut or min(cut) >= max(shares) - 1
