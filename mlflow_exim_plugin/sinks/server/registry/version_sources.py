"""Where the files of a model version are at a deployment, and what it was made of there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.container.paths import encode_segment
from mlflow_exim_plugin.errors import ServerError
from mlflow_exim_plugin.host.files.gate import REFUSED, below, moved, place_problem
from mlflow_exim_plugin.host.files.tree import ArtifactTree
from mlflow_exim_plugin.schema.objects import Artifact, Kind, Loss, model_behind
from mlflow_exim_plugin.schema.provenance import ARTIFACT_RUNS

if TYPE_CHECKING:
    from mlflow_exim_plugin.schema.objects import ModelVersion
    from mlflow_exim_plugin.schema.report import Report
    from mlflow_exim_plugin.sinks.server.artifact_runs import ArtifactRuns
    from mlflow_exim_plugin.sinks.server.ids import KnownModel, KnownRun
    from mlflow_exim_plugin.sinks.server.runs import RunWriter
    from mlflow_exim_plugin.sinks.server.target import ServerTarget

__all__ = ["VersionSource", "VersionSources"]

_FOLDER = "mlflow_exim/model_versions"


@dataclass(frozen=True)
class VersionSource:
    """Where the files of a version are at the target, and what they were made of."""

    uri: str
    run_id: str | None = None
    model_id: str | None = None


class VersionSources:
    """Moves the sources of versions to where their files are now.

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
        self._ids = target.ids
        self._options = target.options
        self._run_writer = run_writer
        self._artifact_runs = artifact_runs

    def source(self, origin: str, version: ModelVersion, report: Report) -> VersionSource:
        """Return where a version's files are at the target, once they are in place.

        Args:
            origin: What identifies its model.
            version: The version.
            report: Told of what became different.

        Raises:
            ServerError: The target lacks what it was made of, or refused its files.
        """
        old_source = str(version.document.get("source") or "")
        old_run = str(version.document.get("run_id") or "")
        run = self._ids.runs.get(old_run) if old_run else None
        if old_run in self._ids.refused:  # once it is there without its run, it stays so
            raise ServerError(f"run {old_run}, which it was made of, could not be written")
        artifacts = list(version.artifacts)
        if any(isinstance(artifact, Artifact) for artifact in artifacts):
            folder = f"{_FOLDER}/{encode_segment(version.name)}/{version.version}/"
            holder, root = self._artifact_run(origin, version, run, report)
            self._run_writer.put_artifacts(version.id, root, folder, artifacts, report)
            what = f"its source is {folder} of run {holder}, it was {old_source}"
            report.lost(Loss(version.kind, version.id, what))
            return VersionSource(root.rstrip("/") + "/" + folder.rstrip("/"), holder)
        for artifact in artifacts:
            if not isinstance(artifact, Artifact):
                report.failed(artifact)
        behind = model_behind(version.document)
        if behind and (logged := self._ids.logged_models.get(behind)):
            return self._in_logged_model(version, behind, logged, run, report)
        if behind and old_source.startswith(f"models:/{behind}"):
            raise ServerError(f"logged model {behind}, which it was made of, is not at the target")
        if run is None:
            why = f"its run {old_run} is not at the target" if old_run else ""
            return VersionSource(_as_it_was(version, why, report))
        new_source = _moved_with_run(old_source, old_run, run)
        why = f"it is not below its run {run.id}"
        return VersionSource(new_source or _as_it_was(version, why, report), run.id)

    def complete(self, version: ModelVersion, copy: dict[str, Any], report: Report) -> None:
        """Send the files of its own that a version lacks, as an unpack left it that failed.

        Args:
            version: The version.
            copy: The document of its copy, empty where that is not at the target yet.
            report: Counts and names what happens.

        Raises:
            ServerError: They cannot be listed.
        """
        run = self._ids.runs.get(str(version.document.get("run_id") or ""))
        if copy and run is not None and not copy.get("run_id"):
            what = f"it came without its run, which is {run.id} now: no server adds that"
            report.lost(Loss(version.kind, version.id, what))
        there = str(copy.get("source") or "")
        files = [file for file in version.artifacts if isinstance(file, Artifact)]
        if not files or _FOLDER not in there:
            return
        found = dict(ArtifactTree(self._host, there).files())
        missing = [file for file in files if file.path not in found]
        if missing:
            self._run_writer.put_artifacts(version.id, there, "", missing, report)

    def _in_logged_model(
        self,
        version: ModelVersion,
        model_id: str,
        known: KnownModel,
        run: KnownRun | None,
        report: Report,
    ) -> VersionSource:
        """Return the source of a version that is a logged model, whose files are not copied."""
        old_source = str(version.document.get("source") or "")
        run_id = run.id if run else None
        scheme = f"models:/{model_id}"
        new_root = known.artifact_uri.rstrip("/") + "/" + known.folder.rstrip("/")
        whole = f"models:/{known.id}" if known.id else new_root.rstrip("/")
        if (rest := below(old_source, scheme)) is not None:
            new_source = whole + rest
        elif old_source.startswith("models:/"):  # it was copied from another version of the model
            new_source = whole
            if known.id:
                what = f"its source is {new_source}, it was {old_source}"
                report.lost(Loss(version.kind, version.id, what))
        else:
            found = moved(old_source, known.old_artifact_uri, new_root.rstrip("/"))
            why = f"it is not below logged model {model_id}"
            new_source = found or _as_it_was(version, why, report)
        if known.id:
            return VersionSource(new_source, run_id, self._noted(model_id, known, report))
        what = f"its source is {new_source} of run {known.holder}, it was {old_source}"
        report.lost(Loss(version.kind, version.id, what))
        return VersionSource(new_source, known.holder)

    def _noted(self, model_id: str, known: KnownModel, report: Report) -> str:
        if self._host.is_http and not known.notes_versions:
            what = "its tags gain mlflow.modelVersions, where the target names its versions"
            report.lost(Loss(Kind.LOGGED_MODEL, model_id, what))
            known.notes_versions = True
        return known.id

    def _artifact_run(
        self, of_model: str, version: ModelVersion, known: KnownRun | None, report: Report
    ) -> tuple[str, str]:
        """Return the run that holds a version's files: its own, or one made for it."""
        if known is not None:
            return known.id, known.artifact_uri
        origin = f"{of_model}/{version.version}"
        document = version.document
        user, start = str(document.get("user_id") or ""), document.get("creation_timestamp")
        run = self._artifact_runs.run(origin, of_model, version.id, user, start)
        if not self._options.dry_run:
            end = document.get("last_updated_timestamp")
            self._writer.finish_run(run.id, "FINISHED", end, None)
        report.lost(
            Loss(version.kind, version.id, f"run {run.id} of {ARTIFACT_RUNS!r} holds its files")
        )
        return run.id, run.artifact_uri


def _as_it_was(version: ModelVersion, why: str, report: Report) -> str:
    """Return the source of a version whose files are elsewhere: as it was, where it may stay so."""
    source = str(version.document.get("source") or "")
    if problem := place_problem(source, version.kind):
        what = f"its source {source!r} is left out: {problem}"
        report.lost(Loss(version.kind, version.id, f"{why}, {what}" if why else what))
        return REFUSED
    if why:
        report.lost(Loss(version.kind, version.id, f"{why}, its source is still {source}"))
    return source


def _moved_with_run(source: str, old_run: str, known: KnownRun) -> str | None:
    """Return where a version's files are now, given that they lie in a run's artifacts."""
    if (rest := below(source, f"runs:/{old_run}")) is not None:
        return f"runs:/{known.id}{rest}"
    return moved(source, known.old_artifact_uri, known.artifact_uri)
