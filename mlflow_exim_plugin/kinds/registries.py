"""MCP servers, skills, webhooks and workspaces."""

from __future__ import annotations

import json
from typing import Any

from mlflow_exim_plugin.kinds.description import (
    KEY,
    TAG,
    Description,
    PartFiles,
    Source,
    TableRows,
    as_json,
    const,
    lower,
    same,
)
from mlflow_exim_plugin.kinds.kind import Kind

__all__ = ["MCP_SERVER", "SKILL", "WEBHOOK", "WORKSPACE"]

_SERVER = ("workspace", "name")
_SKILL = ("workspace", "organization", "name")
_SIGNED: Any = {
    "created_by": "created_by",
    "last_updated_by": "last_updated_by",
    "created_at": "creation_timestamp",
    "last_updated_at": "last_updated_timestamp",
}


_LISTS = {"tags": KEY, "aliases": ("alias",), "versions": ("version",), "versions[].tags": KEY}
_USERS = "created_by last_updated_by *[*].created_by *[*].last_updated_by"


def _parts(stem: str, owner: tuple[str, ...], version: dict[str, Source]) -> tuple[TableRows, ...]:
    """Return the rows of tags, versions and aliases, whose tables begin with a stem."""
    tags = TableRows(f"{stem}_version_tags", TAG, at="tags", owner=(*owner, "version"))
    return (
        TableRows(f"{stem}_tags", TAG, at="tags", owner=owner),
        TableRows(f"{stem}_versions", version | _SIGNED, at="versions", owner=owner, parts=(tags,)),
        TableRows(f"{stem}_aliases", same("alias version"), at="aliases", owner=owner),
    )


def _own_icons(server: dict[str, Any]) -> str:
    """Return the icons of a server without those that MLflow shows of its version."""
    shown = server.get("icons")
    own = [icon for icon in shown or () if icon.get("source", "server") == "server"]
    plain = [{k: v for k, v in icon.items() if k != "source"} for icon in own]
    return json.dumps(plain or (None if shown or shown is None else []))


MCP_SERVER = Description(
    Kind.MCP_SERVER,
    since="3.15",
    folder="mcp_servers",
    id_field="name",
    lists={**_LISTS, "access_endpoints": ("url", "transport_type")},
    unique=_SERVER,
    itself="created_at",
    numbered="{}-{}",
    joins=("versions", "tags", "aliases", "access_endpoints"),
    rest={"users": _USERS, "inner ids": "access_endpoints[*].id"},
    anew="creators and times, and ids of access endpoints, are the target's",
    rows=TableRows(
        "mcp_servers",
        same("workspace name display_name description", icons=_own_icons) | _SIGNED,
        parts=(
            *_parts(
                "mcp_server",
                _SERVER,
                same(  # host.entity_rows adds the numbers it is sorted by
                    "version status source",
                    server_json=lambda version: json.dumps(version["server_json"]),
                    tools=as_json("tools"),
                    connect_options=as_json("connect_options"),
                ),
            ),
            TableRows(
                "mcp_access_endpoints",
                same("id url transport_type server_version server_alias") | _SIGNED,
                at="access_endpoints",
                owner=("workspace", "name=server_name"),
            ),
        ),
    ),
    by_mlflow="it shows the description and icons of the version that MLflow takes for the latest",
    names="name aliases access_endpoints[].server_alias",
    secrets="display_name description tags icons access_endpoints[].url"
    " versions[].server_json versions[].source"
    " versions[].tools versions[].connect_options versions[].tags",
)


def _uploaded(version: dict[str, Any]) -> str | None:
    """Return where the server keeps the files of a version; others are not its own."""
    source = version.get("source") or ""
    is_own = version.get("source_type") == "mlflow" and not version.get("subpath")
    return source if is_own and source.startswith("mlflow-artifacts:/skills/") else None


SKILL = Description(
    Kind.SKILL,
    since="3.18",
    folder="skills",
    id_field="skill_id",
    known_as="name",
    files=PartFiles("versions", "version", _uploaded),
    lists=_LISTS,
    natural=("skill_id",),
    unique=_SKILL,
    itself="created_at",
    joins=("versions", "tags", "aliases"),
    numbered="{}-{}",
    rest={"users": _USERS, "artifact roots": "versions[*].source"},
    anew="creators and times, and places of uploaded files, are the target's",
    rows=TableRows(
        "skills",
        same(
            "workspace organization name description",
            icons=as_json("icons"),
            search_text=lambda skill: " ".join(
                f"{skill['name']} {skill.get('description') or ''}".split()
            ),
        )
        | _SIGNED,
        parts=_parts("skill", _SKILL, same("version source_type source ref subpath digest status")),
    ),
    by_mlflow="MLflow 3.18, which has the only one, shows its sources by their types",
    names="skill_id name organization aliases",
    secrets="description tags versions[].source versions[].ref versions[].tags",
)

WEBHOOK = Description(
    Kind.WEBHOOK,
    since="3.3",
    folder="webhooks",
    id_field="webhook_id",
    lists={"events": ("entity", "action")},
    refers={"webhook_id": Kind.WEBHOOK},
    same=("name", "url", "events"),
    anew="ids and times are the target's; secrets are not packed",
    rows=TableRows(
        "webhooks",
        same(
            "webhook_id workspace name description url creation_timestamp last_updated_timestamp",
            status=const("status", "DISABLED"),  # it has no secret to sign with
        ),
        parts=(
            TableRows(
                "webhook_events",
                {"entity": lower("entity"), "action": lower("action")},
                at="events",
                owner=("webhook_id",),
                order=("entity", "action"),
            ),
        ),
        order=("creation_timestamp", "webhook_id"),
    ),
    unlike={"webhooks": "status"},
    secrets="name description url",
)

WORKSPACE = Description(
    Kind.WORKSPACE,
    since="3.10",
    folder="workspaces",
    id_field="name",
    names="name",
    secrets="description default_artifact_root",
)
