"""What a URL or a plain path names."""

from __future__ import annotations

import os
from urllib.parse import unquote, urlsplit

from mlflow_exim_plugin.storage.schemes import scheme_of

__all__ = ["local_path", "path_of_uri"]


def local_path(url: str) -> str | None:
    """Return the path where a URL, as fsspec reads it, is of this machine, else None.

    A plain path may begin with ``~``; a URL's path is not percent-encoded.
    """
    scheme = scheme_of(url)
    if "::" in url or not scheme.is_local:
        return None
    if scheme.name:
        import fsspec

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
