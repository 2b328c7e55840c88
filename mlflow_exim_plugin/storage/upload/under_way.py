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
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_exim_plugin.redaction import redact_url
from mlflow_exim_plugin.storage.leftovers import locked, unheld

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["note", "remove_noted"]

_log = logging.getLogger(__name__)


def _folder() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(state).expanduser() / "mlflow-exim" / "under-way"


@contextlib.contextmanager
def note(url: str, left: str) -> Iterator[None]:
    """Note what is under way, until it is done or removed; what raises leaves the note.

    Args:
        url: Of the file that is written.
        left: What removes it at the store, should this process be killed.
    """
    path = _folder() / f"{_name_of(url)}-{uuid.uuid4().hex}.json"
    told = json.dumps({"url": redact_url(url), "left": left})
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


def remove_noted(url: str, remove: Callable[[str], None]) -> None:
    """Remove what processes of this machine that are no more have begun to write to a URL.

    Args:
        url: Of a file.
        remove: Removes it at the store.
    """
    for path in _folder().glob(f"{_name_of(url)}-*.json"):
        with unheld(path) as text:
            if text is None:
                continue
            try:
                remove(str(json.loads(text)["left"]))
                path.unlink(missing_ok=True)
            except Exception as error:  # noqa: BLE001 - stores have no common base of errors
                _log.warning(
                    "%s: what a process that is no more has left there is not removed: %s",
                    redact_url(url),
                    error,
                )


def _name_of(url: str) -> str:
    return hashlib.sha256(redact_url(url).encode()).hexdigest()[:24]
