"""A snapshot of which one object is read without a look at all others.

Its layers say which archive has an object, and that archive alone is opened. What is asked of all
objects, or what no layer tells, is asked of all archives. Source: spec/v1/set.md, "Layers".
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.container import layout
from mlflow_exim_plugin.container.reader import ArchiveReader
from mlflow_exim_plugin.container.refusal import refuse
from mlflow_exim_plugin.errors import InvalidArchiveError, NotFoundError
from mlflow_exim_plugin.kinds import VERSION_KINDS, Kind
from mlflow_exim_plugin.schema.documents import names_too_many
from mlflow_exim_plugin.sources.archive.snapshot.layers import PlacedObject, StateLayers
from mlflow_exim_plugin.sources.archive.snapshot.reader import SnapshotReader

if TYPE_CHECKING:
    import io
    from collections.abc import Iterable, Iterator, Sequence

    from pyarrow import Schema

    from mlflow_exim_plugin.container.member_stream import Member
    from mlflow_exim_plugin.container.members import Members
    from mlflow_exim_plugin.schema.stored_tables import StoredTable
    from mlflow_exim_plugin.sources.archive.snapshot.lost import LostObject
    from mlflow_exim_plugin.sources.archive.snapshot.set_folder import SetFolder, StoredSnapshot

__all__ = ["LayeredReader", "reader_of"]

_TABLES_A_BLOCK = 100_000
_OF_ALL = {Kind.EXPERIMENT, Kind.TRACE, *VERSION_KINDS}
"""Kinds whose documents say what several archives have."""


def reader_of(folder: SetFolder, snapshot: StoredSnapshot) -> LayeredReader | SnapshotReader:
    """Return what reads a snapshot; one without layers is read as a whole.

    Raises:
        EximError: See ``SnapshotReader``.
    """
    has_layers = bool(snapshot.document.info.layers)
    return (LayeredReader if has_layers else SnapshotReader)(folder, snapshot)


class LayeredReader:
    """The members of a snapshot, see ``Members``; safe to use from many threads.

    Args:
        folder: The set.
        snapshot: A snapshot that has layers.

    Attributes:
        name: The set and the snapshot's number, without credentials.
        root: Digest of the snapshot's bytes.
        size_bytes: Size of all its archives, as the snapshot has it.
    """

    def __init__(self, folder: SetFolder, snapshot: StoredSnapshot) -> None:
        info = snapshot.document.info
        self.name = f"{folder} (snapshot {snapshot.number})"
        self.root = snapshot.sha256
        self.size_bytes = sum(pack.size_bytes for pack in info.packs)
        self._folder = folder
        self._snapshot = snapshot
        self._layers = StateLayers(folder, info.layers)
        self._entries = {pack.block: pack for pack in info.packs}
        self._opened: dict[int, ArchiveReader] = {}
        self._whole: SnapshotReader | None = None
        self._lock = threading.RLock()

    @property
    def whole(self) -> SnapshotReader:
        """The same of all archives, each of which is opened.

        Raises:
            EximError: See ``SnapshotReader``.
        """
        with self._lock:
            if self._whole is None:
                self._whole = SnapshotReader(self._folder, self._snapshot)
            return self._whole

    @property
    def most_named(self) -> int | None:
        """See ``Members``; what is read of one archive alone is held to that."""
        return None if self._whole is None else len(self._whole)

    @property
    def format_version(self) -> tuple[int, int]:
        """The newest of its archives."""
        return self.whole.format_version

    @property
    def lost(self) -> Sequence[LostObject]:
        """The objects of the state that no archive has."""
        return self.whole.lost

    def close(self) -> None:
        """Let go of all archives."""
        with self._lock:
            for pack in self._opened.values():
                pack.close()
            self._opened.clear()
            if self._whole is not None:
                self._whole.close()

    def __len__(self) -> int:
        return len(self.whole)

    def __contains__(self, path: object) -> bool:
        if not isinstance(path, str):
            return False
        alone = self._alone(path)
        return path in (self.whole if alone is None else alone)

    def folders_of(self, segment: str) -> list[str] | None:
        """Return the folders where objects with an id may be, None where no layer tells.

        Args:
            segment: What the id is in paths.
        """
        if self._whole is not None:
            return None
        try:
            return self._layers.folders(segment)
        except (InvalidArchiveError, NotFoundError):
            return None

    def members(self) -> Iterator[Member]:
        """Yield all members, sorted by path."""
        return self.whole.members()

    def paths(self, prefix: str = "") -> list[str]:
        """Return the paths that begin with ``prefix``, sorted."""
        return self.whole.paths(prefix)

    def holder(self, path: str) -> ArchiveReader:
        """Return the archive that a member lies in."""
        return self._holder(path).holder(path)

    def member(self, path: str) -> Member:
        """Return what is known of a member, as its archive has it."""
        return self._holder(path).member(path)

    def read(self, path: str) -> bytes:
        """Return a member's bytes, as its archive has them."""
        return self._holder(path).read(path)

    def open_member(self, path: str) -> io.BufferedReader:
        """Open a member as a seekable binary stream."""
        return self._holder(path).open_member(path)

    def open_table(self, path: str, schema: Schema, code: str) -> StoredTable:
        """Open a member that is a Parquet table; to be closed by the caller."""
        return self._holder(path).open_table(path, schema, code)

    def expect(self, paths: Iterable[str]) -> None:
        """Say which members will be read."""
        if self._whole is not None:
            self._whole.expect(paths)

    def read_document(self, path: str) -> Any:
        """Return the value of a member that is a JSON document, what it lists as the state has it.

        Raises:
            NotFoundError: No such member.
            InvalidArchiveError: It is damaged, over a limit, no JSON of the format, or another
                object than the layers say.
            StoreError: The store refused or died.
        """
        if path == layout.ARCHIVE:
            return self._snapshot.document.to_json()
        at = layout.object_at(path)
        placed = None if at is None or at.kind in _OF_ALL else self._placed(path)
        alone = None if placed is None else self._alone(path)
        if placed is None or alone is None:
            return self.whole.read_document(path)
        value = alone.read_document(path)
        if found := names_too_many(value, len(alone), alone.limits):
            raise refuse(InvalidArchiveError, found[0], path, found[1])
        info = value.get("info") if isinstance(value, dict) else None
        stated = info.get("content_digest") if isinstance(info, dict) else None
        if stated != f"sha256:{placed.content_digest.hex()}":
            message = "is another object than the layers of its snapshot say"
            raise refuse(InvalidArchiveError, "N009", path, message)
        return value

    def hidden_traces(self, table: str) -> frozenset[str]:
        """Return the ids of traces of a part that a later archive has too, or that are gone."""
        return self.whole.hidden_traces(table)

    def _holder(self, path: str) -> Members:
        alone = self._alone(path)
        return self.whole if alone is None else alone

    def _alone(self, path: str) -> ArchiveReader | None:
        """Return the archive that alone tells of a member; None where all are to be asked."""
        if self._whole is not None:
            return None
        block = self._block_of(path)
        pack = None if block is None else self._pack(block)
        return pack if pack is not None and path in pack else None

    def _block_of(self, path: str) -> int | None:
        if layout.table_of(path) == "metrics":
            number = path.rpartition("-")[2].removesuffix(".parquet")
            return int(number) // _TABLES_A_BLOCK if number.isdecimal() else None
        at, files = layout.object_at(path), layout.files_at(path)
        kind, envelope = (at.kind, path) if at else files[:2] if files else (Kind.TRACE, "")
        placed = None if kind is Kind.TRACE else self._placed(envelope)
        return None if placed is None else placed.block

    def _placed(self, envelope: str) -> PlacedObject | None:
        """Return where an object lies that has the path of its name; None where no layer tells."""
        try:
            placed = self._layers.place(envelope)
        except (InvalidArchiveError, NotFoundError):
            return None
        return None if placed is None or placed.member else placed

    def _pack(self, block: int) -> ArchiveReader | None:
        """Return an archive, None where it is lost."""
        with self._lock:
            if block not in self._opened and block in self._entries:
                entry = self._entries[block]
                try:
                    self._opened[block] = ArchiveReader.open(
                        self._folder.at(entry.path),
                        storage_options=self._folder.storage_options,
                        expected_root=entry.root,
                    )
                except (InvalidArchiveError, NotFoundError):
                    return None
            return self._opened.get(block)
