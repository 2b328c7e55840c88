"""What a catalogue says of objects, made of their documents; no metric row is ever looked at."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from mlflow_exim_plugin.kinds import KINDS, Kind
from mlflow_exim_plugin.schema.lineage import sources_of, tags_of
from mlflow_exim_plugin.schema.objects import (
    Entity,
    Experiment,
    LoggedModel,
    ModelVersion,
    RegisteredModel,
    Run,
    key_values,
)
from mlflow_exim_plugin.schema.provenance import experiment_origin, model_origin
from mlflow_exim_plugin.sets.catalogue.tables import (
    EARLIER,
    ID,
    ORIGIN,
    TABLES,
    column_tables,
    hash_of,
    numbered,
    shortened,
    sorted_rows,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from mlflow_exim_plugin.schema.lineage import Tagged

__all__ = ["ArchiveTold", "CatalogueRows", "File"]

_USER = "mlflow.user"
_RUN_NAME = "mlflow.runName"
_MODEL_VERSIONS = "mlflow.modelVersions"
_CREATED = (
    *("creation_timestamp", "creation_time", "created_time", "created_at", "create_time_ms"),
    "creation_timestamp_ms",
)
_CARRIED = ("mlflow_exim", "mlflow.exim.", "mlflow_export_import")
_INT64_END = 1 << 63
_FLUSHED_ROWS = 1 << 18
"""Rows that wait as objects of Python, which take ten times as much as in columns."""

File = tuple[str, str, int]
"""SHA-256, path and size in bytes."""


@dataclass(frozen=True)
class ArchiveTold:
    """The archive that objects are of.

    Attributes:
        archive: Its path below the folder or set.
        root: Its root, hex.
        size_bytes: Its size.
        mark: What its store calls its version.
        packed_ms: When it was packed, ms since the Unix epoch.
        source: Where from.
        snapshot: Of a set, the first snapshot that names it.
    """

    archive: str
    root: str
    size_bytes: int
    mark: str
    packed_ms: int
    source: str
    snapshot: int | None = None


@dataclass
class _Object:
    """What is said of one object, before any of it stands in a table."""

    kind: Kind
    id: str
    name: str = ""
    origin: str | None = None
    experiment: tuple[str, str] | None = None
    user: str | None = None
    status: str | None = None
    stage: str | None = None
    start_ms: Any = None
    end_ms: Any = None
    earlier: list[str] = field(default_factory=list)
    values: list[tuple[str, str, str]] = field(default_factory=list)
    metrics: list[tuple[str, float, int | None, int | None]] = field(default_factory=list)
    files: list[File] = field(default_factory=list)


class CatalogueRows:
    """Collects rows of the objects of one archive after the other.

    Attributes:
        objects: How many objects there are.
        waiting: How many rows of all tables there are.
    """

    def __init__(self) -> None:
        self.objects = 0
        self.waiting = 0
        self._columns = {name: _empty(name) for name in TABLES}
        self._flushed: dict[str, list[pa.Table]] = {name: [] for name in TABLES}
        self._since_flush = 0
        self._archive: ArchiveTold | None = None
        self._workspace = "default"
        self._of_archive = 0
        self._unread = 0

    def begin(self, archive: ArchiveTold) -> None:
        """Take the objects that follow as an archive's."""
        self._archive = archive
        self._workspace = "default"
        self._of_archive = self._unread = 0

    def workspace(self, name: str) -> None:
        """Take the objects that follow as a workspace's."""
        self._workspace = name

    def unread(self) -> None:
        """Count an object that could not be read."""
        self._unread += 1

    def end(self) -> None:
        """Close the archive."""
        told = self._told_archive
        row = {
            "archive": told.archive,
            "root": told.root,
            "size_bytes": told.size_bytes,
            "mark": told.mark,
            "packed_ms": told.packed_ms,
            "snapshot": told.snapshot,
            "source": told.source,
            "objects": self._of_archive,
            "unread": self._unread,
        }
        for name, value in row.items():
            self._columns["archives"][name].append(value)
        self._count(1)
        self._archive = None

    def experiment(self, document: dict[str, Any]) -> None:
        """Add an experiment."""
        item = Experiment(document)
        tags = tags_of(item)
        told = _Object(Kind.EXPERIMENT, item.id, item.name, origin=experiment_origin(document))
        told.experiment = (item.id, item.name)
        told.stage = _text(document.get("lifecycle_stage"))
        told.start_ms = document.get("creation_time")
        told.user = tags.get("mlflow.experiment.createdBy") or tags.get(_USER)
        self._add(told, item, tags)

    def run(
        self,
        document: dict[str, Any],
        experiment: str,
        files: Iterable[File],
        versions: Iterable[tuple[str, str]] = (),
    ) -> None:
        """Add a run.

        Args:
            document: REST's.
            experiment: Name of its experiment.
            files: Its artifacts.
            versions: Name and number of versions of models that were made of it.
        """
        item, info = Run(document), document["info"]
        data = document.get("data") or {}
        told = _Object(Kind.RUN, item.id, str(info.get("run_name") or item.tags.get(_RUN_NAME, "")))
        told.experiment = (item.experiment_id, experiment)
        told.user = _text(info.get("user_id")) or item.tags.get(_USER)
        told.status, told.stage = _text(info.get("status")), _text(info.get("lifecycle_stage"))
        told.start_ms, told.end_ms = info.get("start_time"), info.get("end_time")
        told.files = list(files)
        told.metrics = list(_metrics(data.get("metrics")))
        told.values = [("param", k, v) for k, v in key_values(data.get("params")).items()]
        told.values += [("model", name, number) for name, number in versions]
        for entry in (document.get("inputs") or {}).get("dataset_inputs") or ():
            dataset = entry["dataset"]
            told.values.append(("dataset", str(dataset["digest"]), str(dataset["name"])))
        self._add(told, item, item.tags)

    def logged_model(
        self, document: dict[str, Any], experiment: str, files: Iterable[File]
    ) -> None:
        """Add a logged model.

        Args:
            document: REST's.
            experiment: Name of its experiment.
            files: Its artifacts.
        """
        item, info = LoggedModel(document), document["info"]
        data = document.get("data") or {}
        told = _Object(Kind.LOGGED_MODEL, item.id, str(info.get("name") or ""))
        told.experiment = (item.experiment_id, experiment)
        told.user = item.tags.get(_USER)
        told.status, told.stage = _text(info.get("status")), _text(info.get("lifecycle_stage"))
        told.start_ms = info.get("creation_timestamp_ms")
        told.files = list(files)
        told.metrics = list(_metrics(data.get("metrics")))
        told.values = [("param", k, v) for k, v in key_values(data.get("params")).items()]
        told.values += _versions_of(item.tags.get(_MODEL_VERSIONS))
        self._add(told, item, item.tags)

    def model(self, kind: Kind, document: dict[str, Any]) -> None:
        """Add a registered model or prompt."""
        item = RegisteredModel(document)
        told = _Object(kind, item.name, item.name, origin=model_origin(document))
        told.start_ms = document.get("creation_timestamp")
        told.values = [("model", item.name, "")]
        tags = key_values(document.get("tags"))
        told.user = _text(document.get("user_id")) or tags.get(_USER)
        self._add(told, item, tags)

    def version(
        self, kind: Kind, document: dict[str, Any], model: dict[str, Any], files: Iterable[File]
    ) -> None:
        """Add a version of a registered model or prompt.

        Args:
            kind: Its kind.
            document: REST's.
            model: REST's of the model; empty where that could not be read.
            files: Its own artifacts.
        """
        name, number = str(document["name"]), str(document["version"])
        origin = f"{model_origin(model or {'name': name})}/{number}"
        told = _Object(kind, f"{name}/{number}", name, origin=origin)
        told.user, told.status = _text(document.get("user_id")), _text(document.get("status"))
        told.start_ms = document.get("creation_timestamp")
        told.values = [("model", name, number)]
        told.files = list(files)
        self._add(told, ModelVersion(document), key_values(document.get("tags")))

    def trace(
        self,
        trace_id: str,
        experiment: tuple[str, str],
        times_ms: tuple[int | None, int | None],
        state: str | None,
        files: Iterable[File],
    ) -> None:
        """Add a trace.

        Args:
            trace_id: Its id.
            experiment: Id and name of its experiment.
            times_ms: Its request, and how long it took.
            state: Its state.
            files: Its attachments.
        """
        start_ms, took_ms = times_ms
        told = _Object(Kind.TRACE, trace_id, experiment=experiment, status=state, start_ms=start_ms)
        told.end_ms = None if start_ms is None or took_ms is None else start_ms + took_ms
        told.files = list(files)
        self._add(told, None, {})

    def entity(
        self,
        kind: Kind,
        document: dict[str, Any],
        experiment: tuple[str, str] | None,
        files: Iterable[File],
    ) -> None:
        """Add an object that is one document.

        Args:
            kind: Its kind.
            document: REST's.
            experiment: Id and name of its experiment.
            files: Its artifacts.
        """
        spec = KINDS[kind]
        identity = str(document[spec.id_field])
        told = _Object(kind, identity, str(document.get(spec.name) or ""), experiment=experiment)
        if spec.is_named or spec.id_field in spec.natural:  # which every place has anew
            of = experiment[0] if experiment else ""
            place = f"{self._told_archive.source} {self._workspace}"
            told.origin = f"{place} {kind} {of} {identity}"
        created = (document.get(name) for name in _CREATED)
        told.start_ms = next((time for time in created if isinstance(time, int)), None)
        told.user = _text(document.get("created_by"))
        told.files = list(files)
        if kind is Kind.EVALUATION_DATASET and document.get("digest"):
            told.values = [("dataset", str(document["digest"]), told.name)]
        tags = document.get("tags")
        named = {k: str(v) for k, v in tags.items()} if isinstance(tags, dict) else key_values(tags)
        self._add(told, Entity(kind, document), named)

    def take(self, other: CatalogueRows) -> None:
        """Take over the rows of another one, which is of no use then."""
        self._flush()
        other._flush()
        for name, tables in other._flushed.items():
            at = TABLES[name].schema.get_field_index("object")
            for table in tables:
                moved = table
                if at >= 0:
                    now = pc.add(table.column("object"), pa.scalar(self.objects, pa.int64()))
                    moved = table.set_column(at, TABLES[name].schema.field(at), now)
                self._flushed[name].append(moved)
        self.objects += other.objects
        self.waiting += other.waiting

    def tables(self, part: int) -> dict[str, pa.Table]:
        """Return all rows that were collected, sorted, as those of a part of this number."""
        self._flush()
        found = {
            name: pa.concat_tables([TABLES[name].schema.empty_table(), *self._flushed[name]])
            for name in TABLES
        }
        objects = sorted_rows(found["objects"], TABLES["objects"])
        rows = pa.array(range(len(objects)), pa.int64())
        numbers = numbered(part, rows)
        # The place of each object, as it came, among the sorted ones.
        places = pc.sort_indices(objects.column("object"))
        made = {"objects": objects.set_column(0, TABLES["objects"].schema.field(0), numbers)}
        for name, kind in TABLES.items():
            table = found[name]
            if name == "objects":
                continue
            if (at := kind.schema.get_field_index("object")) >= 0:
                now = numbers.take(places.take(table.column("object")))
                table = table.set_column(at, kind.schema.field(at), now)
            made[name] = sorted_rows(table, kind)
        return {name: made[name] for name in TABLES}

    @property
    def _told_archive(self) -> ArchiveTold:
        if self._archive is None:
            raise AssertionError("no archive was begun")
        return self._archive

    def _add(self, told: _Object, item: Tagged | None, tags: Mapping[str, str]) -> None:
        """Add the rows of one object: all of them, or none where its document is odd."""
        archive = self._told_archive
        if item is not None and any(key.startswith(_CARRIED) for key in tags):
            origins = (record.origin for record in sources_of(item))
            told.earlier = [origin for origin in origins if origin]
        values = [("kind", "", str(told.kind)), *told.values]
        values += [("tag", key, value) for key, value in tags.items()]
        values += [(name, "", text) for name, text in _plain(told) if text]
        if told.experiment:
            values.append(("experiment", *told.experiment))
        ids = [(told.id, ID), *((earlier, EARLIER) for earlier in told.earlier)]
        if told.origin is not None:
            ids.append((told.origin, ORIGIN))
        experiment_id, experiment = told.experiment or (None, None)
        number = self.objects
        row = (
            *(number, archive.archive, archive.packed_ms, archive.source, self._workspace),
            *(str(told.kind), told.id, told.origin, told.name, experiment_id, experiment),
            *(told.user, told.status, told.stage, _int(told.start_ms), _int(told.end_ms)),
        )
        of = self._columns
        for column, value in zip(of["objects"].values(), row, strict=True):
            column.append(value)
        _append(of["hashes"], (hash_of(told.id if told.origin is None else told.origin), number))
        for one, how in dict.fromkeys(ids):
            _append(of["ids"], (one, how, archive.packed_ms, number))
        for name, key, text in dict.fromkeys(values):
            _append(of["values"], (name, shortened(key), shortened(text), number))
        for key, last, step, timestamp in told.metrics:
            _append(of["metrics"], (shortened(key), last, number, step, timestamp))
        for sha256, path, size_bytes in told.files:
            _append(of["files"], (sha256, number, path, size_bytes))
        self.objects += 1
        self._of_archive += 1
        self._count(1 + len(ids) + len(values) + len(told.metrics) + len(told.files))

    def _count(self, rows: int) -> None:
        self.waiting += rows
        self._since_flush += rows
        if self._since_flush >= _FLUSHED_ROWS:
            self._flush()

    def _flush(self) -> None:
        self._since_flush = 0
        for name, columns in self._columns.items():
            if any(columns.values()):
                self._flushed[name].append(column_tables(TABLES[name], columns))
                self._columns[name] = _empty(name)


