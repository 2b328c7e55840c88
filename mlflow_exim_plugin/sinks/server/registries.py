"""MCP servers and webhooks to a deployment."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import ServerError
from mlflow_exim_plugin.host.entities import mcp_servers as mcp
from mlflow_exim_plugin.host.entities import webhooks
from mlflow_exim_plugin.schema.objects import Entity, Kind, Loss
from mlflow_exim_plugin.sinks.policy import TargetNames, differing, find_name, say_kept
from mlflow_exim_plugin.sinks.server.plain import Calls, PlainWriter
from mlflow_exim_plugin.sinks.server.target import Destination, ServerTarget, attempt

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mlflow_exim_plugin.schema.report import Report
    from mlflow_exim_plugin.sinks.server.target import FamilyWriter

__all__ = ["writers"]

_SERVER_FIELDS = ("description", "display_name", "icons")
_VERSION_FIELDS = ("server_json", "source", "tools", "connect_options")
_ENDPOINT_FIELDS = ("url", "transport_type", "server_version", "server_alias")


class McpServerWriter:
    """Writes MCP servers: what is missing of one that is there is added, nothing is changed."""

    def __init__(self, target: ServerTarget) -> None:
        self._target = target
        self._there: dict[str, dict[str, Any]] | None = None

    def write(self, entity: Entity, to: Destination, report: Report) -> None:  # noqa: ARG002 - it belongs to no experiment
        """Write one MCP server with its parts."""
        document, name = entity.document, entity.id
        names = TargetNames(
            self._servers().get,
            is_same=lambda there: _is_same(document, there),
            keeps=lambda there: differing(document, there, *_SERVER_FIELDS),
        )
        named = find_name(entity, name, names, self._target.options.on_conflict, report)
        if named.is_left:
            return
        self._target.ids.know(entity.kind, name, named.name)
        there = named.there
        changed = False
        if not self._target.options.dry_run:
            if there is None:
                mcp.create_mcp_server(self._target.host, named.name, document)
            icons = document.get("icons")
            if icons and (there is None or (named.is_ours and not there.get("icons"))):
                changed = self._try(
                    entity,
                    lambda: mcp.set_mcp_icons(self._target.host, named.name, icons),
                    report,
                )
            elif there and named.is_ours:
                say_kept(entity, "it", names.keeps(there), report)
            changed |= self._add_parts(entity, named.name, there or {}, report)
        if changed or there is None:
            report.written(entity.kind)
        else:
            report.skipped(entity.kind, name, named.reason)

    def finish(self, report: Report) -> None:
        """Nothing waits."""

    def _add_parts(self, entity: Entity, name: str, there: dict[str, Any], report: Report) -> bool:
        """Add versions, tags, aliases and access endpoints that are not there."""
        host, document = self._target.host, entity.document
        changed = self._add_tags(entity, name, None, document.get("tags", []), there, report)
        versions = {version["version"]: version for version in there.get("versions", ())}
        unsettled = []
        for version in document.get("versions", ()):
            number = version["version"]
            present = versions.get(number)
            if present is None:
                if not self._try(
                    entity,
                    partial(mcp.create_mcp_version, host, name, version),
                    report,
                ):
                    continue
                unsettled.append(version)
                changed = True
            else:
                fields = _differing_versions(version, present, "status")
                say_kept(entity, f"version {number!r}", fields, report)
            if present is None or present["status"] != "deleted":
                changed |= self._add_tags(
                    entity, name, number, version.get("tags", []), present or {}, report
                )
        changed |= self._add_aliases(entity, name, there, report)
        # A version at rest takes no access endpoint, so its last status comes after them.
        changed |= self._add_access_endpoints(entity, name, there, report)
        for version in unsettled:
            self._try(entity, partial(mcp.settle_mcp_version, host, name, version), report)
        return changed

    def _add_tags(
        self,
        entity: Entity,
        name: str,
        version: str | None,
        tags: list[dict[str, str]],
        there: dict[str, Any],
        report: Report,
    ) -> bool:
        present = {tag["key"]: tag["value"] for tag in there.get("tags", ())}
        changed = False
        for tag in tags:
            if tag["key"] not in present:
                changed |= self._try(
                    entity,
                    partial(mcp.set_mcp_tag, self._target.host, name, version, tag),
                    report,
                )
            elif present[tag["key"]] != tag["value"]:
                say_kept(entity, f"tag {tag['key']!r}", ["value"], report)
        return changed

    def _add_aliases(
        self, entity: Entity, name: str, there: dict[str, Any], report: Report
    ) -> bool:
        present = {a["alias"]: a["version"] for a in there.get("aliases", ())}
        changed = False
        for entry in entity.document.get("aliases", ()):
            alias, version = entry["alias"], entry["version"]
            if alias not in present:
                changed |= self._try(
                    entity,
                    partial(mcp.set_mcp_alias, self._target.host, name, alias, version),
                    report,
                )
            elif present[alias] != version:
                say_kept(entity, f"alias {alias!r}", ["version"], report)
        return changed

    def _add_access_endpoints(
        self, entity: Entity, name: str, there: dict[str, Any], report: Report
    ) -> bool:
        present = list(there.get("access_endpoints", ()))
        changed = False
        for endpoint in entity.document.get("access_endpoints", ()):
            same = [e for e in present if not differing(endpoint, e, *_ENDPOINT_FIELDS)]
            if same:
                present.remove(same[0])
                continue
            changed |= self._try(
                entity,
                partial(mcp.create_mcp_access_endpoint, self._target.host, name, endpoint),
                report,
            )
        return changed

    def _try(self, entity: Entity, call: Callable[[], None], report: Report) -> bool:
        """Write one part; a refused part is named and the others go on."""
        return attempt(call, Loss(entity.kind, entity.id, ""), report)

    def _servers(self) -> dict[str, dict[str, Any]]:
        if self._there is None:
            self._there = {}
            for item in mcp.mcp_servers(self._target.host):
                if not isinstance(item, Entity):
                    raise ServerError(f"MCP server {item.id} at the target: {item.reason}")
                self._there[item.id] = item.document
        return self._there


def _is_same(document: dict[str, Any], there: dict[str, Any]) -> bool:
    """Whether an unpack made what is there: whole, or up to where it was interrupted."""
    if differing(document, there, "description") and there.get("description"):
        return False
    versions = {version["version"]: version for version in document.get("versions", ())}
    return not any(
        version["version"] not in versions
        or _differing_versions(versions[version["version"]], version)
        for version in there.get("versions", ())
    )


def _differing_versions(version: dict[str, Any], there: dict[str, Any], *more: str) -> list[str]:
    """Return which fields of two versions differ but for the server's name, which may be new."""
    name = {"name": there["server_json"].get("name")}
    renamed = version | {"server_json": version["server_json"] | name}
    return differing(renamed, there, *_VERSION_FIELDS, *more)


def webhook_writer(target: ServerTarget) -> PlainWriter:
    """Make what writes webhooks, disabled: a copy must not call what the original calls."""

    def refer(webhook: Entity) -> tuple[dict[str, Any], list[Loss]]:
        what = "it is disabled: give it its secret, if it had one, and switch it on"
        loss = Loss(webhook.kind, str(webhook.document["name"]), what)
        return webhook.document, [] if webhook.document.get("status") == "DISABLED" else [loss]

    calls = Calls(
        lambda host, _: webhooks.webhook_documents(host),
        lambda host, _, __, document: webhooks.create_webhook(host, document),
    )
    return PlainWriter(target, Kind.WEBHOOK, calls, refer)


def writers(target: ServerTarget, _: Mapping[Kind, Any]) -> dict[Kind, FamilyWriter]:
    """Make what writes each kind."""
    return {Kind.MCP_SERVER: McpServerWriter(target), Kind.WEBHOOK: webhook_writer(target)}
