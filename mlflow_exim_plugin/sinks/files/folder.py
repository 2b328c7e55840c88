"""A folder of this machine that files of a foreign archive are written below, and never beside."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_exim_plugin.container.paths import PathRegister
from mlflow_exim_plugin.container.unicode import folded
from mlflow_exim_plugin.errors import EximError, StoreError, UnsafePathError, UsageError
from mlflow_exim_plugin.host.files.gate import local_path_problem
from mlflow_exim_plugin.host.files.same_names import NamesHere
from mlflow_exim_plugin.redaction import redact_url
from mlflow_exim_plugin.schema.digests import sha256_of_stream
from mlflow_exim_plugin.storage.file_systems import store_errors
from mlflow_exim_plugin.storage.leftovers import FOLDER_PREFIX, held, remove_left
from mlflow_exim_plugin.storage.output import publish_new
from mlflow_exim_plugin.storage.urls import local_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mlflow_exim_plugin.schema.objects import Artifact

__all__ = ["FileFolder", "file_folder"]

_CHUNK_BYTES = 1 << 20
_USELESS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
"""After one of these no other file can be written either."""


class FileFolder:
    """Takes files, each complete at its name or not there; safe to use from several threads.

    Make one with :func:`file_folder`.

    Args:
        path: The folder.
        partial: A folder in it for what is not complete yet; without it nothing is written.
        overwrite: Whether files with other content are replaced.
        key: What a path looks like to its file system.

    Attributes:
        lost: Why no other file can be written either.
    """

    def __init__(
        self, path: Path, partial: Path | None, *, overwrite: bool, key: Callable[[str], str]
    ) -> None:
        self._path = str(path)
        self._partial = partial
        self._overwrite = overwrite
        self._key = key
        self._register = PathRegister(key)
        self._names: dict[str, str] = {}
        self._numbers = itertools.count()
        self._known_folders: set[str] = set()
        self._stops = threading.Event()
        self.lost: StoreError | None = None

    def claim(self, path: str) -> None:
        """Take a path for a file that will be put, so that no other can have it.

        Raises:
            StoreError: No file may have it, or this file system takes it for that of another.
        """
        if problem := local_path_problem(path):
            raise StoreError(f"it is refused: {problem}")
        try:
            self._register.add(path, 0)
        except UnsafePathError as error:
            other = self._names.get(self._key(path))
            what = f"is {other} to this file system" if other else error.findings[0].message
            raise StoreError(f"{path} {what}") from error
        self._names[self._key(path)] = path

    def put(self, path: str, file: Artifact) -> bool:
        """Write a file.

        Args:
            path: One that was claimed.
            file: What is written; reading it raises an error where it has another digest.

        Returns:
            False where it was there already, with these bytes.

        Raises:
            EximError: It cannot be read.
            StoreError: It cannot be written, or something else is there, or a link on its way.
        """
        try:
            return self._put(path, file)
        except EximError:
            raise
        except (OSError, UnicodeEncodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "its name has no bytes"
            told = StoreError(f"cannot write it: {reason or error}")
            if isinstance(error, OSError) and error.errno in _USELESS:
                self.lost = StoreError(f"cannot write {self._path}: {reason}")
                self._stops.set()
            raise told from error

    def stop(self) -> None:
        """Write nothing any more, also no rest of what is being written."""
        self._stops.set()

    def _put(self, path: str, file: Artifact) -> bool:
        self._require_folders(path, make=False)
        place = Path(f"{self._path}/{path}")
        if _is_there(place, file, overwrite=self._overwrite):
            return False
        if self._partial is None:
            return True
        partial = self._partial / str(next(self._numbers))
        try:
            with file.open() as stream, partial.open("xb") as written:
                while data := stream.read(_CHUNK_BYTES):
                    if self._stops.is_set():
                        raise StoreError("it was not written: the command ended")
                    written.write(data)
            self._require_folders(path, make=True)
            if self._overwrite:
                partial.replace(place)
            else:
                publish_new(partial, place)
        finally:
            partial.unlink(missing_ok=True)
        return True

    def _require_folders(self, path: str, *, make: bool) -> None:
        """See that all above a file are folders and no links; make those that are not there."""
        above = [path[:at] for at, char in enumerate(path) if char == "/"]
        for folder in above:
            if folder in self._known_folders:
                continue
            place = Path(f"{self._path}/{folder}")
            if make:
                with contextlib.suppress(FileExistsError):
                    place.mkdir()
            try:
                found = place.lstat()
            except FileNotFoundError:
                return
            if _is_link(place, found):
                raise StoreError(f"{folder} is a link here, which is not followed")
            if not stat.S_ISDIR(found.st_mode):
                raise StoreError(f"{folder} is no folder here")
            self._known_folders.add(folder)


@contextlib.contextmanager
def file_folder(url: str, *, overwrite: bool, dry_run: bool) -> Iterator[FileFolder]:
    """Open a folder of this machine that files are written to; it is made if it is not there.

    Args:
        url: Its path, or ``file://`` URL.
        overwrite: Whether files with other content are replaced.
        dry_run: Write nothing.

    Raises:
        UsageError: It is not of this machine, or no folder.
        StoreError: It cannot be written.
    """
    if (local := local_path(url)) is None:
        raise UsageError(
            f"{redact_url(url)} is no folder of this machine",
            "extract writes local files; `pack --tracking-uri ARCHIVE` takes a part elsewhere",
        )
    path = Path(local)
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path} is no folder")
    if dry_run:
        key = folded if sys.platform in {"win32", "darwin"} else str
        yield FileFolder(path, None, overwrite=overwrite, key=key)
        return
    was_there = path.exists()
    with store_errors(str(path), "write"):
        path.mkdir(parents=True, exist_ok=True)
        remove_left(path.glob(f"{FOLDER_PREFIX}*/.lock"))
        partial = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir=path))
    try:
        with held(partial):
            (names := partial / "names").mkdir()
            with store_errors(str(path), "write"):
                here = NamesHere(names)
            yield FileFolder(path, partial, overwrite=overwrite, key=here.key)
    finally:
        if not was_there:
            with contextlib.suppress(OSError):  # there is something in it
                path.rmdir()


def _is_there(place: Path, file: Artifact, *, overwrite: bool) -> bool:
    """Whether a file is there with these bytes.

    Raises:
        StoreError: There is something else that may not be replaced.
    """
    try:
        found = place.lstat()
    except FileNotFoundError:
        return False
    is_file = stat.S_ISREG(found.st_mode)
    if is_file and found.st_size == file.size_bytes:
        digest, _ = sha256_of_stream(place.open("rb"))
        if digest == file.sha256:
            return True
    if stat.S_ISDIR(found.st_mode):
        raise StoreError("a folder of its name is there")
    if not overwrite:
        what = "a link" if _is_link(place, found) else "another file"
        raise StoreError(f"{what} is there; --overwrite replaces it")
    return False


def _is_link(place: Path, found: os.stat_result) -> bool:
    is_junction = getattr(os.path, "isjunction", None)  # of Windows, known to Python 3.12
    return stat.S_ISLNK(found.st_mode) or bool(is_junction and is_junction(place))
