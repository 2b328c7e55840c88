"""What is edited at the source after it came: followed where that is asked for, else named."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import ViewType

from mlflow_exim_plugin import copy, diff
from mlflow_exim_plugin.schema.objects import Kind
from mlflow_exim_plugin.schema.provenance import is_provenance
from tests.compare import assert_count_law, assert_foreseen

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.servers import Server

pytestmark = pytest.mark.integration


class Source:
    """A store with one of each that can be edited.

    Args:
        uri: A database.
        files: Where its files go.
    """

    def __init__(self, uri: str, files: Path) -> None:
        self.uri = uri
        self.client = client = MlflowClient(uri, uri)
        self.experiment_id = client.create_experiment("named", str(files), {"team": "a"})
        self.runs = []
        for name in ("first", "second"):
            run = client.create_run(self.experiment_id, run_name=name, tags={"phase": "1"})
            client.log_text(run.info.run_id, name, "m/note.txt")
            client.set_terminated(run.info.run_id)
            self.runs.append(run.info.run_id)
        client.create_registered_model("net", {"team": "a"}, "a net")
        for _ in range(2):
            client.create_model_version("net", f"{run.info.artifact_uri}/m", run.info.run_id)
        for alias in ("champion", "stays"):
            client.set_registered_model_alias("net", alias, "1")

    def edit(self) -> None:
        client, (first, second) = self.client, self.runs
        client.set_tag(first, "phase", "2")
        client.set_tag(first, "new", "x")
        client.set_tag(first, "mlflow.note.content", "a note")
        client.update_run(first, name="renamed")
        client.delete_run(second)
        client.set_experiment_tag(self.experiment_id, "team", "b")
        client.set_experiment_tag(self.experiment_id, "mlflow.note.content", "a note")
        client.rename_experiment(self.experiment_id, "renamed")
        client.set_registered_model_tag("net", "team", "b")
        client.update_registered_model("net", "a better net")
        client.update_model_version("net", "1", "the first")
        client.set_model_version_tag("net", "1", "new", "x")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            client.transition_model_version_stage("net", "1", "Production")
        client.set_registered_model_alias("net", "champion", "2")


def told(uri: str) -> dict[str, Any]:
    """Return what can be edited, by what cannot."""
    client = MlflowClient(uri, uri)
    (experiment,) = [e for e in client.search_experiments() if e.experiment_id != "0"]
    runs = client.search_runs([experiment.experiment_id], run_view_type=ViewType.ALL)
    model = client.get_registered_model("net")
    found: dict[str, Any] = {
        "experiment": (experiment.name, _own(experiment.tags)),
        "model": (model.description, _own(model.tags)),
        "aliases": {alias: int(number) for alias, number in model.aliases.items()},
    }
    for run in runs:
        was = client.download_artifacts(run.info.run_id, "m/note.txt")
        with open(was, encoding="utf-8") as file:  # noqa: PTH123
            found[file.read()] = (
                run.info.run_name,
                run.info.lifecycle_stage,
                _own(run.data.tags),
            )
    for version in client.search_model_versions("name = 'net'"):
        found[f"version {version.version}"] = (
            version.description or None,
            version.current_stage,
            _own(version.tags),
        )
    return found


def _own(tags: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in tags.items() if not is_provenance(key)}


@pytest.fixture
def source(make_sqlite: Callable[[], str], tmp_path: Path) -> Source:
    return Source(make_sqlite(), tmp_path / "source")


def test_into_a_database_they_follow_where_that_is_asked_for(
    source: Source, database_uri: str, tmp_path: Path
) -> None:
    to: dict[str, Any] = {"artifact_location": str(tmp_path / "files")}
    assert copy(source.uri, database_uri, **to).ok
    there = MlflowClient(database_uri, database_uri)
    there.set_tag(source.runs[0], "of the target", "1")
    before = told(database_uri)
    source.edit()

    left = copy(source.uri, database_uri, **to)

    assert told(database_uri) == before
    what = [loss.what for loss in left.losses]
    assert sum("the target has another state of it, which stays" in one for one in what) == 4

    planned, report = (
        copy(source.uri, database_uri, **to, takes_edits=True, dry_run=dry_run)
        for dry_run in (True, False)
    )

    assert report.ok
    assert_count_law(report)
    assert_foreseen(planned, report)
    wanted = told(source.uri)
    wanted["first"][2]["of the target"] = "1"
    assert told(database_uri) == wanted
    assert report.completions == {
        Kind.EXPERIMENT: 1,
        Kind.RUN: 2,
        Kind.REGISTERED_MODEL: 1,
        Kind.MODEL_VERSION: 1,
    }
    again = copy(source.uri, database_uri, **to, takes_edits=True)
    assert {kind: c.written for kind, c in again.counts.items() if c.written} == {}

    there.delete_run(source.runs[0])  # what is deleted here stays so
    source.client.set_tag(source.runs[0], "later", "x")
    copy(source.uri, database_uri, **to, takes_edits=True)
    assert there.get_run(source.runs[0]).info.lifecycle_stage == "deleted"
    there.restore_run(source.runs[0])
    copy(source.uri, database_uri, **to, takes_edits=True)
    result = diff(source.uri, database_uri, ignore=("*.artifact_*", "model_version.*source"))
    kinds = {(d.kind, d.path.rpartition(".")[2]) for d in result.differences}
    assert kinds == {(Kind.RUN, "of the target")}


def test_through_the_api_runs_and_aliases_follow(
    source: Source, make_sqlite: Callable[[], str], tmp_path: Path
) -> None:
    target = make_sqlite()
    to: dict[str, Any] = {"artifact_location": str(tmp_path / "files"), "preserve_ids": False}
    assert copy(source.uri, target, **to).ok
    source.edit()

    report = copy(source.uri, target, **to)

    assert report.ok
    there, wanted = told(target), told(source.uri)
    for followed in ("first", "second", "aliases"):
        assert there[followed] == wanted[followed]
    reasons = str([skip.reason for skip in report.skips])
    for kept in ("keeps its own tags team", "keeps its own description, tag new"):
        assert kept in reasons, reasons


def test_through_a_server_all_else_follows_too_where_that_is_asked_for(
    source: Source, server: Server
) -> None:
    assert copy(source.uri, server.url).ok
    there = MlflowClient(server.url, server.url)
    there.set_registered_model_tag("net", "of the target", "1")
    source.edit()

    planned, report = (
        copy(source.uri, server.url, takes_edits=True, dry_run=dry_run) for dry_run in (True, False)
    )

    assert report.ok
    assert_count_law(report)
    assert_foreseen(planned, report)
    wanted = told(source.uri)
    wanted["model"][1]["of the target"] = "1"
    assert told(server.url) == wanted
    assert report.completions == {
        Kind.EXPERIMENT: 1,
        Kind.RUN: 2,
        Kind.REGISTERED_MODEL: 1,
        Kind.MODEL_VERSION: 1,
    }
    again = copy(source.uri, server.url, takes_edits=True)
    assert not again.completions
    assert {kind for kind, c in again.counts.items() if c.written} <= {Kind.ARTIFACT}
    there.create_experiment("taken")
    source.client.rename_experiment(source.experiment_id, "taken")
    left = copy(source.uri, server.url, takes_edits=True)
    assert "it keeps its name 'renamed': another has 'taken'" in {x.what for x in left.losses}
