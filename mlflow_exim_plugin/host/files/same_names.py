"""Names that a file system of this machine takes for one another: it is asked, no table is."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["NamesHere", "taken_for"]

_PROBE, _PROBED = "exim-\u00e9", "EXIM-e\u0301"
"""One name, in other case and another form of Unicode."""


class NamesHere:
    """Tells which paths are one to the file system of a folder.

    Args:
        folder: A folder that nobody else uses; it is left as it was.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._alike: dict[str, list[str]] = {}
        names = (_PROBE.upper(), _PROBED.lower(), _PROBED)
        self._is_loose = any(self._is_one(_PROBE, name) for name in names)

    def key(self, path: str) -> str:
        """Return what is the same for paths that are one, and another for all others."""
        return "/".join(map(self._first, path.split("/"))) if self._is_loose else path

    def _first(self, name: str) -> str:
        """Return the first name that was asked for and is this one to the file system."""
        alike = self._alike.setdefault(_as_if_one(name), [])
        for other in alike:
            if other == name or self._is_one(other, name):
                return other
        alike.append(name)
        return name

    def _is_one(self, name: str, other: str) -> bool:
        (self._folder / name).touch()
        try:
            return (self._folder / other).exists()
        finally:
            (self._folder / name).unlink()


def taken_for(root: Path, path: str) -> str | None:
    """Return what is there in the place of a path below a folder, None where that is itself.

    Args:
        root: The folder.
        path: Of a file that is to be written.

    Raises:
        OSError: It cannot be looked at.
    """
    if not (root / path).exists():
        return None
    place, found = root, []
    for name in path.split("/"):
        there = {entry.name for entry in place.iterdir()}
        alike = [one for one in there if _as_if_one(one) == _as_if_one(name)]
        found.append(name if name in there else min(alike, default="a file of another name"))
        place /= found[-1]
    return None if (other := "/".join(found)) == path else other


def _as_if_one(name: str) -> str:
    """Return what is the same for all names that any file system might take for one another."""
    upper = unicodedata.normalize("NFKD", name).casefold().upper()
    return unicodedata.normalize("NFKD", upper).casefold()
