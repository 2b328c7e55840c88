"""Reading an archive in place: from its end, then one ranged read for each small member.

An archive is untrusted. Nothing is allocated on its word, and what a whole read returns has the
digest that the manifest gives, the manifest the one the tag manifest gives, and that the root.
Source: spec/v1/archive.md.
"""

from __future__ import annotations

import hashlib
import io
from array import array
from bisect import bisect_left, bisect_right
from functools import partial
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.container import bag
from mlflow_exim_plugin.container.frame_reader import FrameReader
from mlflow_exim_plugin.container.frames import (
    SeekTable,
)
from mlflow_exim_plugin.container.member_stream import Member, MemberStream, wrong_digest
from mlflow_exim_plugin.container.paths import MAX_PATH_BYTES, PathRegister, may_collide
from mlflow_exim_plugin.container.refusal import refuse
from mlflow_exim_plugin.container.tail import MAX_FOOTER_BYTES, Footer, MemberIndex, no_archive
from mlflow_exim_plugin.errors import (
    DigestMismatchError,
    EximError,
    InvalidArchiveError,
    NotFoundError,
    UsageError,
)
from mlflow_exim_plugin.schema.canonical import parse_json, require_few_values
from mlflow_exim_plugin.schema.digests import sha256_of
from mlflow_exim_plugin.schema.rules import EXPANSION, LIMITS, Limits
from mlflow_exim_plugin.storage.pinned import TAIL_BYTES
from mlflow_exim_plugin.storage.ranges import open_range

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from types import TracebackType

    from pyarrow import Schema
    from typing_extensions import Self

    from mlflow_exim_plugin.schema.stored_tables import StoredTable
    from mlflow_exim_plugin.storage.ranges import RangeSource

__all__ = ["ArchiveReader"]

MAX_READ_BYTES = 1 << 30
"""Most that :meth:`ArchiveReader.read` returns at once."""

_EXTRA_BYTES = 64 << 10
# Generous, so that a path that is too long is named as what it is.
_MAX_MANIFEST_LINE_BYTES = 8 * MAX_PATH_BYTES
_STREAM_BUFFER_BYTES = 128 << 10
_INDEX_ROOM_BYTES, _ROW_ROOM_BYTES = 4096, 32
"""What a compressed index may take of the file, and each of its rows, however badly they do."""


