"""SQLite files as they lie there: read without a trace, also where a process died that wrote."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["read_only", "whole_file"]

_LOG, _INDEX, _JOURNAL = "-wal", "-shm", "-journal"
"""What SQLite makes beside a file: the first two in WAL mode, while it is open."""
_WAL_AT = 19
"""Where a SQLite file says with 2 that it is in WAL mode."""


def read_only(path: Path) -> str:
    """Return how SQLite opens a file without making another one beside it.

    One in WAL mode gets a log as soon as it is opened, unless nothing changes it: as long as it has
    none, nobody has it open.
    """
    with path.open("rb") as file:
        has_log = file.read(_WAL_AT + 1)[_WAL_AT:] == b"\x02"
    is_open = any(_beside(path, end).exists() for end in (_LOG, _INDEX))
    return f"{path.as_uri()}?mode=ro" + ("&immutable=1" if has_log and not is_open else "")


def whole_file(path: Path, folder: Callable[[int], Path]) -> Path:
    """Return a file that can be read as it is, a private copy where it has to be completed first.

    Where a process died, SQLite would complete the file itself when it opens it: take in its log,
    or take back what was half written. The file is another's, and may lie where nothing can be
    written.

    Args:
        path: The file.
        folder: Makes a private folder with room for so many bytes.
    """
    log = _beside(path, _LOG)
    if _size_bytes(log) and not _beside(path, _INDEX).exists():
        return _copied(path, log, folder)
    journal = _beside(path, _JOURNAL)
    if not (_size_bytes(journal) and _is_half_written(path)):
        return path
    copy = _copied(path, journal, folder)
    with closing(sqlite3.connect(copy)) as completing:
        completing.execute("SELECT count(*) FROM sqlite_master")
    return copy


def _beside(path: Path, end: str) -> Path:
    return path.with_name(path.name + end)


def _size_bytes(path: Path) -> int:
    with suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


def _is_half_written(path: Path) -> bool:
    """Whether whoever wrote has died: one that lives holds a lock, and its journal is its own."""
    with closing(sqlite3.connect(read_only(path), uri=True)) as trying:
        try:
            trying.execute("SELECT count(*) FROM sqlite_master")
        except sqlite3.OperationalError as error:
            return "readonly database" in str(error)
    return False


def _copied(path: Path, beside: Path, folder: Callable[[int], Path]) -> Path:
    """Copy a file with what belongs to it, again if somebody else completes it meanwhile."""
    there = [_state(file) for file in (path, beside)]
    private = folder(sum(size_bytes for _, size_bytes in there))
    for file in (beside, path):
        with suppress(FileNotFoundError):
            shutil.copyfile(file, private / file.name)
    if there != [_state(file) for file in (path, beside)]:
        return whole_file(path, folder)
    return private / path.name


def _state(path: Path) -> tuple[int, int]:
    with suppress(FileNotFoundError):
        status = path.stat()
        return status.st_mtime_ns, status.st_size
    return 0, 0
