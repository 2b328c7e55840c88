"""``index``: the catalogue of a set or folder of archives, made or brought up to date."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import EximError, NotFoundError
from mlflow_exim_plugin.operations.look.find import catalogue_at
from mlflow_exim_plugin.options import Indexing, Opening, Scaling, flat
from mlflow_exim_plugin.redaction import redact_url
from mlflow_exim_plugin.sets.catalogue.catalogue import ArchivesRead, Catalogue, Compared
from mlflow_exim_plugin.work.division import FOR_EACH
from mlflow_exim_plugin.work.engines import engine_asked
from mlflow_exim_plugin.work.running import done_by_engine

if TYPE_CHECKING:
    from mlflow_exim_plugin.storage.folders.folder import FileThere

__all__ = ["Indexed", "index"]


@dataclass
class Indexed:
    """What a catalogue tells of then.

    Attributes:
        location: The folder, without secrets.
        archives: How many archives it knows.
        objects: How many objects they have.
        parts: How many parts it has.
        read: How many archives were read for it now.
        gone: How many it no longer tells of, because they are gone or others now.
        failures: What could not be read, and why: an archive, or an object of one.
    """

    location: str
    archives: int = 0
    objects: int = 0
    parts: int = 0
    read: int = 0
    gone: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True when all could be read."""
        return not self.failures

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        failures = [{"location": place, "reason": reason} for place, reason in self.failures]
        return vars(self) | {"ok": self.ok, "failures": failures}


@flat()
def index(
    location: str,
    *,
    indexing: Indexing = Indexing(),
    opening: Opening = Opening(),
    scaling: Scaling = Scaling(),
) -> Indexed:
    """Make the catalogue of a set or folder of archives, or bring it up to date.

    Args:
        location: The set or folder, a path or any fsspec URL; the catalogue is written below it.
        indexing: How it is made; each option is a keyword of its own too, here and below.
        opening: How the store is opened.
        scaling: What reads the archives in several tasks.

    Raises:
        NotFoundError: There are no archives.
        InvalidArchiveError: The catalogue is damaged; ``rebuild`` makes it anew.
        StoreError: The store refused or died.
    """
    catalogue = catalogue_at(location, replace(opening, snapshot=None))
    if catalogue is None:
        raise NotFoundError(f"there are no archives in {redact_url(location)}")
    if indexing.rebuild:
        compared = Compared({}, [], catalogue.archives())
    else:
        catalogue.renew()
        compared = catalogue.compared(catalogue.known(), indexing.jobs)
    read = _read(catalogue, compared.unknown, indexing, opening, scaling)
    if read.parts or compared.gone or indexing.rebuild:
        catalogue.publish(read.parts, gone=compared.gone, anew=indexing.rebuild)
    return _told(catalogue, compared, read.archives, read.failures)


@dataclass(frozen=True, repr=False)
class _ReadTask:
    """Some archives that are to be read; says how many alone, for engines log it."""

    url: str
    opening: Opening
    archives: list[FileThere]
    snapshots: dict[str, int]
    jobs: int

    def __repr__(self) -> str:
        return f"index({len(self.archives)} archives)"


def read_some(task: _ReadTask) -> ArchivesRead | EximError:
    """Read some archives into parts; to be called by a worker.

    Returns:
        The parts, which are not published; or why they could not be written.
    """
    try:
        catalogue = Catalogue(task.url, task.opening.storage_options)
        catalogue.snapshots = task.snapshots
        return catalogue.read(task.archives, jobs=task.jobs)
    except EximError as error:
        return error


def _read(
    catalogue: Catalogue,
    archives: list[FileThere],
    indexing: Indexing,
    opening: Opening,
    scaling: Scaling,
) -> ArchivesRead:
    if not scaling.is_asked:
        return catalogue.read(archives, jobs=indexing.jobs, progress=indexing.progress)
    engine = engine_asked(scaling)
    count = FOR_EACH * engine.planned_for
    snapshots = catalogue.snapshots_of(file.name for file in archives)
    tasks = [
        _ReadTask(catalogue.url, opening, some, snapshots, indexing.jobs)
        for some in (archives[number::count] for number in range(count))
        if some
    ]
    read = ArchivesRead()
    for _, done in done_by_engine(engine, read_some, [tasks]):
        read.take(done)
        if indexing.progress is not None:
            indexing.progress(read)
    return read


def _told(
    catalogue: Catalogue, compared: Compared, read: int, failures: list[tuple[str, Any]]
) -> Indexed:
    parts = catalogue.listing.parts
    result = Indexed(redact_url(catalogue.url), parts=len(parts), read=read)
    result.archives = sum(part.tables["archives"].rows for part in parts)
    result.objects = sum(part.objects for part in parts)
    result.gone = sum(map(len, compared.gone.values()))
    for path, failure in failures:
        place = redact_url(catalogue.place(path))
        if isinstance(failure, EximError):
            result.failures.append((place, failure.message.removeprefix(f"{place}: ")))
        else:
            reason = f"{failure.kind.words} {failure.id}: {failure.reason}"
            result.failures.append((place, reason))
    for known in compared.known:
        if known.unread:
            place = redact_url(catalogue.place(known.archive))
            result.failures.append((place, f"{known.unread} objects of it could not be read"))
    return result
