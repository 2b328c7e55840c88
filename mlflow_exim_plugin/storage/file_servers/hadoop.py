"""Folders of files of Hadoop, by pyarrow: set up as MLflow has it."""

from __future__ import annotations

import contextlib
import os
import posixpath
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import urlparse

from mlflow_exim_plugin.storage.file_servers.connections import Connections
from mlflow_exim_plugin.storage.file_servers.folder import (
    AT_ONCE,
    FileServer,
    FolderEntry,
    FolderListing,
)
from mlflow_exim_plugin.storage.file_servers.transfer import ServedVersion

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["arrow_server", "hadoop_server"]

_CHUNK_BYTES = 1 << 20


def hadoop_server(url: str) -> FileServer:
    """Return the cluster of a URL, to which nothing is said yet.

    Source: ``mlflow.store.artifact.hdfs_artifact_repo.hdfs_system``.
    """

    def connect() -> Any:
        from pyarrow.fs import HadoopFileSystem

        parts = urlparse(url)
        more = os.environ.get("MLFLOW_PYARROW_EXTRA_CONF")
        return HadoopFileSystem(
            host=f"{parts.scheme}://{parts.hostname}" if parts.hostname else "default",
            port=parts.port or 0,
            user=os.environ.get("MLFLOW_KERBEROS_USER"),
            kerb_ticket=os.environ.get("MLFLOW_KERBEROS_TICKET_CACHE"),
            extra_conf=dict(pair.split("=", 1) for pair in more.split(",")) if more else None,
        )

    return arrow_server(connect)


def arrow_server(connect: Callable[[], Any]) -> FileServer:
    """Return a file system of pyarrow's as a server.

    Args:
        connect: Opens it; it is safe to use from many threads.
    """
    opened: list[Any] = []

    def one() -> _ArrowFiles:
        if not opened:
            opened.append(connect())
        return _ArrowFiles(opened[0])

    return FileServer(
        reading=Connections(one, AT_ONCE),
        writing=Connections(one, AT_ONCE),
        transient=(ConnectionError, TimeoutError),
    )


class _ArrowFiles:
    """Asks a file system.

    Args:
        system: Pyarrow's.
    """

    def __init__(self, system: Any) -> None:
        self._system = system

    def is_sound_after(self, error: BaseException) -> bool:
        del error
        return True

    def is_lost(self) -> bool:
        return False

    def close(self) -> None:
        pass

    def listing(self, folder: str) -> FolderListing:
        from pyarrow.fs import FileSelector, FileType

        try:
            found = self._system.get_file_info(FileSelector(folder))
        except NotADirectoryError as error:
            raise FileNotFoundError(folder) from error
        entries = []
        for told in found:
            name = posixpath.basename(told.path)
            if told.type == FileType.Directory:
                entries.append(FolderEntry(name))
            elif told.type == FileType.File:
                entries.append(FolderEntry(name, int(told.size), str(told.mtime_ns)))
            else:
                entries.append(FolderEntry(name, problem="it is no file, and is not opened"))
        return FolderListing(entries)

    def version(self, path: str) -> ServedVersion:
        from pyarrow.fs import FileType

        told = self._system.get_file_info(path)
        if told.type != FileType.File:
            raise FileNotFoundError(path)
        return ServedVersion(int(told.size), str(told.mtime_ns))

    def small(self, path: str, most_bytes: int) -> tuple[int, bytes]:
        with self._system.open_input_file(path) as file:
            size_bytes = int(file.size())
            return size_bytes, file.read() if size_bytes <= most_bytes else b""

    def data(self, path: str, start: int) -> _ArrowFile:
        return _ArrowFile(self._system.open_input_file(path), start)

    def done(self) -> None:
        pass

    def write(self, path: str, stream: BinaryIO) -> int:
        with self._system.open_output_stream(path) as file:
            while data := stream.read(_CHUNK_BYTES):
                file.write(data)
        return self.version(path).size_bytes

    def replace(self, old: str, new: str) -> None:
        with contextlib.suppress(FileNotFoundError):  # Hadoop does not rename over a file
            self.remove(new)
        self._system.move(old, new)

    def has_folder(self, path: str) -> bool:
        from pyarrow.fs import FileType

        return bool(self._system.get_file_info(path).type == FileType.Directory)

    def make_folder(self, path: str) -> None:
        self._system.create_dir(path, recursive=False)

    def remove(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._system.delete_file(path)


class _ArrowFile:
    """An open file.

    Args:
        file: Pyarrow's.
        start: Where it begins.
    """

    def __init__(self, file: Any, start: int) -> None:
        self._file = file
        self._file.seek(start)

    def recv_into(self, buffer: Any) -> int:
        return int(self._file.readinto(buffer))

    def close(self) -> None:
        self._file.close()
