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
from mlflow_exim_plugin.storage.file_systems import file_system, store_errors
from mlflow_exim_plugin.storage.schemes import is_far

if TYPE_CHECKING:
    from mlflow_exim_plugin.options import Opening

__all__ = ["ArchiveThere", "archives_in"]


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
