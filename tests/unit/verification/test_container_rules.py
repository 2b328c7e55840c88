"""Every rule of the container has an archive that breaks it, and only it is what we find."""

from __future__ import annotations

import struct
import tarfile

import pytest
import zstandard

from mlflow_exim_plugin.container import bag
from mlflow_exim_plugin.container.frames import compress_frame
from mlflow_exim_plugin.container.tarball import tar_header
from mlflow_exim_plugin.schema.rules import RULES
from tests.unit.container.crafting import BASE, PAYLOAD, Entry, Forgery, codes_of, manifest_of


def with_payload(path: str, *more: str) -> Forgery:
    return Forgery(payload={path: b"x", **dict.fromkeys(more, b"y")})


def with_header(header: bytes) -> Forgery:
    """Forge the header of data/a.txt."""

    def change(entries: list[Entry]) -> list[Entry]:
        entries[0].header = header
        return entries

    return Forgery(entries=change)


def raw_header(path: str, **fields: object) -> bytes:
    info = tarfile.TarInfo(f"{BASE}/{path}")
    for name, value in {"size": len(PAYLOAD.get(path, b"")), "mode": 0o644, **fields}.items():
        setattr(info, name, value)
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8")


def other_field(start: int, content: bytes) -> bytes:
    """Return a good header with other bytes from ``start`` on, and their checksum."""
    header = bytearray(raw_header("data/a.txt"))
    header[start : start + len(content)] = content
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def with_prefix() -> bytes:
    """Return a good header that says its folder in the field ``prefix``."""
    header = bytearray(other_field(345, f"{BASE}/data".encode()))
    header[0:100] = b"a.txt".ljust(100, b"\0")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def zstd(data: bytes, *, checksum: bool = True, content_size: bool = True) -> bytes:
    compressor = zstandard.ZstdCompressor(write_checksum=checksum, write_content_size=content_size)
    return compressor.compress(data)


def appended(*entries: Entry) -> Forgery:
    return Forgery(entries=lambda listed: [*listed, *entries])


def link(path: str, target: str, base: str = BASE) -> Entry:
    return Entry(path, header=tar_header(f"{BASE}/{path}", 0, f"{base}/{target}"))


def linked(target: str, *, base: str = BASE, content: bytes = b"b") -> Forgery:
    """Forge data/b as a hard link."""
    return Forgery(
        payload={"data/a.txt": b"a", "data/b": content},
        entries=lambda entries: [entries[0], link("data/b", target, base), *entries[2:]],
    )


def empty_frame(frames: list[bytes], sizes: list[int]) -> None:
    frames.append(frames[-1])
    sizes.append(0)


def chained(entries: list[Entry]) -> list[Entry]:
    return [entries[0], link("data/b", "data/a.txt"), link("data/c", "data/b"), *entries[3:]]


def with_target_row(places: dict[str, tuple[int, int]]) -> None:
    for path in ("data/b", "data/c"):
        places[path] = places["data/a.txt"]


def size_of_the_index(table: bytearray) -> None:
    struct.pack_into("<I", table, len(table) - 2 * 12 + 4, 100)


def move_index_row(places: dict[str, tuple[int, int]]) -> None:
    offset, size_bytes = places["data/a.txt"]
    places["data/a.txt"] = (offset + 512, size_bytes)


def swap_magic(data: bytes) -> bytes:
    return data[:-4] + b"junk"


