"""Sink ``exports``: the layout that mlflow-export-import writes since 2025-10, and reads."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any, BinaryIO

from mlflow_exim_plugin.container.paths import encode_segment
from mlflow_exim_plugin.errors import EximError, InvalidArchiveError
from mlflow_exim_plugin.host.files.gate import local_path_problem
from mlflow_exim_plugin.host.traces.spans import as_dict_v3
from mlflow_exim_plugin.schema.objects import (
    LINKED_RUNS,
    Artifact,
    Entity,
    Experiment,
    Failure,
    Kind,
    LoggedModel,
    Loss,
    ModelVersion,
    RegisteredModel,
    Run,
    Trace,
)
from mlflow_exim_plugin.sinks.counting import count_parts, skip_whole
from mlflow_exim_plugin.sinks.exports import documents
from mlflow_exim_plugin.sinks.sink import Capabilities

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mlflow_exim_plugin.schema.envelope import System
    from mlflow_exim_plugin.schema.metric_rows import RunRows
    from mlflow_exim_plugin.schema.objects import StreamObject
    from mlflow_exim_plugin.schema.report import Report
    from mlflow_exim_plugin.storage.folders.new_folder import NewFolder

__all__ = ["ExportSink"]

_FILE_VERSION = "2"
_DATASET = Kind.EVALUATION_DATASET


class ExportSink:
    """Writes an export.

    Args:
        folder: Where to.
        system: Who writes it, and where it is from.
    """

    parallel = 1
    capabilities = Capabilities(
        lacks=frozenset(
            set(Kind)
            - {Kind.EXPERIMENT, Kind.RUN, Kind.LOGGED_MODEL, Kind.TRACE, Kind.REGISTERED_MODEL}
            - {Kind.MODEL_VERSION, Kind.PROMPT, Kind.PROMPT_VERSION, _DATASET}
        )
    )

    def __init__(self, folder: NewFolder, system: System) -> None:
        self._folder = folder
        self._system = system
        self._experiment: _ExportedExperiment | None = None
        self._model: tuple[RegisteredModel, list[dict[str, Any]]] | None = None
        self._experiments: list[dict[str, Any]] = []
        self._models: list[str] = []
        self._runs: dict[str, tuple[str, str]] = {}
        self._left_out: Counter[tuple[Kind, str]] = Counter()
        self._workspace = ""

    def write(self, item: StreamObject, report: Report) -> None:
        """Write one object with its parts.

        Raises:
            InvalidArchiveError: The object cannot be written so.
            StoreError: The folder cannot be written.
        """
        if isinstance(item, Entity) and item.kind is Kind.WORKSPACE:
            self._finish_open(report)
            self._workspace = item.id
        if self._workspace or item.kind in self.capabilities.lacks:
            self._leave_out(item, report)
            return
        for issue in item.issues:
            report.issue(issue)
        if names := documents.unknown_fields(item.document):
            what = f"such exports have no fields {', '.join(names)} of tags, params and metrics"
            report.lost(Loss(item.kind, item.id, what))
        if isinstance(item, Experiment):
            self._finish_open(report)
            self._experiment = _ExportedExperiment(item, len(report.failures))
        elif isinstance(item, Run):
            self._write_run(item, self._opened(item.experiment_id), report)
        elif isinstance(item, LoggedModel):
            self._write_logged_model(item, self._opened(item.experiment_id), report)
        elif isinstance(item, Trace):
            self._write_trace(item, self._opened(item.experiment_id), report)
        elif isinstance(item, RegisteredModel):
            self._finish_open(report)
            self._model = item, []
        elif isinstance(item, ModelVersion):
            self._write_version(item, report)
        else:
            name = encode_segment(f"{item.document['name']}_{item.id}")
            place = f"evaluation_datasets/{name}/evaluation_dataset.json"
            self._write_file(place, {"evaluation_dataset": documents.dataset(item.document)})
            report.written(item.kind)
            count_parts(item, report)

    def finish(self, report: Report) -> None:
        """Write what is still open, and the lists of all."""
        self._finish_open(report)
        written = {kind: counts.written for kind, counts in report.counts.items()}
        ok_runs = written.get(Kind.RUN, 0)
        failed = sum(f.count for f in report.failures if f.kind is Kind.RUN)
        status = {"experiments": len(self._experiments), "total_runs": ok_runs + failed}
        status |= {"ok_runs": ok_runs, "failed_runs": failed}
        names = [entry["name"] for entry in self._experiments]
        info = {"experiment_names": names, "options": {}, "status": status}
        path = "experiments/experiments.json"
        self._write_file(path, {"experiments": self._experiments}, info)
        listed = {"model_names": self._models, "num_total_models": len(self._models)}
        self._write_file("models/models.json", {"models": self._models}, listed)
        for kind, folder in ((Kind.PROMPT_VERSION, "prompts"), (_DATASET, "evaluation_datasets")):
            if count := written.get(kind, 0):
                numbers = {f"total_{folder}": count, f"successful_{folder}": count}
                self._write_file(f"{folder}/{folder}_summary.json", numbers)
        for (left, workspace), number in self._left_out.items():
            known = "no workspaces" if workspace else "none"
            what = f"such exports know {known}: {number} left out"
            report.lost(Loss(left, workspace or "*", what))
        self._write_file("manifest.json", {}, {"options": {}, "status": status})

    def _leave_out(self, item: StreamObject, report: Report) -> None:
        reason = f"such exports have no {item.kind.words}"
        if self._workspace:
            reason = f"such exports have no workspaces, and it is of {self._workspace!r}"
        skip_whole(item, reason, report)
        self._left_out[item.kind, self._workspace] += 1

    def _opened(self, experiment_id: str) -> _ExportedExperiment:
        if self._experiment is None or self._experiment.item.id != experiment_id:
            raise InvalidArchiveError(f"it came before its experiment {experiment_id}")
        return self._experiment

    def _write_run(self, run: Run, opened: _ExportedExperiment, report: Report) -> None:
        folder = f"{opened.folder}/runs/{encode_segment(run.id)}"
        start = json.dumps(
            {"system": self._described("run"), "mlflow": documents.run_parts(run.document)},
            indent=2,
        )
        end = "\n  }\n}"
        with self._folder.open(f"{folder}/run.json") as file:
            file.write(start.removesuffix(end).encode() + b',\n    "metrics": {')
            rows, keys = _write_histories(file, run.histories, report)
            file.write(f"}}{end}\n".encode())
        self._write_artifacts(run.id, folder, run.artifacts, report)
        opened.runs.append(run.id)
        self._runs[run.id] = opened.item.name, str(run.info.get("artifact_uri") or "")
        report.written(Kind.RUN)
        if keys:
            report.written(Kind.METRIC_HISTORY, keys)
        report.add_rows(rows)

    def _write_logged_model(
        self, model: LoggedModel, opened: _ExportedExperiment, report: Report
    ) -> None:
        folder = f"{opened.folder}/logged_models/{encode_segment(model.id)}"
        self._write_file(f"{folder}/logged_model.json", documents.logged_model(model))
        self._write_artifacts(model.id, folder, model.artifacts, report)
        opened.logged_models.append(model.id)
        report.written(Kind.LOGGED_MODEL)

    def _write_trace(self, trace: Trace, opened: _ExportedExperiment, report: Report) -> None:
        folder = f"{opened.folder}/traces/{encode_segment(trace.id)}"
        self._write_file(f"{folder}/trace.json", documents.trace(trace))
        if trace.spans is not None:
            spans = {"spans": [as_dict_v3(span, trace.id) for span in trace.spans]}
            with self._folder.open(f"{folder}/artifacts/traces.json") as file:
                file.write(json.dumps(spans).encode())
        if trace.info.get(LINKED_RUNS):
            report.lost(Loss(Kind.TRACE, trace.id, "such exports have no runs linked to a trace"))
        self._write_artifacts(trace.id, folder, trace.attachments, report)
        opened.traces.append(trace.id)
        report.written(Kind.TRACE)
        for kind, parts in ((Kind.SPAN, trace.spans), (Kind.ASSESSMENT, trace.assessments)):
            if parts:
                report.written(kind, len(parts))

    def _write_version(self, version: ModelVersion, report: Report) -> None:
        if self._model is None:
            raise InvalidArchiveError("it came before its model")
        model, versions = self._model
        if model.kind is Kind.PROMPT:
            name = encode_segment(f"{version.name}_v{version.version}")
            document = {"prompt": documents.prompt(version.document)}
            self._write_file(f"prompts/{name}/prompt.json", document)
            versions.append(document)
        else:
            run = self._runs.get(str(version.document.get("run_id")))
            versions.append(documents.version(version.document, run))
            folder = f"models/{encode_segment(model.name)}/version_models/{version.version}"
            self._write_artifacts(version.id, folder, version.artifacts, report, inner="")
        report.written(version.kind)

    def _write_artifacts(
        self,
        owner: str,
        folder: str,
        artifacts: Iterable[Artifact | Failure],
        report: Report,
        *,
        inner: str = "artifacts/",
    ) -> None:
        for artifact in artifacts:
            if isinstance(artifact, Failure):
                report.failed(artifact)
                continue
            name = f"{owner}/{artifact.path}"
            if problem := local_path_problem(artifact.path):
                report.failed(Failure(Kind.ARTIFACT, name, f"its path is refused: {problem}"))
                continue
            try:
                with artifact.open() as stream:
                    size_bytes = self._folder.put(f"{folder}/{inner}{artifact.path}", stream)
            except EximError as error:
                report.failed(Failure(Kind.ARTIFACT, name, error.message))
                continue
            report.written(Kind.ARTIFACT)
            report.add_bytes(size_bytes)

    def _finish_open(self, report: Report) -> None:
        """Write the file of the experiment or model whose parts have all come."""
        if (opened := self._experiment) is not None:
            self._experiment = None
            self._write_experiment(opened, report)
        if self._model is not None:
            (model, versions), self._model = self._model, None
            if model.kind is Kind.PROMPT and not versions:
                reason = "such exports have but the versions of a prompt, and it has none"
                skip_whole(model, reason, report)
                return
            if model.kind is Kind.PROMPT:
                self._say_of_prompt(model, report)
            else:
                said = documents.registered_model(model.document, versions)
                info = {"num_src_versions": len(versions), "num_dst_versions": len(versions)}
                path = f"models/{encode_segment(model.name)}/model.json"
                self._write_file(path, {"registered_model": said}, info)
                self._models.append(model.name)
            report.written(model.kind)

    def _say_of_prompt(self, model: RegisteredModel, report: Report) -> None:
        own = [t["key"] for t in model.document.get("tags", ()) if "is_prompt" not in t["key"]]
        lost = [name for name in ("aliases", "description") if model.document.get(name)]
        if parts := lost + (["tags"] if own else []):
            what = f"such exports have no {', '.join(parts)} of a prompt, only its versions"
            report.lost(Loss(Kind.PROMPT, model.name, what))

    def _write_experiment(self, opened: _ExportedExperiment, report: Report) -> None:
        experiment = opened.item
        failed = [f.id for f in report.failures[opened.failures_before :] if f.kind is Kind.RUN]
        said: dict[str, Any] = {
            "experiment": documents.experiment(experiment.document),
            "runs": opened.runs,
            "logged_models": opened.logged_models,
            "traces": opened.traces,
        }
        if (permissions := experiment.document.get("permissions")) is not None:
            said["permissions"] = permissions
        info = {
            "num_total_runs": len(opened.runs) + len(failed),
            "num_ok_runs": len(opened.runs),
            "num_failed_runs": len(failed),
            "failed_runs": failed,
        }
        self._write_file(f"{opened.folder}/experiment.json", said, info)
        entry = {"id": experiment.id, "name": experiment.name}
        for name, listed in (("logged_models", opened.logged_models), ("traces", opened.traces)):
            of_kind = {"experiments": [entry | {name: listed}]}
            self._write_file(f"{opened.folder}/{name}/{name}.json", of_kind, {})
        counts = {"ok_runs": len(opened.runs), "failed_runs": len(failed), "duration": 0}
        self._experiments.append(entry | counts)
        report.written(Kind.EXPERIMENT)

    def _write_file(
        self, path: str, said: dict[str, Any], info: dict[str, Any] | None = None
    ) -> None:
        script = path.rpartition("/")[2].removesuffix(".json")
        document: dict[str, Any] = {"system": self._described(script)}
        if info is not None:
            document["info"] = info
        document["mlflow"] = said
        with self._folder.open(path) as file:
            file.write(json.dumps(document, indent=2).encode() + b"\n")

    def _described(self, what: str) -> dict[str, Any]:
        system = self._system
        return {
            "package_version": system.package_version,
            "script": f"export_{what}.py",
            "export_file_version": _FILE_VERSION,
            "export_time": system.export_time,
            "_export_time": system.export_time_text,
            "mlflow_version": system.mlflow_version,
            "mlflow_tracking_uri": system.mlflow_tracking_uri,
            "user": system.user,
            "platform": system.platform.to_json(),
        }


class _ExportedExperiment:
    """The experiment whose objects are coming."""

    def __init__(self, item: Experiment, failures_before: int) -> None:
        self.item = item
        self.folder = f"experiments/{encode_segment(item.id)}"
        self.failures_before = failures_before
        self.runs: list[str] = []
        self.logged_models: list[str] = []
        self.traces: list[str] = []


def _write_histories(
    file: BinaryIO, histories: Iterable[RunRows | Failure], report: Report
) -> tuple[int, int]:
    """Write rows as they come, key by key; returns how many rows and keys there were."""
    count, keys, last = 0, 0, None
    for rows in histories:
        if isinstance(rows, Failure):
            report.failed(rows)
            continue
        for key, table in rows.by_key():
            columns = [table.column(name).to_pylist() for name in ("value", "timestamp", "step")]
            points = [
                {"value": value, "timestamp": timestamp, "step": step}
                for value, timestamp, step in zip(*columns, strict=True)
            ]
            text = ",\n        ".join(map(json.dumps, points))
            if key == last:
                start = ",\n        "
            else:
                start = ("\n      ]," if keys else "") + f"\n      {json.dumps(key)}: [\n        "
                keys, last = keys + 1, key
            file.write(start.encode() + text.encode())
            count += table.num_rows
    file.write(b"\n      ]\n    " if keys else b"")
    return count, keys
