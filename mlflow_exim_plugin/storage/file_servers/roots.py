"""Which server has the files of an artifact root, as MLflow names it."""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING
from urllib.parse import urlparse

from fsspec.config import conf

from mlflow_exim_plugin.errors import StoreError
from mlflow_exim_plugin.redaction import redact_url
from mlflow_exim_plugin.storage.file_servers.folder import ServerFolder
from mlflow_exim_plugin.storage.schemes import scheme_of

if TYPE_CHECKING:
    from mlflow_exim_plugin.storage.file_servers.folder import FileServer

__all__ = ["server_folder"]

_SETTINGS = ("MLFLOW_KERBEROS_USER", "MLFLOW_KERBEROS_TICKET_CACHE", "MLFLOW_PYARROW_EXTRA_CONF")


def server_folder(url: str) -> ServerFolder | None:
    """Return the files below a folder of a server, None where its scheme is of no file server.

    Args:
        url: Of the folder, as MLflow writes it.

    Raises:
        StoreError: What speaks to it is not installed.
    """
    scheme = scheme_of(url)
    if scheme.name not in {"sftp", "ftp", "hdfs", "viewfs"} or "::" in url:
        return None
    parts = urlparse(url)
    told = (conf.get("sftp"), os.environ.get("HOME"), *map(os.environ.get, _SETTINGS))
    try:
        server = _server(f"{parts.scheme}://{parts.netloc}", repr(told), os.getpid())
    except ImportError as error:
        hint = f"pip install '{scheme.package}'"
        raise StoreError(f"cannot open {redact_url(url)}: {error}", hint) from error
    return ServerFolder(url, server, parts.path or "/")


@functools.lru_cache(64)
def _server(url: str, told: str, process: int) -> FileServer:
    """Return a server; another process, or set-up, has connections of its own."""
    del told, process
    if url.startswith("sftp:"):
        from mlflow_exim_plugin.storage.file_servers.ssh import ssh_server

        return ssh_server(url)
    if url.startswith("ftp:"):
        from mlflow_exim_plugin.storage.file_servers.ftp import ftp_server

        return ftp_server(url)
    from mlflow_exim_plugin.storage.file_servers.hadoop import hadoop_server

    return hadoop_server(url)
