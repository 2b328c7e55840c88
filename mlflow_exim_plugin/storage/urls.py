"""What a URL or a plain path names, and what of it may be shown."""

from __future__ import annotations

import os
import re
from urllib.parse import unquote, urlsplit

import fsspec

from mlflow_exim_plugin.storage.schemes import scheme_of

__all__ = ["local_path", "path_of_uri", "redact_text", "redact_url"]

_URL = re.compile(r"\w[\w+.-]*://[^\s'\"<>]+")


def local_path(url: str) -> str | None:
    """Return the path where a URL, as fsspec reads it, is of this machine, else None.

    A plain path may begin with ``~``; a URL's path is not percent-encoded.
    """
    scheme = scheme_of(url)
    if "::" in url or not scheme.is_local:
        return None
    if scheme.name:
        return str(fsspec.filesystem(scheme.name)._strip_protocol(url))  # noqa: SLF001
    return os.path.expanduser(url)  # noqa: PTH111 - Path would drop a trailing slash


def path_of_uri(uri: str) -> str | None:
    """Return the path where a URI, as MLflow writes it, is of this machine, else None.

    A plain path is taken as it is; a URI's path is percent-encoded.
    """
    parts = urlsplit(uri)
    if parts.scheme == "file":
        return unquote(parts.path)
    return None if parts.scheme else uri


def redact_url(url: str) -> str:
    """Return a URL that may be shown: no user, no password, no values in its query.

    Presigned URLs carry their secret in the query. ``versionId`` is no secret and stays. A local
    path comes back as it is.
    """
    if "://" not in url:
        return url
    shown = re.sub(r"://[^/]*@", "://***@", url)
    return re.sub(r"([?&](?!versionId=)[^=&?]+=)(?:(?!::)[^&#])*", r"\1***", shown)


def redact_text(text: str, url: str = "") -> str:
    """Return a text as one line in which nothing secret of a URL is left.

    Args:
        text: Of any lines, such as what a library says of an error.
        url: One that is known to be in it, whatever characters it has.
    """
    if url:
        text = text.replace(url, redact_url(url))
    return _URL.sub(lambda found: redact_url(found.group()), " ".join(text.split()))
