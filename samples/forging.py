"""A second writer of the format, made from the text of the spec alone, whose every byte can be bent.

It shares no code with the package: what it writes unbent must pass ``verify`` (a test says so), and
what it writes bent must fail with the code that was meant. One frame holds one tar member.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
import tarfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import zstandard

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

BASE = "sample"
INDEX_MAGIC, FOOTER_MAGIC, SEEK_TABLE_MAGIC = 0x184D2A5B, 0x184D2A5C, 0x184D2A5E
BLOCK_BYTES = 512


@dataclass
class TarMember:
    """One member of the tar stream.

    Attributes:
        path: Path below the base directory; names the member's row in the index.
        data: What follows the header.
        header: The header blocks; made from path and data when empty.
        padding: Replaces the zero bytes behind the data.
    """

    path: str
    data: bytes = b""
    header: bytes = b""
    padding: bytes | None = None

    def blocks(self) -> tuple[bytes, bytes]:
        """Return the header, and the data with their padding."""
        header = self.header or tar_header(f"{BASE}/{self.path}", size=len(self.data))
        padding = self.padding
        if padding is None:
            padding = bytes(-len(self.data) % BLOCK_BYTES)
        return header, self.data + padding


@dataclass
class Forgery:
    """An archive to be written; every field after ``tags`` bends one part of it.

    Attributes:
        payload: Members in ``data/``, by path.
        tags: Tag files beside those that every archive has; None leaves one of those out.
        manifest: Replaces manifest-sha256.txt.
        tag_manifest: Replaces tagmanifest-sha256.txt.
        members: Changes the list of tar members.
        end: The end of the tar stream.
        rows: Changes the index's rows: path to (offset, size).
        compress: Makes one frame.
        frames: Changes the frames and their decompressed sizes.
        pack_index: Changes the compressed index.
        index_magic: Magic of the index's frame.
        footer: Changes the footer's document.
        footer_bytes: Changes the footer's bytes.
        table: Changes the entries of the seek table.
        file: Changes the finished file.
    """

    payload: Mapping[str, bytes]
    tags: Mapping[str, bytes | None] = field(default_factory=dict)
    manifest: bytes | None = None
    tag_manifest: bytes | None = None
    members: Callable[[list[TarMember]], list[TarMember]] = list
    end: bytes = bytes(2 * BLOCK_BYTES)
    rows: Callable[[dict[str, tuple[int, int]]], None] = lambda _: None
    compress: Callable[[bytes], bytes] = lambda data: zstd_frame(data)
    frames: Callable[[list[bytes], list[int]], None] = lambda _frames, _sizes: None
    pack_index: Callable[[bytes], bytes] = lambda packed: packed
    index_magic: int = INDEX_MAGIC
    footer: Callable[[dict[str, Any]], None] = lambda _: None
    footer_bytes: Callable[[bytes], bytes] = lambda data: data
    table: Callable[[bytearray], None] = lambda _: None
    file: Callable[[bytes], bytes] = lambda data: data

    def data(self) -> bytes:
        """Return the archive's bytes."""
        tags = self._tag_files()
        tag_manifest = self.tag_manifest if self.tag_manifest is not None else manifest(tags)
        all_files = {**tags_first(tags), **self.payload, **tags, TAG_MANIFEST: tag_manifest}
        tar = self.members([TarMember(path, data) for path, data in all_files.items()])
        pieces: list[bytes] = []
        places: dict[str, tuple[int, int]] = {}
        position = 0
        for member in tar:
            header, body = member.blocks()
            places[member.path] = (position + len(header), len(member.data))
            pieces.append(header + body)
            position += len(header) + len(body)
        self.rows(places)
        if self.end:
            pieces.append(self.end)
        sizes = [len(piece) for piece in pieces]
        frames = [self.compress(piece) for piece in pieces]
        self.frames(frames, sizes)
        order = [*sorted(tags, key=utf8), TAG_MANIFEST, *sorted(self.payload, key=utf8)]
        return self._with_tail(
            frames, sizes, [places.get(path, (0, 0)) for path in order], tags, tag_manifest
        )

    def _tag_files(self) -> dict[str, bytes]:
        payload_bytes = sum(map(len, self.payload.values()))
        tags: dict[str, bytes | None] = {
            "bagit.txt": b"BagIt-Version: 1.0\nTag-File-Character-Encoding: UTF-8\n",
            "bag-info.txt": b"Payload-Oxum: %d.%d\n" % (payload_bytes, len(self.payload)),
            "manifest-sha256.txt": manifest(self.payload)
            if self.manifest is None
            else self.manifest,
            **self.tags,
        }
        return {path: data for path, data in tags.items() if data is not None}

    def _with_tail(
        self,
        frames: list[bytes],
        sizes: list[int],
        rows: list[tuple[int, int]],
        tags: Mapping[str, bytes],
        tag_manifest: bytes,
    ) -> bytes:
        tag_count = len(tags) + 1
        columns = [row[0] for row in rows] + [row[1] for row in rows]
        index = struct.pack(f"<{2 + len(columns)}Q", tag_count, len(rows) - tag_count, *columns)
        packed = self.pack_index(zstd_frame(index))
        start = sum(map(len, frames))
        footer = {
            "format": "mlflow-exim-archive",
            "version": [1, 3],
            "required_features": [],
            "algorithm": "sha256",
            "root": hashlib.sha256(tag_manifest).hexdigest(),
            "base_directory": BASE,
            "members": len(rows),
            "tar_bytes": sum(sizes),
            "index": {
                "offset": start + 8,
                "compressed_bytes": len(packed),
                "bytes": len(index),
                "sha256": hashlib.sha256(packed).hexdigest(),
            },
            "open_offset": 0,
        }
        self.footer(footer)
        tail = [
            skippable_frame(self.index_magic, packed),
            skippable_frame(FOOTER_MAGIC, self.footer_bytes(json.dumps(footer).encode())),
        ]
        table = bytearray()
        for frame, size in zip(frames, sizes, strict=True):
            table += struct.pack("<II", len(frame), size) + frame[-4:]
        for frame in tail:
            table += struct.pack("<III", len(frame), 0, 0)
        self.table(table)
        end = struct.pack("<IBI", len(table) // 12, 0x80, 0x8F92EAB1)
        seek_table = skippable_frame(SEEK_TABLE_MAGIC, bytes(table) + end)
        return self.file(b"".join([*frames, *tail, seek_table]))


TAG_MANIFEST = "tagmanifest-sha256.txt"


def tags_first(tags: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return what comes before the payload: exim.json, so that a reader of the stream meets it."""
    return {path: data for path, data in tags.items() if path == "exim.json"}


def utf8(text: str) -> bytes:
    """Return the bytes that paths are sorted by."""
    return text.encode("utf-8", "surrogateescape")


def manifest(members: Mapping[str, bytes]) -> bytes:
    """Return the manifest of these members."""
    lines = (
        hashlib.sha256(members[path]).hexdigest().encode() + b"  " + utf8(path) + b"\n"
        for path in sorted(members, key=utf8)
    )
    return b"".join(lines)


def content_root(members: Mapping[str, bytes]) -> str:
    """Return the content root of members of which no name meets another's."""
    lines: list[tuple[str, str]] = []
    traces: dict[str, list[str]] = {}
    for path, data in members.items():
        folder, _, name = path.rpartition("/")
        if "/artifacts/" in path or "/attachments/" in path:
            continue
        if folder.endswith("/traces") and name.startswith("traces-"):
            stated = pq.read_table(io.BytesIO(data)).column("content_digest").to_pylist()
            traces.setdefault(folder, []).extend(map(_hex_of, stated))
        elif path.endswith(".json") and not name.startswith("part-"):
            if digest := json.loads(data).get("info", {}).get("content_digest"):
                lines.append((path, _hex_of(digest)))
    for folder, digests in traces.items():
        listed = "".join(f"{digest}\n" for digest in sorted(digests))
        lines.append((folder, hashlib.sha256(listed.encode()).hexdigest()))
    text = "".join(f"{digest}  {path}\n" for path, digest in sorted(lines))
    return hashlib.sha256(text.encode()).hexdigest()


def _hex_of(digest: str) -> str:
    return digest.removeprefix("sha256:")


def zstd_frame(data: bytes, **options: bool) -> bytes:
    """Return one zstd frame with content size and checksum."""
    settings: dict[str, Any] = {"write_checksum": True, "write_content_size": True, **options}
    return zstandard.ZstdCompressor(level=3, **settings).compress(data)


def skippable_frame(magic: int, payload: bytes) -> bytes:
    """Return a frame that zstd decoders pass over."""
    return struct.pack("<II", magic, len(payload)) + payload


def tar_header(name: str, **fields: Any) -> bytes:
    """Return the header blocks of a tar member; fields are those of ``tarfile.TarInfo``."""
    info = tarfile.TarInfo(name)
    info.mode = 0o644
    for key, value in fields.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
