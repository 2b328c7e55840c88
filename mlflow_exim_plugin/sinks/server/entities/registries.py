"""MCP servers, skills and webhooks to a deployment."""

from __future__ import annotations

from abc import abstractmethod
from functools import partial
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import EximError, ServerError, ServerLostError
from mlflow_exim_plugin.host.entities import registries
from mlflow_exim_plugin.kinds import KINDS
from mlflow_exim_plugin.schema.objects import Artifact, Entity, Failure, Kind, Loss, key_values
from mlflow_exim_plugin.sinks.artifact_upload import ArtifactUpload
from mlflow_exim_plugin.sinks.counting import count_artifacts
from mlflow_exim_plugin.sinks.part_files import files_of_parts
from mlflow_exim_plugin.sinks.policy import (
    TargetName,
    TargetNames,
    differing,
    find_name,
    say_kept,
    say_moved,
)
from mlflow_exim_plugin.sinks.server.entities.plain import Calls, PlainWriter
from mlflow_exim_plugin.sinks.server.target import Destination, FamilyWriter, ServerTarget, attempt

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mlflow_exim_plugin.host.open.host import Host
    from mlflow_exim_plugin.schema.report import Report

__all__ = ["writers"]

_VERSION_FIELDS = ("server_json", "source", "tools", "connect_options")
_ENDPOINT_FIELDS = ("url", "transport_type", "server_version", "server_alias")


