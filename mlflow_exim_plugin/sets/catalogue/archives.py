"""The rows of an archive: each of its envelopes is read once, and what is damaged is named."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import InvalidArchiveError, NotFoundError
from mlflow_exim_plugin.redaction import redact_url
from mlflow_exim_plugin.schema.envelope import (
    EntityEnvelope,
    ExperimentEnvelope,
    LoggedModelEnvelope,
    ModelEnvelope,
    RunEnvelope,
    TracePartEnvelope,
    VersionEnvelope,
    check_entity,
)
from mlflow_exim_plugin.schema.objects import VERSION_KINDS, Failure, Kind, by_number
from mlflow_exim_plugin.sets.catalogue.rows import ArchiveTold
from mlflow_exim_plugin.sources.archive.trace_parts import trace_rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from mlflow_exim_plugin.schema.envelope import ArtifactEntry
    from mlflow_exim_plugin.sets.catalogue.rows import CatalogueRows, File
    from mlflow_exim_plugin.sources.archive.archive import Archive, Tree

__all__ = ["add_rows", "told_of"]

_ODD = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What comes of a document that is valid and not as MLflow has it."""


def told_of(
    archive: Archive, path: str, mark: str = "", snapshot: int | None = None
) -> ArchiveTold:
    """Return what a catalogue says of an archive.

    Args:
        archive: Open archive.
        path: Its path below the folder or set.
        mark: What its store calls its version.
        snapshot: Of a set, the first snapshot that names it.

    Raises:
        InvalidArchiveError: It is damaged.
    """
    system = archive.summary.system
    return ArchiveTold(
        path,
        archive.reader.root,
        archive.reader.size_bytes,
        mark,
        system.export_time_ms,
        redact_url(system.mlflow_tracking_uri),
        snapshot,
    )


def add_rows(rows: CatalogueRows, archive: Archive, told: ArchiveTold) -> list[Failure]:
    """Add the objects of an archive, and return those that could not be read.

    Args:
        rows: Where to.
        archive: Open archive.
        told: What is said of it.

    Raises:
        StoreError: The store refused or died.
    """
    rows.begin(told)
    failures: list[Failure] = []
    for tree in archive.trees:
        failures += _TreeRows(rows, archive, tree).add()
    rows.end()
    return failures


class _TreeRows:
    """The objects of one workspace."""

    def __init__(self, rows: CatalogueRows, archive: Archive, tree: Tree) -> None:
        self._rows = rows
        self._archive = archive
        self._tree = tree
        self._failures: list[Failure] = []
        self._versions: dict[str, list[tuple[str, str]]] = {}
        """Versions of models by the run that they were made of."""

    def add(self) -> list[Failure]:
        """Add them; returns what could not be read."""
        tree = self._tree
        self._rows.workspace("default")
        if (path := tree.workspace) is not None:
            self._add_workspace(path)
        for key, path in tree.models.items():
            self._add_model(key[0], path, tree.versions.get(key, []))
        for key in tree.versions.keys() - tree.models.keys():
            self._add_versions(key[0], {}, tree.versions[key])
        for segment in sorted(tree.experiments, key=by_number):
            self._add_experiment(segment)
        for (kind, segment), paths in tree.entities.items():
            if not segment:
                self._add_entities(kind, paths, None)
        return self._failures

    def _add_workspace(self, path: str) -> None:
        with self._named(Kind.WORKSPACE, path):
            envelope = self._archive.document(EntityEnvelope, path)
            document = check_entity(envelope, Kind.WORKSPACE, path)
            self._rows.workspace(str(document["name"]))
            self._rows.entity(Kind.WORKSPACE, document, None, ())

    def _add_experiment(self, segment: str) -> None:
        tree, path = self._tree, self._tree.experiments[segment]
        known = ("", "")
        with self._named(Kind.EXPERIMENT, path):
            document = self._archive.document(ExperimentEnvelope, path).mlflow.experiment
            self._rows.experiment(document)
            known = str(document["experiment_id"]), str(document["name"])
        runs = list(tree.runs.get(segment, {}).values())
        self._archive.reader.expect(runs)
        for path in runs:
            with self._named(Kind.RUN, path):
                run = self._archive.document(RunEnvelope, path)
                document = run.mlflow.run
                versions = self._versions.get(str(document["info"]["run_id"]), ())
                self._rows.run(document, known[1], _files(run.info.artifacts), versions)
        models = tree.logged_models.get(segment, [])
        self._archive.reader.expect(models)
        for path in models:
            with self._named(Kind.LOGGED_MODEL, path):
                model = self._archive.document(LoggedModelEnvelope, path)
                files = _files(model.info.artifacts)
                self._rows.logged_model(model.mlflow.logged_model, known[1], files)
        for path in tree.traces.get(segment, ()):
            with self._named(Kind.TRACE, path):
                self._add_traces(path, known)
        for (kind, of), paths in tree.entities.items():
            if of == segment:
                self._add_entities(kind, paths, known)

    def _add_traces(self, path: str, experiment: tuple[str, str]) -> None:
        envelope = self._archive.document(TracePartEnvelope, path)
        files: dict[str, list[File]] = {}
        for entry in envelope.info.attachments:
            files.setdefault(entry.trace_id, []).extend(_files([entry]))
        columns = ["trace_id", "request_time_ms", "execution_duration_ms", "state"]
        of = experiment if experiment[0] else (envelope.mlflow.experiment_id, "")
        for table in trace_rows(self._archive.reader, envelope, columns):
            for trace_id, *times_ms, state in zip(*table.to_pydict().values(), strict=True):
                attached = files.get(trace_id, ())
                self._rows.trace(trace_id, of, (times_ms[0], times_ms[1]), state, attached)

    def _add_entities(
        self, kind: Kind, paths: list[str], experiment: tuple[str, str] | None
    ) -> None:
        self._archive.reader.expect(paths)
        for path in paths:
            with self._named(kind, path):
                envelope = self._archive.document(EntityEnvelope, path)
                document = check_entity(envelope, kind, path)
                self._rows.entity(kind, document, experiment, _files(envelope.info.artifacts))

    def _add_model(self, kind: Kind, path: str, versions: list[str]) -> None:
        document: dict[str, Any] = {}
        with self._named(kind, path):
            document = self._archive.document(ModelEnvelope, path).mlflow.registered_model
            self._rows.model(kind, document)
        self._add_versions(kind, document, versions)

    def _add_versions(self, kind: Kind, model: dict[str, Any], paths: list[str]) -> None:
        self._archive.reader.expect(paths)
        for path in paths:
            with self._named(VERSION_KINDS[kind], path):
                version = self._archive.document(VersionEnvelope, path)
                document = version.mlflow.model_version
                files = _files(version.info.artifacts)
                self._rows.version(VERSION_KINDS[kind], document, model, files)
                if run_id := document.get("run_id"):
                    name = str(document["name"]), str(document["version"])
                    self._versions.setdefault(str(run_id), []).append(name)

    @contextlib.contextmanager
    def _named(self, kind: Kind, path: str) -> Iterator[None]:
        """Name an object that cannot be read, and go on."""
        try:
            yield
        except (InvalidArchiveError, NotFoundError) as error:
            reason = error.message
        except _ODD as error:
            reason = f"it is not as MLflow has it: {type(error).__name__} {error}"
        else:
            return
        self._rows.unread()
        self._failures.append(Failure(kind, path, reason))


def _files(entries: Iterable[ArtifactEntry]) -> list[File]:
    return [(entry.sha256, entry.path, entry.size_bytes) for entry in entries]
