"""The files below a local folder: what is a file is listed, what is not is named and never opened.

A name that is no UTF-8 comes escaped (spec, "Artifacts").
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from mlflow_exim_plugin.errors import StoreError
from mlflow_exim_plugin.storage.leftovers import HALF_FILE, is_half
from mlflow_exim_plugin.storage.names import escaped, shown

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["LocalFiles"]

_SPECIAL = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_OPENING = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


class LocalFiles:
    """Walks one folder.

    Args:
        root: The folder.
        follows_links: Whether links that lead out of it are followed.

    Attributes:
        problems: By path, why what is there is no file that could be taken.
        renamed: By escaped path, the name that is no UTF-8, as text.
        stamps: By path, when it was last written.
    """

    def __init__(self, root: Path, *, follows_links: bool) -> None:
        self._root = str(root)
        self._follows_links = follows_links
        self.problems: dict[str, str] = {}
        self.renamed: dict[str, str] = {}
        self.stamps: dict[str, str] = {}
        self._real: dict[str, str] = {}

    def walk(self) -> Iterator[tuple[str, int]]:
        """Yield path and size in bytes of every file, in path order within each folder.

        Raises:
            StoreError: The folder itself cannot be listed.
        """
        base = os.path.realpath(self._root)
        try:
            entries = _entries(self._root)
        except OSError as error:
            raise StoreError(f"{self._root}: {error.strerror or error}") from error
        # Folders wait here instead of in calls: a tree may be deeper than Python's stack.
        waiting = [("", "", frozenset({base}), iter(entries))]
        while waiting:
            prefix, real, chain, left = waiting[-1]
            if (entry := next(left, None)) is None:
                waiting.pop()
                continue
            path = prefix + (name := escaped(entry.name))
            if name != entry.name:
                self.renamed[path] = shown(entry.name)
            if name != entry.name or prefix != real:
                self._real[path] = real + entry.name
            try:
                is_folder, size = self._kind_of(entry, path, base, chain)
                if is_folder:
                    inner = chain | {os.path.realpath(entry.path)} if entry.is_symlink() else chain
                    listed = iter(_entries(entry.path))
                    waiting.append((f"{path}/", f"{real}{entry.name}/", inner, listed))
                elif size is not None:
                    yield path, size
            except OSError as error:
                self.problems[path] = error.strerror or str(error)

    def open(self, path: str) -> BinaryIO:
        """Open a file that was listed.

        Raises:
            StoreError: It is gone, or cannot be read, or is no file any more.
        """
        place = f"{self._root}/{self._real.get(path, path)}"
        try:
            # Never waits for who writes into a pipe that took the place of a file.
            number = os.open(place, os.O_RDONLY | _OPENING)
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror or error}") from error
        if not stat.S_ISREG(os.fstat(number).st_mode):
            os.close(number)
            raise StoreError(f"{path}: it is no file")
        return os.fdopen(number, "rb", buffering=0)

    def _kind_of(
        self, entry: os.DirEntry[str], path: str, base: str, chain: frozenset[str]
    ) -> tuple[bool, int | None]:
        """Return whether an entry is a folder, and the size of a file; neither where it is named.

        Raises:
            OSError: It cannot be looked at.
        """
        if entry.is_symlink() and (problem := self._problem_of_link(entry, base, chain)):
            self.problems[path] = problem
            return False, None
        found = entry.stat()
        if stat.S_ISDIR(found.st_mode):
            return True, None
        if stat.S_ISREG(found.st_mode) and is_half(entry.name):
            self.problems[path] = HALF_FILE
            return False, None
        if stat.S_ISREG(found.st_mode):
            self.stamps[path] = str(found.st_mtime_ns)
            return False, found.st_size
        what = next((name for test, name in _SPECIAL if test(found.st_mode)), "no file")
        self.problems[path] = f"it is {what}, which is not opened"
        return False, None

    def _problem_of_link(
        self, entry: os.DirEntry[str], base: str, chain: frozenset[str]
    ) -> str | None:
        try:
            target = os.path.realpath(entry.path, strict=True)
        except OSError as error:
            if error.errno == errno.ELOOP:
                return "it is a link that leads to itself"
            return f"it is a link to {Path(entry.path).readlink()}, which is not there"
        place = os.path.realpath(Path(entry.path).parent)
        above = place == target or place.startswith(target.rstrip("/") + "/")
        if target in chain or above:
            return f"it is a link that leads back to {target}"
        if not self._follows_links and os.path.commonpath([base, target]) != base:
            return f"it is a link to {target}, out of its folder; --follow-links takes such files"
        return None


def _entries(folder: str) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)
