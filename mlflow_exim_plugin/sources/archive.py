"""An archive read in place: its objects, and source ``archive`` that streams them."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mlflow_exim_plugin.container import layout
from mlflow_exim_plugin.container.reader import ArchiveReader
from mlflow_exim_plugin.errors import DigestMismatchError, InvalidArchiveError, NotFoundError
from mlflow_exim_plugin.schema.envelope import (
    ArchiveEnvelope,
    ArtifactEntry,
    Document,
    ExperimentEnvelope,
    MetricsEntry,
    MetricsRange,
    ModelEnvelope,
    RunEnvelope,
    VersionEnvelope,
    parse_document,
)
from mlflow_exim_plugin.schema.objects import (
    Artifact,
    Experiment,
    Failure,
    Kind,
    ModelVersion,
    RegisteredModel,
    Run,
    StreamItem,
    by_number,
)
from mlflow_exim_plugin.schema.rules import Finding
from mlflow_exim_plugin.schema.tables import (
    HISTORY,
    MAX_ROW_GROUP_ROWS,
    METRICS,
    MetricsDigest,
    metrics_file,
    read_row_group,
)
from mlflow_exim_plugin.stages.select import Plan, RunHeader, Selection, require_matches

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Self

__all__ = ["Archive", "ArchiveSource"]

_Parsed = TypeVar("_Parsed", bound=Document)

_OPEN_PARTS = 4


class Archive:
    """Objects of one archive, read where it lies; nothing is unpacked.

    Args:
        reader: Open container; closed with this object.

    Attributes:
        reader: The container: members, digests, root.
    """

    def __init__(self, reader: ArchiveReader) -> None:
        self.reader = reader
        self._tables = _MetricsTables(reader)
        self._experiments: dict[str, str] = {}
        self._runs: dict[str, dict[str, str]] = {}
        self._models: dict[str, str] = {}
        self._versions: dict[str, list[str]] = {}
        for path in reader.paths("data/"):
            match path.split("/"):
                case ["data", "experiments", folder, "experiment.json"]:
                    self._experiments[folder] = path
                case ["data", "experiments", folder, "runs", run, "run.json"]:
                    self._runs.setdefault(folder, {})[run] = path
                case ["data", "models", folder, "model.json"]:
                    self._models[folder] = path
                case ["data", "models", folder, "versions", _, "version.json"]:
                    self._versions.setdefault(folder, []).append(path)
                case _:
                    pass

    @classmethod
    def open(
        cls,
        url: str,
        *,
        storage_options: dict[str, Any] | None = None,
        expected_root: str | None = None,
    ) -> Archive:
        """Open an archive at a path or any fsspec URL.

        Args:
            url: Where it lies.
            storage_options: Given to the fsspec file system.
            expected_root: Root digest it must have, hex.

        Raises:
            NotFoundError: There is nothing at the URL.
            InvalidArchiveError: It is no archive, or damaged.
            UnsupportedFormatError: It needs a newer reader.
            StoreError: The store refused.
        """
        return cls(
            ArchiveReader.open(url, storage_options=storage_options, expected_root=expected_root)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the container."""
        self._tables.close()
        self.reader.close()

    @property
    def summary(self) -> ArchiveEnvelope:
        """What was packed, what failed and what is missing (``data/archive.json``)."""
        return self.document(ArchiveEnvelope, layout.ARCHIVE)

    def experiments(self) -> Iterator[ExperimentEnvelope]:
        """Yield the experiments by number."""
        for path in self.experiment_members():
            yield self.document(ExperimentEnvelope, path)

    def experiment_members(self) -> list[str]:
        """Return the members of the experiment envelopes, by number."""
        return [self._experiments[folder] for folder in sorted(self._experiments, key=by_number)]

    def model_members(self) -> list[tuple[str, list[str]]]:
        """Return the member of each model envelope with those of its versions."""
        return [(path, self._versions.get(folder, [])) for folder, path in self._models.items()]

    def runs(self, experiment_id: str | None = None) -> Iterator[RunEnvelope]:
        """Yield the runs of one experiment, or all, by run id."""
        for path in self.run_members(experiment_id):
            yield self.document(RunEnvelope, path)

    def run_members(self, experiment_id: str | None = None) -> Iterator[str]:
        """Yield the members of the run envelopes of one experiment, or all."""
        wanted = None if experiment_id is None else layout.experiment_folder(experiment_id)
        for folder in sorted(self._runs, key=by_number):
            if wanted is None or wanted == f"{layout.EXPERIMENTS}{folder}/":
                yield from self._runs[folder].values()

    def runs_in(self, folder: str) -> list[str]:
        """Return the members of the run envelopes below an experiment's folder."""
        return list(self._runs.get(folder.rpartition("/")[2], {}).values())

    def run(self, run_id: str) -> RunEnvelope:
        """Return one run.

        Raises:
            NotFoundError: The archive has no such run.
        """
        segment = layout.run_folder("0", run_id).split("/")[-2]
        for runs in self._runs.values():
            if segment in runs:
                return self.document(RunEnvelope, runs[segment])
        raise NotFoundError(f"the archive has no run {run_id!r}")

    def models(self) -> Iterator[ModelEnvelope]:
        """Yield the registered models by folder."""
        for path in self._models.values():
            yield self.document(ModelEnvelope, path)

    def model(self, name: str) -> ModelEnvelope:
        """Return one registered model.

        Raises:
            NotFoundError: The archive has no such model.
        """
        return self.document(ModelEnvelope, self._models[self._model_folder(name)])

    def versions(self, name: str) -> list[VersionEnvelope]:
        """Return the versions of a registered model, by number.

        Raises:
            NotFoundError: The archive has no such model.
        """
        members = self._versions.get(self._model_folder(name), ())
        found = [self.document(VersionEnvelope, member) for member in members]
        return sorted(found, key=lambda v: int(v.mlflow.model_version["version"]))

    def metric_history(self, run_id: str, key: str | None = None) -> pa.Table:
        """Return metric rows of one run.

        Args:
            run_id: The run.
            key: Metric key as logged; None takes all.

        Returns:
            Rows sorted by key, step and timestamp: ``key``; ``step`` int64; ``timestamp`` int64,
            ms since the Unix epoch, UTC; ``value`` float64, NaN and infinities allowed.

        Raises:
            NotFoundError: The archive has no such run, or the run no such metric.
            DigestMismatchError: The rows differ from what the envelope says.

        Source: spec/v1/archive.md, "Metric histories".
        """
        metrics = self.run(run_id).info.metrics
        tables = list(self.histories(run_id, metrics)) if metrics else []
        table = pa.concat_tables(tables) if tables else HISTORY.empty_table()
        if key is None:
            return table
        rows = table.filter(pc.equal(table.column("key"), key))
        if not rows.num_rows:
            raise NotFoundError(f"run {run_id!r} has no metric {key!r}")
        return rows

    def histories(self, run_id: str, metrics: MetricsEntry) -> Iterator[pa.Table]:
        """Yield a run's rows in order, a few row groups at a time, then check their digest.

        Raises:
            DigestMismatchError: The rows differ from what the envelope says.
            InvalidArchiveError: A table is missing or not as the format has it.
        """
        digest = MetricsDigest()
        for part in metrics.parts:
            for table in self._tables.rows(run_id, part):
                digest.update(table)
                yield table
        if (found := digest.hexdigest()) != metrics.digest:
            message = f"the metric rows of run {run_id} hash to {found}, not {metrics.digest}"
            raise DigestMismatchError(
                message, "run `verify` to see all damage", [Finding("E061", run_id, message)]
            )

    def artifacts(self, run_id: str) -> tuple[ArtifactEntry, ...]:
        """Return the artifacts of a run."""
        return self.run(run_id).info.artifacts

    def open_artifact(self, run_id: str, path: str) -> BinaryIO:
        """Open one artifact of a run as a seekable stream.

        Raises:
            NotFoundError: The run has no such artifact.
        """
        for entry in self.artifacts(run_id):
            if entry.path == path:
                return self.reader.open_member(entry.member)
        raise NotFoundError(f"run {run_id!r} has no artifact {path!r}")

    def _model_folder(self, name: str) -> str:
        # Names that differ in case alone have numbered folders, so the envelope decides.
        for folder, path in self._models.items():
            envelope = self.document(ModelEnvelope, path)
            if envelope.mlflow.registered_model.get("name") == name:
                return folder
        raise NotFoundError(f"the archive has no registered model {name!r}")

    def document(self, model: type[_Parsed], path: str) -> _Parsed:
        """Read and check one envelope.

        Raises:
            InvalidArchiveError: It is damaged, or not as the format has it.
        """
        return parse_document(model, self.reader.read(path), path)


