"""Files that are made once on a machine and kept for the next time, as long as there is room."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_exim_plugin.errors import StoreError
from mlflow_exim_plugin.storage.leftovers import held, partial_name, remove_left, taking_turns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["CACHE_VARIABLE", "CacheFolder"]

CACHE_VARIABLE = "MLFLOW_EXIM_CACHE_DIR"
"""Environment variable that names the folder of the cache."""
_MOST_BYTES = 4 << 30
_TURNS = ".turn-"


class CacheFolder:
    """A folder of files by name; the one that was longest not asked for goes first.

    Args:
        folder: Where it is; by default the one that the environment names, else the user's.
        most_bytes: How large all files may be together, the newest aside.

    Attributes:
        folder: Likewise.
    """

    def __init__(self, folder: Path | None = None, *, most_bytes: int = _MOST_BYTES) -> None:
        self.folder = folder or _default()
        self._most_bytes = most_bytes

    def file(self, name: str, make: Callable[[Path], None]) -> Path:
        """Return a file of the cache, which is made if it is not there.

        Args:
            name: Its name.
            make: Makes it at a path beside; whoever else wants it meanwhile waits.

        Raises:
            StoreError: The folder cannot be written.
        """
        path = self.folder / name
        if not _was_used(path):
            with self._writing():
                self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                with taking_turns(self.folder / f"{_TURNS}{name}"):
                    if not _was_used(path):
                        self._make(path, make)
        return path

    def _make(self, path: Path, make: Callable[[Path], None]) -> None:
        remove_left(self.folder.glob(".*.partial-*"))
        part = path.with_name(partial_name(path.name))
        part.touch(mode=0o600)
        with held(part):
            make(part)
            self._drop_oldest()
            part.replace(path)

    def _drop_oldest(self) -> None:
        """Make room; who has a file open that goes keeps it."""
        there = []
        for entry in os.scandir(self.folder):
            if not entry.name.startswith(".") and entry.is_file():
                used = entry.stat()
                there.append((used.st_mtime, used.st_size, Path(entry.path)))
        left_bytes = sum(size_bytes for _, size_bytes, _ in there)
        for _, size_bytes, path in sorted(there):
            if left_bytes <= self._most_bytes:
                break
            with contextlib.suppress(OSError):  # another was faster, or it is open on Windows
                path.unlink()
                path.with_name(f"{_TURNS}{path.name}").unlink(missing_ok=True)
            left_bytes -= size_bytes

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if isinstance(error, StoreError):
                raise
            raise StoreError(
                f"the cache {self.folder} cannot be written: {error}",
                f"name another folder in {CACHE_VARIABLE}",
            ) from error


def _was_used(path: Path) -> bool:
    """Whether a file is there, which is remembered as its last use."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    except OSError:  # somebody else's, which may be read
        return path.is_file()
    return True


def _default() -> Path:
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "mlflow-exim"
