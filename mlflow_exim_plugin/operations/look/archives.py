"""The archives that lie in a folder or a store."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_exim_plugin.container.paths import ARCHIVE_SUFFIX
from mlflow_exim_plugin.errors import EximError
from mlflow_exim_plugin.host.open.locations import store_folder
from mlflow_exim_plugin.redaction import redact_url
from mlflow_exim_plugin.sources.archive.archive import Archive
from mlflow_exim_plugin.sources.archive.snapshot.set_folder import as_set
from mlflow_exim_plugin.storage.file_systems import file_system, store_errors
from mlflow_exim_plugin.storage.schemes import is_far

if TYPE_CHECKING:
    from mlflow_exim_plugin.options import Opening

__all__ = ["ArchiveThere", "SnapshotThere", "archives_in", "snapshots_in"]


@dataclass(frozen=True)
class ArchiveThere:
    """An archive that lies in a folder.

    Attributes:
        name: Its name in the folder.
        source: Where it was packed from, without secrets.
        packed: When, UTC, as its envelope has it.
        size_bytes: Its size.
        root: Root digest, lower-case hex.
        error: Why it cannot be opened, one line; then the rest is empty.
    """

    name: str
    source: str = ""
    packed: str = ""
    size_bytes: int = 0
    root: str = ""
    error: str = ""


def archives_in(location: str, opening: Opening) -> list[ArchiveThere]:
    """Return the archives that lie directly in a folder, none where it is no folder.

    Args:
        location: Path or fsspec URL.
        opening: How the store is opened.

    Raises:
        StoreError: It cannot be listed.
    """
    if location.endswith(ARCHIVE_SUFFIX) or "::" in location:
        return []
    if not is_far(location):
        folder = store_folder(location)
        found = [] if folder is None or not folder.is_dir() else list(map(str, folder.iterdir()))
    else:
        store, root = file_system(location, opening.storage_options)
        with store_errors(location, "list"):
            names = store.ls(root, detail=False) if store.isdir(root) else []
        found = [store.unstrip_protocol(name) for name in names]
    return [_look(url, opening) for url in sorted(found) if url.endswith(ARCHIVE_SUFFIX)]


@dataclass(frozen=True)
class SnapshotThere:
    """A snapshot of a set.

    Attributes:
        number: Its number.
        source: Where it was packed from, without secrets.
        taken: When, UTC.
        runs: How many runs it has.
        archives: How many archives it is made of.
        size_bytes: Size of all these.
        new_bytes: Size of those that the snapshot before does not have.
        failed: How many objects could not be packed.
        root: Its root digest, lower-case hex.
        held: Why it is held, empty where it is not.
    """

    number: int
    source: str
    taken: str
    runs: int
    archives: int
    size_bytes: int
    new_bytes: int
    failed: int
    root: str
    held: str = ""


def snapshots_in(location: str, opening: Opening) -> list[SnapshotThere] | None:
    """Return the snapshots of a set, the oldest first; None where it is none, or one is asked for.

    Args:
        location: Path or fsspec URL.
        opening: How the store is opened.

    Raises:
        InvalidArchiveError: One is damaged.
        StoreError: They cannot be listed.
    """
    found = as_set(location, opening.storage_options)
    if found is None or found[1] is not None or opening.snapshot is not None:
        return None
    folder, holds, known, listed = found[0], found[0].holds(), set[str](), []
    for snapshot in folder.each():
        info, system = snapshot.document.info, snapshot.document.system
        sizes = {pack.path: pack.size_bytes for pack in info.packs}
        listed.append(
            SnapshotThere(
                snapshot.number,
                redact_url(system.mlflow_tracking_uri),
                system.export_time_text,
                info.num_ok_runs,
                len(sizes),
                sum(sizes.values()),
                sum(size for path, size in sizes.items() if path not in known),
                sum(counts.failed for counts in info.counts.values()),
                snapshot.sha256,
                holds[snapshot.number].reason if snapshot.number in holds else "",
            )
        )
        known = set(sizes)
    return listed


def _look(url: str, opening: Opening) -> ArchiveThere:
    name = Path(url).name
    try:
        with Archive.open(url, storage_options=opening.storage_options) as archive:
            system = archive.summary.system
            return ArchiveThere(
                name,
                redact_url(system.mlflow_tracking_uri or ""),
                system.export_time_text,
                archive.reader.size_bytes,
                archive.reader.root,
            )
    except EximError as error:
        return ArchiveThere(name, error=error.message)
