"""The words in which a kind is described: one description serves every part of the package.

A path names fields of a document by dots and the elements of a list by ``[]``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow_exim_plugin.kinds.kind import Kind

__all__ = [
    "KEY",
    "LINK",
    "TAG",
    "ArtifactUri",
    "Description",
    "GrowingRows",
    "Growth",
    "Json",
    "Kept",
    "Listed",
    "PartFiles",
    "TableRows",
    "Version",
    "as_json",
    "const",
    "default",
    "flag",
    "lower",
    "same",
]

KEY = ("key",)
LINK = ("source_type", "source_id", "destination_type", "destination_id")
"""What tells links between objects apart."""


@dataclass(frozen=True)
class ArtifactUri:
    """A URI of files, known by its run or logged model, whatever the root."""


@dataclass(frozen=True)
class Json:
    """Text that is JSON; each entry of its list names an object in one field, if any does."""

    kind: Kind | None = None
    field: str = ""


@dataclass(frozen=True)
class Listed:
    """Ids with commas between them."""

    kind: Kind


@dataclass(frozen=True)
class Version:
    """A version of an object, named by two fields: its owner's id and its number."""

    kind: Kind
    id_field: str
    number_field: str


Row = tuple[str, dict[str, Any]]
"""A row and its table."""


@dataclass(frozen=True)
class Kept:
    """A field of which a column holds another form.

    Attributes:
        path: The field.
        write: Gives what the column holds, from the document.
        read: Gives the field's value for what the column holds, None where there is none.
    """

    path: str
    write: Callable[[dict[str, Any]], Any]
    read: Callable[[Any], Any]


Source = str | Kept | Callable[[dict[str, Any]], Any]
"""What a column holds: the value at a path of the document, another form of it, or what MLflow
derives from the document: that is not read."""
RowsBelow = Callable[["TableRows", Mapping[str, Any]], list[dict[str, Any]]]
"""Gives the rows of a part that have some values."""


@dataclass(frozen=True)
class TableRows:
    """TableRows of one of MLflow's tables.

    Attributes:
        table: The table.
        columns: What each column holds.
        at: Field that lists what has a row each; the document itself without it.
        owner: Columns that the rows share with the row that they belong to.
        parts: TableRows that belong to each of these.
        order: Fields by which documents list what has a row each; empty is a text by itself.
        when: Whether there are any, from the document they are listed in; None is always.
        completed: Adds to a document what only several columns tell together.
    """

    table: str
    columns: Mapping[str, Source]
    at: str = ""
    owner: tuple[str, ...] = ()
    parts: tuple[TableRows, ...] = ()
    order: tuple[str, ...] = KEY
    when: Callable[[dict[str, Any]], bool] | None = None
    completed: Callable[[dict[str, Any], Mapping[str, Any]], None] | None = None

    def of(self, document: Any, owner: Mapping[str, Any] | None = None) -> Iterator[Row]:
        """Yield the rows of a document, each before those that belong to it.

        Raises:
            KeyError: The document lacks a field that MLflow's always have.
            TypeError: A field of it has another type.
        """
        row = self.key_below(owner or {})
        for column, wanted in self.columns.items():
            if isinstance(wanted, str):
                row[column] = _at(document, wanted)
            else:
                row[column] = (wanted.write if isinstance(wanted, Kept) else wanted)(document)
        yield self.table, row
        for part in self.parts:
            if part.when is None or part.when(document):
                for element in document.get(part.at, ()):
                    yield from part.of(element, row)

    def read(self, row: Mapping[str, Any], below: RowsBelow) -> Any:
        """Return the document of a row and those that belong to it: what ``of`` makes rows of.

        Args:
            row: The row; a column that is not there holds nothing.
            below: Gives the rows that belong to it.

        Raises:
            ValueError: A column does not hold what MLflow writes.
        """
        document: dict[str, Any] = {}
        for column, wanted in self.columns.items():
            value = row.get(column)
            if wanted == "":
                return value
            if isinstance(wanted, Kept):
                path, value = wanted.path, None if value is None else wanted.read(value)
            elif isinstance(wanted, str):
                path = wanted
            else:
                continue
            if value is not None:
                _put(document, path, value)
        for part in self.parts:
            found = [part.read(its, below) for its in below(part, part.key_below(row))]
            document[part.at] = sorted(found, key=part.sorting)
        if self.completed is not None:
            self.completed(document, row)
        return document

    def sorting(self, document: Any) -> list[tuple[bool, Any]]:
        """Return what documents are sorted by: those without a field first."""
        return [_first_without(_at(document, name)) for name in self.order]

    def row_sorting(self, row: Mapping[str, Any]) -> list[tuple[bool, Any]]:
        """Return what rows are sorted by, to come as their documents would."""
        columns = {path: name for name, path in self.columns.items() if isinstance(path, str)}
        return [_first_without(row.get(columns[name])) for name in self.order]

    def key_below(self, owner: Mapping[str, Any]) -> dict[str, Any]:
        """Return the columns that rows below an owner's have of it."""
        pairs = (name.partition("=") for name in self.owner)
        return {column or source: owner[source] for source, _, column in pairs}


