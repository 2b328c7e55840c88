"""Scorers, label schemas, issues and review queues: read as documents, and written."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import ServerError, ServerLostError
from mlflow_exim_plugin.host.answers import (
    NO_TOKEN,
    UnbelievableError,
    answered,
    doubted,
    object_of,
)
from mlflow_exim_plugin.host.documents import proto_document
from mlflow_exim_plugin.host.entities.listing import each, every
from mlflow_exim_plugin.host.errors import raise_for_status, translated
from mlflow_exim_plugin.host.open.absent import is_absent, method
from mlflow_exim_plugin.schema.objects import Entity, Failure, Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mlflow_exim_plugin.host.open.host import Host

__all__ = [
    "DEFAULT_SCHEMA",
    "add_queue_items",
    "all_issues",
    "create_issue",
    "create_label_schema",
    "create_review_queue",
    "experiments_with_scorers",
    "find_label_schema",
    "issue_document",
    "issues",
    "label_schemas",
    "make_default_schema",
    "online_configs",
    "queue_documents",
    "queue_items",
    "register_scorer",
    "review_queues",
    "scorer_names",
    "scorer_versions",
    "scorers",
    "set_item_status",
    "set_online_config",
    "versions_of_scorer",
]

_SCORERS = "/api/3.0/mlflow/scorers/list"
DEFAULT_SCHEMA = "Feedback"
"""Name of the label schema that MLflow adds to an experiment by itself."""


def scorers(host: Host, experiment_id: str) -> Iterator[Entity | Failure]:
    """Yield the scorers of an experiment with all their versions, by name."""

    def read(name: str) -> Entity:
        versions = scorer_versions(host, experiment_id, name)
        scorer_id = versions[-1].get("scorer_id") or name
        configs = online_configs(host, scorer_id)
        document: dict[str, Any] = {
            "scorer_name": name,
            "scorer_id": scorer_id,
            "experiment_id": experiment_id,
            "versions": list(map(_version, versions)),
        }
        if configs:
            document["online_configs"] = configs
        return Entity(Kind.SCORER, document, experiment_id)

    yield from each(Kind.SCORER, sorted(scorer_names(host, experiment_id)), read)


_OF_ALL_VERSIONS = {"experiment_id", "scorer_name", "scorer_id"}


def _version(version: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in version.items() if k not in _OF_ALL_VERSIONS}


def versions_of_scorer(host: Host, experiment_id: str, name: str) -> list[dict[str, Any]]:
    """Return the versions of a scorer as its document has them."""
    return list(map(_version, scorer_versions(host, experiment_id, name)))


def scorer_versions(host: Host, experiment_id: str, name: str) -> list[dict[str, Any]]:
    """Return every version of a scorer as REST's ``Scorer``, by number."""
    with translated(f"listing the versions of scorer {name!r}"):
        listed = method(host.tracking, "list_scorer_versions")(experiment_id, name)
        documents = [proto_document(version) for version in listed]
    return sorted(documents, key=lambda document: int(document["scorer_version"]))


def online_configs(host: Host, scorer_id: str) -> list[dict[str, Any]]:
    """Return when a scorer runs by itself."""
    if not hasattr(host.tracking, "get_online_scoring_configs"):
        return []
    try:
        with translated("reading when scorers run by themselves"):
            configs = host.tracking.get_online_scoring_configs([scorer_id])
    except ServerError as error:
        if is_absent(error):  # the first servers with scorers ran none by themselves
            return []
        raise
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


def label_schemas(
    host: Host, experiment_id: str, queues: Callable[[], list[dict[str, Any]]]
) -> Iterator[Entity | Failure]:
    """Yield the label schemas of an experiment, oldest first, and write nothing.

    MLflow's listing adds a default schema to an experiment that has none. A database is read by
    its table; a server is asked for a listing only where the default schema is there already,
    else for those that review queues name.

    Args:
        host: The deployment.
        experiment_id: The experiment.
        queues: Gives its review queues, where its schemas cannot be listed.
    """
    named: list[str] = []
    if not host.is_http:
        found = _schemas_in_database(host, experiment_id)
    elif _can_be_listed(host, experiment_id):
        with translated(f"listing the label schemas of experiment {experiment_id}"):
            found = [
                proto_document(schema)
                for schema in every(host.tracking, "list_label_schemas", experiment_id)
            ]
    else:
        found = []
        named = sorted({one for queue in queues() for one in queue.get("schema_ids", ())})
    for schema_id in named:
        try:
            with translated(f"reading label schema {schema_id}"):
                found.append(proto_document(host.tracking.get_label_schema(schema_id)))
        except ServerError as error:
            if getattr(error.__cause__, "error_code", "") != "RESOURCE_DOES_NOT_EXIST":
                yield Failure(Kind.LABEL_SCHEMA, schema_id, error.message)
    found.sort(key=lambda document: (document.get("created_at", 0), document["schema_id"]))
    for document in found:
        yield Entity(Kind.LABEL_SCHEMA, document, experiment_id)


