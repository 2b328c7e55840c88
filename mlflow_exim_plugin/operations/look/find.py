"""``find``: which archives have an object, by what is known of it."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.container.paths import ARCHIVE_SUFFIX
from mlflow_exim_plugin.errors import EximError, InvalidArchiveError, NotFoundError, UsageError
from mlflow_exim_plugin.host.open.locations import store_folder
from mlflow_exim_plugin.operations.lineage import copies
from mlflow_exim_plugin.operations.recognition import is_archive
from mlflow_exim_plugin.options import Opening, Reading, Seeking, flat
from mlflow_exim_plugin.redaction import redact_url
from mlflow_exim_plugin.sets.catalogue.catalogue import Catalogue, Compared, rows_of
from mlflow_exim_plugin.sets.catalogue.listing import write_rows
from mlflow_exim_plugin.sets.catalogue.parts import FOLDER
from mlflow_exim_plugin.sets.catalogue.search import Matches, Shelf, search
from mlflow_exim_plugin.sources.archive.archive import Archive
from mlflow_exim_plugin.sources.archive.snapshot.set_folder import as_set
from mlflow_exim_plugin.storage.folders.folder import MemoryFolder
from mlflow_exim_plugin.storage.schemes import is_far

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from mlflow_exim_plugin.operations.lineage import Occurrence
    from mlflow_exim_plugin.schema.lineage import SourceRecord
    from mlflow_exim_plugin.schema.objects import Failure
    from mlflow_exim_plugin.storage.folders.folder import FileThere

__all__ = ["FindResult", "FoundObject", "find"]

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_ATTEMPTS = 3
_WORTH_AN_INDEX = 10
"""So many archives of a folder take so long to read that a catalogue is worth it."""


@dataclass(frozen=True)
class FoundObject:
    """An object that was found.

    Attributes:
        location: The archive, server or store, without secrets.
        kind: Its kind.
        id: Its id there, or its name; of a version ``NAME/NUMBER``.
        name: Name that people know it by, empty without one.
        experiment_id: Its experiment, empty for what belongs to none.
        experiment: Name of its experiment, empty where that is not known.
        workspace: Its workspace; empty where that is not known.
        user: Who made it, empty where that is not known.
        status: Its status, empty without one.
        lifecycle_stage: ``active`` or ``deleted``, empty without one.
        start_time_ms: When it began, ms since the Unix epoch, UTC; None where that is not known.
        end_time_ms: When it ended, likewise.
        packed_ms: When the archive was packed, likewise; None for what is not in one.
        source: Where the archive was packed from, empty for what is not in one.
        snapshot: Of a set, the first snapshot that names the archive.
        files: Paths of the files whose SHA-256 was asked for.
        sources: Where an object of a server was before, oldest first.
    """

    location: str
    kind: str
    id: str
    name: str = ""
    experiment_id: str = ""
    experiment: str = ""
    workspace: str = ""
    user: str = ""
    status: str = ""
    lifecycle_stage: str = ""
    start_time_ms: int | None = None
    end_time_ms: int | None = None
    packed_ms: int | None = None
    source: str = ""
    snapshot: int | None = None
    files: list[str] = field(default_factory=list)
    sources: list[SourceRecord] = field(default_factory=list)

    @classmethod
    def of_row(cls, row: dict[str, Any], location: str, snapshot: int | None = None) -> FoundObject:
        """Take an object from a row of a catalogue."""
        return cls(
            location,
            row["kind"],
            row["id"],
            row["name"],
            row["experiment_id"] or "",
            row["experiment"] or "",
            row["workspace"],
            row["user"] or "",
            row["status"] or "",
            row["lifecycle_stage"] or "",
            start_time_ms=row["start_time_ms"],
            end_time_ms=row["end_time_ms"],
            packed_ms=row["packed_ms"],
            source=row["source"],
            snapshot=snapshot,
            files=sorted(row["files"]),
        )

    @classmethod
    def of_occurrence(cls, found: Occurrence) -> FoundObject:
        """Take an object of a server or store."""
        return cls(
            found.location,
            str(found.kind),
            found.id,
            found.name,
            found.experiment_id,
            user=found.user,
            sources=found.sources,
        )


@dataclass
class FindResult:
    """What was found.

    Attributes:
        objects: Place by place, in each the newest first.
        total: How many there are; where not all are shown, those that a later state would hide are
            counted too.
        failures: What could not be read, and why.
        notes: What was slower than it need be, and how that is made better.
    """

    objects: list[FoundObject] = field(default_factory=list)
    total: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True when all could be read."""
        return not self.failures

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        failures = [{"location": place, "reason": reason} for place, reason in self.failures]
        return {
            "ok": self.ok,
            "total": self.total,
            "objects": [asdict(one) for one in self.objects],
            "failures": failures,
            "notes": self.notes,
        }


