"""The log of a set: what was taken away at its source because the set has it."""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import InvalidArchiveError
from mlflow_exim_plugin.schema.canonical import document_bytes, parse_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mlflow_exim_plugin.sources.archive.snapshot.set_folder import SetFolder

__all__ = ["append_event", "events_of", "snapshot_that_has"]

_FOLDER = "log"
_FORMAT = "mlflow-exim-set-event"
_MAX_EVENT_BYTES = 64 << 20


def append_event(
    folder: SetFolder, event: str, snapshot: int, runs: Sequence[dict[str, Any]], **more: Any
) -> None:
    """Add an event to a set's log; no event is ever changed.

    Args:
        folder: The set.
        event: What happens to the runs: ``retain`` before, ``retained`` after it.
        snapshot: Number of the snapshot that has them.
        runs: The runs, each with ``run_id``, ``experiment`` and ``outcome``.
        more: Further fields.

    Raises:
        StoreError: The store refused or died.
    """
    time_ms = time.time_ns() // 1_000_000
    document = {
        "format": _FORMAT,
        "format_version": "1.0",
        "event": event,
        "time_ms": time_ms,
        "snapshot": snapshot,
        "runs": [*runs],
        **more,
    }
    folder.put(f"{_FOLDER}/{time_ms:013d}-{uuid.uuid4().hex[:8]}.json", document_bytes(document))


def events_of(folder: SetFolder) -> Iterator[dict[str, Any]]:
    """Yield the events of a set's log, the last one first.

    Raises:
        InvalidArchiveError: One is damaged.
        StoreError: The store refused or died.
    """
    for name in reversed(folder.names(_FOLDER)):
        path = f"{_FOLDER}/{name}"
        document = parse_json(folder.read(path, _MAX_EVENT_BYTES), path)
        if not isinstance(document, dict) or document.get("format") != _FORMAT:
            raise InvalidArchiveError(f"{folder}/{path} is no event of a set")
        yield document


def snapshot_that_has(folder: SetFolder, run_id: str) -> int | None:
    """Return the snapshot that a run was put into when it was taken away, None without one.

    Raises:
        InvalidArchiveError: An event is damaged.
        StoreError: The store refused or died.
    """
    for event in events_of(folder):
        for run in event.get("runs") or ():
            if isinstance(run, dict) and run.get("run_id") == run_id:
                return int(event["snapshot"])
    return None
