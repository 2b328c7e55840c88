"""Evaluation datasets with their records to a deployment; their tags say where they came from."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.host.api.halving import send_halving
from mlflow_exim_plugin.host.entities import datasets
from mlflow_exim_plugin.schema.canonical import canonical_bytes, content_digest
from mlflow_exim_plugin.schema.objects import Entity, Failure, Kind, Loss, key_values
from mlflow_exim_plugin.schema.provenance import (
    AS_OF_MS,
    CONTENT,
    ORIGIN,
    chained,
    is_provenance,
    newest,
    origins,
    told,
)
from mlflow_exim_plugin.sinks.references import follow
from mlflow_exim_plugin.sinks.server.target import FamilyWriter

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mlflow_exim_plugin.errors import ServerError
    from mlflow_exim_plugin.schema.report import Report
    from mlflow_exim_plugin.sinks.server.target import Destination, ServerTarget

__all__ = ["writers"]

_BATCH = 500
_BATCH_BYTES = 500_000


class DatasetWriter(FamilyWriter):
    """Writes evaluation datasets. Names are not unique, so nothing is ever in the way."""

    def __init__(self, target: ServerTarget) -> None:
        super().__init__(target)
        self._by_origin: dict[str, dict[str, Any]] | None = None

    def write(self, entity: Entity, to: Destination, report: Report) -> None:  # noqa: ARG002 - it belongs to no experiment
        """Write one dataset with its records, or what is missing of it."""
        records: list[dict[str, Any]] = entity.document.get("records", [])
        host, dry_run = self._target.host, self._target.options.dry_run
        content = entity.digest or content_digest(entity.document)
        came_from = origins(entity.id, key_values(entity.document.get("tags")))
        there = next((self._known()[i] for i in came_from if i in self._known()), None)
        followed, losses = follow(entity, self._target.ids.get)
        experiment_ids = followed.get("experiment_ids", [])
        # What comes back gets no marks: it is no copy.
        is_original = there is not None and there["dataset_id"] in came_from
        dataset_id, tags, unlinked = "", {}, []
        present: dict[bytes, dict[str, Any]] = {}
        if there is not None:
            dataset_id, tags = there["dataset_id"], key_values(there["tags"])
            linked = datasets.linked_experiments(host, dataset_id)
            unlinked = [e for e in experiment_ids if e not in linked]
        elif not dry_run:
            dataset_id = self._create(entity, experiment_ids)
        for loss in losses:
            report.lost(loss)
        self._target.ids.know(Kind.EVALUATION_DATASET, entity.id, dataset_id)
        if there is not None and told(tags, CONTENT) == content and not unlinked:
            self._put_source_tags(entity, dataset_id, tags, report)
            report.skipped(entity.kind, entity.id, "it is there already")
            reason = "their dataset is there already"
            report.skipped(Kind.DATASET_RECORD, entity.id, reason, len(records))
            return
        if there is not None:
            found, _ = datasets.dataset_records(host, dataset_id)
            present = {_key(record): record for record in found}
        missing = [record for record in records if _key(record) not in present]
        # Once a dataset has outputs that are no object, MLflow takes no objects any more (500).
        missing.sort(key=lambda record: not isinstance(record.get("outputs"), dict))
        refused: list[tuple[dict[str, Any], ServerError]] = []
        arrived = True
        if not is_original:
            self._put_source_tags(entity, dataset_id, {}, report)
        if not dry_run:
            if unlinked:
                datasets.link_experiments(host, dataset_id, unlinked)
            add = partial(datasets.add_records, host, dataset_id)
            refused = send_halving(_batches(missing), add)
            not_sent = {id(record) for record, _ in refused}
            sent = [record for record in missing if id(record) not in not_sent]
            arrived = self._arrived(entity, dataset_id, sent, report)
        for record, error in refused:
            name = f"{entity.id}/{record['dataset_record_id']}"
            report.failed(Failure(Kind.DATASET_RECORD, name, error.message))
        if written := len(missing) - len(refused):
            report.written(Kind.DATASET_RECORD, written)
        report.skipped(
            Kind.DATASET_RECORD, entity.id, "they are there already", len(records) - len(missing)
        )
        self._say_differing(entity, records, present, report)
        if there is not None and not unlinked and not written:
            report.skipped(entity.kind, entity.id, "it is there already")
            return
        if arrived and not (refused or dry_run or is_original):
            datasets.set_dataset_tags(
                host, dataset_id, {CONTENT: content, AS_OF_MS: str(entity.as_of_ms)}
            )
        report.written(entity.kind)

    def _create(self, entity: Entity, experiment_ids: list[str]) -> str:
        tags = key_values(entity.document.get("tags"))
        own = {key: value for key, value in tags.items() if not is_provenance(key)}
        marked = own | {ORIGIN: chained(entity.id, tags)}
        name = str(entity.document["name"])
        dataset_id = datasets.create_dataset(self._target.host, name, marked, experiment_ids)
        # What came before it in the stream may fail and come again in a later unpack.
        self._known()[entity.id] = {"dataset_id": dataset_id, "tags": []}
        return dataset_id

    def _put_source_tags(
        self, entity: Entity, dataset_id: str, there: dict[str, str], report: Report
    ) -> None:
        def send(tags: dict[str, str]) -> None:
            datasets.set_dataset_tags(self._target.host, dataset_id, tags)

        if not self._target.options.dry_run:
            self._target.source_tags.put(entity, there, send, report)

    def _say_differing(
        self,
        entity: Entity,
        records: list[dict[str, Any]],
        present: dict[bytes, dict[str, Any]],
        report: Report,
    ) -> None:
        changed = 0
        for record in records:
            there = present.get(_key(record))
            if there and any(
                (record.get(f) or None) != (there.get(f) or None)
                for f in ("outputs", "expectations", "tags", "source")
            ):
                changed += 1
        if changed:
            report.lost(
                Loss(
                    entity.kind,
                    entity.id,
                    f"{changed} of its records are other there and stay as they are",
                )
            )

    def _arrived(
        self, entity: Entity, dataset_id: str, sent: list[dict[str, Any]], report: Report
    ) -> bool:
        """Whether all records are there; name those that are not, and what is not kept of others.

        MLflow 3.4 takes outputs of records and knows none.
        """
        if not sent:
            return True
        found, _ = datasets.dataset_records(self._target.host, dataset_id)
        there = {_key(record): record for record in found}
        pairs = [(record, there.get(_key(record))) for record in sent]
        gone = [record for record, copy in pairs if copy is None]
        said = {"": gone} | {
            f"{name} of ": [r for r, copy in pairs if copy and r.get(name) and not copy.get(name)]
            for name in ("outputs", "expectations")
        }
        for what, lost in said.items():
            if lost:
                whole = f"{what}{len(lost)} of its records did not arrive"
                report.lost(Loss(entity.kind, entity.id, whole))
        return not gone

    def _known(self) -> dict[str, dict[str, Any]]:
        if self._by_origin is None:
            self._by_origin = {}
            for header in datasets.dataset_headers(self._target.host).values():
                self._by_origin[str(header["dataset_id"])] = header
                if origin := told(key_values(header["tags"]), ORIGIN):
                    self._by_origin[newest(origin)] = header
        return self._by_origin


def _key(record: dict[str, Any]) -> bytes:
    """Return what MLflow tells records of a dataset apart by."""
    return canonical_bytes(record.get("inputs", {}))


def _batches(records: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Yield records in groups that one request may hold."""
    batch: list[dict[str, Any]] = []
    size = 0
    for record in records:
        record_size = len(canonical_bytes(record))
        if batch and (len(batch) >= _BATCH or size + record_size > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(record)
        size += record_size
    if batch:
        yield batch


def writers(target: ServerTarget, _: Mapping[Kind, Any]) -> dict[Kind, FamilyWriter]:
    """Make what writes each kind."""
    return {Kind.EVALUATION_DATASET: DatasetWriter(target)}
