"""Archives made for tests: good ones by the writer, broken ones by hand."""

from __future__ import annotations

import hashlib
import io
from array import array
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.container import bag
from mlflow_exim_plugin.container.frames import (
    FOOTER_MAGIC,
    INDEX_MAGIC,
    SeekTable,
    compress_frame,
    skippable_frame,
)
from mlflow_exim_plugin.container.reader import ArchiveReader
from mlflow_exim_plugin.container.tail import Footer, MemberIndex
from mlflow_exim_plugin.container.tarball import END_OF_TAR, padding_bytes, tar_header
from mlflow_exim_plugin.container.writer import ArchiveWriter
from mlflow_exim_plugin.errors import EximError, InvalidArchiveError, UnsupportedFormatError
from mlflow_exim_plugin.verification.archive import verify_archive

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

BASE = "bag"
PAYLOAD = {"data/a.txt": b"alpha", "data/b/c.json": b'{"c": 1}', "data/b/d.bin": b"\0" * 600}


class MemorySource:
    """A RangeSource over bytes."""

    at_once = 1

    def __init__(self, data: bytes) -> None:
        self.name = "memory"
        self.data = data
        self.size_bytes = len(data)
        self.requests = 0
        self.bytes_read = 0
        self.is_closed = False

    def read_range(self, start: int, end: int) -> bytes:
        assert 0 <= start <= end <= self.size_bytes
        self.requests += 1
        self.bytes_read += end - start
        return self.data[start:end]

    def close(self) -> None:
        self.is_closed = True


def build(members: Mapping[str, bytes], **options: Any) -> bytes:
    """Return an archive by the real writer."""
    file = io.BytesIO()
    with ArchiveWriter(file, **{"base_directory": BASE, "workers": 0, **options}) as writer:
        for path, data in members.items():
            writer.add(path, data)
    return file.getvalue()


def opened(data: bytes, **options: Any) -> ArchiveReader:
    return ArchiveReader.from_source(MemorySource(data), **options)


def contents(reader: ArchiveReader) -> dict[str, bytes]:
    return {path: reader.read(path) for path in reader.paths()}


def codes_of(data: bytes) -> set[str]:
    """Return the rules an archive breaks, found when it is opened or verified."""
    try:
        findings = verify_archive(opened(data))
    except InvalidArchiveError as error:
        return {finding.code for finding in error.findings}
    except UnsupportedFormatError as error:
        return {error.message.rpartition("(")[2].rstrip(")")}
    return {finding.code for finding in findings}


def is_accepted(data: bytes) -> dict[str, bytes] | None:
    """Return all members of an archive that opens and verifies, None when it is refused.

    Anything but an EximError passes through and fails the test.
    """
    try:
        reader = opened(data)
        if any(finding.code.startswith("E") for finding in verify_archive(reader)):
            return None
        return contents(reader)
    except EximError:
        return None


@dataclass
class Entry:
    """One member of a tar stream made by hand."""

    path: str
    data: bytes = b""
    header: bytes = b""
    padding: bytes | None = None

    def blocks(self) -> tuple[bytes, bytes]:
        header = self.header or tar_header(f"{BASE}/{self.path}", len(self.data))
        padding = self.padding
        if padding is None:
            padding = bytes(padding_bytes(len(self.data)))
        return header, self.data + padding


@dataclass
class Forgery:
    """An archive whose every part can be replaced; without changes it is a good one."""

    payload: Mapping[str, bytes] = field(default_factory=lambda: dict(PAYLOAD))
    manifest: bytes | None = None
    tags: Mapping[str, bytes | None] = field(default_factory=dict)
    tag_manifest: bytes | None = None
    entries: Callable[[list[Entry]], list[Entry]] = list
    end: bytes = END_OF_TAR
    rows: Callable[[dict[str, tuple[int, int]]], None] = lambda _: None
    compress: Callable[[bytes], bytes] = lambda data: compress_frame(data, 3)
    frames: Callable[[list[bytes], list[int]], None] = lambda _frames, _sizes: None
    index: Callable[[bytes], bytes] = lambda data: data
    index_magic: int = INDEX_MAGIC
    footer: Mapping[str, Any] = field(default_factory=dict)
    footer_bytes: Callable[[bytes], bytes] = lambda data: data
    table: Callable[[bytearray], None] = lambda _: None
    finish: Callable[[bytes], bytes] = lambda data: data

    def data(self) -> bytes:
        manifest = self.manifest
        if manifest is None:
            manifest = manifest_of(self.payload)
        oxum = sum(map(len, self.payload.values())), len(self.payload)
        tag_files: dict[str, bytes | None] = {
            bag.BAGIT: bag.BAGIT_CONTENT,
            bag.BAG_INFO: bag.bag_info_content({}, *oxum),
            bag.MANIFEST: manifest,
            **self.tags,
        }
        tags = {path: data for path, data in tag_files.items() if data is not None}
        tag_manifest = manifest_of(tags) if self.tag_manifest is None else self.tag_manifest
        members = {**self.payload, **tags, bag.TAG_MANIFEST: tag_manifest}
        entries = self.entries([Entry(path, data) for path, data in members.items()])
        pieces, places = [], {}
        position = 0
        for entry in entries:
            header, body = entry.blocks()
            places[entry.path] = (position + len(header), len(entry.data))
            pieces.append(header + body)
            position += len(header) + len(body)
        self.rows(places)
        rows = [
            places.get(path, (0, 0))
            for path in [*sorted(tags), bag.TAG_MANIFEST, *sorted(self.payload)]
        ]
        if self.end:
            pieces.append(self.end)
        sizes = [len(piece) for piece in pieces]
        frames = [self.compress(piece) for piece in pieces]
        self.frames(frames, sizes)
        table = bytearray(b"".join(map(SeekTable.entry, frames, sizes)))
        start = sum(map(len, frames))
        index = MemberIndex(
            len(tags) + 1,
            array("Q", (row[0] for row in rows)),
            array("Q", (row[1] for row in rows)),
        )
        packed, index_bytes = index.encode()
        packed = self.index(packed)
        footer = Footer(
            root=hashlib.sha256(tag_manifest).hexdigest(),
            base_directory=BASE,
            members=len(rows),
            tar_bytes=sum(sizes),
            index_offset=start + 8,
            index_compressed_bytes=len(packed),
            index_bytes=index_bytes,
            index_sha256=hashlib.sha256(packed).hexdigest(),
        )
        tail = [
            skippable_frame(self.index_magic, packed),
            skippable_frame(
                FOOTER_MAGIC, self.footer_bytes(replace(footer, **self.footer).encode())
            ),
        ]
        for frame in tail:
            table += SeekTable.entry(frame, 0)
        self.table(table)
        return self.finish(b"".join([*frames, *tail, SeekTable.encode(bytes(table))]))


def manifest_of(members: Mapping[str, bytes]) -> bytes:
    return bag.manifest_content(
        (path, hashlib.sha256(members[path]).hexdigest()) for path in sorted(members)
    )