class ArchiveReader:
    """An open archive; safe to use from many threads.

    Make one with :meth:`open` or :meth:`from_source`.

    Attributes:
        name: What it was opened as, without credentials.
        root: Root digest, lower-case hex; the members' contents are what it says, but only a
            signature or an expected root tells who said it.
        base_directory: Top-level directory of the tar stream.
        format_version: Major and minor version of the format.
        required_features: Features the archive asks of its reader.
        size_bytes: Size of the file.
        footer: All that the footer declares.
        frames: The physical layer, for verification.
        limits: What it may be at most.
    """

    def __init__(
        self, source: RangeSource, expected_root: str | None, limits: Limits | None = None
    ) -> None:
        self.limits = limits = limits or Limits.of_environment()
        self._source = source
        self.name = source.name
        self.size_bytes = source.size_bytes
        tail = _Tail(source)
        table = SeekTable.parse(source.size_bytes, tail.read, limits)
        self.footer = _read_footer(tail, table, expected_root)
        self.root = self.footer.root
        self.base_directory = self.footer.base_directory
        self.format_version = self.footer.version
        self.required_features = self.footer.required_features
        index = _read_index(tail, table, self.footer, limits)
        self._fill(index, FrameReader(tail.read, table, limits=limits))
        # A file that was read whole needs no more requests.
        if tail.is_whole:
            self.frames = FrameReader(tail.read, table, limits=limits)
        else:
            self.frames = FrameReader(source.read_range, table, source.at_once, limits)

    @classmethod
    def open(
        cls,
        url: str,
        *,
        storage_options: Mapping[str, Any] | None = None,
        expected_root: str | None = None,
        limits: Limits | None = None,
    ) -> Self:
        """Open an archive on a local path or any fsspec URL.

        Args:
            url: Where it lies.
            storage_options: For the file system, see fsspec.
            expected_root: Refuse any archive with another root.
            limits: What it may be at most; ``MLFLOW_EXIM_LIMITS`` or the format's without them.

        Raises:
            NotFoundError: Nothing there.
            InvalidArchiveError: No archive, cut short (``TruncatedArchiveError``), damaged, or
                with another root than expected (``DigestMismatchError``).
            UnsupportedFormatError: Of another major version or with unknown required features.
            StoreError: The store refused or died.
            MissingDependencyError: The protocol needs a package that is not installed.
        """
        source = open_range(url, storage_options)
        try:
            return cls.from_source(source, expected_root=expected_root, limits=limits)
        except BaseException:
            source.close()
            raise

    @classmethod
    def from_source(
        cls,
        source: RangeSource,
        *,
        expected_root: str | None = None,
        limits: Limits | None = None,
    ) -> Self:
        """Open an archive on a source that the reader then owns.

        Raises:
            InvalidArchiveError: See :meth:`open`.
            UnsupportedFormatError: See :meth:`open`.
            StoreError: The store refused or died.
        """
        try:
            return cls(source, expected_root, limits)
        except InvalidArchiveError as error:
            told = no_archive(source) if error.findings[0].code == "E010" else error
            told.args = (f"{source.name}: {told.message}",)
            raise told from error.__cause__

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self.frames.close()
        self._source.close()

    def __len__(self) -> int:
        return len(self._paths)

    def __contains__(self, path: object) -> bool:
        return isinstance(path, str) and self.position(path) is not None

    def members(self) -> Iterator[Member]:
        """Yield all members, tag files included, sorted by path."""
        return (self.member_at(position) for position in range(len(self)))

    def paths(self, prefix: str = "") -> list[str]:
        """Return the paths that begin with ``prefix``, sorted."""
        start = bisect_left(self._paths, prefix)
        length = len(prefix)
        end = bisect_right(self._paths, prefix, lo=start, key=lambda path: path[:length])
        return self._paths[start:end]

    def member(self, path: str) -> Member:
        """Return what is known of a member.

        Raises:
            NotFoundError: No such member.
        """
        return self.member_at(self._position_of(path))

    def place_of(self, text: str) -> int:
        """Return the place of the first path that does not sort before a text."""
        return bisect_left(self._paths, text)

    def position(self, path: str) -> int | None:
        """Return a member's place among the sorted paths, None when there is no such member."""
        position = bisect_left(self._paths, path)
        is_found = position < len(self._paths) and self._paths[position] == path
        return position if is_found else None

    def member_at(self, position: int) -> Member:
        """Return the member at a place among the sorted paths."""
        digest = self._digests[position * bag.DIGEST_BYTES : (position + 1) * bag.DIGEST_BYTES]
        return Member(self._paths[position], self._sizes_bytes[position], digest.hex())

    def data_offset(self, position: int) -> int:
        """Return where the index says a member's data begin in the tar stream."""
        return self._offsets[position]

    def place_in_file(self, path: str) -> tuple[str, int]:
        """Return what members are sorted by as they lie in files: this one, and where in it."""
        return self.root, self._offsets[self._position_of(path)]

    def read(self, path: str, start: int = 0, end: int | None = None) -> bytes:
        """Return a member's bytes, or the bytes ``[start, end)`` of them, sliced like Python does.

        The bytes of a whole member are checked against its digest, those of a range only against
        the checksums of their frames.

        Raises:
            NotFoundError: No such member.
            DigestMismatchError: The member is not what the manifest says.
            InvalidArchiveError: A frame is damaged, or the index is wrong.
            UsageError: More than 1 GiB at once.
            StoreError: The store refused or died.
        """
        member, start, end = self._span_of(path, start, end)
        return _checked(member, b"".join(self.frames.span(start, end)))

    def read_many(self, wanted: Sequence[tuple[str, int, int | None]]) -> list[bytes | EximError]:
        """Return what :meth:`read` does for each of many, or raises.

        What lies beside each other is fetched with one request, and a few requests at once.

        Args:
            wanted: Path, start and end of each.
        """
        found: list[bytes | EximError] = [b""] * len(wanted)
        spans = {}
        for number, (path, start, end) in enumerate(wanted):
            try:
                spans[number] = self._span_of(path, start, end)
            except EximError as error:
                found[number] = error
        read = self.frames.spans([(start, end) for _, start, end in spans.values()])
        for (number, (member, *_)), data in zip(spans.items(), read, strict=True):
            try:
                found[number] = data if isinstance(data, EximError) else _checked(member, data)
            except DigestMismatchError as error:
                found[number] = error
        return found

    def _span_of(self, path: str, start: int, end: int | None) -> tuple[Member, int, int]:
        """Return a member, and where a slice of its bytes lies in the tar stream."""
        position = self._position_of(path)
        member = self.member_at(position)
        start, end, _ = slice(start, end).indices(member.size_bytes)
        if end - start > MAX_READ_BYTES:
            raise UsageError(f"{path}: {end - start} bytes in one read", "use open_member")
        offset = self._checked_offset(position)
        return member, offset + start, offset + max(start, end)

    def expect(self, paths: Iterable[str]) -> None:
        """Say which members will be read, so that those far away are on their way by then.

        Args:
            paths: Their paths; what is no member is passed over.
        """
        places = (place for path in paths if (place := self.position(path)) is not None)
        self.frames.expect(
            (self._offsets[place], self._offsets[place] + self._sizes_bytes[place])
            for place in places
        )

    def holder(self, path: str) -> ArchiveReader:
        """Return this archive, in which the member lies if it is there."""
        del path
        return self

    @property
    def most_named(self) -> int:
        """See ``Members``."""
        return len(self)

    @property
    def lost(self) -> tuple[()]:
        """See ``Members``: an archive is no state of a set."""
        return ()

    def folders_of(self, segment: str) -> None:
        """Tell of no id where it is: all paths are known."""
        del segment

    def hidden_traces(self, table: str) -> frozenset[str]:
        """Return the ids of traces that are not to be seen: none of an archive."""
        del table
        return frozenset()

    def packed_index(self) -> bytes:
        """Return the index as it is stored."""
        start = self.footer.index_offset
        return self._source.read_range(start, start + self.footer.index_compressed_bytes)

    def own_frames(self, path: str) -> tuple[int, int] | None:
        """Return the first frame of a member and the one after its last, if nothing else is there.

        Raises:
            NotFoundError: No such member.
            InvalidArchiveError: The index is wrong.
        """
        position = self._position_of(path)
        start = self._checked_offset(position)
        return self.frames.own(start, start + self._sizes_bytes[position])

    def read_document(self, path: str) -> Any:
        """Return the value of a member that is a JSON document.

        What is over a limit is refused before it is in memory.

        Raises:
            NotFoundError: No such member.
            InvalidArchiveError: It is damaged, over a limit, or no JSON of the format.
            StoreError: The store refused or died.
        """
        size_bytes, limits = self.member(path).size_bytes, self.limits
        if size_bytes > limits.document_bytes:
            message, hint = f"{size_bytes} bytes, over the limit", limits.hint("document_bytes")
            raise refuse(InvalidArchiveError, "E050", path, message, hint)
        if size_bytes > min(limits.free_bytes, limits.free_values):
            stored_bytes = self.stored_bytes(path)
            if not limits.is_text_paid(size_bytes, stored_bytes):
                raise _unpaid(path, size_bytes, stored_bytes, limits)
            with self.open_member(path) as stream:
                pieces = iter(partial(stream.read, _STREAM_BUFFER_BYTES), b"")
                require_few_values(pieces, path, limits, stored_bytes)
        return parse_json(self.read(path), path, limits)

    def stored_bytes(self, path: str) -> int:
        """Return how many bytes of the file hold a member, and what is in the same frames."""
        position = self._position_of(path)
        return self.frames.stored_bytes(self._checked_offset(position), self._sizes_bytes[position])

    def open_table(self, path: str, schema: Schema, code: str) -> StoredTable:
        """Open a member that is a Parquet table; to be closed by the caller.

        Args:
            path: Its path.
            schema: Columns that it must have.
            code: The rule that it breaks where it is not as the format has it.

        Raises:
            NotFoundError: No such member.
            InvalidArchiveError: It is not as the format has it.
        """
        from mlflow_exim_plugin.schema.stored_tables import StoredTable

        stored_bytes = self.stored_bytes(path)
        return StoredTable(self.open_member(path), path, schema, code, stored_bytes, self.limits)

    def open_member(self, path: str) -> io.BufferedReader:
        """Open a member as a seekable binary stream with bounded memory.

        Reading from start to end checks the digest: the read that would give the last bytes
        raises ``DigestMismatchError`` when they are not what the manifest says. Reading may
        raise what :meth:`read` raises.

        Raises:
            NotFoundError: No such member.
            InvalidArchiveError: The index is wrong.
        """
        position = self._position_of(path)
        stream = MemberStream(self.frames, self.member_at(position), self._checked_offset(position))
        return io.BufferedReader(stream, _STREAM_BUFFER_BYTES)

    def _position_of(self, path: str) -> int:
        position = self.position(path)
        if position is None:
            raise NotFoundError(f"{self.name} has no member {path!r}")
        return position

    def _checked_offset(self, position: int) -> int:
        offset, size_bytes = self._offsets[position], self._sizes_bytes[position]
        if offset + size_bytes > self.footer.tar_bytes:
            raise refuse(
                InvalidArchiveError,
                "E026",
                self._paths[position],
                "lies behind the end of the tar stream",
            )
        return offset

    def _fill(self, index: MemberIndex, frames: FrameReader) -> None:
        """Join names and digests of the manifests with the rows of the index."""
        manifests = _Manifests(index, frames, self.footer, self.limits)
        tags = manifests.tags()
        payload = manifests.payload(tags)
        if may_collide(paths := [*tags.paths, *payload.paths]):
            register = PathRegister()
            for number, path in enumerate(paths):
                register.add(path, number)
        # All payload paths begin alike, so they lie in one piece among the sorted tag files.
        split = bisect_left(tags.paths, bag.PAYLOAD)
        before, after = slice(split), slice(split, len(tags.paths))
        self._paths = tags.paths[before] + payload.paths + tags.paths[after]
        cut = split * bag.DIGEST_BYTES
        self._digests = tags.digests[:cut] + payload.digests + tags.digests[cut:]
        # The index has the tag manifest's row behind the other tag files, the paths have it sorted.
        own_row = index.tag_count - 1
        tag_rows = list(range(own_row))
        tag_rows.insert(tags.paths.index(bag.TAG_MANIFEST), own_row)
        rows = (tag_rows[before], index.tag_count, tag_rows[after])
        self._offsets = _joined(index.offsets, *rows)
        self._sizes_bytes = _joined(index.sizes_bytes, *rows)


