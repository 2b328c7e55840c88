"""Where the files of artifact roots are to be found from here, when a source is read.

A root is what MLflow wrote down when the run was made: of another machine, of a disk that is gone,
or of the folder where the store lay before it was moved.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from mlflow_exim_plugin.redaction import redact_url
from mlflow_exim_plugin.storage.urls import path_of_uri

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["ArtifactRoots", "make_root", "owner_in"]

_OWNER = re.compile(r"(?:m-|tr-)?[0-9a-f]{32}")
"""What a root must have in its path to be known in another place: the id of its run or model."""
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
_HINT = "say where it is now with --artifact-root OLD=NEW"


def make_root(root: str) -> None:
    """Make a folder of files that are to come, as MLflow's own stores do with their default one.

    Whoever reads the store then sees that it has none, not that they are gone.
    """
    if (path := path_of_uri(root)) is not None and os.path.isabs(path):  # noqa: PTH117
        with contextlib.suppress(OSError):  # which each file will meet that is to lie there
            Path(path).mkdir(parents=True, exist_ok=True)


class ArtifactRoots:
    """Finds artifact roots.

    Args:
        mapped: New by old beginnings of roots, URIs or paths.
        store: Folder of the store, None where it has none here.
        follows_links: Whether links that lead out of a root are followed.

    Attributes:
        follows_links: Likewise.
        moved: How many roots were found in the store itself, not where they are said to be.
        bare: How many of those that are not where they are said to be have an empty folder there,
            as MLflow makes one for each run.
        unsure: Folders of experiments that are not there, and may never have had a file.
    """

    def __init__(
        self,
        mapped: Mapping[str, str] | None = None,
        store: Path | None = None,
        *,
        follows_links: bool = False,
    ) -> None:
        self._mapped = {_plain(old): new.rstrip("/") for old, new in (mapped or {}).items()}
        self._store = store
        self.follows_links = follows_links
        self.moved = self.bare = 0
        self.unsure: set[str] = set()

    def found(self, root: str) -> str:
        """Return where a root's files are, the root itself where nothing else is known."""
        root = self._mapped_to(root)
        path = root if _DRIVE.match(root) else path_of_uri(root)
        if path is None or urlsplit(root).netloc:
            return root
        if not (os.path.isabs(path) or _DRIVE.match(path)) and self._store is not None:  # noqa: PTH117 - for each run
            # A server's own folder is the one in which it has its store.
            places = path, str(self._store.parent / path), str(self._store / path)
            path = root = next(filter(os.path.lexists, places), places[-1])
        if self._store is None or os.path.lexists(path):
            return root
        if (beside := self._beside(path)) is None:
            return root
        if self._trash not in beside:
            with os.scandir(beside) as entries:
                is_bare = next(entries, None) is None
            self.bare += is_bare
            self.moved += not is_bare
        return beside

    def missing(self, path: Path, root: str) -> tuple[str, str] | None:
        """Return why nothing is at a root, and what to do; None where there never was anything.

        MLflow makes the folder of a run when it gets its first file, and that of an experiment
        with it. So either may be absent where what they lie in is there: nobody can tell then.
        """
        location = _location(path)
        if location is not None and location.is_dir():
            return None
        # MLflow's own default is a folder of experiments by number, which it makes as late.
        all_of_them = location
        if location is not None and location.name.isdecimal():
            all_of_them = location.parent
        if all_of_them is not None and all_of_them.is_dir():
            return None
        if all_of_them is not None and all_of_them.parent.is_dir():
            self.unsure.add(str(all_of_them))
            return None
        if self._store is not None and location is not None and (owner := _owner_of(path)):
            # Version control, zip and object stores keep no empty folder.
            tail = Path(*path.parts[path.parts.index(owner) - 1 : -1])
            if (self._store / tail).is_dir() or self._has_location(location):
                return None
        return f"its artifact root {redact_url(root)} is not there", _HINT

    def _has_location(self, location: Path) -> bool:
        """Whether the store has the folder of an experiment, with files of others of its runs."""
        assert self._store is not None  # noqa: S101 - asked before
        for first in range(1, len(location.parts)):
            place = self._store.joinpath(*location.parts[first:])
            if place.is_dir():
                with os.scandir(place) as entries:
                    return any(_OWNER.fullmatch(entry.name) for entry in entries)
        return False

    def _mapped_to(self, root: str) -> str:
        plain = _plain(root)
        fitting = [o for o in self._mapped if plain == o or plain.startswith(o.rstrip("/") + "/")]
        if not fitting:
            return root
        old = max(fitting, key=len)
        return self._mapped[old] + plain[len(old.rstrip("/")) :]

    def _beside(self, path: str) -> str | None:
        """Return the place in the store that ends as a path does, down from its owner's id."""
        assert self._store is not None  # noqa: S101 - asked before
        parts = path.replace("\\", "/").strip("/").split("/")
        owner = _owner_of(Path(path.replace("\\", "/")))
        if owner is None:
            return None
        trash = self._trash
        for folder in (str(self._store), *([trash] if os.path.isdir(trash) else [])):  # noqa: PTH112
            for first in range(parts.index(owner) + 1):
                if os.path.isdir(place := "/".join((folder, *parts[first:]))):  # noqa: PTH112
                    return place
        return None

    @property
    def _trash(self) -> str:
        """Where a store of files keeps deleted experiments, whose roots never say so."""
        return f"{self._store}/.trash"


def owner_in(parts: Sequence[str]) -> int | None:
    """Return where the id of a run, logged model or trace stands in a path, None without one."""
    return next((i for i in reversed(range(len(parts))) if _OWNER.fullmatch(parts[i])), None)


def _owner_of(path: Path) -> str | None:
    at = owner_in(path.parts)
    return None if at is None else path.parts[at]


def _location(path: Path) -> Path | None:
    """Return the folder of the experiment that a root is in, None for a root of another kind."""
    owner = _owner_of(path)
    if owner is None or path.name != "artifacts":
        return None
    above = Path(*path.parts[: path.parts.index(owner)])
    return above.parent if above.name in {"models", "traces"} else above


def _plain(root: str) -> str:
    """Return a root without what may be written in two ways: local URIs as paths."""
    path = path_of_uri(root)
    return posixpath.normpath(path) if path is not None else root.rstrip("/")
