"""The one place that looks at a store's folders and files: lists, and reads whole small files.

Absent, empty and unreadable are three answers: ``None``, nothing, and a ``StoreError``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from typing import TYPE_CHECKING, Any

import yaml

from mlflow_exim_plugin.errors import StoreError
from mlflow_exim_plugin.redaction import writable
from mlflow_exim_plugin.schema.objects import Failure, Kind, Loss

if TYPE_CHECKING:
    from collections.abc import Iterator
    from collections.abc import Set as AbstractSet

    from mlflow_exim_plugin.host.files.tree import FilesOfRoot

__all__ = ["META", "StoreFiles", "UnreadableError"]

META = "meta.yaml"
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# Never waits for who writes into a pipe.
_OPENING = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_MAX_DEPTH = 32
"""Keys may hold slashes; nobody's has more."""
_FLAT = re.compile(
    r"""([a-z_]+):\ (?:
        '((?:[^'\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff]|'')*)'
        |(-?(?:0|[1-9][0-9]{0,17}))
        |(null|\[\]|\{\})
        |((?:[^\W\d_]|/)[\w./%@+~-]*(?::/[\w./%@+~-]*)?|(?!0b)(?=[0-9]+[a-f])[0-9a-f]{32})
    )\n""",
    re.VERBOSE,
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
        follows_links: Whether files are read to which links lead out of it.

    Attributes:
        root: Likewise.
        left_alone: What in it is not of MLflow.
    """

    def __init__(self, root: str, *, follows_links: bool = False) -> None:
        self.root = root.rstrip("/") or "/"
        self._follows_links = follows_links
        self.left_alone: list[str] = []

    def place(self, path: str) -> str:
        """Return how a path is called in messages, and by whoever opens it."""
        return f"{self.root}/{path}" if path else self.root

    def found(self, root: str) -> str:
        """Return where the files of an artifact root are, which roots of this machine tell."""
        return root

    def folder_at(self, root: str) -> FilesOfRoot | None:
        """Return the files of a root that lies in the store and that only the store can list."""
        del root
        return None

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

    def leave_alone(self, path: str, names: dict[str, bool], known: AbstractSet[str]) -> None:
        """Remember what in the folder of one object is of others.

        Args:
            path: The object's folder.
            names: What is in it.
            known: What MLflow keeps there.
        """
        if not names.keys() <= known:
            self.left_alone += [f"{path}/{name}" for name in names if name not in known]

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
            UnreadableError: It is not there, is no file, leads out of the store, or cannot be read.
        """
        place = self.place(path)
        return self._content(place, path=place)

    def _content(self, place: str, *, path: str, folder: int | None = None) -> bytes:
        """Return a file's bytes, see ``content``.

        Args:
            place: What it is called.
            path: The same, or its path in the open folder.
            folder: That.
        """
        try:
            try:
                number = os.open(path, _OPENING | _NO_LINK, dir_fd=folder)
            except OSError as error:
                number = self._opened_by_link(place, error)
            try:
                found = os.fstat(number)
                if not stat.S_ISREG(found.st_mode):
                    raise UnreadableError(f"{place}: it is no file")
                content = os.read(number, found.st_size)
                while len(content) < found.st_size and (more := os.read(number, found.st_size)):
                    content += more
                return content
            finally:
                os.close(number)
        except OSError as error:
            raise UnreadableError(f"{place}: {error.strerror or error}") from error

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
        for key, content in self.contents(kind, owner, path, issues):
            try:
                found[key] = content.decode()
            except UnicodeDecodeError:
                reason = f"{self.place(f'{path}/{key}')} is no UTF-8 text"
                issues.append(Failure(kind, f"{owner}/{key}", reason))
        return found

    def contents(
        self, kind: Kind, owner: str, path: str, issues: list[Failure | Loss]
    ) -> Iterator[tuple[str, bytes]]:
        """Yield path and bytes of each file below a folder that can be a key, see ``texts``."""
        place = self.place(path)
        with _opened_folder(place) as folder:
            for key in self.keys(kind, owner, path, issues):
                name = f"{place}/{key}"
                try:
                    content = self._content(
                        name, path=name if folder is None else key, folder=folder
                    )
                except UnreadableError as error:
                    issues.append(Failure(kind, f"{owner}/{key}", error.message))
                else:
                    yield key, content

    def keys(
        self, kind: Kind, owner: str, path: str, issues: list[Failure | Loss]
    ) -> Iterator[str]:
        """Yield the path of each file below a folder that can be a key, see ``texts``."""
        for key in self._below(path):
            if isinstance(key, UnreadableError):
                issues.append(Failure(kind, f"{owner}/", key.message))
            elif key.isascii() or writable(key) == key:
                yield key
            else:
                reason = f"the name of its file in {self.place(path)} is no UTF-8"
                issues.append(Failure(kind, f"{owner}/{key}", reason))

    def _below(self, path: str, depth: int = 0) -> Iterator[str | UnreadableError]:
        try:
            # As MLflow: a link to a folder is no folder of keys, or they might never end.
            listed = self._listed(path, follows=False) or []
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

    def _listed(self, path: str, *, follows: bool = True) -> list[tuple[str, bool]] | None:
        """Return names and whether each is a folder; with ``follows`` a link to one is one too."""
        place = self.place(path)
        try:
            with os.scandir(place) as entries:
                found = list(entries)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and not os.path.lexists(place):
                return None
            raise UnreadableError(f"{place}: {error.strerror or error}") from error
        try:
            return [(entry.name, entry.is_dir(follow_symlinks=follows)) for entry in found]
        except OSError:
            return [(entry.name, _is_folder(entry, follows)) for entry in found]

    def _opened_by_link(self, place: str, refusal: OSError) -> int:
        """Open the file that a link leads to, where it may be followed.

        Args:
            place: The link.
            refusal: Why it was not opened.

        Raises:
            OSError: It is no link, or cannot be opened.
            UnreadableError: What it leads to is out of the store.
        """
        if refusal.errno != errno.ELOOP:
            raise refusal
        target, root = os.path.realpath(place), os.path.realpath(self.root)
        if not self._follows_links and not target.startswith(root.rstrip("/") + "/"):
            reason = f"it is a link to {target}, out of the store; --follow-links takes such files"
            raise UnreadableError(f"{place}: {reason}")
        return os.open(place, _OPENING)


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


@contextlib.contextmanager
def _opened_folder(place: str) -> Iterator[int | None]:
    """Open a folder, whose files are then found without its path; None where that cannot be."""
    try:
        number = os.open(place, _OPENING)
    except OSError:
        number = None
    try:
        yield number
    finally:
        if number is not None:
            os.close(number)


def _is_folder(entry: os.DirEntry[str], follows: bool) -> bool:
    try:
        return entry.is_dir(follow_symlinks=follows)
    except OSError:  # a link to itself: whoever reads it says so
        return False