def _joined(
    column: array[int], first: list[int], payload_start: int, last: list[int]
) -> array[int]:
    joined = array("Q", (column[row] for row in first))
    joined.extend(column[payload_start:])
    joined.extend(column[row] for row in last)
    return joined


class _Tail:
    """The end of the file, read with as few requests as possible while opening."""

    def __init__(self, source: RangeSource) -> None:
        self._source = source
        self._start = max(source.size_bytes - TAIL_BYTES, 0)
        self._data = source.read_range(self._start, source.size_bytes)

    @property
    def is_whole(self) -> bool:
        return self._start == 0

    @property
    def file_bytes(self) -> int:
        return self._source.size_bytes

    def read(self, start: int, end: int) -> bytes:
        """Return the bytes ``[start, end)`` of the file."""
        self.extend(start)
        return self._data[start - self._start : end - self._start]

    def extend(self, start: int) -> None:
        """Have everything from ``start`` on; one request when that is not so yet.

        It takes a little more, so that the footer comes with a seek table that is large.
        """
        if start < self._start:
            start = max(start - _EXTRA_BYTES, 0)
            self._data = self._source.read_range(start, self._start) + self._data
            self._start = start


class _Manifests:
    """Both manifests of a bag, read through the index and checked up to the root."""

    def __init__(
        self, index: MemberIndex, frames: FrameReader, footer: Footer, limits: Limits
    ) -> None:
        self._limits = limits
        self._index = index
        self._frames = frames
        self._footer = footer

    def tags(self) -> bag.Manifest:
        """Return the tag files, the tag manifest itself sorted in."""
        row = self._index.tag_count - 1
        content = self._content(row, bag.TAG_MANIFEST, self._index.tag_count)
        if hashlib.sha256(content).hexdigest() != self._footer.root:
            raise refuse(
                DigestMismatchError, "E027", bag.TAG_MANIFEST, "does not have the root's digest"
            )
        tags = bag.parse_manifest(content, bag.TAG_MANIFEST)
        for path in tags.paths:
            bag.check_tag_path(path)
        self._check_count(bag.TAG_MANIFEST, len(tags.paths), row)
        if bag.MANIFEST not in tags.paths:
            raise refuse(InvalidArchiveError, "E030", bag.MANIFEST, f"is not in {bag.TAG_MANIFEST}")
        place = bisect_left(tags.paths, bag.TAG_MANIFEST)
        cut = place * bag.DIGEST_BYTES
        return bag.Manifest(
            [*tags.paths[:place], bag.TAG_MANIFEST, *tags.paths[place:]],
            tags.digests[:cut] + bytes.fromhex(self._footer.root) + tags.digests[cut:],
        )

    def payload(self, tags: bag.Manifest) -> bag.Manifest:
        """Return the payload, in the order of the index's rows."""
        # The same row in the index: the tag manifest sorts behind it.
        row = tags.paths.index(bag.MANIFEST)
        count = len(self._index) - self._index.tag_count
        content = self._content(row, bag.MANIFEST, count)
        if hashlib.sha256(content).hexdigest() != tags.digest(row):
            raise wrong_digest(bag.MANIFEST)
        payload = bag.parse_manifest(content, bag.MANIFEST)
        bag.check_payload_paths(payload.paths)
        self._check_count(bag.MANIFEST, len(payload.paths), count)
        return payload

    def _content(self, row: int, name: str, lines: int) -> bytes:
        offset, size_bytes = self._index.offsets[row], self._index.sizes_bytes[row]
        if (
            offset + size_bytes > self._footer.tar_bytes
            or size_bytes > lines * _MAX_MANIFEST_LINE_BYTES
            or size_bytes > self._limits.manifest_bytes
        ):
            message, hint = "has an impossible place or size", self._limits.hint("manifest_bytes")
            raise refuse(InvalidArchiveError, "E026", name, message, hint)
        stored_bytes = self._frames.stored_bytes(offset, size_bytes)
        if not self._limits.is_text_paid(size_bytes, stored_bytes):
            raise _unpaid(name, size_bytes, stored_bytes, self._limits)
        return b"".join(self._frames.span(offset, offset + size_bytes))

    @staticmethod
    def _check_count(name: str, lines: int, rows: int) -> None:
        if lines != rows:
            raise refuse(
                InvalidArchiveError, "E024", name, f"has {lines} lines, the index {rows} rows"
            )


