"""Ranges of files on web servers; of one that gives none, the file is fetched whole, once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import tempfile
import time
from abc import abstractmethod
from dataclasses import dataclass
from http import HTTPStatus
from typing import IO, TYPE_CHECKING, Any

from fsspec.asyn import sync

from mlflow_exim_plugin.errors import NOTICE, StoreError
from mlflow_exim_plugin.storage.file_systems import file_system
from mlflow_exim_plugin.storage.pinned import (
    TAIL_BYTES,
    Changed,
    FileVersion,
    PinnedSource,
    seconds_for,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["HttpSource", "WebdavSource"]

_log = logging.getLogger(__name__)

_SILENCE_SECONDS = 60.0
"""After which a server that sends nothing is given up."""
_CHUNK_BYTES = 1 << 18
_SPAN = re.compile(r"bytes (?:\d+-\d+|\*)/(\d+)")


@dataclass(frozen=True)
class _Answer:
    """What a server said; its body is left where it is a whole file that is not small."""

    status: int
    headers: Mapping[str, str]
    body: bytes | None

    @property
    def mark(self) -> str:
        return self.headers.get("ETag") or self.headers.get("Last-Modified") or ""

    def version(self) -> FileVersion:
        """Return the version of a file of which a range was asked for."""
        if span := _SPAN.fullmatch(self.headers.get("Content-Range", "")):
            return FileVersion(int(span[1]), self.mark)
        return FileVersion(len(self.body or b""), self.mark)


class _Busy(Exception):  # noqa: N818 - what a server answers, shown as it is
    """A server that will be better soon."""


class _WebSource(PinnedSource):
    """A file of a web server, by its ETag or the time of its change."""

    busy = (_Busy,)
    _whole: IO[bytes] | None = None

    def _begin(self) -> tuple[FileVersion, bytes]:
        answer = self._asked(f"bytes=-{TAIL_BYTES}")
        if answer.body is None:
            # There are servers that know ranges, but not those from the end.
            answer = self._asked("bytes=0-0")
            if answer.body is None:
                return self._fetched_whole(), b""
            return answer.version(), b""
        return answer.version(), b"" if answer.status >= HTTPStatus.BAD_REQUEST else answer.body

    def _get(self, start: int, end: int) -> bytes:
        if self._whole is not None:
            with self._lock:
                self._whole.seek(start)
                return self._whole.read(end - start)
        mark = self.version.mark
        # A weak one (W/"...") is equal to none, by RFC 9110.
        conditions = {"If-Match": mark} if mark.startswith('"') else {}
        answer = self._ask({"Range": f"bytes={start}-{end - 1}", **conditions}, end - start)
        if answer.status == HTTPStatus.OK and answer.mark == mark:
            raise StoreError(f"{self.name}: the server does not support range requests any more")
        is_part = answer.status == HTTPStatus.PARTIAL_CONTENT
        if answer.body is None or not is_part or answer.version() != self.version:
            raise Changed
        return answer.body

    def _asked(self, span: str) -> _Answer:
        answer = self._ask({"Range": span}, TAIL_BYTES)
        self._count(answer.body or b"")
        if answer.status == HTTPStatus.PRECONDITION_FAILED:
            raise StoreError(f"{self.name}: the server refuses a request without conditions")
        return answer

    def _fetched_whole(self) -> FileVersion:
        _log.log(
            NOTICE,
            "%s: the server gives no parts of files, so all of it is fetched to %s first.",
            self.name,
            tempfile.gettempdir(),
        )
        # It has no name where that is possible, so that nothing is left whatever happens.
        file = tempfile.TemporaryFile(prefix="mlflow-exim-")  # noqa: SIM115 - closed with the source
        try:
            headers = self._download(file)
            size_bytes = file.seek(0, 2)
        except BaseException:
            file.close()
            raise
        self._whole = file
        self.requests += 1
        self.bytes_read += size_bytes
        return FileVersion(size_bytes, _Answer(HTTPStatus.OK, headers, None).mark)

    def close(self) -> None:
        if self._whole is not None:
            self._whole.close()

    @abstractmethod
    def _ask(self, headers: Mapping[str, str], size_bytes: int) -> _Answer:
        """Ask for a range; the whole file is read only where it is small."""

    @abstractmethod
    def _download(self, file: IO[bytes]) -> Mapping[str, str]:
        """Fetch the whole file and return the headers that came before it."""

    def _require_pace(self, begun: float, size_bytes: int) -> None:
        """Refuse to wait for a server that sends, but next to nothing.

        Args:
            begun: When it was asked, by the clock that only goes forward.
            size_bytes: What it may have sent by now.
        """
        if time.monotonic() - begun > seconds_for(size_bytes):
            raise StoreError(
                f"{self.name}: the server is too slow",
                "run the same command again when the store is well",
            )

    def _check(self, status: int, reason: str) -> None:
        said = f"{status} {reason}".strip()
        if status in {HTTPStatus.NOT_FOUND, HTTPStatus.GONE}:
            raise FileNotFoundError(said)
        if status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise _Busy(said)
        known = {HTTPStatus.PRECONDITION_FAILED, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE}
        if status >= HTTPStatus.BAD_REQUEST and status not in known:
            raise StoreError(f"cannot read {self.name}: {said}")

    @staticmethod
    def _is_wanted(status: int, headers: Mapping[str, str]) -> bool:
        size = headers.get("Content-Length", "")
        return status != HTTPStatus.OK or (size.isdecimal() and int(size) <= TAIL_BYTES)


class HttpSource(_WebSource):
    """A file of a web server, by fsspec's client."""

    def _transient(self) -> tuple[type[Exception], ...]:
        from aiohttp import ClientError

        return (_Busy, ClientError, ConnectionError, asyncio.TimeoutError)

    def _begin(self) -> tuple[FileVersion, bytes]:
        self._store, self._path = file_system(self._url, self._storage_options)
        return super()._begin()

    def _ask(self, headers: Mapping[str, str], size_bytes: int) -> _Answer:
        limit = seconds_for(size_bytes)
        answer: _Answer = sync(self._store.loop, self._answer, headers, timeout=limit)
        return answer

    def _download(self, file: IO[bytes]) -> Mapping[str, str]:
        headers: Mapping[str, str] = sync(self._store.loop, self._write_to, file)
        return headers

    async def _answer(self, headers: Mapping[str, str]) -> _Answer:
        async with await self._opened(headers) as response:
            self._check(response.status, response.reason or "")
            is_wanted = self._is_wanted(response.status, response.headers)
            body = await response.read() if is_wanted else None
            if not is_wanted:
                response.close()
            return _Answer(response.status, response.headers, body)

    async def _write_to(self, file: IO[bytes]) -> Mapping[str, str]:
        file.seek(0)
        file.truncate()
        begun = time.monotonic()
        async with await self._opened({}) as response:
            self._check(response.status, response.reason or "")
            async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
                file.write(chunk)
                self._require_pace(begun, file.tell())
            found: Mapping[str, str] = response.headers
            return found

    async def _opened(self, headers: Mapping[str, str]) -> Any:
        from aiohttp import ClientTimeout

        session = await self._store.set_session()
        options = dict(self._store.kwargs)
        own = {"Accept-Encoding": "identity", **options.pop("headers", {}), **headers}
        silence = ClientTimeout(sock_connect=_SILENCE_SECONDS, sock_read=_SILENCE_SECONDS)
        options = {"timeout": silence, **options, "headers": own}
        return session.get(self._store.encode_url(self._path), **options)