class ArchiveSource:
    """Streams an archive's objects.

    Args:
        archive: Open archive.
    """

    def __init__(self, archive: Archive) -> None:
        self._archive = archive

    def stream(self, selection: Selection) -> Iterator[StreamItem]:
        """Yield what is selected, in dependency order; what is damaged as ``Failure``.

        Raises:
            NotFoundError: A name or id that was asked for is not in the archive.
        """
        experiments: dict[str, Experiment] = {}
        for experiment in self._experiments():
            if isinstance(experiment, Failure):
                yield experiment
            else:
                experiments[experiment.id] = experiment
        models: list[ModelEnvelope] = []
        versions: dict[str, list[VersionEnvelope]] = {}
        for model_or_failure in self._models(selection, versions):
            if isinstance(model_or_failure, Failure):
                yield model_or_failure
            else:
                models.append(model_or_failure)
        require_matches("registered model", selection.models, versions)
        catalog = _ArchiveCatalog(self._archive)
        plan = Plan(catalog, selection, experiments)
        behind = {
            str(v.mlflow.model_version["run_id"])
            for listed in versions.values()
            for v in listed
            if v.mlflow.model_version.get("run_id")
        }
        yield from plan.make(behind if selection.models else set())
        for experiment in experiments.values():
            if experiment.id not in plan.chosen:
                continue
            yield experiment
            for path in self._archive.run_members(experiment.id):
                yield from self._run(path, plan, selection)
        for listed in models:
            model = RegisteredModel(
                dict(listed.mlflow.registered_model), listed.system.export_time_ms
            )
            yield model
            for version in versions[model.name]:
                yield ModelVersion(
                    dict(version.mlflow.model_version),
                    self._artifacts(version.info.artifacts, selection),
                    version.system.export_time_ms,
                )

    def _experiments(self) -> Iterator[Experiment | Failure]:
        """Yield the experiments; one whose document is damaged takes its runs with it."""
        for path in self._archive.experiment_members():
            try:
                envelope = self._archive.document(ExperimentEnvelope, path)
                yield Experiment(dict(envelope.mlflow.experiment))
            except InvalidArchiveError as error:
                yield Failure(Kind.EXPERIMENT, path, error.message)
                folder = path.rpartition("/")[0]
                if runs := len(self._archive.runs_in(folder)):
                    reason = "the document of their experiment is damaged"
                    yield Failure(Kind.RUN, f"{folder}/runs/", reason, runs)

    def _models(
        self, selection: Selection, versions: dict[str, list[VersionEnvelope]]
    ) -> Iterator[ModelEnvelope | Failure]:
        """Yield the models that are taken and put their versions by name."""
        for path, members in self._archive.model_members():
            try:
                model = self._archive.document(ModelEnvelope, path)
            except InvalidArchiveError as error:
                yield Failure(Kind.REGISTERED_MODEL, path, error.message)
                if members:
                    reason = "the document of their registered model is damaged"
                    folder = path.rpartition("/")[0]
                    yield Failure(Kind.MODEL_VERSION, f"{folder}/versions/", reason, len(members))
                continue
            name = str(model.mlflow.registered_model["name"])
            if not selection.takes_model(name):
                continue
            versions[name] = []
            for member in members:
                try:
                    versions[name].append(self._archive.document(VersionEnvelope, member))
                except InvalidArchiveError as error:
                    yield Failure(Kind.MODEL_VERSION, member, error.message)
            versions[name].sort(key=lambda version: int(version.mlflow.model_version["version"]))
            yield model

    def _run(self, path: str, plan: Plan, selection: Selection) -> Iterator[Run | Failure]:
        try:
            envelope = parse_document(RunEnvelope, self._archive.reader.read(path), path)
            document = dict(envelope.mlflow.run)
            run = Run(document, digest=envelope.info.content_digest)
            run.as_of_ms = envelope.system.export_time_ms
            if run.id not in plan.chosen.get(run.experiment_id, ()):
                return
        except InvalidArchiveError as error:
            yield Failure(Kind.RUN, path, error.message)
            return
        except (KeyError, TypeError) as error:
            yield Failure(Kind.RUN, path, f"its document lacks {error}")
            return
        if envelope.info.metrics:
            run.histories = self._histories(run.id, envelope.info.metrics)
        run.artifacts = self._artifacts(envelope.info.artifacts, selection)
        if run.id in plan.losses:
            run.losses = (plan.losses[run.id],)
        yield run

    def _histories(self, run_id: str, metrics: MetricsEntry) -> Iterator[pa.Table | Failure]:
        try:
            yield from self._archive.histories(run_id, metrics)
        except InvalidArchiveError as error:
            yield Failure(Kind.METRIC_HISTORY, run_id, error.message)

    def _artifacts(
        self, entries: tuple[ArtifactEntry, ...], selection: Selection
    ) -> list[Artifact | Failure]:
        return [
            Artifact(
                entry.path,
                entry.size_bytes,
                lambda member=entry.member: self._archive.reader.open_member(member),  # type: ignore[misc]
                entry.sha256,
            )
            for entry in entries
            if selection.takes_artifact(entry.path)
        ]