@flat()
def find(
    locations: str | Iterable[str],
    identity: str | None = None,
    *,
    seeking: Seeking = Seeking(),
    opening: Opening = Opening(),
    reading: Reading = Reading(),
) -> FindResult:
    """Find objects in archives, by what is known of them.

    A folder is asked by its catalogue, see `index`; archives that this does not know are read, and
    so are all where there is none.

    Args:
        locations: Archives, and folders of archives, on this machine or any store. For an
            ``identity`` servers and stores of MLflow too.
        identity: An id that the object has or had: of a run, logged model, trace, ...
        seeking: What else must hold of it; each option is a keyword of its own too, here and below.
        opening: How locations are opened.
        reading: How servers and stores are read.

    Raises:
        UsageError: Nothing is said that it must fulfil, or a server is asked for more than an id.
        NotFoundError: A location is not there.
        ServerError: A server cannot be reached.
    """
    if identity is not None and not _ID.fullmatch(identity):
        raise UsageError(f"{identity!r} is no id", "give a run id, or one of m-…, tr-… or d-…")
    if identity is None and seeking.is_empty:
        raise UsageError("nothing is said of what to find", "give an id, or --name, --tag and such")
    result = FindResult()
    for location in [locations] if isinstance(locations, str) else locations:
        _Location(location, identity, seeking, opening, reading, result).find()
    return result


