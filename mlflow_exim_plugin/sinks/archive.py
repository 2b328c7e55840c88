"""Sink ``archive``: the stream becomes members, each object's envelope after its parts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa

from mlflow_exim_plugin.container import layout
from mlflow_exim_plugin.errors import EximError, InvalidArchiveError, StoreError
from mlflow_exim_plugin.schema.canonical import content_digest, document_bytes
from mlflow_exim_plugin.schema.envelope import ArchiveHeader, System
from mlflow_exim_plugin.schema.objects import (
    Artifact,
    Experiment,
    Failure,
    Kind,
    Loss,
    ModelVersion,
    RegisteredModel,
    Run,
    StreamObject,
)
from mlflow_exim_plugin.schema.tables import (
    METRICS,
    ROW_GROUP_ROWS,
    ROWS_PER_PART,
    MetricsDigest,
    metrics_writer,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pyarrow.parquet as pq

    from mlflow_exim_plugin.container.writer import ArchiveWriter
    from mlflow_exim_plugin.schema.report import Report

__all__ = ["ArchiveSink"]


class ArchiveSink:
    """Writes a stream into one archive, in one pass.

    Args:
        writer: Open archive.
        system: Part ``system`` of every envelope.
        selection: What was asked for, kept in ``archive.json``.
    """

    parallel = 1
    """Members come one after the other; the frames are compressed in parallel below."""

    def __init__(
        self, writer: ArchiveWriter, system: System, selection: dict[str, Any] | None = None
    ) -> None:
        self._writer = writer
        self._system = system.to_json()
        self._selection = selection or {}
        self._experiment: Experiment | None = None
        self._runs: list[str] = []
        self._failures_before = 0
        self._parts: _MetricsParts | None = None
        self._model: RegisteredModel | None = None
        self._model_folder = ""
        self._model_folders: set[str] = set()
        self._versions: list[int] = []
        self._experiments: list[dict[str, str]] = []
        self._models: list[str] = []
        self._run_count = 0
        header = ArchiveHeader(required_features=writer.required_features)
        writer.add(layout.HEADER, document_bytes(header.to_json()))

    def write(self, item: StreamObject, report: Report) -> None:
        """Write one object with its parts.

        Raises:
            StoreError: The archive cannot be written.
        """
        if isinstance(item, Experiment):
            self._finish_experiment(report)
            self._experiment, self._runs = item, []
            self._failures_before = len(report.failures)
            self._parts = _MetricsParts(self._writer, item.id)
        elif isinstance(item, Run):
            self._write_run(item, report)
        elif isinstance(item, RegisteredModel):
            self._finish_experiment(report)
            self._finish_model(report)
            self._model, self._versions = item, []
            self._model_folder = layout.model_folder(item.name, self._model_folders)
            self._model_folders.add(self._model_folder.casefold())
        elif isinstance(item, ModelVersion):
            self._write_version(item, report)

    def finish(self, report: Report) -> None:
        """Write what is still open, the archive's own envelope and the tail."""
        self._finish_experiment(report)
        self._finish_model(report)
        summary = report.to_dict()
        failed = [f.id for f in report.failures if f.kind is Kind.RUN]
        info = {
            "counts": summary["counts"],
            "num_total_runs": self._run_count + len(failed),
            "num_ok_runs": self._run_count,
            "num_failed_runs": len(failed),
            "failed_runs": failed,
            "metric_rows": report.metric_rows,
            "artifact_bytes": report.artifact_bytes,
            "failures": summary["failures"],
            "lossy": summary["lossy"],
            "not_packed": summary["not_packed"],
        }
        self._add(
            layout.ARCHIVE,
            info,
            {
                "selection": self._selection,
                "experiments": self._experiments,
                "models": self._models,
            },
        )
        report.root = self._writer.close()

    def _write_run(self, run: Run, report: Report) -> None:
        if self._parts is None:
            raise StoreError(f"run {run.id} came before its experiment")
        path = layout.run_member(run.experiment_id, run.id)
        if self._writer.free_path(path) != path:  # before its rows are in a table
            raise InvalidArchiveError(f"run {run.id!r} is there already, but for case")
        issues: list[Failure | Loss] = [*run.losses]
        digest = MetricsDigest()
        ranges: list[dict[str, Any]] = []
        for table in run.histories:
            if isinstance(table, Failure):
                issues.append(table)
                continue
            digest.update(table)
            ranges += self._parts.append(run.id, table)
        folder = layout.run_folder(run.experiment_id, run.id)
        artifacts = self._write_artifacts(folder, run.id, run.artifacts, issues, report)
        info: dict[str, Any] = {}
        metrics = None
        if digest.rows:
            metrics = digest.hexdigest()
            info["metrics"] = {
                "digest": metrics,
                "keys": digest.keys,
                "rows": digest.rows,
                "parts": _joined(ranges),
            }
            report.written(Kind.METRIC_HISTORY, digest.keys)
            report.add_rows(digest.rows)
        if artifacts:
            info["artifacts"] = artifacts
        document = {"run": run.document}
        info = {"content_digest": _digest(document, metrics, artifacts), **info}
        self._add(path, info | _named(issues), document)
        self._report(issues, report)
        self._runs.append(run.id)
        self._run_count += 1
        report.written(Kind.RUN)

    def _write_version(self, version: ModelVersion, report: Report) -> None:
        issues: list[Failure | Loss] = []
        folder = layout.version_folder(self._model_folder, version.version)
        artifacts = self._write_artifacts(folder, version.id, version.artifacts, issues, report)
        document = {"model_version": version.document}
        info: dict[str, Any] = {"content_digest": _digest(document, None, artifacts)}
        if artifacts:
            info["artifacts"] = artifacts
        self._add(
            layout.version_member(self._model_folder, version.version),
            info | _named(issues),
            document,
        )
        self._report(issues, report)
        self._versions.append(version.version)
        report.written(Kind.MODEL_VERSION)

    def _write_artifacts(
        self,
        folder: str,
        owner: str,
        artifacts: Iterable[Artifact | Failure],
        issues: list[Failure | Loss],
        report: Report,
    ) -> list[dict[str, Any]]:
        written: list[dict[str, Any]] = []
        for artifact in artifacts:
            if isinstance(artifact, Failure):
                issues.append(artifact)
                continue
            name = f"{owner}/{artifact.path}"
            member_path = self._writer.free_path(layout.artifact_member(folder, artifact.path))
            try:
                stream = artifact.open()
            except EximError as error:
                issues.append(Failure(Kind.ARTIFACT, name, error.message))
                continue
            with stream:
                member = self._writer.add_stream(member_path, artifact.size_bytes, stream)
            if member.is_cut:
                what = f"it grew while it was being read: its first {member.size_bytes} bytes"
                issues.append(Loss(Kind.ARTIFACT, name, what))
            elif not member.complete:
                issues.append(Failure(Kind.ARTIFACT, name, member.error))
                continue
            written.append(
                {
                    "path": artifact.path,
                    "member": member.path,
                    "size_bytes": member.size_bytes,
                    "sha256": member.sha256,
                }
            )
            report.written(Kind.ARTIFACT)
            report.add_bytes(member.size_bytes)
        return written

    def _finish_experiment(self, report: Report) -> None:
        experiment, self._experiment = self._experiment, None
        if experiment is None or self._parts is None:
            return
        self._parts.close()
        failed = [f.id for f in report.failures[self._failures_before :] if f.kind is Kind.RUN]
        document = {"experiment": experiment.document, "runs": self._runs}
        self._add(
            layout.experiment_member(experiment.id),
            {
                "content_digest": content_digest(document),
                "num_total_runs": len(self._runs) + len(failed),
                "num_ok_runs": len(self._runs),
                "num_failed_runs": len(failed),
                "failed_runs": failed,
            },
            document,
        )
        self._experiments.append({"experiment_id": experiment.id, "name": experiment.name})
        report.written(Kind.EXPERIMENT)

    def _finish_model(self, report: Report) -> None:
        model, self._model = self._model, None
        if model is None:
            return
        document = {"registered_model": model.document, "versions": self._versions}
        self._add(
            layout.model_member(self._model_folder),
            {"content_digest": content_digest(document)},
            document,
        )
        self._models.append(model.name)
        report.written(Kind.REGISTERED_MODEL)

    def _add(self, path: str, info: dict[str, Any], mlflow: dict[str, Any]) -> None:
        envelope = {"system": self._system, "info": info, "mlflow": mlflow}
        self._writer.add(path, document_bytes(envelope))

    @staticmethod
    def _report(issues: list[Failure | Loss], report: Report) -> None:
        for issue in issues:
            if isinstance(issue, Failure):
                report.failed(issue)
            else:
                report.lost(issue)


