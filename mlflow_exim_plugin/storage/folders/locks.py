"""Files that a store keeps from being removed or replaced until a date: S3's Object Lock."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import EximError, UsageError
from mlflow_exim_plugin.redaction import redact_url
from mlflow_exim_plugin.storage.file_systems import file_system, store_errors
from mlflow_exim_plugin.storage.schemes import scheme_of

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["lock_file", "require_locks"]

_HINT = "make a bucket with Object Lock, and put the set there; or leave --lock-until out"


def require_locks(url: str, storage_options: Mapping[str, Any] | None = None) -> None:
    """Refuse a folder whose files cannot be locked.

    Raises:
        UsageError: It is not on S3 or its like, or its bucket has no Object Lock.
        StoreError: The store cannot be asked.
    """
    if scheme_of(url).extra != "s3":
        raise UsageError(f"{redact_url(url)} is on a store that cannot lock files", _HINT)
    store, path = file_system(url, storage_options)
    bucket, _, _ = store.split_path(path)
    with store_errors(url, "reach"):
        store.call_s3("head_bucket", Bucket=bucket)
    try:
        with store_errors(url, "ask for Object Lock"):
            told = store.call_s3("get_object_lock_configuration", Bucket=bucket)
    except EximError as error:
        what = f"{redact_url(url)} is in a bucket without Object Lock: {error.message}"
        raise UsageError(what, _HINT) from error
    if told.get("ObjectLockConfiguration", {}).get("ObjectLockEnabled") != "Enabled":
        raise UsageError(f"{redact_url(url)} is in a bucket without Object Lock", _HINT)


def lock_file(url: str, storage_options: Mapping[str, Any] | None, until_ms: int) -> None:
    """Let nobody, whoever it is, remove or replace a file until a date.

    Args:
        url: The file.
        storage_options: For the file system, see fsspec.
        until_ms: The date, ms since the Unix epoch; one that is later already stays.

    Raises:
        StoreError: The store refused.
    """
    store, path = file_system(url, storage_options)
    bucket, key, _ = store.split_path(path)
    until = datetime.fromtimestamp(until_ms / 1000, timezone.utc)
    with store_errors(url, "lock"):
        head = store.call_s3("head_object", Bucket=bucket, Key=key)
        locked = head.get("ObjectLockRetainUntilDate")
        if locked is not None and locked >= until:
            return
        store.call_s3(
            "put_object_retention",
            Bucket=bucket,
            Key=key,
            Retention={"Mode": "COMPLIANCE", "RetainUntilDate": until},
        )
        head = store.call_s3("head_object", Bucket=bucket, Key=key)
        if head.get("ObjectLockRetainUntilDate") is None:
            raise OSError("the store took the call, and the file is not locked")
