"""Paths, places and documents that somebody bent, on their way to targets: the rest arrives."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import ViewType

from mlflow_exim_plugin.operations.deliver import deliver
from mlflow_exim_plugin.operations.ends import open_source
from mlflow_exim_plugin.operations.targets import open_target
from mlflow_exim_plugin.options import Opening, Selection, Work, Writing
from mlflow_exim_plugin.schema.objects import Artifact, Failure, Kind, ModelVersion, Run
from tests.compare import assert_count_law
from tests.servers import new_sqlite_database

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from mlflow_exim_plugin.schema.objects import StreamItem
    from mlflow_exim_plugin.schema.report import Report

pytestmark = pytest.mark.integration

BY_IDS, BY_API = Writing(preserve_ids=True), Writing(preserve_ids=False)
Bend = "Callable[[StreamItem], StreamItem]"


@pytest.fixture(params=[BY_IDS, BY_API], ids=["by ids", "by API"])
def how(request: pytest.FixtureRequest, tmp_path: Path) -> Writing:
    base: Writing = request.param
    return replace(base, artifact_location=str(tmp_path / "files"))


@pytest.fixture
def source(tmp_path: Path) -> str:
    """Return a store with one run of two files and a version of one of them."""
    new_sqlite_database(tmp_path / "source.db")
    uri = f"sqlite:///{tmp_path}/source.db"
    client = MlflowClient(uri, uri)
    run = client.create_run(client.create_experiment("e", str(tmp_path / "at source")))
    for name in ("a.txt", "b.txt"):
        client.log_text(run.info.run_id, name, name)
    client.set_terminated(run.info.run_id)
    client.create_registered_model("m")
    client.create_model_version("m", run.info.artifact_uri, run.info.run_id)
    return uri


@pytest.fixture
def target(tmp_path: Path) -> str:
    new_sqlite_database(tmp_path / "target.db")
    return f"sqlite:///{tmp_path}/target.db"


def send(source: str, target: str, how: Writing, bend: Callable[[Any], Any]) -> Report:
    def stage(stream: Iterator[StreamItem]) -> Iterator[StreamItem]:
        return map(bend, stream)

    with (
        open_target(target, Opening(), how, Selection(), Work()) as to,
        open_source(source) as opened,
    ):
        return deliver(opened, to, Selection(), [stage], Work())


def with_path(path: str) -> Callable[[StreamItem], StreamItem]:
    """Give the first file of each run another path."""

    def bend(item: StreamItem) -> StreamItem:
        if isinstance(item, Run):
            first, *rest = item.artifacts
            assert isinstance(first, Artifact)
            item.artifacts = [replace(first, path=path), *rest]
        return item

    return bend


def with_source(place: str) -> Callable[[StreamItem], StreamItem]:
    """Say of each version that its files are elsewhere, and that no run made it."""

    def bend(item: StreamItem) -> StreamItem:
        if isinstance(item, ModelVersion):
            item.document |= {"source": place, "run_id": ""}
            item.artifacts = ()
        return item

    return bend


def only_run(target: str) -> Any:
    client = MlflowClient(target, target)
    (run,) = client.search_runs([client.get_experiment_by_name("e").experiment_id])
    return run


@pytest.mark.parametrize("path", ["../../stolen.txt", "/stolen.txt", "a/%2e%2e/%2e%2e/stolen.txt"])
def test_a_file_that_would_leave_its_run_is_named_and_the_other_arrives(
    source: str, target: str, how: Writing, path: str, tmp_path: Path
) -> None:
    report = send(source, target, how, with_path(path))

    (failure,) = report.failures
    assert failure.kind is Kind.ARTIFACT
    assert failure.id.endswith(path)
    assert_count_law(report)
    assert [p.name for p in (tmp_path / "files").rglob("*.txt")] == ["b.txt"]
    assert not list(tmp_path.rglob("stolen.txt"))


def test_a_link_of_the_target_is_not_followed_out_of_the_run(
    source: str, target: str, tmp_path: Path
) -> None:
    how = replace(BY_IDS, artifact_location=str(tmp_path / "files"))
    run, outside = only_run(source), tmp_path / "outside"
    folder = tmp_path / "files" / run.info.experiment_id / run.info.run_id / "artifacts"
    folder.mkdir(parents=True)
    outside.mkdir()
    (folder / "link").symlink_to(outside)

    report = send(source, target, how, with_path("link/c.txt"))

    assert list(outside.iterdir()) == []
    assert [f.id for f in report.failures] == [f"{run.info.run_id}/link/c.txt"]
    assert (folder / "b.txt").read_text() == "b.txt"


@pytest.mark.parametrize("place", ["file:///etc", "/etc", "mlflow-artifacts:/0/x", "runs:/x/../y"])
def test_a_server_is_not_told_of_files_that_it_could_take_for_its_own(
    source: str, target: str, how: Writing, place: str
) -> None:
    report = send(source, target, how, with_source(place))

    version = MlflowClient(target, target).get_model_version("m", "1")
    assert place not in str(version.source)
    assert any(place in loss.what for loss in report.losses if loss.id == "m/1")
    assert_count_law(report)


def test_a_place_elsewhere_stays(source: str, target: str, how: Writing) -> None:
    send(source, target, how, with_source("s3://models/ours"))

    version = MlflowClient(target, target).get_model_version("m", "1")
    assert version.source == "s3://models/ours"


def test_a_run_does_not_get_the_folder_of_another(source: str, target: str, tmp_path: Path) -> None:
    how = replace(BY_IDS, artifact_location=str(tmp_path / "files"))
    assert send(source, target, how, lambda item: item).ok
    victim = only_run(target)

    def bend(item: StreamItem) -> StreamItem:
        if isinstance(item, Run):
            item.info["run_id"] = item.info["run_uuid"] = "f" * 32  # at the victim's folder
        return item

    send(source, target, how, bend)

    uris = {
        r.info.run_id: r.info.artifact_uri
        for r in MlflowClient(target, target).search_runs([victim.info.experiment_id])
    }
    assert uris[victim.info.run_id] == victim.info.artifact_uri
    assert uris["f" * 32] != victim.info.artifact_uri


def with_field(kind: Kind, part: str, name: str, value: object) -> Callable[[StreamItem], Any]:
    """Give a field of each object of a kind another value."""

    def bend(item: Any) -> Any:
        if item.kind is kind:
            document = deepcopy(item.document)
            (document[part] if part else document)[name] = value
            return replace(item, document=document)
        return item

    return bend


BENT = [
    (Kind.EXPERIMENT, "", "creation_time", "x"),
    (Kind.EXPERIMENT, "", "experiment_id", "\uff11"),  # a digit to Unicode
    (Kind.RUN, "info", "start_time", 2**70),
    (Kind.RUN, "data", "params", [{"key": "a", "value": {}}]),
    (Kind.REGISTERED_MODEL, "", "creation_timestamp", "x"),
    (Kind.MODEL_VERSION, "", "current_stage", "FOO"),
]


@pytest.mark.parametrize(("kind", "part", "name", "value"), BENT)
def test_what_mlflow_could_not_have_made_reaches_no_target(
    source: str, target: str, how: Writing, kind: Kind, part: str, name: str, value: object
) -> None:
    report = send(source, target, how, with_field(kind, part, name, value))

    named = {f.kind for f in report.failures}
    assert kind in named
    assert any("not as MLflow has it" in f.reason for f in report.failures)
    # What is in something that failed did not come either, and is no mere skip.
    assert named <= {kind, Kind.RUN, Kind.MODEL_VERSION}
    assert all(counts.skipped <= 1 for counts in report.counts.values())
    assert_count_law(report)
    client = MlflowClient(target, target)
    for experiment in client.search_experiments(view_type=ViewType.ALL):
        for run in client.search_runs([experiment.experiment_id], run_view_type=ViewType.ALL):
            run.to_proto()
        experiment.to_proto()
    for version in client.search_model_versions():
        version.to_proto()


@pytest.mark.parametrize("name", ["user_id", "start_time"])
def test_a_run_without_what_mlflow_needs_can_be_read(
    source: str, target: str, tmp_path: Path, name: str
) -> None:
    how = replace(BY_IDS, artifact_location=str(tmp_path / "files"))
    send(source, target, how, with_field(Kind.RUN, "info", name, None))

    assert getattr(only_run(target).info, name) in {"", 0}


def test_a_version_that_is_not_among_the_files_of_its_run_is_named(
    source: str, target: str, how: Writing
) -> None:
    place = "s3://models/ours"
    report = send(source, target, how, with_field(Kind.MODEL_VERSION, "", "source", place))

    assert MlflowClient(target, target).get_model_version("m", "1").source == place
    assert any(f"still {place}" in loss.what for loss in report.losses if loss.id == "m/1")


def test_a_version_whose_run_does_not_come_is_named(source: str, target: str, how: Writing) -> None:
    run_id = only_run(source).info.run_id

    def bend(item: Any) -> Any:
        is_its_run = isinstance(item, Run)
        return Failure(Kind.RUN, item.id, "left out") if is_its_run else item

    report = send(source, target, how, bend)

    named = [loss.what for loss in report.losses if loss.id == "m/1"]
    assert any(run_id in what and "not at the target" in what for what in named), named
