"""The documents of a set (spec/v1/set.md): its marker, and its snapshots."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from mlflow_exim_plugin.schema.envelope import ArchiveInfo, ArchivePart, Document, System

__all__ = [
    "SET_FORMAT",
    "SET_VERSION",
    "FileEntry",
    "Hold",
    "LayerEntry",
    "Marker",
    "PackEntry",
    "Parent",
    "PartEntry",
    "Snapshot",
    "SnapshotInfo",
]

SET_FORMAT = "mlflow-exim-set"
SET_VERSION = "1.1"

_Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Count = Annotated[int, Field(ge=0)]
_Number = Annotated[int, Field(ge=1, le=99_999_999)]


class Marker(Document):
    """``set.json``: says that a folder is a set."""

    format: str = SET_FORMAT
    format_version: str = SET_VERSION
    required_features: tuple[str, ...] = Field(default=(), strict=False)
    """What a reader must know, or refuse the set."""
    read_me: str = ""


class Hold(Document):
    """``holds/NNNNNNNN.json``: keeps a snapshot, whatever is asked to be forgotten."""

    system: System
    """Who holds it, since when."""
    reason: str


class FileEntry(Document):
    """A table beside the packs, named by its content."""

    path: Annotated[str, Field(pattern=r"^(lists|states|ids)/[0-9a-f]{64}\.parquet$")]
    sha256: _Hex
    rows: _Count


class PartEntry(FileEntry):
    """A table that is a part of a layer."""

    first: str
    """What its first row is found by: its rows end where the next part's begin."""


class LayerEntry(Document):
    """What changed in a state, all of it in the first layer."""

    rows: _Count
    states: tuple[PartEntry, ...] = Field(default=(), strict=False)
    """The objects by path, cut in parts."""
    ids: tuple[PartEntry, ...] = Field(default=(), strict=False)
    """Where the ids of runs, logged models and traces are."""


class PackEntry(Document):
    """One archive of a snapshot."""

    path: Annotated[str, Field(pattern=r"^packs/[0-9a-f]{2}/[0-9a-f]{64}\.tar\.zst$")]
    root: _Hex
    size_bytes: _Count
    members: _Count
    block: _Count
    """Its tables are numbered from ``block * 100000`` on."""
    packed_ms: int
    """When it was packed, ms since the Unix epoch."""


class Parent(Document):
    """The snapshot before."""

    number: _Number
    sha256: _Hex


class SnapshotInfo(ArchiveInfo):
    """Part ``info`` of a snapshot: that of an archive of the whole state, and where that lies."""

    number: _Number
    parent: Parent | None = None
    packs: tuple[PackEntry, ...] = Field(default=(), strict=False)
    """In the order in which they were added: what a later one has stands for an earlier one's."""
    gone: FileEntry | None = None
    """Objects that packs have and the state has no more."""
    state: FileEntry | None = None
    """The objects of the state in one table; before version 1.1, which has layers."""
    layers: tuple[LayerEntry, ...] = Field(default=(), strict=False)
    """The objects of the state, the oldest layer first: a later one's rows stand for earlier ones.
    What the next pack compares the source with, and what finds one object among many."""
    kept_until_ms: int | None = None
    """Until when it is not forgotten, ms since the Unix epoch."""
    first_start_ms: int | None = None
    """When the first run of the state began, ms since the Unix epoch."""
    last_start_ms: int | None = None
    """When the last one did."""

    @property
    def tables(self) -> tuple[FileEntry, ...]:
        """All tables beside the archives."""
        parts = (part for layer in self.layers for part in (*layer.states, *layer.ids))
        return (*filter(None, (self.gone, self.state)), *parts)


class Snapshot(Document):
    """``snapshots/NNNNNNNN.json``; read as an ``ArchiveEnvelope`` it is that of the whole state."""

    format: str = SET_FORMAT
    format_version: str = SET_VERSION
    required_features: tuple[str, ...] = Field(default=(), strict=False)
    system: System
    info: SnapshotInfo
    mlflow: ArchivePart
