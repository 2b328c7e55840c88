"""Addresses of archives as MLflow's URIs (spec, "Addresses").

::

    exim:///backups/nightly.tar.zst
    exim:s3://backups/nightly.tar.zst
    exim:s3://backups/nightly.tar.zst!/data/experiments/1/runs/0f3a.../artifacts
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
_ENCODED = str.maketrans({char: f"%{ord(char):02X}" for char in "%?#!"})
"""What would end an archive's URL, to MLflow or to us."""


@dataclass(frozen=True)
class Address:
    """An archive, or a folder of its members.

    Attributes:
        archive: Path or fsspec URL of the archive.
        folder: Path of a folder in it, without slashes at its ends; empty for the archive itself.
    """

    archive: str
    folder: str = ""

    @classmethod
    def of_archive(cls, location: str) -> Address:
        """Return the address of an archive at a path or fsspec URL, the same from any folder."""
        path = local_path(location)
        return cls(location if path is None else os.path.abspath(path))  # noqa: PTH100 - for URIs

    @classmethod
    def parse(cls, uri: str) -> Address:
        """Read an address.

        Raises:
            UsageError: It is none.
        """
        scheme, _, rest = uri.partition(":")
        if scheme.lower() != SCHEME:
            raise UsageError(f"{redact_url(uri)} is no address of an archive", _HINT)
        location, _, folder = rest.partition(_INSIDE)
        if location.startswith("//"):
            location = location[2:]
            if not location.startswith("/"):
                raise UsageError(f"{redact_url(uri)} names no archive", _HINT)
        location = unquote(location)
        if not location:
            raise UsageError(f"{redact_url(uri)} names no archive", _HINT)
        return cls(cls.of_archive(location).archive, folder.strip("/"))

    @property
    def members(self) -> str:
        """What the address of a folder begins with, before its path."""
        start = "//" if self.archive.startswith("/") else ""
        return f"{SCHEME}:{start}{self.archive.translate(_ENCODED)}{_INSIDE}"

    def __str__(self) -> str:
        return self.members + self.folder if self.folder else self.members.removesuffix(_INSIDE)


_HINT = "write exim:///PATH, or exim: before a URL, such as exim:s3://BUCKET/NAME.tar.zst"
