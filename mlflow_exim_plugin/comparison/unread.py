"""What of a side could not be read: it is not known to be missing there."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING

from mlflow_exim_plugin.schema.objects import Kind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mlflow_exim_plugin.schema.objects import Failure

__all__ = ["Unread"]

_ALL = {"all", "*"}
_OF_VERSION = re.compile(r".*/([^/]+)/versions/([^/]+)/[^/]*")
"""The place of a version in an archive."""
_PARTS = {Kind.ARTIFACT, Kind.METRIC_HISTORY, Kind.SPAN, Kind.ASSESSMENT, Kind.TAG, Kind.PARAM}
_TOLD_BY_OWNER = {Kind.METRIC_HISTORY, Kind.SPAN, Kind.ASSESSMENT}
"""Parts of which a failure names the object that they belong to, where it is about all of them."""


class Unread:
    """Failures of one side, by how they name what was not read.

    Args:
        failures: Of that side.
    """

    def __init__(self, failures: Iterable[Failure]) -> None:
        self._objects: defaultdict[Kind, set[str]] = defaultdict(set)
        self._parts: set[str] = set()
        self._bare: set[str] = set()
        for failure in failures:
            if failure.kind not in _PARTS:
                self._objects[failure.kind] |= {failure.id, *failure.id.split("/")}
                if found := _OF_VERSION.fullmatch(failure.id):
                    self._objects[failure.kind].add(f"{found[1]}/{found[2]}")
            elif failure.kind in _TOLD_BY_OWNER:
                self._bare.add(failure.id)
            self._parts.add(failure.id)

    def has(self, kind: Kind, identities: Iterable[str], owners: Iterable[str]) -> bool:
        """Whether an object may be there.

        Args:
            kind: Of the object.
            identities: How it may be called.
            owners: How the experiment or model may be called that it belongs to.
        """
        names = self._objects.get(kind)
        if not names:
            return False
        lists = (name for owner in owners for name in (f"experiment {owner}", f"{owner}/"))
        return not names.isdisjoint({*_ALL, *identities, *lists})

    def has_part(self, identity: str, name: str) -> bool:
        """Whether a part of an object, such as a file or a parameter, may be there.

        Args:
            identity: Id of the object.
            name: Of the part; of a file its path.
        """
        if identity in self._bare or f"{identity}/" in self._parts:
            return True
        steps = name.split("/")
        above = ("/".join(steps[:depth]) for depth in range(1, len(steps) + 1))
        return any(
            not self._parts.isdisjoint((f"{identity}/{path}", f"{identity}/{path}/"))
            for path in above
        )
