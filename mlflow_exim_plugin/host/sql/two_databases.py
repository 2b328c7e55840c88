"""A tracking store and a model registry in two databases, written to as if they were one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.host.sql.writer import TableWriter

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import Engine

    from mlflow_exim_plugin.host.sql.writer import Rows

__all__ = ["TwoDatabases"]

_OF_REGISTRY = frozenset(
    {
        *("registered_models", "registered_model_tags", "registered_model_aliases"),
        *("model_versions", "model_version_tags", "webhooks", "webhook_events"),
    }
)
"""What MLflow's registry store has; its database has the other tables too, empty."""


class TwoDatabases(TableWriter):
    """Writes the registry's tables to a database of their own, all others to the tracking store's.

    No transaction is of both. What belongs together lies in one, and a run comes before what names
    it: so what was stopped between the two is completed by the next time.

    Args:
        tracking: The tracking store's.
        registry: The registry's.
        only_looks: Whether nothing is going to be written.
    """

    def __init__(self, tracking: Engine, registry: Engine, *, only_looks: bool = False) -> None:
        self._registry = TableWriter(registry, only_looks=only_looks)
        super().__init__(tracking, only_looks=only_looks)
        self._registry.left_out = self.left_out

    @property
    def is_broken(self) -> bool:
        """Whether a statement failed in either, so that only ``rollback`` is left to do."""
        return self._is_broken or self._registry.is_broken

    @is_broken.setter
    def is_broken(self, value: bool) -> None:
        self._is_broken = value

    def has(self, table: str, column: str | None = None) -> bool:
        """Whether the database of a table has it, or a column of it."""
        if table in _OF_REGISTRY:
            return self._registry.has(table, column)
        return super().has(table, column)

    def unmapped(self) -> list[str]:
        """Return the tables and columns that no kind is made of."""
        return sorted({*super().unmapped(), *self._registry.unmapped()})

    def commit(self) -> None:
        """Write what waits and make it visible, what models name before the models."""
        super().commit()
        self._registry.commit()

    def rollback(self) -> None:
        """Take back all that was written since the last commit."""
        super().rollback()
        self._registry.rollback()

    def was_there(self, table: str, **key: Any) -> bool:
        """Whether there is a row with these values, not counting rows that wait to be written."""
        if table in _OF_REGISTRY:
            return self._registry.was_there(table, **key)
        return super().was_there(table, **key)

    def select(self, table: str, **key: Any) -> list[dict[str, Any]]:
        """Return the rows with these values; those that wait to be written are among them."""
        if table in _OF_REGISTRY:
            return self._registry.select(table, **key)
        return super().select(table, **key)

    def count(self, table: str, **key: Any) -> int:
        """Return how many rows have these values."""
        if table in _OF_REGISTRY:
            return self._registry.count(table, **key)
        return super().count(table, **key)

    def problem_of(self, rows: Rows) -> str:
        """Return what of an object's rows their database cannot hold, empty where it can hold all.

        The rows of an object are of one database.
        """
        if rows and rows[0][0] in _OF_REGISTRY:
            return self._registry.problem_of(rows)
        return super().problem_of(rows)

    def fitted(self, rows: Rows) -> tuple[Rows, list[str]]:
        """Return an object's rows as their database can hold them, and what was done for that."""
        if rows and rows[0][0] in _OF_REGISTRY:
            return self._registry.fitted(rows)
        return super().fitted(rows)

    def add(self, rows: Iterable[tuple[str, dict[str, Any]]]) -> None:
        """Write rows, at the latest with the transaction's end; unknown columns are left out."""
        listed = list(rows)
        if of_registry := [row for row in listed if row[0] in _OF_REGISTRY]:
            self._registry.add(of_registry)
        super().add(row for row in listed if row[0] not in _OF_REGISTRY)

    def update(self, table: str, values: dict[str, Any], **key: Any) -> None:
        """Give the rows with these values others."""
        if table in _OF_REGISTRY:
            self._registry.update(table, values, **key)
        else:
            super().update(table, values, **key)
