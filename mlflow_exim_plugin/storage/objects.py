"""Objects below a folder of a bucket, by obstore: listed flat, many read or written at once.

Everything that waits for a store waits in threads of this module: obstore does not hear Ctrl-C.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import logging
import mimetypes
import os
import re
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from mlflow_exim_plugin.errors import EximError, NotFoundError, ReplacedError, StoreError
from mlflow_exim_plugin.redaction import redact_text, redact_url
from mlflow_exim_plugin.storage.object_stores import (
    OpenedStore,
    Place,
    open_store,
    place_of,
    settings,
)
from mlflow_exim_plugin.storage.retries import retried
from mlflow_exim_plugin.storage.room import ROOM

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping

    from obstore import GetOptions

__all__ = [
    "AT_ONCE",
    "SMALL_BYTES",
    "NoPartsError",
    "ObjectFolder",
    "OddKeyError",
    "object_folder",
]

_log = logging.getLogger(__name__)

AT_ONCE = 64
"""How many objects are asked for at once."""
SMALL_BYTES = 8 << 20
"""What comes, and goes, by one request."""
_RANGE_BYTES = 8 << 20
_RANGES_AT_ONCE = 8
_FIRST_BYTES = 1 << 20
"""Of what comes by ranges: it tells which version of the object they are to be of."""
_UPLOADS_AT_ONCE = 2
_PARTS_AT_ONCE = 6
_MOST_PARTS = 9000
"""Stores take 10,000."""
_LINE_BYTES = 400
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
"""What is in no key of obstore's."""


class OddKeyError(Exception):
    """A key that obstore cannot say, such as one with an empty segment."""


class NoPartsError(Exception):
    """A server does not say of a part of an object that it is one, which obstore refuses."""


class _BodyBrokenError(Exception):
    """An answer came, and not to its end."""


