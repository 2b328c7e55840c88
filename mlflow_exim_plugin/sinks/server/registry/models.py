"""Registered models and prompts with their versions: numbers kept, gaps replayed, sources moved."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import ServerError
from mlflow_exim_plugin.host.api.reading import PROMPT_TAG
from mlflow_exim_plugin.schema.canonical import content_digest
from mlflow_exim_plugin.schema.objects import (
    Kind,
    Loss,
    ModelVersion,
    RegisteredModel,
    key_values,
)
from mlflow_exim_plugin.schema.provenance import (
    AS_OF_MS,
    CONTENT,
    OF_GROUP,
    ORIGIN,
    PLACEHOLDER,
    chained,
    is_provenance,
    kinship,
    model_origin,
    newest,
    origins,
    told,
)
from mlflow_exim_plugin.sinks.policy import (
    Meetings,
    TargetNames,
    find_name,
    is_numbered,
)
from mlflow_exim_plugin.sinks.server.registry.edits import EXPERIMENT_IDS, RegistryEdits, differing
from mlflow_exim_plugin.sinks.server.registry.version_sources import VersionSource, VersionSources
from mlflow_exim_plugin.sinks.server.target import ServerTarget, attempt
from mlflow_exim_plugin.sinks.server.texts import RegistryTags

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlflow_exim_plugin.schema.report import Report
    from mlflow_exim_plugin.sinks.server.artifact_runs import ArtifactRuns
    from mlflow_exim_plugin.sinks.server.runs import RunWriter

__all__ = ["ModelWriter"]

_PLACEHOLDER_SOURCE = "s3://mlflow-exim-placeholder/none"
_PROMPT_SOURCE = "dummy-source"
"""What MLflow's own client gives prompts, which have no files; servers take little else."""
_MOST_PLACEHOLDERS = 10_000
_KINDS = (Kind.REGISTERED_MODEL, Kind.MODEL_VERSION, Kind.PROMPT, Kind.PROMPT_VERSION)
_OF_THE_FIRST = "the target's registry is one of the first, without tags to know copies by"
_NUMBERED = re.compile(r"(?: \(\d+\)|\.\d+)$")
"""What a name has at its end that a conflict gave it."""


@dataclass
class _ModelCopy:
    """The registered model that is being written.

    Attributes:
        name: Name at the target.
        origin: What identifies it at the source.
        ours: True when an unpack made it.
        versions: Version number at the target by that at the source.
        unfinished: Versions that were begun and not written to the end, by that at the source.
        next_version: Number the target gives next.
        as_of_ms: When the source was read of which the target took the aliases.
        aliases_taken: Digest of them.
        document: It at the target, empty while it is new.
        edited: What of it followed its source.
        own: Numbers of the versions that the target has, by their origins.
        later: Numbers of those that were made of others, by the origins of these.
        stages: Those that were set, by number of the version.
        is_original: Whether it is the target's own model that came back.
    """

    source: RegisteredModel
    name: str
    origin: str
    ours: bool
    versions: dict[int, int] = field(default_factory=dict)
    documents: dict[int, dict[str, Any]] = field(default_factory=dict)
    aliases: dict[str, int] = field(default_factory=dict)
    next_version: int = 1
    as_of_ms: int = 0
    aliases_taken: str = ""
    placeholders: list[int] = field(default_factory=list)
    unfinished: set[int] = field(default_factory=set)
    document: dict[str, Any] = field(default_factory=dict)
    edited: list[RegisteredModel | ModelVersion] = field(default_factory=list)
    own: dict[str, int] = field(default_factory=dict)
    later: dict[str, int] = field(default_factory=dict)
    stages: dict[int, str] = field(default_factory=dict)
    is_original: bool = False

    def number_of(self, came_from: list[str]) -> int | None:
        """Return the number of a version by all that it was, None where it is not at the target."""
        own = (self.own[origin] for origin in came_from if origin in self.own)
        return next(own, None) or self.later.get(came_from[0])

    @property
    def kind(self) -> Kind:
        """Whether it is a registered model or a prompt."""
        return self.source.kind