def _can_be_listed(host: Host, experiment_id: str) -> bool:
    """Whether listing the label schemas of an experiment writes nothing."""
    schema = find_label_schema(host, experiment_id, DEFAULT_SCHEMA)
    return bool(schema and schema.get("is_default"))


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


def all_issues(host: Host) -> dict[str, list[dict[str, Any]]]:
    """Return every issue by experiment, oldest first; one listing has them all."""
    return _issues(host, None)


def issues(host: Host, experiment_id: str) -> list[dict[str, Any]]:
    """Return the issues of one experiment, oldest first."""
    return _issues(host, experiment_id).get(experiment_id, [])


def _issues(host: Host, experiment_id: str | None) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    with translated("listing the issues"):
        for issue in every(host.tracking, "search_issues", experiment_id):
            found.setdefault(str(issue.experiment_id), []).append(issue_document(issue))
    for documents in found.values():
        documents.sort(key=lambda document: (document["created_timestamp"], document["issue_id"]))
    return found


def issue_document(issue: Any) -> dict[str, Any]:
    """Return REST's ``Issue``."""
    document = proto_document(issue)
    document.pop("trace_count", None)  # counted, not stored
    return document


def review_queues(
    host: Host, experiment_id: str, queues: list[dict[str, Any]]
) -> Iterator[Entity | Failure]:
    """Yield review queues of an experiment with their items, by name."""
    queues = sorted(queues, key=lambda queue: str(queue["name"]))
    by_id = {queue["queue_id"]: queue for queue in queues}

    def read(queue_id: str) -> Entity:
        queue = by_id[queue_id]
        document = queue | {f: sorted(queue.get(f, ())) for f in ("users", "schema_ids")}
        document["items"] = queue_items(host, queue_id)
        return Entity(Kind.REVIEW_QUEUE, document, experiment_id)

    yield from each(Kind.REVIEW_QUEUE, by_id, read)


def queue_items(host: Host, queue_id: str) -> list[dict[str, Any]]:
    """Return the items of a review queue, by item id."""
    with translated(f"listing the items of review queue {queue_id}"):
        items = [
            proto_document(item)
            for item in every(host.tracking, "list_review_queue_items", queue_id)
        ]
    for item in items:
        item.pop("queue_id", None)
    return sorted(items, key=lambda item: str(item["item_id"]))


def scorer_names(host: Host, experiment_id: str) -> set[str]:
    """Return the names of an experiment's scorers."""
    with translated(f"listing the scorers of experiment {experiment_id}"):
        return {s.scorer_name for s in method(host.tracking, "list_scorers")(experiment_id)}


def experiments_with_scorers(host: Host) -> set[str] | None:
    """Return the ids of the experiments that have scorers, by one call for all.

    None: it does not tell. Servers before MLflow 3.17 have to be asked for each.
    """
    if not host.is_http:
        return None

    def ask(**params: str) -> list[dict[str, Any]]:
        doing = "listing the scorers of all experiments"
        with host.call("GET", _SCORERS, doing=doing, params=[*params.items()]) as response:
            raise_for_status(response)
            listed = object_of(response.content).get("scorers", [])
        if not all(isinstance(scorer, dict) and "experiment_id" in scorer for scorer in listed):
            raise UnbelievableError("what comes is no list of scorers")
        return list(listed)

    try:
        with translated("listing the scorers of all experiments"):
            found = answered(ask) or doubted(ask, lambda: ask(experiment_id=NO_TOKEN))
    except ServerLostError:
        raise
    except ServerError:
        return None
    return {str(scorer["experiment_id"]) for scorer in found}


def register_scorer(host: Host, experiment_id: str, name: str, serialized: str) -> dict[str, Any]:
    """Register the next version of a scorer and return it as REST's ``Scorer``."""
    try:
        with translated(f"registering a version of scorer {name!r}"):
            return proto_document(
                method(host.tracking, "register_scorer")(experiment_id, name, serialized)
            )
    except ServerError as error:
        if not isinstance(error.__cause__, ValueError):
            raise
        # MLflow 3.4 answers with the number alone, which later clients do not understand.
        return scorer_versions(host, experiment_id, name)[-1]


