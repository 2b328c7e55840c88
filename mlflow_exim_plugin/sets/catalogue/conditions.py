"""What is asked of a catalogue: which row groups may hold it, and which rows do."""

from __future__ import annotations

import fnmatch
import re
from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from mlflow_exim_plugin.options import MetricRange, Seeking, is_glob, key_and_text
from mlflow_exim_plugin.sets.catalogue.tables import EARLIER, ID, TABLES, hash_of, shortened

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mlflow_exim_plugin.sets.catalogue.parts import RowGroup

__all__ = ["Condition", "LaterStates", "SameHashes", "conditions_of"]

_SHORTEST_ID = 4
"""Fewer characters are no beginning of an id."""


class _Pattern:
    """Texts that are meant: one, those that begin in a way, or those of a glob."""

    def __init__(self, text: str, *, is_beginning: bool = False) -> None:
        self._is_glob = is_glob(text)
        self._is_beginning = is_beginning and len(text) >= _SHORTEST_ID
        self._text = shortened(text)
        self._start = re.split(r"[*?[]", text, maxsplit=1)[0] if self._is_glob else self._text
        self._glob = re.compile(fnmatch.translate(text)) if self._is_glob else None

    def may_be_in(self, zone: tuple[str, str] | None) -> bool:
        if zone is None:
            return True
        smallest, largest = zone
        if not (self._is_glob or self._is_beginning):
            return smallest <= self._text <= largest
        # A name that is spelled out wins over reading it as a glob.
        is_in = smallest[: len(self._start)] <= self._start <= largest[: len(self._start)]
        return is_in or smallest <= self._text <= largest

    def mask(self, column: Any) -> Any:
        mask = pc.equal(column, self._text)
        if self._glob is not None:
            meant = [text for text in pc.unique(column).to_pylist() if self._glob.match(text)]
            return pc.or_(mask, pc.is_in(column, value_set=pa.array(meant, column.type)))
        return pc.starts_with(column, self._text) if self._is_beginning else mask


@dataclass
class Condition:
    """One thing that must hold of an object.

    Attributes:
        table: Which table tells.
        columns: How many of its columns, of the first, are to be read; None for all.
    """

    table: str
    columns: int | None = None

    def may_hold(self, group: RowGroup) -> bool:
        """Whether a row group may have rows of which it holds."""
        raise NotImplementedError

    def mask(self, rows: pa.Table) -> Any:
        """Return of which rows it holds."""
        raise NotImplementedError


class _Value(Condition):
    """A row of ``values``: of a field, perhaps a key, and perhaps some texts."""

    def __init__(
        self, field: str, key: str | None = None, texts: Iterable[str] | None = None
    ) -> None:
        super().__init__("values")
        self._field = field
        self._key = None if key is None else shortened(key)
        self._texts = None if texts is None else [_Pattern(text) for text in texts]

    def may_hold(self, group: RowGroup) -> bool:
        zones = group.zones
        return (
            _is_in(zones["field"], self._field)
            and (self._key is None or _is_in(zones["key"], self._key))
            and (self._texts is None or any(t.may_be_in(zones["text"]) for t in self._texts))
        )

    def mask(self, rows: pa.Table) -> Any:
        mask = pc.equal(rows.column("field"), self._field)
        if self._key is not None:
            mask = pc.and_(mask, pc.equal(rows.column("key"), self._key))
        if self._texts is not None:
            texts = rows.column("text")
            mask = pc.and_(mask, _any(pattern.mask(texts) for pattern in self._texts))
        return mask


class _Keyed(Condition):
    """A row of ``values`` of a field whose key, or text too, is meant."""

    def __init__(self, field: str, patterns: Iterable[str], *, or_text: bool = False) -> None:
        super().__init__("values")
        self._field = field
        self._patterns = [_Pattern(text) for text in patterns]
        self._columns = ("key", "text") if or_text else ("key",)

    def may_hold(self, group: RowGroup) -> bool:
        return _is_in(group.zones["field"], self._field) and any(
            pattern.may_be_in(group.zones[column])
            for pattern in self._patterns
            for column in self._columns
        )

    def mask(self, rows: pa.Table) -> Any:
        meant = _any(
            pattern.mask(rows.column(column))
            for pattern in self._patterns
            for column in self._columns
        )
        return pc.and_(pc.equal(rows.column("field"), self._field), meant)


class _Metric(Condition):
    def __init__(self, meant: MetricRange) -> None:
        super().__init__("metrics", TABLES["metrics"].schema.get_field_index("object") + 1)
        self._meant = meant
        self._key = shortened(meant.key)

    def may_hold(self, group: RowGroup) -> bool:
        zone = group.zones["value"]
        return _is_in(group.zones["key"], self._key) and (zone is None or self._meant.holds(*zone))

    def mask(self, rows: pa.Table) -> Any:
        meant, values = self._meant, rows.column("value")
        mask = pc.equal(rows.column("key"), self._key)
        if not meant.sign:
            return mask
        if meant.bound != meant.bound:
            return pc.and_(mask, pc.is_nan(values)) if meant.sign == "=" else pc.and_(mask, False)  # noqa: FBT003
        compare = {
            ">": pc.greater,
            ">=": pc.greater_equal,
            "<": pc.less,
            "<=": pc.less_equal,
            "=": pc.equal,
        }[meant.sign]
        return pc.and_(mask, compare(values, meant.bound))


