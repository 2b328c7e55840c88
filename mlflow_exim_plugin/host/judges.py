"""Scorers, label schemas, issues and review queues of an experiment, as documents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import ServerError, ServerLostError
from mlflow_exim_plugin.host.absent import method
from mlflow_exim_plugin.host.connection import Host, translated
from mlflow_exim_plugin.host.documents import proto_document
from mlflow_exim_plugin.host.reading import pages
from mlflow_exim_plugin.schema.objects import Entity, Failure, Kind

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "DEFAULT_SCHEMA",
    "all_issues",
    "issue_document",
    "issues",
    "label_schemas",
    "queue_items",
    "review_queues",
    "schemas_can_be_listed",
    "scorer_versions",
    "scorers",
]

DEFAULT_SCHEMA = "Feedback"
"""Name of the label schema that MLflow adds to an experiment by itself."""
_PAGE = 1000


def scorers(host: Host, experiment_id: str) -> Iterator[Entity | Failure]:
    """Yield the scorers of an experiment with all their versions, by name."""
    with translated(f"listing the scorers of experiment {experiment_id}"):
        latest = method(host.tracking, "list_scorers")(experiment_id)
    for name in sorted({scorer.scorer_name for scorer in latest}):
        try:
            versions = scorer_versions(host, experiment_id, name)
            scorer_id = versions[-1].get("scorer_id") or name
            configs = _online_configs(host, scorer_id)
        except ServerLostError:
            raise
        except ServerError as error:
            yield Failure(Kind.SCORER, name, error.message)
            continue
        document: dict[str, Any] = {
            "scorer_name": name,
            "scorer_id": scorer_id,
            "experiment_id": experiment_id,
            "versions": [
                {k: v for k, v in version.items() if k not in _OF_ALL_VERSIONS}
                for version in versions
            ],
        }
        if configs:
            document["online_configs"] = configs
        yield Entity(Kind.SCORER, document, experiment_id)


_OF_ALL_VERSIONS = {"experiment_id", "scorer_name", "scorer_id"}


def scorer_versions(host: Host, experiment_id: str, name: str) -> list[dict[str, Any]]:
    """Return every version of a scorer as REST's ``Scorer``, by number."""
    with translated(f"listing the versions of scorer {name!r}"):
        listed = method(host.tracking, "list_scorer_versions")(experiment_id, name)
        documents = [proto_document(version) for version in listed]
    return sorted(documents, key=lambda document: int(document["scorer_version"]))


def _online_configs(host: Host, scorer_id: str) -> list[dict[str, Any]]:
    if not hasattr(host.tracking, "get_online_scoring_configs"):
        return []
    with translated("reading when scorers run by themselves"):
        configs = host.tracking.get_online_scoring_configs([scorer_id])
    documents = [
        {
            "online_scoring_config_id": config.online_scoring_config_id,
            "experiment_id": str(config.experiment_id),
            "sample_rate": config.sample_rate,
            "filter_string": config.filter_string,
        }
        for config in configs
    ]
    documents.sort(key=lambda document: str(document["online_scoring_config_id"]))
    return [{k: v for k, v in document.items() if v is not None} for document in documents]


def label_schemas(host: Host, experiment_id: str) -> Iterator[Entity | Failure]:
    """Yield the label schemas of an experiment, oldest first, and write nothing.

    MLflow's listing adds a default schema to an experiment that has none. A database is read by
    its table; a server is asked for a listing only where the default schema is there already,
    else for those that review queues name.
    """
    if not host.is_http:
        found = _schemas_in_database(host, experiment_id)
    elif schemas_can_be_listed(host, experiment_id):
        with translated(f"listing the label schemas of experiment {experiment_id}"):
            found = [
                proto_document(schema)
                for schema in pages(
                    lambda token: method(host.tracking, "list_label_schemas")(
                        experiment_id, _PAGE, token
                    )
                )
            ]
    else:
        found = []
        for schema_id in _schema_ids_of_queues(host, experiment_id):
            try:
                with translated(f"reading label schema {schema_id}"):
                    found.append(proto_document(host.tracking.get_label_schema(schema_id)))
            except ServerLostError:
                raise
            except ServerError as error:
                if getattr(error.__cause__, "error_code", "") != "RESOURCE_DOES_NOT_EXIST":
                    yield Failure(Kind.LABEL_SCHEMA, schema_id, error.message)
    found.sort(key=lambda document: (document.get("created_at", 0), document["schema_id"]))
    for document in found:
        yield Entity(Kind.LABEL_SCHEMA, document, experiment_id)


