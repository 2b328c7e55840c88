"""Writing an archive in one pass: no seek, no temporary copy, bounded memory.

The order of bytes: members as they are given, small ones packed into group frames, large ones in
frames of their own; then the bag's tag files from a new frame on; then the end of the tar stream in
a frame; then index, footer and seek table. Source: spec/v1/archive.md.
"""

from __future__ import annotations

import hashlib
from array import array
from typing import TYPE_CHECKING, Protocol

from mlflow_exim_plugin.container import bag
from mlflow_exim_plugin.container.frame_writer import (
    FrameWriter,
    default_workers,
    has_to_pay,
    paid_pieces,
)
from mlflow_exim_plugin.container.frames import (
    FOOTER_MAGIC,
    INDEX_MAGIC,
    SKIPPABLE_HEADER_BYTES,
)
from mlflow_exim_plugin.container.member_stream import Member
from mlflow_exim_plugin.container.paths import PathRegister, check_member_path
from mlflow_exim_plugin.container.tail import Footer, MemberIndex
from mlflow_exim_plugin.container.tarball import END_OF_TAR, padding_bytes, tar_header
from mlflow_exim_plugin.errors import EximError, NotFoundError, UsageError
from mlflow_exim_plugin.schema.digests import sha256_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import TracebackType

    from typing_extensions import Self

    from mlflow_exim_plugin.container.earlier import Earlier, EarlierMember
    from mlflow_exim_plugin.container.reader import ArchiveReader
    from mlflow_exim_plugin.storage.output import Writable

__all__ = ["ArchiveWriter", "Member", "Readable", "frame_bytes"]

SMALL_MEMBER_BYTES = 256 << 10
"""Largest member that shares a frame with others."""
GROUP_FRAME_BYTES = 128 << 10
"""A group frame is closed when it holds this much."""
LARGE_FRAME_BYTES = 1 << 20
"""Piece of a large member in one frame."""
PARQUET_FRAME_BYTES = 256 << 10
"""The same for Parquet, which is read by small ranges."""
IN_MEMORY_BYTES = 8 << 20
"""Largest member that is read whole before it is written, so that equal ones become links."""


