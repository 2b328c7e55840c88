"""The tracking part of an export: experiments, runs, logged models and traces, each by itself."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from mlflow_exim_plugin.errors import NotFoundError, StoreError
from mlflow_exim_plugin.host.api.together import each_alone
from mlflow_exim_plugin.host.traces.files import DATA_FILE, spans_of, take
from mlflow_exim_plugin.host.traces.spans import from_dict
from mlflow_exim_plugin.options import ALL_IDS
from mlflow_exim_plugin.schema.documents import json_number
from mlflow_exim_plugin.schema.metric_rows import RunRows
from mlflow_exim_plugin.schema.objects import (
    Experiment,
    Failure,
    Kind,
    LoggedModel,
    Loss,
    Run,
    Trace,
    by_number,
    key_values,
)
from mlflow_exim_plugin.schema.runs import LOGGED_MODELS, RunHeader
from mlflow_exim_plugin.schema.tables import HISTORY, sort_history
from mlflow_exim_plugin.sources.exports.documents import (
    experiment_document,
    logged_model_document,
    run_document,
    trace_document,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mlflow_exim_plugin.schema.runs import Listed
    from mlflow_exim_plugin.sources.exports.claims import Claims
    from mlflow_exim_plugin.sources.exports.layout import ExportedFile, ExportedObject, ExportLayout

__all__ = ["ExportedTracking"]

_EXPERIMENT_NAME = "mlflow_export_import.metadata.experiment_name"
"""Tag of a run that some exports wrote."""
_ID = re.compile(r"[0-9a-f]{32}")
_MALFORMED = (ValueError, KeyError, TypeError, AttributeError, OverflowError)


class ExportedTracking:
    """Finds the experiments of an export, and reads what belongs to them.

    Args:
        layout: The export.
        experiment_names: By run id, what is known of the name of its experiment.
        claims: Gains what experiments say of what belongs to them.

    Attributes:
        experiments: Every experiment by id, in order.
        failures: What is there and cannot be read.
        losses: What the export itself did not have.
        trace_ids: Of all traces.
    """

    def __init__(
        self, layout: ExportLayout, experiment_names: Mapping[str, str], claims: Claims
    ) -> None:
        self._layout = layout
        self._names = experiment_names
        self._claims = claims
        self.experiments: dict[str, Experiment] = {}
        self.failures: list[Failure] = []
        self.losses: list[Loss] = []
        self._files: dict[str, str] = {}
        self._runs: dict[str, dict[str, RunHeader]] = {}
        self._models: dict[str, dict[str, str]] = {}
        self._traces: dict[str, list[tuple[int, str]]] = {}
        self.trace_ids: set[str] = set()
        layout.take(Kind.EXPERIMENT, self._take_experiment, self.failures)
        layout.take(Kind.RUN, self._take_run, self.failures)
        layout.take(Kind.LOGGED_MODEL, self._take_logged_model, self.failures)
        layout.take(Kind.TRACE, self._take_trace, self.failures)
        in_order = sorted(self.experiments, key=by_number)
        self.experiments = {key: self.experiments[key] for key in in_order}

    @property
    def run_ids(self) -> set[str]:
        """Ids of all runs."""
        return set(self._files)

    @property
    def logged_model_ids(self) -> set[str]:
        """Ids of all logged models."""
        return {model_id for models in self._models.values() for model_id in models}

    def runs(self, experiment_id: str, filter_string: str = "") -> dict[str, RunHeader]:
        """Return the headers of an experiment's runs that match a filter, by run id."""
        found = self._runs.get(experiment_id, {})
        if not filter_string:
            return found
        from mlflow_exim_plugin.host.documents import matching_runs

        read = [self.read_run(run_id, contents=False) for run_id in found]
        documents = [run.document for run, _ in read if isinstance(run, Run)]
        matching = matching_runs(documents, filter_string)
        return {one["info"]["run_id"]: found[one["info"]["run_id"]] for one in matching}

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
        run: Run | Failure | None = None
        if run_id in self._files:
            run, _ = self.read_run(run_id, contents=False)
        if not isinstance(run, Run):
            raise NotFoundError(f"there is no run {run_id}")
        return run.document

    def read_run(self, run_id: str, *, contents: bool) -> tuple[Run | Failure, list[ExportedFile]]:
        """Return a run, without metric rows where no contents are wanted, and its files."""
        path = self._files[run_id]
        try:
            with self._layout.reading(path) as found:
                latest, rows, issues = _metrics(run_id, found.payload)
                run = Run(run_document(found.payload, latest), as_of_ms=found.as_of_ms)
                run.info["run_id"] = run.info["run_uuid"] = run_id
                if contents and rows is not None:
                    run.histories = (RunRows.of(run_id, rows),)
        except StoreError as error:
            return Failure(Kind.RUN, run_id, error.message), []
        files = self._layout.files_of(found)
        if LOGGED_MODELS in run.tags and not files:
            what = "it logged a model, and the export has no files of it"
            issues.append(Loss(Kind.RUN, run_id, what))
        run.issues = tuple(issues)
        return run, files

    def logged_models(
        self, experiment_id: str
    ) -> Iterator[tuple[LoggedModel | Failure, list[ExportedFile]]]:
        """Yield the logged models of an experiment by id, with their files."""
        for model_id, path in sorted(self._models.get(experiment_id, {}).items()):
            try:
                with self._layout.reading(path) as found:
                    document = logged_model_document(found.payload)
            except StoreError as error:
                yield Failure(Kind.LOGGED_MODEL, model_id, error.message), []
                continue
            yield LoggedModel(document, as_of_ms=found.as_of_ms), self._layout.files_of(found)

    def traces(self, experiment_id: str) -> Iterator[tuple[Trace | Failure, list[ExportedFile]]]:
        """Yield the traces of an experiment, oldest first, with the files beside them."""
        for _, path in sorted(self._traces.get(experiment_id, ())):
            try:
                with self._layout.reading(path) as found:
                    document, _ = trace_document(found.payload["info"])
                    expected = len(found.payload.get("data") or ())
            except StoreError as error:
                yield Failure(Kind.TRACE, path, error.message), []
                continue
            trace = Trace(document, experiment_id, as_of_ms=found.as_of_ms)
            files = self._layout.files_of(found)
            self._add_spans(trace, files, expected)
            yield trace, [file for file in files if file.path != DATA_FILE]

    def _add_spans(self, trace: Trace, files: list[ExportedFile], expected: int) -> None:
        file = next((file for file in files if file.path == DATA_FILE), None)
        if file is None:
            what = "the export has no spans of it"
            if expected:
                what = f"the export has but the names of its {expected} spans"
            trace.issues += (Loss(Kind.TRACE, trace.id, what),)
            return
        try:
            take(trace, spans_of(self._layout.content(file), trace), from_dict)
        except StoreError as error:
            trace.issues += (Failure(Kind.SPAN, trace.id, error.message),)
        except _MALFORMED as error:
            reason = f"{file.place} holds no spans: {error}"
            trace.issues += (Failure(Kind.SPAN, trace.id, reason),)

    def _take_experiment(self, found: ExportedObject) -> None:
        self._claims.note(found)
        given = found.payload.get("experiment")
        if not isinstance(given, dict):
            if not found.path.endswith("manifest.json"):  # which is also the name of lists
                raise StoreError("it says of no experiment")
            return
        document = experiment_document(given)
        experiment_id = document["experiment_id"]
        if (permissions := found.payload.get("permissions")) is not None:
            document["permissions"] = permissions
        known = self.experiments.setdefault(
            experiment_id, Experiment(document, as_of_ms=found.as_of_ms)
        )
        if known.name != document["name"]:
            raise StoreError(f"its id {experiment_id} is that of {known.name!r} too")
        if known.document is document:
            if permissions is not None:
                self._lost(experiment_id, "its permissions are in the archive, and not applied")
            if (said := str(given["experiment_id"])) != experiment_id:
                self._lost(experiment_id, f"its id {said} is no number, and kept as another")

    def _lost(self, experiment_id: str, what: str) -> None:
        loss = Loss(Kind.EXPERIMENT, experiment_id, what)
        self.experiments[experiment_id].issues += (loss,)

    def _take_run(self, found: ExportedObject) -> None:
        document = run_document(found.payload, ())
        header = RunHeader.of(document)
        if header.run_id in self._files:
            self._compare(header, found, document)
            return
        self._add_run(header, found, document)

    def _add_run(self, header: RunHeader, found: ExportedObject, document: dict[str, Any]) -> None:
        self._files[header.run_id] = found.path
        self._runs.setdefault(header.experiment_id, {})[header.run_id] = header
        if header.experiment_id not in self.experiments:
            tags = key_values(document["data"]["tags"])
            name = tags.get(_EXPERIMENT_NAME) or self._names.get(header.run_id)
            root = str(document["info"].get("artifact_uri") or "")
            place = root.partition(f"/{header.run_id}/")[0]
            self._make_experiment(header.experiment_id, name, place, found.as_of_ms)

    def _compare(self, header: RunHeader, found: ExportedObject, document: dict[str, Any]) -> None:
        """Take the one of two exports of a run that has more files, and say where they differ."""
        run_id = header.run_id
        other = self._layout.read(self._files[run_id])
        mine, its = (
            [(file.path, file.size_bytes) for file in self._layout.files_of(one)]
            for one in (found, other)
        )
        folder = found.folder.rpartition("/")[2]
        if found.payload != other.payload and folder not in self._files and _ID.fullmatch(folder):
            what = f"{found.path} says that it is {run_id}, which {other.path} is"
            self.losses.append(Loss(Kind.RUN, folder, f"{what}: it is kept as its folder says"))
            self._add_run(replace(header, run_id=folder), found, document)
            return
        if len(mine) > len(its):
            self._files[run_id] = found.path
        if found.payload != other.payload or (mine and its and mine != its):
            what = f"{other.path} and {found.path} differ: {self._files[run_id]} is taken"
            self.losses.append(Loss(Kind.RUN, run_id, what))

    def _take_logged_model(self, found: ExportedObject) -> None:
        info = logged_model_document(found.payload)["info"]
        # It lies beside each run that made or used it; the first will do.
        self._models.setdefault(info["experiment_id"], {}).setdefault(info["model_id"], found.path)
        self._make_experiment(info["experiment_id"], None, "", found.as_of_ms)

    def _take_trace(self, found: ExportedObject) -> None:
        document, experiment_id = trace_document(found.payload["info"])
        started = document["info"].get("request_time_ms", 0)
        self._traces.setdefault(experiment_id, []).append((started, found.path))
        self.trace_ids.add(document["info"]["trace_id"])
        self._make_experiment(experiment_id, None, "", found.as_of_ms)

    def _make_experiment(
        self, experiment_id: str, name: str | None, place: str, as_of_ms: int
    ) -> None:
        """Give what was exported without its experiment one, of the name that is known of it."""
        if experiment_id in self.experiments:
            return
        name = name or f"experiment-{experiment_id}"
        document = {
            "experiment_id": experiment_id,
            "name": name,
            "artifact_location": place,
            "lifecycle_stage": "active",
            "tags": [],
        }
        self.experiments[experiment_id] = Experiment(document, as_of_ms=as_of_ms)
        what = f"the export does not have it itself: what belongs to it stands in {name!r}"
        self._lost(experiment_id, what)