class _MetricsParts:
    """The Parquet files of one experiment, each filled to about a million rows."""

    def __init__(self, writer: ArchiveWriter, experiment_id: str) -> None:
        self._archive = writer
        self._experiment_id = experiment_id
        self._number = 0
        self._rows = 0
        self._waiting: list[pa.Table] = []
        self._waiting_rows = 0
        self._buffer: pa.BufferOutputStream | None = None
        self._parquet: pq.ParquetWriter | None = None

    def append(self, run_id: str, table: pa.Table) -> list[dict[str, Any]]:
        """Add one run's rows; return where they are."""
        ranges = []
        while table.num_rows:
            room = ROWS_PER_PART - self._rows
            taken = table.slice(0, room)
            ids = pa.repeat(pa.scalar(run_id, pa.string()), taken.num_rows)
            member = layout.metrics_member(self._experiment_id, self._number)
            ranges.append({"member": member, "first_row": self._rows, "rows": taken.num_rows})
            self._waiting.append(taken.add_column(0, METRICS.field("run_id"), ids))
            self._waiting_rows += taken.num_rows
            self._rows += taken.num_rows
            table = table.slice(taken.num_rows)
            self._write_groups(self._rows == ROWS_PER_PART)
        return ranges

    def close(self) -> None:
        """Write the last file, if any rows are left."""
        if self._rows:
            self._write_groups(last=True)

    def _write_groups(self, last: bool) -> None:
        while self._waiting_rows >= ROW_GROUP_ROWS or (last and self._waiting_rows):
            rows = pa.concat_tables(self._waiting)
            group = rows.slice(0, ROW_GROUP_ROWS)
            if self._parquet is None:
                self._buffer = pa.BufferOutputStream()
                self._parquet = metrics_writer(self._buffer)
            self._parquet.write_table(group, row_group_size=ROW_GROUP_ROWS)
            rest = rows.slice(group.num_rows)
            self._waiting = [rest] if rest.num_rows else []
            self._waiting_rows = rest.num_rows
        if last and self._parquet is not None and self._buffer is not None:
            self._parquet.close()
            data = self._buffer.getvalue().to_pybytes()
            self._archive.add(layout.metrics_member(self._experiment_id, self._number), data)
            self._parquet = self._buffer = None
            self._number += 1
            self._rows = 0


def _digest(document: dict[str, Any], metrics: str | None, artifacts: list[dict[str, Any]]) -> str:
    return content_digest(
        document, metrics, ((a["path"], a["size_bytes"], a["sha256"]) for a in artifacts)
    )


def _joined(ranges: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Join ranges that follow each other in one file: a run's keys may come one by one."""
    joined: list[dict[str, Any]] = []
    for part in ranges:
        if joined and joined[-1]["member"] == part["member"]:
            joined[-1]["rows"] += part["rows"]
        else:
            joined.append(dict(part))
    return joined


def _named(issues: list[Failure | Loss]) -> dict[str, Any]:
    failures = [
        {"kind": str(f.kind), "id": f.id, "reason": f.reason}
        for f in issues
        if isinstance(f, Failure)
    ]
    losses = [
        {"kind": str(x.kind), "id": x.id, "what": x.what} for x in issues if isinstance(x, Loss)
    ]
    return ({"failures": failures} if failures else {}) | ({"lossy": losses} if losses else {})
