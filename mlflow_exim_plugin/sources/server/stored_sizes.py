"""How much a database has, by its own counts: no row of a run comes here but those of a few.

One pass over the table of runs counts those of every experiment, a second one those of ranges of
ids of the large ones. What a run has is estimated from some, evenly spread over all ids.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from mlflow_exim_plugin.host.errors import translated

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sqlalchemy import ColumnClause, ColumnElement, Engine, Select

    from mlflow_exim_plugin.host.tables import TableReader
    from mlflow_exim_plugin.options import Selection

__all__ = ["StoredSizes"]

_PROBES = 256
"""So many runs are looked at, evenly spread over what ids there may be."""
_OF_EXPERIMENTS = 500
"""... and the first and last run of so many experiments."""
_AT_ONCE = 500
_FINER = 8
"""So many ranges of ids are counted for each piece that is to be cut."""
_MOST_CHARACTERS = 6
_TEXT = pa.string()
_ROOT = pa.schema({"run_uuid": _TEXT, "artifact_uri": _TEXT})


class StoredSizes:
    """Counts what a selection takes of a database.

    Args:
        engine: The database's.
        tables: Its tables.
        selection: What to take; a filter in MLflow's language is left out of account.
    """

    def __init__(self, engine: Engine, tables: TableReader, selection: Selection) -> None:
        self._engine = engine
        self._tables = tables
        self._selection = selection

    def runs(self) -> dict[str, tuple[int, list[str]]]:
        """Return the number of runs and the ids of some of them, by experiment.

        Raises:
            ServerError: The database refused.
        """
        from sqlalchemy import func, select, table

        run_id, owner = _column("run_uuid"), _column("experiment_id")
        counted = select(owner, func.count(), func.min(run_id), func.max(run_id))
        query = self._taken(counted.select_from(table("runs"))).group_by(owner)
        found = {}
        for experiment_id, count, first, last in self._rows(query):
            found[str(experiment_id)] = (int(count), sorted({first, last}))
        return found

    def probed(self) -> dict[str, str]:
        """Return some runs of all, each with its experiment.

        Raises:
            ServerError: The database refused.
        """
        from sqlalchemy import select, table

        run_id, owner = _column("run_uuid"), _column("experiment_id")
        query = self._taken(select(run_id, owner).select_from(table("runs")))
        found = {}
        for number in range(_PROBES):
            start = f"{number * (1 << 128) // _PROBES:032x}"
            nearest = query.where(run_id >= start).order_by(run_id).limit(1)
            found.update({one: str(of) for one, of in self._rows(nearest)})
        return found

    def of_each(self, table_name: str) -> dict[str, int]:
        """Return how many rows of a table belong to each experiment; none where it is not there.

        Raises:
            ServerError: The database refused.
        """
        from sqlalchemy import func, select, table

        if not self._tables.has(table_name, "experiment_id"):
            return {}
        owner = _column("experiment_id")
        query = select(owner, func.count()).select_from(table(table_name)).group_by(owner)
        return {str(of): int(count) for of, count in self._rows(query) if of is not None}

    def count(self, table_name: str) -> int:
        """Return how many rows a table has; none where it is not there.

        Raises:
            ServerError: The database refused.
        """
        from sqlalchemy import func, select, table

        if not self._tables.has_rows(table_name):
            return 0
        (row,) = self._rows(select(func.count()).select_from(table(table_name)))
        return int(row[0])

    def metric_rows(self, run_ids: list[str]) -> dict[str, int]:
        """Return how many metric rows some runs have; those without any are left out.

        Raises:
            ServerError: The database refused.
        """
        from sqlalchemy import func, select, table

        run_id = _column("run_uuid")
        query = select(run_id, func.count()).select_from(table("metrics")).group_by(run_id)
        found: dict[str, int] = {}
        for start in range(0, len(run_ids), _AT_ONCE):
            some = query.where(run_id.in_(run_ids[start : start + _AT_ONCE]))
            found.update({one: int(count) for one, count in self._rows(some)})
        return found

    def artifact_roots(self, run_ids: list[str]) -> dict[str, str]:
        """Return where the artifacts of some runs are.

        Raises:
            ServerError: The database refused.
        """
        doing = "looking where artifacts are"
        rows = self._tables.rows("runs", _ROOT, doing, limit=None, run_uuid=run_ids)
        return dict(zip(*rows.to_pydict().values(), strict=True))

    def cuts(self, pieces: Mapping[str, int]) -> dict[str, list[tuple[str, int]]]:
        """Cut the runs of experiments in about so many pieces of about the same number.

        Args:
            pieces: How many, by experiment; two at least.

        Returns:
            Where each piece begins, and how many runs it has, by experiment. The first one begins
            with nothing.

        Raises:
            ServerError: The database refused.
        """
        from sqlalchemy import func, select, table

        if not pieces:
            return {}
        characters = math.ceil(math.log(max(pieces.values()) * _FINER, 16))
        characters = min(max(characters, 2), _MOST_CHARACTERS)
        owner, begin = _column("experiment_id"), func.substr(_column("run_uuid"), 1, characters)
        query = self._taken(select(owner, begin, func.count()).select_from(table("runs")))
        ids = sorted(map(int, pieces))
        counted: dict[str, list[tuple[str, int]]] = {}
        for start in range(0, len(ids), _AT_ONCE):
            some = query.where(owner.in_(ids[start : start + _AT_ONCE]))
            for of, beginning, count in self._rows(
                some.group_by(owner, begin).order_by(owner, begin)
            ):
                counted.setdefault(str(of), []).append((beginning, int(count)))
        found = {}
        for experiment_id, wanted in pieces.items():
            ranges = counted.get(experiment_id, [])
            total = sum(count for _, count in ranges)
            if total and max(count for _, count in ranges) > 2 * total / wanted:
                found[experiment_id] = self._by_place(experiment_id, total, wanted)
            else:
                found[experiment_id] = _joined(ranges, total / wanted)
        return found

    def _by_place(self, experiment_id: str, total: int, wanted: int) -> list[tuple[str, int]]:
        """Cut by the places of ids in order, which takes the database longer."""
        from sqlalchemy import select, table

        run_id = _column("run_uuid")
        query = self._taken(select(run_id).select_from(table("runs")))
        query = query.where(_column("experiment_id") == int(experiment_id)).order_by(run_id)
        places = [number * total // wanted for number in range(wanted)]
        begin = [""]
        for place in places[1:]:
            begin += [one for (one,) in self._rows(query.offset(place).limit(1))]
        ends = [*places[1:], total]
        return [(b, end - place) for b, place, end in zip(begin, places, ends, strict=False)]

    def _taken(self, query: Select[Any]) -> Select[Any]:
        """Return a query on runs for those that are taken."""
        from sqlalchemy import func

        selection = self._selection
        started: ColumnElement[Any] = func.coalesce(_column("start_time"), 0)
        if not selection.deleted:
            query = query.where(_column("lifecycle_stage") != "deleted")
        if selection.since_ms is not None:
            query = query.where(started >= selection.since_ms)
        if selection.until_ms is not None:
            query = query.where(started <= selection.until_ms)
        return query

    def _rows(self, query: Select[Any]) -> Iterator[Any]:
        with translated("counting what there is"), self._engine.connect() as connection:
            yield from connection.execute(query)


def _column(name: str) -> ColumnClause[Any]:
    from sqlalchemy import column

    return column(name)


def _joined(ranges: list[tuple[str, int]], runs: float) -> list[tuple[str, int]]:
    """Join ranges that follow each other until they have so many runs."""
    pieces: list[tuple[str, int]] = []
    begin, count = "", 0
    for number, (_, some) in enumerate(ranges):
        count += some
        if count >= runs and number + 1 < len(ranges):
            pieces.append((begin, count))
            begin, count = ranges[number + 1][0], 0
    return [*pieces, (begin, count)]
