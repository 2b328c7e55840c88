"""Locations that cannot be meant as they are written: what to write is said before all else."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from fsspec.registry import known_implementations, registry

from mlflow_exim_plugin.container.frames import begins_frame
from mlflow_exim_plugin.container.paths import ARCHIVE_SUFFIX
from mlflow_exim_plugin.errors import ArchiveExistsError, NotFoundError, UsageError
from mlflow_exim_plugin.host.open.locations import DATABASES, SERVERS, is_database
from mlflow_exim_plugin.redaction import redact_url
from mlflow_exim_plugin.storage.ranges import open_range
from mlflow_exim_plugin.storage.schemes import stores
from mlflow_exim_plugin.storage.urls import local_path

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

__all__ = [
    "require_archive",
    "require_deployment",
    "require_location",
    "require_new_archive",
    "require_replaceable",
]

_WEB = ("http", "https")
_OF_MLFLOW = (*sorted(DATABASES), *sorted(SERVERS), *_WEB, "file")
_TO_MLFLOW = "exim"
"""How MLflow is given an archive."""
_SQLITE = re.compile(r"(sqlite(?:\+\w+)?):/{0,2}([^/].*)")
_SLASHES = re.compile(r"([a-z][a-z0-9+.-]+):/?([^/].*)", re.IGNORECASE)
_HOST = re.compile(r"(?:localhost|[\w-]+(?:\.[\w-]+)*):\d{1,5}(?:/.*)?|localhost(?:/.*)?")
_FORMER_NAMES = {"postgres": "postgresql", "mariadb": "mysql"}
_DATABASE_FILES = (".db", ".sqlite", ".sqlite3")
_OTHER_FORMATS = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", *_DATABASE_FILES)
_PACK_IT = "make one of it: pack ARCHIVE --tracking-uri URI"


def require_location(location: str, *, for_mlflow: bool = True) -> None:
    """Refuse what is no way to write where something lies.

    Args:
        location: What is written.
        for_mlflow: Whether it may be an URI of MLflow, in which a colon ends a scheme.

    Raises:
        UsageError: It is none; the hint is what was meant.
    """
    if _exists(location):
        return
    shown = redact_url(location)
    if found := _SQLITE.fullmatch(location):
        raise UsageError(f"{shown} names no file of SQLite", f"write {found[1]}:///{found[2]}")
    if _HOST.fullmatch(location):
        raise UsageError(f"{shown} has no scheme", f"write http://{location}, or https://")
    scheme = urlsplit(location).scheme
    if is_database(location) and (folder := _folder_in_place_of_a_file(location)):
        raise UsageError(f"{shown} is a folder", f"write sqlite:///{folder}/mlflow.db")
    if len(scheme) < 2 or "::" in location:  # a path, that of a Windows drive too, or a chain
        return
    if scheme == _TO_MLFLOW:
        raise UsageError(
            f"{shown} is an archive's address for MLflow", f"write {_archive_at(location)}"
        )
    if (name := _FORMER_NAMES.get(scheme)) is not None:
        raise UsageError(
            f"MLflow has no store for {shown}", f"write {name}{shown.removeprefix(scheme)}"
        )
    base = scheme.partition("+")[0]
    if base not in {*_OF_MLFLOW, *known_implementations, *registry}:
        # A plugin's, or the name of a file.
        if base in _of_plugins() if for_mlflow else "://" not in location:
            return
        near = difflib.get_close_matches(base, [*_OF_MLFLOW, *stores()], n=1)
        of_mlflow = ", ".join(f"{name}:" for name in _OF_MLFLOW)
        raise UsageError(
            f"there is no kind of store {base}:, as in {shown}",
            f"did you mean {near[0]}://?" if near else f"MLflow has {of_mlflow}",
        )
    if (
        scheme != "file"
        and base not in {*SERVERS, "sqlite"}
        and (found := _SLASHES.fullmatch(location))
    ):
        raise UsageError(f"{shown} lacks a slash", f"write {found[1]}://{redact_url(found[2])}")


def require_archive(location: str, instead: str = _PACK_IT) -> None:
    """Refuse what is no place of an archive.

    Args:
        location: Where one is to be read or written.
        instead: What to write where it is a server or a database.

    Raises:
        UsageError: It is none.
    """
    require_location(location, for_mlflow=False)
    if is_database(location) or location in SERVERS:
        kind = "a database" if is_database(location) else "a server"
        raise UsageError(f"{redact_url(location)} is {kind}, and no archive", instead)


def require_new_archive(location: str, instead: str) -> None:
    """Refuse a name that no archive may have.

    Raises:
        UsageError: It is the name of something else.
    """
    require_archive(location, instead)
    path = local_path(location)
    if path is not None and Path(path).is_dir():
        folder = path.rstrip("/")
        raise UsageError(
            f"{folder} is a folder, and what is written is a file",
            f"write {folder}/NAME{ARCHIVE_SUFFIX}, or --set {folder} for a set",
        )
    suffix = Path(urlsplit(location).path).suffix.lower()
    if suffix in _OTHER_FORMATS:
        stem = location[: -len(suffix)].removesuffix(".tar")
        raise UsageError(
            f"{redact_url(location)}: what is written is a {ARCHIVE_SUFFIX}, and no {suffix}",
            f"write {redact_url(stem)}{ARCHIVE_SUFFIX}",
        )


def require_replaceable(location: str, storage_options: Mapping[str, Any] | None) -> None:
    """Refuse to replace what is no archive, such as the database that is packed.

    Raises:
        ArchiveExistsError: There is a file of something else.
    """
    try:
        source = open_range(location, storage_options)
    except NotFoundError:
        return
    try:
        start = source.read_range(0, min(4, source.size_bytes))
    finally:
        source.close()
    if start and not begins_frame(start):
        raise ArchiveExistsError(
            f"{redact_url(location)} exists, and is no archive that --overwrite may replace",
            "choose another name, or remove it yourself",
        )


def require_deployment(location: str) -> None:
    """Refuse what MLflow cannot write to, and no plugin of it can.

    Raises:
        UsageError: It is an archive, or the file of a database in place of its URI.
    """
    shown = redact_url(location)
    if urlsplit(location).scheme == _TO_MLFLOW or location.endswith(ARCHIVE_SUFFIX):
        raise UsageError(
            f"{shown} is an archive, which is only read",
            f"write pack {_archive_at(shown)} --tracking-uri SOURCE",
        )
    path = local_path(location)
    if path is not None and (path.endswith(_DATABASE_FILES) or Path(path).is_file()):
        raise UsageError(f"{shown} is no URI of a database", f"write sqlite:///{path}")
    require_location(location)


def _exists(location: str) -> bool:
    path = local_path(location)
    return not location or (path is not None and Path(path).exists())


def _folder_in_place_of_a_file(uri: str) -> str:
    parts = urlsplit(uri)
    path = parts.path[1:].rstrip("/") if parts.scheme.startswith("sqlite") else ""
    return path if path and Path(path).is_dir() else ""


def _archive_at(address: str) -> str:
    rest = address.removeprefix(f"{_TO_MLFLOW}:")
    return rest[2:] if rest.startswith("///") else rest


def _of_plugins() -> set[str]:
    """Return the schemes that MLflow has stores for."""
    from mlflow.tracking._tracking_service.utils import _tracking_store_registry

    return {*_tracking_store_registry._registry}  # noqa: SLF001 - it tells in no other way
