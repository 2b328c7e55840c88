"""The tracking part of an ``mlruns`` folder: experiments, their runs and logged models."""

from __future__ import annotations

import contextlib
import re
import time
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeVar

from mlflow_exim_plugin.errors import NotFoundError
from mlflow_exim_plugin.host.api.together import each_alone
from mlflow_exim_plugin.options import ALL_IDS
from mlflow_exim_plugin.schema.documents import (
    dataset_identity,
    json_number,
    metric_identity,
    sorted_entries,
)
from mlflow_exim_plugin.schema.objects import (
    Experiment,
    Failure,
    Kind,
    LoggedModel,
    Loss,
    Run,
    by_number,
)
from mlflow_exim_plugin.schema.runs import PARENT, RunHeader
from mlflow_exim_plugin.sources.folder.fields import (
    Fields,
    dataset_document,
    experiment_document,
    is_of_0x,
    logged_model_info,
    run_info,
    tags_of_fields,
    without_line_ends,
)
from mlflow_exim_plugin.sources.folder.files import META, UnreadableError
from mlflow_exim_plugin.sources.folder.metrics import MetricFile, latest_of_model, sorted_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from mlflow_exim_plugin.schema.metric_rows import RunRows
    from mlflow_exim_plugin.schema.runs import Listed
    from mlflow_exim_plugin.sources.folder.files import StoreFiles
    from mlflow_exim_plugin.sources.folder.metrics import Rows

__all__ = ["MODELS", "TrackingFolder"]

_Said = TypeVar("_Said")
MODELS = "models"
_TRASH = ".trash"
_NO_RUNS = frozenset({"tags", "datasets", "traces", MODELS})
_PARTS_OF_RUN = frozenset({META, "metrics", "params", "tags", "inputs", "outputs", "artifacts"})
_PARTS_OF_MODEL = frozenset({META, "metrics", "params", "tags", "artifacts"})
_ID = re.compile(r"[0-9a-f]{32}")
_OF_OTHERS = re.compile(r"[.@].*|lost\+found|__pycache__")
"""What file systems, notebooks and servers of files put beside one's own folders."""
_HELD_BYTES = 16 << 20
"""Metric files of a run that are kept while the run is; longer ones are read again, key by key."""
_DATASETS_KEPT = 256


@dataclass
class _FoundExperiment:
    """An experiment that was found.

    Attributes:
        path: Its folder.
        experiment: What it says.
    """

    path: str
    experiment: Experiment
    run_ids: list[str] = field(default_factory=list)


