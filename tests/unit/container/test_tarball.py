from __future__ import annotations

import io
import tarfile

import pytest

from mlflow_exim_plugin.container.tarball import read_entry, tar_header
from mlflow_exim_plugin.errors import InvalidArchiveError

NAMES = ["a", "b/" + "x" * 98, "b/" + "x" * 99, "d/\u65e5\u672c\u8a9e", "x" * 400]
SIZES = [0, 1, 511, 8**11 - 1, 8**11, 1 << 40]


def by_tarfile(name: str, size_bytes: int, link_name: str = "") -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size_bytes
    if link_name:
        info.type, info.linkname = tarfile.LNKTYPE, link_name
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size_bytes", SIZES)
def test_header_is_what_tarfile_writes(name: str, size_bytes: int) -> None:
    assert tar_header(name, size_bytes) == by_tarfile(name, size_bytes)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("target", NAMES)
def test_link_header_is_what_tarfile_writes(name: str, target: str) -> None:
    assert tar_header(name, 0, target) == by_tarfile(name, 0, target)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size_bytes", SIZES)
def test_header_read_again(name: str, size_bytes: int) -> None:
    header = tar_header(name, size_bytes)
    entry = read_entry(io.BytesIO(header).read)
    assert entry is not None
    assert (entry.name, entry.size_bytes, entry.link_name) == (name, size_bytes, "")
    assert entry.oddity == ""


def test_members_of_more_than_8_gib_have_a_pax_size() -> None:
    """What tar and libarchive need; the sparse file of such a member takes too long here."""
    assert b" size=8589934592\n" in tar_header("a", 8 << 30)
    assert b"PaxHeader" not in tar_header("a", (8 << 30) - 1)


def test_every_flip_of_a_header_is_refused_or_seen() -> None:
    for header in (tar_header("bag/a", 5), tar_header("bag/\u00e9", 5), tar_header("b", 0, "a")):
        good = read_entry(io.BytesIO(header).read)
        for position in range(len(header)):
            damaged = bytearray(header)
            damaged[position] ^= 1
            try:
                entry = read_entry(io.BytesIO(bytes(damaged)).read)
            except InvalidArchiveError:
                continue
            # In the body of a pax header, which no checksum covers: then the name has changed.
            assert entry != good


def test_a_name_split_by_other_writers_is_joined() -> None:
    info = tarfile.TarInfo("p" * 90 + "/" + "n" * 90)
    entry = read_entry(io.BytesIO(info.tobuf(tarfile.USTAR_FORMAT)).read)
    assert entry is not None
    assert entry.name == info.name


def test_zero_block_is_the_end() -> None:
    assert read_entry(io.BytesIO(bytes(512)).read) is None


@pytest.mark.parametrize(
    "record",
    [b"11 path=a\n", b"12 path=ab\n12 path=ab\n", b"8 path=\n", b"9 path=\0\n", b"10 size=-1\n",
     b"99999 path=a\n", b"5 path=abc\n", b"9 mtime=\n", b"10path=abc\n", b"12 path=ab!"],
)  # fmt: skip
def test_bad_pax_records(record: bytes) -> None:
    info = tarfile.TarInfo("././@PaxHeader")
    info.type, info.size = tarfile.XHDTYPE, len(record)
    stream = info.tobuf(tarfile.USTAR_FORMAT) + record.ljust(512, b"\0") + tar_header("x", 0)
    with pytest.raises(InvalidArchiveError) as caught:
        read_entry(io.BytesIO(stream).read)
    assert caught.value.findings[0].code == "E035"