class RegistryWriter(FamilyWriter):
    """Writes objects with versions: what one that is there lacks is added, nothing is changed.

    Attributes:
        fields: Fields that one which is there keeps.
        create: Makes one without its parts.
    """

    fields: tuple[str, ...]
    create: Callable[[Host, str, dict[str, Any]], None]

    def __init__(self, target: ServerTarget) -> None:
        super().__init__(target)
        self._there: dict[str, dict[str, Any]] | None = None

    def write(self, entity: Entity, to: Destination, report: Report) -> None:  # noqa: ARG002 - it belongs to no experiment
        """Write one object with its parts."""
        document, known = entity.document, self._known(entity.kind)
        names = TargetNames(
            lambda name: known.get(registries.identity(*_owner(name, document))),
            is_same=lambda there: self._is_same(document, there),
            keeps=lambda there: differing(document, there, *self.fields),
        )
        name, policy = str(document["name"]), self._target.options.on_conflict
        named = find_name(entity, name, names, policy, report)
        if named.is_left:
            return
        changed = self._put_own(entity, named, report)
        owner = _owner(named.name, document)
        changed |= self._add_parts(entity, owner, named.there or {}, report)
        named.count(entity.kind, entity.id, report, changed=changed)

    def _put_own(self, entity: Entity, named: TargetName[dict[str, Any]], report: Report) -> bool:
        """Make an object without its parts, or say what it keeps; return what changed there."""
        if named.there is None and not self._target.options.dry_run:
            self.create(self._target.host, named.name, entity.document)
        elif named.there and named.is_ours:
            fields = differing(entity.document, named.there, *self.fields)
            say_kept(entity, "it", fields, report)
        return False

    def _add_parts(
        self, entity: Entity, owner: tuple[str, ...], there: dict[str, Any], report: Report
    ) -> bool:
        """Add versions, tags and aliases that are not there."""
        document, present = entity.document, list(there.get("versions", ()))
        changed = self._add_tags(entity, owner, None, document, there, report)
        numbers: dict[Any, Any] = {}
        unsettled = []
        for version in document.get("versions", ()):
            same = next((v for v in present if self._is_version(version, v)), None)
            if same is None:
                make = partial(self._make, entity, owner, version, report)
                number = self._part(entity, make, report)
                if number is None:
                    continue
                unsettled.append((version, number))
                changed = True
            else:
                present.remove(same)
                number = same["version"]
                fields = self._differing(version, same, "status")
                say_kept(entity, f"version {number!r}", fields, report)
            numbers[version["version"]] = number
            if same is None or same["status"] != "deleted":
                changed |= self._add_tags(entity, owner, number, version, same or {}, report)
        say_moved(entity, numbers.items(), report)
        wanted = {entry["alias"]: entry["version"] for entry in document.get("aliases", ())}
        for alias in [alias for alias, version in wanted.items() if version not in numbers]:
            del wanted[alias]
            what = f"alias {alias!r} is not set: its version is not there"
            report.lost(Loss(entity.kind, entity.id, what))
        changed |= self._add_missing(
            entity,
            ("alias", "version"),
            {alias: numbers[version] for alias, version in wanted.items()},
            {entry["alias"]: entry["version"] for entry in there.get("aliases", ())},
            partial(registries.set_alias, self._target.host, entity.kind, owner),
            report,
        )
        # A version at rest takes no access endpoint, so its last status comes after them.
        changed |= self._add_more(entity, owner, there, report)
        for version, number in () if self._target.options.dry_run else unsettled:
            settle = partial(registries.settle_version, self._target.host, entity.kind, owner)
            self._part(entity, partial(settle, number, version["status"]), report)
        return changed

    def _add_tags(
        self,
        entity: Entity,
        owner: tuple[str, ...],
        number: Any,
        document: dict[str, Any],
        there: dict[str, Any],
        report: Report,
    ) -> bool:
        put = partial(registries.set_tag, self._target.host, entity.kind, owner, number)
        wanted, present = (key_values(d.get("tags")) for d in (document, there))
        return self._add_missing(entity, ("tag", "value"), wanted, present, put, report)

    def _add_missing(
        self,
        entity: Entity,
        what: tuple[str, str],
        wanted: dict[str, Any],
        there: dict[str, Any],
        put: Callable[[str, Any], None],
        report: Report,
    ) -> bool:
        """Put what has no value yet, and name what has another one."""
        changed = False
        for key, value in wanted.items():
            if key not in there:
                changed |= self._attempt(entity, partial(put, key, value), report)
            elif there[key] != value:
                say_kept(entity, f"{what[0]} {key!r}", [what[1]], report)
        return changed

    def _attempt(self, entity: Entity, call: Callable[[], None], report: Report) -> bool:
        loss = Loss(entity.kind, entity.id, "")
        return self._target.options.dry_run or attempt(call, loss, report)

    def _part(self, entity: Entity, call: Callable[[], Any], report: Report) -> Any:
        """Write one part and return it; a refused part is named and the others go on."""
        try:
            return call()
        except ServerLostError:
            raise
        except EximError as error:
            report.lost(Loss(entity.kind, entity.id, error.message))
            return None

    def _is_same(self, document: dict[str, Any], there: dict[str, Any]) -> bool:
        """Whether an unpack made what is there: whole, or up to where it was interrupted."""
        if differing(document, there, "description") and there.get("description"):
            return False
        return all(
            any(
                self._is_version(one, its) and not self._differing(one, its)
                for one in document.get("versions", ())
            )
            for its in there.get("versions", ())
        )

    def _known(self, kind: Kind) -> dict[str, dict[str, Any]]:
        if self._there is None:
            self._there = {}
            for item in registries.READS[kind](self._target.host):
                if isinstance(item, Failure):
                    raise ServerError(f"{kind.words} {item.id} at the target: {item.reason}")
                self._there[item.id] = item.document
        return self._there

    def _is_version(self, version: dict[str, Any], there: dict[str, Any]) -> bool:
        """Whether a version is the one that is there."""
        return bool(version["version"] == there["version"])

    def _differing(self, version: dict[str, Any], there: dict[str, Any], *more: str) -> list[str]:
        """Return the fields that a version which is there keeps."""
        del version, there, more
        return []

    @abstractmethod
    def _make(
        self, entity: Entity, owner: tuple[str, ...], version: dict[str, Any], report: Report
    ) -> Any:
        """Make a version and return its number."""

    def _add_more(
        self, entity: Entity, owner: tuple[str, ...], there: dict[str, Any], report: Report
    ) -> bool:
        """Add parts that one kind alone has."""
        del entity, owner, there, report
        return False


def _owner(name: str, document: dict[str, Any]) -> tuple[str, ...]:
    """Return what names an object in MLflow's calls."""
    return (name, document["organization"]) if "organization" in document else (name,)


