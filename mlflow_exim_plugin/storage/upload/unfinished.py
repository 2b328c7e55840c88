"""What killed or interrupted processes left of files that they wrote, on this machine and stores.

What a process noted or locked on this machine is known to be in use, or to be left. Of all else
nobody can say here whether another machine is at it: its age has to be judged.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
from dataclasses import dataclass, replace
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import StoreError
from mlflow_exim_plugin.redaction import redact_url
from mlflow_exim_plugin.storage.file_systems import file_system, store_errors
from mlflow_exim_plugin.storage.leftovers import (
    FOLDER_PREFIX,
    is_half,
    is_held,
    partial_of,
    partial_prefix,
    remove_left,
)
from mlflow_exim_plugin.storage.schemes import Publication, publication_of
from mlflow_exim_plugin.storage.upload.publication import upload_to
from mlflow_exim_plugin.storage.upload.under_way import Note, notes
from mlflow_exim_plugin.storage.urls import local_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["LeftoverState", "Unfinished", "remove_unfinished", "unfinished"]


class LeftoverState(str, Enum):
    """Whether somebody is at a file that is not finished."""

    IN_USE = "in use"
    LEFT = "left"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Unfinished:
    """A file that is not finished.

    Attributes:
        url: The one that it was to be, without user and password; of a long name its beginning. For
            a file of a run, and what was extracted, the folder that it is in.
        kind: ``file`` beside it, ``upload`` or ``blocks`` of a store.
        name: What it is called until then: a path, the id of an upload; blocks have none.
        state: Whether somebody is at it.
        begun_ms: When it was begun or last written, in ms since the Unix epoch; None if the store
            does not tell.
        size_bytes: None if nobody tells.
        note: That of this machine.
    """

    url: str
    kind: str
    name: str
    state: LeftoverState
    begun_ms: int | None = None
    size_bytes: int | None = None
    note: Note | None = None


def unfinished(
    url: str | None = None, storage_options: Mapping[str, Any] | None = None
) -> list[Unfinished]:
    """Return what is not finished.

    Args:
        url: Of a folder or of one file, on this machine or any store; without it what is noted on
            this machine is returned, and no store is asked.
        storage_options: For the file system, see fsspec.

    Raises:
        StoreError: The store refused or died, or does not tell such things.
    """
    noted = {note.left: note for note in notes()}
    if url is None:
        return [_of_note(note) for note in noted.values()]
    if (path := local_path(url)) is not None:
        with store_errors(url, "list"):
            return list(_beside(Path(path).absolute()))
    store, path = file_system(url, storage_options)
    with store_errors(url, "list"):
        found = [_with_note(one, noted) for one in _at_store(store, path, url)]
    at = redact_url(url)
    known = {one.name for one in found}
    gone = [n for n in noted.values() if n.left not in known and _leads(at, n.url)]
    return [*found, *map(_of_note, gone)]


def remove_unfinished(
    one: Unfinished, url: str | None = None, storage_options: Mapping[str, Any] | None = None
) -> bool:
    """Remove what is not finished, unless somebody is at it by now; whether it was removed.

    Args:
        one: What :func:`unfinished` found.
        url: By which it was found: it may have a user and password.
        storage_options: For the file system, see fsspec.

    Raises:
        StoreError: The store refused or died, or has no way to remove it.
    """
    if one.kind == "blocks":
        raise StoreError(
            f"{one.url}: Azure does not remove blocks",
            "it forgets them within a week, or when the next archive of that name is written",
        )
    if local_path(one.url) is not None:
        left = Path(one.name)
        remove_left([left / ".lock" if left.is_dir() else left])
        return not left.exists()
    store, path = file_system(_full(one.url, url), storage_options)
    upload = upload_to(store, path, one.url, overwrite=True)
    with store_errors(one.url, "clear"):
        if one.note is not None:
            return one.note.take_back(upload.remove)
        upload.remove(one.name)
    return True


def _full(found: str, url: str | None) -> str:
    """Return a URL with the user and password of that by which it was found."""
    if url is None or not _leads(redact_url(url), found):
        return found
    return url + found[len(redact_url(url)) :]


def _leads(folder: str, url: str) -> bool:
    return url == folder or url.startswith(folder.rstrip("/") + "/")


def _of_note(note: Note) -> Unfinished:
    state = LeftoverState.IN_USE if note.is_held else LeftoverState.LEFT
    is_file = note.is_here or partial_of(posixpath.basename(note.left)) is not None
    kind, size_bytes = "file" if is_file else "upload", None
    if note.is_here:
        with contextlib.suppress(OSError):  # it has gone
            size_bytes = Path(note.left).stat().st_size
    return Unfinished(note.url, kind, note.left, state, note.begun_ms, size_bytes, note)


def _with_note(one: Unfinished, noted: Mapping[str, Note]) -> Unfinished:
    if (note := noted.get(one.name)) is None:
        return one
    state = LeftoverState.IN_USE if note.is_held else LeftoverState.LEFT
    return replace(one, state=state, begun_ms=note.begun_ms, note=note)


def _beside(path: Path) -> Iterator[Unfinished]:
    """Yield what is in a folder, or beside one file."""
    folder, begins = (path, "") if path.is_dir() else (path.parent, partial_prefix(path.name))
    for entry in sorted(folder.iterdir()):
        if not entry.name.startswith(begins) or (name := partial_of(entry.name)) is None:
            continue
        state = LeftoverState.IN_USE if is_held(entry) else LeftoverState.LEFT
        try:
            status = entry.stat()
        except FileNotFoundError:  # it is finished
            continue
        size_bytes = None if entry.is_dir() else status.st_size
        written_ms = status.st_mtime_ns // 1_000_000
        yield Unfinished(str(folder / name), "file", str(entry), state, written_ms, size_bytes)
    if not begins:
        yield from _below(folder)


def _below(folder: Path) -> Iterator[Unfinished]:
    """Yield halves of files in a folder of this machine and below, and what was being extracted."""
    for place, folders, files in os.walk(folder):
        waiting = [name for name in folders if name.startswith(FOLDER_PREFIX)]
        folders[:] = sorted(set(folders).difference(waiting))
        for name in sorted([*waiting, *filter(is_half, files)]):
            entry = Path(place) / name
            state = LeftoverState.UNKNOWN
            if name in waiting:
                state = LeftoverState.IN_USE if is_held(entry) else LeftoverState.LEFT
            try:
                status = entry.stat()
            except FileNotFoundError:  # it is finished
                continue
            size_bytes = None if name in waiting else status.st_size
            written_ms = status.st_mtime_ns // 1_000_000
            yield Unfinished(place, "file", str(entry), state, written_ms, size_bytes)


def _at_store(store: Any, path: str, url: str) -> Iterator[Unfinished]:
    publication = publication_of(store.protocol)
    base = redact_url(url)
    if publication is Publication.PARTS_OF_S3:
        from mlflow_exim_plugin.storage.upload.s3 import uploads_of_s3

        for name, upload, begun_ms, size_bytes in uploads_of_s3(store, path):
            if _leads(path, name):
                at = base + name[len(path) :]
                yield Unfinished(at, "upload", upload, LeftoverState.UNKNOWN, begun_ms, size_bytes)
    elif publication is Publication.BLOCKS_OF_AZURE:
        from mlflow_exim_plugin.storage.upload.azure import blocks_of_azure

        for name, sent_ms, size_bytes in blocks_of_azure(store, path):
            if _leads(path, name):
                at = base + name[len(path) :]
                yield Unfinished(at, "blocks", "", LeftoverState.UNKNOWN, sent_ms, size_bytes)
    elif publication is Publication.COMMIT:
        raise StoreError(
            f"{base}: this kind of store does not tell what is not finished",
            "Google forgets an upload without an end within a week",
        )
    else:
        yield from _files_at(store, path, base)


def _files_at(store: Any, path: str, base: str) -> Iterator[Unfinished]:
    folder, begins = path, ""
    if not store.isdir(path):
        folder, begins = posixpath.dirname(path), partial_prefix(posixpath.basename(path))
    for entry in store.ls(folder, detail=True):
        entry_name = posixpath.basename(str(entry["name"]).rstrip("/"))
        if entry_name.startswith(begins) and (name := partial_of(entry_name)) is not None:
            at = base if begins else f"{base.rstrip('/')}/{name}"
            left = posixpath.join(folder, entry_name)
            size_bytes = entry.get("size") if entry.get("type") == "file" else None
            written_ms = _time_ms(entry)
            yield Unfinished(at, "file", left, LeftoverState.UNKNOWN, written_ms, size_bytes)
    if begins:
        return
    for left, entry in sorted(store.find(folder, detail=True).items()):
        inside, name = posixpath.split(left)
        if is_half(name):
            at = base.rstrip("/") + inside[len(folder.rstrip("/")) :]
            size_bytes, written_ms = entry.get("size"), _time_ms(entry)
            yield Unfinished(at, "file", left, LeftoverState.UNKNOWN, written_ms, size_bytes)


def _time_ms(entry: Mapping[str, Any]) -> int | None:
    names = ("mtime", "modified", "last_modified", "LastModified", "modify")
    moment: Any = next((entry[name] for name in names if entry.get(name) is not None), None)
    if isinstance(moment, str):  # FTP's
        with contextlib.suppress(ValueError):
            moment = datetime.strptime(moment[:14] + "+0000", "%Y%m%d%H%M%S%z")
    if isinstance(moment, datetime):
        return round(moment.timestamp() * 1000)
    return round(moment * 1000) if isinstance(moment, int | float) else None