def _empty(name: str) -> dict[str, list[Any]]:
    return {column: [] for column in TABLES[name].schema.names}


def _append(columns: dict[str, list[Any]], row: tuple[Any, ...]) -> None:
    for column, value in zip(columns.values(), row, strict=True):
        column.append(value)


def _plain(told: _Object) -> Iterator[tuple[str, str | None]]:
    yield "name", told.name
    yield "user", told.user


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _int(value: Any) -> int | None:
    """Return a number that a column can hold, None for anything else."""
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return value if is_number and -_INT64_END <= value < _INT64_END else None


def _metrics(
    entries: Iterable[Mapping[str, Any]] | None,
) -> Iterator[tuple[str, float, int | None, int | None]]:
    """Yield key, last value, step and time of each metric."""
    for entry in entries or ():
        # One that is NaN or infinite is a text in documents.
        value = float(entry["value"])
        yield str(entry["key"]), value, _int(entry.get("step")), _int(entry.get("timestamp"))


def _versions_of(tag: str | None) -> Iterator[tuple[str, str, str]]:
    """Yield which versions of models a logged model became."""
    try:
        named = json.loads(tag or "[]")
        yield from [("model", str(of["name"]), str(of["version"])) for of in named]
    except (KeyError, TypeError, ValueError, RecursionError):
        return  # it is no list of them
