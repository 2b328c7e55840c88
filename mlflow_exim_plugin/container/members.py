"""What is asked of the members of an archive, or of several archives that make one state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import io
    from collections.abc import Iterable, Iterator, Sequence

    from pyarrow import Schema

    from mlflow_exim_plugin.container.member_stream import Member
    from mlflow_exim_plugin.container.reader import ArchiveReader
    from mlflow_exim_plugin.schema.stored_tables import StoredTable

__all__ = ["Members"]


class Members(Protocol):
    """Members by their paths, of one archive or of several that make one state.

    What is asked for and is not there, damaged or refused is raised as ``ArchiveReader`` does.

    Attributes:
        name: What it was opened as, without credentials.
        root: Digest that says what all members are, lower-case hex.
        size_bytes: Size of all files.
    """

    name: str
    root: str
    size_bytes: int

    @property
    def format_version(self) -> tuple[int, int]:
        """Major and minor version of the format."""

    @property
    def most_named(self) -> int | None:
        """How many members a document may name; None where it is held to its own archive."""

    @property
    def lost(self) -> Sequence[Any]:
        """What of a state no archive has."""

    def __len__(self) -> int: ...

    def __contains__(self, path: object) -> bool: ...

    def close(self) -> None:
        """Let go of all files."""

    def members(self) -> Iterator[Member]:
        """Yield all members, sorted by path."""

    def paths(self, prefix: str = "") -> list[str]:
        """Return the paths that begin with ``prefix``, sorted."""

    def member(self, path: str) -> Member:
        """Return what is known of a member."""

    def read(self, path: str) -> bytes:
        """Return a member's bytes."""

    def read_document(self, path: str) -> Any:
        """Return the value of a member that is a JSON document."""

    def open_member(self, path: str) -> io.BufferedReader:
        """Open a member as a seekable binary stream."""

    def open_table(self, path: str, schema: Schema, code: str) -> StoredTable:
        """Open a member that is a Parquet table."""

    def expect(self, paths: Iterable[str]) -> None:
        """Say which members will be read."""

    def folders_of(self, segment: str) -> list[str] | None:
        """Return the folders where what a segment is the id of may be; None where all may be."""

    def holder(self, path: str) -> ArchiveReader:
        """Return the archive that a member lies in."""

    def hidden_traces(self, table: str) -> frozenset[str]:
        """Return the ids of traces of a part that are not to be seen, by its table of traces."""