def schemas_can_be_listed(host: Host, experiment_id: str) -> bool:
    """Whether listing the label schemas of an experiment writes nothing."""
    try:
        with translated(f"looking for the default label schema of experiment {experiment_id}"):
            schema = method(host.tracking, "get_label_schema_by_name")(
                experiment_id, DEFAULT_SCHEMA
            )
    except ServerError as error:
        if getattr(error.__cause__, "error_code", "") == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
    return bool(schema.is_default)


def _schemas_in_database(host: Host, experiment_id: str) -> list[dict[str, Any]]:
    """Read the table itself: the store's own way writes."""
    with translated(f"reading the label schemas of experiment {experiment_id}"):
        try:
            from mlflow.store.tracking.dbmodels.models import SqlLabelSchema
        except ImportError as error:
            raise NotImplementedError("this MLflow has no label schemas") from error
        with method(host.tracking, "ManagedSessionMaker")() as session:
            rows = session.query(SqlLabelSchema).filter(
                SqlLabelSchema.experiment_id == int(experiment_id)
            )
            return [proto_document(row.to_mlflow_entity()) for row in rows]


def _schema_ids_of_queues(host: Host, experiment_id: str) -> list[str]:
    with translated(f"listing the review queues of experiment {experiment_id}"):
        return sorted(
            {schema_id for queue in _queues(host, experiment_id) for schema_id in queue.schema_ids}
        )


def all_issues(host: Host) -> dict[str, list[dict[str, Any]]]:
    """Return every issue by experiment, oldest first; one listing has them all."""
    return _issues(host, None)


def issues(host: Host, experiment_id: str) -> list[dict[str, Any]]:
    """Return the issues of one experiment, oldest first."""
    return _issues(host, experiment_id).get(experiment_id, [])


def _issues(host: Host, experiment_id: str | None) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    with translated("listing the issues"):
        for issue in pages(
            lambda token: method(host.tracking, "search_issues")(experiment_id, None, _PAGE, token)
        ):
            found.setdefault(str(issue.experiment_id), []).append(issue_document(issue))
    for documents in found.values():
        documents.sort(key=lambda document: (document["created_timestamp"], document["issue_id"]))
    return found


def issue_document(issue: Any) -> dict[str, Any]:
    """Return REST's ``Issue``."""
    document = proto_document(issue)
    document.pop("trace_count", None)  # counted, not stored
    return document


def review_queues(host: Host, experiment_id: str) -> Iterator[Entity | Failure]:
    """Yield the review queues of an experiment with their items, by name."""
    with translated(f"listing the review queues of experiment {experiment_id}"):
        queues = [proto_document(queue) for queue in _queues(host, experiment_id)]
    for document in sorted(queues, key=lambda queue: str(queue["name"])):
        for field in ("users", "schema_ids"):
            document[field] = sorted(document.get(field, ()))
        try:
            document["items"] = queue_items(host, document["queue_id"])
        except ServerLostError:
            raise
        except ServerError as error:
            yield Failure(Kind.REVIEW_QUEUE, document["queue_id"], error.message)
            continue
        yield Entity(Kind.REVIEW_QUEUE, document, experiment_id)


def _queues(host: Host, experiment_id: str) -> Iterator[Any]:
    return pages(
        lambda token: method(host.tracking, "list_review_queues")(
            experiment_id, max_results=_PAGE, page_token=token
        )
    )


def queue_items(host: Host, queue_id: str) -> list[dict[str, Any]]:
    """Return the items of a review queue, by item id."""
    with translated(f"listing the items of review queue {queue_id}"):
        items = [
            proto_document(item)
            for item in pages(
                lambda token: host.tracking.list_review_queue_items(
                    queue_id, max_results=_PAGE, page_token=token
                )
            )
        ]
    for item in items:
        item.pop("queue_id", None)
    return sorted(items, key=lambda item: str(item["item_id"]))
