"""What texts the columns of a database can hold, and which may be cut."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.kinds import KINDS

if TYPE_CHECKING:
    from mlflow_exim_plugin.kinds.description import TableRows
    from mlflow_exim_plugin.schema.objects import Entity

__all__ = ["BYTES_OF_TEXT", "MAY_BE_CUT", "TextLimit", "folded", "shortened"]

BYTES_OF_TEXT = {"TINYTEXT": 2**8 - 1, "TEXT": 2**16 - 1, "MEDIUMTEXT": 2**24 - 1}
"""What MySQL's types of text hold; unless it is told to be strict, it cuts the rest off."""
MAY_BE_CUT = {
    *("value", "tag_value", "param_value", "description", "status_message"),
    *("dataset_schema", "dataset_profile", "request_preview", "response_preview", "rationale"),
}
"""Columns of texts that stay what they are when their end is missing."""


@dataclass(frozen=True)
class TextLimit:
    """What a column of text can hold.

    Attributes:
        characters: How many characters, 0 for any number.
        bytes: How many bytes of UTF-8, 0 for any number.
        takes_zero: Whether it takes a zero byte.
    """

    characters: int
    bytes: int
    takes_zero: bool

    def problem_of(self, value: str) -> str:
        """Return why it cannot hold a text, empty where it can."""
        if self.characters and len(value) > self.characters:
            return f"holds {self.characters} characters, it has {len(value)}"
        if self.bytes and len(value) > self.bytes // 4 and len(value.encode()) > self.bytes:
            return f"holds {self.bytes} bytes, it has {len(value.encode())}"
        return "" if self.takes_zero or "\0" not in value else "cannot hold a zero byte"

    def cut(self, value: str) -> str:
        """Return as much of a text as it has room for."""
        if self.characters:
            value = value[: self.characters]
        return value.encode()[: self.bytes].decode("utf-8", "ignore") if self.bytes else value


def folded(key: str) -> str:
    """Return a key as a database has it that ignores capitals and accents."""
    plain = unicodedata.normalize("NFD", key.casefold())
    return "".join(c for c in plain if not unicodedata.combining(c)).rstrip(" ")


def shortened(entity: Entity) -> tuple[Entity, list[str]]:
    """Return an entity as the databases of most servers hold it, and what that takes away."""
    notes: list[str] = []
    document = _shortened(KINDS[entity.kind].rows, entity.document, notes)
    return (replace(entity, document=document) if document else entity), notes


def _shortened(
    rows: TableRows | None, document: dict[str, Any], notes: list[str]
) -> dict[str, Any] | None:
    """Return a document, or an element of one, with shorter texts; None where it is left out."""
    if rows is None:
        return document
    made = dict(document)
    for column, limit in _lengths(rows.table).items():
        source = rows.columns.get(column)
        field = (isinstance(source, str) and source) or column
        value = made.get(field)
        if not isinstance(value, str) or not (problem := limit.problem_of(value)):
            continue
        what = f"{rows.table}.{column} {problem}"
        if column in MAY_BE_CUT:
            made[field] = limit.cut(value)
            notes.append(f"cut, {what}")
        elif rows.at:
            notes.append(f"left out, {what}")
            return None
    for part in rows.parts:
        listed = made.get(part.at)
        if isinstance(listed, list) and all(isinstance(element, dict) for element in listed):
            found = (_shortened(part, element, notes) for element in listed)
            made[part.at] = [element for element in found if element is not None]
    return made


def _lengths(table: str) -> dict[str, TextLimit]:
    """Return what the columns of one of MLflow's tables hold that has such limits."""
    import mlflow.store.model_registry.dbmodels.models
    import mlflow.store.tracking.dbmodels.models  # noqa: F401 - they fill the metadata
    from mlflow.store.db.base_sql_model import Base

    known = Base.metadata.tables.get(table)
    return {
        column.name: TextLimit(column.type.length, 0, takes_zero=True)
        for column in (known.columns if known is not None else ())
        if getattr(column.type, "length", None)
    }
