"""Registered MCP servers with versions, tags, aliases, access endpoints: read and written."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import ServerError, ServerLostError
from mlflow_exim_plugin.host.api.reading import pages
from mlflow_exim_plugin.host.documents import present, signed, sorted_entries
from mlflow_exim_plugin.host.errors import translated
from mlflow_exim_plugin.host.open.absent import method
from mlflow_exim_plugin.schema.objects import Entity, Failure, Kind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow_exim_plugin.host.open.host import Host

__all__ = [
    "READS",
    "create_mcp_access_endpoint",
    "create_mcp_server",
    "create_mcp_version",
    "mcp_server",
    "mcp_servers",
    "set_mcp_alias",
    "set_mcp_icons",
    "set_mcp_tag",
    "settle_mcp_version",
]

_PAGE = 1000


def mcp_servers(host: Host) -> Iterator[Entity | Failure]:
    """Yield the MCP servers with all their parts, by name."""
    with translated("listing the MCP servers"):
        names = sorted(
            server.name
            for server in pages(
                lambda token: method(host.tracking, "search_mcp_servers")(
                    max_results=_PAGE, page_token=token
                )
            )
        )
    for name in names:
        try:
            yield Entity(Kind.MCP_SERVER, mcp_server(host, name))
        except ServerLostError:
            raise
        except ServerError as error:
            yield Failure(Kind.MCP_SERVER, name, error.message)


def mcp_server(host: Host, name: str) -> dict[str, Any]:
    """Return one MCP server with all its parts."""
    with translated(f"reading MCP server {name!r}"):
        server = method(host.tracking, "get_mcp_server")(name)
        versions = pages(
            lambda token: host.tracking.search_mcp_server_versions(
                name, max_results=_PAGE, page_token=token
            )
        )
        document = present(
            {
                "name": server.name,
                "display_name": server.display_name,
                "description": server.description,
                "icons": server.icons,
                **signed(server),
            }
        )
        document["tags"] = sorted_entries(server.tags)
        document["aliases"] = [
            {"alias": alias, "version": version}
            for alias, version in sorted(server.aliases.items())
        ]
        document["versions"] = sorted(
            (_version(version) for version in versions),
            key=lambda version: (version["creation_timestamp"], version["version"]),
        )
        document["access_endpoints"] = sorted(
            map(_access_endpoint, server.access_endpoints),
            key=lambda endpoint: (endpoint["creation_timestamp"], endpoint["id"]),
        )
    return document


def _version(version: Any) -> dict[str, Any]:
    document = present(
        {
            "version": version.version,
            "server_json": version.server_json,
            "status": version.status.value,
            "tools": [tool.to_dict() for tool in version.tools or ()] or None,
            "connect_options": {k: asdict(v) for k, v in version.connect_options.items()} or None,
            "source": version.source,
            **signed(version),
        }
    )
    document["tags"] = sorted_entries(version.tags)
    return document


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


def settle_mcp_version(host: Host, name: str, document: dict[str, Any]) -> None:
    """Bring a version that was just created to its last status, which closes it to changes."""
    version, status = document["version"], document["status"]
    with translated(f"setting version {version} of MCP server {name!r} to {status}"):
        if status == "deleted":
            host.tracking.delete_mcp_server_version(name, version)
        elif status == "deprecated":
            from mlflow.entities.mcp_server import MCPStatus

            host.tracking.update_mcp_server_version(name, version, status=MCPStatus.DEPRECATED)


def set_mcp_tag(host: Host, name: str, version: str | None, tag: dict[str, str]) -> None:
    """Set one tag of an MCP server or of one of its versions."""
    key, value = tag["key"], tag.get("value", "")
    with translated(f"tagging MCP server {name!r}"):
        if version is None:
            host.tracking.set_mcp_server_tag(name, key, value)
        else:
            host.tracking.set_mcp_server_version_tag(name, version, key, value)


def set_mcp_alias(host: Host, name: str, alias: str, version: str) -> None:
    """Point an alias at a version of an MCP server."""
    with translated(f"setting alias {alias!r} of MCP server {name!r}"):
        host.tracking.set_mcp_server_alias(name, alias, version)


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


READS = {
    Kind.MCP_SERVER: mcp_servers,
}
"""What reads each kind."""