class ModelWriter:
    """Writes registered models and prompts one after the other, with their versions in order.

    Args:
        target: The deployment and how to write to it.
        run_writer: Uploads files.
        artifact_runs: Hold files of versions that no run holds.
    """

    def __init__(
        self, target: ServerTarget, run_writer: RunWriter, artifact_runs: ArtifactRuns
    ) -> None:
        self._host = target.host
        self._writer = target.writer
        self._reader = target.reader
        self._sources = VersionSources(target, run_writer, artifact_runs)
        self._ids = target.ids
        self._absent = target.absent
        self._source_tags = target.source_tags
        self._tags = RegistryTags(is_strict=target.options.is_strict)
        self._edits = RegistryEdits(target, self._tags)
        self._options = target.options
        self._model: _ModelCopy | None = None
        self._skipped = ""
        self._prompt_source: str | None = None
        self._meetings = Meetings()
        self._planned: dict[str, _ModelCopy] = {}
        self._names: dict[str, Kind] | None = None

    def begin(self, item: RegisteredModel, report: Report) -> None:
        """Find or create a registered model or prompt.

        Raises:
            ConflictError: The target has a namesake of that name and the policy is ``fail``.
            ServerError: The target refused.
        """
        self.finish(report)
        if self._is_absent(item):
            self._absent.leave(item, report)
            return
        self._model = model = self._found_or_made(item, model_origin(item.document), report)
        if model is None:
            return
        self._meetings.went(item.kind, item.name, model.name)
        self._ids.know(item.kind, item.name, model.name)
        if model.ours:
            self._link_experiments(model, report)

    def _is_absent(self, item: RegisteredModel) -> bool:
        """Whether the target has no registry, or one of those that had no tags.

        Raises:
            ServerError: It cannot be listed.
        """
        if not self._host.takes_models:
            self._absent.add(*_KINDS, reason=_OF_THE_FIRST)
        elif self._names is None and item.kind not in self._absent:
            try:
                self._all_names()
            except ServerError as error:
                if not self._absent.learn(Kind.REGISTERED_MODEL, error):
                    raise
                self._absent.add(*_KINDS)
        return item.kind in self._absent

    def _found_or_made(
        self, item: RegisteredModel, origin: str, report: Report
    ) -> _ModelCopy | None:
        name = self._known_name(item, origin)
        if name is not None:
            model = self._load(item, name, origin)
            if model.ours and not self._options.dry_run:
                self._put_model_tags(item, name, key_values(model.document.get("tags")), report)
            self._count(item, item.name, model, model.document, "it is there already", report)
            return model
        names = TargetNames(
            self._all_names().get,
            meetings=self._meetings,
            keeps=lambda _: ["tags and text"],
            kind_of=lambda kind: kind,
            longest=self._absent.longest_name,
        )
        named = find_name(item, item.name, names, self._options.on_conflict, report)
        if named.is_left:
            self._skipped = named.reason
            return None
        if named.there is None:
            try:
                return self._create(item, named.name, origin, report)
            except ServerError as error:
                if self._options.is_strict or not self._absent.learn_length(named.name, error):
                    raise
                return self._found_or_made(item, origin, report)
        report.skipped(item.kind, item.name, named.reason)
        if (planned := self._planned.get(named.name)) is not None:
            return _ModelCopy(
                item,
                named.name,
                origin,
                ours=False,
                aliases=planned.aliases,
                next_version=planned.next_version,
            )
        return self._load(item, named.name, origin)

    def write_version(self, version: ModelVersion, report: Report) -> None:
        """Write one version under its own number if that is still to be had.

        Raises:
            ServerError: The target refused.
        """
        model = self._model
        if model is None:
            if version.kind in self._absent:
                self._absent.leave(version, report)
                return
            if not self._skipped:
                raise ServerError("its registered model could not be written")
            report.skipped(version.kind, version.id, self._skipped)
            return
        came_from = origins(
            f"{model.origin}/{version.version}", key_values(version.document.get("tags"))
        )
        original = model.number_of(came_from)
        if version.version not in model.versions and original is not None:
            model.versions[version.version] = original
            self._ids.know(version.kind, version.id, f"{model.name}/{original}")
            report.skipped(version.kind, version.id, f"it is there already, as number {original}")
            return
        if version.version in model.versions:
            number = model.versions[version.version]
            self._ids.know(version.kind, version.id, f"{model.name}/{number}")
            self._complete(model, version, number, report)
            there = model.documents.get(number, {})
            self._sources.complete(version, there, report)
            reason = _as_it_is_there(version, model)
            self._count(version, version.id, model, there, reason, report)
            return
        if reason := self._ids.left.reason(version):
            report.skipped(version.kind, version.id, reason)
            return
        model.unfinished.add(version.version)
        source = self._sources.source(model.origin, version, report)
        self._fill_gap(model, version, report)
        tags = key_values(version.document.get("tags"))
        origin = f"{model.origin}/{version.version}"
        own = {k: v for k, v in tags.items() if not is_provenance(k)}
        marks = {ORIGIN: chained(origin, tags), OF_GROUP: model.origin}
        if model.kind is Kind.PROMPT:
            marks[PROMPT_TAG] = own.pop(PROMPT_TAG, "true")  # or the server refuses its source
        number = model.next_version  # which it will have, as far as a dry run can know
        if not self._options.dry_run:
            number = self._tags.made(
                version,
                partial(self._make, model, version, source),
                lambda made, key, value: self._writer.set_version_tag(model.name, made, key, value),
                own,
                marks,
                report,
                text=version.document.get("description"),
            )
        model.next_version = number + 1
        model.versions[version.version] = number
        self._ids.know(version.kind, version.id, f"{model.name}/{number}")
        if number != version.version:
            report.lost(Loss(version.kind, version.id, f"it has number {number} at the target"))
        if model.kind is Kind.PROMPT and self._prompt_source is not None:
            what = f"its source is {self._prompt_source}, it was {source.uri}"
            report.lost(Loss(version.kind, version.id, what))
        self._complete(model, version, number, report)
        model.unfinished.remove(version.version)
        report.written(version.kind)

    def _count(
        self,
        item: RegisteredModel | ModelVersion,
        identity: str,
        model: _ModelCopy,
        there: dict[str, Any],
        reason: str,
        report: Report,
    ) -> None:
        """Let a copy that is there follow its source, where it may; count it."""
        if model.ours and there and self._edits.follow(item, model.name, there, report):
            report.written(item.kind)
            report.completed(item.kind)
            model.edited.append(item)
            return
        report.skipped(item.kind, identity, reason)

    def _make(
        self,
        model: _ModelCopy,
        version: ModelVersion,
        source: VersionSource,
        tags: dict[str, str],
        text: str | None,
    ) -> int:
        def create(uri: str) -> int:
            return self._writer.create_version(
                model.name,
                uri,
                source.run_id,
                tags,
                version.document.get("run_link"),
                text,
                source.model_id,
            )

        return self._with_source(model.kind, source.uri, create)

    def _with_source(self, kind: Kind, source: str, create: Callable[[str], int]) -> int:
        """Make a version; MLflow before 2.22 may refuse the source that prompts have."""
        if kind is not Kind.PROMPT:
            return create(source)
        if self._prompt_source is None:
            try:
                return create(source)
            except ServerError as error:
                if not self._host.refused(error):
                    raise
            made = create(_PLACEHOLDER_SOURCE)
            self._prompt_source = _PLACEHOLDER_SOURCE
            return made
        return create(self._prompt_source)

    def finish(self, report: Report) -> None:
        """Set the aliases of the model that was begun and take its placeholders away."""
        model, self._model = self._model, None
        self._skipped = ""
        if model is None:
            return
        if model.name in self._planned:
            self._planned[model.name].next_version = model.next_version
        dry_run = self._options.dry_run
        for number in () if dry_run else model.placeholders:
            attempt(
                partial(self._writer.delete_version, model.name, number),
                Loss(model.kind, model.source.name, f"placeholder {number} is left"),
                report,
            )
        # Only a change at the source moves an alias: what the user moved here stays otherwise.
        taken = content_digest({"aliases": model.source.aliases})
        is_later = taken != model.aliases_taken and model.source.as_of_ms > model.as_of_ms
        aliases: dict[str, int] = {}
        for alias, source_number in model.source.aliases.items():
            target_number = model.versions.get(source_number)
            there = model.aliases.get(alias)
            if target_number is not None and there == target_number:
                continue
            what = f"alias {alias!r} of version {source_number} is not set"
            kept = Loss(model.kind, model.source.name, what)
            follows = is_later or self._options.takes_edits
            may_set = follows if model.ours else there is None and not model.is_original
            if target_number is None or not may_set:
                report.lost(kept)
                continue
            set_alias = partial(self._writer.set_alias, model.name, alias, target_number)
            if dry_run:
                model.aliases[alias] = target_number
            elif attempt(set_alias, kept, report):
                aliases[alias] = target_number
        if dry_run:
            return
        # Where a version failed, what follows from it is made up for the next time.
        is_whole = self._arrived(model, aliases, report) and not model.unfinished
        if is_whole and model.ours and is_later:
            for key, value in ((AS_OF_MS, str(model.source.as_of_ms)), (CONTENT, taken)):
                self._writer.set_model_tag(model.name, self._tags.name_of(key), value)

    def _arrived(self, model: _ModelCopy, aliases: dict[str, int], report: Report) -> bool:
        """Whether aliases, stages and deletions are there; a server need not keep what it takes."""
        if not (aliases or model.stages or model.placeholders or model.edited):
            return True
        document = self._reader.registered_model(model.name)
        there = RegisteredModel(document).aliases
        missing = [f"alias {alias!r}" for alias in aliases if there.get(alias) != aliases[alias]]
        if model.stages or model.placeholders or model.edited:
            listed = self._reader.model_versions(model.name, there, model.kind)
            documents = {int(v["version"]): v for v in listed}
            stages = {number: v.get("current_stage") for number, v in documents.items()}
            missing += [
                f"stage {stage} of version {number}"
                for number, stage in model.stages.items()
                if str(stages.get(number)).lower() != stage.lower()
            ]
            missing += [f"deletion of placeholder {n}" for n in model.placeholders if n in stages]
        for item in model.edited:
            if isinstance(item, ModelVersion):
                document = documents.get(model.versions[item.version], {})
            missing += [f"{what} of {item.id}" for what in differing(item, document)]
        for what in missing:
            report.lost(Loss(model.kind, model.source.name, f"{what}: it did not arrive"))
        return not missing

    def _known_name(self, item: RegisteredModel, origin: str) -> str | None:
        """Find where this model was or went before, even into a namesake's model."""
        names = {name for name, kind in self._all_names().items() if kind is item.kind}
        unnumbered = _NUMBERED.sub("", item.name)  # as it was called where it came from
        candidates = [name for name in (item.name, unnumbered) if name in names]
        candidates += sorted(name for name in names if is_numbered(item.kind, item.name, name))
        wanted = origins(origin, key_values(item.document.get("tags")))
        for candidate in dict.fromkeys(candidates):
            if candidate in self._planned:
                continue
            document = self._reader.registered_model(candidate)
            tags = key_values(document.get("tags"))
            if kinship(wanted, origins(model_origin(document), tags)) is not None:
                return candidate
            if any(
                told(key_values(v.get("tags")), OF_GROUP) == origin
                for v in self._reader.model_versions(candidate, {}, item.kind)
            ):
                return candidate
        return None

    def _load(self, item: RegisteredModel, name: str, origin: str) -> _ModelCopy:
        document = self._reader.registered_model(name)
        there = RegisteredModel(document)
        tags = key_values(document.get("tags"))
        model = _ModelCopy(item, name, origin, newest(told(tags, ORIGIN)) == origin)
        model.aliases = there.aliases
        model.as_of_ms = int(told(tags, AS_OF_MS) or 0)
        model.aliases_taken = told(tags, CONTENT)
        model.document = document
        model.is_original = model_origin(document) in origins(
            origin, key_values(item.document.get("tags"))
        )
        for version in self._reader.model_versions(name, there.aliases, item.kind):
            number = int(version["version"])
            model.next_version = max(model.next_version, number + 1)
            of_version = key_values(version.get("tags"))
            model.own[f"{model_origin(document)}/{number}"] = number
            model.later |= dict.fromkeys(told(of_version, ORIGIN).split(), number)
            group, _, source_number = newest(told(of_version, ORIGIN)).partition("/")
            if group == origin and source_number.isdecimal():
                model.versions[int(source_number)] = number
                model.documents[number] = version
            if told(of_version, PLACEHOLDER) == origin:
                model.placeholders.append(number)
        return model

    def _create(self, item: RegisteredModel, name: str, origin: str, report: Report) -> _ModelCopy:
        tags = key_values(item.document.get("tags"))
        moved = {EXPERIMENT_IDS} if _ids_of(tags.get(EXPERIMENT_IDS, "")) else set()
        own = {k: v for k, v in tags.items() if k not in moved and not is_provenance(k)}
        marks = {ORIGIN: chained(origin, tags)}
        if item.kind is Kind.PROMPT:
            marks[PROMPT_TAG] = own.pop(PROMPT_TAG)
        if not self._options.dry_run:
            self._tags.made(
                item,
                lambda some, text: self._writer.create_registered_model(name, some, text),
                lambda _, key, value: self._writer.set_model_tag(name, key, value),
                own,
                marks,
                report,
                text=item.document.get("description"),
            )
            self._put_model_tags(item, name, {}, report)
        self._all_names()[name] = item.kind
        report.written(item.kind)
        model = _ModelCopy(item, name, origin, ours=True)
        if self._options.dry_run:
            self._planned[name] = model
        return model

    def _all_names(self) -> dict[str, Kind]:
        if self._names is None:
            models, prompts = self._reader.registered_models()
            self._names = dict.fromkeys(models, Kind.REGISTERED_MODEL)
            self._names |= dict.fromkeys(prompts, Kind.PROMPT)
        return self._names

    def _link_experiments(self, model: _ModelCopy, report: Report) -> None:
        """Give a prompt the ids that its experiments have at the target."""
        old = _ids_of(key_values(model.source.document.get("tags")).get(EXPERIMENT_IDS, ""))
        found = {i: self._ids.get(Kind.EXPERIMENT, i) for i in old}
        if missing := [old_id for old_id, new_id in found.items() if not new_id]:
            what = f"its links to experiments {', '.join(missing)} are left out: not at the target"
            report.lost(Loss(model.kind, model.source.name, what))
        there = _ids_of(key_values(model.document.get("tags")).get(EXPERIMENT_IDS, ""))
        linked = list(dict.fromkeys([*there, *filter(None, found.values())]))
        if linked != there and not self._options.dry_run:
            self._writer.set_model_tag(model.name, EXPERIMENT_IDS, f",{','.join(linked)},")

    def _fill_gap(self, model: _ModelCopy, version: ModelVersion, report: Report) -> None:
        """Use up the numbers of versions deleted at the source, so that this one keeps its own."""
        gap = version.version - model.next_version
        if not model.ours or gap <= 0:
            return
        if gap + len(model.placeholders) > _MOST_PLACEHOLDERS:
            report.lost(Loss(version.kind, version.id, f"a gap of {gap} is not replayed"))
            return
        tags = {self._tags.name_of(PLACEHOLDER): model.origin}
        source = _PLACEHOLDER_SOURCE
        if model.kind is Kind.PROMPT:
            tags[PROMPT_TAG], source = "true", _PROMPT_SOURCE
        if self._options.dry_run:
            model.next_version = version.version
            return
        for _ in range(gap):
            number = self._with_source(
                model.kind,
                source,
                lambda uri: self._writer.create_version(model.name, uri, None, tags),
            )
            model.placeholders.append(number)
            model.next_version = number + 1
            if number >= version.version - 1:
                break

    def _complete(
        self, model: _ModelCopy, version: ModelVersion, number: int, report: Report
    ) -> None:
        """Do what cannot be done when a version is made; an interrupted unpack may lack it."""
        there = model.documents.get(number, {})
        if not self._options.dry_run:
            self._complete_tags(model, version, number, there, report)
        stage = version.document.get("current_stage")
        current = there.get("current_stage", "None")
        if stage and stage != "None" and (model.ours or not there) and current == "None":
            set_stage = partial(self._writer.set_stage, model.name, number, stage)
            unset = Loss(version.kind, version.id, f"stage {stage} is not set")
            if self._options.dry_run or attempt(set_stage, unset, report):
                model.stages[number] = there["current_stage"] = stage

    def _complete_tags(
        self,
        model: _ModelCopy,
        version: ModelVersion,
        number: int,
        there: dict[str, Any],
        report: Report,
    ) -> None:
        added = key_values(there.get("tags")).keys() if there else {PROMPT_TAG}
        added -= key_values(version.document.get("tags")).keys()
        if model.kind is Kind.PROMPT and PROMPT_TAG in added:
            attempt(
                lambda: self._writer.delete_version_tag(model.name, number, PROMPT_TAG),
                Loss(version.kind, version.id, f"its tag {PROMPT_TAG} is there for the server"),
                report,
            )
        self._put_version_tags(model, version, number, key_values(there.get("tags")), report)

    def _put_model_tags(
        self, item: RegisteredModel, name: str, there: dict[str, str], report: Report
    ) -> None:
        set_tag = partial(self._writer.set_model_tag, name)
        self._source_tags.put_each(item, there, set_tag, report)

    def _put_version_tags(
        self,
        model: _ModelCopy,
        version: ModelVersion,
        number: int,
        there: dict[str, str],
        report: Report,
    ) -> None:
        set_tag = partial(self._writer.set_version_tag, model.name, number)
        self._source_tags.put_each(version, there, set_tag, report)


def _as_it_is_there(version: ModelVersion, model: _ModelCopy) -> str:
    """Say that a version is there, and in what its copy has become different."""
    number = model.versions[version.version]
    there = model.documents.get(number, {})
    is_there = "it is there already"
    if number != version.version:
        is_there += f", as number {number}"
    if there and (kept := differing(version, there)):
        is_there += f" and keeps its own {', '.join(kept)}"
    return is_there


def _ids_of(value: str) -> list[str]:
    return [entry for entry in value.split(",") if entry]
