"""What comes back to where it once was is recognised; what is asked for is made once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Feedback, LoggedModelOutput

from mlflow_exim_plugin import copy, pack, unpack
from mlflow_exim_plugin.schema.objects import Kind
from mlflow_exim_plugin.schema.provenance import is_provenance
from tests.compare import assert_count_law
from tests.integration.conftest import rows_of
from tests.trace_seed import started_trace

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mlflow_exim_plugin.schema.report import Report

pytestmark = pytest.mark.integration


@pytest.fixture
def make_store(make_sqlite: Callable[[], str], tmp_path: Path) -> Callable[[str], str]:
    """Make a store with a run, a model of it and a version in an experiment of a name."""

    def make(name: str) -> str:
        uri = make_sqlite()
        client = MlflowClient(uri, uri)
        add_run(uri, client.create_experiment("sync", str(tmp_path / name)), name)
        return uri

    return make


def add_run(uri: str, experiment_id: str, name: str) -> None:
    client = MlflowClient(uri, uri)
    run = client.create_run(experiment_id, run_name=name)
    run_id = run.info.run_id
    client.log_text(run_id, name, "note.txt")
    client.log_metric(run_id, "loss", 0.5)
    client.set_terminated(run_id)
    if not [m for m in client.search_registered_models() if m.name == "net"]:
        client.create_registered_model("net")
    client.create_model_version("net", run.info.artifact_uri, run_id, description=name)
    if hasattr(client, "create_logged_model"):
        model = client.create_logged_model(experiment_id, f"model-{name}", run_id)
        client.finalize_logged_model(model.model_id, "READY")


def to(source: str, target: str, tmp_path: Path, **more: Any) -> Report:
    files = str(tmp_path / f"files of {target.rpartition('/')[2]}")
    report = copy(source, target, artifact_location=files, preserve_ids=False, **more)
    assert report.failures == []
    assert_count_law(report)
    return report


def names(uri: str) -> dict[str, list[str]]:
    """Return what runs, versions and logged models a store has, by name."""
    client = MlflowClient(uri, uri)
    experiments = [e for e in client.search_experiments() if e.name != "Default"]
    ids = [e.experiment_id for e in experiments]
    models = client.search_logged_models(ids) if hasattr(client, "search_logged_models") else []
    return {
        "experiments": sorted(e.name for e in experiments),
        "runs": sorted(str(run.info.run_name) for run in client.search_runs(ids)),
        "versions": sorted(v.description or "" for v in client.search_model_versions()),
        "models": sorted(model.name for model in models),
    }


def of_runs(*runs: str) -> dict[str, list[str]]:
    has_models = hasattr(MlflowClient, "create_logged_model")
    return {
        "experiments": ["sync"],
        "runs": list(runs),
        "versions": list(runs),
        "models": [f"model-{run}" for run in runs] if has_models else [],
    }


def test_two_stores_that_copy_to_each_other_have_everything_once(
    make_store: Callable[[str], str], tmp_path: Path
) -> None:
    a, b = make_store("a"), make_store("b")
    for _ in range(2):
        to(a, b, tmp_path)
        to(b, a, tmp_path)

        assert names(a) == names(b) == of_runs("a", "b")


def test_a_ring_of_stores_closes(
    make_store: Callable[[str], str], make_sqlite: Callable[[], str], tmp_path: Path
) -> None:
    a, b, c = make_store("a"), make_sqlite(), make_sqlite()
    for _ in range(2):
        to(a, b, tmp_path)
        to(b, c, tmp_path)
        to(c, a, tmp_path)
        to(a, c, tmp_path)  # what came to c by way of b

        assert names(a) == names(b) == names(c) == of_runs("a")
    add_run(c, MlflowClient(c, c).get_experiment_by_name("sync").experiment_id, "new")
    to(c, a, tmp_path)
    to(a, b, tmp_path)
    to(b, c, tmp_path)
    assert names(a) == names(b) == names(c) == of_runs("a", "new")


def test_what_went_through_a_server_comes_home_into_the_database(
    make_store: Callable[[str], str], make_sqlite: Callable[[], str], tmp_path: Path
) -> None:
    a, b = make_store("a"), make_sqlite()
    to(a, b, tmp_path)
    add_run(b, MlflowClient(b, b).get_experiment_by_name("sync").experiment_id, "new")
    for _ in range(2):
        files = str(tmp_path / "files of a")
        report = copy(b, a, artifact_location=files, preserve_ids=True)

        assert_count_law(report)
        assert names(a) == of_runs("a", "new")


def test_what_became_other_on_the_way_home_is_named(
    make_store: Callable[[str], str], make_sqlite: Callable[[], str], tmp_path: Path
) -> None:
    a, b = make_store("a"), make_sqlite()
    to(a, b, tmp_path)
    there = MlflowClient(b, b)
    experiment_id = there.get_experiment_by_name("sync").experiment_id
    (came,) = there.search_runs([experiment_id])
    twin = there.create_run(experiment_id, tags=came.data.tags, start_time=came.info.start_time)
    there.log_param(twin.info.run_id, "only", "of the twin")
    there.set_terminated(twin.info.run_id, end_time=came.info.end_time)
    there.create_model_version("net", came.info.artifact_uri, came.info.run_id, description="late")
    home = MlflowClient(a, a)
    (original,) = home.search_runs([home.get_experiment_by_name("sync").experiment_id])

    said = [copy(b, a, artifact_location=str(tmp_path / "a"), preserve_ids=True) for _ in range(2)]

    for report in said:
        assert report.failures == []
        assert_count_law(report)
        named = {(loss.kind, loss.id): loss.what for loss in report.losses}
        assert named == {
            (Kind.RUN, twin.info.run_id): "the target has another state of it, as "
            f"{original.info.run_id}, which stays: params"
        }
    assert names(a)["runs"] == ["a"]
    late = home.get_model_version("net", "2")
    assert (late.run_id, late.source) == (original.info.run_id, original.info.artifact_uri)


def test_what_became_other_is_named_where_ids_are_not_kept(
    make_store: Callable[[str], str], make_sqlite: Callable[[], str], tmp_path: Path
) -> None:
    a, b = make_store("a"), make_sqlite()
    to(a, b, tmp_path)
    there = MlflowClient(b, b)
    experiment_id = there.get_experiment_by_name("sync").experiment_id
    (came,) = there.search_runs([experiment_id])
    twin = there.create_run(experiment_id, tags=came.data.tags, start_time=came.info.start_time)
    there.log_param(twin.info.run_id, "only", "of the twin")
    there.log_metric(twin.info.run_id, "loss", float("nan"))
    there.set_terminated(twin.info.run_id, end_time=came.info.end_time)
    home = MlflowClient(a, a)
    (original,) = home.search_runs([home.get_experiment_by_name("sync").experiment_id])

    report = to(b, a, tmp_path)

    assert_count_law(report)
    said = {loss.id: loss.what for loss in report.losses if loss.kind is Kind.RUN}
    assert said == {
        twin.info.run_id: "the target has another state of it, as "
        f"{original.info.run_id}, which stays: params, metrics"
    }
    assert names(a)["runs"] == ["a"]


def test_a_file_that_was_lost_at_home_comes_back(
    make_store: Callable[[str], str], make_sqlite: Callable[[], str], tmp_path: Path
) -> None:
    a, b = make_store("a"), make_sqlite()
    to(a, b, tmp_path)
    home = MlflowClient(a, a)
    (run,) = home.search_runs([home.get_experiment_by_name("sync").experiment_id])
    lost = tmp_path / "a" / run.info.run_id / "artifacts" / "note.txt"
    lost.unlink()

    report = copy(b, a, artifact_location=str(tmp_path / "a"), preserve_ids=True)

    assert lost.read_text() == "a"
    assert report.counts[Kind.ARTIFACT].written == 1


def test_an_archive_of_a_store_changes_nothing_in_it(
    make_store: Callable[[str], str], tmp_path: Path
) -> None:
    a, archive = make_store("a"), str(tmp_path / "a.tar.zst")
    assert pack(archive, tracking_uri=a).ok

    report = unpack(archive, tracking_uri=a, preserve_ids=False)

    assert report.ok
    assert {kind: c.written for kind, c in report.counts.items() if c.written} == {}
    assert names(a) == of_runs("a")


def test_a_copy_that_is_asked_for_is_made_once(
    make_store: Callable[[str], str], tmp_path: Path
) -> None:
    a, archive = make_store("a"), str(tmp_path / "a.tar.zst")
    assert pack(archive, tracking_uri=a, experiments=("sync",)).ok
    for _ in range(2):
        assert unpack(archive, tracking_uri=a, experiment_name="again", preserve_ids=False).ok
        assert unpack(archive, tracking_uri=a, preserve_ids=False).ok

        there = names(a)
        assert there["experiments"] == ["again", "sync"]
        assert there["runs"] == ["a", "a"]


def test_both_copies_of_one_run_go_to_another_store(
    make_store: Callable[[str], str], make_sqlite: Callable[[], str], tmp_path: Path
) -> None:
    a, b, archive = make_store("a"), make_sqlite(), str(tmp_path / "a.tar.zst")
    assert pack(archive, tracking_uri=a, experiments=("sync",)).ok
    assert unpack(archive, tracking_uri=a, experiment_name="again", preserve_ids=False).ok
    for _ in range(2):
        to(a, b, tmp_path)

        assert names(b)["experiments"] == ["again", "sync"]
        assert names(b)["runs"] == ["a", "a"]


@pytest.mark.skipif(not hasattr(MlflowClient, "create_logged_model"), reason="MLflow 2")
def test_traces_and_datasets_come_home_without_marks(
    make_store: Callable[[str], str], make_sqlite: Callable[[], str], tmp_path: Path
) -> None:
    a, b = make_store("a"), make_sqlite()
    store = MlflowClient(a, a)._tracking_client.store
    experiment_id = store.get_experiment_by_name("sync").experiment_id
    trace_id = started_trace(store, experiment_id, "tr-" + "0" * 32, tags={"own": "tag"})
    dataset = store.create_dataset("d", {"own": "tag"}, [experiment_id])
    store.upsert_dataset_records(dataset.dataset_id, [{"inputs": {"a": 1}}])
    to(a, b, tmp_path)
    before = rows_of(a)

    for _ in range(2):
        report = to(b, a, tmp_path, import_source_tags=True)

        assert {kind: c.written for kind, c in report.counts.items() if c.written} == {}
        assert rows_of(a) == before

    by_rows = copy(b, a, artifact_location=str(tmp_path / "a"), preserve_ids=True)
    assert [loss for loss in by_rows.losses if "another state" in loss.what] == []
    there = MlflowClient(b, b)._tracking_client.store
    there.create_assessment(Feedback(name="late", value=True, trace_id=trace_id))
    to(b, a, tmp_path)
    info = store.get_trace_info(trace_id)
    assert [assessment.name for assessment in info.assessments] == ["late"]
    assert not any(map(is_provenance, info.tags))


@pytest.mark.skipif(not hasattr(MlflowClient, "create_logged_model"), reason="MLflow 2")
@pytest.mark.parametrize("made_by_a_run", [True, False])
def test_a_logged_model_that_was_deleted_at_home_stays_so(
    make_store: Callable[[str], str],
    make_sqlite: Callable[[], str],
    tmp_path: Path,
    *,
    made_by_a_run: bool,
) -> None:
    a, b = make_store("a"), make_sqlite()
    client = MlflowClient(a, a)
    (experiment,) = [e for e in client.search_experiments() if e.name == "sync"]
    (model,) = client.search_logged_models([experiment.experiment_id])
    if made_by_a_run:
        client.log_outputs(model.source_run_id, [LoggedModelOutput(model.model_id, 0)])
    to(a, b, tmp_path)
    client.delete_logged_model(model.model_id)
    before = rows_of(a)

    report = to(b, a, tmp_path)

    reasons = [skip.reason for skip in report.skips if skip.kind is Kind.LOGGED_MODEL]
    assert reasons == [f"it was deleted at the target, as {model.model_id}"]
    assert rows_of(a) == before