def _metrics(
    run_id: str, payload: dict[str, Any]
) -> tuple[list[dict[str, Any]], pa.Table | None, list[Failure | Loss]]:
    """Return REST's latest ``Metric`` of each key, all rows, and what is wrong with any."""
    given = payload.get("metrics") or {}
    if not isinstance(given, dict):
        raise StoreError("its metrics have no keys")
    info = payload["info"]
    keys: list[str] = []
    rows: list[tuple[int, int, float]] = []
    latest: list[dict[str, Any]] = []
    issues: list[Failure | Loss] = []
    are_latest = False
    for key in sorted(given):
        points = given[key]
        if not isinstance(points, list):  # the first exports had the latest value alone
            when = info.get("end_time") or info.get("start_time") or 0
            points, are_latest = [{"value": points, "timestamp": when}], True
        read, bad = [], []
        for number, point in enumerate(points, 1):
            try:
                row = int(point.get("step") or 0), int(point["timestamp"]), float(point["value"])
                if not (-(2**63) <= row[0] < 2**63 and -(2**63) <= row[1] < 2**63):
                    raise ValueError(point)
            except _MALFORMED:
                bad.append(number)
                continue
            read.append(row)
        if bad:
            reason = f"row {', '.join(map(str, bad[:3]))} is damaged; the others are read"
            issues.append(Failure(Kind.METRIC_HISTORY, f"{run_id}/{key}", reason))
        if read:
            step, timestamp, value = max(read)
            shown = json_number(value)
            latest.append({"key": key, "value": shown, "timestamp": timestamp, "step": step})
            keys += [key] * len(read)
            rows += read
    if are_latest:
        what = "the export has but the last value of each metric: it stands at step 0, at its end"
        issues.append(Loss(Kind.METRIC_HISTORY, run_id, what))
    if not rows:
        return latest, None, issues
    steps, timestamps, values = zip(*rows, strict=True)
    table = pa.table([keys, steps, timestamps, values], schema=HISTORY)
    return latest, sort_history(table), issues
