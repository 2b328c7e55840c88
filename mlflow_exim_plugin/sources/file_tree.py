"""The files below a folder of this machine or of any fsspec store, listed once."""

from __future__ import annotations

import io
import json
import zipfile
from bisect import bisect_left
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from mlflow_exim_plugin.errors import NotFoundError, StoreError
from mlflow_exim_plugin.host.files.local import LocalFiles
from mlflow_exim_plugin.redaction import redact_url
from mlflow_exim_plugin.storage.file_systems import file_system, store_errors
from mlflow_exim_plugin.storage.urls import local_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = ["FileTree", "FilesOfTree"]

_ZIP = ".zip"
_BLOCK_BYTES = 8 << 20
_MAX_JSON_BYTES = 1 << 30
"""A longer JSON file is not read into memory: some three million metric rows take a tenth."""


class FileTree:
    """The files below one folder; paths are relative to it, with ``/``.

    Args:
        location: The folder, a path or any fsspec URL.
        storage_options: For the file system, see fsspec.

    Attributes:
        location: The folder, as it was given.
        sizes: Size in bytes of each file by path.
        problems: By path, why what is there is no file that could be taken.

    Raises:
        NotFoundError: There is no such folder.
        StoreError: It cannot be listed.
    """

    def __init__(self, location: str, storage_options: Mapping[str, Any] | None = None) -> None:
        self.location = location
        self._open: Callable[[str], BinaryIO]
        self._read_whole: Callable[[str], bytes] | None = None
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
        self.sizes = found

    @cached_property
    def paths(self) -> list[str]:
        """The path of each file, in order."""
        return sorted(self.sizes)

    def place(self, path: str) -> str:
        """Return how a file is called in messages, without secrets."""
        return f"{redact_url(self.location).rstrip('/')}/{path}"

    def children(self, folder: str) -> list[tuple[str, bool]] | None:
        """Return the names in a folder and whether each is one; None where that is not there."""
        start = f"{folder}/" if folder else ""
        found: list[tuple[str, bool]] = []
        at = bisect_left(self.paths, start)
        while at < len(self.paths) and self.paths[at].startswith(start):
            name, slash, _ = self.paths[at][len(start) :].partition("/")
            found.append((name, bool(slash)))
            at = bisect_left(self.paths, _after(start + name)) if slash else at + 1
        return found or None

    def folder(self, path: str) -> FilesOfTree:
        """Return the files below a folder as the files of an artifact root."""
        return FilesOfTree(self, path)

    def below(self, folder: str) -> list[tuple[str, int]]:
        """Return path and size of each file below a folder, the path as seen from there."""
        start = f"{folder}/" if folder else ""
        first = bisect_left(self.paths, start)
        end = bisect_left(self.paths, _after(folder)) if folder else len(self.paths)
        return [(path[len(start) :], self.sizes[path]) for path in self.paths[first:end]]

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
        with store_errors(self.place(path), "read"):
            if self._read_whole is not None and path not in self._openers:
                return self._read_whole(path)
            with self.open(path) as stream:
                return b"".join(iter(lambda: stream.read(1 << 20), b""))

    def json(self, path: str) -> dict[str, Any]:
        """Return the object that a JSON file holds; bare NaN and infinities come as text.

        Raises:
            StoreError: It cannot be read, or is not JSON; says in which line.
        """
        if (size_bytes := self.sizes.get(path, 0)) > _MAX_JSON_BYTES:
            raise StoreError(f"{path} has {size_bytes} bytes, over the limit of {_MAX_JSON_BYTES}")
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
        self.__dict__.pop("paths", None)  # they are others now
        return True

    def _member(self, path: str, name: str) -> BinaryIO:
        return cast("BinaryIO", _ZippedFile(_seekable(self._open(path)), name))

    def _listed_far(self, storage_options: Mapping[str, Any] | None) -> dict[str, int]:
        store, root = file_system(self.location, storage_options)
        with store_errors(self.location, "list"):
            listed = store.find(root, detail=True)
        start = root.rstrip("/")
        start = f"{start}/" if start else ""

        def opened(path: str) -> BinaryIO:
            with store_errors(self.place(path), "read"):
                return cast("BinaryIO", store.open(start + path, "rb", block_size=_BLOCK_BYTES))

        self._open = opened
        self._read_whole = lambda path: bytes(store.cat_file(start + path))
        found = {
            name.removeprefix(start): int(entry.get("size") or 0)
            for name, entry in listed.items()
            if name.startswith(start) and not name.endswith("/")
        }
        if not found:
            raise NotFoundError(f"{redact_url(self.location)} does not exist, or is empty")
        return found


class FilesOfTree:
    """The files of an artifact root that lies in a tree.

    Args:
        tree: The tree.
        folder: The root in it.

    Attributes:
        problems: By path, why what is there is no file that could be taken: nothing.
        renamed: By escaped path, the name that is no UTF-8: nothing.
    """

    def __init__(self, tree: FileTree, folder: str) -> None:
        self._tree = tree
        self._folder = folder
        self.problems: dict[str, str] = {}
        self.renamed: dict[str, str] = {}

    def walk(self) -> Iterator[tuple[str, int]]:
        """Yield path and size in bytes of every file."""
        yield from self._tree.below(self._folder)

    def open(self, path: str) -> BinaryIO:
        """Open a file that was listed.

        Raises:
            StoreError: It is gone or cannot be read.
        """
        return self._tree.open(f"{self._folder}/{path}")


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


def _after(folder: str) -> str:
    """Return what comes, in order, after all that lies in a folder, and before all else."""
    return folder + chr(ord("/") + 1)


def _seekable(stream: BinaryIO) -> BinaryIO:
    return stream if stream.seekable() else io.BytesIO(stream.read())