@dataclass(frozen=True)
class PartFiles:
    """Files of an object's parts.

    Attributes:
        at: Field that lists the parts.
        name: Field of a part that names the folder of its files among those of the object.
        root: Gives where a part's files are; None where it has none of its own.
    """

    at: str
    name: str
    root: Callable[[dict[str, Any]], str | None]


@dataclass(frozen=True)
class GrowingRows:
    """Rows of an object in a table of their own, which are added and do not change.

    Attributes:
        key: Columns that tell them apart.
        ends: Where they are links, which end of them the object is, and of what type.
        is_set: Whether they are set instead: then they may change and go, and prove nothing.
        until: Column that is empty for as long as a row may still change, and is filled then.
        since: Column with the time when a row was added, on the clock of the object's stage.
    """

    key: tuple[str, ...]
    ends: tuple[tuple[str, str], ...] = ()
    is_set: bool = False
    until: str = ""
    since: str = ""


@dataclass(frozen=True)
class Growth:
    """How the objects of a kind grow.

    Attributes:
        stage: Tells from an object's own row how far it has come.
        end: Stage at which it has ended.
        fixed: Columns of its own that never change: another value tells of another object.
        parts: Its rows by table.
        keeps: Columns, and keys of rows that are set, which are the target's own business.
        goes_on: Whether rows are added after its end too. Nothing else changes then.
    """

    stage: Callable[[dict[str, Any]], int]
    end: int
    fixed: frozenset[str]
    parts: dict[str, GrowingRows]
    keeps: frozenset[str] = frozenset()
    goes_on: bool = False


