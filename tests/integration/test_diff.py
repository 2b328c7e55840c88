"""`diff` between real servers, databases and archives: equal when equal, and every change found."""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner, Result
from mlflow import MlflowClient

from mlflow_exim_plugin import Selection, diff, pack
from mlflow_exim_plugin.cli.main import exim
from mlflow_exim_plugin.schema.objects import Kind
from tests.filled import copy_of_database
from tests.integration.conftest import rows_of
from tests.new_ids import unpack
from tests.seed import T0, Seeded, log_files, log_metrics, new_run

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlflow_exim_plugin import Comparison
    from tests.conftest import MakeServer
    from tests.sources import Source

pytestmark = pytest.mark.integration


def call(*arguments: str) -> Result:
    return CliRunner().invoke(exim, ["diff", *arguments])


def told(result: Comparison) -> list[str]:
    return [
        f"{d.kind} {d.id} {d.path}: {str(d.a)[:80]} / {str(d.b)[:80]}" for d in result.differences
    ]


def test_a_server_and_its_archive_are_exactly_equal(server_source: Source) -> None:
    result = diff(server_source.uri, server_source.archive, rules="exact")

    assert result.equal, (told(result), result.unreadable)
    counted = server_source.snapshot.counted()
    assert {kind: result.of(kind).equal for kind in counted} == counted
    assert not result.rules.applied


def test_a_database_and_its_archive_are_exactly_equal(sqlite_source: Source) -> None:
    before = rows_of(sqlite_source.database)

    result = diff(sqlite_source.archive, sqlite_source.uri, rules="exact")

    assert result.equal, (told(result), result.unreadable)
    assert rows_of(sqlite_source.database) == before


def test_a_server_and_its_database_differ_in_nothing(server_source: Source) -> None:
    # Whoever reads the database does not reach what the server keeps behind itself.
    selection = Selection(artifacts=False)

    result = diff(server_source.uri, f"sqlite:///{server_source.database}", selection=selection)

    assert result.equal, (told(result), result.unreadable)


@pytest.mark.exhaustive
def test_copies_over_two_hops_are_equal_under_rest_rules(
    server_source: Source, make_server: MakeServer, tmp_path: Path
) -> None:
    first, second = make_server().url, make_server().url
    again = str(tmp_path / "again.tar.zst")

    assert unpack(server_source.archive, tracking_uri=first).ok
    assert pack(again, tracking_uri=first).ok
    assert unpack(again, tracking_uri=second).ok

    for a, b in ((server_source.uri, first), (server_source.archive, second), (second, first)):
        result = diff(a, b)
        assert result.equal, (told(result), result.unreadable)
        counted = server_source.snapshot.counted()
        # What servers added by themselves has no counterpart.
        assert {kind: result.of(kind).equal for kind in counted} == counted
    exact = diff(server_source.uri, first, rules="exact")
    assert "run.info.run_id" in {difference.path for difference in exact.differences}


@dataclass
class Small:
    """A small database with a bit of everything that can be changed, and an archive of it."""

    uri: str
    archive: str
    client: MlflowClient
    made: Seeded
    folder: Path


@pytest.fixture
def small(tmp_path: Path) -> Small:
    made = copy_of_database(tmp_path, fill)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    archive = str(tmp_path / "small.tar.zst")
    assert pack(archive, tracking_uri=uri).ok
    return Small(uri, archive, MlflowClient(uri, uri), made, tmp_path)


def fill(uri: str) -> Seeded:
    client = MlflowClient(uri, uri)
    made = Seeded()
    root = Path("artifacts").resolve().as_uri()
    made.experiments["e"] = client.create_experiment("e", root, {"team": "a"})
    run_id = new_run(client, made, "one", made.experiments["e"])
    new_run(client, made, "two", made.experiments["e"], parent=run_id)
    client.log_param(run_id, "lr", "0.1")
    rows = [(1.0, T0, 0), (0.5, T0 + 1, 1), (math.nan, T0 + 2, 2)]
    log_metrics(client, run_id, {"loss": rows, "acc": [(0.5, T0, 0)]})
    log_files(client, run_id, {"a/b.bin": b"0123", "model/MLmodel": b"flavors: {}"})
    client.create_registered_model("m", {"t": "1"}, "text")
    for _ in range(2):
        client.create_model_version("m", f"runs:/{run_id}/model", run_id)
    client.set_registered_model_alias("m", "best", "1")
    return made


def artifact(small: Small, path: str) -> Path:
    (found,) = (small.folder / "artifacts").rglob(path)
    return found


