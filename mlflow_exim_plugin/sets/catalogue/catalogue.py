"""The catalogue of a folder or set: brought up to date, and compared with what lies there."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from mlflow_exim_plugin.container.paths import ARCHIVE_SUFFIX
from mlflow_exim_plugin.errors import EximError
from mlflow_exim_plugin.sets.catalogue.archives import add_rows, told_of
from mlflow_exim_plugin.sets.catalogue.listing import PartsListing, newest, publish, write_rows
from mlflow_exim_plugin.sets.catalogue.parts import PartTable
from mlflow_exim_plugin.sets.catalogue.rows import CatalogueRows
from mlflow_exim_plugin.sets.catalogue.search import Shelf
from mlflow_exim_plugin.sources.archive.archive import Archive
from mlflow_exim_plugin.storage.folders.folder import FileThere, Folder, open_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from concurrent.futures import Future

    from typing_extensions import Self

    from mlflow_exim_plugin.schema.objects import Failure
    from mlflow_exim_plugin.sets.catalogue.parts import Part
    from mlflow_exim_plugin.sources.archive.snapshot.set_folder import SetFolder

__all__ = ["ArchivesRead", "Catalogue", "Compared", "Known", "add", "rows_of"]

_Given = TypeVar("_Given")
_Result = TypeVar("_Result")
_PART_ROWS = 4 << 20
"""More rows than these are not held in memory: they go into a part of their own."""


@dataclass(frozen=True)
class Known:
    """An archive that a catalogue knows.

    Attributes:
        part: Number of the part that tells of its objects.
        archive: Its path.
        root: Its root.
        size_bytes: Its size.
        mark: What its store called its version when it was read.
        packed_ms: When it was packed.
        unread: How many of its objects could not be read.
        snapshot: Of a set, the first snapshot that names it.
    """

    part: int
    archive: str
    root: str
    size_bytes: int
    mark: str
    packed_ms: int
    unread: int
    snapshot: int | None = None


@dataclass
class Compared:
    """What a catalogue knows beside what lies there.

    Attributes:
        gone: Archives that are there no more or are others now, by number of the part: path, and
            when it was packed.
        known: Archives that are as they were when they were read.
        unknown: Those that it does not know.
    """

    gone: dict[int, dict[str, int]]
    known: list[Known]
    unknown: list[FileThere]


@dataclass
class ArchivesRead:
    """What reading some archives gave.

    Attributes:
        parts: Parts that were written.
        archives: How many archives were read.
        objects: How many objects they have.
        failures: What could not be read, by archive: the reason, or objects of it.
    """

    parts: list[Part] = field(default_factory=list)
    archives: int = 0
    objects: int = 0
    failures: list[tuple[str, EximError | Failure]] = field(default_factory=list)

    def take(self, other: ArchivesRead) -> None:
        """Add what reading others gave."""
        self.parts += other.parts
        self.archives += other.archives
        self.objects += other.objects
        self.failures += other.failures


class Catalogue:
    """The catalogue of the archives of one place, as it was when `renew` was called last.

    Args:
        url: Folder of the archives.
        storage_options: For the file system, see fsspec.

    Attributes:
        folder: The place.
        listing: The parts that there are.
        snapshots: Of a set, the first snapshot that names an archive, where that is known.

    Raises:
        StoreError: The protocol is unknown, or the options are not enough.
    """

    def __init__(self, url: str, storage_options: Mapping[str, Any] | None = None) -> None:
        self.url = url.rstrip("/") if "://" in url else url
        self._storage_options = storage_options
        self.folder: Folder = open_folder(url, storage_options)
        self.listing = PartsListing()
        self._set: SetFolder | None = None
        self._at: str | None = None
        self.snapshots: dict[str, int] = {}

    def renew(self) -> None:
        """Look which parts there are.

        Raises:
            InvalidArchiveError: The listing cannot be read.
            UnsupportedFormatError: It needs a newer reader.
            StoreError: The store refused or died.
        """
        self.listing = newest(self.folder)

    def as_set(self, of: SetFolder, at: str | None) -> Self:
        """Take the folder as a set.

        Args:
            of: The set.
            at: The snapshot whose archives count, see `SetFolder.chosen`.
        """
        self._set, self._at = of, at
        return self

    def archives(self) -> list[FileThere]:
        """Return the archives that lie directly in the folder, or that a set's snapshot names.

        Raises:
            NotFoundError: A set has no such snapshot.
            InvalidArchiveError: The snapshot is damaged.
            StoreError: The store refused or died.
        """
        if self._set is not None:
            packs = self._set.chosen(self._at).document.info.packs
            # What lies under the name of an archive of a set never changes.
            return [FileThere(pack.path, pack.size_bytes, pack.root) for pack in packs]
        return [file for file in self.folder.files() if file.name.endswith(ARCHIVE_SUFFIX)]

    def snapshots_of(self, archives: Iterable[str]) -> dict[str, int]:
        """Return the first snapshot that names each archive of a set; empty elsewhere.

        Args:
            archives: Their paths; snapshots are looked at from the last one on.
        """
        found: dict[str, int] = {}
        if self._set is None or not (left := set(archives)):
            return found
        for number in reversed(self._set.numbers()):
            named = {pack.path for pack in self._set.snapshot(number).document.info.packs}
            if found and not left & named:
                break
            found.update(dict.fromkeys(left & named, number))
        return found

    def known(self) -> list[Known]:
        """Return the archives that it knows, those of later parts last.

        Raises:
            NotFoundError: Parts were merged meanwhile.
            InvalidArchiveError: A table is damaged.
        """
        wanted = [(part, "archives") for part in self.listing.parts]
        return [
            Known(
                number,
                row["archive"],
                row["root"],
                row["size_bytes"],
                row["mark"],
                row["packed_ms"],
                row["unread"],
                row["snapshot"],
            )
            for (number, _), table in PartTable.open_all(self.folder, wanted).items()
            for rows in table.all_rows()
            for row in rows.to_pylist()
        ]

    def compared(self, known: Sequence[Known], jobs: int = 4) -> Compared:
        """Compare what it knows with what lies there.

        Args:
            known: What `known` gave.
            jobs: How many archives are looked at at once.
        """
        there = {file.name: file for file in self.archives()}
        latest = {one.archive: one for one in known}
        pairs = [(one, there[one.archive]) for one in latest.values() if one.archive in there]
        found = Compared(gone={}, known=[], unknown=[])
        for (one, file), is_same in _several(lambda pair: self._is_same(*pair), pairs, jobs):
            if is_same:
                found.known.append(one)
                del there[file.name]
        kept = {(one.part, one.archive) for one in found.known}
        for one in known:
            if (one.part, one.archive) not in kept:
                found.gone.setdefault(one.part, {})[one.archive] = one.packed_ms
        found.unknown += there.values()
        told = ((one.archive, one.snapshot) for one in found.known)
        self.snapshots |= {archive: number for archive, number in told if number is not None}
        return found

    def _is_same(self, known: Known, there: FileThere) -> bool:
        """Whether an archive is the one that was read: by its version, else by its root."""
        if known.size_bytes != there.size_bytes:
            return False
        if known.mark and known.mark == there.mark:
            return True
        try:
            with self.open(there.name) as archive:
                return archive.reader.root == known.root
        except EximError:
            return False  # whoever reads it names it

    def open(self, path: str) -> Archive:
        """Open an archive by its path below the folder."""
        return Archive.open(self.place(path), storage_options=self._storage_options)

    def place(self, path: str) -> str:
        """Return where an archive is, as the folder was given."""
        return path if self.url == "." else f"{self.url.rstrip('/')}/{path}"

    def shelf(self, gone: Mapping[int, Mapping[str, int]] | None = None) -> Shelf:
        """Return its parts to be searched.

        Args:
            gone: Archives that are there no more, by number of the part.
        """
        return Shelf(self.folder, self.listing.parts, gone or {})

    def read(
        self,
        archives: Iterable[FileThere],
        *,
        into: Folder | None = None,
        jobs: int = 4,
        progress: Callable[[ArchivesRead], None] | None = None,
    ) -> ArchivesRead:
        """Read archives into parts, which are not published.

        Args:
            archives: Which; their names are paths below the folder.
            into: Where the parts go; None takes the folder.
            jobs: How many archives are read at once.
            progress: Called after each archive.

        Raises:
            StoreError: The parts cannot be written.
        """
        done, rows = ArchivesRead(), CatalogueRows()
        target = into or self.folder
        archives = list(archives)
        self.snapshots |= self.snapshots_of(file.name for file in archives)

        def write() -> None:
            nonlocal rows
            if rows.waiting:
                done.parts.append(write_rows(target, rows))
            rows = CatalogueRows()

        for there, result in _several(self._rows_of, archives, jobs):
            if isinstance(result, EximError):
                done.failures.append((there.name, result))
            else:
                new, failures = result
                done.failures += [(there.name, failure) for failure in failures]
                done.archives += 1
                done.objects += new.objects
                rows.take(new)
                if rows.waiting >= _PART_ROWS:
                    write()
            if progress is not None:
                progress(done)
        write()
        return done

    def publish(
        self,
        parts: Sequence[Part],
        *,
        gone: Mapping[int, Iterable[str]] | None = None,
        anew: bool = False,
    ) -> None:
        """Make parts that were written a part of it, see `listing.publish`."""
        left_out = {number: set(names) for number, names in (gone or {}).items()}
        self.listing = publish(self.folder, parts, gone=left_out, anew=anew)

    def _rows_of(self, there: FileThere) -> tuple[CatalogueRows, list[Failure]] | EximError:
        try:
            with self.open(there.name) as archive:
                snapshot = self.snapshots.get(there.name)
                return rows_of(archive, there.name, there.mark, snapshot)
        except EximError as error:
            return error


def _several(
    call: Callable[[_Given], _Result], given: Iterable[_Given], jobs: int
) -> Iterator[tuple[_Given, _Result]]:
    """Yield what a call returns for each, in their order, a few ahead."""
    with ThreadPoolExecutor(jobs, "exim-index") as pool:
        coming: deque[tuple[_Given, Future[_Result]]] = deque()
        try:
            for one in given:
                coming.append((one, pool.submit(call, one)))
                if len(coming) > jobs:
                    first, future = coming.popleft()
                    yield first, future.result()
            while coming:
                first, future = coming.popleft()
                yield first, future.result()
        finally:
            for _, future in coming:
                future.cancel()


def rows_of(
    archive: Archive, path: str, mark: str = "", snapshot: int | None = None
) -> tuple[CatalogueRows, list[Failure]]:
    """Return the rows of an archive, and the objects of it that could not be read.

    Args:
        archive: Open archive.
        path: Its path below the folder or set.
        mark: What its store calls its version.
        snapshot: Of a set, the first snapshot that names it.

    Raises:
        InvalidArchiveError: It is damaged as a whole.
        StoreError: The store refused or died.
    """
    rows = CatalogueRows()
    return rows, add_rows(rows, archive, told_of(archive, path, mark, snapshot))


def add(
    url: str,
    archive: Archive,
    path: str,
    *,
    mark: str = "",
    snapshot: int | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> list[Failure]:
    """Add an archive that was just published to the catalogue of its folder or set.

    Args:
        url: The folder or set.
        archive: The archive, open.
        path: Its path below the folder.
        mark: What its store calls its version, if that is known.
        snapshot: Of a set, the first snapshot that names it.
        storage_options: For the file system, see fsspec.

    Returns:
        Objects of it that could not be read.

    Raises:
        InvalidArchiveError: The catalogue is damaged: `index` makes it anew.
        StoreError: The store refused or died.
    """
    folder = open_folder(url, storage_options)
    rows, failures = rows_of(archive, path, mark, snapshot)
    publish(folder, [write_rows(folder, rows)])
    return failures
