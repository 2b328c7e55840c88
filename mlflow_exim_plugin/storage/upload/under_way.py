"""What is under way at stores, noted on this machine: nothing else tells it of a killed process.

A note is locked by the process that writes the file, and no lock outlives its process.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_exim_plugin.redaction import redact_url
from mlflow_exim_plugin.storage.leftovers import is_held, locked, remove_left, unheld

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Note", "kept_for", "note", "notes", "remove_noted", "state_folder", "taken_over"]

_log = logging.getLogger(__name__)


def state_folder(name: str) -> Path:
    """Return a folder for what this machine remembers from one command to the next."""
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(state).expanduser() / "mlflow-exim" / name


def _folder() -> Path:
    return state_folder("under-way")


def kept_for(url: str) -> Path:
    """Return where on this machine a file of a store is kept until it is all there."""
    return _folder().with_name("kept") / _name_of(url)


@contextlib.contextmanager
def note(url: str, left: str, *, is_here: bool = False) -> Iterator[None]:
    """Note what is under way, until it is done or removed; what raises leaves the note.

    Args:
        url: Of the file that is written.
        left: What removes it at the store, should this process be killed.
        is_here: Whether it is a file of this machine instead.
    """
    path = _folder() / f"{_name_of(url)}-{uuid.uuid4().hex}.json"
    told = json.dumps({"url": redact_url(url), "left": left, "is_here": is_here})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        opened = locked(path, told)
        opened.__enter__()
    except OSError as error:  # no home, or it is read-only
        _log.debug("what is under way to %s is not noted: %s", redact_url(url), error)
        yield
        return
    with contextlib.ExitStack() as stack:
        stack.push(opened)
        yield
        path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Note:
    """What a process of this machine noted that it writes.

    Attributes:
        path: Of the note.
        url: Of the file that is written, without user and password.
        left: What removes it at the store.
        begun_ms: When it was begun, in ms since the Unix epoch.
        is_held: Whether its process lives.
        is_here: Whether ``left`` is the path of a file of this machine instead.
    """

    path: Path
    url: str
    left: str
    begun_ms: int
    is_held: bool
    is_here: bool = False

    def take_back(self, remove: Callable[[str], None]) -> bool:
        """Remove what is noted, and the note; False if its process lives, or another was faster.

        Args:
            remove: Removes it at the store; what it raises goes through, and the note stays.
        """
        with unheld(self.path) as text:
            if text is None:
                return False
            if self.is_here:
                remove_left([Path(self.left)])
            else:
                remove(self.left)
            self.path.unlink(missing_ok=True)
        return True


def notes(url: str | None = None) -> list[Note]:
    """Return what is noted on this machine.

    Args:
        url: Of the one file that is asked for.
    """
    found = []
    for path in sorted(_folder().glob(f"{_name_of(url)}-*.json" if url else "*.json")):
        try:
            told = json.loads(path.read_text("utf-8"))
            begun_ms = path.stat().st_mtime_ns // 1_000_000
            is_here = told.get("is_here", False) is True
            held = is_held(path)
            one = Note(path, str(told["url"]), str(told["left"]), begun_ms, held, is_here)
        except FileNotFoundError:  # it is done
            continue
        except (OSError, ValueError, LookupError, TypeError) as error:
            _log.debug("%s is no note that can be read: %s", path, error)
            continue
        found.append(one)
    return found


def remove_noted(url: str, remove: Callable[[str], None]) -> None:
    """Remove what processes of this machine that are no more have begun to write to a URL.

    Args:
        url: Of a file.
        remove: Removes it at the store.
    """
    for found in notes(url):
        try:
            found.take_back(remove)
        except Exception as error:  # noqa: BLE001 - stores have no common base of errors
            _log.warning(
                "%s: what a process that is no more has left there is not removed: %s",
                redact_url(url),
                error,
            )


@contextlib.contextmanager
def taken_over(url: str) -> Iterator[list[Note]]:
    """Give what processes that are no more have noted of a URL, the first ones first.

    Nobody else takes it meanwhile. In the end the notes go; what raises leaves them.

    Args:
        url: Of a file.
    """
    with contextlib.ExitStack() as stack:
        taken = [one for one in notes(url) if stack.enter_context(unheld(one.path)) is not None]
        yield sorted(taken, key=lambda one: one.begun_ms)
        for one in taken:
            one.path.unlink(missing_ok=True)


def _name_of(url: str) -> str:
    return hashlib.sha256(redact_url(url).encode()).hexdigest()[:24]
