"""The objects of an archive as rows of a state, from what its envelopes say."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mlflow_exim_plugin.container import layout
from mlflow_exim_plugin.kinds import ENTITY_KINDS, VERSION_KINDS, Kind
from mlflow_exim_plugin.schema.digests import raw_digest
from mlflow_exim_plugin.schema.envelope import (
    EntityEnvelope,
    ExperimentEnvelope,
    ModelEnvelope,
    RunEnvelope,
    TracePartEnvelope,
    VersionEnvelope,
    check_document,
    check_entity,
)
from mlflow_exim_plugin.schema.objects import Entity
from mlflow_exim_plugin.schema.tables import in_one_piece
from mlflow_exim_plugin.schema.traces import TABLES
from mlflow_exim_plugin.sets.state import Row
from mlflow_exim_plugin.sinks.counting import parts_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    from mlflow_exim_plugin.container.members import Members
    from mlflow_exim_plugin.schema.envelope import ArtifactEntry

__all__ = ["rows_of"]


def rows_of(members: Members) -> dict[str, Row]:
    """Return the objects of an archive or snapshot by path, without marks.

    Raises:
        InvalidArchiveError: An envelope or a table of traces is damaged.
    """
    found = [(path, at) for path in members.paths(layout.TREE) if (at := layout.object_at(path))]
    members.expect(path for path, _ in found)
    rows: dict[str, Row] = {}
    for path, at in found:
        document = members.read_document(path)
        if at.kind is Kind.TRACE:
            part = check_document(TracePartEnvelope, document, path)
            rows.update(_traces(members, part, at.experiment_folder))
            continue
        plain, row = _row(document, path, at)
        rows[plain] = replace(row, member=path if plain != path else "")
    return rows


def _row(document: Any, path: str, at: layout.ObjectPath) -> tuple[str, Row]:
    envelope = check_document(EntityEnvelope, document, path)
    info = envelope.info
    digest = raw_digest(info.content_digest)
    if at.kind is Kind.RUN:
        run = check_document(RunEnvelope, document, path)
        metrics, files = run.info.metrics, _files(run.info.artifacts)
        rows = (metrics.keys, metrics.rows) if metrics else (0, 0)
        start_ms = run.mlflow.run["info"].get("start_time")
        return path, Row(at.kind, digest, parts=(*rows, *files, 0, 0, 0), start_ms=start_ms)
    if at.kind is Kind.EXPERIMENT:
        experiment = check_document(ExperimentEnvelope, document, path).mlflow.experiment
        return path, Row(at.kind, digest, name=str(experiment["name"]))
    if at.kind in VERSION_KINDS:
        name = str(check_document(ModelEnvelope, document, path).mlflow.registered_model["name"])
        return at.unnumbered(name), Row(at.kind, digest, name=name)
    row = Row(at.kind, digest, parts=(0, 0, *_files(info.artifacts), 0, 0, 0))
    if at.model is not None:
        version = check_document(VersionEnvelope, document, path).mlflow.model_version
        return at.unnumbered(str(version["name"])), row
    if at.kind in ENTITY_KINDS:
        entity = check_entity(envelope, at.kind, path)
        name = str(entity[ENTITY_KINDS[at.kind].id_field])
        records = sum(count for _, count in parts_of(Entity(at.kind, entity)))
        parts = (*row.parts[:-1], records)
        shown = name if at.kind is Kind.WORKSPACE else ""
        return at.unnumbered(name), replace(row, parts=parts, name=shown)
    return path, row


def _traces(
    members: Members, part: TracePartEnvelope, experiment: str
) -> Iterator[tuple[str, Row]]:
    files: dict[str, list[ArtifactEntry]] = {}
    for entry in part.info.attachments:
        files.setdefault(entry.trace_id, []).append(entry)
    table = part.info.tables.get("traces")
    if table is None:
        return
    hidden = members.hidden_traces(table.member)
    names = ["trace_id", "content_digest", "spans", "assessments"]
    opened = members.open_table(table.member, TABLES["traces"], "E062")
    try:
        for number in range(len(opened.groups)):
            group = opened.row_group(number, names)
            columns = (in_one_piece(group.column(name)).to_pylist() for name in names)
            for trace_id, digest, spans, assessments in zip(*columns, strict=True):
                if trace_id in hidden:
                    continue
                parts = (0, 0, *_files(files.get(trace_id, ())), spans or 0, assessments or 0, 0)
                path = layout.trace_path(experiment, trace_id)
                yield path, Row(Kind.TRACE, raw_digest(digest), parts=parts)
    finally:
        opened.close()


def _files(entries: Iterable[ArtifactEntry]) -> tuple[int, int]:
    """Return how many files there are, and their bytes."""
    sizes = [entry.size_bytes for entry in entries]
    return len(sizes), sum(sizes)
