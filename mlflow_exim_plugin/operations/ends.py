"""What a side of a comparison is: a server, a store, or an archive."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mlflow_exim_plugin.container.paths import ARCHIVE_SUFFIX
from mlflow_exim_plugin.errors import NotFoundError
from mlflow_exim_plugin.sources.archive.archive import Archive
from mlflow_exim_plugin.sources.archive.source import ArchiveSource
from mlflow_exim_plugin.storage.files import is_database, redact_url

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow_exim_plugin.sources.server.source import ServerSource

__all__ = ["opened"]

_SERVERS = {"http", "https", "databricks", "databricks-uc", "uc"}
_ZSTD_MAGIC = 0xFD2FB528
_SKIPPABLE_MAGICS = range(0x184D2A50, 0x184D2A60)
_SQLITE_MAGIC = b"SQLite format 3\x00"


@contextlib.contextmanager
def opened(
    location: str,
    *,
    jobs: int,
    storage_options: dict[str, Any] | None = None,
    contents: bool = True,
) -> Iterator[tuple[ServerSource | ArchiveSource, str]]:
    """Open one side to read it.

    Args:
        location: URI of a tracking server or store, or path or fsspec URL of an archive.
        jobs: Calls to a server that may be under way at once.
        storage_options: Given to the fsspec file system of an archive.
        contents: False reads no metric rows and no files from a server.

    Yields:
        The source, and what to call it, without secrets.

    Raises:
        NotFoundError: It is neither.
        InvalidArchiveError: The archive cannot be opened.
        UnsupportedFormatError: The archive needs a newer reader.
        ServerError: MLflow cannot open the store.
    """
    if _is_archive(location):
        with Archive.open(location, storage_options=storage_options) as archive:
            yield ArchiveSource(archive), redact_url(location)
        return
    from mlflow_exim_plugin.host.open.host import Host
    from mlflow_exim_plugin.sources.server.source import ServerSource

    with Host(location, location, create=False, snapshot=contents) as host:
        yield ServerSource(host, jobs=jobs, contents=contents), host.display_uri


def _is_archive(location: str) -> bool:
    """Whether a location is an archive's; else it is a server's or store's.

    Raises:
        NotFoundError: It is none of them.
    """
    if is_database(location):
        return False
    url = urlsplit(location)
    if location.endswith(ARCHIVE_SUFFIX) or (url.scheme and url.path.endswith(ARCHIVE_SUFFIX)):
        return True
    if url.scheme in _SERVERS or location in _SERVERS:
        return False
    path = Path(url.path if url.scheme == "file" else location)
    if path.is_dir() and any(path.glob("*/meta.yaml")):
        return False
    if not path.is_file():
        raise NotFoundError(
            f"there is no server, store or archive at {redact_url(location)}",
            "write http://…, sqlite:///…, the folder of a file store, or a name ending "
            f"{ARCHIVE_SUFFIX}",
        )
    with path.open("rb") as file:
        start = file.read(len(_SQLITE_MAGIC))
    if start == _SQLITE_MAGIC:
        raise NotFoundError(
            f"{location} is a database, which is given by its URI", f"write sqlite:///{location}"
        )
    magic = struct.unpack("<I", start[:4])[0] if len(start) >= 4 else 0
    if magic != _ZSTD_MAGIC and magic not in _SKIPPABLE_MAGICS:
        raise NotFoundError(f"{location} is no archive: it does not start with a zstd frame")
    return True
