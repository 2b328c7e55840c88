"""Servers of the past take what they can hold, and what they cannot is named, one to one."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, ViewType

from mlflow_exim_plugin import pack, unpack
from mlflow_exim_plugin.errors import ServerError
from mlflow_exim_plugin.host.open.host import Host
from mlflow_exim_plugin.kinds import Kind
from mlflow_exim_plugin.schema.objects import key_values
from tests.answers import answers
from tests.compare import assert_count_law
from tests.first_servers import FirstServer, by_age, start_first_server
from tests.matched import read, unmatched

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mlflow_exim_plugin import Report

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not hasattr(MlflowClient, "create_logged_model"), reason="MLflow 2"),
]

VERSIONS = ["1.0.0", "1.4.0", "1.8.0", "1.13.1", "1.27.0", "1.30.1", "2.0.1", "2.9.2", "2.14.3"]
T0 = 1_700_000_000_000


@pytest.mark.timeout(900)
@pytest.mark.generations
@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("version", VERSIONS)
def test_everything_is_taken_or_named(
    everything: tuple[str, str], everything_answers: dict[str, Any], tmp_path: Path, version: str
) -> None:
    _, archive = everything
    hands_files_out = by_age(version) >= (1, 30)
    with running(version, tmp_path, hands_files_out=hands_files_out) as server:
        report = unpack(archive, tracking_uri=server.url)
        there = answers(server.url)
        again = unpack(archive, tracking_uri=server.url)

    assert report.failures == []
    assert_count_law(report)
    target = read(there, "" if hands_files_out else str(tmp_path / "files"))
    assert unmatched(read(everything_answers), target, report) == ([], [])
    assert again.failures == []
    assert written(again) == set()


def test_mlflow_1_0_takes_what_it_holds(sqlite_uri: str, tmp_path: Path) -> None:
    client = MlflowClient(sqlite_uri, sqlite_uri)
    note = tmp_path / "note.txt"
    note.write_bytes(b"\x00hi")
    wine = client.create_experiment("wine", str(tmp_path / "wine"), tags={"team": "red"})
    run = client.create_run(wine, T0, {"colour": "red", "long": "t" * 6000}, "first ✓")
    run_id = run.info.run_id
    rows = [Metric("loss", v, T0 + i, i) for i, v in enumerate([0.5, float("nan"), 0.25])]
    client.log_batch(run_id, rows, [Param("empty", ""), Param("long", "p" * 6000)])
    client.log_metric(run_id, "only nan", float("nan"), T0, 0)
    client.log_artifact(run_id, str(note), "folder")
    client.set_terminated(run_id, "KILLED", T0 + 9)
    gone = client.create_experiment("gone", str(tmp_path / "gone"))
    client.delete_run(client.create_run(gone, T0).info.run_id)
    client.delete_experiment(gone)
    client.create_registered_model("m")
    client.create_model_version("m", f"{run.info.artifact_uri}/folder", run_id)
    archive = str(tmp_path / "a.tar.zst")
    assert pack(archive, tracking_uri=sqlite_uri).ok

    with running("1.0.0", tmp_path / "old") as server:
        report = unpack(archive, tracking_uri=server.url)
        listed = server.call("experiments/list?view_type=ALL")["experiments"]
        there = {e["name"]: e for e in listed}
        ids = {name: e["experiment_id"] for name, e in there.items()}
        search = {"run_view_type": "ALL", "experiment_ids": list(ids.values())}
        runs = server.call("runs/search", search)["runs"]
        again = unpack(archive, tracking_uri=server.url)
        assert len(server.call("runs/search", search)["runs"]) == len(runs) == 2
        with Host(server.url, create=False) as host:  # it gives none, and that is believed
            default = [ids["Default"]]
            assert host.tracking.search_runs(default, "", ViewType.ALL, 9, [], None) == []

    assert report.failures == []
    assert there["gone"]["lifecycle_stage"] == "deleted"
    (first,) = [r for r in runs if r["info"]["experiment_id"] == ids["wine"]]
    (second,) = [r for r in runs if r["info"]["experiment_id"] == ids["gone"]]
    assert second["info"]["lifecycle_stage"] == "deleted"
    tags = key_values(first["data"]["tags"])
    assert (tags["mlflow.runName"], tags["colour"], tags["long"]) == ("first ✓", "red", "t" * 6000)
    assert key_values(first["data"]["params"]) == {"empty": "", "long": "p" * 6000}
    assert [(m["key"], m["value"]) for m in first["data"]["metrics"]] == [("loss", 0.25)]
    assert (first["info"]["start_time"], first["info"]["end_time"]) == (str(T0), str(T0 + 9))
    lost = {(str(loss.kind), loss.id): loss.what for loss in report.losses if loss.id != "*"}
    assert "refuses 1 rows" in lost.pop(("metric_history", f"{run_id}/loss"))
    assert lost == {
        ("experiment", "wine"): "its tags team: the target has no tags of experiments",
        ("run", run_id): "status is FAILED, not KILLED",
    }
    skipped = {skip.kind: skip.reason for skip in report.skips}
    kinds = {Kind.METRIC_HISTORY, Kind.REGISTERED_MODEL, Kind.MODEL_VERSION}
    assert set(skipped) == {Kind.EXPERIMENT, *kinds}  # Default is there already
    assert "refuses 1 rows" in skipped[Kind.METRIC_HISTORY]
    assert "does not have them" in skipped[Kind.MODEL_VERSION]
    assert written(again) == set()


@pytest.mark.generations
def test_a_server_before_1_0_is_refused(sqlite_uri: str, tmp_path: Path) -> None:
    archive = str(tmp_path / "a.tar.zst")
    assert pack(archive, tracking_uri=sqlite_uri).ok
    with (
        running("0.8.2", tmp_path / "old") as server,
        pytest.raises(ServerError, match=r"MLflow 0\.5 to 0\.9, which is only read"),
    ):
        unpack(archive, tracking_uri=server.url)


@contextmanager
def running(version: str, directory: Path, **more: bool) -> Iterator[FirstServer]:
    server = start_first_server(version, directory, **more)
    try:
        yield server
    finally:
        server.stop()


def written(report: Report) -> set[Kind]:
    return {kind for kind, counts in report.counts.items() if counts.written}
