"""How a file comes to a store that is not this machine: to its name by one act at the end."""

from __future__ import annotations

import contextlib
import posixpath
from functools import partial
from typing import TYPE_CHECKING, Any

from fsspec.spec import AbstractFileSystem

from mlflow_exim_plugin.errors import StoreError
from mlflow_exim_plugin.redaction import redact_url
from mlflow_exim_plugin.storage.leftovers import partial_name
from mlflow_exim_plugin.storage.schemes import Publication, publication_of
from mlflow_exim_plugin.storage.ssh_ranges import SILENCE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mlflow_exim_plugin.storage.upload.parts import Upload

__all__ = ["upload_to"]

_NO_PUBLICATION = "pack into a local file, and copy that there by the store's own means"


class _OneStream:
    """A file whose parts go through fsspec's open file, one after the other.

    Args:
        store: fsspec's file system.
        path: Of the file in it.
    """

    def __init__(self, store: Any, path: str) -> None:
        self.parallel = 1
        self.part_bytes: int | None = None
        self._store = store
        self._path = path
        self._file: Any = None

    def put(self, data: bytes) -> None:
        self.begin()
        self.send(1, data)
        self.publish()

    def go_on(self, left: Sequence[str]) -> bool:
        for one in left:
            self.remove(one)
        return False

    def begin(self) -> str | None:
        raise NotImplementedError

    def remove(self, left: str) -> None:
        raise NotImplementedError(left)

    def send(self, number: int, data: bytes) -> None:
        del number
        self._file.write(data)

    def publish(self) -> None:
        self._file.close()


class _ObjectFile(_OneStream):
    """An object that appears whole when fsspec's file is closed, and never before.

    Args:
        store: fsspec's file system.
        path: Of the object in it.
        mode: ``xb`` if nothing may be at its name, ``wb`` if something may.
    """

    def __init__(self, store: Any, path: str, mode: str) -> None:
        super().__init__(store, path)
        self._mode = mode

    def begin(self) -> str | None:
        # The handle is ours alone: used as a context manager, or left to the garbage collector, it
        # would commit what it has.
        self._file = self._store.open(self._path, self._mode)
        return None

    def abandon(self) -> None:
        if self._file is None:
            return
        try:
            if hasattr(self._file, "discard"):
                self._file.discard()
        finally:  # neither close() nor __del__ may commit it
            self._file.closed = True


class _RenamedFile(_OneStream):
    """A file that is written under another name beside, and renamed.

    Args:
        store: fsspec's file system.
        path: Of the file in it.
        rename: Gives a file another name: from, to.
    """

    def __init__(self, store: Any, path: str, rename: Callable[[str, str], None]) -> None:
        super().__init__(store, path)
        folder, name = posixpath.split(path)
        self._partial = posixpath.join(folder, partial_name(name))
        self._rename = rename

    def begin(self) -> str | None:
        self._file = self._store.open(self._partial, "wb")
        if hasattr(self._file, "set_pipelined"):  # SSH's waits for an answer to each 32 kB
            self._file.set_pipelined(True)
            self._store.ftp.get_channel().settimeout(SILENCE_SECONDS)
        return self._partial

    def publish(self) -> None:
        super().publish()
        self._rename(self._partial, self._path)

    def abandon(self) -> None:
        if self._file is None:
            return
        with contextlib.suppress(Exception):  # of a store that has died already
            self._file.close()
        self.remove(self._partial)

    def remove(self, left: str) -> None:
        try:
            self._store.rm_file(left)
        except FileNotFoundError:
            pass
        except Exception:
            if self._store.exists(left):  # FTP has one code for all trouble
                raise


def upload_to(store: Any, path: str, url: str, *, overwrite: bool) -> Upload:
    """Return how a file comes to a store.

    Args:
        store: fsspec's file system.
        path: Of the file in it.
        url: What to call it.
        overwrite: Whether something may be at its name.

    Raises:
        StoreError: The store can neither commit a file nor rename one: half of it could be seen.
    """
    publication = publication_of(store.protocol)
    if publication is Publication.PARTS_OF_S3:
        from mlflow_exim_plugin.storage.upload.s3 import s3_upload

        return s3_upload(store, path, overwrite=overwrite)
    if publication is Publication.BLOCKS_OF_AZURE:
        from mlflow_exim_plugin.storage.upload.azure import azure_upload

        return azure_upload(store, path, overwrite=overwrite)
    if publication is Publication.COMMIT:
        return _ObjectFile(store, path, "wb" if overwrite else "xb")
    if (rename := _rename_of(store, publication, overwrite=overwrite)) is None:
        raise StoreError(
            f"cannot write {redact_url(url)}: its store can neither commit a file as a whole nor "
            "rename one",
            _NO_PUBLICATION,
        )
    return _RenamedFile(store, path, rename)


def _rename_of(
    store: Any, publication: Publication | None, *, overwrite: bool
) -> Callable[[str, str], None] | None:
    if publication is Publication.MOVE_OF_WEBDAV:
        return partial(_move, store, overwrite=overwrite)
    if publication is Publication.RENAME_OF_SSH and hasattr(store, "ftp"):
        return partial(_rename_by_ssh, store, overwrite=overwrite)
    # fsspec's own `mv` is a copy of which half can be seen. In memory there is no half.
    if type(store).mv is AbstractFileSystem.mv and publication is None:
        return None
    return partial(_step_aside, store, overwrite=overwrite)


def _move(store: Any, old: str, new: str, *, overwrite: bool) -> None:
    from webdav4.client import ResourceAlreadyExists

    try:
        store.client.move(old, new, overwrite=overwrite)
    except ResourceAlreadyExists as error:
        raise FileExistsError(new) from error


def _rename_by_ssh(store: Any, old: str, new: str, *, overwrite: bool) -> None:
    if overwrite:
        store.ftp.posix_rename(old, new)
        return
    try:
        store.ftp.rename(old, new)
    except OSError as error:  # the protocol has one code for every failure
        if store.exists(new):
            raise FileExistsError(new) from error
        raise


def _step_aside(store: Any, old: str, new: str, *, overwrite: bool) -> None:
    """Rename on a store that may not rename over a file: what is there steps aside first."""
    aside = f"{old}.replaced"
    has_old = store.exists(new)
    if has_old:
        if not overwrite:
            raise FileExistsError(new)
        store.mv(new, aside)
    try:
        store.mv(old, new)
    except BaseException:
        if has_old:
            store.mv(aside, new)
        raise
    if has_old:
        store.rm_file(aside)