class TrackingFolder:
    """Reads what MLflow's ``FileStore`` keeps; each object by itself.

    Args:
        files: The folder.

    Attributes:
        failures: What holds experiments or runs and cannot be read at all.
        unread: By run id, why the header of a run cannot be read.
    """

    def __init__(self, files: StoreFiles) -> None:
        self._files = files
        self.failures: list[Failure] = []
        self.unread: dict[str, Failure] = {}
        self._datasets: dict[str, dict[str, Any] | str] = {}

    @cached_property
    def _listed(self) -> dict[str, _FoundExperiment]:
        """Every experiment by id."""
        found: dict[str, _FoundExperiment] = {}
        for parent in ("", _TRASH):
            for name in self._folders(parent):
                if parent or name not in {_TRASH, MODELS}:
                    path = f"{parent}/{name}" if parent else name
                    if (listed := self._experiment(path, name, deleted=bool(parent))) is None:
                        continue
                    if name in found:
                        reason = f"{self._files.place(found[name].path)} has its id too"
                        self._failed(Kind.EXPERIMENT, path, reason)
                        continue
                    found[name] = listed
        for listed in found.values():
            listed.run_ids = list(self._runs_in(listed.path))
        return {key: found[key] for key in sorted(found, key=by_number)}

    def _folders(self, parent: str) -> list[str]:
        try:
            return self._files.folders(parent) or []
        except UnreadableError as error:
            if not parent:
                raise
            self._failed(Kind.EXPERIMENT, parent, error.message)
            return []

    def experiments(self) -> dict[str, Experiment]:
        """Return every experiment by id, in order.

        Raises:
            UnreadableError: The folder itself cannot be listed.
        """
        return {key: listed.experiment for key, listed in self._listed.items()}

    def path(self, experiment_id: str) -> str:
        """Return the folder of an experiment."""
        return self._listed[experiment_id].path

    def run_ids(self, experiment_id: str) -> list[str]:
        """Return the ids of all runs of an experiment, sorted, those included that fail."""
        return self._listed[experiment_id].run_ids

    def runs(self, experiment_id: str, filter_string: str = "") -> dict[str, RunHeader]:
        """Return the headers of an experiment's runs that match, and remember who has none."""
        if filter_string:
            from mlflow_exim_plugin.host.documents import matching_runs

            read = [self.read_run(experiment_id, run_id) for run_id in self.run_ids(experiment_id)]
            self.unread.update((run.id, run) for run in read if isinstance(run, Failure))
            runs = [run.document for run in read if isinstance(run, Run)]
            headers = map(RunHeader.of, matching_runs(runs, filter_string))
            return {header.run_id: header for header in headers}
        return {
            run_id: header
            for run_id in self.run_ids(experiment_id)
            if (header := self._header(experiment_id, run_id)) is not None
        }

    def experiment_of(self, run_id: str) -> str:
        """Return the id of the experiment in which a run lies.

        Raises:
            NotFoundError: There is no such run.
        """
        for experiment_id, listed in self._listed.items():
            if run_id in listed.run_ids:
                return experiment_id
        raise NotFoundError(f"there is no run {run_id}")

    def runs_of_each(
        self,
        experiment_ids: list[str],
        filter_string: str = "",
        ids: tuple[str, str] = ALL_IDS,
    ) -> Iterator[Listed]:
        """Yield the same of many experiments, of a range of ids."""
        return each_alone(experiment_ids, partial(self.runs, filter_string=filter_string), ids)

    def run(self, run_id: str) -> dict[str, Any]:
        """Return REST's ``Run``.

        Raises:
            NotFoundError: There is no such run, or it cannot be read.
        """
        run = self.read_run(self.experiment_of(run_id), run_id)
        if isinstance(run, Failure):
            raise NotFoundError(run.reason)
        return run.document

    def read_run(self, experiment_id: str, run_id: str, rows: Rows | None = None) -> Run | Failure:
        """Return a run without its files.

        Args:
            experiment_id: Where it lies.
            run_id: Its id.
            rows: Gain its metric rows, where there are not too many to be held; those come with the
                run itself.
        """
        path = f"{self.path(experiment_id)}/{run_id}"
        as_of_ms = time.time_ns() // 1_000_000
        try:
            parts = self._files.names(path)
            self._files.leave_alone(path, parts, _PARTS_OF_RUN)
            fields = self._fields(path)
            issues: list[Failure | Loss] = []
            tags, params = (
                self._files.texts(kind, run_id, f"{path}/{part}", issues) if part in parts else {}
                for kind, part in ((Kind.TAG, "tags"), (Kind.PARAM, "params"))
            )
            info = run_info(fields, tags)
            if of_0x := is_of_0x(fields):
                params, tags = without_line_ends(params), without_line_ends(tags)
                tags, own = tags_of_fields(fields, tags)
                info = run_info(fields, tags) | own
            self._files.require_place(path, "run", run_id, info["run_id"])
            self._files.require_place(path, "experiment", experiment_id, info["experiment_id"])
        except UnreadableError as error:
            return Failure(Kind.RUN, run_id, error.message)
        document: dict[str, Any] = {
            "info": info,
            "data": {"metrics": [], "params": sorted_entries(params), "tags": sorted_entries(tags)},
        }
        if "inputs" in parts:
            self._add_inputs(document, experiment_id, path, issues)
        if "outputs" in parts:
            self._add_outputs(document, path, issues)
        run = Run(document, as_of_ms=as_of_ms)
        if "metrics" in parts:
            run.histories = self._add_metrics(run, f"{path}/metrics", issues, rows, of_0x=of_0x)
        run.issues = tuple(issues)
        return run

    def logged_model_ids(self, experiment_id: str) -> list[str]:
        """Return the ids of all logged models of an experiment, sorted."""
        path = f"{self.path(experiment_id)}/{MODELS}"
        try:
            return self._files.folders(path) or []
        except UnreadableError as error:
            self._failed(Kind.LOGGED_MODEL, path, error.message)
            return []

    def logged_model(self, experiment_id: str, model_id: str) -> LoggedModel | Failure | None:
        """Return a logged model without its files; None for a folder that is none."""
        path = f"{self.path(experiment_id)}/{MODELS}/{model_id}"
        as_of_ms = time.time_ns() // 1_000_000
        issues: list[Failure | Loss] = []
        try:
            parts = self._files.names(path)
            if META not in parts and not self._files.holds_files(path):
                return None
            self._files.leave_alone(path, parts, _PARTS_OF_MODEL)
            fields = self._fields(path)
            tags = self._files.texts(Kind.TAG, model_id, f"{path}/tags", issues)
            info = logged_model_info(fields, tags)
            self._files.require_place(path, "logged model", model_id, info["model_id"])
            self._files.require_place(path, "experiment", experiment_id, info["experiment_id"])
        except UnreadableError as error:
            return Failure(Kind.LOGGED_MODEL, model_id, error.message)
        params = self._files.texts(Kind.PARAM, model_id, f"{path}/params", issues)
        metrics = self._metrics_of_model(model_id, f"{path}/metrics", issues)
        data = {"metrics": metrics, "params": sorted_entries(params)}
        return LoggedModel({"info": info, "data": data}, as_of_ms=as_of_ms, issues=tuple(issues))

    def _experiment(self, path: str, name: str, *, deleted: bool) -> _FoundExperiment | None:
        """Return what a folder is, None where it is no experiment or cannot be read as one."""
        try:
            names = self._files.names(path)
            if META not in names:
                self._not_an_experiment(path, name, names)
                return None
            tags: list[Failure | Loss] = []
            document = experiment_document(
                self._fields(path),
                self._files.texts(Kind.TAG, name, f"{path}/tags", tags),
                deleted=deleted,
            )
            self._files.require_place(path, "experiment", name, document["experiment_id"])
        except UnreadableError as error:
            if _OF_OTHERS.fullmatch(name):
                self._files.left_alone.append(path)
                return None
            self._failed(Kind.EXPERIMENT, path, error.message)
            self._runs_left_out(path)
            return None
        self.failures += [issue for issue in tags if isinstance(issue, Failure)]
        as_of_ms = time.time_ns() // 1_000_000
        return _FoundExperiment(path, Experiment(document, as_of_ms=as_of_ms))

    def _not_an_experiment(self, path: str, name: str, names: dict[str, bool]) -> None:
        """Name a folder without ``meta.yaml``, as what has lost it or as not MLflow's."""
        holds_runs = any(
            _ID.fullmatch(inner) or META in self._files.names(f"{path}/{inner}")
            for inner, is_folder in names.items()
            if is_folder and inner not in _NO_RUNS and not _OF_OTHERS.fullmatch(inner)
        )
        if _OF_OTHERS.fullmatch(name) or not (
            holds_runs or (name.isdecimal() and self._files.holds_files(path))
        ):
            self._files.left_alone.append(path)
            return
        self._failed(Kind.EXPERIMENT, path, f"{self._files.place(path)} has lost its {META}")
        self._runs_left_out(path)

    def _runs_left_out(self, path: str) -> None:
        """Name the runs of an experiment that cannot be read: nothing says whose they are."""
        try:
            count = sum(1 for _ in self._runs_in(path))
        except UnreadableError:
            return
        if count:
            reason = f"their experiment cannot be read, in {self._files.place(path)}"
            self.failures.append(Failure(Kind.RUN, f"{path}/", reason, count))

    def _runs_in(self, path: str) -> Iterator[str]:
        """Yield the ids of an experiment's runs, sorted, those included that will fail."""
        for name in self._files.folders(path) or ():
            if name in _NO_RUNS:
                continue
            if _ID.fullmatch(name) or self._is_run(f"{path}/{name}"):
                yield name
            else:
                self._files.left_alone.append(f"{path}/{name}")

    def _is_run(self, path: str) -> bool:
        if _OF_OTHERS.fullmatch(path.rpartition("/")[2]):
            return False
        try:
            names = self._files.names(path)
        except UnreadableError:
            return True
        return META in names or len(_PARTS_OF_RUN & names.keys()) > 1

    def _header(self, experiment_id: str, run_id: str) -> RunHeader | None:
        path = f"{self.path(experiment_id)}/{run_id}"
        try:
            info = run_info(self._fields(path), {})
            self._files.require_place(path, "run", run_id, info["run_id"])
            self._files.require_place(path, "experiment", experiment_id, info["experiment_id"])
        except UnreadableError as error:
            self.unread[run_id] = Failure(Kind.RUN, run_id, error.message)
            return None
        parent = None
        with contextlib.suppress(UnreadableError):  # which is named when the run is read
            if PARENT in self._files.names(f"{path}/tags"):
                parent = self._files.text(f"{path}/tags/{PARENT}")
        stage, started = info["lifecycle_stage"], info.get("start_time", 0)
        return RunHeader(run_id, experiment_id, stage, started, parent)

    def _fields(self, path: str) -> Fields:
        return Fields(self._files.place(f"{path}/{META}"), self._files.meta(path))

    def _add_metrics(
        self, run: Run, path: str, issues: list[Failure | Loss], rows: Rows | None, *, of_0x: bool
    ) -> Iterable[RunRows | Failure]:
        """Add the latest metrics of a run; returns its rows where they are too many to be held."""
        latest: list[dict[str, Any]] = run.document["data"]["metrics"]
        files: list[tuple[str, MetricFile]] = []
        keys: list[str] = []
        held_bytes = 0
        for key, file in self._metric_files(run.id, path, issues, of_0x=of_0x):
            step, timestamp, value = file.latest
            entry = {"key": key, "value": json_number(value), "timestamp": timestamp, "step": step}
            latest.append(entry)
            keys.append(key)
            held_bytes += file.size_bytes
            if rows is None or held_bytes > _HELD_BYTES:
                files.clear()
            else:
                files.append((key, file))
        latest.sort(key=lambda entry: str(entry["key"]))
        if rows is None or held_bytes > _HELD_BYTES:
            return self._rows_again(run.id, path, keys, of_0x=of_0x)
        for key, file in files:
            rows.add(run.id, key, file)
        return ()

    def _rows_again(
        self, run_id: str, path: str, keys: list[str], *, of_0x: bool
    ) -> Iterator[RunRows | Failure]:
        """Yield a run's rows key after key."""
        for key in sorted(keys, key=lambda key: key.encode()):
            try:
                file = MetricFile(self._files.content(f"{path}/{key}"), of_0x=of_0x)
                yield sorted_rows(run_id, key, file)
            except (UnreadableError, ValueError) as error:
                yield Failure(Kind.METRIC_HISTORY, f"{run_id}/{key}", str(error))

    def _metric_files(
        self, owner: str, path: str, issues: list[Failure | Loss], *, of_0x: bool
    ) -> Iterator[tuple[str, MetricFile]]:
        """Yield the metric files that have rows, by key, and name what is wrong with any."""
        for key, content in self._files.contents(Kind.METRIC_HISTORY, owner, path, issues):
            file = MetricFile(content, of_0x=of_0x)
            if file.problem:
                problem = f"{self._files.place(f'{path}/{key}')}: {file.problem}"
                issues.append(Failure(Kind.METRIC_HISTORY, f"{owner}/{key}", problem))
            if file.steps:
                yield key, file

    def _metrics_of_model(
        self, model_id: str, path: str, issues: list[Failure | Loss]
    ) -> list[dict[str, Any]]:
        """Return REST's ``Metric`` for the latest row of each key and dataset."""
        found: list[dict[str, Any]] = []
        for key, content in self._files.contents(Kind.METRIC_HISTORY, model_id, path, issues):
            latest, problem = latest_of_model(content)
            if problem:
                reason = f"{self._files.place(f'{path}/{key}')}: {problem}"
                issues.append(Failure(Kind.METRIC_HISTORY, f"{model_id}/{key}", reason))
            for (dataset_name, dataset_digest), row in latest.items():
                step, timestamp, value, run_id = row
                metric = {
                    "key": key,
                    "value": json_number(value),
                    "timestamp": timestamp,
                    "step": step,
                    "model_id": model_id,
                    "dataset_name": dataset_name,
                    "dataset_digest": dataset_digest,
                    "run_id": run_id,
                }
                found.append({name: said for name, said in metric.items() if said is not None})
        return sorted(found, key=metric_identity)

    def _add_inputs(
        self, document: dict[str, Any], experiment_id: str, path: str, issues: list[Failure | Loss]
    ) -> None:
        run_id = document["info"]["run_id"]
        datasets: list[dict[str, Any]] = []
        models: list[dict[str, Any]] = []
        for kind, source, tags in self._links(run_id, f"{path}/inputs", issues, _input):
            if kind == "MODEL":
                models.append({"model_id": source})
            elif kind == "DATASET":
                dataset = self._dataset(f"{self.path(experiment_id)}/datasets/{source}")
                if isinstance(dataset, str):
                    issues.append(Failure(Kind.RUN, f"{run_id}/dataset {source}", dataset))
                else:
                    datasets.append(
                        {"dataset": dataset} | ({"tags": sorted_entries(tags)} if tags else {})
                    )
        datasets.sort(key=dataset_identity)
        models.sort(key=lambda model: str(model["model_id"]))
        inputs = {"dataset_inputs": datasets, "model_inputs": models}
        if datasets or models:
            document["inputs"] = {name: listed for name, listed in inputs.items() if listed}

    def _add_outputs(
        self, document: dict[str, Any], path: str, issues: list[Failure | Loss]
    ) -> None:
        links = self._links(document["info"]["run_id"], f"{path}/outputs", issues, _output)
        made: list[dict[str, Any]] = [
            {"model_id": model_id, "step": step}
            for kind, model_id, step in links
            if kind == "MODEL_OUTPUT"
        ]
        if made:
            made.sort(key=lambda model: (model["step"], model["model_id"]))
            document["outputs"] = {"model_outputs": made}

    def _links(
        self,
        run_id: str,
        path: str,
        issues: list[Failure | Loss],
        said: Callable[[Fields], _Said],
    ) -> Iterator[_Said]:
        """Yield what each folder of inputs or outputs says."""
        part = path.rpartition("/")[2]
        try:
            names = self._files.folders(path) or []
        except UnreadableError as error:
            issues.append(Failure(Kind.RUN, f"{run_id}/{part}", error.message))
            return
        for name in names:
            try:
                meta = self._files.meta(f"{path}/{name}")
                yield said(Fields(self._files.place(f"{path}/{name}/{META}"), meta))
            except UnreadableError as error:
                issues.append(Failure(Kind.RUN, f"{run_id}/{part}/{name}", error.message))

    def _dataset(self, path: str) -> dict[str, Any] | str:
        """Return REST's ``Dataset``, or why there is none."""
        if path not in self._datasets:
            if len(self._datasets) == _DATASETS_KEPT:
                self._datasets.clear()
            try:
                self._datasets[path] = dataset_document(self._fields(path))
            except UnreadableError as error:
                self._datasets[path] = error.message
        return self._datasets[path]

    def _failed(self, kind: Kind, path: str, reason: str) -> None:
        self.failures.append(Failure(kind, path, reason))


def _input(fields: Fields) -> tuple[str | None, str, dict[str, str]]:
    return fields.maybe_text("source_type"), fields.text("source_id"), fields.texts("tags")


def _output(fields: Fields) -> tuple[str | None, str, int]:
    kind, model_id = fields.maybe_text("destination_type"), fields.text("destination_id")
    return kind, model_id, fields.number("step") or 0