CHANGES: dict[str, tuple[Callable[[Small], Any], set[str]]] = {
    "param": (
        lambda s: s.client.log_param(s.made.runs["one"], "depth", "3"),
        {"run.data.params.depth"},
    ),
    "tag": (
        lambda s: s.client.set_tag(s.made.runs["two"], "role", "x"),
        {"run.data.tags.role"},
    ),
    "tag gone": (
        lambda s: s.client.delete_tag(s.made.runs["two"], "role"),
        {"run.data.tags.role"},
    ),
    "history point": (
        # It is not the last one, which is also the run's latest metric.
        lambda s: s.client.log_metric(s.made.runs["one"], "loss", 0.25, T0, 1),
        {"run.histories.loss"},
    ),
    "metric": (
        lambda s: s.client.log_metric(s.made.runs["two"], "new", 1.0, T0, 0),
        {"run.data.metrics[new]", "run.histories.new"},
    ),
    "byte": (
        lambda s: artifact(s, "b.bin").write_bytes(b"0124"),
        {"run.artifacts.a/b.bin"},
    ),
    "file gone": (lambda s: artifact(s, "b.bin").unlink(), {"run.artifacts.a/b.bin"}),
    "file more": (
        lambda s: (artifact(s, "b.bin").parent / "c").touch(),
        {"run.artifacts.a/c"},
    ),
    "run more": (lambda s: new_run(s.client, s.made, "three", s.made.experiments["e"]), {"run"}),
    "run deleted": (
        lambda s: s.client.delete_run(s.made.runs["two"]),
        {"run.info.lifecycle_stage"},
    ),
    "run state": (
        lambda s: s.client.update_run(s.made.runs["two"], "FAILED"),
        {"run.info.status"},
    ),
    "parent": (
        lambda s: s.client.set_tag(s.made.runs["two"], "mlflow.parentRunId", s.made.runs["two"]),
        {"run.data.tags.mlflow.parentRunId"},
    ),
    "experiment renamed": (
        lambda s: s.client.rename_experiment(s.made.experiments["e"], "f"),
        {"experiment.name"},
    ),
    "experiment tag": (
        lambda s: s.client.set_experiment_tag(s.made.experiments["e"], "team", "b"),
        {"experiment.tags.team"},
    ),
    "experiment more": (
        lambda s: s.client.create_experiment("g", (s.folder / "g").as_uri()),
        {"experiment"},
    ),
    "alias moved": (
        lambda s: s.client.set_registered_model_alias("m", "best", "2"),
        {"registered_model.aliases[best].version", "model_version.aliases[best]"},
    ),
    "version text": (
        lambda s: s.client.update_model_version("m", "2", "new"),
        {"model_version.description"},
    ),
    "version gone": (lambda s: s.client.delete_model_version("m", "2"), {"model_version"}),
    "model tag": (
        lambda s: s.client.set_registered_model_tag("m", "t", "2"),
        {"registered_model.tags.t"},
    ),
    "model gone": (
        lambda s: s.client.delete_registered_model("m"),
        {"registered_model", "model_version"},
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_each_change_is_found_and_can_be_ignored(small: Small, change: str) -> None:
    assert diff(small.archive, small.uri, rules="exact").equal
    make, paths = CHANGES[change]
    make(small)

    for sides in ((small.archive, small.uri), (small.uri, small.archive)):
        result = diff(*sides, rules="rest")
        assert {difference.path for difference in result.differences} == paths, told(result)
        assert result.total == len(result.differences)
        assert not result.equal
    ignored = diff(small.archive, small.uri, rules="rest", ignore=sorted(paths))
    assert ignored.equal, told(ignored)
    options = ["--rules=rest", *(f"--ignore={path}" for path in sorted(paths))]
    assert call(small.archive, small.uri).exit_code == 1
    assert call(small.archive, small.uri, *options).exit_code == 0


def test_the_text_says_what_differs(small: Small) -> None:
    run_id = small.made.runs["two"]
    small.client.set_tag(run_id, "role", "x\x1b[31m")
    small.client.set_tag(run_id, "long", "y" * 3000)

    result = call(small.archive, small.uri)

    lines = result.stdout.splitlines()
    assert f"run {run_id} data.tags.role: 'two' → 'x\\x1b[31m'" in lines
    assert [line for line in lines if line.startswith(f"run {run_id} data.tags.long: nothing → ")]
    assert max(map(len, lines)) < 400
    assert "  run: 1 equal, 1 different" in lines
    assert lines[-1] == f"Different: 2 differences: {small.archive} and {small.uri}"
    assert result.stderr == ""


def test_json_is_one_document(small: Small) -> None:
    small.client.set_tag(small.made.runs["two"], "role", "x")
    small.client.log_metric(small.made.runs["one"], "loss", math.inf, T0, 7)

    result = call(small.archive, small.uri, "--output", "json", "--limit", "1")
    found = json.loads(result.stdout, parse_constant=pytest.fail)

    assert result.exit_code == 1
    assert (found["equal"], found["ok"]) == (False, False)
    assert found["counts"]["run"] == {
        "compared": 2,
        "equal": 0,
        "different": 2,
        "only_in_a": 0,
        "only_in_b": 0,
        "unreadable": 0,
    }
    assert found["counts"]["metric_history"]["different"] == 1
    assert len(found["differences"]) == 1
    assert found["total_differences"] == 5
    assert found["rules"]["name"] == "moved"
    equal = call(small.uri, small.uri, "--output", "json")
    assert equal.exit_code == 0
    assert json.loads(equal.stdout)["equal"] is True


def test_both_sides_are_selected_alike(small: Small) -> None:
    small.client.set_tag(small.made.runs["two"], "role", "x")
    artifact(small, "b.bin").unlink()
    sides = small.archive, small.uri

    assert call(*sides, "-r", small.made.runs["one"], "--no-artifacts").exit_code == 0
    assert call(*sides, "-r", small.made.runs["one"]).exit_code == 1
    assert call(*sides, "-m", "m", "--exclude", "*.bin").exit_code == 0
    assert call(*sides, "-e", "nobody").exit_code == 4
    small.client.delete_run(small.made.runs["two"])
    kept = diff(*sides, selection=Selection(deleted=False, artifacts=False))
    assert [(d.kind, d.path) for d in kept.differences] == [(Kind.RUN, "run")]


def test_a_run_is_found_by_the_id_of_its_source(
    small: Small, make_server: MakeServer, tmp_path: Path
) -> None:
    first, second = make_server().url, make_server().url
    again = str(tmp_path / "again.tar.zst")
    assert unpack(small.archive, tracking_uri=first).ok
    assert pack(again, tracking_uri=first).ok
    assert unpack(again, tracking_uri=second).ok
    run_id = small.made.runs["one"]
    there = MlflowClient(second)
    (experiment,) = (e for e in there.search_experiments() if e.name == "e")
    copies = {
        r.data.tags["role"]: r.info.run_id for r in there.search_runs([experiment.experiment_id])
    }

    for b in (first, again, second):
        result = diff(small.archive, b, selection=Selection(runs=(run_id,)))
        assert result.equal, (told(result), result.unreadable)
        assert (result.of(Kind.RUN).equal, result.of(Kind.METRIC_HISTORY).equal) == (1, 2)
    there.set_tag(copies["one"], "new", "tag")
    assert call(small.archive, second, "-r", run_id).exit_code == 1
    assert call(small.archive, second, "-r", small.made.runs["two"], "-e", "e").exit_code == 1
    there.delete_run(copies["one"])
    assert call(small.archive, second, "-r", run_id, "--no-deleted").exit_code == 4
    assert call(small.archive, second, "-r", run_id[:8]).exit_code == 4
    assert call(small.archive, second, "-r", copies["one"]).exit_code == 4


def test_what_cannot_be_read_is_told_and_is_not_equal(small: Small) -> None:
    experiment_id = small.client.create_experiment("far", "nowhere://bucket/root")
    run_id = new_run(small.client, small.made, "far", experiment_id)

    result = diff(small.uri, small.uri)
    as_text = call(small.uri, small.uri)

    assert not result.equal
    assert not result.total
    assert [(side, failure.id) for side, failure in result.unreadable] == [
        ("a", f"{run_id}/"),
        ("b", f"{run_id}/"),
    ]
    assert as_text.exit_code == 3
    assert f"Unreadable in A: artifact {run_id}/: " in as_text.stdout
    assert "No difference in what could be read: " in as_text.stdout
    assert call(small.archive, small.uri).exit_code == 3
    assert call(small.archive, small.uri, "-e", "e").exit_code == 0


def test_sides_that_are_not_there(small: Small, tmp_path: Path) -> None:
    nowhere = str(tmp_path / "nowhere.tar.zst")

    for sides in ((small.uri, nowhere), (nowhere, small.uri), (small.uri, "sqlite:////nowhere.db")):
        result = call(*sides)
        assert result.exit_code == 4
        assert result.stdout == ""
    as_json = call(small.uri, nowhere, "--output", "json")
    assert json.loads(as_json.stdout)["error"]["code"] == "not_found"
    assert not Path("/nowhere.db").exists()


@pytest.mark.parametrize(
    "options",
    [["--rules", "other"], ["--ignore", "lr"], ["--limit", "-1"], ["--jobs", "0"]],
)
def test_misuse(small: Small, options: list[str]) -> None:
    assert call(small.archive, small.archive, *options).exit_code == 2


def test_a_server_that_does_not_answer(
    small: Small, monkeypatch: pytest.MonkeyPatch, make_server: MakeServer
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    server = make_server()
    server.stop()

    result = call(small.archive, server.url)

    assert result.exit_code == 9
    assert "does not answer" in result.stderr


def test_nothing_is_left_behind(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    before = rows_of(tmp_path / "mlflow.db")

    assert diff(small.archive, small.uri).equal

    assert list(temporary.iterdir()) == []
    assert rows_of(tmp_path / "mlflow.db") == before