class _ArchiveCatalog:
    """Lists an archive's runs for a ``Plan``."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive

    def runs(self, experiment_id: str, filter_string: str = "") -> dict[str, RunHeader]:
        documents = []
        for path in self._archive.run_members(experiment_id):
            try:
                envelope = parse_document(RunEnvelope, self._archive.reader.read(path), path)
                documents.append(dict(envelope.mlflow.run))
            except InvalidArchiveError:
                continue  # the stream names it when it comes to it
        if filter_string:
            from mlflow_exim_plugin.host.documents import matching_runs

            documents = matching_runs(documents, filter_string)
        headers = (RunHeader.of(document) for document in documents)
        return {header.run_id: header for header in headers}

    def run(self, run_id: str) -> dict[str, Any]:
        try:
            return dict(self._archive.run(run_id).mlflow.run)
        except InvalidArchiveError as error:
            raise NotFoundError(error.message) from error  # the stream names it, see above


class _MetricsTables:
    """Row ranges of the archive's Parquet files, with the last few files kept open."""

    def __init__(self, reader: ArchiveReader) -> None:
        self._reader = reader
        self._open: OrderedDict[str, pq.ParquetFile] = OrderedDict()
        self._group: tuple[str, int, pa.Table] | None = None

    def rows(self, run_id: str, part: MetricsRange) -> Iterator[pa.Table]:
        """Yield the rows of one range, at most a row group at a time."""
        file = self._file(part.member)
        metadata = file.metadata
        first, wanted = part.first_row, part.first_row + part.rows
        if wanted > metadata.num_rows:
            raise _broken(
                "E053", part.member, f"has {metadata.num_rows} rows, run {run_id} needs {wanted}"
            )
        start = 0
        for number in range(metadata.num_row_groups):
            end = start + metadata.row_group(number).num_rows
            if start < wanted and end > first:
                group = self._row_group(part.member, number, file)
                low = max(first, start) - start
                table = group.slice(low, min(wanted, end) - start - low)
                if not pc.all(pc.equal(table.column("run_id"), run_id)).as_py():
                    raise _broken("E053", part.member, f"rows of run {run_id} belong to another")
                yield table.select(HISTORY.names)
            start = end

    def close(self) -> None:
        for file in self._open.values():
            file.close()
        self._open.clear()

    def _file(self, member: str) -> pq.ParquetFile:
        if member in self._open:
            self._open.move_to_end(member)
            return self._open[member]
        if member not in self._reader:
            raise _broken("E053", member, "is named by a run but is not in the archive")
        try:
            file = metrics_file(self._reader.open_member(member))
        except (pa.ArrowException, OSError) as error:
            raise _broken("E059", member, f"is not a Parquet file: {error}") from None
        if not file.schema_arrow.equals(METRICS):
            raise _broken("E059", member, "has other columns than the format")
        groups = range(file.metadata.num_row_groups)
        if any(file.metadata.row_group(n).num_rows > MAX_ROW_GROUP_ROWS for n in groups):
            raise _broken("E059", member, "has a row group over the limit")
        self._open[member] = file
        if len(self._open) > _OPEN_PARTS:
            self._open.popitem(last=False)[1].close()
        return file

    def _row_group(self, member: str, number: int, file: pq.ParquetFile) -> pa.Table:
        if self._group is None or self._group[:2] != (member, number):
            try:
                table = read_row_group(file, number)
            except (pa.ArrowException, OSError) as error:
                raise _broken("E059", member, f"row group {number}: {error}") from None
            self._group = (member, number, table)
        return self._group[2]


def _broken(code: str, path: str, message: str) -> InvalidArchiveError:
    return InvalidArchiveError(
        f"{path} {message}", "run `verify` to see all damage", [Finding(code, path, message)]
    )
