"""``verify`` looks at as much as it is asked to, finds what is wrong there, says what it left."""

from __future__ import annotations

import hashlib
import json
import random
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from mlflow_exim_plugin import verify
from mlflow_exim_plugin.container.frames import SeekTable
from mlflow_exim_plugin.container.reader import ArchiveReader
from mlflow_exim_plugin.errors import InvalidArchiveError, UsageError
from mlflow_exim_plugin.storage.pinned import TAIL_BYTES
from mlflow_exim_plugin.verification.archive import verify_tail
from mlflow_exim_plugin.verification.sample import choose_members
from tests.unit.container.crafting import Forgery, MemorySource, build, opened

if TYPE_CHECKING:
    from pathlib import Path

chance = random.Random(19)
LARGE = {f"data/large-{n}.bin": chance.randbytes(1 << 20) for n in range(8)}
MEMBERS = {**LARGE, **{f"data/{n}.json": b'{"n": %d}' % n for n in range(92)}}
ARCHIVE = build(MEMBERS)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "a.tar.zst"
    path.write_bytes(ARCHIVE)
    return path


def with_damage_in(*paths: str) -> bytes:
    """Return the archive with a bit flipped in a frame of each of some members."""
    reader, data = opened(ARCHIVE), bytearray(ARCHIVE)
    table = SeekTable.parse(len(ARCHIVE), MemorySource(ARCHIVE).read_range)
    for path in paths:
        frame = table.frame_at(reader.data_offset(reader.place_of(path)) + (1 << 19))
        data[(table.file_offsets[frame] + table.file_offsets[frame + 1]) // 2] ^= 1
    return bytes(data)


def test_quick_reads_the_end_and_nothing_else() -> None:
    source = MemorySource(ARCHIVE)
    with ArchiveReader.from_source(source) as reader:
        assert verify_tail(reader) == []
    assert source.bytes_read < TAIL_BYTES + (64 << 10)


def test_quick_finds_what_is_wrong_in_the_end_and_says_what_it_left(archive: Path) -> None:
    archive.write_bytes(with_damage_in("data/large-3.bin"))
    result = verify(str(archive), quick=True)
    assert (result.ok, result.level, result.looked_at) == (True, "quick", [])
    assert str(result.members) in result.not_looked_at
    assert not verify(str(archive)).ok

    table = SeekTable.parse(len(ARCHIVE), MemorySource(ARCHIVE).read_range)
    for start, end in pairwise(table.file_offsets[-5:]):
        if start == table.file_offsets[-4]:  # the two zero blocks, which no member needs
            continue
        data = bytearray(ARCHIVE)
        data[(start + end) // 2] ^= 4
        archive.write_bytes(data)
        with pytest.raises(InvalidArchiveError):
            verify(str(archive), quick=True)


def test_quick_holds_the_bag_to_what_it_declares(archive: Path) -> None:
    archive.write_bytes(Forgery(tags={"bag-info.txt": b"Payload-Oxum: 1.1\n"}).data())
    result = verify(str(archive), quick=True)
    assert [finding.code for finding in result.findings] == ["E033"]
    assert not result.ok


def test_a_sample_is_what_its_seed_chooses(archive: Path) -> None:
    result = verify(str(archive), sample=10, seed="of 2026")

    paths = sorted(MEMBERS) + [m.path for m in opened(ARCHIVE).members() if m.path not in MEMBERS]
    ranked = sorted(paths, key=lambda p: hashlib.sha256(f"of 2026\n{p}".encode()).digest())
    assert result.looked_at == sorted(ranked[: round(len(paths) / 10)])
    assert result.seed == "of 2026"
    assert f"{result.members - len(result.looked_at)} of {result.members} members" in (
        result.not_looked_at
    )


def test_a_sample_without_a_seed_is_another_each_time_and_can_be_repeated(archive: Path) -> None:
    first, second = (verify(str(archive), sample=10) for _ in range(2))
    assert first.looked_at != second.looked_at
    assert verify(str(archive), sample=10, seed=first.seed).looked_at == first.looked_at


@pytest.mark.parametrize("jobs", [1, 4])
def test_a_sample_finds_what_is_damaged_in_it(archive: Path, jobs: int) -> None:
    damaged = ["data/large-1.bin", "data/large-6.bin"]
    archive.write_bytes(with_damage_in(*damaged))
    all_of_them = verify(str(archive), sample=100, jobs=jobs)
    assert all_of_them.damaged == damaged
    assert [f.code for f in all_of_them.findings] == ["E015", "E029", "E015", "E029"]
    assert {f.path for f in all_of_them.findings} <= {
        str(f.path) for f in verify(str(archive)).findings
    }
    reader = opened(ARCHIVE)
    for seed in map(str, range(8)):
        chosen = choose_members(reader, 5, seed)
        result = verify(str(archive), sample=5, seed=seed, jobs=jobs)
        assert result.ok == (not set(chosen) & set(damaged))


def test_a_sample_compares_digests(archive: Path) -> None:
    archive.write_bytes(
        Forgery(
            manifest=b"".join(
                b"%b  %b\n" % (hashlib.sha256(content).hexdigest().encode(), path.encode())
                for path, content in {"data/a.txt": b"alpha", "data/b.txt": b"other"}.items()
            ),
            payload={"data/a.txt": b"alpha", "data/b.txt": b"bravo"},
        ).data()
    )
    result = verify(str(archive), sample=100)
    assert [(f.code, f.path) for f in result.findings] == [("E029", "data/b.txt")]
    assert result.damaged == ["data/b.txt"]


def test_the_result_is_json(archive: Path) -> None:
    told = json.loads(json.dumps(verify(str(archive), sample=1).to_dict()))
    assert (told["level"], len(told["looked_at"])) == ("sample", 1)


@pytest.mark.parametrize("sample", [0, -1, 101, float("nan")])
def test_no_share_of_the_members(archive: Path, sample: float) -> None:
    with pytest.raises(UsageError):
        verify(str(archive), sample=sample)


def test_levels_exclude_each_other(archive: Path) -> None:
    with pytest.raises(UsageError):
        verify(str(archive), sample=1, quick=True)
    with pytest.raises(UsageError):
        verify(str(archive), seed="x")
