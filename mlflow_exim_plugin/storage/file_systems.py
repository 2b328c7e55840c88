"""fsspec's file systems, and what they raise as errors of ours with one line."""

from __future__ import annotations

import asyncio
import contextlib
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from mlflow_exim_plugin.errors import (
    ArchiveExistsError,
    EximError,
    MissingDependencyError,
    NotFoundError,
    StoreError,
)
from mlflow_exim_plugin.redaction import redact_text, redact_url
from mlflow_exim_plugin.storage.schemes import scheme_of
from mlflow_exim_plugin.storage.urls import local_path

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

__all__ = ["EXISTS_HINT", "file_system", "raise_for", "status_of", "store_errors"]

EXISTS_HINT = "choose another name, or pass --overwrite"
_DETAIL_LIMIT = 500
_COMPRESSED = ".zst"
_REFUSED = {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}
_CONNECTIONS = 32
"""The client of S3 has ten by itself: fewer than ranges or parts are on their way."""


def file_system(url: str, storage_options: Mapping[str, Any] | None = None) -> tuple[Any, str]:
    """Return fsspec's file system of a URL, and the path in it.

    Args:
        url: Any that fsspec knows, chained ones included.
        storage_options: For the file system, see fsspec.

    Raises:
        StoreError: The protocol is unknown, or the options are not enough.
        MissingDependencyError: The protocol needs a package that is not installed.
    """
    from fsspec.core import url_to_fs  # what lies on this machine needs none of it

    with store_errors(url, "open"):
        found, path = url_to_fs(url, **_options_of(url, storage_options or {}))
    return found, str(path)


def _options_of(url: str, given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the options of a file system: those that were given, and what ours need."""
    if scheme_of(url).extra != "s3":
        return given
    from botocore.config import Config
    from fsspec.config import conf

    needed: dict[str, Any] = {"max_pool_connections": _CONNECTIONS}
    if (name := "response_checksum_validation") in Config.OPTION_DEFAULTS:
        # To a range some servers give the checksum of the whole object. Archives have their own.
        needed[name] = "when_required"
    of_s3 = dict(given.get("s3", {}))
    told = {**conf.get("s3", {}), **of_s3, **given}.get("config_kwargs", {})
    of_s3["config_kwargs"] = {**needed, **told}
    return {**{key: value for key, value in given.items() if key != "config_kwargs"}, "s3": of_s3}


def _near(url: str) -> str:
    """Return which archive of this machine may have been meant by one that is not there."""
    path = local_path(url)
    if path is None or not path.endswith(_COMPRESSED):
        return ""
    with contextlib.suppress(OSError):
        there = sorted(file.name for file in Path(path).parent.iterdir())
        return NotFoundError.among("", Path(path).name, there).hint or ""
    return ""


@contextlib.contextmanager
def store_errors(url: str, action: str) -> Generator[None]:
    """Turn whatever a file system raises into this package's errors."""
    try:
        yield
    except EximError:
        raise
    except Exception as error:  # noqa: BLE001 - botocore, aiohttp, paramiko... have no common base
        raise_for(error, url, action)


def raise_for(error: Exception, url: str, action: str) -> NoReturn:
    """Raise what ``error`` means for the user, one line, without credentials."""
    name = redact_url(url)
    detail = redact_text(str(error), url)[:_DETAIL_LIMIT]
    if isinstance(error, FileExistsError):
        raise ArchiveExistsError(f"{name} exists", EXISTS_HINT) from error
    if isinstance(error, FileNotFoundError) and _hides_a_refusal(error):
        detail = redact_text(str(error.__cause__), url)[:_DETAIL_LIMIT]
    elif isinstance(error, FileNotFoundError | NotADirectoryError):
        if action == "write":
            raise StoreError(f"cannot write {name}: its folder does not exist") from error
        raise NotFoundError(f"{name} does not exist", _near(url)) from error
    if isinstance(error, ImportError):
        hint = f"pip install '{scheme_of(url).package}'"
        raise MissingDependencyError(f"cannot {action} {name}: {detail}", hint) from error
    if isinstance(error, OSError) and error.errno and error.strerror:
        detail = error.strerror
    if isinstance(error, NotImplementedError):
        detail = "this kind of store cannot do that"
    if isinstance(error, TimeoutError | asyncio.TimeoutError):
        detail = "it does not answer in time"
    raise StoreError(
        f"cannot {action} {name}: {detail or type(error).__name__}", _hint_of(error)
    ) from error


def status_of(error: BaseException | None) -> int | None:
    """Return the status of HTTP that an error of a store's client stands for; None without one."""
    for one in (error, getattr(error, "__cause__", None)):
        response = getattr(one, "response", None)
        if isinstance(response, dict):  # botocore's
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        else:
            told = (getattr(one, name, None) for name in ("status_code", "status", "code"))
            status = next((value for value in told if isinstance(value, int)), None)
        if isinstance(status, int):
            return status
    return None


def _hint_of(error: Exception) -> str:
    if isinstance(error, ValueError) and "Protocol not known" in str(error):
        return "an archive is a path, or a URL such as s3://BUCKET/NAME.tar.zst"
    if "credentials" in str(error).lower() and "locate" in str(error):
        return "give the store's credentials as its own client takes them, see docs/stores.md"
    status = status_of(error)
    # Amazon calls a token that has expired a bad request, its client a refusal.
    if status in _REFUSED or (isinstance(error, PermissionError) and status is not None):
        return "renew or check the credentials of the store, and run the same command again"
    if isinstance(error, TimeoutError | asyncio.TimeoutError | ConnectionError) or (
        status is not None and status >= HTTPStatus.INTERNAL_SERVER_ERROR
    ):
        return "run the same command again when the store is well"
    return ""


def _hides_a_refusal(error: FileNotFoundError) -> bool:
    """Whether fsspec's HTTP calls a file missing because the server is, or does not let us in."""
    cause = error.__cause__
    status = getattr(cause, "status", None)
    return (status is not None and status not in {404, 410}) or (
        isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError)
    )
