"""Evaluation datasets with their records: read as documents, and written."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import ServerError
from mlflow_exim_plugin.host.api.reading import pages
from mlflow_exim_plugin.host.documents import proto_document
from mlflow_exim_plugin.host.entities.listing import each, every
from mlflow_exim_plugin.host.errors import translated
from mlflow_exim_plugin.host.open.absent import method
from mlflow_exim_plugin.schema.documents import json_number, sorted_entries
from mlflow_exim_plugin.schema.objects import Entity, Failure, Kind, Loss, by_number
from mlflow_exim_plugin.schema.rules import LIMITS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from mlflow_exim_plugin.host.open.host import Host

__all__ = [
    "READS",
    "add_records",
    "create_dataset",
    "dataset_headers",
    "dataset_records",
    "datasets",
    "link_experiments",
    "linked_experiments",
    "set_dataset_tags",
    "sound_records",
]

_PAGE_RECORDS = 100
"""Records may be large, and a page of them is in memory whatever it holds."""
_EXPERIMENTS = 100


def datasets(host: Host, experiment_ids: Sequence[str] | None = None) -> Iterator[Entity | Failure]:
    """Yield the evaluation datasets with their records, by id.

    Args:
        host: The deployment.
        experiment_ids: Only those linked to one of these; None takes all.
    """
    headers = dataset_headers(host, experiment_ids)

    def read(dataset_id: str) -> Entity:
        linked = linked_experiments(host, dataset_id)
        records, issues = dataset_records(host, dataset_id)
        document = headers[dataset_id] | {"experiment_ids": linked, "records": records}
        return Entity(Kind.EVALUATION_DATASET, document, issues=tuple(issues))

    yield from each(Kind.EVALUATION_DATASET, sorted(headers), read)


def dataset_headers(
    host: Host, experiment_ids: Sequence[str] | None = None
) -> dict[str, dict[str, Any]]:
    """Return the datasets without links and records, by id."""
    groups: list[list[str] | None] = [None]
    if experiment_ids is not None:
        groups = [
            list(experiment_ids[start : start + _EXPERIMENTS])
            for start in range(0, len(experiment_ids), _EXPERIMENTS)
        ]

    with translated("listing the evaluation datasets"):
        return {
            dataset.dataset_id: _header(dataset)
            for group in groups
            for dataset in every(host.tracking, "search_datasets", group)
        }


def _header(dataset: Any) -> dict[str, Any]:
    document = proto_document(dataset)
    document.pop("experiment_ids", None)
    document["tags"] = sorted_entries(
        {key: _text(value) for key, value in (dataset.tags or {}).items()}
    )
    return document


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def linked_experiments(host: Host, dataset_id: str) -> list[str]:
    """Return the ids of the experiments that a dataset is linked to."""
    with translated(f"reading the experiments of dataset {dataset_id}"):
        return sorted(
            map(str, method(host.tracking, "get_dataset_experiment_ids")(dataset_id)),
            key=by_number,
        )


def dataset_records(
    host: Host, dataset_id: str
) -> tuple[list[dict[str, Any]], list[Failure | Loss]]:
    """Return the records of a dataset, oldest first, and what of them cannot be had as it is.

    Raises:
        ServerError: They cannot be read, or are more than one document, and memory, may hold.
    """

    def page(token: str | None) -> Any:
        from mlflow.store.entities import PagedList

        load = host.tracking._load_dataset_records  # noqa: SLF001 - the paged one
        found, following = load(dataset_id, max_results=_PAGE_RECORDS, page_token=token)
        return PagedList(found, following)

    def documents() -> Iterator[dict[str, Any] | Failure]:
        for found in _each_record(host, dataset_id, lambda: pages(page)):
            if isinstance(found, Failure):
                yield found
            else:
                document: dict[str, Any] = found.to_dict()
                del document["dataset_id"]
                yield document

    with translated(f"reading the records of dataset {dataset_id}"):
        return sound_records(dataset_id, documents())


def sound_records(
    dataset_id: str, found: Iterable[dict[str, Any] | Failure]
) -> tuple[list[dict[str, Any]], list[Failure | Loss]]:
    """Return records of a dataset, oldest first, and what of them cannot be had as it is.

    Raises:
        ServerError: They are more than one document, and memory, may hold.
    """
    issues: list[Failure | Loss] = []
    records: list[dict[str, Any]] = []
    size_bytes = 0
    for record in found:
        if isinstance(record, Failure):
            issues.append(record)
            continue
        made: dict[str, Any] = _finite(record)
        if made != record:
            name = f"{dataset_id}/{record['dataset_record_id']}"
            what = "it holds NaN or an infinity, which JSON cannot: kept as text"
            issues.append(Loss(Kind.DATASET_RECORD, name, what))
        # Characters, at most the bytes that they are stored in.
        size_bytes += len(json.dumps(made, ensure_ascii=False))
        if size_bytes > LIMITS.document_bytes:
            raise ServerError(
                f"its records are over the {LIMITS.document_bytes} bytes of one document"
            )
        records.append(made)
    records.sort(key=lambda record: (record["created_time"], record["dataset_record_id"]))
    return records, issues


def _each_record(host: Host, dataset_id: str, listed: Callable[[], Iterator[Any]]) -> Iterator[Any]:
    """Yield the records, each by itself where a database has one that no listing passes."""
    seen: set[str] = set()
    try:
        with translated("listing them"):
            for found in listed():
                seen.add(found.dataset_record_id)
                yield found
    except ServerError:
        if host.tables is None:
            raise
    else:
        return
    from mlflow.store.tracking.dbmodels.models import SqlEvaluationDatasetRecord as Stored

    table, its = Stored.__tablename__, {"dataset_id": dataset_id}
    for identity in host.tables.values(table, "dataset_record_id", **its):
        if identity in seen:
            continue
        try:
            with (
                translated(f"reading record {identity}"),
                host.tracking.ManagedSessionMaker() as session,
            ):
                row = session.query(Stored).filter_by(dataset_record_id=identity).one()
                found = row.to_mlflow_entity()
                found.to_dict()
            yield found
        except ServerError as error:
            yield Failure(Kind.DATASET_RECORD, f"{dataset_id}/{identity}", error.message)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return json_number(value) if isinstance(value, float) else value


def create_dataset(host: Host, name: str, tags: dict[str, str], experiment_ids: list[str]) -> str:
    """Create an evaluation dataset without records and return its id."""
    with translated(f"creating dataset {name!r}"):
        dataset = method(host.tracking, "create_dataset")(name, tags, experiment_ids)
    return str(dataset.dataset_id)


def set_dataset_tags(host: Host, dataset_id: str, tags: dict[str, str]) -> None:
    """Set tags of a dataset; the others stay."""
    with translated(f"tagging dataset {dataset_id}"):
        host.tracking.set_dataset_tags(dataset_id, tags)


def link_experiments(host: Host, dataset_id: str, experiment_ids: list[str]) -> None:
    """Link a dataset to more experiments."""
    with translated(f"linking dataset {dataset_id} to experiments"):
        method(host.tracking, "add_dataset_to_experiments")(dataset_id, experiment_ids)


def add_records(host: Host, dataset_id: str, records: list[dict[str, Any]]) -> None:
    """Add records in one call."""
    with translated(f"adding records to dataset {dataset_id}"):
        host.tracking.upsert_dataset_records(
            dataset_id, [{field: record.get(field) for field in _SETTABLE} for record in records]
        )


_SETTABLE = ("inputs", "outputs", "expectations", "tags", "source")


READS = {
    Kind.EVALUATION_DATASET: datasets,
}
"""What reads each kind."""
