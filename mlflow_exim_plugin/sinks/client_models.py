"""Registered models and versions to a deployment: numbers kept, gaps replayed, sources re-homed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from mlflow_exim_plugin.container.paths import encode_segment
from mlflow_exim_plugin.errors import ConflictError, ServerError, ServerLostError
from mlflow_exim_plugin.schema.canonical import content_digest
from mlflow_exim_plugin.schema.objects import (
    Artifact,
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
    TAGS,
    chained,
    model_origin,
    newest,
)
from mlflow_exim_plugin.sinks.client_options import OnConflict, UnpackOptions

if TYPE_CHECKING:
    from mlflow_exim_plugin.host.connection import Host
    from mlflow_exim_plugin.host.reading import Reader
    from mlflow_exim_plugin.host.writing import HostWriter
    from mlflow_exim_plugin.schema.report import Report
    from mlflow_exim_plugin.sinks.client_ids import IdMap, KnownRun
    from mlflow_exim_plugin.sinks.client_runs import RunWriter

__all__ = ["ModelWriter"]

CARRIERS = "mlflow_exim.model_versions"
"""Experiment whose runs hold the files of versions that have no run to hold them."""
_VERSIONS_FOLDER = "mlflow_exim/model_versions"
_PLACEHOLDER_SOURCE = "s3://mlflow-exim-placeholder/none"
_MOST_PLACEHOLDERS = 10_000


@dataclass
class _Model:
    """The registered model that is being written.

    Attributes:
        name: Name at the target.
        origin: What identifies it at the source.
        ours: True when an unpack made it.
        versions: Target version number by source version number.
        next_version: Number the target gives next.
        as_of_ms: When the source was read of which the target took the aliases.
        aliases_taken: Digest of them.
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