@dataclass(frozen=True)
class Description:
    """All that the package knows of a kind beside the calls that read and write it.

    Attributes:
        kind: The kind.
        since: MLflow's release that had it first in its tables or API, of those since 1.30.
        folder: Folder of an archive, below the experiment or the workspace; empty for kinds that
            have a layout of their own.
        id_field: Field that identifies it.
        known_as: Field that other objects name it by, where it is another one.
        of_experiment: Whether it belongs to an experiment.
        after_traces: Whether it names traces.
        parts: Field that lists parts which are counted as objects of their own, and their kind.
        versions: Folder of an archive and kind of its versions, of one that has numbered ones.
        files: Files that parts of it have.
        lists: Fields that tell the elements of a list apart, by path; without fields the elements
            are texts that stand for themselves.
        refers: What the id at a path names.
        needs: What refuses an object without what it refers to there, by path; names may stand in
            it: fields of the document, ``it`` for the id that is missing, ``named`` for its name
            and ``why`` for the reason.
        drops: What is lost without what it refers to there; ``it`` is the id.
        only: Field and value without which a path names nothing.
        natural: Fields that people know it by.
        unique: Columns of a name that only one can have.
        name: Field of that name.
        numbered: How another name is made of a name and a number.
        joins: Parts that join a namesake, where the policy for conflicts is ``merge``.
        itself: Column that tells it from a namesake in a database, where its id does not.
        same: Fields that tell a copy made by MLflow's API from a namesake.
        rest: Fields that MLflow's REST API cannot keep, by the rule of ``diff`` that says why.
        anew: What it sets anew in every object, for the report.
        parts_anew: The same of the parts.
        rows: Its rows in a database.
        by_mlflow: Why rows alone do not tell what MLflow tells of it; empty where they do.
        unlike: Columns that differ between two deployments of the same object, by table.
        growth: How what a database has of it grows; None where it does not.
        names: Fields with a name that objects know it, or that it knows others by.
        secrets: Fields in whose texts, or in those below them, somebody's secrets may stand.
    """

    kind: Kind
    since: str
    folder: str = ""
    id_field: str = ""
    known_as: str = ""
    of_experiment: bool = False
    after_traces: bool = False
    parts: tuple[str, Kind] | None = None
    versions: tuple[str, Kind] | None = None
    files: PartFiles | None = None
    lists: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    refers: Mapping[str, Kind | ArtifactUri | Json | Listed | Version] = field(default_factory=dict)
    needs: Mapping[str, str] = field(default_factory=dict)
    drops: Mapping[str, str] = field(default_factory=dict)
    only: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    natural: tuple[str, ...] = ("name",)
    unique: tuple[str, ...] = ()
    name: str = "name"
    numbered: str = "{} ({})"
    joins: tuple[str, ...] = ()
    itself: str = ""
    same: tuple[str, ...] = ()
    rest: Mapping[str, str] = field(default_factory=dict)
    anew: str = ""
    parts_anew: str = ""
    rows: TableRows | None = None
    by_mlflow: str = ""
    unlike: Mapping[str, str] = field(default_factory=dict)
    growth: Growth | None = None
    names: str = ""
    secrets: str = ""

    @property
    def is_named(self) -> bool:
        """Whether its id is the name that people know it by, on every deployment."""
        return self.id_column in self.unique

    @property
    def table(self) -> str:
        """The table of its own row, empty without one."""
        return self.rows.table if self.rows else ""

    @property
    def id_column(self) -> str:
        """The column of its id."""
        return self.known_as or self.id_field


def same(names: str, **others: Source) -> dict[str, Source]:
    """Columns that have the names of their fields, and others."""
    return {name: name for name in names.split()} | others


def default(path: str, *, value: Any) -> Source:
    """What stands at a field, a value where there is none."""
    return Kept(path, lambda document: document.get(path, value), lambda kept: kept)


def const(path: str, value: Any) -> Source:
    """The same in every row that is written, for a field that rows of MLflow's tell."""
    return Kept(path, lambda _: value, lambda kept: kept)


def flag(path: str) -> Source:
    """A field that is true or false; some databases keep a number."""
    return Kept(path, lambda document: bool(document.get(path)), bool)


def lower(path: str) -> Source:
    """Text in lower case; the document has it in upper case."""
    return Kept(path, lambda document: document[path].lower(), str.upper)


def as_json(path: str, *, none: Any = "null") -> Source:
    """JSON text, and what stands for nothing."""

    def text(document: dict[str, Any]) -> Any:
        value = document.get(path)
        return none if value is None or (none is None and not value) else json.dumps(value)

    def value(kept: str) -> Any:
        found = json.loads(kept) if kept else None
        return None if none is None and not found else found

    return Kept(path, text, value)


TAG: Mapping[str, Source] = {"key": "key", "value": default("value", value="")}
"""Columns of a tag."""


def _first_without(value: Any) -> tuple[bool, Any]:
    return value is not None, value


def _put(document: dict[str, Any], path: str, value: Any) -> None:
    *owners, last = path.split(".")
    for name in owners:
        document = document.setdefault(name, {})
    document[last] = value


def _at(document: Any, path: str) -> Any:
    *owners, last = path.split(".") if path else ("",)
    for name in owners:
        document = document[name]
    return document.get(last) if last else document
