"""``repack``: other frames, and the same archive."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from mlflow_exim_plugin import repack, verify
from mlflow_exim_plugin.container.reader import ArchiveReader
from mlflow_exim_plugin.container.writer import ArchiveWriter
from mlflow_exim_plugin.errors import ArchiveExistsError, InvalidArchiveError, UsageError
from samples import generate
from tests.unit.container.crafting import contents

SAMPLES = Path(generate.FOLDER)
SOUND = sorted([*SAMPLES.glob("good/*.tar.zst"), *SAMPLES.glob("written-by/*/archive.tar.zst")])
LARGE_BYTES = 3 << 20


def codes(path: Path) -> list[str]:
    return [finding.code for finding in verify(str(path)).findings]


@pytest.mark.parametrize("path", SOUND, ids=[str(path.relative_to(SAMPLES)) for path in SOUND])
def test_everything_but_the_frames_stays(path: Path, tmp_path: Path) -> None:
    out = tmp_path / "again.tar.zst"
    done = repack(str(path), str(out))
    assert done.size_bytes == out.stat().st_size
    assert codes(out) == codes(path)
    with ArchiveReader.open(str(path)) as before, ArchiveReader.open(str(out)) as after:
        assert after.root == before.root == done.root
        assert contents(after) == contents(before)
        moved = {"index", "open_offset"}
        stated, was = after.footer.stated, before.footer.stated
        assert {k: v for k, v in stated.items() if k not in moved} == {
            k: v for k, v in was.items() if k not in moved
        }


@pytest.mark.parametrize("name", ["experiments", "mlflow3"])
def test_at_the_level_of_a_pack_every_byte_is_the_same(name: str, tmp_path: Path) -> None:
    path, out = SAMPLES / "good" / f"{name}.tar.zst", tmp_path / "again.tar.zst"
    repack(str(path), str(out), level=3)
    assert out.read_bytes() == path.read_bytes()


def with_large_members(path: Path) -> None:
    draw = random.Random(5)
    with path.open("wb") as file, ArchiveWriter(file, base_directory="large", workers=0) as writer:
        for number in range(3000):
            writer.add(f"data/small/{number}.json", b'{"n": %d}' % draw.randrange(10**9))
            writer.add(f"data/links/{number}.json", b"the same bytes")
        writer.add("data/large.txt", b"line %d\n" * (LARGE_BYTES // 8))
        writer.add("data/table.parquet", draw.randbytes(LARGE_BYTES))


@pytest.mark.parametrize("frame_bytes", [16 << 10, 1 << 20, 4 << 20])
def test_frames_are_as_large_as_is_asked(frame_bytes: int, tmp_path: Path) -> None:
    path, out = tmp_path / "a.tar.zst", tmp_path / "b.tar.zst"
    with_large_members(path)
    repack(str(path), str(out), level=5, frame_bytes=frame_bytes)
    assert [code for code in codes(out) if code.startswith("W00")] == []
    with ArchiveReader.open(str(path)) as before, ArchiveReader.open(str(out)) as after:
        assert contents(after) == contents(before)
        table = after.frames.table
        first, last = after.own_frames("data/large.txt") or (0, 0)
        sizes = [table.size_bytes(number) for number in range(first, last)]
        assert max(sizes) == min(frame_bytes, LARGE_BYTES)
        # What is compressed inside stays as it was.
        kept, was = after.own_frames("data/table.parquet"), before.own_frames("data/table.parquet")
        assert kept is not None
        assert was is not None
        assert [f for _, f in after.frames.compressed(*kept)] == [
            f for _, f in before.frames.compressed(*was)
        ]


DAMAGED = {
    "a member": generate.plain(members=generate.in_member(generate.NOTE, data=b"HELLO\n")),
    "a frame": generate.plain(frames=generate.end_frame_damaged),
    "the index": generate.plain(rows=generate.moved_row),
    "a member more": generate.plain(members=generate.add_member("data/unlisted", b"hidden")),
    "the end": generate.plain(end=bytes(3 * 512)),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_of_a_damaged_archive_nothing_is_written(name: str, tmp_path: Path) -> None:
    path, out = tmp_path / "a.tar.zst", tmp_path / "out" / "b.tar.zst"
    path.write_bytes(DAMAGED[name].data())
    out.parent.mkdir()
    with pytest.raises(InvalidArchiveError):
        repack(str(path), str(out))
    assert [*out.parent.iterdir()] == []


def test_what_is_there_stays_unless_asked(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.zst"
    data = (SAMPLES / "good" / "minimal.tar.zst").read_bytes()
    path.write_bytes(data)
    with pytest.raises(ArchiveExistsError):
        repack(str(path), str(path))
    assert path.read_bytes() == data
    repack(str(path), str(path), overwrite=True)  # onto itself
    assert codes(path) == []
    with pytest.raises(UsageError):
        repack(str(path), str(tmp_path / "b.tar.zst"), frame_bytes=1)
