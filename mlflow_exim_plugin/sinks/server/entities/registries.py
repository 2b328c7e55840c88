"""MCP servers, skills and webhooks to a deployment."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import EximError, ServerError, ServerLostError
from mlflow_exim_plugin.host.entities import registries
from mlflow_exim_plugin.kinds import KINDS
from mlflow_exim_plugin.schema.objects import Artifact, Entity, Failure, Kind, Loss
from mlflow_exim_plugin.sinks.artifact_upload import ArtifactUpload
from mlflow_exim_plugin.sinks.counting import count_artifacts
from mlflow_exim_plugin.sinks.part_files import files_of_parts
from mlflow_exim_plugin.sinks.policy import TargetNames, differing, find_name, say_kept
from mlflow_exim_plugin.sinks.server.entities.plain import Calls, PlainWriter
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
                registries.create_mcp_server(self._target.host, named.name, document)
            icons = document.get("icons")
            if icons and (there is None or (named.is_ours and not there.get("icons"))):
                changed = self._try(
                    entity,
                    lambda: registries.set_mcp_icons(self._target.host, named.name, icons),
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
                    partial(registries.create_mcp_version, host, name, version),
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
            self._try(entity, partial(registries.settle_mcp_version, host, name, version), report)
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
                    partial(registries.set_mcp_tag, self._target.host, name, version, tag),
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
                    partial(registries.set_mcp_alias, self._target.host, name, alias, version),
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
                partial(registries.create_mcp_access_endpoint, self._target.host, name, endpoint),
                report,
            )
        return changed

    def _try(self, entity: Entity, call: Callable[[], None], report: Report) -> bool:
        """Write one part; a refused part is named and the others go on."""
        return attempt(call, Loss(entity.kind, entity.id, ""), report)

    def _servers(self) -> dict[str, dict[str, Any]]:
        if self._there is None:
            self._there = {}
            for item in registries.mcp_servers(self._target.host):
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


class SkillWriter:
    """Writes skills with their versions, whose numbers the target gives."""

    def __init__(self, target: ServerTarget) -> None:
        self._target = target
        self._there: dict[str, dict[str, dict[str, Any]]] | None = None

    def write(self, entity: Entity, to: Destination, report: Report) -> None:  # noqa: ARG002 - it belongs to no experiment
        """Write one skill with its parts."""
        document, name = entity.document, str(entity.document["name"])
        names = TargetNames(
            self._skills(document["organization"]).get,
            is_same=lambda there: _is_same_skill(document, there),
            keeps=lambda there: differing(document, there, "description", "icons"),
        )
        named = find_name(entity, name, names, self._target.options.on_conflict, report)
        if named.is_left:
            return
        there = named.there
        changed = False
        if self._target.options.dry_run:
            count_artifacts(entity.artifacts if there is None else (), report)
        else:
            if there is None:
                registries.create_skill(self._target.host, named.name, document)
            elif named.is_ours:
                say_kept(entity, "it", names.keeps(there), report)
            changed = self._add_parts(entity, named.name, there or {}, report)
        if changed or there is None:
            report.written(entity.kind)
        else:
            report.skipped(entity.kind, entity.id, named.reason)

    def finish(self, report: Report) -> None:
        """Nothing waits."""

    def _add_parts(self, entity: Entity, name: str, there: dict[str, Any], report: Report) -> bool:
        """Add versions, tags and aliases that are not there."""
        host, document = self._target.host, entity.document
        organization = document["organization"]
        files = {part["version"]: its for part, _, its in files_of_parts(entity)}
        present = list(there.get("versions", ()))
        changed = self._add_tags(entity, name, None, there, report)
        numbers: dict[int, int] = {}
        for version in document["versions"]:
            same = next((v for v in present if _content(v) == _content(version)), None)
            if same is None:
                add = partial(self._add_version, entity, name, version, report)
                made = self._attempt(entity, partial(add, files.get(version["version"])), report)
                if made is None:
                    continue
                changed, number = True, made["version"]
            else:
                present.remove(same)
                number = same["version"]
            numbers[version["version"]] = number
            changed |= self._add_tags(entity, name, (version, number), same or {}, report)
            if same is None and version["status"] == "deprecated":
                settle = registries.set_skill_version_deprecated
                self._attempt(entity, partial(settle, host, name, organization, number), report)
        if moved := [f"{old} is {new}" for old, new in numbers.items() if old != new]:
            what = f"versions are renumbered: version {', '.join(moved)}"
            report.lost(Loss(entity.kind, entity.id, what))
        aliases = {entry["alias"]: entry["version"] for entry in there.get("aliases", ())}
        for entry in document.get("aliases", ()):
            alias, new = entry["alias"], numbers.get(entry["version"])
            if new is None:
                what = f"alias {alias!r} is not set: its version is not there"
                report.lost(Loss(entity.kind, entity.id, what))
            elif aliases.get(alias, new) != new:
                say_kept(entity, f"alias {alias!r}", ["version"], report)
            elif alias not in aliases:
                point = partial(registries.set_skill_alias, host, name, organization, alias, new)
                changed |= attempt(point, Loss(entity.kind, entity.id, ""), report)
        return changed

    def _add_version(
        self,
        entity: Entity,
        name: str,
        version: dict[str, Any],
        report: Report,
        files: list[Artifact | Failure] | None,
    ) -> dict[str, Any]:
        host, organization = self._target.host, entity.document["organization"]
        if files is None:
            return registries.create_skill_version(host, name, organization, version)
        if not files or any(isinstance(file, Failure) for file in files):
            count_artifacts((file for file in files if isinstance(file, Failure)), report)
            raise ServerError(f"version {version['version']} is left out without its files")
        if host.is_http:
            whole = [file for file in files if isinstance(file, Artifact)]
            made = registries.create_uploaded_version(host, name, organization, version, whole)
            count_artifacts(files, report)
            return made
        place = registries.new_place(name, organization)
        if not ArtifactUpload(host).put(entity.id, place, "", files, report):
            raise ServerError(f"version {version['version']} is left out without its files")
        return registries.create_skill_version(
            host, name, organization, version | {"source": place}
        )

    def _add_tags(
        self,
        entity: Entity,
        name: str,
        version: tuple[dict[str, Any], int] | None,
        there: dict[str, Any],
        report: Report,
    ) -> bool:
        document, number = version or (entity.document, None)
        present = {tag["key"]: tag["value"] for tag in there.get("tags", ())}
        changed = False
        for tag in document.get("tags", ()):
            if tag["key"] not in present:
                organization = entity.document["organization"]
                call = partial(
                    registries.set_skill_tag, self._target.host, name, organization, number, tag
                )
                changed |= attempt(call, Loss(entity.kind, entity.id, ""), report)
            elif present[tag["key"]] != tag["value"]:
                say_kept(entity, f"tag {tag['key']!r}", ["value"], report)
        return changed

    def _attempt(self, entity: Entity, call: Callable[[], Any], report: Report) -> Any:
        """Write one part and return it; a refused part is named and the others go on."""
        try:
            return call()
        except ServerLostError:
            raise
        except EximError as error:
            report.lost(Loss(entity.kind, entity.id, error.message))
            return None

    def _skills(self, organization: str) -> dict[str, dict[str, Any]]:
        if self._there is None:
            self._there = {}
            for item in registries.skills(self._target.host):
                if isinstance(item, Failure):
                    raise ServerError(f"skill {item.id} at the target: {item.reason}")
                of = self._there.setdefault(item.document["organization"], {})
                of[item.document["name"]] = item.document
        return self._there.setdefault(organization, {})


def _content(version: dict[str, Any]) -> tuple[Any, ...]:
    """Return what tells versions apart but for their numbers."""
    described = KINDS[Kind.SKILL].files
    is_uploaded = described is not None and described.root(version) is not None
    source = None if is_uploaded else version.get("source")
    return (source, *(version.get(f) for f in ("source_type", "ref", "subpath", "digest")))


def _is_same_skill(document: dict[str, Any], there: dict[str, Any]) -> bool:
    """Whether an unpack made what is there: whole, or up to where it was interrupted."""
    if differing(document, there, "description") and there.get("description"):
        return False
    contents = [_content(version) for version in document["versions"]]
    return all(_content(version) in contents for version in there["versions"])


def webhook_writer(target: ServerTarget) -> PlainWriter:
    """Make what writes webhooks, disabled: a copy must not call what the original calls."""

    def refer(webhook: Entity) -> tuple[dict[str, Any], list[Loss]]:
        what = "it is disabled: give it its secret, if it had one, and switch it on"
        loss = Loss(webhook.kind, str(webhook.document["name"]), what)
        return webhook.document, [] if webhook.document.get("status") == "DISABLED" else [loss]

    calls = Calls(
        lambda host, _: registries.webhook_documents(host),
        lambda host, _, __, document: registries.create_webhook(host, document),
    )
    return PlainWriter(target, Kind.WEBHOOK, calls, refer)


def writers(target: ServerTarget, _: Mapping[Kind, Any]) -> dict[Kind, FamilyWriter]:
    """Make what writes each kind."""
    return {
        Kind.MCP_SERVER: McpServerWriter(target),
        Kind.SKILL: SkillWriter(target),
        Kind.WEBHOOK: webhook_writer(target),
    }
