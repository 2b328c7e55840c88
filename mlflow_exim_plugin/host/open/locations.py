"""What kind of deployment a tracking or registry URI means."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from mlflow_exim_plugin.errors import MissingDependencyError, NotFoundError, UsageError
from mlflow_exim_plugin.redaction import redact_url
from mlflow_exim_plugin.storage.urls import path_of_uri

if TYPE_CHECKING:
    from sqlalchemy import URL

__all__ = [
    "DATABASES",
    "SERVERS",
    "both_uris",
    "folder_of_database",
    "is_database",
    "require_local_store",
    "store_folder",
    "url_of_database",
]

DATABASES = {"sqlite", "postgresql", "mysql", "mssql"}
_NO_FILE = {"", "/", "/:memory:"}
_DRIVERS = {
    "postgresql": "'mlflow-exim-plugin[postgres]'",
    "mysql": "'mlflow-exim-plugin[mysql]'",
    "mssql": "pyodbc",
}
"""What pip installs to speak to a database."""
SERVERS = {"databricks", "databricks-uc", "uc"}
"""What MLflow takes for a server, though it is no URL."""


def is_database(uri: str) -> bool:
    """Whether a URI is a database's, in SQLAlchemy's words."""
    return urlsplit(uri).scheme.partition("+")[0] in DATABASES


def store_folder(uri: str) -> Path | None:
    """Return the folder of a store of files, None for the URI of anything else."""
    path = None if uri in SERVERS else path_of_uri(uri)
    return None if path is None else Path(path)


def folder_of_database(uri: str | None) -> Path | None:
    """Return the folder that a database lies in, None where it is no file of this machine.

    Args:
        uri: Where it is; None is MLflow's own default.
    """
    if uri is None:
        import mlflow

        uri = str(mlflow.get_tracking_uri())
    parts = urlsplit(uri)
    is_file = parts.scheme.partition("+")[0] == "sqlite" and parts.path not in _NO_FILE
    return Path(parts.path[1:]).absolute().parent if is_file else None


def require_local_store(uri: str) -> None:
    """Refuse to let MLflow create an empty store where the user meant an existing one.

    Raises:
        NotFoundError: It is of this machine, and there is none.
    """
    parts = urlsplit(uri)
    if parts.scheme == "sqlite" and parts.path not in _NO_FILE:
        path: Path | None = Path(parts.path[1:])
    else:
        path = store_folder(uri)
    if path is not None and not path.exists():
        raise NotFoundError(
            f"there is no MLflow store at {redact_url(uri)}",
            "check --tracking-uri, or the folder you started from",
        )


def url_of_database(uri: str) -> URL:
    """Return SQLAlchemy's URL of a database that can be spoken to from here, if it is there.

    Raises:
        MissingDependencyError: Its driver is not installed.
        UsageError: It is no URI, or its driver none that MLflow's stores can use.
    """
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    shown = redact_url(uri)
    try:
        url = make_url(uri)
        dialect = url.get_dialect()
    except (ArgumentError, NoSuchModuleError, ValueError):
        raise UsageError(
            f"{shown} is no URI of a database", "write one such as postgresql://HOST:PORT/NAME"
        ) from None
    backend = url.get_backend_name()
    if dialect.is_async:
        raise UsageError(
            f"{shown}: MLflow speaks to no database through {dialect.driver}",
            f"leave the driver out: write {backend}{shown.removeprefix(url.drivername)}",
        )
    try:
        dialect.import_dbapi()
    except ImportError as error:
        hint = f"pip install {_DRIVERS.get(backend, error.name)}"
        if backend == "mysql" and dialect.driver == "mysqldb":
            hint += f", and write mysql+pymysql{shown.removeprefix(url.drivername)}"
        raise MissingDependencyError(f"opening {shown}: {error}", hint) from None
    return url


def both_uris(tracking_uri: str | None, registry_uri: str | None) -> tuple[str, str]:
    """Return where tracking and registry are; MLflow is asked only for what was not given."""
    if tracking_uri and not registry_uri and not os.environ.get("MLFLOW_REGISTRY_URI"):
        registry_uri = tracking_uri
    if not (tracking_uri and registry_uri):
        import mlflow

        tracking_uri = tracking_uri or mlflow.get_tracking_uri()
        registry_uri = registry_uri or mlflow.get_registry_uri()
    return str(tracking_uri), str(registry_uri)
