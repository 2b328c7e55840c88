"""The log of an archive, read and held to its chain of digests (spec, "Log")."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from mlflow_exim_plugin.container import layout
from mlflow_exim_plugin.container.refusal import refuse
from mlflow_exim_plugin.errors import InvalidArchiveError
from mlflow_exim_plugin.schema.digests import sha256_of
from mlflow_exim_plugin.schema.envelope import LogEvent, check_document

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow_exim_plugin.container.members import Members

__all__ = ["read_log"]

MAX_EVENT_BYTES = 64 << 10
_SINCE = (1, 3)
_EVENT = re.compile(rf"{layout.LOG}[0-9]+\.json")


def read_log(reader: Members) -> Iterator[tuple[LogEvent, bytes]]:
    """Yield the events of an archive's log, the oldest first, as documents and as stored.

    Raises:
        InvalidArchiveError: One is damaged or no event, or the chain is broken (E068).
    """
    last = None
    paths = [path for path in reader.paths(layout.LOG) if _EVENT.fullmatch(path)]
    if reader.format_version < _SINCE:  # the folder had no meaning then
        paths = []
    for number, path in enumerate(paths, 1):
        if path != layout.log_member(number):
            raise refuse(InvalidArchiveError, "E068", path, f"is not event {number}")
        if reader.member(path).size_bytes > MAX_EVENT_BYTES:
            raise refuse(InvalidArchiveError, "E068", path, "is larger than 64 KiB")
        event = check_document(LogEvent, reader.read_document(path), path)
        earlier = event.info.earlier
        if last is not None and (earlier is None or earlier.event != last):
            raise refuse(InvalidArchiveError, "E068", path, "does not name the event before it")
        stored = reader.read(path)
        last = sha256_of(stored).hexdigest()
        yield event, stored
