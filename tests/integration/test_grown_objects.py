"""Into a database again, while models, traces and datasets grow at the source."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import (
    AssessmentSource,
    Feedback,
    LoggedModelParameter,
    LoggedModelStatus,
    Metric,
    TraceInfo,
    TraceLocation,
    TraceState,
)

from mlflow_exim_plugin import copy, diff, pack, unpack
from mlflow_exim_plugin.options import Selection
from mlflow_exim_plugin.schema.objects import Kind, Loss
from tests.compare import assert_count_law
from tests.integration.test_same_ids import (
    LOCATIONS,
    assert_equal,
    assert_nothing_written,
    rows,
)
from tests.seed import T0
from tests.seed_logged_models import log_model_files
from tests.trace_seed import _entity, _span, started_trace

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.integration

PLACES = [*LOCATIONS, "*.mlflow.artifactLocation"]
PENDING, READY = "pending", "ready"


class Growing:
    """One of each kind that grows.

    Args:
        uri: A SQLite store.
        location: Where the experiment's files are.
    """

    def __init__(self, uri: str, location: Path) -> None:
        self.uri = uri
        self.client = MlflowClient(uri, uri)
        self.store = self.client._tracking_client.store
        self.experiment_id: str = self.client.create_experiment("growing", str(location))
        self.run_id: str = self.client.create_run(self.experiment_id, T0).info.run_id
        self.models = {}
        for name in (PENDING, READY):
            model = self.client.create_logged_model(self.experiment_id, name, self.run_id)
            self.models[name] = model.model_id
            log_model_files(self.client, model.model_id, {"MLmodel": "flavors: {}\n"})
        self.client.finalize_logged_model(self.models[READY], LoggedModelStatus.READY)
        self.client.set_logged_model_tags(self.models[PENDING], {"team": "a"})
        self.client.set_logged_model_tags(self.models[READY], {"team": "a"})
        self.score(0)
        self.trace_id = f"tr-{0x6070:032x}"
        started_trace(self.store, self.experiment_id, self.trace_id, state=TraceState.IN_PROGRESS)
        self.spans(_span("first", 2, 1), _span("running", 3, 1), is_running=True)
        dataset = self.store.create_dataset("questions", {"team": "a"}, [self.experiment_id])
        self.dataset_id: str = dataset.dataset_id
        self.ask("one", "two")

    def score(self, step: int) -> None:
        model_id = self.models[READY]
        self.client.log_batch(
            self.run_id, [Metric("accuracy", step / 7, T0 + step, step, model_id)]
        )

    def spans(self, *spans: dict[str, Any], is_running: bool = False) -> None:
        entities = [_entity(span, self.trace_id) for span in spans]
        if is_running:
            entities[-1]._span._end_time = None
        self.store.log_spans(self.experiment_id, entities)

    def ask(self, *questions: str) -> None:
        records = [{"inputs": {"q": q}, "expectations": {"a": q}} for q in questions]
        self.store.upsert_dataset_records(self.dataset_id, records)
        time.sleep(0.002)  # what comes next has another time

    def go_on(self) -> None:
        model_id = self.models[PENDING]
        parameters = [LoggedModelParameter("depth", "3")]
        self.store.log_logged_model_params(model_id, parameters)
        self.client.set_logged_model_tags(model_id, {"team": "b", "new": "yes"})
        log_model_files(self.client, model_id, {"weights": "1" * 1000})
        self.client.finalize_logged_model(model_id, LoggedModelStatus.READY)
        self.score(1)
        self.client.set_terminated(self.run_id, end_time=T0 + 1)
        self.spans(_span("running", 3, 1), _span("last", 4, 1), _span("root", 1))
        self.store.start_trace(
            TraceInfo(
                trace_id=self.trace_id,
                trace_location=TraceLocation.from_experiment_id(self.experiment_id),
                request_time=T0,
                execution_duration=4321,
                state=TraceState.OK,
                request_preview="what?",
                response_preview="that",
                tags={"late": "yes"},
                trace_metadata={"mlflow.trace.session": "s1"},
            )
        )
        feedback = Feedback("helpful", value=True, source=AssessmentSource("HUMAN", "anna"))
        feedback.trace_id = self.trace_id
        self.store.create_assessment(feedback)
        self.ask("three")
        self.store.set_dataset_tags(self.dataset_id, {"new": "yes"})


@pytest.fixture
def growing(make_sqlite: Callable[[], str], tmp_path: Path) -> Growing:
    """One of each, which goes on."""
    return Growing(make_sqlite(), tmp_path / "source files")


def test_what_grew_is_completed(growing: Growing, database_uri: str, tmp_path: Path) -> None:
    first, second = str(tmp_path / "1.tar.zst"), str(tmp_path / "2.tar.zst")
    where = str(tmp_path / "files")
    assert pack(first, tracking_uri=growing.uri).ok
    assert unpack(first, tracking_uri=database_uri, artifact_location=where).ok
    growing.go_on()
    assert pack(second, tracking_uri=growing.uri).ok

    planned = unpack(second, tracking_uri=database_uri, artifact_location=where, dry_run=True)
    report = unpack(second, tracking_uri=database_uri, artifact_location=where)

    assert report.failures == []
    assert_count_law(report)
    assert_equal(diff(growing.uri, database_uri, rules="exact", ignore=PLACES))
    assert planned.to_dict()["counts"] == report.to_dict()["counts"]
    written = {kind: counts.written for kind, counts in report.counts.items() if counts.written}
    assert written == {
        Kind.RUN: 1,
        Kind.METRIC_HISTORY: 1,
        Kind.LOGGED_MODEL: 2,
        Kind.ARTIFACT: 1,
        Kind.TRACE: 1,
        Kind.SPAN: 3,
        Kind.ASSESSMENT: 1,
        Kind.EVALUATION_DATASET: 1,
        Kind.DATASET_RECORD: 1,
    }
    for archive in (second, first):
        again = unpack(archive, tracking_uri=database_uri, artifact_location=where)
        assert_nothing_written(again)
        assert not [loss for loss in again.losses if "another state" in loss.what]
    assert_equal(diff(growing.uri, database_uri, rules="exact", ignore=PLACES))


def own_metric(growing: Growing, there: MlflowClient) -> None:
    run_id = there.create_run(growing.experiment_id).info.run_id
    there.log_batch(run_id, [Metric("mine", 1.0, T0, 0, growing.models[READY])])


def own_param(growing: Growing, there: MlflowClient) -> None:
    store = there._tracking_client.store
    store.log_logged_model_params(growing.models[PENDING], [LoggedModelParameter("depth", "4")])


def deleted_model(growing: Growing, there: MlflowClient) -> None:
    there.delete_logged_model(growing.models[PENDING])


def own_span(growing: Growing, there: MlflowClient) -> None:
    span = _entity(_span("mine", 9, 1), growing.trace_id)
    there._tracking_client.store.log_spans(growing.experiment_id, [span])


def ended_trace(growing: Growing, there: MlflowClient) -> None:
    span = _entity(_span("mine", 1), growing.trace_id)
    there._tracking_client.store.log_spans(growing.experiment_id, [span])


def own_record(growing: Growing, there: MlflowClient) -> None:
    records = [{"inputs": {"q": "mine"}}]
    there._tracking_client.store.upsert_dataset_records(growing.dataset_id, records)


def other_record(growing: Growing, there: MlflowClient) -> None:
    records = [{"inputs": {"q": "one"}, "expectations": {"a": "mine"}}]
    there._tracking_client.store.upsert_dataset_records(growing.dataset_id, records)


def deleted_record(growing: Growing, there: MlflowClient) -> None:
    query = "SELECT dataset_record_id FROM evaluation_dataset_records"
    (gone, *_) = rows(growing.uri, f"{query} ORDER BY created_time")[0]
    there._tracking_client.store.delete_dataset_records(growing.dataset_id, [gone])


TABLES_OF = {
    "model": ("logged_models", "logged_model_params", "logged_model_tags", "logged_model_metrics"),
    "trace": ("trace_info", "trace_tags", "trace_request_metadata", "spans", "assessments"),
    "dataset": (
        "evaluation_datasets",
        "evaluation_dataset_records",
        "evaluation_dataset_tags",
        "entity_associations",
    ),
}


@pytest.mark.parametrize(
    ("change", "of"),
    [
        (own_metric, "model"),
        (own_param, "model"),
        (deleted_model, "model"),
        (own_span, "trace"),
        (ended_trace, "trace"),
        (own_record, "dataset"),
        (other_record, "dataset"),
        (deleted_record, "dataset"),
    ],
)
def test_what_went_its_own_way_stays(
    growing: Growing,
    sqlite_uri: str,
    tmp_path: Path,
    change: Callable[[Growing, MlflowClient], None],
    of: str,
) -> None:
    where = str(tmp_path / "files")
    assert copy(growing.uri, sqlite_uri, artifact_location=where).ok
    change(growing, MlflowClient(sqlite_uri, sqlite_uri))
    identity = {
        "model": growing.models[READY if change is own_metric else PENDING],
        "trace": growing.trace_id,
        "dataset": growing.dataset_id,
    }[of]
    before = rows_about(sqlite_uri, of, identity)
    growing.go_on()

    report = copy(growing.uri, sqlite_uri, artifact_location=where)

    assert report.failures == []
    assert_count_law(report)
    assert rows_about(sqlite_uri, of, identity) == before
    named = [loss.what for loss in report.losses if loss.id == identity]
    assert any(what.startswith("the target has another state of it") for what in named), named
    # What is beside it and grew is completed all the same.
    assert report.counts[Kind.RUN].written == 1


def rows_about(uri: str, of: str, identity: str) -> list[Any]:
    found = [row for table in TABLES_OF[of] for row in rows(uri, f"SELECT * FROM {table}")]
    return [row for row in found if identity in row]


def test_tags_of_a_model_that_is_finished_stay(
    growing: Growing, sqlite_uri: str, tmp_path: Path
) -> None:
    where, model_id = str(tmp_path / "files"), growing.models[READY]
    assert copy(growing.uri, sqlite_uri, artifact_location=where).ok
    client = MlflowClient(sqlite_uri, sqlite_uri)
    client.set_logged_model_tags(model_id, {"team": "mine"})
    growing.score(1)

    report = copy(growing.uri, sqlite_uri, artifact_location=where)

    assert report.counts[Kind.LOGGED_MODEL].written == 1
    assert client.get_logged_model(model_id).tags["team"] == "mine"
    assert len(client.get_logged_model(model_id).metrics) == 2
    what = "the target keeps its own logged_model_tags team"
    assert Loss(Kind.LOGGED_MODEL, model_id, what) in report.losses


def test_metrics_of_a_model_come_with_their_run(
    growing: Growing, sqlite_uri: str, tmp_path: Path
) -> None:
    """A run of another experiment that an earlier archive did not bring along."""
    client, model_id = growing.client, growing.models[READY]
    other = client.create_experiment("zz evaluations", str(tmp_path / "other"))
    run_id = client.create_run(other).info.run_id
    client.log_batch(run_id, [Metric("accuracy", 0.75, T0, 5, model_id)])
    archive, where = str(tmp_path / "1.tar.zst"), str(tmp_path / "files")
    assert pack(archive, tracking_uri=growing.uri).ok
    alone = Selection(experiments=("growing",))
    first = unpack(archive, tracking_uri=sqlite_uri, artifact_location=where, selection=alone)
    left_out = f"1 metrics are left out, their runs are not there: {run_id}"
    assert Loss(Kind.LOGGED_MODEL, model_id, left_out) in first.losses
    again = unpack(archive, tracking_uri=sqlite_uri, artifact_location=where, selection=alone)
    assert_nothing_written(again)

    report = unpack(archive, tracking_uri=sqlite_uri, artifact_location=where)

    assert report.ok
    assert_equal(diff(growing.uri, sqlite_uri, rules="exact", ignore=PLACES))
    assert_nothing_written(unpack(archive, tracking_uri=sqlite_uri, artifact_location=where))