def set_online_config(host: Host, experiment_id: str, name: str, config: dict[str, Any]) -> None:
    """Say when a scorer runs by itself."""
    with translated(f"setting when scorer {name!r} runs by itself"):
        method(host.tracking, "upsert_online_scoring_config")(
            experiment_id, name, config["sample_rate"], config.get("filter_string")
        )


def find_label_schema(host: Host, experiment_id: str, name: str) -> dict[str, Any] | None:
    """Return the label schema of a name, None without it; writes nothing."""
    try:
        with translated(f"looking for label schema {name!r} of experiment {experiment_id}"):
            return proto_document(
                method(host.tracking, "get_label_schema_by_name")(experiment_id, name)
            )
    except ServerError as error:
        if getattr(error.__cause__, "error_code", "") == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def make_default_schema(host: Host, experiment_id: str) -> None:
    """Let MLflow add its default label schema, as its listing does."""
    with translated(f"listing the label schemas of experiment {experiment_id}"):
        host.tracking.list_label_schemas(experiment_id)


def create_label_schema(host: Host, experiment_id: str, name: str, document: dict[str, Any]) -> str:
    """Create a label schema and return its id."""
    with translated(f"creating label schema {name!r}"):
        from google.protobuf.json_format import ParseDict
        from mlflow.genai.label_schemas.label_schemas import LabelSchema
        from mlflow.protos.label_schemas_pb2 import LabelSchema as ProtoLabelSchema

        schema = LabelSchema.from_proto(
            ParseDict(document, ProtoLabelSchema(), ignore_unknown_fields=True)
        )
        created = method(host.tracking, "create_label_schema")(
            experiment_id,
            name=name,
            type=schema.type,
            input=schema.input,
            instruction=schema.instruction,
            enable_comment=schema.enable_comment,
        )
    return str(created.schema_id)


def create_issue(host: Host, experiment_id: str, document: dict[str, Any]) -> dict[str, Any]:
    """Create an issue and return it as the target has it."""
    with translated(f"creating issue {document['name']!r}"):
        from mlflow.entities import IssueSeverity, IssueStatus

        severity = document.get("severity")
        create = method(host.tracking, "create_issue")
        known = inspect.signature(create).parameters
        since_3_18 = {
            name: int(document[name]) if name.endswith("timestamp") else document[name]
            for name in ("last_seen_timestamp", "metadata")
            if name in known and name in document
        }
        created = create(
            experiment_id=experiment_id,
            name=document["name"],
            description=document.get("description", ""),
            status=IssueStatus(document["status"]),
            severity=IssueSeverity(severity) if severity else None,
            root_causes=document.get("root_causes"),
            source_run_id=document.get("source_run_id"),
            categories=document.get("categories"),
            created_by=document.get("created_by"),
            **since_3_18,
        )
        by = document.get("last_updated_by")
        if by and hasattr(created, "last_updated_by") and created.last_updated_by != by:
            created = method(host.tracking, "update_issue")(created.issue_id, last_updated_by=by)
    return issue_document(created)


def queue_documents(host: Host, experiment_id: str) -> list[dict[str, Any]]:
    """Return the review queues of an experiment without their items."""
    with translated(f"listing the review queues of experiment {experiment_id}"):
        queues = every(host.tracking, "list_review_queues", experiment_id)
        return [proto_document(queue) for queue in queues]


def create_review_queue(
    host: Host, experiment_id: str, name: str, document: dict[str, Any], schema_ids: list[str]
) -> str:
    """Create a review queue without items and return its id."""
    kind = str(document["queue_type"]).lower()
    with translated(f"creating review queue {name!r}"):
        if kind == "user":
            queue = method(host.tracking, "get_or_create_user_queue")(experiment_id, user=name)
        else:
            queue = method(host.tracking, "create_review_queue")(
                experiment_id,
                name=name,
                queue_type=kind,
                users=document.get("users", []),
                schema_ids=schema_ids,
            )
    return str(queue.queue_id)


def add_queue_items(host: Host, queue_id: str, trace_ids: list[str]) -> None:
    """Put traces into a review queue; those that are in it stay as they are."""
    with translated(f"adding traces to review queue {queue_id}"):
        host.tracking.add_items_to_review_queue(queue_id, item_ids=trace_ids)


def set_item_status(host: Host, queue_id: str, item: dict[str, Any], trace_id: str) -> None:
    """Say who completed or declined an item of a review queue."""
    with translated(f"completing trace {trace_id} in review queue {queue_id}"):
        host.tracking.set_review_queue_item_status(
            queue_id,
            item_id=trace_id,
            status=str(item["status"]).lower(),
            completed_by=item.get("completed_by"),
        )
