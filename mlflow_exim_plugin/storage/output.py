"""Files that appear at their name complete or not at all, on any fsspec store.

fsspec commits what was written so far when a ``with fs.open(path, "wb")`` block raises, and also
when the handle is garbage-collected. :func:`atomic_output` exists because of that.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mlflow_exim_plugin.errors import ArchiveExistsError, StoreError
from mlflow_exim_plugin.redaction import redact_url
from mlflow_exim_plugin.storage.file_systems import EXISTS_HINT, file_system, store_errors
from mlflow_exim_plugin.storage.leftovers import held, remove_left
from mlflow_exim_plugin.storage.schemes import Publication, publication_of
from mlflow_exim_plugin.storage.urls import local_path

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

__all__ = ["OutputFile", "Writable", "atomic_output"]

_log = logging.getLogger(__name__)


class Writable(Protocol):
    """All that a writer asks of its output."""

    def write(self, data: bytes, /) -> Any:
        """Append the bytes."""


class OutputFile:
    """The file :func:`atomic_output` gives: it can be written, only its context commits it.

    Attributes:
        bytes_written: Size so far.
    """

    def __init__(self, file: Any, url: str) -> None:
        self._file = file
        self._url = url
        self.bytes_written = 0

    def write(self, data: bytes) -> int:
        """Append all the bytes.

        Raises:
            StoreError: The disk is full, the store refused or died.
        """
        with store_errors(self._url, "write"):
            self._file.write(data)
        self.bytes_written += len(data)
        return len(data)


@contextlib.contextmanager
def atomic_output(
    url: str, *, overwrite: bool = False, storage_options: Mapping[str, Any] | None = None
) -> Generator[OutputFile]:
    """Write a file that appears at its name complete or not at all.

    On any exception in the block, ``KeyboardInterrupt`` included, nothing appears and an older
    file stays. A killed process may leave ``.NAME.partial-<id>`` beside a local target, which the
    next one to that name removes.

    Args:
        url: Local path or fsspec URL; its folder must exist.
        overwrite: Replace what is there; without it that is an error, found before anything is
            written and again, where the store can, at the end.
        storage_options: For the file system, see fsspec.

    Raises:
        ArchiveExistsError: The target exists and ``overwrite`` is false.
        StoreError: The disk is full, the folder is missing, the store refused or died.
        MissingDependencyError: The protocol needs a package that is not installed.
    """
    path = local_path(url)
    if path is not None:
        writing = _local_output(path, overwrite=overwrite)
    else:
        store, path = file_system(url, storage_options)
        with store_errors(url, "write"):
            if not overwrite and store.exists(path):
                raise ArchiveExistsError(f"{redact_url(url)} exists", EXISTS_HINT)
        commits = publication_of(store.protocol) is Publication.COMMIT
        write = _object_output if commits else _moved_output
        writing = write(store, path, url, overwrite=overwrite)
    with writing as output:
        yield output


@contextlib.contextmanager
def _local_output(path: str, *, overwrite: bool) -> Generator[OutputFile]:
    with store_errors(path, "write"):
        target = Path(os.path.realpath(path))  # a symbolic link is written through, not replaced
        if target.exists() and not target.is_file():
            raise StoreError(f"{path} is not a regular file")
        if target.exists() and not overwrite:
            raise ArchiveExistsError(f"{path} exists", EXISTS_HINT)
        beside = f".{target.name[:150]}.partial-"
        remove_left(file for file in target.parent.iterdir() if file.name.startswith(beside))
        partial = target.with_name(f"{beside}{uuid.uuid4().hex}")
        file = partial.open("xb")
    with held(partial):
        try:
            yield OutputFile(file, path)
            with store_errors(path, "write"):
                file.flush()
                os.fsync(file.fileno())
                file.close()
                if overwrite:
                    partial.replace(target)
                else:
                    _publish_new(partial, target)
                _sync_folder(target.parent)
        finally:
            # Closing flushes, which fails again on a full disk; what counts is on its way.
            with contextlib.suppress(OSError):
                file.close()


def _publish_new(partial: Path, target: Path) -> None:
    """Give ``partial`` its final name; FileExistsError when another process was faster."""
    try:
        os.link(partial, target)
    except FileExistsError:
        raise
    except OSError:
        # No hard links here (FAT, some network file systems): reserve the name, then replace.
        target.open("xb").close()
        try:
            partial.replace(target)
        except BaseException:
            target.unlink(missing_ok=True)
            raise


def _sync_folder(folder: Path) -> None:
    """Make a new name survive a power cut, where the system lets us."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _object_output(store: Any, path: str, url: str, *, overwrite: bool) -> Generator[OutputFile]:
    # The handle is ours alone: used as a context manager, or left to the garbage collector, it
    # would commit what it has.
    with store_errors(url, "write"):
        file = store.open(path, "wb" if overwrite else "xb")
    try:
        yield OutputFile(file, url)
        with store_errors(url, "write"):
            file.close()
    except BaseException:
        _abandon(file)
        raise


def _abandon(file: Any) -> None:
    """Drop an upload so that neither close() nor __del__ can commit it."""
    # adlfs has no discard: blocks that were never committed expire by themselves.
    if hasattr(file, "discard"):
        _try(file.discard)
    file.closed = True


def _try(cleanup: Callable[..., object], *args: object) -> None:
    """Clean up after an error, which is the one to show whatever happens here."""
    try:
        cleanup(*args)
    except Exception as error:  # noqa: BLE001 - stores have no common base of errors
        _log.debug("cleaning up after a failed write: %s", error)


@contextlib.contextmanager
def _moved_output(store: Any, path: str, url: str, *, overwrite: bool) -> Generator[OutputFile]:
    folder, slash, name = path.rpartition("/")
    partial = f"{folder}{slash}.{name[:150]}.partial-{uuid.uuid4().hex}"
    with store_errors(url, "write"):
        file = store.open(partial, "wb")
    try:
        yield OutputFile(file, url)
        with store_errors(url, "write"):
            file.close()
            _move_into_place(store, partial, path, overwrite=overwrite)
    except BaseException:
        _try(file.close)
        _try(store.rm_file, partial)
        raise


def _move_into_place(store: Any, partial: str, path: str, *, overwrite: bool) -> None:
    """Rename on a store that may not rename over a file: the old one steps aside first."""
    aside = f"{partial}.replaced"
    has_old = store.exists(path)
    if has_old:
        if not overwrite:
            raise FileExistsError(path)
        store.mv(path, aside)
    try:
        store.mv(partial, path)
    except BaseException:
        if has_old:
            store.mv(aside, path)
        raise
    if has_old:
        store.rm_file(aside)
