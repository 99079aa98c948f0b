import re

from hypothesis import given
from hypothesis import strategies as st

from rxtone.api import default_out


@given(st.text(max_size=200) | st.sampled_from(["..", "../../etc", "a/b", "a\x00b", "%252e%252e/x", "~", "", "."]))
def test_any_name_gives_one_plain_folder_under_runs(name):
    path = default_out(name)
    assert path.parts[0] == "runs"
    assert len(path.parts) == 2
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,100}", path.name)


def test_a_plain_name_is_kept():
    assert default_out("druglib-mini").name.startswith("druglib-mini-2")