class _Location:
    """One location."""

    def __init__(
        self,
        location: str,
        identity: str | None,
        seeking: Seeking,
        opening: Opening,
        reading: Reading,
        result: FindResult,
    ) -> None:
        self._location = location
        self._name = redact_url(location)
        self._identity = identity
        self._seeking = seeking
        self._opening = opening
        self._reading = reading
        self._result = result

    def find(self) -> None:
        """Add what it has to the result."""
        if (catalogue := catalogue_at(self._location, self._opening)) is not None:
            self._in_folder(catalogue)
        elif is_archive(self._location, self._opening):
            self._in_archive()
        else:
            self._elsewhere()

    def _elsewhere(self) -> None:
        if self._identity is None or not self._seeking.is_empty:
            raise UsageError(
                f"{self._name} is no archive and no folder of archives",
                "a server or store can be asked for an ID alone",
            )
        found = copies(
            self._identity, [self._location], opening=self._opening, reading=self._reading
        )
        objects = [FoundObject.of_occurrence(occurrence) for occurrence in found]
        self._result.objects += objects
        self._result.total += len(objects)

    def _in_archive(self) -> None:
        options, memory = self._opening.storage_options, MemoryFolder(self._location)
        with Archive.open(self._location, storage_options=options) as archive:
            rows, failures = rows_of(archive, self._location)
        parts = [write_rows(memory, rows)]
        for failure in failures:
            self._failed(self._name, failure)
        answer = search([Shelf(memory, parts)], self._seeking, self._identity)
        self._take(answer, lambda _: self._name, {})

    def _in_folder(self, catalogue: Catalogue) -> None:
        try:
            answer = self._by_catalogue(catalogue)
        except InvalidArchiveError as error:  # it only repeats what the archives say
            self._result.failures.append((self._name, f"{error.message}; {error.hint}"))
            answer = self._by_archives(catalogue, catalogue.archives())
        self._take(answer, lambda path: redact_url(catalogue.place(path)), catalogue.snapshots)

    def _by_catalogue(self, catalogue: Catalogue) -> Matches:
        """Return what the catalogue and archives that it does not know have."""
        for attempt in range(1, _ATTEMPTS + 1):
            catalogue.renew()
            try:
                compared = catalogue.compared(catalogue.known())
                answer = self._compared(catalogue, compared)
            except NotFoundError:  # its parts were merged meanwhile
                if attempt == _ATTEMPTS:
                    raise
                continue
            for known in compared.known:
                if known.unread:
                    place = redact_url(catalogue.place(known.archive))
                    reason = f"{known.unread} objects of it could not be read: verify tells which"
                    self._result.failures.append((place, reason))
            return answer
        raise AssertionError

    def _compared(self, catalogue: Catalogue, compared: Compared) -> Matches:
        if not catalogue.listing.number:
            if len(compared.unknown) >= _WORTH_AN_INDEX:
                self._result.notes.append(
                    f"{self._name} has no catalogue: all {len(compared.unknown)} archives were "
                    f"read. `mlflow exim index` makes one."
                )
        elif compared.unknown or compared.gone:
            changed = len(compared.unknown), sum(map(len, compared.gone.values()))
            self._result.notes.append(
                f"The catalogue of {self._name} is older than the folder: {changed[0]} archives "
                f"that it does not know were read, {changed[1]} that it knows are gone or others. "
                "`mlflow exim index` brings it up to date."
            )
        shelf = catalogue.shelf(compared.gone)
        return self._by_archives(catalogue, compared.unknown, shelf)

    def _by_archives(
        self, catalogue: Catalogue, archives: list[FileThere], *shelves: Shelf
    ) -> Matches:
        """Return what some archives and some shelves have."""
        memory = MemoryFolder(self._location)
        read = catalogue.read(archives, into=memory)
        answer = search([*shelves, Shelf(memory, read.parts)], self._seeking, self._identity)
        for path, failure in read.failures:
            self._failed(redact_url(catalogue.place(path)), failure)
        return answer

    def _failed(self, place: str, failure: EximError | Failure) -> None:
        if isinstance(failure, EximError):
            reason = failure.message.removeprefix(f"{place}: ")
        else:
            reason = f"{failure.kind.words} {failure.id}: {failure.reason}"
        self._result.failures.append((place, reason))

    def _take(
        self, answer: Matches, place_of: Callable[[str], str], snapshots: Mapping[str, int]
    ) -> None:
        for row in answer.objects:
            archive = row["archive"]
            found = FoundObject.of_row(row, place_of(archive), snapshots.get(archive))
            self._result.objects.append(found)
        self._result.total += answer.total


def catalogue_at(location: str, opening: Opening) -> Catalogue | None:
    """Return the catalogue of a set or folder of archives, None where it is something else.

    Args:
        location: Path or fsspec URL.
        opening: How the store is opened.

    Raises:
        StoreError: It cannot be listed.
    """
    if location.endswith(ARCHIVE_SUFFIX) or "::" in location:
        return None
    path = None if is_far(location) else store_folder(location)
    if path is None and not is_far(location):
        return None
    if (found := as_set(location, opening.storage_options)) is not None:
        folder, number = found
        at = opening.snapshot if number is None else str(number)
        return Catalogue(folder.url, opening.storage_options).as_set(folder, at)
    if path is not None and not path.is_dir():
        return None
    location = location if path is None else str(path)
    catalogue = Catalogue(location, opening.storage_options)
    return catalogue if catalogue.archives() or catalogue.folder.files(f"{FOLDER}/parts") else None
