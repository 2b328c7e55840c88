"""Registered MCP servers with versions, tags, aliases and access endpoints, as documents."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import ServerError, ServerLostError
from mlflow_exim_plugin.host.absent import method
from mlflow_exim_plugin.host.connection import Host, translated
from mlflow_exim_plugin.host.documents import sorted_entries
from mlflow_exim_plugin.host.reading import pages
from mlflow_exim_plugin.schema.objects import Entity, Failure, Kind

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["mcp_server", "mcp_servers"]

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
        document = _plain(
            {
                "name": server.name,
                "display_name": server.display_name,
                "description": server.description,
                "icons": server.icons,
                **_signed(server),
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
    document = _plain(
        {
            "version": version.version,
            "server_json": version.server_json,
            "status": version.status.value,
            "tools": [tool.to_dict() for tool in version.tools or ()] or None,
            "connect_options": {k: asdict(v) for k, v in version.connect_options.items()} or None,
            "source": version.source,
            **_signed(version),
        }
    )
    document["tags"] = sorted_entries(version.tags)
    return document


def _access_endpoint(endpoint: Any) -> dict[str, Any]:
    return _plain(
        {
            "id": endpoint.id,
            "url": endpoint.url,
            "transport_type": endpoint.transport_type.value,
            "server_version": endpoint.server_version,
            "server_alias": endpoint.server_alias,
            **_signed(endpoint),
        }
    )


def _signed(entity: Any) -> dict[str, Any]:
    return {
        "created_by": entity.created_by,
        "last_updated_by": entity.last_updated_by,
        "creation_timestamp": entity.creation_timestamp,
        "last_updated_timestamp": entity.last_updated_timestamp,
    }


def _plain(document: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in document.items() if value is not None}
