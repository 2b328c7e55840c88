"""The one gate for paths and places that a source names, on their way to any target.

What comes may be an archive that somebody crafted, so a path may try to leave the folder that it is
put below, and a place of files may be one that a server would then show to whoever asks.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from mlflow_exim_plugin.container.paths import is_device_name
from mlflow_exim_plugin.errors import StoreError
from mlflow_exim_plugin.schema.objects import Kind
from mlflow_exim_plugin.storage.urls import path_of_uri

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["REFUSED", "local_path_problem", "path_problem", "place_problem", "require_path"]

REFUSED = "mlflow-exim-refused:/source"
"""Stands where a place of files was refused: nothing that MLflow opens."""

_SEPARATOR = re.compile(r"[/\\]")
_ABSOLUTE = re.compile(r"(?:[A-Za-z]:)?[/\\]")
_DRIVE = re.compile(r"[A-Za-z]:")
_NOT_ON_WINDOWS = re.compile('[<>:"|?*\\\\\x00-\x1f]')
_PROMPT_SOURCE = re.compile(r"[A-Za-z0-9_-]+")
"""Prompts have no files: their source is a word that MLflow puts there."""
_ELSEWHERE = {
    *("runs", "models"),  # MLflow finds the place by itself
    *("s3", "s3a", "r2", "b2", "gs", "oss", "hdfs", "viewfs", "dbfs"),
    *("wasb", "wasbs", "abfs", "abfss", "adl"),
}
"""Schemes of places that are nobody's own disk, which may stay what they were."""


def path_problem(path: str) -> str:
    """Return why a path may not be put below a folder, empty where it stays in it on any machine.

    Args:
        path: As a source names it, with ``/`` between its segments.
    """
    if any(segment in {"", "."} for segment in path.split("/")):
        return "it has an empty segment"
    if any(_ABSOLUTE.match(read) for read in _readings(path)):
        return "it is absolute"
    if any(_DRIVE.match(read) for read in _readings(path)):
        return "its name begins with a letter and a colon, as a drive of Windows does"
    return _way_out(path)


def local_path_problem(path: str, *, on_windows: bool = os.name == "nt") -> str:
    """Return why a file may not be put below a folder of this machine, empty where it may.

    Args:
        path: As a source names it, with ``/`` between its segments.
        on_windows: Whether the machine runs Windows, which takes some names for others.
    """
    if problem := path_problem(path):
        return problem
    for segment in path.split("/") if on_windows else ():
        if is_device_name(segment):
            return f"Windows takes {segment!r} for a device"
        if found := _NOT_ON_WINDOWS.search(segment):
            return f"Windows has no {found.group()!r} in the names of files"
        if segment[-1] in ". ":
            return f"Windows drops what {segment!r} ends with"
    return ""


def require_path(path: str, *, is_local: bool = False) -> None:
    """Refuse a path of an artifact that may not be put below a folder.

    Args:
        path: As a source names it, with ``/`` between its segments.
        is_local: Whether the folder is one of this machine.

    Raises:
        StoreError: It may not; says why.
    """
    if problem := local_path_problem(path) if is_local else path_problem(path):
        raise StoreError(f"artifact path {path!r} is refused: {problem}")


def place_problem(place: str, kind: Kind = Kind.MODEL_VERSION) -> str:
    """Return why a target may not be told that files are at a place, empty where it may.

    Args:
        place: URI or path that a source names, and that nothing of this transfer is at.
        kind: Kind of the object that has its files there.
    """
    scheme = urlsplit(place).scheme.lower()
    if kind is Kind.PROMPT_VERSION and _PROMPT_SOURCE.fullmatch(place):
        return ""
    if scheme not in _ELSEWHERE:
        return "a server could take it for a folder of its own disk"
    return _way_out(place)


def moved(uri: str, old_root: str, new_root: str) -> str | None:
    """Return a URI below an old root as it is below the new one, None for another URI."""
    for root, found in ((old_root, uri), (_path(old_root), _path(uri))):
        if root and (rest := below(found, root.rstrip("/"))) is not None:
            return new_root.rstrip("/") + rest
    return None


def below(place: str, root: str) -> str | None:
    """Return the rest of a place behind a root, None where it is not there or leads out of it."""
    rest = place.removeprefix(root)
    is_below = place.startswith(root) and (not rest or rest.startswith("/"))
    return rest if is_below and not (rest.strip("/") and path_problem(rest.strip("/"))) else None


def _path(uri: str) -> str:
    return path_of_uri(uri) or uri


def _way_out(path: str) -> str:
    for read in _readings(path):
        if "\0" in read:
            return "it has a NUL"
        if ".." in _SEPARATOR.split(read):
            return "it leads out of its folder"
    return ""


def _readings(path: str) -> Iterator[str]:
    """Yield a path, and what servers make of it that decode it, some more than once."""
    yield path
    while (read := unquote(path)) != path:
        yield (path := read)
