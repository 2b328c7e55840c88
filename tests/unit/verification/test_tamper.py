"""Whatever is done to an archive's bytes: what verifies has the same content, and nothing but an
EximError comes out."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from mlflow_exim_plugin.container.frames import SeekTable
from mlflow_exim_plugin.errors import InvalidArchiveError, TruncatedArchiveError
from tests.unit.container.crafting import (
    MemorySource,
    build,
    codes_of,
    contents,
    is_accepted,
    opened,
)

FLIPS = 1500
CUTS = 300
rng = random.Random(20_26)
MEMBERS = {
    "exim.json": b'{"format": 1}',
    "data/large.bin": rng.randbytes(300 << 10),
    "data/large.parquet": rng.randbytes(280 << 10),
    **{f"data/runs/{n}/run.json": b'{"run": %d, "pad": "%d"}' % (n, n * n) for n in range(40)},
    **{f"data/links/{n}": b"equal" for n in range(3)},
    "data/\u65e5\u672c/empty": b"",
}
ARCHIVE = build(MEMBERS, level=3)
CONTENT = contents(opened(ARCHIVE))
TABLE = SeekTable.parse(len(ARCHIVE), MemorySource(ARCHIVE).read_range)
BOUNDARIES = list(TABLE.file_offsets)
FRAMES = [ARCHIVE[start:end] for start, end in pairwise(BOUNDARIES)]
TAIL = ARCHIVE[BOUNDARIES[-1] :]


def test_the_archive_itself_is_accepted() -> None:
    assert is_accepted(ARCHIVE) == CONTENT
    assert {path: CONTENT[path] for path in MEMBERS} == MEMBERS


def flipped(position: int, bit: int) -> bytes:
    data = bytearray(ARCHIVE)
    data[position] ^= 1 << bit
    return bytes(data)


def test_flips_of_every_bit_of_the_footer_and_seek_table_end() -> None:
    footer = range(BOUNDARIES[-2], BOUNDARIES[-1] + 8)
    hint = ARCHIVE.index(b',"open_offset":')
    minor = ARCHIVE.index(b'"version":[1,3]') + len(b'"version":[1,')
    # Where other bits mean nothing: the hint, the minor version, the descriptor's unused bits.
    free = {*range(hint, ARCHIVE.index(b"}", hint)), minor, len(ARCHIVE) - 5}
    for position in [*footer, *range(len(ARCHIVE) - 9, len(ARCHIVE))]:
        for bit in range(8):
            result = is_accepted(flipped(position, bit))
            assert result is None or (result == CONTENT and position in free), (position, bit)


def test_random_flips() -> None:
    for _ in range(FLIPS):
        position, bit = rng.randrange(len(ARCHIVE)), rng.randrange(8)
        result = is_accepted(flipped(position, bit))
        assert result is None or result == CONTENT, (position, bit)


def test_flips_in_every_frame_are_found() -> None:
    for start, end in pairwise(BOUNDARIES):
        # The last bytes of a frame are its checksum, the middle is content.
        for position in (start, (start + end) // 2, end - 1):
            result = is_accepted(flipped(position, 2))
            assert result is None or result == CONTENT


def test_truncation_at_every_frame_boundary() -> None:
    for boundary in BOUNDARIES:
        with pytest.raises(TruncatedArchiveError):
            opened(ARCHIVE[:boundary])


def test_random_cuts() -> None:
    for _ in range(CUTS):
        with pytest.raises(InvalidArchiveError):
            opened(ARCHIVE[: rng.randrange(len(ARCHIVE))])


@pytest.mark.parametrize("junk", [b"\0", b"junk", bytes(1 << 10), ARCHIVE, FRAMES[0]])
def test_junk_before_and_after_is_refused(junk: bytes) -> None:
    assert codes_of(junk + ARCHIVE)
    assert codes_of(ARCHIVE + junk)


def test_junk_between_frames_is_refused() -> None:
    for boundary in BOUNDARIES:
        for junk in (b"x", FRAMES[0], b"\x50\x2a\x4d\x18\x01\0\0\0x"):
            assert codes_of(ARCHIVE[:boundary] + junk + ARCHIVE[boundary:])


def assembled(frames: list[bytes], sizes: list[int]) -> bytes:
    """Put frames together with a seek table that tells the truth about them."""
    table = b"".join(map(SeekTable.entry, frames, sizes))
    return b"".join(frames) + SeekTable.encode(table)


def test_frames_removed_swapped_or_repeated_with_a_true_seek_table() -> None:
    sizes = [*(TABLE.size_bytes(n) for n in range(TABLE.frame_count)), 0, 0]
    assert assembled(FRAMES, sizes) == ARCHIVE
    for number in range(len(FRAMES)):
        fewer = assembled(
            FRAMES[:number] + FRAMES[number + 1 :], sizes[:number] + sizes[number + 1 :]
        )
        assert is_accepted(fewer) is None
        more = assembled(
            FRAMES[: number + 1] + FRAMES[number:], sizes[: number + 1] + sizes[number:]
        )
        assert is_accepted(more) is None
    for first, second in pairwise(range(len(FRAMES))):
        frames, changed = list(FRAMES), list(sizes)
        frames[first], frames[second] = frames[second], frames[first]
        changed[first], changed[second] = changed[second], changed[first]
        assert is_accepted(assembled(frames, changed)) is None


def test_tail_of_another_archive_is_refused() -> None:
    other = build({**MEMBERS, "data/large.bin": rng.randbytes(300 << 10)})
    table = SeekTable.parse(len(other), MemorySource(other).read_range)
    start = table.file_offsets[-3]
    assert is_accepted(ARCHIVE[: BOUNDARIES[-3]] + other[start:]) is None


def test_random_bytes_are_refused_with_our_errors() -> None:
    for _ in range(300):
        data = rng.randbytes(rng.randrange(200)) + TAIL[-rng.randrange(1, 40) :]
        assert is_accepted(data) is None


def test_damage_to_one_frame_leaves_the_other_members_verified() -> None:
    """Fixity tells what is lost, not only that something is."""
    from mlflow_exim_plugin.verification.archive import verify_archive

    position = sorted(CONTENT).index("data/large.bin")
    reader = opened(ARCHIVE)
    frame = TABLE.frame_at(reader.data_offset(position))
    middle = (BOUNDARIES[frame] + BOUNDARIES[frame + 1]) // 2
    damaged = opened(flipped(middle, 0))
    findings = verify_archive(damaged, jobs=2)
    assert [finding.code for finding in findings] == ["E015", "E029"]
    assert findings[1].path == "data/large.bin"
    for path in CONTENT:
        if path != "data/large.bin":
            assert damaged.read(path) == CONTENT[path]
