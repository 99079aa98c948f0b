import pytest

from rxtone.data.faults import Faults, quote
from rxtone.errors import DataError


def test_no_fault_raises_nothing() -> None:
    Faults("t.csv").raise_if_any()


def test_the_first_ten_of_each_kind_and_the_count_are_told() -> None:
    faults = Faults("t.csv")
    for row in range(1, 14):
        faults.add("expected a number", "correct it", f"data row {row}")
    faults.add("expected text", "remove it", "data row 99")
    with pytest.raises(DataError) as caught:
        faults.raise_if_any()
    listed = "; ".join(f"data row {row}" for row in range(1, 11))
    assert str(caught.value) == (
        "t.csv: 14 faults; nothing was read.\n"
        f"  expected a number (13): {listed}; and 3 more\n"
        "    what to do: correct it\n"
        "  expected text (1): data row 99\n"
        "    what to do: remove it"
    )


def test_a_long_value_is_not_repeated() -> None:
    assert quote("7 stars") == "'7 stars'"
    assert quote("\x1b[31m") == "'\\x1b[31m'"
    assert quote("x" * 25) == "a text of 25 characters"
