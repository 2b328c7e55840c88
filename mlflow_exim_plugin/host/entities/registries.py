"""MCP servers, skills and webhooks: read as documents, and written."""

from __future__ import annotations

import tarfile
import tempfile
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.host.documents import proto_document, signed
from mlflow_exim_plugin.host.entities.listing import each, every, whole
from mlflow_exim_plugin.host.errors import translated
from mlflow_exim_plugin.host.files.gate import require_path
from mlflow_exim_plugin.host.open.absent import method
from mlflow_exim_plugin.schema.documents import present, sorted_entries
from mlflow_exim_plugin.schema.objects import Entity, Failure, Kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from mlflow_exim_plugin.host.open.host import Host
    from mlflow_exim_plugin.schema.objects import Artifact

    Owner = tuple[str, ...]
    """What names an object in MLflow's calls: its name, and of a skill its organization."""

__all__ = [
    "READS",
    "create_mcp_access_endpoint",
    "create_mcp_server",
    "create_mcp_version",
    "create_skill",
    "create_skill_version",
    "create_uploaded_version",
    "create_webhook",
    "identity",
    "mcp_servers",
    "new_place",
    "set_alias",
    "set_mcp_icons",
    "set_tag",
    "settle_version",
    "skills",
    "webhook_documents",
]


def mcp_servers(host: Host) -> Iterator[Entity | Failure]:
    """Yield the MCP servers with all their parts, by name."""
    with translated("listing the MCP servers"):
        names = sorted(server.name for server in every(host.tracking, "search_mcp_servers"))
    yield from each(
        Kind.MCP_SERVER, names, lambda name: Entity(Kind.MCP_SERVER, _mcp_server(host, name))
    )


def _mcp_server(host: Host, name: str) -> dict[str, Any]:
    with translated(f"reading MCP server {name!r}"):
        server = method(host.tracking, "get_mcp_server")(name)
        versions = map(_mcp_version, every(host.tracking, "search_mcp_server_versions", name))
        return {
            **present({"name": server.name, "display_name": server.display_name}),
            **_registered(server),
            "versions": sorted(versions, key=lambda v: (v["creation_timestamp"], v["version"])),
            "access_endpoints": sorted(
                map(_access_endpoint, server.access_endpoints),
                key=lambda endpoint: (endpoint["creation_timestamp"], endpoint["id"]),
            ),
        }


def skills(host: Host) -> Iterator[Entity | Failure]:
    """Yield the skills with all their parts, by name; MLflow shows no deleted versions."""
    with translated("listing the skills"):
        found = list(every(host.tracking, "search_skills"))
    by_id = {
        identity(skill.name, skill.organization): skill
        for skill in sorted(found, key=lambda skill: (skill.organization, skill.name))
    }
    yield from each(Kind.SKILL, by_id, lambda its: Entity(Kind.SKILL, _skill(host, its, by_id)))


def identity(name: str, organization: str = "") -> str:
    """Return what a skill, or an MCP server, is known by."""
    return f"@{organization}/{name}" if organization else name


def _skill(host: Host, skill_id: str, by_id: dict[str, Any]) -> dict[str, Any]:
    skill = by_id[skill_id]
    with translated(f"reading skill {skill_id}"):
        owner = (skill.name, skill.organization)
        versions = map(_skill_version, every(host.tracking, "search_skill_versions", *owner))
        return {
            **present(
                {"skill_id": skill_id, "organization": skill.organization, "name": skill.name}
            ),
            **_registered(skill),
            "versions": sorted(versions, key=lambda v: int(v["version"])),
        }


def _registered(entity: Any) -> dict[str, Any]:
    """Return what MCP servers and skills have alike."""
    return present(
        {
            "description": entity.description,
            "icons": entity.icons,
            **signed(entity),
            "tags": sorted_entries(entity.tags),
            "aliases": [{"alias": a, "version": v} for a, v in sorted(entity.aliases.items())],
        }
    )


