"""Texts that a target cannot hold are cut or left out, and named; strict refuses them."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from mlflow import MlflowClient

from mlflow_exim_plugin import copy
from mlflow_exim_plugin.errors import PartialTransferError
from mlflow_exim_plugin.schema.objects import Kind
from tests.compare import assert_count_law
from tests.trace_seed import started_trace

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not hasattr(MlflowClient, "create_logged_model"), reason="MLflow 2"),
]


LONG = "long" * 70


@pytest.mark.parametrize("preserve_ids", [True, False])
def test_long_texts_are_cut_or_left_out_by_name(
    postgres_uri: str, make_sqlite: Callable[[], str], tmp_path: Path, *, preserve_ids: bool
) -> None:
    source = make_sqlite()
    client = MlflowClient(source, source)
    store = client._tracking_client.store
    experiment_id = client.create_experiment("a", str(tmp_path / "a"))
    run_id = client.create_run(experiment_id).info.run_id
    trace_id = started_trace(store, experiment_id)
    client.create_registered_model("net")
    client.create_experiment(LONG, str(tmp_path / "long"))
    client.create_experiment(LONG + "other", str(tmp_path / "other"))
    client.create_registered_model(LONG)
    client.create_model_version(LONG, f"runs:/{run_id}/model", run_id)
    client.set_registered_model_alias(LONG, "champion", "1")
    logged = client.create_logged_model(
        experiment_id, LONG * 2, tags={"a": "b"}, params={LONG: "1", "depth": "3"}
    ).model_id
    dataset_id = store.create_dataset("d", {}, [experiment_id]).dataset_id
    store.upsert_dataset_records(dataset_id, [{"inputs": {"a": 1}}])
    with closing(sqlite3.connect(source.removeprefix("sqlite:///"))) as connection:
        for query, values in (
            ("UPDATE runs SET name = ? WHERE run_uuid = ?", ("n" * 300, run_id)),
            ("UPDATE tags SET value = ? WHERE key = ?", ("n" * 300, "mlflow.runName")),
            ("UPDATE trace_info SET request_preview = ?", ("p" * 1200,)),
            ("INSERT INTO trace_tags VALUES (?, ?, ?)", ("long", "v" * 9000, trace_id)),
            ("INSERT INTO trace_tags VALUES (?, ?, ?)", ("k" * 300, "v", trace_id)),
            (
                "INSERT INTO evaluation_dataset_tags (dataset_id, key, value) VALUES (?, ?, ?)",
                (dataset_id, "long", "v" * 6000),
            ),
            ("UPDATE registered_models SET description = ?", ("t" * 6000,)),
            (
                "INSERT INTO registered_model_tags (name, key, value) VALUES ('net', 'long', ?)",
                ("v" * 6000,),
            ),
            ("INSERT INTO experiment_tags VALUES ('long', ?, ?)", ("v" * 6000, experiment_id)),
        ):
            connection.execute(query, values)
        connection.commit()
    more: dict[str, Any] = {"artifact_location": str(tmp_path), "preserve_ids": preserve_ids}

    with pytest.raises(PartialTransferError, match="stopped at"):
        copy(source, postgres_uri, strict=True, experiment_name="strictly", **more)
    report = copy(source, postgres_uri, **more)

    assert [f.reason for f in report.failures] == []
    assert_count_law(report)
    said = {loss.id: loss.what for loss in report.losses}
    all_said = " ".join(loss.what for loss in report.losses if loss.id in {trace_id, "*"})
    assert run_id in said
    for what in ("request_preview", "'long'", "'kkkk"):
        assert what in all_said
    there = MlflowClient(postgres_uri, postgres_uri)
    (experiment,) = [e for e in there.search_experiments() if e.name == "a"]
    (run,) = there.search_runs([experiment.experiment_id])
    assert run.info.run_name == "n" * 250
    info = there._tracking_client.store.get_trace_info(trace_id)
    assert info.request_preview == "p" * 1000
    assert info.tags["long"] == "v" * 8000
    assert "k" * 300 not in info.tags
    assert "evaluation_dataset_tags.value holds 5000" in said[dataset_id]
    assert report.counts[Kind.DATASET_RECORD].written == 1
    model = there.get_registered_model("net")
    assert (model.description, model.tags["long"]) == ("t" * 5000, "v" * 5000)
    of_model = [loss.what for loss in report.losses if loss.id == "net"]
    assert any("description" in what for what in of_model)
    assert any("tag" in what for what in of_model)
    cut = {e.name for e in there.search_experiments() if e.name.startswith("long")}
    assert {len(name) for name in cut} == {248}
    assert sorted(loss.id for loss in report.losses if "too long for a name" in loss.what) == [
        *(LONG, LONG, LONG + "other"),
    ]
    (name,) = [model.name for model in there.search_registered_models() if model.name != "net"]
    version = there.get_model_version_by_alias(name, "champion")
    assert (name in cut, int(version.version), len(cut)) == (True, 1, 2)
    (kept_model,) = there.search_logged_models([experiment.experiment_id])
    assert kept_model.name == (LONG * 2)[:500]
    assert (kept_model.params, kept_model.tags["a"]) == ({"depth": "3"}, "b")
    of_logged = " ".join(f"{loss.id} {loss.what}" for loss in report.losses if logged in loss.id)
    assert "name" in of_logged
    assert LONG[:20] in of_logged
    kept = experiment.tags["long"]
    assert kept == "v" * 6000 or (kept == "v" * 5000 and "of 6000 characters" in said["a"])
    again = copy(source, postgres_uri, **more)
    assert [f.reason for f in again.failures] == []
    assert {str(kind) for kind, count in again.counts.items() if count.written} <= {"experiment"}
