"""A set as it lies: where its files are, and which snapshots it has (spec/v1/set.md)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from mlflow_exim_plugin.container.paths import names_archive
from mlflow_exim_plugin.container.refusal import refuse
from mlflow_exim_plugin.errors import (
    DigestMismatchError,
    InvalidArchiveError,
    NotFoundError,
    UnsupportedFormatError,
    UsageError,
)
from mlflow_exim_plugin.schema.canonical import parse_json
from mlflow_exim_plugin.schema.digests import sha256_of
from mlflow_exim_plugin.schema.envelope import check_document
from mlflow_exim_plugin.schema.rules import Finding
from mlflow_exim_plugin.sources.archive.snapshot.documents import (
    SET_FORMAT,
    SET_VERSION,
    FileEntry,
    Hold,
    Marker,
    Snapshot,
)
from mlflow_exim_plugin.storage.folders.store_folder import StoreFolder
from mlflow_exim_plugin.storage.schemes import is_far
from mlflow_exim_plugin.storage.urls import local_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = [
    "MARKER",
    "SetFolder",
    "StoredSnapshot",
    "as_set",
    "hold_path",
    "snapshot_number",
    "snapshot_path",
]

MARKER = "set.json"
_SNAPSHOTS = "snapshots"
_HOLDS = "holds"
_MAX_MARKER_BYTES = 64 << 10
_MAX_SNAPSHOT_BYTES = 256 << 20
_MAX_TABLE_BYTES = 1 << 30
_NAME = re.compile(r"([0-9]{8})\.json")
_AT_SNAPSHOT = re.compile(rf"(.+)/{_SNAPSHOTS}/([0-9]{{8}})\.json")
_Parsed = TypeVar("_Parsed", Marker, Snapshot, Hold)
_NUMBER = re.compile(r"[0-9]{1,8}")


@dataclass(frozen=True)
class StoredSnapshot:
    """A snapshot of a set.

    Attributes:
        document: It.
        sha256: Digest of its bytes, hex: its root, which says what every byte of the state is.
    """

    document: Snapshot
    sha256: str

    @property
    def number(self) -> int:
        """Its number; the first one has 1."""
        return self.document.info.number


def snapshot_path(number: int) -> str:
    """Return the path of a snapshot in its set."""
    return f"{_SNAPSHOTS}/{number:08d}.json"


def hold_path(number: int) -> str:
    """Return the path of what holds a snapshot."""
    return f"{_HOLDS}/{number:08d}.json"


def snapshot_number(location: str) -> int:
    """Return the number of the snapshot that a location names.

    Raises:
        UsageError: It names none.
    """
    if found := _AT_SNAPSHOT.fullmatch(location):
        return int(found[2])
    raise UsageError(f"{location} names no snapshot of a set")


def as_set(
    location: str, storage_options: Mapping[str, Any] | None = None
) -> tuple[SetFolder, int | None] | None:
    """Return the set that a location is, and which of its snapshots; None where it is no set.

    Args:
        location: Path or fsspec URL of a set's folder, of its marker or of one of its snapshots.
        storage_options: For the file system, see fsspec.

    Raises:
        UnsupportedFormatError: The set needs a newer reader.
        InvalidArchiveError: Its marker is damaged.
        StoreError: The store refused or died.
    """
    is_place = is_far(location) or local_path(location) is not None
    if not is_place or "::" in location or names_archive(location):
        return None
    url, number = location.removesuffix(f"/{MARKER}"), None
    if found := _AT_SNAPSHOT.fullmatch(location):
        url, number = found[1], int(found[2])
    folder = SetFolder(url, storage_options)
    return (folder, number) if folder.is_there() else None


def _time_ms(which: str) -> int:
    from mlflow_exim_plugin.options.selection import parse_time_ms

    return parse_time_ms(which, end=True)


class SetFolder(StoreFolder):
    """A folder that holds a set, or will hold one."""

    def is_there(self) -> bool:
        """Whether it is a set.

        Raises:
            UnsupportedFormatError: It needs a newer reader.
            InvalidArchiveError: Its marker is damaged.
            StoreError: The store refused or died.
        """
        try:
            data = self.read(MARKER, _MAX_MARKER_BYTES)
        except NotFoundError:
            return False
        marker = _document(Marker, data, f"{self}/{MARKER}")
        if marker.format != SET_FORMAT:
            raise refuse(InvalidArchiveError, "N001", f"{self}/{MARKER}", "is not that of a set")
        _require_known(marker, str(self))
        return True

    def numbers(self) -> list[int]:
        """Return the numbers of the snapshots that are there, the oldest first.

        Raises:
            StoreError: They cannot be listed.
        """
        found = (_NAME.fullmatch(name) for name in self.names(_SNAPSHOTS))
        return sorted(int(one[1]) for one in found if one)

    def snapshot(self, number: int) -> StoredSnapshot:
        """Return one snapshot.

        Raises:
            NotFoundError: There is no such snapshot.
            InvalidArchiveError: It is damaged.
            UnsupportedFormatError: It needs a newer reader.
            StoreError: The store refused or died.
        """
        path = snapshot_path(number)
        try:
            data = self.read(path, _MAX_SNAPSHOT_BYTES)
        except NotFoundError as error:
            there = self.numbers()
            known = f"{there[0]} to {there[-1]}" if there else "none"
            hint = f"there is {known}; `ls {self}` lists them"
            raise NotFoundError(f"{self} has no snapshot {number}", hint) from error
        document = _document(Snapshot, data, f"{self}/{path}")
        _require_known(document, f"{self}/{path}")
        if document.info.number != number:
            message = f"says that it is snapshot {document.info.number}"
            raise refuse(InvalidArchiveError, "N002", f"{self}/{path}", message)
        return StoredSnapshot(document, sha256_of(data).hexdigest())

    def each(self) -> Iterator[StoredSnapshot]:
        """Yield all snapshots, the oldest first.

        Raises:
            EximError: See ``snapshot``.
        """
        for number in self.numbers():
            yield self.snapshot(number)

    def holds(self) -> dict[int, Hold]:
        """Return what keeps snapshots from being forgotten, by their numbers.

        Raises:
            InvalidArchiveError: One is damaged.
            StoreError: The store refused or died.
        """
        found = {}
        for name in self.names(_HOLDS):
            if one := _NAME.fullmatch(name):
                path = f"{_HOLDS}/{name}"
                data = self.read(path, _MAX_MARKER_BYTES)
                found[int(one[1])] = _document(Hold, data, f"{self}/{path}")
        return found

    def newest(self) -> StoredSnapshot | None:
        """Return the last snapshot, None where there is none yet.

        Raises:
            InvalidArchiveError: It is damaged.
            StoreError: The store refused or died.
        """
        numbers = self.numbers()
        return self.snapshot(numbers[-1]) if numbers else None

    def chosen(self, which: str | None) -> StoredSnapshot:
        """Return the snapshot that is asked for.

        Args:
            which: Its number, or a time: then the last one that was taken by then. None for the
                last one.

        Raises:
            NotFoundError: There is none.
            UsageError: It is neither a number nor a time.
            InvalidArchiveError: It is damaged.
            StoreError: The store refused or died.
        """
        if which is not None and _NUMBER.fullmatch(which):
            return self.snapshot(int(which))
        until_ms = None if which is None else _time_ms(which)
        for number in reversed(self.numbers()):
            found = self.snapshot(number)
            if until_ms is None or found.document.system.export_time_ms <= until_ms:
                return found
        if until_ms is None:
            raise NotFoundError(f"{self} has no snapshot yet", "pack --set makes one")
        raise NotFoundError(
            f"{self} has no snapshot of {which} or before", f"`ls {self}` lists them"
        )

    def asked(
        self, number: int | None, which: str | None, expected_root: str | None = None
    ) -> StoredSnapshot:
        """Return the snapshot that a location and an option ask for.

        Args:
            number: The one that the location names, if it does.
            which: See ``chosen``.
            expected_root: Root digest that it must have, hex.

        Raises:
            DigestMismatchError: It has another root.
            UsageError: Both ask for one.
            EximError: See ``chosen``.
        """
        if number is not None and which is not None:
            raise UsageError(f"{self} is given with its snapshot {number}", "leave --at out")
        found = self.chosen(which if number is None else str(number))
        if expected_root is not None and found.sha256 != expected_root.lower():
            raise refuse(
                DigestMismatchError,
                "N003",
                f"{self}/{snapshot_path(found.number)}",
                f"its root is {found.sha256}, expected was {expected_root[:64]}",
                "this is another snapshot, or somebody changed it",
            )
        return found

    def table(self, entry: FileEntry) -> bytes:
        """Return the bytes of a table that a snapshot names.

        Raises:
            NotFoundError: It is not there.
            DigestMismatchError: It is not what the snapshot says.
            StoreError: The store refused or died.
        """
        data = self.read(entry.path, _MAX_TABLE_BYTES)
        if (found := sha256_of(data).hexdigest()) != entry.sha256:
            message = f"hashes to {found}, not {entry.sha256}"
            raise refuse(DigestMismatchError, "N005", f"{self}/{entry.path}", message)
        return data


def _document(model: type[_Parsed], data: bytes, name: str) -> _Parsed:
    """Return a document of a set.

    Raises:
        InvalidArchiveError: It is none (N001).
    """
    try:
        return check_document(model, parse_json(data, name), name)
    except InvalidArchiveError as error:
        found = [Finding("N001", name, finding.message) for finding in error.findings]
        raise InvalidArchiveError(error.message, error.hint, found) from error


def _require_known(document: Marker | Snapshot, where: str) -> None:
    version = document.format_version
    if version.partition(".")[0] != SET_VERSION.partition(".")[0]:
        raise UnsupportedFormatError(
            f"{where} is of version {version} of sets; this reads {SET_VERSION}",
            "install a newer mlflow-exim-plugin",
        )
    if document.required_features:
        raise UnsupportedFormatError(
            f"{where} needs {', '.join(document.required_features)}",
            "install a newer mlflow-exim-plugin",
        )
