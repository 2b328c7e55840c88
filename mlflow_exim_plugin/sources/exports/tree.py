"""The files below a folder of this machine or of any fsspec store, listed once."""

from __future__ import annotations

import io
import json
import zipfile
from bisect import bisect_left
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from mlflow_exim_plugin.errors import NotFoundError, StoreError
from mlflow_exim_plugin.host.files.local import LocalFiles
from mlflow_exim_plugin.redaction import redact_url
from mlflow_exim_plugin.storage.file_systems import file_system, store_errors
from mlflow_exim_plugin.storage.urls import local_path

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["ExportTree"]

_ZIP = ".zip"
_BLOCK_BYTES = 8 << 20


class ExportTree:
    """The files of one export; paths are relative to its folder, with ``/``.

    Args:
        location: The folder, a path or any fsspec URL.
        storage_options: For the file system, see fsspec.

    Attributes:
        sizes: Size in bytes of each file by path, in the order of their paths.
        problems: By path, why what is there is no file that could be taken.

    Raises:
        NotFoundError: There is no such folder.
        StoreError: It cannot be listed.
    """

    def __init__(self, location: str, storage_options: Mapping[str, Any] | None = None) -> None:
        self._location = location
        self._open: Callable[[str], BinaryIO]
        self._openers: dict[str, Callable[[], BinaryIO]] = {}
        self.problems: dict[str, str] = {}
        path = local_path(location)
        if path is None:
            found = self._listed_far(storage_options)
        elif Path(path).is_dir():
            files = LocalFiles(Path(path), follows_links=False)
            found = dict(files.walk())
            self.problems = files.problems
            self._open = files.open
        else:
            raise NotFoundError(f"{path} is no folder")
        self.sizes = dict(sorted(found.items()))
        self._paths = list(self.sizes)

    def place(self, path: str) -> str:
        """Return how a file is called in messages, without secrets."""
        return f"{redact_url(self._location).rstrip('/')}/{path}"

    def below(self, folder: str) -> list[tuple[str, int]]:
        """Return path and size of each file below a folder, the path as seen from there."""
        start = f"{folder}/" if folder else ""
        first = bisect_left(self._paths, start)
        found = []
        for path in self._paths[first:]:
            if not path.startswith(start):
                break
            found.append((path[len(start) :], self.sizes[path]))
        return found

    def open(self, path: str) -> BinaryIO:
        """Open a file as a stream of bytes.

        Raises:
            StoreError: It is gone or cannot be read.
        """
        opener = self._openers.get(path)
        return opener() if opener else self._open(path)

    def read(self, path: str) -> bytes:
        """Return all bytes of a file.

        Raises:
            StoreError: It is gone or cannot be read.
        """
        with store_errors(self.place(path), "read"), self.open(path) as stream:
            return b"".join(iter(lambda: stream.read(1 << 20), b""))

    def json(self, path: str) -> dict[str, Any]:
        """Return the object that a JSON file holds; bare NaN and infinities come as text.

        Raises:
            StoreError: It cannot be read, or is not JSON; says in which line.
        """
        try:
            found = json.loads(self.read(path).decode("utf-8-sig"), parse_constant=str)
        except json.JSONDecodeError as error:
            where = f"line {error.lineno}, column {error.colno}"
            raise StoreError(f"{path} is no JSON: {error.msg} at {where}") from error
        except (UnicodeDecodeError, RecursionError, ValueError) as error:
            what = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
            raise StoreError(f"{path} is no JSON: {what}") from error
        if not isinstance(found, dict):
            raise StoreError(f"{path} holds no object")
        return found

    def unzip(self, path: str, holds: str) -> bool:
        """Put the files of a zip file in its place, in a folder of its name.

        Args:
            path: The zip file.
            holds: What must be in it, or it stays a file.

        Returns:
            Whether it was done.
        """
        with store_errors(self.place(path), "read"), self.open(path) as stream:
            try:
                with zipfile.ZipFile(cast("Any", _seekable(stream))) as packed:
                    members = {m.filename: m.file_size for m in packed.infolist() if not m.is_dir()}
            except zipfile.BadZipFile as error:
                self.problems[path] = f"it is no zip file: {error}"
                return False
        if holds not in members:
            return False
        folder = path.removesuffix(_ZIP)
        for name, size_bytes in members.items():
            inner = f"{folder}/{name}"
            self.sizes[inner] = size_bytes
            self._openers[inner] = partial(self._member, path, name)
        del self.sizes[path]
        self.sizes = dict(sorted(self.sizes.items()))
        self._paths = list(self.sizes)
        return True

    def _member(self, path: str, name: str) -> BinaryIO:
        return cast("BinaryIO", _ZippedFile(_seekable(self._open(path)), name))

    def _listed_far(self, storage_options: Mapping[str, Any] | None) -> dict[str, int]:
        store, root = file_system(self._location, storage_options)
        with store_errors(self._location, "list"):
            listed = store.find(root, detail=True)
        start = root.rstrip("/")
        start = f"{start}/" if start else ""

        def opened(path: str) -> BinaryIO:
            with store_errors(self.place(path), "read"):
                return cast("BinaryIO", store.open(start + path, "rb", block_size=_BLOCK_BYTES))

        self._open = opened
        found = {
            name.removeprefix(start): int(entry.get("size") or 0)
            for name, entry in listed.items()
            if name.startswith(start) and not name.endswith("/")
        }
        if not found:
            raise NotFoundError(f"{redact_url(self._location)} does not exist, or is empty")
        return found


class _ZippedFile(io.RawIOBase):
    """A file of a zip file that is closed with it."""

    def __init__(self, packed: BinaryIO, name: str) -> None:
        self._packed = packed
        self._zip = zipfile.ZipFile(cast("Any", packed))
        self._stream = self._zip.open(name)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._stream.close()
        self._zip.close()
        self._packed.close()
        super().close()


def _seekable(stream: BinaryIO) -> BinaryIO:
    return stream if stream.seekable() else io.BytesIO(stream.read())
