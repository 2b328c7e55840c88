"""What a name is does not depend on the Unicode of the Python that reads it."""

from __future__ import annotations

import sys
import unicodedata

import pytest

from mlflow_exim_plugin.container.paths import PathRegister, check_member_path, encode_segment
from mlflow_exim_plugin.container.unicode import SPACES, UNASSIGNED, folded, normalized


def gaps() -> set[int]:
    found: set[int] = set()
    for gap in UNASSIGNED.split():
        first, _, last = gap.partition("-")
        found.update(range(int(first, 16), int(last or first, 16) + 1))
    return found


def test_the_pinned_table_is_that_of_unicode_13() -> None:
    here = {c for c in range(sys.maxunicode + 1) if unicodedata.category(chr(c)) == "Cn"}
    assert here <= gaps()
    if unicodedata.unidata_version == "13.0.0":
        assert here == gaps()


def test_what_is_assigned_is_as_python_has_it() -> None:
    unassigned = gaps()
    for code in set(range(sys.maxunicode + 1)) - unassigned - set(range(0xD800, 0xE000)):
        char = chr(code)
        assert normalized(char) == unicodedata.normalize("NFC", char)
    assert folded("STRASSE \u1e9e \u0130") == folded("stra\u00dfe ss i\u0307")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param("\u1c89", "\u1c8a", id="Cyrillic of 16.0"),
        pytest.param("\U00010d50", "\U00010d70", id="Garay, 16.0"),
        pytest.param("\U00010570", "\U00010597", id="Vithkuqi, 14.0"),
        pytest.param("\U000105d2\u0307", "\U000105c9", id="Todhri, 16.0"),
    ],
)
def test_letters_of_later_versions_stand_for_themselves(one: str, other: str) -> None:
    register = PathRegister()
    for number, name in enumerate((one, other)):
        check_member_path(name)
        assert encode_segment(name) == name
        assert folded(name) == name
        register.add(name, number)
    # They combine with nothing either: what stands around them is normalized alone.
    assert normalized(f"e\u0301{one}e\u0301") == f"\u00e9{one}\u00e9"


def test_spaces_are_the_listed_ones() -> None:
    python = {c for c in map(chr, range(sys.maxunicode + 1)) if c.isspace()}
    controls = {c for c in python if c < " " or c in "\x7f\x85\u2028\u2029"}
    assert set(SPACES) == python - controls
    for char in "\ufeff\u200b\u180e":
        check_member_path(f"{char}a{char}")