def damage_first_frame(frames: list[bytes], _sizes: list[int]) -> None:
    frame = bytearray(frames[2])
    frame[len(frame) // 2] ^= 0x10
    frames[2] = bytes(frame)


def claim_large_frame(table: bytearray) -> None:
    struct.pack_into("<I", table, 4, (64 << 20) + 1)


def wrong_checksum(table: bytearray) -> None:
    table[8] ^= 1


def one_byte_more(table: bytearray) -> None:
    struct.pack_into("<I", table, 0, struct.unpack_from("<I", table)[0] + 1)


def reserved_bit(data: bytes) -> bytes:
    return data[:-5] + bytes([data[-5] | 0x40]) + data[-4:]


def repeated(entries: list[Entry]) -> list[Entry]:
    return [Entry("data/a.txt", b"other"), *entries]


def dirty_padding(entries: list[Entry]) -> list[Entry]:
    entries[0].padding = b"!" * (512 - len(entries[0].data))
    return entries


def without_first(entries: list[Entry]) -> list[Entry]:
    return entries[1:]


def other_content(entries: list[Entry]) -> list[Entry]:
    entries[0].data = b"ALPHA"
    return entries


def other_manifest_content(entries: list[Entry]) -> list[Entry]:
    for entry in entries:
        if entry.path == bag.TAG_MANIFEST:
            entry.data = entry.data.replace(b"bagit", b"bagie")
    return entries


SPARSE = b"22 GNU.sparse.major=1\n"

BROKEN: dict[str, list[Forgery]] = {
    "E001": [with_payload(f"data/{name}") for name in ("../x", "./x", "a//b", "")],
    "E002": [
        with_payload(f"data/{name}") for name in ("a\\b", "a:b", "%41", "a\tb", "a\x85b", "a|b")
    ],
    "E003": [with_payload(f"data/{name}") for name in ("a.", "a ", " a", "a\u3000", "a./b")],
    "E004": [with_payload(f"data/{name}") for name in ("CON", "nul.txt", "a/com1", "LPT\u00b9.x")],
    "E005": [with_payload("data/e\u0301")],
    "E006": [with_payload("data/" + "a" * 241), with_payload("data" + "/" + "ab/" * 400 + "c")],
    "E007": [
        with_payload("data/A", "data/a"),
        with_payload("data/\u00c9", "data/\u00e9"),
        with_payload("data/stra\u00dfe", "data/STRASSE"),
    ],
    "E008": [with_payload("data/a", "data/A/b"), with_payload("data/a", "data/a/b/c")],
    "E009": [
        Forgery(manifest=manifest_of(PAYLOAD) + b"0" * 64 + b"  data/\xff\n"),
        Forgery(tags={bag.BAG_INFO: b"Payload-Oxum: \xff\n"}),
    ],
    "E010": [Forgery(finish=swap_magic), Forgery(finish=lambda data: data + b"junk")],
    "E011": [Forgery(finish=reserved_bit)],
    "E012": [
        Forgery(finish=lambda data: b"junk" + data),
        Forgery(finish=lambda data: data[4:]),
        Forgery(table=one_byte_more),
        Forgery(finish=lambda data: data + data),
    ],
    "E013": [Forgery(table=claim_large_frame)],
    "E014": [
        Forgery(compress=lambda data: zstd(data, checksum=False)),
        Forgery(compress=lambda data: zstd(data, content_size=False)),
        Forgery(frames=empty_frame),
        Forgery(table=size_of_the_index),
    ],
    "E015": [Forgery(frames=damage_first_frame)],
    "E016": [Forgery(table=wrong_checksum)],
    "E017": [
        Forgery(footer_bytes=lambda data: data[:-1]),
        Forgery(footer_bytes=lambda _: b"[" * 50_000),
        Forgery(footer_bytes=lambda data: data.replace(b'"members"', b'"m"')),
        Forgery(footer_bytes=lambda data: data.replace(b'"members":7', b'"members":7.0')),
        Forgery(footer_bytes=lambda data: data.replace(b'"members":7', b'"members":NaN')),
        Forgery(footer_bytes=lambda data: data.replace(b"{", b'{"format":"x",', 1)),
        Forgery(footer_bytes=lambda data: b"\xff" + data),
        Forgery(footer={"root": "0" * 63}),
        Forgery(footer={"root": "A" * 64}),
    ],
    "E018": [Forgery(footer_bytes=lambda data: data.replace(b"mlflow-exim-archive", b"other"))],
    "E019": [Forgery(footer={"version": (2, 0)}), Forgery(footer={"version": (0, 9)})],
    "E020": [Forgery(footer={"required_features": ("holes",)})],
    "E021": [Forgery(footer_bytes=lambda data: data.replace(b'"sha256","root"', b'"md5","root"'))],
    "E022": [
        Forgery(footer={"base_directory": ".."}),
        Forgery(footer={"base_directory": "a/b"}),
        appended(Entry("x", header=tar_header("elsewhere/x", 0))),
    ],
    "E023": [Forgery(footer={"tar_bytes": 1})],
    "E024": [Forgery(footer={"members": 9}), Forgery(manifest=manifest_of({"data/a.txt": b""}))],
    "E025": [
        Forgery(index_magic=0x184D2A50),
        Forgery(footer={"index_sha256": "0" * 64}),
        Forgery(footer={"index_bytes": 17}),
        Forgery(footer={"index_offset": 8}),
        Forgery(index=lambda _: b"no zstd data"),
    ],
    "E026": [
        Forgery(rows=move_index_row),
        linked("data/a.txt", content=b"a"),
        Forgery(rows=lambda places: places.update({bag.MANIFEST: (1 << 62, 100)})),
        Forgery(rows=lambda places: places.update({bag.TAG_MANIFEST: (0, 1 << 40)})),
    ],
    "E027": [Forgery(footer={"root": "0" * 64}), Forgery(entries=other_manifest_content)],
    "E028": [
        Forgery(manifest=manifest_of(PAYLOAD)[:-1]),
        Forgery(manifest=manifest_of(PAYLOAD).replace(b"  ", b" *")),
        Forgery(manifest=manifest_of(PAYLOAD).upper()),
        Forgery(manifest=b"".join(reversed(manifest_of(PAYLOAD).splitlines(keepends=True)))),
        Forgery(manifest=b"\n"),
    ],
    "E029": [Forgery(entries=other_content)],
    "E030": [
        Forgery(payload={"elsewhere/x": b""}),
        Forgery(tags={"data/x": b""}),
        Forgery(tags={bag.MANIFEST: None}),
        appended(Entry("data/unlisted", b"hidden")),
        appended(Entry("../../escape", b"hidden")),
    ],
    "E031": [Forgery(entries=without_first)],
    "E032": [
        Forgery(tags={bag.BAGIT: None}),
        Forgery(tags={bag.BAGIT: b"BagIt-Version: 0.97\nTag-File-Character-Encoding: UTF-8\n"}),
    ],
    "E033": [
        Forgery(tags={bag.BAG_INFO: b"Payload-Oxum: 1.1\n"}),
        Forgery(tags={bag.BAG_INFO: None}),
    ],
    "E034": [Forgery(tags={bag.FETCH: b"http://x 1 data/x\n"})],
    "E035": [
        with_header(bytes(148) + tar_header(f"{BASE}/data/a.txt", 5)[148:]),
        with_header(tar_header(f"{BASE}/data/a.txt", 5).replace(b"ustar\x0000", b"ustar  \0")),
        with_header(raw_header("data/a.txt", pax_headers={"GNU.sparse.major": "1"})),
        with_header(raw_header("data/a.txt", pax_headers={"mtime": "1.5"})),
    ],
    "E036": [
        appended(
            Entry("data/l", header=raw_header("data/l", type=tarfile.SYMTYPE, linkname="/etc"))
        ),
        appended(Entry("data/d", header=raw_header("data/d", type=tarfile.DIRTYPE))),
        appended(Entry("data/s", header=raw_header("data/s", type=tarfile.GNUTYPE_SPARSE))),
    ],
    "E037": [
        linked("data/b"),
        linked("data/a.txt"),
        linked("data/none"),
        linked("../x"),
        linked(bag.MANIFEST),
        linked("data/a.txt", base="/etc", content=b"a"),
        Forgery(
            payload=dict.fromkeys(["data/a.txt", "data/b", "data/c"], b"a"),
            entries=chained,
            rows=with_target_row,
        ),
    ],
    "E038": [Forgery(entries=repeated)],
    "E039": [
        Forgery(entries=dirty_padding),
        Forgery(end=b""),
        Forgery(end=bytes(512)),
        Forgery(end=bytes(1536)),
        Forgery(end=bytes(1024) + tar_header("hidden", 0)),
    ],
    "W001": [
        with_header(raw_header("data/a.txt", mtime=1)),
        with_header(raw_header("data/a.txt", mode=0o4777)),
        with_header(raw_header("data/a.txt", uname="root")),
        with_header(raw_header("data/a.txt", pax_headers={"path": f"{BASE}/data/a.txt"})),
        with_header(raw_header("data/a.txt", pax_headers={"size": "5"})),
        with_header(other_field(100, b"garbage!")),
    ],
    "W002": [Forgery(payload={"data/x": bytes(5 << 20)})],
}
# What cannot be broken alone.
ALSO_BROKEN = {
    "E016": {"E029"},
    "E026": {"E033"},
    "E031": {"E033"},
    "E037": {"E026", "E033"},
    "E038": {"E026", "E029"},
}
CONTAINER_CODES = {code for code in RULES if int(code[1:]) < (50 if code[0] == "E" else 20)}
CASES = [
    pytest.param(code, forgery, id=f"{code}-{number}")
    for code, forgeries in BROKEN.items()
    for number, forgery in enumerate(forgeries)
]


def test_every_rule_of_the_container_is_broken_here() -> None:
    assert set(BROKEN) == CONTAINER_CODES


def test_a_forgery_without_changes_is_good() -> None:
    assert codes_of(Forgery().data()) == set()


@pytest.mark.parametrize(("code", "forgery"), CASES)
def test_broken_rule_is_found(code: str, forgery: Forgery) -> None:
    assert codes_of(forgery.data()) - ALSO_BROKEN.get(code, set()) == {code}


@pytest.mark.parametrize(
    "header",
    [
        pytest.param(other_field(100, b"000644 \0"), id="mode with a space"),
        pytest.param(other_field(329, b"0000000\0" * 2), id="device numbers"),
        pytest.param(other_field(500, b"\1" * 12), id="end of the block"),
        pytest.param(with_prefix(), id="a prefix in place of a pax record"),
    ],
)
def test_what_the_text_does_not_name_in_a_tar_header_means_nothing(header: bytes) -> None:
    assert codes_of(with_header(header).data()) == set()


def test_good_links_are_accepted() -> None:
    forgery = Forgery(
        payload={"data/a.txt": b"a", "data/b": b"a"},
        entries=lambda entries: [entries[0], link("data/b", "data/a.txt"), *entries[2:]],
        rows=lambda places: places.update({"data/b": places["data/a.txt"]}),
    )
    assert codes_of(forgery.data()) == set()


def test_the_label_of_the_oxum_may_have_any_case() -> None:
    info = f"payload-OXUM: {sum(map(len, PAYLOAD.values()))}.{len(PAYLOAD)}\n"
    assert codes_of(Forgery(tags={bag.BAG_INFO: info.encode()}).data()) == set()


def test_minor_versions_and_unknown_keys_are_accepted() -> None:
    assert codes_of(Forgery(footer={"version": (1, 7)}).data()) == set()
    more = Forgery(footer_bytes=lambda data: data.replace(b"{", b'{"later": [1.5, null],', 1))
    assert codes_of(more.data()) == set()


def test_zip_bomb_is_refused_before_it_is_allocated() -> None:
    # A gigabyte of zeros in 32 kB, declared as what it is, and declared as something small.
    bomb = compress_frame(bytes(128 << 20), 3)

    def explode(frames: list[bytes], sizes: list[int]) -> None:
        frames[0] = bomb
        sizes[0] = 128 << 20

    def lie(frames: list[bytes], _sizes: list[int]) -> None:
        frames[0] = bomb

    assert codes_of(Forgery(frames=explode).data()) == {"E013"}
    assert "E014" in codes_of(Forgery(frames=lie).data())


def test_window_larger_than_the_limit_is_refused() -> None:
    def with_large_window(data: bytes) -> bytes:
        # Checksum and 4-byte content size flagged, window 2^(10+17) bytes, one raw last block.
        header = zstandard.MAGIC_NUMBER.to_bytes(4, "little") + bytes([0x84, 17 << 3])
        block = (len(data) << 3 | 1).to_bytes(3, "little")
        return header + len(data).to_bytes(4, "little") + block + data + zstd(data)[-4:]

    frame = with_large_window(b"x")
    assert zstandard.ZstdDecompressor(max_window_size=1 << 27).decompress(frame) == b"x"
    assert codes_of(Forgery(compress=with_large_window).data()) == {"E013"}
