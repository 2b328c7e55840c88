"""A folder of files on this machine or any fsspec store: listed, read, and added to."""

from __future__ import annotations

import contextlib
import posixpath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import ArchiveExistsError, NotFoundError, StoreError
from mlflow_exim_plugin.redaction import redact_url
from mlflow_exim_plugin.storage.file_systems import file_system, store_errors
from mlflow_exim_plugin.storage.output import atomic_output
from mlflow_exim_plugin.storage.ranges import open_range
from mlflow_exim_plugin.storage.urls import local_path

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["StoreFolder"]


class StoreFolder:
    """Files by their paths below one folder, with ``/``.

    Args:
        url: Path or fsspec URL of the folder.
        storage_options: For the file system, see fsspec.

    Attributes:
        url: As it was given, without a slash at its end.
        storage_options: As they were given.
    """

    def __init__(self, url: str, storage_options: Mapping[str, Any] | None = None) -> None:
        self.url = url.rstrip("/") or "/"
        self.storage_options = storage_options

    def __str__(self) -> str:
        return redact_url(self.url)

    def at(self, path: str) -> str:
        """Return the URL of a file."""
        return f"{self.url.rstrip('/')}/{path}"

    def names(self, path: str = "") -> list[str]:
        """Return the names of what lies directly in a folder, sorted; none where it is not there.

        Raises:
            StoreError: It cannot be listed.
        """
        url = self.at(path) if path else self.url
        with store_errors(url, "list"):
            if (local := local_path(url)) is not None:
                folder = Path(local)
                return sorted(one.name for one in folder.iterdir()) if folder.is_dir() else []
            store, far = file_system(url, self.storage_options)
            store.invalidate_cache(far)  # another writer may have been here meanwhile
            try:
                listed = store.ls(far, detail=False)
            except (FileNotFoundError, NotADirectoryError):
                return []
        far = str(store._strip_protocol(far)).rstrip("/")  # noqa: SLF001 - fsspec's own way to say it
        found = (str(one).rstrip("/") for one in listed)
        return sorted({posixpath.basename(one) for one in found if one and one != far})

    def sizes(self, path: str) -> dict[str, int]:
        """Return the sizes of all files in a folder and below it, by their paths as given here.

        Raises:
            StoreError: It cannot be listed.
        """
        url = self.at(path)
        with store_errors(url, "list"):
            if (local := local_path(url)) is not None:
                found: dict[str, int] = {}
                for one in sorted(Path(local).rglob("*")):
                    with contextlib.suppress(FileNotFoundError):  # another writer has renamed it
                        if one.is_file():
                            name = one.relative_to(local).as_posix()
                            found[f"{path}/{name}"] = one.stat().st_size
                return found
            store, far = file_system(url, self.storage_options)
            store.invalidate_cache(far)  # another writer may have been here meanwhile
            listed = store.find(far, detail=True)
        start = str(store._strip_protocol(far)).rstrip("/")  # noqa: SLF001 - fsspec's own way to say it
        return {
            f"{path}/{str(name).removeprefix(start).lstrip('/')}": int(of["size"] or 0)
            for name, of in sorted(listed.items())
        }

    def read(self, path: str, most_bytes: int) -> bytes:
        """Return the bytes of a file.

        Raises:
            NotFoundError: No such file.
            StoreError: It is larger than that, or the store refused or died.
        """
        url = self.at(path)
        with contextlib.closing(open_range(url, self.storage_options)) as source:
            if source.size_bytes > most_bytes:
                raise StoreError(f"{redact_url(url)} has {source.size_bytes} bytes, over the limit")
            return source.read_range(0, source.size_bytes)

    def has(self, path: str) -> bool:
        """Whether there is a file.

        Raises:
            StoreError: The store refused or died.
        """
        try:
            self.size_bytes(path)
        except NotFoundError:
            return False
        return True

    def size_bytes(self, path: str) -> int:
        """Return the size of a file.

        Raises:
            NotFoundError: No such file.
            StoreError: The store refused or died.
        """
        with contextlib.closing(open_range(self.at(path), self.storage_options)) as source:
            return source.size_bytes

    def modified_ms(self, path: str) -> int | None:
        """Return when a file was written, ms since the Unix epoch; None if its store does not tell.

        Raises:
            NotFoundError: No such file.
            StoreError: The store refused or died.
        """
        url = self.at(path)
        with store_errors(url, "look at"):
            if (local := local_path(url)) is not None:
                return Path(local).stat().st_mtime_ns // 1_000_000
            store, far = file_system(url, self.storage_options)
            try:
                return int(store.modified(far).timestamp() * 1000)
            except (NotImplementedError, KeyError, AttributeError):
                return None

    def put(self, path: str, data: bytes) -> None:
        """Write a file that is not there yet, in folders that are made for it.

        Raises:
            ArchiveExistsError: There is a file of that name; it stays as it is.
            StoreError: The store refused or died.
        """
        self.make_folder_of(path)
        with atomic_output(self.at(path), storage_options=self.storage_options) as file:
            file.write(data)

    def put_named_by_content(self, path: str, data: bytes) -> None:
        """Write a file whose name is made of its content: whoever was first wrote the same.

        Raises:
            StoreError: The store refused or died.
        """
        with contextlib.suppress(ArchiveExistsError):
            self.put(path, data)

    def make_folder_of(self, path: str) -> None:
        """Make the folder of a file, where the store has folders.

        Raises:
            StoreError: The store refused or died.
        """
        url = posixpath.dirname(self.at(path))
        with store_errors(url, "make"):
            if (local := local_path(url)) is not None:
                Path(local).mkdir(parents=True, exist_ok=True)
            else:
                store, far = file_system(url, self.storage_options)
                store.makedirs(far, exist_ok=True)

    def remove(self, path: str) -> bool:
        """Remove a file; returns whether it was there.

        Raises:
            StoreError: The store refused or died.
        """
        url = self.at(path)
        try:
            with store_errors(url, "remove"):
                if (local := local_path(url)) is not None:
                    Path(local).unlink()
                else:
                    store, far = file_system(url, self.storage_options)
                    store.rm_file(far)
        except NotFoundError:
            return False
        return True
