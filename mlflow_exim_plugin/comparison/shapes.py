"""Documents as they are compared: entries by their key, ids by what they stand for.

Which places of a document hold ids of other objects, and which lists have no order of their own,
``kinds`` describes.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.kinds import KINDS
from mlflow_exim_plugin.kinds.description import ArtifactUri, Json, Listed
from mlflow_exim_plugin.schema.canonical import canonical_bytes
from mlflow_exim_plugin.schema.lineage import later_source_tags
from mlflow_exim_plugin.schema.objects import Kind
from mlflow_exim_plugin.schema.provenance import ORIGIN, is_provenance, names_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlflow_exim_plugin.kinds import Description

    Ids = Callable[[Kind, str], str | None]
    """Gives what an id stands for on both sides; None for what an unpack made for itself."""


__all__ = ["ABSENT", "ByKey", "Entries", "place_in_runs", "shaped"]

_ID = re.compile(r"[0-9a-f]{32}|m-[0-9a-f]{32}")
_KEY = ("key",)


class _Absent:
    """Stands where one side has nothing."""

    def __repr__(self) -> str:
        return "absent"

    def __bool__(self) -> bool:
        return False


ABSENT: Any = _Absent()
"""What a ``Difference`` holds for the side that lacks the field or object."""


class Entries(dict[str, Any]):
    """A list of keys and values: its values by key."""


class ByKey(Entries):
    """A list without an order of its own: its elements by what tells them apart."""


def shaped(kind: Kind, document: dict[str, Any], ids: Ids | None) -> dict[str, Any]:
    """Return a document as it is compared, without what says where the object came from.

    Args:
        kind: Kind of the object.
        document: The document of the stream.
        ids: Gives what an id stands for; None leaves ids as they are.
    """
    found: dict[str, Any] = _Walk(KINDS[kind], ids).value(document, "")
    return found


class _Walk:
    def __init__(self, described: Description, ids: Ids | None) -> None:
        self._lists = described.lists
        self._references = described.refers
        self._ids = ids

    def value(self, value: Any, path: str) -> Any:
        if isinstance(value, list):
            fields = self._lists.get(path)
            if fields == _KEY and _are_key_values(value):
                return self._entries({e["key"]: e.get("value", "") for e in value}, path)
            elements = [self.value(element, path + "[]") for element in value]
            return elements if fields is None else _by_key(elements, fields)
        if isinstance(value, dict):
            return self._entries(value, path) if path in _TAGS else self._fields(value, path)
        refers_to = self._references.get(path)
        if refers_to is None or value is None or self._ids is None:
            return value
        if isinstance(refers_to, Kind):
            return self._ids(refers_to, str(value)) if value != "" else value
        return _READERS[type(refers_to)](value, refers_to, self._ids)

    def _entries(self, value: dict[str, Any], path: str) -> Entries:
        own = {k: v for k, v in value.items() if path not in _TAGS or not is_provenance(k)}
        return Entries(self._fields(own, path))

    def _fields(self, value: dict[str, Any], path: str) -> dict[str, Any]:
        prefix = path + "." if path else ""
        return {key: self.value(inner, prefix + key) for key, inner in value.items()}


_TAGS = {"tags", "data.tags", "info.tags"}


def drop_later_hops(a: dict[str, Any], b: dict[str, Any], further: int) -> bool:
    """Take out of two shaped documents the source tags of transfers that the later one has more.

    Args:
        a: One document.
        b: The other one.
        further: How many transfers more ``a`` has come than ``b``; below zero where ``b`` has.

    Returns:
        Whether there were any.
    """
    later, earlier = (a, b) if further > 0 else (b, a)
    dropped = False
    for path in _TAGS if further else ():
        there, before = _at(later, path), _at(earlier, path)
        if isinstance(there, Entries):
            known = before if isinstance(before, Entries) else {}
            for key in later_source_tags(there, known, abs(further)):
                there.pop(key)
                dropped = True
    return dropped


def hops_of(document: dict[str, Any]) -> int:
    """Return how many transfers the provenance of an object's document tells of."""
    for path in _TAGS:
        for entry in _at(document, path) or ():
            if isinstance(entry, dict) and entry.get("key") in names_of(ORIGIN):
                return len(str(entry.get("value", "")).split())
    return 0


def _are_key_values(entries: list[Any]) -> bool:
    """Whether a list is one of keys and values, each key once."""
    keys = [e.get("key") for e in entries if isinstance(e, dict) and e.keys() <= {"key", "value"}]
    distinct = {key for key in keys if isinstance(key, str)}
    return len(distinct) == len(entries)


def _by_key(elements: list[Any], fields: tuple[str, ...]) -> ByKey:
    found = ByKey()
    for element in elements:
        if fields:
            name = ", ".join(_name(_at(element, of)) for of in fields)
            if len(fields) == 1 and isinstance(_at(element, fields[0]), str):
                element = _without(element, fields[0])  # noqa: PLW2901 - its name says it
        else:
            name = str(element)
        number, unique = 1, name
        while unique in found:
            number += 1
            unique = f"{name}#{number}"
        found[unique] = element
    return found


def _at(element: Any, path: str) -> Any:
    for name in path.split("."):
        element = element.get(name, "") if isinstance(element, dict) else ""
    return element


def _without(element: Any, name: str) -> Any:
    if not isinstance(element, dict):
        return element
    return {key: value for key, value in element.items() if key != name}


def _name(value: Any) -> str:
    if isinstance(value, dict | list):
        return hashlib.sha256(canonical_bytes(value)).hexdigest()[:12]
    return str(value)


def place_in_runs(uri: str) -> tuple[str, str] | None:
    """Return the id of the run or logged model whose files a URI leads to, and the path there."""
    segments = uri.split("/")
    for position in reversed(range(len(segments))):
        if _ID.fullmatch(segments[position]):
            below = segments[position + 1 :]
            if below[:1] == ["artifacts"]:
                below = below[1:]
            return segments[position], "/".join(below).rstrip("/")
    return None


def _place(uri: Any, _: ArtifactUri, ids: Ids) -> Any:
    """Name a place in a deployment by its run or logged model, whatever the root of its files."""
    found = place_in_runs(str(uri))
    if found is None:
        return uri
    old_id, below = found
    kind = Kind.LOGGED_MODEL if old_id.startswith("m-") else Kind.RUN
    token = ids(kind, old_id)
    if token is None:
        return f"runs:/-/{below}"
    return f"{'models' if kind is Kind.LOGGED_MODEL else 'runs'}:/{token}/{below}"


def _json(text: Any, of: Json, ids: Ids) -> Any:
    """Read a text as JSON, so that its spelling does not matter."""
    try:
        value = json.loads(text)
    except (TypeError, ValueError):
        return text
    if of.kind is not None and isinstance(value, list):
        for entry in value:
            if isinstance(entry, dict) and isinstance(entry.get(of.field), str):
                entry[of.field] = ids(of.kind, entry[of.field])
    return value


def _listed(text: Any, of: Listed, ids: Ids) -> Any:
    return ByKey({ids(of.kind, one) or one: True for one in str(text).split(",") if one})


_READERS: dict[Any, Callable[[Any, Any, Ids], Any]] = {
    ArtifactUri: _place,
    Json: _json,
    Listed: _listed,
}