class ModelWriter:
    """Writes registered models, one after the other, each with its versions in order.

    Args:
        host: The deployment.
        writer: Single writes to it.
        reader: Reads from it.
        run_writer: Uploads files.
        ids: Source ids to target ids.
        options: How to write.
    """

    def __init__(
        self,
        host: Host,
        writer: HostWriter,
        reader: Reader,
        run_writer: RunWriter,
        ids: IdMap,
        options: UnpackOptions,
    ) -> None:
        self._host = host
        self._writer = writer
        self._reader = reader
        self._run_writer = run_writer
        self._ids = ids
        self._options = options
        self._model: _Model | None = None
        self._skipped = ""
        self._names: set[str] | None = None
        self._carrier_experiment: str | None = None

    def begin(self, item: RegisteredModel, report: Report) -> None:
        """Find or create a registered model.

        Raises:
            ConflictError: The target has a stranger of that name and the policy is ``fail``.
            ServerError: The target refused.
        """
        self.finish(report)
        self._skipped = "its registered model could not be written"
        origin = model_origin(item.document)
        name = self._known_name(item.name, origin)
        if name is not None:
            self._model = self._load(item, name, origin)
            report.skipped(Kind.REGISTERED_MODEL, item.name, "it is there already")
            return
        if item.name not in self._all_names():
            self._model = self._create(item, item.name, origin, report)
            return
        policy = self._options.on_conflict
        if policy is OnConflict.FAIL:
            raise ConflictError(
                f"the target has another registered model named {item.name!r}",
                "choose --on-conflict merge, skip or rename",
            )
        if policy is OnConflict.SKIP:
            self._skipped = "the target has another registered model of that name"
            report.skipped(Kind.REGISTERED_MODEL, item.name, self._skipped)
            return
        if policy is OnConflict.RENAME:
            name, number = f"{item.name} (2)", 2
            while name in self._all_names():
                number += 1
                name = f"{item.name} ({number})"
            report.lost(
                Loss(Kind.REGISTERED_MODEL, item.name, f"it is named {name!r} at the target")
            )
            self._model = self._create(item, name, origin, report)
            return
        self._model = self._load(item, item.name, origin)
        report.lost(
            Loss(
                Kind.REGISTERED_MODEL,
                item.name,
                "its versions joined the model of that name, which keeps its own tags and text",
            )
        )
        report.skipped(Kind.REGISTERED_MODEL, item.name, "its versions join the model of that name")

    def write_version(self, version: ModelVersion, report: Report) -> None:
        """Write one version under its own number if that is still to be had.

        Raises:
            ServerError: The target refused.
        """
        model = self._model
        if model is None:
            report.skipped(Kind.MODEL_VERSION, version.id, self._skipped)
            return
        if version.version in model.versions:
            if not self._options.dry_run:
                self._complete(model, version, model.versions[version.version], report)
            report.skipped(Kind.MODEL_VERSION, version.id, _as_it_is_there(version, model))
            return
        if self._options.dry_run:
            report.written(Kind.MODEL_VERSION)
            return
        source, run_id = self._source(model, version, report)
        self._fill_gap(model, version, report)
        tags = key_values(version.document.get("tags"))
        origin = f"{model.origin}/{version.version}"
        marked = {k: v for k, v in tags.items() if k not in TAGS}
        marked |= {ORIGIN: chained(origin, tags), OF_GROUP: model.origin}
        number = self._writer.create_version(
            model.name,
            source,
            run_id,
            marked,
            version.document.get("run_link"),
            version.document.get("description"),
        )
        model.next_version = number + 1
        model.versions[version.version] = number
        if number != version.version:
            report.lost(
                Loss(Kind.MODEL_VERSION, version.id, f"it has number {number} at the target")
            )
        self._complete(model, version, number, report)
        report.written(Kind.MODEL_VERSION)

    def finish(self, report: Report) -> None:
        """Set the aliases of the model that was begun and take its placeholders away."""
        model, self._model = self._model, None
        if model is None or self._options.dry_run:
            return
        for number in model.placeholders:
            self._quietly(
                lambda number=number: self._writer.delete_version(model.name, number),
                Loss(Kind.REGISTERED_MODEL, model.source.name, f"placeholder {number} is left"),
                report,
            )
        # Only a change at the source moves an alias: what the user moved here stays otherwise.
        taken = content_digest({"aliases": model.source.aliases})
        is_later = taken != model.aliases_taken and model.source.as_of_ms > model.as_of_ms
        for alias, source_number in model.source.aliases.items():
            target_number = model.versions.get(source_number)
            there = model.aliases.get(alias)
            if target_number is not None and there == target_number:
                continue
            kept = Loss(
                Kind.REGISTERED_MODEL,
                model.source.name,
                f"alias {alias!r} of version {source_number} is not set",
            )
            may_set = is_later if model.ours else there is None
            if target_number is None or not may_set:
                report.lost(kept)
                continue
            self._quietly(
                lambda alias=alias, number=target_number: self._writer.set_alias(
                    model.name, alias, number
                ),
                kept,
                report,
            )
        if model.ours and is_later:
            self._writer.set_model_tag(model.name, AS_OF_MS, str(model.source.as_of_ms))
            self._writer.set_model_tag(model.name, CONTENT, taken)

    def _known_name(self, name: str, origin: str) -> str | None:
        """Find where this source model went before, even into a stranger's model."""
        candidates = [name] if name in self._all_names() else []
        candidates += sorted(n for n in self._all_names() if n.startswith(f"{name} ("))
        for candidate in candidates:
            document = self._reader.registered_model(candidate)
            tags = key_values(document.get("tags"))
            if newest(tags.get(ORIGIN, "")) == origin:
                return candidate
            if any(
                key_values(v.get("tags")).get(OF_GROUP) == origin
                for v in self._reader.model_versions(candidate, {})
            ):
                return candidate
        return None

    def _load(self, item: RegisteredModel, name: str, origin: str) -> _Model:
        document = self._reader.registered_model(name)
        there = RegisteredModel(document)
        tags = key_values(document.get("tags"))
        model = _Model(item, name, origin, newest(tags.get(ORIGIN, "")) == origin)
        model.aliases = there.aliases
        model.as_of_ms = int(tags.get(AS_OF_MS) or 0)
        model.aliases_taken = tags.get(CONTENT, "")
        for version in self._reader.model_versions(name, there.aliases):
            number = int(version["version"])
            model.next_version = max(model.next_version, number + 1)
            of_version = key_values(version.get("tags"))
            group, _, source_number = newest(of_version.get(ORIGIN, "")).partition("/")
            if group == origin and source_number.isdecimal():
                model.versions[int(source_number)] = number
                model.documents[number] = version
            if of_version.get(PLACEHOLDER) == origin:
                model.placeholders.append(number)
        return model

    def _create(self, item: RegisteredModel, name: str, origin: str, report: Report) -> _Model:
        tags = key_values(item.document.get("tags"))
        marked = {k: v for k, v in tags.items() if k not in TAGS}
        marked[ORIGIN] = chained(origin, tags)
        if not self._options.dry_run:
            self._writer.create_registered_model(name, marked, item.document.get("description"))
        self._all_names().add(name)
        report.written(Kind.REGISTERED_MODEL)
        return _Model(item, name, origin, ours=True)

    def _all_names(self) -> set[str]:
        if self._names is None:
            self._names = set(self._reader.registered_models()[0])
        return self._names

    def _fill_gap(self, model: _Model, version: ModelVersion, report: Report) -> None:
        """Use up the numbers of versions deleted at the source, so that this one keeps its own."""
        gap = version.version - model.next_version
        if not model.ours or gap <= 0:
            return
        if gap + len(model.placeholders) > _MOST_PLACEHOLDERS:
            report.lost(Loss(Kind.MODEL_VERSION, version.id, f"a gap of {gap} is not replayed"))
            return
        for _ in range(gap):
            number = self._writer.create_version(
                model.name, _PLACEHOLDER_SOURCE, None, {PLACEHOLDER: model.origin}
            )
            model.placeholders.append(number)
            model.next_version = number + 1
            if number >= version.version - 1:
                break

    def _complete(self, model: _Model, version: ModelVersion, number: int, report: Report) -> None:
        """Set what cannot be given when a version is made; an interrupted unpack may lack it."""
        there = model.documents.get(number, {})
        stage = version.document.get("current_stage")
        current = there.get("current_stage", "None")
        if stage and stage != "None" and (model.ours or not there) and current == "None":
            self._quietly(
                lambda: self._writer.set_stage(model.name, number, stage),
                Loss(Kind.MODEL_VERSION, version.id, f"stage {stage} is not set"),
                report,
            )

    def _source(
        self, model: _Model, version: ModelVersion, report: Report
    ) -> tuple[str, str | None]:
        """Return the version's source and run at the target, its files in place."""
        old_source = str(version.document.get("source") or "")
        old_run = str(version.document.get("run_id") or "")
        known = self._ids.runs.get(old_run) if old_run else None
        artifacts = list(version.artifacts)
        if any(isinstance(artifact, Artifact) for artifact in artifacts):
            folder = f"{_VERSIONS_FOLDER}/{encode_segment(version.name)}/{version.version}/"
            holder, root = self._carrier(model, version, known, report)
            self._run_writer.put_artifacts(version.id, root, folder, artifacts, report)
            report.lost(
                Loss(
                    Kind.MODEL_VERSION,
                    version.id,
                    f"its source is {folder} of run {holder}, it was {old_source}",
                )
            )
            return root.rstrip("/") + "/" + folder.rstrip("/"), holder
        for artifact in artifacts:
            if not isinstance(artifact, Artifact):
                report.failed(artifact)
        if known is None:
            if old_run:
                what = f"its run {old_run} is not at the target, its source is still {old_source}"
                report.lost(Loss(Kind.MODEL_VERSION, version.id, what))
            return old_source, None
        return _rehomed(old_source, old_run, known), known.id

    def _carrier(
        self, model: _Model, version: ModelVersion, known: KnownRun | None, report: Report
    ) -> tuple[str, str]:
        """Return the run that holds a version's files: its own, or one made for it."""
        if known is not None:
            return known.id, known.artifact_uri
        run_id, root = self._carrier_run(model, version)
        self._writer.finish_run(
            run_id, "FINISHED", version.document.get("last_updated_timestamp"), None
        )
        report.lost(
            Loss(Kind.MODEL_VERSION, version.id, f"run {run_id} of {CARRIERS!r} holds its files")
        )
        return run_id, root

    def _carrier_run(self, model: _Model, version: ModelVersion) -> tuple[str, str]:
        """Make the run that will hold a version's files, or find an interrupted unpack's."""
        if self._carrier_experiment is None:
            there = {d["name"]: d["experiment_id"] for d in self._reader.experiments()}
            self._carrier_experiment = there.get(CARRIERS) or self._writer.create_experiment(
                CARRIERS, self._options.artifact_location, {}
            )
        origin = f"{model.origin}/{version.version}"
        of_origin = f"tags.`{ORIGIN}` = '{origin}'"
        for info, _ in self._reader.run_tags([self._carrier_experiment], of_origin):
            if info.lifecycle_stage != "deleted":
                return str(info.run_id), str(info.artifact_uri)
        return self._writer.create_run(
            self._carrier_experiment,
            self._options.importer or str(version.document.get("user_id") or ""),
            version.document.get("creation_timestamp"),
            version.id,
            {ORIGIN: origin, OF_GROUP: model.origin},
        )

    def _quietly(self, call: Any, otherwise: Loss, report: Report) -> None:
        """Make a call whose refusal costs a detail, and name the detail."""
        try:
            call()
        except ServerLostError:
            raise
        except ServerError as error:
            report.lost(Loss(otherwise.kind, otherwise.id, f"{otherwise.what}: {error.message}"))