def _mcp_version(version: Any) -> dict[str, Any]:
    return present(
        {
            "version": version.version,
            "server_json": version.server_json,
            "status": version.status.value,
            "tools": [tool.to_dict() for tool in version.tools or ()] or None,
            "connect_options": {k: asdict(v) for k, v in version.connect_options.items()} or None,
            "source": version.source,
            **signed(version),
            "tags": sorted_entries(version.tags),
        }
    )


def _access_endpoint(endpoint: Any) -> dict[str, Any]:
    return present(
        {
            "id": endpoint.id,
            "url": endpoint.url,
            "transport_type": endpoint.transport_type.value,
            "server_version": endpoint.server_version,
            "server_alias": endpoint.server_alias,
            **signed(endpoint),
        }
    )


def _skill_version(version: Any) -> dict[str, Any]:
    # The names that REST has for what MLflow's own types call by the type of the source.
    source = version.source.to_dict() if hasattr(version.source, "to_dict") else {}
    names = [name for name in ("url", "image", "artifact_path") if name in source]
    return present(
        {
            "version": version.version,
            "status": version.status.value,
            "source_type": version.source_type.value if version.source_type else None,
            "source": source[names[0]] if names else version.source,
            "ref": source.get("ref"),
            "subpath": source.get("subpath"),
            "digest": version.digest,
            **signed(version),
            "tags": sorted_entries(version.tags),
        }
    )


def webhook_documents(host: Host) -> list[dict[str, Any]]:
    """Return REST's ``Webhook`` each, oldest first.

    A database's own way would decrypt the secret, which fails without the server's key, so the
    columns beside it are read.
    """
    with translated("listing the webhooks"):
        if hasattr(host.registry, "ManagedSessionMaker"):
            listed = _in_database(host)
        else:
            listed = list(every(host.registry, "list_webhooks"))
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


def create_mcp_server(host: Host, name: str, document: dict[str, Any]) -> None:
    """Create an MCP server with its description and no icons."""
    with translated(f"creating MCP server {name!r}"):
        method(host.tracking, "create_mcp_server")(name, description=document.get("description"))
        if display_name := document.get("display_name"):
            host.tracking.update_mcp_server(name, display_name=display_name)


def set_mcp_icons(host: Host, name: str, icons: list[dict[str, Any]]) -> None:
    """Set the icons of an MCP server; the target asks the network for their hosts."""
    with translated(f"setting the icons of MCP server {name!r}"):
        host.tracking.update_mcp_server(name, icons=icons)


def create_mcp_version(host: Host, name: str, document: dict[str, Any]) -> None:
    """Create a version of an MCP server; draft stays draft, every other status starts active."""
    with translated(f"creating version {document['version']} of MCP server {name!r}"):
        from mlflow.entities.mcp_server import MCPStatus, MCPTool
        from mlflow.entities.mcp_server_version import ConnectOptionSettings

        tools = document.get("tools")
        options = document.get("connect_options")
        is_draft = document["status"] in {"draft", "deleted"}
        host.tracking.create_mcp_server_version(
            document["server_json"] | {"name": name},
            source=document.get("source"),
            status=MCPStatus.DRAFT if is_draft else MCPStatus.ACTIVE,
            tools=[MCPTool.from_dict(tool) for tool in tools] if tools else None,
            connect_options={k: ConnectOptionSettings(**v) for k, v in options.items()}
            if options
            else None,
        )


def create_mcp_access_endpoint(host: Host, name: str, document: dict[str, Any]) -> None:
    """Create an access endpoint of an MCP server."""
    with translated(f"creating access endpoint {document['url']} of MCP server {name!r}"):
        from mlflow.entities.mcp_server import MCPRemoteTransportType

        host.tracking.create_mcp_access_endpoint(
            name,
            document["url"],
            MCPRemoteTransportType(document["transport_type"]),
            server_version=document.get("server_version"),
            server_alias=document.get("server_alias"),
        )


