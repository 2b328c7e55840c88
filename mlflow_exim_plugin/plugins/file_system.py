"""The fsspec file system ``exim``: the members of an archive as files, read where they lie.

::

    fsspec.open("exim://data/experiments/1/metrics/part-00000.parquet::s3://bucket/a.tar.zst")
"""

from __future__ import annotations

import contextlib
import os
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

from fsspec import AbstractFileSystem

from mlflow_exim_plugin.container.layout import ARCHIVE
from mlflow_exim_plugin.container.reader import ArchiveReader
from mlflow_exim_plugin.errors import EximError, NotFoundError, StoreError, UsageError
from mlflow_exim_plugin.schema.envelope import ArchiveEnvelope, check_document

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

__all__ = ["EximFileSystem"]


class EximFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """The members of one archive; safe to use from many threads, and can be pickled.

    Args:
        fo: Where the archive lies; the part after ``::`` of a URL.
        target_protocol: Protocol of the file system there.
        target_options: For that file system.
        root: Root digest that the archive must have, hex.
        options: For fsspec.

    Attributes:
        root: Root digest of the archive, lower-case hex.

    Raises:
        UsageError: No archive was named.
        NotFoundError: There is nothing.
        InvalidArchiveError: It is no archive, damaged, or has another root.
        StoreError: The store refused or died.
    """

    protocol = "exim"
    root_marker = ""

    def __init__(
        self,
        fo: str = "",
        target_protocol: str | None = None,
        target_options: Mapping[str, Any] | None = None,
        *,
        root: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if not fo:
            raise UsageError("no archive is named", "write exim://MEMBER::ARCHIVE")
        is_plain = target_protocol in {None, "file", "local"} or "://" in fo
        url = fo if is_plain else f"{target_protocol}://{fo}"
        self._reader = ArchiveReader.open(url, storage_options=target_options, expected_root=root)
        self.root = self._reader.root

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened_again, (type(self), self.storage_args, self.storage_options, self.root)

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """List a folder: name, size and type of each entry, of files their digest too."""
        path = self._strip_protocol(path)
        entries = sorted(self._entries(path), key=lambda entry: str(entry["name"]))
        if not entries:
            entries = [self.info(path)]
        return entries if detail else [entry["name"] for entry in entries]

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Tell name, size and type of one file or folder, of a file its digest too."""
        path = self._strip_protocol(path)
        place = self._reader.position(path)
        if place is not None:
            return self._file(place)
        if path and next(self._entries(path), None) is None:
            raise NotFoundError(f"{self._reader.name} has no member {path!r}")
        return _folder(path)

    def find(
        self,
        path: str,
        maxdepth: int | None = None,
        withdirs: bool = False,
        detail: bool = False,
        **options: Any,
    ) -> Any:
        """List all files below a folder."""
        if maxdepth is not None or withdirs:
            return super().find(path, maxdepth, withdirs, detail, **options)
        path = self._strip_protocol(path)
        prefix = f"{path}/" if path else ""
        found = [path] if path in self._reader else self._reader.paths(prefix)
        return {name: self.info(name) for name in found} if detail else found

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **_: Any
    ) -> bytes:
        """Return a file's bytes, or a slice of them; a whole file has its digest."""
        return self._reader.read(self._strip_protocol(path), start or 0, end)

    def cat_ranges(
        self,
        paths: list[str],
        starts: int | Sequence[int | None] | None,
        ends: int | Sequence[int | None] | None,
        max_gap: int | None = None,
        on_error: str = "return",
        **_: Any,
    ) -> list[bytes | EximError]:
        """Return a slice of each file; neighbours come with one request, and a few at once."""
        del max_gap  # frames are what is fetched
        starts = [starts] * len(paths) if isinstance(starts, int | None) else starts
        ends = [ends] * len(paths) if isinstance(ends, int | None) else ends
        found = self._reader.read_many(
            [
                (self._strip_protocol(path), start or 0, end)
                for path, start, end in zip(paths, starts, ends, strict=True)
            ]
        )
        for failed in found:
            if isinstance(failed, EximError) and on_error != "return":
                raise failed
        return found

    def get_file(self, rpath: str, lpath: Any = None, **options: Any) -> None:
        """Write a file to a local path; one that is not what its manifest says is removed again."""
        try:
            super().get_file(rpath, lpath, **options)
        except EximError:
            if isinstance(lpath, str | os.PathLike):
                with contextlib.suppress(OSError):
                    os.unlink(lpath)  # noqa: PTH108 - may be a text
            raise

    def modified(self, path: str) -> datetime:
        """Return when the archive was packed: its members have no times of their own."""
        self.info(path)
        document = self._reader.read_document(ARCHIVE)
        packed_s = check_document(ArchiveEnvelope, document, ARCHIVE).system.export_time
        return datetime.fromtimestamp(packed_s, timezone.utc)

    created = modified

    def ukey(self, path: str) -> str:
        """Return a file's digest."""
        return self._reader.member(self._strip_protocol(path)).sha256

    checksum = ukey

    def _open(self, path: str, mode: str = "rb", **_: Any) -> BinaryIO:
        if mode != "rb":
            self._refuse()
        return self._reader.open_member(path)

    def _entries(self, folder: str) -> Iterator[dict[str, Any]]:
        """Yield what is in a folder; takes as long as that is much, whatever is below."""
        reader = self._reader
        prefix = f"{folder}/" if folder else ""
        place = reader.place_of(prefix)
        while place < len(reader):
            path = reader.member_at(place).path
            if not path.startswith(prefix):
                return
            name, is_folder, _ = path[len(prefix) :].partition("/")
            if is_folder:
                yield _folder(prefix + name)
                place = reader.place_of(f"{prefix}{name}0")  # the character after the slash
            else:
                yield self._file(place)
                place += 1

    def _file(self, place: int) -> dict[str, Any]:
        member = self._reader.member_at(place)
        return {
            "name": member.path,
            "size": member.size_bytes,
            "type": "file",
            "sha256": member.sha256,
        }

    def _refuse(self, *_arguments: Any, **_options: Any) -> NoReturn:
        raise StoreError(
            f"{self._reader.name} is read only: an archive is written once", "pack another one"
        )

    mkdir = makedirs = rmdir = touch = _refuse
    rm = rm_file = _rm = mv = cp_file = copy = _refuse
    put = put_file = pipe = pipe_file = _refuse


def _folder(path: str) -> dict[str, Any]:
    return {"name": path, "size": 0, "type": "directory"}


def _opened_again(
    cls: Callable[..., EximFileSystem], arguments: Any, options: Any, root: str
) -> EximFileSystem:
    """Open an archive where another process had it open: the same one, or none."""
    opened = cls(*arguments, **options)
    if opened.root == root:
        return opened
    # Either it was replaced, which this refuses, or this process had an older one open.
    return cls(*arguments, **{**options, "root": root})