def _unpaid(path: str, size_bytes: int, stored_bytes: int, limits: Limits) -> InvalidArchiveError:
    message, hint = f"{size_bytes} bytes, made of {stored_bytes}", limits.hint("text_expansion")
    return refuse(InvalidArchiveError, EXPANSION, path, message, hint)


def _checked(member: Member, data: bytes) -> bytes:
    if len(data) == member.size_bytes and sha256_of(data).hexdigest() != member.sha256:
        raise wrong_digest(member.path)
    return data


def _read_footer(tail: _Tail, table: SeekTable, expected_root: str | None) -> Footer:
    start, end = table.file_offsets[-2], table.file_offsets[-1]
    if end - start > MAX_FOOTER_BYTES:
        raise refuse(InvalidArchiveError, "E017", "<footer>", "is too large")
    footer = Footer.parse(tail.read(start, end))
    if footer.tar_bytes != table.tar_bytes:
        raise refuse(
            InvalidArchiveError,
            "E023",
            "<footer>",
            f"tar_bytes is {footer.tar_bytes}, the frames hold {table.tar_bytes}",
        )
    if expected_root is not None and footer.root != expected_root.lower():
        raise refuse(
            DigestMismatchError,
            "E027",
            "<footer>",
            f"the archive's root is {footer.root}, expected was {expected_root[:64]}",
            "this is another archive, or somebody changed it",
        )
    return footer


def _read_index(tail: _Tail, table: SeekTable, footer: Footer, limits: Limits) -> MemberIndex:
    start, end = table.file_offsets[-3], table.file_offsets[-2]
    if end - start - 8 != footer.index_compressed_bytes or start + 8 != footer.index_offset:
        raise refuse(InvalidArchiveError, "E025", "<index>", "is not where the footer says")
    if end - start > _INDEX_ROOM_BYTES + _ROW_ROOM_BYTES * limits.members:
        message, hint = "is too large", limits.hint("members")
        raise refuse(InvalidArchiveError, "E025", "<index>", message, hint)
    if footer.open_offset and end - footer.open_offset <= LIMITS.frame_bytes:
        tail.extend(min(footer.open_offset, start))
    return MemberIndex.parse(tail.read(start, end), footer, limits)
