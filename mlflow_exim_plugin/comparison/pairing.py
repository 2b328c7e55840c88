"""Which object of A is which object of B."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.comparison.index import A, B
from mlflow_exim_plugin.schema.objects import Kind

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlflow_exim_plugin.comparison.index import ComparisonIndex

__all__ = ["pair"]

_COMPARED_NAMESAKES = 30
"""More objects of one name on a side are paired in their order, whatever they hold."""

_FREE = """
INSERT INTO free
SELECT side, {column}, row_number() OVER (PARTITION BY side, {column} ORDER BY number), number
FROM object
WHERE kind = ? AND partner IS NULL AND NOT is_ours
"""
_JOIN_FREE = """
INSERT INTO pair
SELECT one.number, other.number
FROM free one JOIN free other ON other.side = 1 AND other.name = one.name AND other.nth = one.nth
WHERE one.side = 0;
DELETE FROM free;
"""
_JOIN = """
UPDATE object SET partner = (SELECT b FROM pair WHERE a = number)
WHERE number IN (SELECT a FROM pair);
UPDATE object SET partner = (SELECT a FROM pair WHERE b = number)
WHERE number IN (SELECT b FROM pair);
DELETE FROM pair;
"""
_UNPAIRED = """
SELECT CASE object.side WHEN 0 THEN object.owner ELSE owner.partner END AS owner,
       object.natural, object.side, object.number
FROM object LEFT JOIN object owner ON owner.number = object.owner
WHERE object.kind = ? AND object.partner IS NULL AND NOT object.is_ours AND object.natural <> ''
  AND (object.owner IS NULL OR owner.partner IS NOT NULL)
ORDER BY 1, 2, 3, 4
"""


def pair(index: ComparisonIndex, distance: Callable[[Kind, int, int], int]) -> None:
    """Pair the objects of both sides: by id, by the oldest origin, by what people know them by.

    Args:
        index: Both sides.
        distance: In how much two objects differ, for several of one name.
    """
    for kind in Kind:
        for column in ("own", "oldest"):
            index.database.execute(_FREE.format(column=column), (kind.value,))
            index.database.executescript(_JOIN_FREE + _JOIN)
        namesakes = [
            found
            for _, group in groupby(
                index.query(_UNPAIRED, kind.value), key=lambda row: (row[0], row[1])
            )
            for found in _namesakes(kind, list(group), distance)
        ]
        index.database.executemany("INSERT INTO pair VALUES (?, ?)", namesakes)
        index.database.executescript(_JOIN)
        index.meaning.cache_clear()


def _namesakes(
    kind: Kind, rows: list[Any], distance: Callable[[Kind, int, int], int]
) -> list[tuple[int, int]]:
    """Pair the objects of one name: those first that differ least."""
    ones = [number for *_, side, number in rows if side == A]
    others = [number for *_, side, number in rows if side == B]
    if len(ones) == len(others) == 1 or max(len(ones), len(others)) > _COMPARED_NAMESAKES:
        return list(zip(ones, others, strict=False))
    distances = sorted((distance(kind, one, other), one, other) for one in ones for other in others)
    found: list[tuple[int, int]] = []
    for _, one, other in distances:
        if all(one != first and other != second for first, second in found):
            found.append((one, other))
    return found