def _as_it_is_there(version: ModelVersion, model: _Model) -> str:
    """Say that a version is there, and in what its copy has become different."""
    there = model.documents.get(model.versions[version.version], {})
    differing = [
        what
        for what in ("description", "current_stage")
        if (version.document.get(what) or "") != (there.get(what) or "")
    ]
    of_source, of_target = (key_values(d.get("tags")) for d in (version.document, there))
    differing += [
        f"tag {key}"
        for key, value in of_source.items()
        if key not in TAGS and of_target.get(key) != value
    ]
    if not there or not differing:
        return "it is there already"
    return f"it is there already and keeps its own {', '.join(differing)}"


def _rehomed(source: str, old_run: str, known: KnownRun) -> str:
    """Return where a version's files are now, given that they lie in a run's artifacts."""
    if source.startswith(f"runs:/{old_run}"):
        return f"runs:/{known.id}" + source[len(f"runs:/{old_run}") :]
    root = known.old_artifact_uri
    for old_root, found in ((root, source), (_path(root), _path(source))):
        if old_root and (found == old_root or found.startswith(old_root.rstrip("/") + "/")):
            return known.artifact_uri.rstrip("/") + found[len(old_root.rstrip("/")) :]
    return source


def _path(uri: str) -> str:
    parts = urlsplit(uri)
    return unquote(parts.path) if parts.scheme in {"", "file"} else uri