class McpServerWriter(RegistryWriter):
    """Writes MCP servers."""

    fields = ("description", "display_name", "icons")
    create = staticmethod(registries.create_mcp_server)

    def _put_own(self, entity: Entity, named: TargetName[dict[str, Any]], report: Report) -> bool:
        there, icons = named.there, entity.document.get("icons")
        if not icons or (there and not (named.is_ours and not there.get("icons"))):
            return super()._put_own(entity, named, report)
        if there is None:
            super()._put_own(entity, named, report)
        put = partial(registries.set_mcp_icons, self._target.host, named.name, icons)
        return self._attempt(entity, put, report)

    def _differing(self, version: dict[str, Any], there: dict[str, Any], *more: str) -> list[str]:
        # The server's name in it may be new.
        name = {"name": there["server_json"].get("name")}
        renamed = version | {"server_json": version["server_json"] | name}
        return differing(renamed, there, *_VERSION_FIELDS, *more)

    def _make(
        self, entity: Entity, owner: tuple[str, ...], version: dict[str, Any], report: Report
    ) -> Any:
        del entity, report
        if not self._target.options.dry_run:
            registries.create_mcp_version(self._target.host, owner[0], version)
        return version["version"]

    def _add_more(
        self, entity: Entity, owner: tuple[str, ...], there: dict[str, Any], report: Report
    ) -> bool:
        present = list(there.get("access_endpoints", ()))
        changed = False
        for endpoint in entity.document.get("access_endpoints", ()):
            same = [e for e in present if not differing(endpoint, e, *_ENDPOINT_FIELDS)]
            if same:
                present.remove(same[0])
                continue
            make = registries.create_mcp_access_endpoint
            call = partial(make, self._target.host, owner[0], endpoint)
            changed |= self._attempt(entity, call, report)
        return changed


class SkillWriter(RegistryWriter):
    """Writes skills, whose versions the target numbers."""

    fields = ("description", "icons")
    create = staticmethod(registries.create_skill)

    def _add_parts(
        self, entity: Entity, owner: tuple[str, ...], there: dict[str, Any], report: Report
    ) -> bool:
        self._files = {part["version"]: its for part, _, its in files_of_parts(entity)}
        self._last = max((int(v["version"]) for v in there.get("versions", ())), default=0)
        return super()._add_parts(entity, owner, there, report)

    def _is_version(self, version: dict[str, Any], there: dict[str, Any]) -> bool:
        return _content(version) == _content(there)

    def _make(
        self, entity: Entity, owner: tuple[str, ...], version: dict[str, Any], report: Report
    ) -> Any:
        host, (name, organization) = self._target.host, owner
        files = self._files.get(version["version"])
        if self._target.options.dry_run and files is None:
            return self._planned_number(version)
        if files is None:
            return registries.create_skill_version(host, name, organization, version)["version"]
        if not files or any(isinstance(file, Failure) for file in files):
            count_artifacts((file for file in files if isinstance(file, Failure)), report)
            raise ServerError(f"version {version['version']} is left out without its files")
        if self._target.options.dry_run:
            count_artifacts(files, report)
            return self._planned_number(version)
        if host.is_http:
            whole = [file for file in files if isinstance(file, Artifact)]
            made = registries.create_uploaded_version(host, name, organization, version, whole)
            count_artifacts(files, report)
            return made["version"]
        place = registries.new_place(name, organization)
        if not ArtifactUpload(host).put(entity.id, place, "", files, report):
            raise ServerError(f"version {version['version']} is left out without its files")
        return registries.create_skill_version(
            host, name, organization, version | {"source": place}
        )["version"]

    def _planned_number(self, version: dict[str, Any]) -> Any:
        """Return the number that the target would give next."""
        self._last += 1
        return type(version["version"])(self._last)


def _content(version: dict[str, Any]) -> tuple[Any, ...]:
    """Return what tells versions apart but for their numbers."""
    described = KINDS[Kind.SKILL].files
    is_uploaded = described is not None and described.root(version) is not None
    source = None if is_uploaded else version.get("source")
    return (source, *(version.get(f) for f in ("source_type", "ref", "subpath", "digest")))


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
