"""Webhooks without their secrets: read as documents, and written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.host.api.reading import pages
from mlflow_exim_plugin.host.documents import proto_document
from mlflow_exim_plugin.host.errors import translated
from mlflow_exim_plugin.host.open.absent import method
from mlflow_exim_plugin.schema.objects import Entity, Failure, Kind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow_exim_plugin.host.open.host import Host

__all__ = [
    "READS",
    "create_webhook",
    "webhook_documents",
    "webhooks",
]

_PAGE = 1000


def webhooks(host: Host) -> Iterator[Entity | Failure]:
    """Yield the webhooks, oldest first."""
    for document in webhook_documents(host):
        yield Entity(Kind.WEBHOOK, document)


def webhook_documents(host: Host) -> list[dict[str, Any]]:
    """Return REST's ``Webhook`` each, oldest first.

    A database's own way would decrypt the secret, which fails without the server's key, so the
    columns beside it are read.
    """
    with translated("listing the webhooks"):
        if hasattr(host.registry, "ManagedSessionMaker"):
            listed = _in_database(host)
        else:
            listed = list(pages(lambda token: method(host.registry, "list_webhooks")(_PAGE, token)))
        documents = [proto_document(webhook) for webhook in listed]
    for document in documents:
        document["events"].sort(key=lambda event: (event["entity"], event["action"]))
    return sorted(documents, key=lambda d: (d["creation_timestamp"], d["webhook_id"]))


def _in_database(host: Host) -> list[Any]:
    try:
        from mlflow.entities.webhook import Webhook, WebhookEvent
        from mlflow.store.model_registry.dbmodels.models import SqlWebhook, SqlWebhookEvent
    except ImportError as error:
        raise NotImplementedError("this MLflow has no webhooks") from error
    with host.registry.ManagedSessionMaker() as session:
        columns = [c for c in SqlWebhook.__table__.columns if c.name != "secret"]
        rows = session.query(*columns).filter(SqlWebhook.deleted_timestamp.is_(None))
        if "workspace" in SqlWebhook.__table__.columns:
            from mlflow.utils.workspace_utils import resolve_entity_workspace_name

            rows = rows.filter(SqlWebhook.workspace == resolve_entity_workspace_name(None))
        events: dict[str, list[Any]] = {}
        for event in session.query(SqlWebhookEvent):
            events.setdefault(event.webhook_id, []).append(WebhookEvent(event.entity, event.action))
        return [
            Webhook(
                webhook_id=row.webhook_id,
                name=row.name,
                url=row.url,
                events=events.get(row.webhook_id, []),
                creation_timestamp=row.creation_timestamp,
                last_updated_timestamp=row.last_updated_timestamp,
                description=row.description,
                status=row.status,
            )
            for row in rows
        ]


def create_webhook(host: Host, document: dict[str, Any]) -> str:
    """Create a webhook that is disabled and has no secret, and return its id."""
    with translated(f"creating webhook {document['name']!r}"):
        from mlflow.entities.webhook import WebhookEvent, WebhookStatus

        created = method(host.registry, "create_webhook")(
            document["name"],
            document["url"],
            [WebhookEvent(e["entity"].lower(), e["action"].lower()) for e in document["events"]],
            description=document.get("description"),
            status=WebhookStatus.DISABLED,
        )
    return str(created.webhook_id)


READS = {
    Kind.WEBHOOK: webhooks,
}
"""What reads each kind."""
