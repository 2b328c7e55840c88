"""Ranges of objects of S3, Google and Azure, by the clients that fsspec's file systems have."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from fsspec.asyn import sync

from mlflow_exim_plugin.storage.file_systems import file_system, status_of
from mlflow_exim_plugin.storage.pinned import (
    TAIL_BYTES,
    Changed,
    FileVersion,
    PinnedSource,
    seconds_for,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["AzureSource", "GoogleSource", "S3Source"]

_PRECONDITION_FAILED = 412
_OUT_OF_RANGE = 416


class S3Source(PinnedSource):
    """An object of S3 or its like, by its ETag, or its version where the bucket keeps them."""

    def _transient(self) -> tuple[type[Exception], ...]:
        # The client asks again for an answer, but not where its body breaks off.
        from aiohttp import ClientError

        return (ClientError, ConnectionError, asyncio.TimeoutError)

    def _begin(self) -> tuple[FileVersion, bytes]:
        self._store, path = file_system(self._url, self._storage_options)
        bucket, key, version_id = self._store.split_path(path)
        if not key:
            raise self._no_file()
        self._where = {"Bucket": bucket, "Key": key}
        if version_id := self._pinned.kept_as or version_id:
            self._where["VersionId"] = version_id
        try:
            answer, tail = self._ask(TAIL_BYTES, Range=f"bytes=-{TAIL_BYTES}")
        except OSError as error:
            if status_of(error) != _OUT_OF_RANGE:
                raise
            # The object is empty, or the server knows no range that is longer than the object.
            answer, tail = self._store.call_s3("head_object", **self._where), b""
        self._count(tail)
        total = str(answer.get("ContentRange", "")).rpartition("/")[2] or answer["ContentLength"]
        version_id = answer.get("VersionId")
        if version_id and version_id != "null":
            self._where["VersionId"] = version_id
        return FileVersion(
            int(total), answer.get("ETag", ""), self._where.get("VersionId", "")
        ), tail

    def _get(self, start: int, end: int) -> bytes:
        pin = {"IfMatch": self.version.mark} if self.version.mark else {}
        try:
            answer, data = self._ask(end - start, Range=f"bytes={start}-{end - 1}", **pin)
        except OSError as error:
            if status_of(error) in {_PRECONDITION_FAILED, _OUT_OF_RANGE}:
                raise Changed from error
            raise
        if answer.get("ETag", "") != self.version.mark:  # some servers know no conditions
            raise Changed
        return data

    def _ask(self, size_bytes: int, **request: str) -> tuple[Mapping[str, Any], bytes]:
        answer, data = sync(
            self._store.loop, self._answer, request, timeout=seconds_for(size_bytes)
        )
        return answer, data

    async def _answer(self, request: Mapping[str, str]) -> tuple[Mapping[str, Any], bytes]:
        answer = await self._store._call_s3("get_object", **self._where, **request)  # noqa: SLF001
        return answer, await answer["Body"].read()


class GoogleSource(PinnedSource):
    """An object of Google's storage, by its generation."""

    def _begin(self) -> tuple[FileVersion, bytes]:
        self._store, self._path = file_system(self._url, self._storage_options)
        self._bucket, self._key, generation = self._store.split_path(self._path)
        if not self._key:
            raise self._no_file()
        return self._version(self._pinned.kept_as or generation), b""

    def _get(self, start: int, end: int) -> bytes:
        mark = self.version.mark
        url, span = self._store.url(self._path), {"Range": f"bytes={start}-{end - 1}"}
        headers, data = self._store.call("GET", url, headers=span, generation=mark)
        # A server that is not Google's own may not tell it.
        if (headers.get("x-goog-generation") or self._version(mark).mark) != mark:
            raise Changed
        return bytes(data)

    def _version(self, generation: str | None) -> FileVersion:
        place = ("b/{}/o/{}", self._bucket, self._key)
        info = self._store.call("GET", *place, json_out=True, generation=generation)
        self._count()
        found = str(info["generation"])
        return FileVersion(int(info["size"]), found, found)


class AzureSource(PinnedSource):
    """A blob of Azure, by its ETag."""

    def _begin(self) -> tuple[FileVersion, bytes]:
        self._store, path = file_system(self._url, self._storage_options)
        self._container, self._blob, self._version_id = self._store.split_path(path)
        if not self._blob:
            raise self._no_file()
        properties = sync(self._store.loop, self._properties)
        self._count()
        return FileVersion(int(properties.size), str(properties.etag)), b""

    def _get(self, start: int, end: int) -> bytes:
        from azure.core.exceptions import HttpResponseError

        try:
            data: bytes = sync(self._store.loop, self._download, start, end - start)
        except HttpResponseError as error:
            if error.status_code in {_PRECONDITION_FAILED, _OUT_OF_RANGE}:
                raise Changed from error
            raise
        return data

    async def _properties(self) -> Any:
        from azure.core.exceptions import ResourceNotFoundError

        try:
            async with self._client() as blob:
                return await blob.get_blob_properties(version_id=self._version_id)
        except ResourceNotFoundError as error:
            raise FileNotFoundError(self._blob) from error

    async def _download(self, start: int, size_bytes: int) -> bytes:
        from azure.core import MatchConditions
        from azure.core.exceptions import ResourceNotFoundError

        try:
            async with self._client() as blob:
                stream = await blob.download_blob(
                    start,
                    size_bytes,
                    version_id=self._version_id,
                    etag=self.version.mark,
                    match_condition=MatchConditions.IfNotModified,
                )
                return bytes(await stream.readall())
        except ResourceNotFoundError as error:
            raise FileNotFoundError(self._blob) from error

    def _client(self) -> Any:
        return self._store.service_client.get_blob_client(self._container, self._blob)
