"""Registered models and prompts to a database, their versions under their own numbers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mlflow_exim_plugin.container.paths import encode_segment
from mlflow_exim_plugin.errors import ServerError
from mlflow_exim_plugin.host.api.reading import PROMPT_TAG
from mlflow_exim_plugin.host.files.gate import REFUSED, place_problem
from mlflow_exim_plugin.host.sql.run_rows import model_rows, version_rows
from mlflow_exim_plugin.schema.objects import (
    Kind,
    Loss,
    ModelVersion,
    RegisteredModel,
    key_values,
    model_behind,
    model_only_told,
)
from mlflow_exim_plugin.schema.provenance import ORIGIN, chained, model_origin, names_of, origins
from mlflow_exim_plugin.sinks.counting import count_artifacts
from mlflow_exim_plugin.sinks.database.files import complete_missing, put_files
from mlflow_exim_plugin.sinks.database.states import State
from mlflow_exim_plugin.sinks.policy import Meetings, TargetNames, find_name

if TYPE_CHECKING:
    from mlflow_exim_plugin.host.sql.writer import Rows
    from mlflow_exim_plugin.schema.report import Report
    from mlflow_exim_plugin.sinks.database.states import RowComparison
    from mlflow_exim_plugin.sinks.database.target import DatabaseTarget

__all__ = ["ModelTables"]

_EXPERIMENT_IDS = "_mlflow_experiment_ids"
_FOLLOWED = {"", "runs", "models"}
"""Schemes of sources that lead to where files are now; prompts have none."""
_TOMBSTONE = "Deleted_Internal"
_EDITED_OF_VERSIONS = ("description", "current_stage", "last_updated_time")


@dataclass
class _ModelRows:
    """The registered model that is being written.

    Attributes:
        source: As it comes.
        name: Its name at the target.
        row: Its own row.
        is_same: Whether what is there is this very one.
        numbers: Number at the target of each version that came.
        there: Rows of the versions that were there, by number.
        copies: Number of each version that an unpack renumbered, by its origins.
        own: Number of each version that was there, by its own origin.
    """

    source: RegisteredModel
    name: str
    row: dict[str, Any] = field(default_factory=dict)
    is_same: bool = True
    numbers: dict[int, int] = field(default_factory=dict)
    there: dict[int, dict[str, Any]] = field(default_factory=dict)
    copies: dict[str, int] = field(default_factory=dict)
    own: dict[str, int] = field(default_factory=dict)


class ModelTables:
    """Writes registered models and prompts one after the other.

    Args:
        target: The database.
    """

    def __init__(self, target: DatabaseTarget) -> None:
        self._target = target
        self._model: _ModelRows | None = None
        self._skipped = ""
        self._meetings = Meetings()
        self._planned: dict[str, _ModelRows] = {}

    def enter_workspace(self) -> None:
        """Let nothing meet what came before: it is in another workspace."""
        self._meetings = Meetings()
        self._planned = {}

    def begin(self, item: RegisteredModel, report: Report) -> None:
        """Find or make a registered model or prompt.

        Raises:
            ConflictError: The target has a namesake of that name and the policy is ``fail``.
            ServerError: The database cannot hold it.
        """
        self.drop()
        self._model = model = self._placed(item, report)
        if model is not None:
            self._meetings.went(item.kind, item.name, model.name)

    def drop(self) -> None:
        """Give up the model that was begun: it was taken back, or never written."""
        self._model, self._skipped = None, ""

    def _placed(self, item: RegisteredModel, report: Report) -> _ModelRows | None:
        there = self._there(item.name)
        created = item.document.get("creation_timestamp")
        if there is not None and there["creation_time"] == created:
            return self._same(item, report)
        if (copy := self._copy_of(item)) is not None:
            report.skipped(item.kind, item.name, "it is there already")
            return self._known(item, copy)
        names = TargetNames(
            self._there,
            meetings=self._meetings,
            keeps=lambda _: ["tags and text"],
            kind_of=self._kind_there,
            longest=self._target.longest_name,
        )
        named = find_name(item, item.name, names, self._target.options.on_conflict, report)
        if named.is_left:
            self._skipped = named.reason
            return None
        if named.there is None:
            return self._new(item, named.name, report)
        report.skipped(item.kind, item.name, named.reason)
        return self._known(item, named.name, is_same=False)

    def _same(self, item: RegisteredModel, report: Report) -> _ModelRows:
        rows = model_rows(item, item.name, self._target.workspace, self._tags(item))
        rows = self._target.fit(item.kind, item.name, rows, report)
        compared = self._target.compare(item.kind, rows, self._owner(item.name))
        if compared is not None:
            self._settle(item, item.name, rows, compared, report)
        return self._known(item, item.name)

    def _settle(
        self,
        item: RegisteredModel | ModelVersion,
        identity: str,
        rows: Rows,
        compared: RowComparison,
        report: Report,
    ) -> None:
        """Let what is there follow its edits at the source, or leave it as it is."""
        target = self._target
        if compared.state is not State.EARLIER:
            target.leave(item.kind, identity, compared, report)
            return
        target.require(rows)
        target.grow(item.kind, identity, compared, report)
        target.count(item.kind, report)

    def _owner(self, name: str) -> dict[str, Any]:
        return self._target.owned("registered_models", name=name)

    def _there(self, name: str) -> dict[str, Any] | None:
        if name in self._planned:
            return self._planned[name].row
        return self._target.tables.one("registered_models", **self._owner(name))

    def _copy_of(self, item: RegisteredModel) -> str | None:
        """Return the name under which this very model was written before."""
        wanted = origins(model_origin(item.document), key_values(item.document.get("tags")))
        ours = self._target.owned("registered_model_tags", key=names_of(ORIGIN))
        for tag in self._target.tables.select("registered_model_tags", **ours):
            if wanted[0] in str(tag["value"]).split():
                return str(tag["name"])
        there = self._there(item.name)
        is_original = there is not None and _origin_of_row(there) in wanted
        return item.name if is_original else None

    def _kind_there(self, there: dict[str, Any]) -> Kind:
        its = self._owner(there["name"])
        tags = self._target.tables.select("registered_model_tags", **its)
        is_prompt = any(tag["key"] == PROMPT_TAG and tag["value"] == "true" for tag in tags)
        return Kind.PROMPT if is_prompt else Kind.REGISTERED_MODEL

    def _known(self, item: RegisteredModel, name: str, *, is_same: bool = True) -> _ModelRows:
        if name in self._planned:
            return replace(self._planned[name], source=item, is_same=is_same, numbers={})
        model = _ModelRows(item, name, self._there(name) or {}, is_same=is_same)
        tables = self._target.tables
        rows = tables.select("model_versions", **self._owner(name))
        model.there = {int(row["version"]): row for row in rows}
        of_versions = {**self._owner(name), "key": names_of(ORIGIN)}
        for tag in tables.select("model_version_tags", **of_versions):
            model.copies |= dict.fromkeys(str(tag["value"]).split(), int(tag["version"]))
        if model.row:
            model.own = {f"{_origin_of_row(model.row)}/{number}": number for number in model.there}
        return self._remembered(model)

    def _new(self, item: RegisteredModel, name: str, report: Report) -> _ModelRows:
        target = self._target
        tags = self._tags(item)
        listed = key_values(item.document.get("tags")).get(_EXPERIMENT_IDS, "").split(",")
        if gone := [i for i in listed if i and i not in target.ids[Kind.EXPERIMENT]]:
            what = f"its links to experiments {', '.join(gone)} stay: they did not come along"
            report.lost(Loss(item.kind, item.name, what))
        if name != item.name:
            tags[ORIGIN] = chained(model_origin(item.document), tags)
        rows = model_rows(item, name, target.workspace, tags)
        rows = target.fit(item.kind, item.name, rows, report)
        target.require(rows)
        target.add(rows)
        target.count(item.kind, report)
        return self._remembered(_ModelRows(item, name, rows[0][1]))

    def _remembered(self, model: _ModelRows) -> _ModelRows:
        """Remember in a dry run what no table will tell: another model may join this one."""
        if self._target.options.dry_run:
            self._planned[model.name] = model
        return model

    def _tags(self, item: RegisteredModel) -> dict[str, str]:
        tags = key_values(item.document.get("tags")) | item.source_tags
        if listed := tags.get(_EXPERIMENT_IDS):  # text such as ",1,7,"
            new = self._target.ids[Kind.EXPERIMENT]
            tags[_EXPERIMENT_IDS] = ",".join(new.get(i, i) for i in listed.split(","))
        return tags

    def write_version(self, version: ModelVersion, report: Report) -> None:
        """Write one version.

        Raises:
            ServerError: The database cannot hold it.
        """
        model, target = self._model, self._target
        if model is None:
            if not self._skipped:
                raise ServerError("its registered model could not be written")
            report.skipped(version.kind, version.id, self._skipped)
            return
        if kin := target.ids[Kind.RUN].get(version.document.get("run_id") or ""):
            version = replace(version, document=version.document | {"run_id": kin})
        origin = f"{model_origin(model.source.document)}/{version.version}"
        tags = key_values(version.document.get("tags")) | version.source_tags
        own = (model.own[was] for was in origins(origin, tags) if was in model.own)
        original = next(own, None) or model.copies.get(origin)
        number = original or version.version
        there = model.there.get(number)
        if there is not None and (model.is_same or original):
            if there["current_stage"] == _TOMBSTONE:
                report.skipped(version.kind, version.id, "its copy was deleted at the target")
                return
            model.numbers[version.version] = number
            if self._complete(version, there, report):
                target.count(version.kind, report)
                return
            if target.options.takes_edits:
                self._take_edits(version, model.name, number, there, report)
                return
            reason = self._as_it_is_there(version, there, report, is_kin=bool(original))
            report.skipped(version.kind, version.id, reason)
            return
        if reason := target.left.reason(version):
            report.skipped(version.kind, version.id, reason)
            return
        if not model.is_same:
            tags[ORIGIN] = chained(origin, tags)
            if there is not None:
                number = max(model.there) + 1
                what = f"it has number {number} at the target"
                report.lost(Loss(version.kind, version.id, what))
        artifacts = iter(version.artifacts)
        first = next(artifacts, None)
        files = () if first is None else chain([first], artifacts)
        folder = None
        if first is not None and not target.keeps_locations:
            name = encode_segment(model.name)
            folder = f"{target.artifact_root}/model_versions/{name}/{number}"
        places = self._places(version, folder, report)
        if model_id := model_only_told(version.document):
            what = f"that it was made of logged model {model_id} only a store of files keeps"
            report.lost(Loss(version.kind, version.id, what))
        self._name_its_run(version, places[0], report)
        rows = version_rows(version, model.name, number, target.workspace, places, tags)
        rows = target.fit(version.kind, version.id, rows, report)
        target.require(rows)
        model.there[number] = rows[0][1]
        model.numbers[version.version] = number
        target.add(rows)
        if target.options.dry_run:
            count_artifacts(files, report)
        else:
            put_files(target, version.id, folder or "", files, report)
        target.count(version.kind, report)

    def _take_edits(
        self,
        version: ModelVersion,
        name: str,
        number: int,
        there: dict[str, Any],
        report: Report,
    ) -> None:
        """Let a version follow: its text, stage and tags; all else of it is as it was made."""
        target = self._target
        tags = key_values(version.document.get("tags")) | version.source_tags
        places = (there["source"], there["storage_location"])
        rows = version_rows(version, name, number, target.workspace, places, tags)
        (table, row), *others = target.fit(version.kind, version.id, rows, report)
        own = there | {column: row[column] for column in _EDITED_OF_VERSIONS}
        rows = [(table, own), *others]
        key = target.owned(table, name=name, version=number)
        compared = target.compare(version.kind, rows, key)
        assert compared is not None  # noqa: S101 - it is there
        self._settle(version, version.id, rows, compared, report)

    def _complete(self, version: ModelVersion, there: dict[str, Any], report: Report) -> bool:
        """Send the files of its own that a version lacks; return whether there were any."""
        target, root = self._target, str(there["storage_location"] or "")
        if not root.startswith(f"{target.artifact_root}/model_versions/"):
            return False
        return complete_missing(target, version.kind, version.id, root, version.artifacts, report)

    def _as_it_is_there(
        self,
        version: ModelVersion,
        there: dict[str, Any],
        report: Report,
        *,
        is_kin: bool,
    ) -> str:
        fields = ["description", "run_id", "current_stage"]
        if not is_kin:  # the API gives a copy a time of its own
            fields.insert(0, "creation_timestamp")
        columns = {"creation_timestamp": "creation_time"}
        wanted = {"current_stage": "None"} | version.document
        differing = [
            name
            for name in fields
            if (wanted.get(name) or None) != (there.get(columns.get(name, name)) or None)
        ]
        if not differing:
            return "it is there already"
        what = f"the target has another state of it, which stays: {', '.join(differing)}"
        report.lost(Loss(version.kind, version.id, what))
        return what

    def _places(
        self, version: ModelVersion, folder: str | None, report: Report
    ) -> tuple[str | None, str | None]:
        """Return the source of a version at the target, and where its files are."""
        source = version.document.get("source")
        if source is None or self._target.keeps_locations:
            return source, version.files_at or source
        scheme = urlsplit(source).scheme
        new = self._target.moved(source)
        if not new and (problem := place_problem(source, version.kind)):
            if folder is None:
                what = f"its source {source!r} is left out: {problem}"
                report.lost(Loss(version.kind, version.id, what))
            return folder or REFUSED, folder or REFUSED
        if scheme == "models" and (model_id := model_behind(version.document)):
            found = self._logged_model(model_id)
            if folder is None and not self._target.is_there("logged_models", model_id=model_id):
                what = f"the logged model {model_id} that it was made of is not at the target"
                report.lost(Loss(version.kind, version.id, what))
            return source, folder or (str(found["artifact_location"]) if found else source)
        if scheme in {"runs", "models"} or version.kind is Kind.PROMPT_VERSION:
            return source, folder or source
        return folder or new or source, folder or new or source

    def _name_its_run(self, version: ModelVersion, place: str | None, report: Report) -> None:
        """Name a run that is not at the target, or among whose files the version's are not."""
        run_id, source = version.document.get("run_id"), str(version.document.get("source") or "")
        if not run_id:
            return
        if not self._target.is_there("runs", run_uuid=run_id):
            what = f"its run {run_id} is not at the target"
        elif (
            place != source
            or self._target.keeps_locations
            or urlsplit(source).scheme in _FOLLOWED
            or self._target.moved(source)
        ):
            return
        else:
            what = f"its source is still {source}: it is not below its run {run_id}"
        report.lost(Loss(version.kind, version.id, what))

    def _logged_model(self, model_id: str) -> dict[str, Any] | None:
        if not self._target.tables.has("logged_models"):
            return None
        return self._target.tables.one("logged_models", model_id=model_id)

    def finish(self, report: Report) -> None:
        """Write the aliases of the model that was begun; those that are there stay."""
        model, self._model = self._model, None
        if model is None:
            return
        target = self._target
        there = {
            row["alias"]: row["version"]
            for row in target.tables.select("registered_model_aliases", **self._owner(model.name))
        }
        rows = []
        for alias, number in model.source.aliases.items():
            at_target = model.numbers.get(number)
            if self._follows(model, alias, at_target, there):
                continue
            if alias in there or at_target is None:
                if at_target is None or there.get(alias) != at_target:
                    what = f"alias {alias!r} of version {number} is not set"
                    report.lost(Loss(model.source.kind, model.source.name, what))
                continue
            row = {
                "workspace": target.workspace,
                "name": model.name,
                "alias": alias,
                "version": at_target,
            }
            rows.append(("registered_model_aliases", row))
        target.require(rows)
        target.add(rows)

    def _follows(
        self, model: _ModelRows, alias: str, number: int | None, there: dict[str, int]
    ) -> bool:
        """Move an alias that leads elsewhere, where edits are taken; return whether it was."""
        target = self._target
        moves = target.options.takes_edits and model.is_same and alias in there
        if not moves or number is None or there[alias] == number:
            return False
        if not target.options.dry_run:
            key = self._owner(model.name) | {"alias": alias}
            target.tables.update("registered_model_aliases", {"version": number}, **key)
        return True


def _origin_of_row(there: dict[str, Any]) -> str:
    return model_origin({"name": there["name"], "creation_timestamp": there["creation_time"]})
