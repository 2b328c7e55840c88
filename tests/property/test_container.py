"""Searched for counterexamples: names, round trips, slices."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from mlflow_exim_plugin.container.paths import (
    PathRegister,
    base_directory_for,
    check_member_path,
    check_member_paths,
    decode_segment,
    encode_path,
    encode_segment,
    may_collide,
)
from mlflow_exim_plugin.container.unicode import SPACES, folded, normalized
from mlflow_exim_plugin.errors import UnsafePathError
from mlflow_exim_plugin.verification.archive import verify_archive
from tests.unit.container.crafting import build, is_accepted, opened

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.property

# Any code point, surrogates included, and often the characters that make trouble.
troublesome = st.sampled_from(
    '!~./\\:%" \u0301\u0338\u200a\u3000\u2028\xb9aA1CONcomnul\ud800\udc00\x00\x85'
)
names = st.text(
    st.one_of(troublesome, st.characters(), st.characters(categories=["Cs"])), max_size=300
)


@settings(max_examples=1500)
@given(names)
@example("\u200a\u0301")
@example("CON\u0301")
def test_every_name_becomes_an_allowed_segment_and_comes_back(name: str) -> None:
    segment = encode_segment(name)
    check_member_path(segment)
    assert "/" not in segment
    decoded = decode_segment(segment)
    if decoded is None:
        assert len(segment.encode()) > 100
        assert segment[-65] == "~"
    else:
        assert decoded == name


@settings(max_examples=800)
@given(names, names)
def test_different_names_give_different_segments(first: str, second: str) -> None:
    assume(first != second)
    assert encode_segment(first) != encode_segment(second)


@settings(max_examples=800)
@given(names)
def test_decoding_anything_never_fails_and_is_exact(segment: str) -> None:
    name = decode_segment(segment)
    assert name is None or encode_segment(name) == segment


@settings(max_examples=500)
@given(names, names)
def test_encoded_paths_are_allowed_and_different(first: str, second: str) -> None:
    check_member_path(f"data/{encode_path(first)}")
    assert (encode_path(first) == encode_path(second)) == (first == second)


# Few letters, so that paths meet; with what the quick way over many of them looks for.
segments = st.sampled_from(
    [
        *("a", "A", "b", "a b", " a", "a ", "a.", ".a", "..", "", "con", "Con.d", "com1", "comic"),
        *("x!", "\u00e9", "e\u0301", "a:b", "lpt0 ", "nul /", "\n", "\0", "p" * 240, "q" * 241),
    ]
)
listed = st.lists(st.lists(segments, min_size=1, max_size=4).map("/".join), max_size=6, unique=True)


def registered(paths: list[str]) -> None:
    register = PathRegister()
    for path in paths:
        register.add(path, 0)


@settings(max_examples=3000)
@given(listed)
def test_many_paths_are_checked_as_each_of_them(paths: list[str]) -> None:
    def refusal(check: Callable[[], object]) -> str:
        try:
            check()
        except UnsafePathError as error:
            return error.message
        return ""

    one_by_one = refusal(lambda: list(map(check_member_path, paths)))
    assert refusal(lambda: check_member_paths(paths)) == one_by_one
    if not one_by_one:
        meeting = refusal(lambda: registered(paths))
        assert may_collide(paths) == bool(meeting)


@settings(max_examples=500)
@given(names)
def test_base_directory_is_one_allowed_segment(url: str) -> None:
    name = base_directory_for(url)
    check_member_path(name)
    assert "/" not in name


@settings(max_examples=800)
@given(names)
def test_accepted_paths_are_safe_on_every_system(path: str) -> None:
    try:
        check_member_path(path)
    except UnsafePathError:
        return
    assert normalized(path) == path
    assert path.encode("utf-8").decode("utf-8") == path
    assert not set(path) & set('\\:%*?"<>|')
    assert path.isprintable() or not path.isascii()
    for segment in path.split("/"):
        assert segment.strip(SPACES) == segment
        assert segment not in {"", ".", ".."}
        assert not segment.endswith(".")
    assert len(path.splitlines()) == 1
    assert folded(folded(path)) == folded(path)


contents = st.one_of(
    st.binary(max_size=2000),
    # Around the limits of blocks, group frames and large frames.
    st.builds(
        lambda size, byte: byte * size,
        st.sampled_from([0, 1, 511, 512, 513, 131_072, 262_144, 262_145, 1_048_576, 1_048_577]),
        st.binary(min_size=1, max_size=1),
    ),
)
paths = st.builds(
    lambda folder, name, suffix: f"{folder}{encode_segment(name)}{suffix}",
    st.sampled_from(["", "data/", "data/x/", "data/\u65e5/"]),
    st.text(min_size=1, max_size=20),
    st.sampled_from(["", ".json", ".parquet"]),
)


def unique(listed: list[tuple[str, bytes]]) -> dict[str, bytes]:
    return dict({folded(path): (path, data) for path, data in listed}.values())


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(paths, contents), max_size=12), st.integers(1, 6), st.integers(0, 3))
def test_what_is_written_is_read(listed: list[tuple[str, bytes]], level: int, workers: int) -> None:
    members = unique(listed)
    assume(not members.keys() & {"data/x", "data/\u65e5", "data"})
    archive = build(members, level=level, workers=workers)
    reader = opened(archive)
    assert verify_archive(reader) == []
    assert {path: reader.read(path) for path in members} == members
    assert opened(build(dict(reversed(members.items())))).root == reader.root


SAMPLE = build({f"data/{n}": b"%d" % n * n for n in range(60)})
SAMPLE_CONTENT = is_accepted(SAMPLE)


@settings(max_examples=400, deadline=None)
@given(st.integers(0, len(SAMPLE) - 1), st.binary(max_size=12), st.integers(0, 12))
def test_any_replacement_is_refused_or_changes_nothing(start: int, new: bytes, gone: int) -> None:
    changed = SAMPLE[:start] + new + SAMPLE[start + gone :]
    result = is_accepted(changed)
    assert result is None or result == SAMPLE_CONTENT


LARGE = bytes(range(256)) * 6000
LARGE_ARCHIVE = build({"data/x": LARGE})


@given(st.integers(-2_000_000, 2_000_000), st.none() | st.integers(-2_000_000, 2_000_000))
def test_ranges_are_slices(start: int, end: int | None) -> None:
    assert opened(LARGE_ARCHIVE).read("data/x", start, end) == LARGE[start:end]
