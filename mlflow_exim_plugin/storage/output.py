"""Files that appear at their name complete or not at all, on any fsspec store.

fsspec commits what was written so far when a ``with fs.open(path, "wb")`` block raises, and also
when the handle is garbage-collected. :func:`atomic_output` exists because of that.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from mlflow_exim_plugin.errors import ArchiveExistsError, EximError, StoreError, UsageError
from mlflow_exim_plugin.redaction import redact_url
from mlflow_exim_plugin.storage.file_systems import EXISTS_HINT, file_system, store_errors
from mlflow_exim_plugin.storage.leftovers import (
    held,
    held_on,
    is_held,
    partial_name,
    partial_prefix,
    remove_left,
)
from mlflow_exim_plugin.storage.ranges import open_range
from mlflow_exim_plugin.storage.upload.parts import Parts
from mlflow_exim_plugin.storage.upload.publication import upload_to
from mlflow_exim_plugin.storage.upload.under_way import remove_noted
from mlflow_exim_plugin.storage.urls import local_path

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

__all__ = ["OutputFile", "Writable", "atomic_output", "publish_new"]


class Writable(Protocol):
    """All that a writer asks of its output."""

    def write(self, data: bytes, /) -> Any:
        """Append the bytes."""


class OutputFile:
    """The file :func:`atomic_output` gives: it can be written, only its context commits it.

    Attributes:
        bytes_written: Size so far, beside what was there.
        earlier: The file itself where an earlier attempt left something in it.
    """

    def __init__(self, file: Any, url: str, earlier: IO[bytes] | None = None) -> None:
        self._file = file
        self._url = url
        self.bytes_written = 0
        self.earlier = earlier

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
    url: str,
    *,
    overwrite: bool = False,
    resume: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> Generator[OutputFile]:
    """Write a file that appears at its name complete or not at all.

    On any exception in the block, ``KeyboardInterrupt`` included, nothing appears and an older
    file stays. What a killed process leaves, ``.NAME.partial-<id>`` or the parts of an upload, the
    next one to that name removes.

    Args:
        url: Local path or fsspec URL; its folder must exist.
        overwrite: Replace what is there; without it that is an error, found before anything is
            written and again, where the store can, at the end.
        resume: Go on with what a process that is no more left of a local file, which is given as
            ``earlier``; after an exception what is written stays for another attempt.
        storage_options: For the file system, see fsspec.

    Raises:
        ArchiveExistsError: The target exists and ``overwrite`` is false.
        UsageError: Nothing can be resumed on a store.
        StoreError: The disk is full, the folder is missing, the store refused or died.
        MissingDependencyError: The protocol needs a package that is not installed.
    """
    path = local_path(url)
    if path is not None:
        writing = _local_output(path, overwrite=overwrite, resume=resume)
    elif resume:
        raise UsageError(
            f"what was begun at {redact_url(url)} cannot be resumed",
            "only a file of this machine can; leave --resume out to begin anew",
        )
    else:
        writing = _far_output(url, storage_options, overwrite=overwrite)
    with writing as output:
        yield output


@contextlib.contextmanager
def _local_output(path: str, *, overwrite: bool, resume: bool) -> Generator[OutputFile]:
    with store_errors(path, "write"):
        target = Path(os.path.realpath(path))  # a symbolic link is written through, not replaced
        if target.exists() and not target.is_file():
            raise StoreError(f"{path} is not a regular file")
        if target.exists() and not overwrite:
            raise ArchiveExistsError(f"{path} exists", EXISTS_HINT)
        beside = partial_prefix(target.name)
        left = [file for file in target.parent.iterdir() if file.name.startswith(beside)]
        begun = _largest(left) if resume else None
        remove_left(file for file in left if file != begun)
        partial = begun or target.with_name(partial_name(target.name))
        file = partial.open("r+b" if begun else "xb")
    with contextlib.ExitStack() as stack:
        with store_errors(path, "write"):
            stack.enter_context(held_on(partial) if resume else held(partial))
        try:
            yield OutputFile(file, path, file if begun else None)
            with store_errors(path, "write"):
                file.flush()
                os.fsync(file.fileno())
                file.close()
                if overwrite:
                    partial.replace(target)
                else:
                    publish_new(partial, target)
                _sync_folder(target.parent)
        finally:
            # Closing flushes, which fails again on a full disk; what counts is on its way.
            with contextlib.suppress(OSError):
                file.close()


def _largest(files: list[Path]) -> Path | None:
    """Return the file that holds most of those that nobody is at."""
    free = [(file.stat().st_size, file) for file in files if file.is_file() and not is_held(file)]
    return max(free, default=(0, None))[1]


def publish_new(partial: Path, target: Path) -> None:
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
def _far_output(
    url: str, storage_options: Mapping[str, Any] | None, *, overwrite: bool
) -> Generator[OutputFile]:
    store, path = file_system(url, storage_options)
    with store_errors(url, "write"):
        upload = upload_to(store, path, url, overwrite=overwrite)
        if not overwrite and store.exists(path):
            raise ArchiveExistsError(f"{redact_url(url)} exists", EXISTS_HINT)
        remove_noted(url, upload.remove)
    parts = Parts(upload, url)
    try:
        yield (output := OutputFile(parts, url))
        with store_errors(url, "write"):
            is_there = _published(parts, url, storage_options, output.bytes_written)
    except BaseException:
        parts.abandon()
        raise
    if not is_there:
        raise StoreError(
            f"{redact_url(url)}: the store took {output.bytes_written} bytes, and has others",
            "pack again, to another name; what is there is no archive",
        )


def _published(
    parts: Parts, url: str, storage_options: Mapping[str, Any] | None, size_bytes: int
) -> bool:
    """Let the file be at its name; whether it is what was written that is there then."""

    def is_there() -> bool:
        # The end of an archive has its root, and so tells it from all others.
        with contextlib.closing(open_range(url, storage_options)) as source:
            start = size_bytes - len(parts.end)
            return (
                source.size_bytes == size_bytes
                and source.read_range(start, size_bytes) == parts.end
            )

    try:
        parts.publish()
    except Exception:
        # Of a call whose answer was lost clients make another one, and hear that the file exists.
        is_ours = False
        with contextlib.suppress(EximError):
            is_ours = is_there()
        if not is_ours:
            raise
        parts.close()
        return True
    return is_there()