def create_skill(host: Host, name: str, document: dict[str, Any]) -> None:
    """Create a skill without versions."""
    with translated(f"creating skill {name!r}"):
        method(host.tracking, "create_skill")(
            name,
            document["organization"],
            description=document.get("description"),
            icons=document.get("icons"),
        )


def create_skill_version(
    host: Host, name: str, organization: str, version: dict[str, Any]
) -> dict[str, Any]:
    """Create the next version of a skill, and return it; draft stays draft, others are active."""
    with translated(f"creating version {version['version']} of skill {name!r}"):
        created = method(host.tracking, "create_skill_version")(
            name,
            organization,
            **{f: version.get(f) for f in ("source_type", "source", "ref", "subpath", "digest")},
            status=_first_status(version),
        )
    return _skill_version(created)


def create_uploaded_version(
    host: Host, name: str, organization: str, version: dict[str, Any], files: Iterable[Artifact]
) -> dict[str, Any]:
    """Create the next version of a skill from its files, which the server keeps and checks."""
    with (
        translated(f"uploading version {version['version']} of skill {name!r}"),
        tempfile.TemporaryDirectory(prefix="mlflow-exim-") as folder,
    ):
        from mlflow import MlflowClient

        packed = Path(folder) / "content.tar.gz"
        with tarfile.open(packed, "w:gz", format=tarfile.PAX_FORMAT) as tar:
            for file in files:
                require_path(file.path)
                member = tarfile.TarInfo(file.path)
                member.size = file.size_bytes
                with file.open() as stream:
                    tar.addfile(member, stream)
        created = MlflowClient(host.tracking_uri, host.tracking_uri).create_skill_version(
            name=name,
            organization=organization,
            source=str(packed),
            digest=version.get("digest"),
            status=_first_status(version),
        )
    return _skill_version(created)


def new_place(name: str, organization: str) -> str:
    """Return where the files of a new version are, as a server would say."""
    return f"mlflow-artifacts:/skills/{identity(name, organization)}/{uuid.uuid4().hex}"


def _first_status(version: dict[str, Any]) -> str:
    return "draft" if version["status"] == "draft" else "active"


def settle_version(host: Host, kind: Kind, owner: Owner, version: Any, status: str) -> None:
    """Bring a version that was just created to its last status, which closes it to changes."""
    name, *more = owner
    with translated(f"setting version {version} of {kind.words} {name!r} to {status}"):
        if status == "deleted":
            method(host.tracking, f"delete_{kind}_version")(name, version, *more)
        elif status == "deprecated":
            settle = method(host.tracking, f"update_{kind}_version")
            settle(name, version, *more, status=_statuses(kind)(status))


def _statuses(kind: Kind) -> Any:
    if kind is Kind.SKILL:
        from mlflow.entities.skill import SkillStatus

        return SkillStatus
    from mlflow.entities.mcp_server import MCPStatus

    return MCPStatus


def set_tag(host: Host, kind: Kind, owner: Owner, version: Any, key: str, value: str) -> None:
    """Set one tag of an MCP server or skill, or of one of its versions."""
    name, *more = owner
    of_version, number = ("", ()) if version is None else ("_version", (version,))
    with translated(f"tagging {kind.words} {name!r}"):
        method(host.tracking, f"set_{kind}{of_version}_tag")(name, *number, key, value, *more)


def set_alias(host: Host, kind: Kind, owner: Owner, alias: str, version: Any) -> None:
    """Point an alias at a version of an MCP server or skill."""
    name, *more = owner
    with translated(f"setting alias {alias!r} of {kind.words} {name!r}"):
        method(host.tracking, f"set_{kind}_alias")(name, alias, version, *more)


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
    Kind.MCP_SERVER: mcp_servers,
    Kind.SKILL: skills,
    Kind.WEBHOOK: whole(Kind.WEBHOOK, webhook_documents),
}
"""What reads each kind."""