class WebdavSource(_WebSource):
    """A file of a WebDAV server, by the client of webdav4."""

    def _transient(self) -> tuple[type[Exception], ...]:
        from httpx import TransportError

        return (_Busy, TransportError)

    def _begin(self) -> tuple[FileVersion, bytes]:
        self._store, self._path = file_system(self._url, self._storage_options)
        self._address = self._store.client.join_url(self._path)
        return super()._begin()

    def _ask(self, headers: Mapping[str, str], size_bytes: int) -> _Answer:
        begun = time.monotonic()
        with self._opened(headers) as response:
            status, headers = response.status_code, response.headers
            if status == HTTPStatus.OK and self._store.isdir(self._path):
                raise self._no_file()  # what came is a page that lists it
            if not self._is_wanted(status, headers):
                return _Answer(status, headers, None)
            body = bytearray()
            for chunk in response.iter_raw():
                body += chunk
                self._require_pace(begun, size_bytes)
            return _Answer(status, headers, bytes(body))

    def _download(self, file: IO[bytes]) -> Mapping[str, str]:
        file.seek(0)
        file.truncate()
        begun = time.monotonic()
        with self._opened({}) as response:
            for chunk in response.iter_raw():
                file.write(chunk)
                self._require_pace(begun, file.tell())
            found: Mapping[str, str] = response.headers
            return found

    @contextlib.contextmanager
    def _opened(self, headers: Mapping[str, str]) -> Iterator[Any]:
        own = {"Accept-Encoding": "identity", **headers}
        with self._store.client.http.stream(
            "GET", self._address, headers=own, timeout=_SILENCE_SECONDS, follow_redirects=True
        ) as response:
            self._check(response.status_code, response.reason_phrase)
            yield response
