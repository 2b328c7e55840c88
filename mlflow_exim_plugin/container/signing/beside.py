"""Small files that belong to another one: their names begin with its name."""

from __future__ import annotations

import contextlib
import posixpath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import StoreError, UsageError
from mlflow_exim_plugin.redaction import redact_url
from mlflow_exim_plugin.storage.file_systems import file_system, store_errors
from mlflow_exim_plugin.storage.ranges import open_range
from mlflow_exim_plugin.storage.urls import local_path

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["beside", "listed_beside", "read_small"]


def beside(url: str, ending: str) -> str:
    """Return the URL of a file that is called like another one, with an ending.

    Raises:
        UsageError: The URL has a query, which may be a signature of this one file.
    """
    if "://" in url and "?" in url:
        raise UsageError(f"what lies beside {redact_url(url)} has no URL", "name the file itself")
    return f"{url}{ending}"


def listed_beside(
    url: str, ending: str, storage_options: Mapping[str, Any] | None = None
) -> list[str] | None:
    """Return the URLs of the files that are called like another one, with an ending, sorted.

    None where the store does not list what is in a folder.
    """
    path = local_path(url)
    if path is not None:
        name, folder = Path(path).name, Path(path).parent
        with store_errors(url, "list what lies beside"):
            names = [file.name for file in folder.iterdir()]
    else:
        if "?" in url:
            return None
        store, far = file_system(url, storage_options)
        name, above = posixpath.basename(far), posixpath.dirname(far)
        try:
            with store_errors(url, "list what lies beside"):
                store.invalidate_cache(above)  # another signer may have been here meanwhile
                names = [posixpath.basename(str(one)) for one in store.ls(above, detail=False)]
        except (StoreError, FileNotFoundError):
            return None
    found = (one.removeprefix(name) for one in names if one.startswith(name))
    return sorted(
        f"{url}{rest}" for rest in found if rest.startswith(".") and rest.endswith(ending)
    )


def read_small(
    url: str, most_bytes: int, storage_options: Mapping[str, Any] | None = None
) -> bytes:
    """Return the bytes of a file, of a large one a few more than ``most_bytes``.

    Raises:
        NotFoundError: No such file.
        StoreError: The store refused or died.
    """
    with contextlib.closing(open_range(url, storage_options)) as source:
        return source.read_range(0, min(source.size_bytes, most_bytes + 1))
