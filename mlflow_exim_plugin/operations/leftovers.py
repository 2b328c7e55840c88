"""``leftovers``: what killed and interrupted packs left, and how it goes."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import EximError, UsageError
from mlflow_exim_plugin.options import Clearing, Opening, flat
from mlflow_exim_plugin.storage.upload.unfinished import (
    LeftoverState,
    remove_unfinished,
    unfinished,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlflow_exim_plugin.storage.upload.unfinished import Unfinished

__all__ = ["Leftover", "Leftovers", "leftovers"]


@dataclass(frozen=True)
class Leftover:
    """A file that is not finished, and what became of it.

    Attributes:
        url: The archive that it was to be, without user and password; of a long name its beginning.
            For a file of a run, and what was extracted, the folder that it is in.
        kind: ``file`` beside it, ``upload`` or ``blocks`` of a store.
        name: What it is called until then: a path, the id of an upload; blocks have none.
        state: ``in use`` by a process of this machine, ``left`` by one that is no more, ``unknown``
            where nothing on this machine tells.
        begun_ms: When it was begun or last written, in ms since the Unix epoch, UTC; None if the
            store does not tell.
        age_s: The same in seconds before now.
        size_bytes: None if nobody tells.
        removed: Whether it was removed.
        failure: Why it could not be, empty where nobody tried.
    """

    url: str
    kind: str
    name: str
    state: str
    begun_ms: int | None
    age_s: int | None
    size_bytes: int | None
    removed: bool = False
    failure: str = ""


@dataclass
class Leftovers:
    """What was found.

    Attributes:
        found: In the order of the places where they are.
    """

    found: list[Leftover] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True when nothing failed to be removed."""
        return not any(one.failure for one in self.found)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return {"ok": self.ok, "leftovers": [vars(one) for one in self.found]}


@flat()
def leftovers(
    url: str | None = None, *, opening: Opening = Opening(), clearing: Clearing = Clearing()
) -> Leftovers:
    """Tell what killed and interrupted packs left, and remove it where that is asked.

    Args:
        url: Folder or archive, a path or any fsspec URL: what is not finished there. Without it
            what this machine has noted of stores, which are not asked.
        opening: How the store is opened.
        clearing: What is removed.

    Raises:
        UsageError: An age without a URL.
        StoreError: The store refused or died, or does not tell such things.
    """
    if clearing.older_than_s is not None and url is None:
        raise UsageError("an age is for what a store tells", "give the URL of a folder or archive")
    options = opening.storage_options
    result = Leftovers()
    now_ms = time.time_ns() // 1_000_000
    for one in unfinished(url, options):
        told = _told(one, now_ms)
        if clearing.clear and _goes(told, clearing):
            if clearing.removing is not None:
                clearing.removing(told)
            told = _removed(one, now_ms, url, options)
        result.found.append(told)
    return result


def _told(one: Unfinished, now_ms: int, *, removed: bool = False, failure: str = "") -> Leftover:
    age_s = None if one.begun_ms is None else max(0, now_ms - one.begun_ms) // 1000
    return Leftover(
        one.url,
        one.kind,
        one.name,
        one.state.value,
        one.begun_ms,
        age_s,
        one.size_bytes,
        removed=removed,
        failure=failure,
    )


def _goes(told: Leftover, clearing: Clearing) -> bool:
    if told.state == LeftoverState.UNKNOWN.value:
        is_old = clearing.older_than_s is not None and told.age_s is not None
        return is_old and (told.age_s or 0) >= (clearing.older_than_s or 0)
    return told.state == LeftoverState.LEFT.value


def _removed(
    one: Unfinished, now_ms: int, url: str | None, options: Mapping[str, Any] | None
) -> Leftover:
    try:
        return _told(one, now_ms, removed=remove_unfinished(one, url, options))
    except EximError as error:
        return _told(one, now_ms, failure=error.message)
