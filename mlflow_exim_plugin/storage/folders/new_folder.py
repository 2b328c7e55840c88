"""A folder of files that is being written, on this machine or any fsspec store."""

from __future__ import annotations

import contextlib
import posixpath
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from mlflow_exim_plugin.errors import ArchiveExistsError, EximError, StoreError
from mlflow_exim_plugin.redaction import redact_url
from mlflow_exim_plugin.storage.file_systems import file_system, store_errors
from mlflow_exim_plugin.storage.leftovers import held, partial_prefix, remove_left
from mlflow_exim_plugin.storage.urls import local_path

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping
    from contextlib import AbstractContextManager

__all__ = ["NewFolder", "new_folder"]

_CHUNK_BYTES = 1 << 20
_HINT = "choose another folder, or an empty one"


class NewFolder:
    """Takes files; paths are relative to the folder, with ``/``.

    Args:
        store: Its file system.
        path: Its path there.
        url: What to call it.
    """

    def __init__(self, store: Any, path: str, url: str) -> None:
        self._store = store
        self._path = path
        self._url = url
        self._made: set[str] = set()

    def open(self, path: str) -> AbstractContextManager[BinaryIO]:
        """Open a file to be written, in folders that are made for it.

        Raises:
            StoreError: The disk is full, the store refused or died.
        """
        return self._opened(f"{self._path}/{path}")

    def put(self, path: str, stream: BinaryIO) -> int:
        """Write a file from a stream, and return its size in bytes.

        Raises:
            StoreError: The disk is full, the store refused or died.
        """
        try:
            with self.open(path) as file:
                shutil.copyfileobj(stream, file, _CHUNK_BYTES)
                return file.tell()
        except EximError:
            # No piece may stand for the whole.
            with contextlib.suppress(StoreError), store_errors(self._url, "write"):
                self._store.rm_file(f"{self._path}/{path}")
            raise

    @contextlib.contextmanager
    def _opened(self, place: str) -> Generator[BinaryIO]:
        folder = posixpath.dirname(place)
        with store_errors(self._url, "write"):
            if folder not in self._made:
                self._store.makedirs(folder, exist_ok=True)
                self._made.add(folder)
            with self._store.open(place, "wb") as file:
                yield file


@contextlib.contextmanager
def new_folder(url: str, storage_options: Mapping[str, Any] | None = None) -> Generator[NewFolder]:
    """Write a folder: of this machine it is there complete or not at all.

    On another store files appear as they are written.

    Args:
        url: Local path or fsspec URL. What is there must be an empty folder.
        storage_options: For the file system, see fsspec.

    Raises:
        ArchiveExistsError: There is something at its name.
        StoreError: The disk is full, the store refused or died.
    """
    store, path = file_system(url, storage_options)
    path = path.rstrip("/")
    with store_errors(url, "write"):
        if store.exists(path) and (not store.isdir(path) or store.ls(path, detail=False)):
            raise ArchiveExistsError(f"{redact_url(url)} exists and is not empty", _HINT)
    if (local := local_path(url)) is None:
        yield NewFolder(store, path, url)
        return
    target = Path(local)
    with store_errors(url, "write"):
        around, prefix = target.absolute().parent, partial_prefix(target.name)
        begun = (path for path in around.iterdir() if path.name.startswith(prefix))
        remove_left(path / ".lock" for path in begun)
        beside = Path(tempfile.mkdtemp(prefix=prefix, dir=around))
        beside.chmod(0o755)
    with held(beside):
        yield NewFolder(store, str(beside), url)
        with store_errors(url, "write"):
            (beside / ".lock").unlink(missing_ok=True)
            beside.replace(target)
