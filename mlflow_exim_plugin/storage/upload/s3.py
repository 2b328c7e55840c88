"""Objects of S3 in parts, by the client that fsspec's file system has."""

from __future__ import annotations

import errno
import hashlib
import threading
from typing import TYPE_CHECKING, Any

from fsspec.asyn import sync

from mlflow_exim_plugin.storage.pinned import seconds_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mlflow_exim_plugin.storage.upload.parts import Upload

__all__ = ["s3_upload", "uploads_of_s3"]


def s3_upload(store: Any, path: str, *, overwrite: bool) -> Upload:
    """Return how an object comes to S3 or its like: at once, or in parts made one by one call.

    Args:
        store: An ``s3fs.S3FileSystem``.
        path: Bucket and key.
        overwrite: Whether something may be at its name.
    """
    return _S3Upload(store, path, overwrite=overwrite)


def uploads_of_s3(store: Any, path: str) -> Iterator[tuple[str, str, int, int]]:
    """Yield the uploads without an end at a path or below it, whoever began them.

    Args:
        store: An ``s3fs.S3FileSystem``.
        path: Bucket, and key or what it begins with.

    Yields:
        Bucket and key, id, ms since the Unix epoch when it was begun, size of its parts in bytes.
    """
    bucket, key, _ = store.split_path(path)
    wanted: dict[str, str] = {"Bucket": bucket, **({"Prefix": key} if key else {})}
    while True:
        try:
            page = store.call_s3("list_multipart_uploads", **wanted)
        except FileNotFoundError:  # as some servers say that there is none
            store.call_s3("head_bucket", Bucket=bucket)
            return
        for upload in page.get("Uploads") or ():
            begun_ms = round(upload["Initiated"].timestamp() * 1000)
            where = {"Bucket": bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]}
            try:
                size_bytes = sum(part["Size"] for part in _parts(store, where))
            except FileNotFoundError:  # it was ended meanwhile
                continue
            yield f"{bucket}/{upload['Key']}", upload["UploadId"], begun_ms, size_bytes
        if not page.get("IsTruncated"):
            return
        wanted |= {
            "KeyMarker": page["NextKeyMarker"],
            "UploadIdMarker": page["NextUploadIdMarker"],
        }


def _parts(store: Any, where: Mapping[str, str]) -> Iterator[Mapping[str, Any]]:
    marker: dict[str, int] = {}
    while True:
        page = store.call_s3("list_parts", **where, **marker)
        yield from page.get("Parts") or ()
        if not page.get("IsTruncated"):
            return
        marker = {"PartNumberMarker": page["NextPartNumberMarker"]}


def _is_of(part: Mapping[str, Any], data: bytes) -> bool:
    """Whether a part that is there is known to have these bytes."""
    # With keys of KMS an ETag is no MD5: then nothing is known, and all is sent.
    return (
        part.get("Size") == len(data)
        and part.get("ETag", "").strip('"') == hashlib.md5(data, usedforsecurity=False).hexdigest()
    )


class _S3Upload:
    def __init__(self, store: Any, path: str, *, overwrite: bool) -> None:
        bucket, key, _ = store.split_path(path)
        self.parallel = 14
        self._overwrite = overwrite
        self._store = store
        self._where = {"Bucket": bucket, "Key": key}
        self._upload: dict[str, str] = {}
        self._parts: dict[int, dict[str, Any]] = {}
        self._there: dict[int, Mapping[str, Any]] = {}
        self._size_bytes = 0
        self._lock = threading.Lock()
        # Cloudflare's wants parts of one length.
        fixed = getattr(store, "fixed_upload_size", False)
        self.part_bytes: int | None = store.default_block_size if fixed else None

    def put(self, data: bytes) -> None:
        self._size_bytes = len(data)
        self._commit("put_object", {"Body": data})
        self.abandon()

    def go_on(self, left: Sequence[str]) -> bool:
        for upload in left:
            try:
                there = list(_parts(self._store, {**self._where, "UploadId": upload}))
            except FileNotFoundError:  # it was ended meanwhile
                continue
            self.abandon()
            self._upload = {"UploadId": upload}
            self._there = {part["PartNumber"]: part for part in there}
        return True

    def begin(self) -> str | None:
        if self._upload:
            return None  # who began it has noted it
        upload = self._call("create_multipart_upload")
        self._upload = {"UploadId": upload["UploadId"]}
        return str(upload["UploadId"])

    def send(self, number: int, data: bytes) -> None:
        part = self._there.get(number, {})
        if not _is_of(part, data):
            what = {**self._upload, "PartNumber": number, "Body": data}
            part = self._call("upload_part", len(data), **what)
        told = {name: part[name] for name in part if name == "ETag" or name.startswith("Checksum")}
        told.pop("ChecksumType", None)
        with self._lock:
            self._parts[number] = {"PartNumber": number, **told}
            self._size_bytes += len(data)

    def publish(self) -> None:
        parts = [self._parts[number] for number in sorted(self._parts)]
        self._commit(
            "complete_multipart_upload", {**self._upload, "MultipartUpload": {"Parts": parts}}
        )

    def abandon(self) -> None:
        if self._upload:
            self.remove(self._upload["UploadId"])

    def remove(self, left: str) -> None:
        try:
            self._call("abort_multipart_upload", UploadId=left)
        except FileNotFoundError:  # it has gone
            return

    def _commit(self, operation: str, what: Mapping[str, Any]) -> None:
        # Some servers and clients know no conditions: between this look and the end another's
        # object may come.
        there = {} if self._overwrite else self._unless_there(operation)
        if not self._overwrite and self._is_there():
            raise FileExistsError(self._where["Key"])
        try:
            self._call(operation, self._size_bytes, **what, **there)
        except OSError as error:
            if error.errno != errno.ENOSYS or not there:
                raise
            self._call(operation, self._size_bytes, **what)
        finally:
            self._store.invalidate_cache()

    def _is_there(self) -> bool:
        try:
            self._call("head_object")
        except (FileNotFoundError, PermissionError):  # some may write, and not read
            return False
        return True

    def _call(self, operation: str, size_bytes: int = 0, **what: Any) -> Any:
        """Make a call, and wait as long as so many bytes may take."""
        call, limit = self._store._call_s3, seconds_for(size_bytes)  # noqa: SLF001 - has no limit
        return sync(self._store.loop, call, operation, timeout=limit, **self._where, **what)

    def _unless_there(self, operation: str) -> dict[str, str]:
        model = self._store.s3.meta.service_model.operation_model(
            "PutObject" if operation == "put_object" else "CompleteMultipartUpload"
        )
        return {"IfNoneMatch": "*"} if "IfNoneMatch" in model.input_shape.members else {}