class _Digest(Condition):
    def __init__(self, digests: Iterable[str]) -> None:
        super().__init__("files")
        self._digests = sorted(digests)

    def may_hold(self, group: RowGroup) -> bool:
        return any(_is_in(group.zones["sha256"], digest) for digest in self._digests)

    def mask(self, rows: pa.Table) -> Any:
        return pc.is_in(rows.column("sha256"), value_set=pa.array(self._digests, pa.string()))


class _Ids(Condition):
    """Objects that have an id, or had it."""

    def __init__(self, ids: Iterable[str], *, or_beginning: bool) -> None:
        super().__init__("ids")
        self._ids = [_Pattern(text, is_beginning=or_beginning) for text in ids]

    def may_hold(self, group: RowGroup) -> bool:
        return any(pattern.may_be_in(group.zones["id"]) for pattern in self._ids)

    def mask(self, rows: pa.Table) -> Any:
        how = pc.is_in(rows.column("how"), value_set=pa.array([ID, EARLIER], pa.string()))
        return pc.and_(how, _any(pattern.mask(rows.column("id")) for pattern in self._ids))


class LaterStates(Condition):
    """Rows of ``ids`` of objects that are known, in a later state.

    Args:
        packed_ms: When each object was packed, by what tells it from others.
    """

    def __init__(self, packed_ms: Mapping[str, int]) -> None:
        super().__init__("ids", 3)
        self._sorted = sorted(packed_ms)
        self._earliest_ms = min(packed_ms.values(), default=0)
        self._values = pa.array(self._sorted, pa.string())

    def may_hold(self, group: RowGroup) -> bool:
        """See `Condition`."""
        latest, zone = group.zones["packed_ms"], group.zones["id"]
        if latest is not None and latest[1] <= self._earliest_ms:
            return False
        return _has_one(self._sorted, zone)

    def mask(self, rows: pa.Table) -> Any:
        """See `Condition`."""
        known = pc.is_in(rows.column("id"), value_set=self._values)
        return pc.and_(known, pc.not_equal(rows.column("how"), EARLIER))


class SameHashes(Condition):
    """Rows of ``hashes`` of objects that are known, in whatever state.

    Args:
        identities: What tells each object from others.
    """

    def __init__(self, identities: Iterable[str]) -> None:
        super().__init__("hashes", 1)
        self._sorted = sorted({hash_of(identity) for identity in identities})
        self._values = pa.array(self._sorted, pa.int64())

    def may_hold(self, group: RowGroup) -> bool:
        """See `Condition`."""
        return _has_one(self._sorted, group.zones["hash"])

    def mask(self, rows: pa.Table) -> Any:
        """See `Condition`."""
        return pc.is_in(rows.column("hash"), value_set=self._values)


def conditions_of(seeking: Seeking, identity: str | None = None) -> list[Condition]:
    """Return what must hold of an object, but for when it began.

    Args:
        seeking: What is looked for.
        identity: An id that it has or had, of whatever kind.
    """
    found: list[Condition] = []
    if identity is not None:
        found.append(_Ids([identity], or_beginning=False))
    if seeking.runs:
        found.append(_Ids(seeking.runs, or_beginning=True))
    for field, texts in (("kind", seeking.kinds), ("name", seeking.names), ("user", seeking.users)):
        if texts:
            found.append(_Value(field, "", texts))
    if seeking.experiments:
        found.append(_Keyed("experiment", seeking.experiments, or_text=True))
    if seeking.models:
        found.append(_Keyed("model", seeking.models))
    if seeking.datasets:
        found.append(_Keyed("dataset", seeking.datasets))
    for field, typed in (("tag", seeking.tags), ("param", seeking.params)):
        for text in typed:
            key, value = key_and_text(f"--{field}", text)
            found.append(_Value(field, key, None if value is None else [value]))
    found += [_Metric(MetricRange.read(text)) for text in seeking.metrics]
    if seeking.sha256:
        found.append(_Digest(seeking.sha256))
    return found


def _is_in(zone: tuple[Any, Any] | None, value: Any) -> bool:
    return zone is None or zone[0] <= value <= zone[1]


def _has_one(values: Sequence[Any], zone: tuple[Any, Any] | None) -> bool:
    """Whether one of some sorted values is in a zone."""
    if zone is None:
        return True
    place = bisect_left(values, zone[0])
    return place < len(values) and bool(values[place] <= zone[1])


def _any(masks: Iterable[Any]) -> Any:
    found: Any = None
    for mask in masks:
        found = mask if found is None else pc.or_(found, mask)
    return found
