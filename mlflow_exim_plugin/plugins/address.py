"""Addresses of archives as MLflow's URIs (spec, "Addresses").

::

    exim:///backups/nightly.tar.zst
    exim:s3://backups/nightly.tar.zst
    exim:s3://backups/nightly.tar.zst!/data/experiments/1/runs/0f3a.../artifacts
    exim:///backups/monday.tar.zst,s3://backups/tuesday.tar.zst
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from urllib.parse import unquote

from mlflow_exim_plugin.errors import UsageError
from mlflow_exim_plugin.redaction import redact_url
from mlflow_exim_plugin.storage.urls import local_path

__all__ = ["SCHEME", "Address"]

SCHEME = "exim"

_INSIDE = "!/"
"""Between an archive and a folder of it."""
_NEXT = ","
"""Between archives."""
_ENCODED = str.maketrans({char: f"%{ord(char):02X}" for char in "%?#!,"})
"""What would end an archive's URL, to MLflow or to us."""


@dataclass(frozen=True)
class Address:
    """Archives, or a folder of their members.

    Attributes:
        archives: Path or fsspec URL of each archive.
        folder: Path of a folder, without slashes at its ends; empty for the archives themselves. Of
            several archives it begins with the root of one.
    """

    archives: tuple[str, ...]
    folder: str = ""

    @classmethod
    def of(cls, *locations: str) -> Address:
        """Return the address of archives at paths or fsspec URLs, the same from any folder."""
        return cls(tuple(map(_from_anywhere, locations)))

    @classmethod
    def parse(cls, uri: str) -> Address:
        """Read an address.

        Raises:
            UsageError: It is none.
        """
        scheme, _, rest = uri.partition(":")
        if scheme.lower() != SCHEME:
            raise UsageError(f"{redact_url(uri)} is no address of an archive", _HINT)
        written, _, folder = rest.partition(_INSIDE)
        locations = [unquote(_without_slashes(one)) for one in written.split(_NEXT)]
        if not all(locations):
            raise UsageError(f"{redact_url(uri)} names no archive", _HINT)
        return cls(cls.of(*locations).archives, folder.strip("/"))

    @property
    def members(self) -> str:
        """What the address of a folder begins with, before its path."""
        start = "//" if self.archives[0].startswith("/") else ""
        located = _NEXT.join(archive.translate(_ENCODED) for archive in self.archives)
        return f"{SCHEME}:{start}{located}{_INSIDE}"

    def __str__(self) -> str:
        return self.members + self.folder if self.folder else self.members.removesuffix(_INSIDE)


def _from_anywhere(location: str) -> str:
    path = local_path(location)
    return location if path is None else os.path.abspath(path)  # noqa: PTH100 - for URIs


def _without_slashes(location: str) -> str:
    """Return a location without the slashes that may precede a path; of a host there is nothing."""
    if not location.startswith("//"):
        return location
    return location[2:] if location.startswith("///") else ""


_HINT = "write exim:///PATH, or exim: before a URL, such as exim:s3://BUCKET/NAME.tar.zst"
