"""The one place that looks at a store's folders and files: lists, and reads whole small files.

Absent, empty and unreadable are three answers: ``None``, nothing, and a ``StoreError``.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

import yaml

from mlflow_exim_plugin.errors import StoreError
from mlflow_exim_plugin.schema.objects import Failure, Kind, Loss

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["META", "StoreFiles", "UnreadableError"]

META = "meta.yaml"
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_MAX_DEPTH = 32
"""Keys may hold slashes; nobody's has more."""
_FLAT = re.compile(
    r"""([a-z_]+):\ (?:
        '((?:[^'\n]|'')*)'
        |(-?(?:0|[1-9]\d{0,17}))
        |(null|\[\]|\{\})
        |([A-Za-z/][\w./%@+~-]*(?::/[\w./%@+~-]*)?|(?!0b)(?=\d+[a-f])[0-9a-f]{32})
    )\n""",
    re.VERBOSE | re.ASCII,
)
"""A line as nearly all are that MLflow writes: text in quotes, a number, nothing, a plain word. The
loader takes ten times as long."""
_NOTHING: dict[str, Any] = {"null": None, "[]": (), "{}": {}}
_NO_TEXT = {"null", "true", "false", "yes", "no", "on", "off"}


class UnreadableError(StoreError):
    """A file of a store that is not there, empty, damaged, or not ours to read."""


class StoreFiles:
    """What lies below a local folder; paths are relative to it, with ``/``.

    Args:
        root: The folder.
    """

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/") or "/"

    def place(self, path: str) -> str:
        """Return how a path is called in messages, and by whoever opens it."""
        return f"{self.root}/{path}" if path else self.root

    def folders(self, path: str) -> list[str] | None:
        """Return the names of the folders in a folder, sorted; None where that is not there.

        Raises:
            UnreadableError: It cannot be listed.
        """
        listed = self._listed(path)
        return None if listed is None else sorted(name for name, is_folder in listed if is_folder)

    def names(self, path: str) -> dict[str, bool]:
        """Return the names in a folder, True for a folder; none where it is not there.

        Raises:
            UnreadableError: It cannot be listed.
        """
        return dict(self._listed(path) or ())

    def holds_files(self, path: str) -> bool:
        """Whether there is a file anywhere in a folder, or a folder that cannot be looked into."""
        try:
            listed = self._listed(path) or []
        except UnreadableError:
            return True
        return any(
            not is_folder or self.holds_files(f"{path}/{name}") for name, is_folder in listed
        )

    def text(self, path: str) -> str:
        """Return a file's text.

        Raises:
            UnreadableError: It is not there, or no UTF-8.
        """
        try:
            return self.content(path).decode()
        except UnicodeDecodeError as error:
            raise UnreadableError(f"{self.place(path)} is no UTF-8 text") from error

    def content(self, path: str) -> bytes:
        """Return a file's bytes.

        Raises:
            UnreadableError: It is not there, or cannot be read.
        """
        try:
            with open(self.place(path), "rb", buffering=0) as file:  # noqa: PTH123 - 10k times
                return file.read()
        except OSError as error:
            raise UnreadableError(f"{self.place(path)}: {error.strerror or error}") from error

    def meta(self, path: str, name: str = META) -> dict[str, Any]:
        """Return what a YAML file of a folder says.

        Raises:
            UnreadableError: It is lost, empty, damaged, or not ours to read.
        """
        place = self.place(f"{path}/{name}")
        text = self.text(f"{path}/{name}")
        if (flat := _flat(text)) is not None:
            return flat
        try:
            found = yaml.load(text, _LOADER)  # noqa: S506 - a safe loader
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            where = getattr(error, "problem_mark", None)
            at = f" at line {where.line + 1}" if where else ""
            raise UnreadableError(f"{place} is damaged{at}") from error
        if found is None:
            raise UnreadableError(f"{place} is empty")
        if not isinstance(found, dict):
            raise UnreadableError(f"{place} is damaged: it holds no fields")
        return found

    def texts(
        self, kind: Kind, owner: str, path: str, issues: list[Failure | Loss]
    ) -> dict[str, str]:
        """Return what the files of a folder say by their names.

        Args:
            kind: What they are.
            owner: Whose they are.
            path: The folder, which need not be there.
            issues: Gain what cannot be read.
        """
        found = {}
        for key in self.keys(kind, owner, path, issues):
            try:
                found[key] = self.text(f"{path}/{key}")
            except UnreadableError as error:
                issues.append(Failure(kind, f"{owner}/{key}", error.message))
        return found

    def keys(
        self, kind: Kind, owner: str, path: str, issues: list[Failure | Loss]
    ) -> Iterator[str]:
        """Yield the path of each file below a folder that can be a key, see ``texts``."""
        for key in self._below(path):
            if isinstance(key, UnreadableError):
                issues.append(Failure(kind, f"{owner}/", key.message))
            elif key.isascii() or _is_unicode(key):
                yield key
            else:
                shown = os.fsencode(key).decode(errors="backslashreplace")
                reason = f"the name of its file in {self.place(path)} is no UTF-8"
                issues.append(Failure(kind, f"{owner}/{shown}", reason))

    def _below(self, path: str, depth: int = 0) -> Iterator[str | UnreadableError]:
        try:
            listed = self._listed(path) or []
        except UnreadableError as error:
            yield error
            return
        for name, is_folder in listed:
            if not is_folder:
                yield name
            elif depth == _MAX_DEPTH:
                yield UnreadableError(f"{self.place(path)} is nested too deep")
            else:
                for key in self._below(f"{path}/{name}", depth + 1):
                    yield f"{name}/{key}" if isinstance(key, str) else key

    def require_place(self, path: str, what: str, lies_as: str, said: str) -> None:
        """Refuse what was moved by hand: MLflow does not see it any more.

        Raises:
            UnreadableError: It says that it is another, or another's.
        """
        if lies_as != said:
            reason = f"its {META} says {what} {said}, and it lies as {lies_as}"
            raise UnreadableError(f"{self.place(path)}: {reason}")

    def _listed(self, path: str) -> list[tuple[str, bool]] | None:
        """Return names and whether each is a folder, other things than both left out."""
        try:
            with os.scandir(self.place(path)) as entries:
                return [
                    (entry.name, is_folder)
                    for entry in entries
                    if (is_folder := entry.is_dir()) or entry.is_file()
                ]
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise UnreadableError(f"{self.place(path)}: {error.strerror or error}") from error


def _flat(text: str) -> dict[str, Any] | None:
    """Return what a YAML text says that consists of plain lines alone, else None."""
    found: dict[str, Any] = {}
    end = 0
    for match in _FLAT.finditer(text):
        if match.start() != end:
            return None
        end = match.end()
        key, quoted, number, nothing, word = match.groups()
        if quoted is not None:
            found[key] = quoted.replace("''", "'")
        elif number is not None:
            found[key] = int(number)
        elif nothing is not None:
            found[key] = _NOTHING[nothing]
        elif word.lower() in _NO_TEXT:
            return None
        else:
            found[key] = word
    return found if end == len(text) and found else None


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