class Readable(Protocol):
    """What a member's bytes come from."""

    def read(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes; none at the end."""


class ArchiveWriter:
    """Writes one archive; the caller owns the file and makes it appear (``atomic_output``).

    As a context manager it closes the archive at the end of the block, and leaves it unfinished,
    which no reader accepts, when the block raises.

    The root depends on the members' paths and contents (and on ``bag_info``) only; the file's bytes
    also on their order, the level, the base directory and the version of libzstd, never on
    ``workers``.

    Args:
        file: Binary file; only ``write`` is used.
        base_directory: Top-level directory of the tar stream, see ``base_directory_for``.
        level: zstd's compression level.
        workers: Threads that compress; 0 for none, None for one a core up to 4.
        required_features: What a reader must know to read the archive right.
        bag_info: Fields for bag-info.txt.
        earlier: What is safe of an earlier attempt, in the same file. As long as the same members
            come again they are there already; from the first other one on the file is written anew.

    Raises:
        UsageError: A level, number of workers or field that cannot be.
        UnsafePathError: The base directory is not one allowed segment.
    """

    def __init__(
        self,
        file: Writable,
        *,
        base_directory: str,
        level: int = 3,
        workers: int | None = None,
        required_features: Sequence[str] = (),
        bag_info: Mapping[str, str] | None = None,
        earlier: Earlier | None = None,
    ) -> None:
        check_member_path(base_directory)
        if "/" in base_directory:
            raise UsageError(f"base directory {base_directory!r} is more than one segment")
        self.base_directory = base_directory
        self.required_features = tuple(required_features)
        self._bag_info = dict(bag_info or {})
        bag.bag_info_content(self._bag_info, 0, 0)  # so that a wrong field is found at once
        workers = default_workers() if workers is None else workers
        self._level = level
        self._frames = FrameWriter(file, level=level, workers=workers)
        self._group = bytearray()
        # One row a member, in columns: a million members must fit into memory.
        self._register = PathRegister()
        self._paths: list[str] = []
        self._digests = bytearray()
        self._offsets = array("Q")
        self._sizes_bytes = array("Q")
        self._originals: dict[bytes, int] = {}
        self._link_targets: dict[int, int] = {}
        self._root = ""
        self._is_open = True
        self._earlier = earlier if earlier and earlier.members else None

    @property
    def root(self) -> str:
        """Root digest, lower-case hex; only after :meth:`close`.

        Raises:
            UsageError: The archive is not closed yet.
        """
        if not self._root:
            raise UsageError("an archive has a root only after it is closed")
        return self._root

    @property
    def members(self) -> int:
        """How many there are so far."""
        return len(self._paths)

    @property
    def bytes_written(self) -> int:
        """Size of the file so far."""
        return self._frames.bytes_written

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        elif self._is_open:
            self._abandon()

    def has(self, path: str) -> bool:
        """Tell whether this very path has been added."""
        row = self._register.row(path)
        return row is not None and self._paths[row] == path

    def is_taken(self, path: str) -> bool:
        """Tell whether a path has been added that equals this one but for case or normalization."""
        return self._register.row(path) is not None

    def free_path(self, path: str) -> str:
        """Return ``path``, or with ``~2``, ``~3``... in it when it would collide.

        Case, Unicode normalization and folders that are files count as collisions.
        """
        return self._register.free_path(path)

    def add(self, path: str, data: bytes) -> Member:
        """Add a member from memory; up to 8 MiB, one with equal bytes becomes a hard link.

        Args:
            path: Relative to the base directory; in ``data/`` it is payload, else a tag file.
            data: The member's bytes.

        Raises:
            UnsafePathError: The path is not allowed, or collides with one that is there.
            UsageError: The path is the bag's own, or the archive is closed.
            StoreError: The file cannot be written.
        """
        self._check_new(path)
        return self._add_bytes(path, bytes(data))

    def add_stream(self, path: str, size_bytes: int, stream: Readable) -> Member:
        """Add a member from a stream of a size known before.

        Up to 8 MiB are read first, and the size is what was really there; when the source raises
        ``OSError`` or ``EximError``, nothing is added. A larger member keeps the size announced: of
        a source that gives more, the rest is left out; where one gives less or raises, zero bytes
        follow, so that the archive and everything else in it stays good. All these come back as not
        complete.

        Args:
            path: Relative to the base directory.
            size_bytes: The size announced.
            stream: Gives the bytes; not closed.

        Raises:
            UnsafePathError: The path is not allowed, or collides with one that is there.
            UsageError: The path is the bag's own, the size is negative, or the archive is closed.
            StoreError: The file cannot be written.
        """
        self._check_new(path)
        if size_bytes < 0:
            raise UsageError(f"{path}: {size_bytes} is no size")
        source = _CheckedStream(stream)
        if size_bytes > IN_MEMORY_BYTES:
            return self._add_large(path, size_bytes, source)
        data = source.take(size_bytes + 1)
        if len(data) > size_bytes:
            data += source.take(IN_MEMORY_BYTES + 1 - len(data))
        if source.error:
            self._register.remove(path)
            return source.judged(Member(path, 0, hashlib.sha256().hexdigest()))
        if len(data) > IN_MEMORY_BYTES:
            data = data[:size_bytes]
            source.is_cut = True
        member = self._add_bytes(path, data)
        return source.judged(member)

    def copy(self, path: str, reader: ArchiveReader, source_path: str) -> Member:
        """Add a member of another archive.

        Where its frames hold nothing else they are taken as they are: not decompressed, and so not
        compared with its digest, which is the manifest's there. Anything else is compared.

        Args:
            path: Relative to the base directory.
            reader: The other archive.
            source_path: Path of the member there.

        Raises:
            InvalidArchiveError: The member is damaged; nothing is added.
            NotFoundError: The other archive has no such member.
            UnsafePathError: The path is not allowed, or collides with one that is there.
            UsageError: The path is the bag's own, or the archive is closed.
            StoreError: One of the two files cannot be read or written.
        """
        member = reader.member(source_path)
        digest = bytes.fromhex(member.sha256)
        is_payload = path.startswith(bag.PAYLOAD)
        own = reader.own_frames(source_path)
        # What is small is read before it is taken in, so that nothing is left of a damaged one.
        data = b""
        if own is None and member.size_bytes <= IN_MEMORY_BYTES:
            data = reader.read(source_path)
        self._check_new(path)
        if is_payload and member.size_bytes and digest in self._originals:
            return self._add_link(path, self._originals[digest])
        if own is None and member.size_bytes > IN_MEMORY_BYTES:
            with reader.open_member(source_path) as stream:
                return self._add_large(path, member.size_bytes, _CheckedStream(stream))
        if own is None:
            return self._add_bytes(path, data)
        if is_payload:
            self._originals[digest] = len(self._paths)
        if kept := self._kept(path, member.size_bytes, digest):
            return kept
        self._put(tar_header(self._full_name(path), member.size_bytes))
        self._cut()
        offset = self._position
        for number, frame in reader.frames.compressed(*own):
            self._frames.copy_frame(frame, reader.frames.table.size_bytes(number))
        self._end_member(member.size_bytes)
        return self._row(path, offset, member.size_bytes, digest)

    def kept(self, path: str, size_bytes: int) -> Member | None:
        """Add a member that is safe from an earlier attempt; None where its content is needed.

        Args:
            path: Relative to the base directory.
            size_bytes: The size announced.

        Raises:
            UnsafePathError: The path is not allowed, or collides with one that is there.
            StoreError: The file cannot be written.
        """
        if self._earlier is None:
            return None
        one = self._earlier.members[len(self._paths)]
        if (one.path, one.size_bytes) != (path, size_bytes) or path not in self._earlier.listed:
            return None
        self._check_new(path)
        return self._keep(one)

    def add_link(self, path: str, target_path: str) -> Member:
        """Add a member with the content of an earlier one, as a hard link.

        Raises:
            NotFoundError: No member has the target's path.
            UnsafePathError: The path is not allowed, or collides with one that is there.
            UsageError: The path is the bag's own, or the archive is closed.
            StoreError: The file cannot be written.
        """
        target = self._register.row(target_path)
        if target is None or self._paths[target] != target_path:
            raise NotFoundError(f"no member {target_path!r} to link to")
        self._check_new(path)
        return self._add_link(path, self._link_targets.get(target, target))

    def close(self) -> str:
        """Finish the archive and return its root; the file stays open. Again: the same root.

        Raises:
            UsageError: Writing was broken off.
            StoreError: The file cannot be written.
        """
        if self._root:
            return self._root
        self._check_open()
        try:
            self._root = self._finish()
        finally:
            self._abandon()
        return self._root

    def _check_open(self) -> None:
        if not self._is_open:
            raise UsageError("the archive is closed")

    def _check_new(self, path: str) -> None:
        self._check_open()
        check_member_path(path)
        if bag.is_reserved(path):
            raise UsageError(f"{path!r} is the bag's own")
        self._register.add(path, len(self._paths))

    def _abandon(self) -> None:
        self._is_open = False
        self._frames.abandon()

    def _add_bytes(self, path: str, data: bytes) -> Member:
        digest = sha256_of(data).digest()
        if kept := self._kept(path, len(data), digest):
            return kept
        is_payload = path.startswith(bag.PAYLOAD)
        if data and is_payload:
            original = self._originals.get(digest)
            if original is not None:
                return self._add_link(path, original)
            if len(data) <= IN_MEMORY_BYTES:
                self._originals[digest] = len(self._paths)
        self._put(tar_header(self._full_name(path), len(data)))
        if len(data) <= SMALL_MEMBER_BYTES:
            offset = self._position
            self._put(data)
        else:
            self._cut()
            offset = self._position
            pieces = _pieces(memoryview(data), frame_bytes(path))
            if has_to_pay(path, len(data)):
                pieces = paid_pieces(pieces, self._level, len(data))
            for piece in pieces:
                self._frames.write_frame(piece)
        self._end_member(len(data))
        return self._row(path, offset, len(data), digest)

    def _add_large(self, path: str, size_bytes: int, source: _CheckedStream) -> Member:
        digest = hashlib.sha256()
        self._kept(path, -1, b"")
        self._put(tar_header(self._full_name(path), size_bytes))
        self._cut()
        offset = self._position
        piece_bytes = frame_bytes(path)
        for start in range(0, size_bytes, piece_bytes):
            wanted_bytes = min(piece_bytes, size_bytes - start)
            piece = source.take(wanted_bytes)
            if len(piece) < wanted_bytes:
                piece += bytes(wanted_bytes - len(piece))
            self._frames.write_frame(piece)
            self._frames.hash_along(digest, piece)
        self._frames.finish_hashing()
        if source.received_bytes < size_bytes:
            source.error = source.error or "the source ended before the size announced"
        elif source.take(1):
            source.is_cut = True
        self._end_member(size_bytes)
        return source.judged(self._row(path, offset, size_bytes, digest.digest()))

    def _kept(self, path: str, size_bytes: int, digest: bytes) -> Member | None:
        """Return the member if it is there from an earlier attempt; else that ends here."""
        if self._earlier is None:
            return None
        one = self._earlier.members[len(self._paths)]
        if (one.path, one.size_bytes, one.digest) == (path, size_bytes, digest):
            return self._keep(one)
        self._go_on(one.start)
        return None

    def _keep(self, one: EarlierMember) -> Member:
        row = len(self._paths)
        if one.original is not None:
            self._link_targets[row] = one.original
        elif one.path.startswith(bag.PAYLOAD) and 0 < one.size_bytes <= IN_MEMORY_BYTES:
            self._originals.setdefault(one.digest, row)
        member = self._row(one.path, one.offset, one.size_bytes, one.digest)
        if self._earlier and row + 1 == len(self._earlier.members):
            self._go_on(self._earlier.end)
        return member

    def _go_on(self, tar_offset: int) -> None:
        """Write from here on, behind what is kept."""
        if self._earlier is not None:
            entries, begun = self._earlier.go_on(tar_offset)
            self._frames.go_on(entries)
            self._group += begun
            self._earlier = None

    def _add_link(self, path: str, original: int) -> Member:
        digest = self._digest(original)
        if kept := self._kept(path, self._sizes_bytes[original], digest):
            return kept
        target = self._full_name(self._paths[original])
        self._put(tar_header(self._full_name(path), 0, target))
        self._end_member(0)
        self._link_targets[len(self._paths)] = original
        return self._row(
            path, self._offsets[original], self._sizes_bytes[original], self._digest(original)
        )

    def _full_name(self, path: str) -> str:
        return f"{self.base_directory}/{path}"

    @property
    def _position(self) -> int:
        """Where the next byte goes in the tar stream."""
        return self._frames.tar_bytes + len(self._group)

    def _put(self, data: bytes) -> None:
        self._group += data

    def _cut(self) -> None:
        """End the open group frame."""
        if self._group:
            self._frames.write_frame(bytes(self._group))
            self._group.clear()

    def _end_member(self, size_bytes: int) -> None:
        self._put(bytes(padding_bytes(size_bytes)))
        if len(self._group) >= GROUP_FRAME_BYTES:
            self._cut()

    def _row(self, path: str, offset: int, size_bytes: int, digest: bytes) -> Member:
        self._paths.append(path)
        self._digests += digest
        self._offsets.append(offset)
        self._sizes_bytes.append(size_bytes)
        return Member(path, size_bytes, digest.hex())

    def _digest(self, row: int) -> bytes:
        start = row * bag.DIGEST_BYTES
        return bytes(self._digests[start : start + bag.DIGEST_BYTES])

    def _manifest(self, rows: Sequence[int]) -> bytes:
        return bag.manifest_content((self._paths[row], self._digest(row).hex()) for row in rows)

    def _finish(self) -> str:
        self._cut()
        tag_frame = self._frames.frame_count
        # Code points sort like their UTF-8 bytes.
        order = sorted(range(len(self._paths)), key=self._paths.__getitem__)
        payload = [row for row in order if self._paths[row].startswith(bag.PAYLOAD)]
        payload_bytes = sum(self._sizes_bytes[row] for row in payload)
        info = bag.bag_info_content(self._bag_info, payload_bytes, len(payload))
        for path, data in (
            (bag.BAGIT, bag.BAGIT_CONTENT),
            (bag.BAG_INFO, info),
            (bag.MANIFEST, self._manifest(payload)),
        ):
            self._add_bytes(path, data)
        tags = [row for row, path in enumerate(self._paths) if not path.startswith(bag.PAYLOAD)]
        tags.sort(key=self._paths.__getitem__)
        root = self._add_bytes(bag.TAG_MANIFEST, self._manifest(tags)).sha256
        tags.append(len(self._paths) - 1)
        self._cut()
        self._frames.write_frame(END_OF_TAR)
        self._frames.drain()
        self._write_tail(root, tags, payload, tag_frame)
        return root

    def _write_tail(
        self, root: str, tags: Sequence[int], payload: Sequence[int], tag_frame: int
    ) -> None:
        rows = [*tags, *payload]
        index = MemberIndex(
            len(tags),
            array("Q", (self._offsets[row] for row in rows)),
            array("Q", (self._sizes_bytes[row] for row in rows)),
        )
        index_frame, index_bytes = index.encode()
        footer = Footer(
            root=root,
            base_directory=self.base_directory,
            members=len(rows),
            tar_bytes=self._frames.tar_bytes,
            index_offset=self.bytes_written + SKIPPABLE_HEADER_BYTES,
            index_compressed_bytes=len(index_frame),
            index_bytes=index_bytes,
            index_sha256=hashlib.sha256(index_frame).hexdigest(),
            open_offset=self._frames.frame_offset(tag_frame),
            required_features=self.required_features,
        )
        self._frames.write_skippable(INDEX_MAGIC, index_frame)
        self._frames.write_skippable(FOOTER_MAGIC, footer.encode())
        self._frames.finish()


class _CheckedStream:
    """A stream that may end early, grow or fail; it remembers what happened.

    Attributes:
        received_bytes: How many bytes it gave.
        error: What went wrong, one line; empty when nothing did.
        is_cut: Whether it went on behind the size announced.
    """

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self.received_bytes = 0
        self.error = ""
        self.is_cut = False

    def take(self, size_bytes: int) -> bytes:
        """Return ``size_bytes`` bytes, fewer when the stream ends or fails."""
        pieces: list[bytes] = []
        missing_bytes = size_bytes
        while missing_bytes and not self.error:
            try:
                piece = self._stream.read(missing_bytes)
            except (OSError, EximError) as error:
                self.error = " ".join(str(error).split()) or type(error).__name__
                break
            if not piece:
                break
            pieces.append(piece)
            missing_bytes -= len(piece)
            self.received_bytes += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def judged(self, member: Member) -> Member:
        """Return the member, as not complete when something went wrong."""
        if self.is_cut:
            self.error = f"the source gave more than the {member.size_bytes} bytes announced"
        if not self.error:
            return member
        return Member(
            member.path,
            member.size_bytes,
            member.sha256,
            complete=False,
            received_bytes=self.received_bytes,
            error=self.error,
            is_cut=self.is_cut,
        )


def _pieces(data: memoryview, piece_bytes: int) -> Iterator[bytes]:
    for start in range(0, len(data), piece_bytes):
        yield bytes(data[start : start + piece_bytes])


def frame_bytes(path: str) -> int:
    """Return what of a large member goes into one frame."""
    return PARQUET_FRAME_BYTES if path.endswith(".parquet") else LARGE_FRAME_BYTES