class ObjectFolder:
    """The objects below one folder of a bucket; safe to use from many threads.

    Args:
        url: Of the folder.
        opened: Its bucket.
        path: Of the folder in it.

    Attributes:
        stamps: By path, what the store says of a listed object that is another when it was
            written anew.
        problems: None: whatever a bucket lists can be asked for.
        renamed: None: names in a bucket are UTF-8.
    """

    at_once = AT_ONCE

    def __init__(self, url: str, opened: OpenedStore, path: str) -> None:
        self.stamps: dict[str, str] = {}
        self.problems: dict[str, str] = {}
        self.renamed: dict[str, str] = {}
        self._url = redact_url(url).rstrip("/")
        self._opened = opened
        self._store = opened.store
        self._prefix = f"{path}/" if path else ""

    def refusal(self, path: str) -> str:
        """Return why an object cannot be written; empty where it can."""
        if _CONTROL.search(path):
            return "obstore cannot say its name"
        return self._opened.refuses

    def prove(self) -> None:
        """List some of the objects.

        Raises:
            StoreError: They cannot be listed.
        """
        # It is listed, and has an object with such a key.
        with contextlib.suppress(OddKeyError), self._told("listing the objects of"):
            next(self._chunks(), None)

    def files(self) -> list[tuple[str, int]]:
        """Return path and size in bytes of every object, in path order within each folder.

        Raises:
            OddKeyError: One has a key that obstore cannot say.
            StoreError: They cannot be listed.
        """
        return _reads().submit(self._files).result()

    def read(self, path: str, size_bytes: int | None = None) -> Future[bytes]:
        """Begin to read an object that is small; what comes has the size that it has now.

        Args:
            path: Below the folder.
            size_bytes: As it was listed; None takes any.
        """
        return _reads().submit(self._read, path, size_bytes)

    def open(self, path: str, size_bytes: int | None = None) -> BinaryIO:
        """Open an object of any size as a stream of bytes, of one version of it.

        Args:
            path: Below the folder.
            size_bytes: As it was listed; None takes any.

        Raises:
            StoreError: It is gone, or the store refused. The stream raises likewise.
        """
        if size_bytes is not None and size_bytes <= SMALL_BYTES:
            return io.BytesIO(self.read(path, size_bytes).result())
        return cast("BinaryIO", _reads().submit(self._opened_stream, path, size_bytes).result())

    def put(self, path: str, data: bytes) -> Future[None]:
        """Begin to write a small object.

        Args:
            path: Below the folder.
            data: Its bytes.
        """
        return _reads().submit(self._put, path, data)

    def put_stream(self, path: str, stream: BinaryIO, size_bytes: int) -> None:
        """Write a large object in parts, of which some are on their way while the next are read.

        Args:
            path: Below the folder.
            stream: Its bytes; what it raises goes through, and nothing is written then.
            size_bytes: How many there may be.

        Raises:
            StoreError: The store refused.
        """
        _uploads().submit(self._put_stream, path, stream, size_bytes).result()

    def _files(self) -> list[tuple[str, int]]:
        from obstore.exceptions import GenericError

        with self._told("listing the objects of"):
            found, empty = retried(self._listed, (GenericError,))
            # Of `a/`, which some make for a folder, obstore says `a`: that may not be there.
            found |= dict.fromkeys(self._files_of(empty), 0)
        return sorted(found.items(), key=lambda file: file[0].split("/"))

    def _listed(self) -> tuple[dict[str, int], list[str]]:
        """Return paths and sizes of objects, and the paths of what is empty and may be none."""
        found: dict[str, int] = {}
        empty: dict[str, None] = {}
        for chunk in self._chunks():
            before = len(found) + len(empty)
            for entry in chunk:
                key = str(entry["path"])
                if key == self._prefix[:-1]:  # which stands for the folder itself
                    continue
                if not key.startswith(self._prefix):
                    raise StoreError(f"{self._url}: {key!r} is listed, which is not below it")
                path = key[len(self._prefix) :]
                self.stamps[path] = str(entry.get("e_tag") or entry.get("last_modified") or "")
                if entry["size"]:
                    found[path] = int(entry["size"])
                else:
                    empty[path] = None
            if len(chunk) > 1 and len(found) + len(empty) == before:
                raise StoreError(f"{self._url}: its list has no end, and nothing new in it")
        return found, [path for path in empty if path not in found]

    def _chunks(self) -> Iterator[list[dict[str, Any]]]:
        import obstore

        yield from obstore.list(self._store, prefix=self._prefix)

    def _files_of(self, paths: list[str]) -> Iterator[str]:
        import obstore

        def is_there(path: str) -> bool:
            try:
                obstore.head(self._store, self._prefix + path)
            except FileNotFoundError:
                return False
            return True

        if not paths:
            return iter(())
        with ThreadPoolExecutor(AT_ONCE, "exim-objects-empty") as pool:
            return itertools.compress(paths, list(pool.map(is_there, paths)))

    def _read(self, path: str, size_bytes: int | None) -> bytes:
        with self._told("reading", path):
            data = retried(lambda: self._answer(path), (_BodyBrokenError,))
            self._require_size(path, len(data), size_bytes)
            return data

    def _answer(self, path: str) -> bytes:
        import obstore
        from obstore.exceptions import BaseError

        answer = obstore.get(self._store, self._prefix + path)
        if (size_bytes := answer.meta["size"]) > SMALL_BYTES:
            raise StoreError(f"{self._url}/{path}: it grew to {size_bytes} bytes meanwhile")
        try:
            return bytes(answer.bytes())
        except (BaseError, OSError) as error:
            raise _BodyBrokenError(str(error)) from error

    def _require_size(self, path: str, came_bytes: int, listed_bytes: int | None) -> None:
        """Refuse what is not as long as was listed, unless the object itself is so now."""
        import obstore

        if listed_bytes in {None, came_bytes}:
            return
        if obstore.head(self._store, self._prefix + path)["size"] != came_bytes:
            raise StoreError(
                f"{self._url}/{path}: {came_bytes} bytes came, {listed_bytes} are listed"
            )

    def _opened_stream(self, path: str, size_bytes: int | None) -> Any:
        import obstore
        from obstore.exceptions import GenericError

        with self._told("reading", path):
            key = self._prefix + path
            try:
                first = obstore.get(self._store, key, options={"range": (0, _FIRST_BYTES)})
                meta, data = cast("dict[str, Any]", first.meta), bytes(first.bytes())
            except GenericError:
                # It is empty, or the server gives no parts of objects: then all of it comes.
                whole = obstore.get(self._store, key)
                self._require_size(path, whole.meta["size"], size_bytes)
                return _WholeStream(whole, self._told, path)
            self._require_size(path, meta["size"], size_bytes)
            return _RangesStream(self, path, meta, data)

    def names(self, path: str) -> list[tuple[str, int, str]]:
        """Return name, size in bytes and ETag of the objects directly in a folder, by name.

        Raises:
            OddKeyError: One has a key that obstore cannot say.
            StoreError: They cannot be listed.
        """
        return _reads().submit(self._names, path).result()

    def part(self, path: str, start: int, end: int) -> Future[bytes]:
        """Begin to read bytes ``[start, end)`` of an object that never changes.

        The future raises `NotFoundError` where there is none, and `NoPartsError`.
        """
        return _reads().submit(self._part, path, start, end)

    def _names(self, path: str) -> list[tuple[str, int, str]]:
        import obstore

        prefix = f"{self._prefix}{path}/" if path else self._prefix
        with self._told("listing the objects of", path):
            listed = obstore.list_with_delimiter(self._store, prefix=prefix)["objects"]
        found = (
            (str(entry["path"])[len(prefix) :], int(entry["size"]), entry["e_tag"] or "")
            for entry in listed
            if str(entry["path"]).startswith(prefix)
        )
        return sorted(found)

    def _part(self, path: str, start: int, end: int) -> bytes:
        import obstore
        from obstore.exceptions import GenericError

        key = self._prefix + path
        with self._told("reading", path):
            try:
                return bytes(obstore.get_range(self._store, key, start=start, end=end))
            except GenericError as error:
                if "non-partial" in str(error):
                    raise NoPartsError(path) from error
                raise
            except FileNotFoundError as error:
                raise NotFoundError(f"{self._url}/{path} does not exist") from error

    def range_of(self, path: str, start: int, end: int, mark: str | None) -> bytes:
        """Return bytes ``[start, end)`` of the version of an object that has a mark.

        Raises:
            ReplacedError: Another is there.
            StoreError: The store refused.
        """
        import obstore
        from obstore.exceptions import BaseError, PreconditionError

        options: GetOptions = {"range": (start, end)}
        if mark:
            options["if_match"] = mark

        def get() -> bytes:
            answer = obstore.get(self._store, self._prefix + path, options=options)
            if answer.meta["e_tag"] != mark:  # some servers know no conditions
                raise self._replaced(path)
            try:
                return bytes(answer.bytes())
            except (BaseError, OSError) as error:
                raise _BodyBrokenError(str(error)) from error

        with self._told("reading", path):
            try:
                data = retried(get, (_BodyBrokenError,))
            except (PreconditionError, FileNotFoundError) as error:
                raise self._replaced(path) from error
            if len(data) != end - start:
                raise self._replaced(path)
            return data

    def _replaced(self, path: str) -> ReplacedError:
        return ReplacedError(f"{self._url}/{path}: it was replaced while it was being read")

    def _put(self, path: str, data: bytes) -> None:
        import obstore

        with self._told("writing", path):
            attributes = self._attributes(path)
            key = self._prefix + path
            obstore.put(self._store, key, data, attributes=attributes, use_multipart=False)

    def _put_stream(self, path: str, stream: BinaryIO, size_bytes: int) -> None:
        import obstore

        part_bytes = max(_RANGE_BYTES, size_bytes // _MOST_PARTS + 1)
        pieces = iter(lambda: stream.read(1 << 20), b"")
        with self._told("writing", path):
            obstore.put(
                self._store,
                self._prefix + path,
                pieces,
                attributes=self._attributes(path),
                use_multipart=True,
                chunk_size=part_bytes,
                max_concurrency=_PARTS_AT_ONCE,
            )

    def _attributes(self, path: str) -> dict[str, str]:
        """Return what an object is told to be, as MLflow's own upload tells it."""
        kind, encoding = mimetypes.guess_type(path)
        told = {}
        if self._opened.tells_types and kind:
            told["Content-Type"] = kind
        if self._opened.tells_encodings and encoding:
            told["Content-Encoding"] = encoding
        return told | dict(self._opened.attributes)

    @contextlib.contextmanager
    def _told(self, doing: str, path: str = "") -> Generator[None]:
        """Turn what obstore raises into errors of ours with one line."""
        from obstore.exceptions import BaseError, InvalidPathError

        what = f"{doing} {self._url}/{path}".rstrip("/")
        try:
            yield
        except EximError:
            raise
        except (InvalidPathError, ValueError) as error:
            raise OddKeyError(_line(error)) from error
        except FileNotFoundError as error:
            raise StoreError(f"{what}: it is not there") from error
        except (BaseError, _BodyBrokenError, OSError) as error:
            raise StoreError(f"{what}: {_line(error)}") from error


class _RangesStream(io.RawIOBase):
    """Ranges of one version of an object, of which the next are on their way.

    Args:
        folder: Where the object is.
        path: Its path.
        meta: Which version of it.
        first: Its beginning.
    """

    def __init__(self, folder: ObjectFolder, path: str, meta: dict[str, Any], first: bytes) -> None:
        self._folder = folder
        self._path = path
        self._size_bytes = int(meta["size"])
        self._mark = meta["e_tag"]
        self._next = len(first)
        self._rest = memoryview(first)
        self._coming: deque[tuple[Future[bytes], int]] = deque()
        """Ranges, and how much room each has taken."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._rest:
            self._rest = memoryview(self._following())
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def close(self) -> None:
        while self._coming:
            future, room = self._coming.popleft()
            future.cancel()
            future.add_done_callback(partial(_given_back, room))
        super().close()

    def _following(self) -> bytes:
        self._begin_more()
        if not self._coming:
            if self._next == self._size_bytes:
                return b""
            self._begin(0)
        future, room = self._coming.popleft()
        try:
            return future.result()
        finally:
            ROOM.give(room)
            self._begin_more()

    def _begin_more(self) -> None:
        while len(self._coming) < _RANGES_AT_ONCE and self._next < self._size_bytes:
            room = min(_RANGE_BYTES, self._size_bytes - self._next)
            if not ROOM.take(room):
                return
            self._begin(room)

    def _begin(self, room: int) -> None:
        start, end = self._next, min(self._next + _RANGE_BYTES, self._size_bytes)
        future = _reads().submit(self._folder.range_of, self._path, start, end, self._mark)
        self._coming.append((future, room))
        self._next = end


class _WholeStream(io.RawIOBase):
    """An object as it comes by one request, of a server that gives no parts.

    Args:
        answer: Obstore's.
        told: Turns errors into ours.
        path: Of the object.
    """

    def __init__(self, answer: Any, told: Callable[[str, str], Any], path: str) -> None:
        self._left = int(answer.meta["size"])
        self._pieces = answer.stream(_FIRST_BYTES)
        self._told = told
        self._path = path
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._rest and self._left:
            self._rest = memoryview(_reads().submit(self._following).result())
            self._left -= len(self._rest)
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def _following(self) -> bytes:
        with self._told("reading", self._path):
            piece = bytes(next(self._pieces, b""))
            if not piece:
                raise StoreError(f"{self._path}: it ends {self._left} bytes before its end")
            return piece


class _Bucket:
    """A bucket as it is set up, which obstore serves or does not."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._opened: OpenedStore | None = None
        self._is_asked = False

    def opened(self, url: str, place: Place, given: Mapping[str, Any] | None) -> OpenedStore | None:
        """Return the bucket, None where obstore does not serve it; the first time it is asked."""
        with self._lock:
            if not self._is_asked:
                self._opened = _proven(url, place, given)
                self._is_asked = True
            return self._opened


@functools.lru_cache(64)
def _bucket(place: Place, set_up: tuple[object, ...], given: str) -> _Bucket:
    del place, set_up, given
    return _Bucket()


def object_folder(url: str, given: Mapping[str, Any] | None = None) -> ObjectFolder | None:
    """Return the objects below a folder of a bucket, None where obstore does not serve it.

    Args:
        url: Of the folder, as MLflow writes it.
        given: Options of fsspec's file system, where the bucket is set up as that has it, and not
            as MLflow's variables say.
    """
    if (place := place_of(url, or_bucket=given is not None)) is None:
        return None
    if _user() != os.getpid():
        _log.debug("%s: not by obstore, which hangs in a process that was forked", redact_url(url))
        return None
    whole = Place(place.objects, place.bucket, "", place.host)
    bucket = _bucket(whole, settings(), repr(given))
    if (opened := bucket.opened(url, place, given)) is None:
        return None
    return ObjectFolder(url, opened, place.path)


def _proven(url: str, place: Place, given: Mapping[str, Any] | None) -> OpenedStore | None:
    """Open a bucket and list a folder of it; None where that does not work, for any reason."""
    try:
        opened = open_store(place, given)
        folder = ObjectFolder(url, opened, place.path)
        _reads().submit(folder.prove).result()
    except Exception as error:  # noqa: BLE001 - the clients of the clouds have no common base
        _log.debug("%s: not by obstore: %s", redact_url(url), _line(error))
    else:
        return opened
    return None


@functools.cache
def _user() -> int:
    """Return the process that first came here."""
    return os.getpid()


@functools.cache
def _reads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(AT_ONCE, "exim-objects")


@functools.cache
def _uploads() -> ThreadPoolExecutor:
    """Of their own: what they send may come from objects that are read."""
    return ThreadPoolExecutor(_UPLOADS_AT_ONCE, "exim-uploads")


def _given_back(room: int, _: Future[bytes]) -> None:
    ROOM.give(room)


def _line(error: BaseException) -> str:
    """Return the first thing that an error says, as one line without what is secret."""
    text = re.sub(r"<[^>]+>", " ", str(error).partition("\n\nDebug source")[0])
    line = redact_text(text) or type(error).__name__
    return line if len(line) <= _LINE_BYTES else line[: _LINE_BYTES - 1] + "…"
