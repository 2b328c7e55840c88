"""A dry run says what the run will say, of an archive of every kind and the database it fills."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
from mlflow import MlflowClient

from mlflow_exim_plugin import copy, pack, unpack
from mlflow_exim_plugin.schema.objects import Kind
from tests.compare import assert_foreseen
from tests.integration.test_faults import fill
from tests.pinned import ARCHIVE
from tests.servers import new_sqlite_database

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mlflow_exim_plugin.schema.report import Report

pytestmark = pytest.mark.integration

OF_A_RUN = ("start_time", "end_time", "duration_s", "archive", "content_root")


def _told(call: Callable[..., Report], *ends: str, **options: Any) -> dict[str, Any]:
    """Return what a run says, having seen that a dry run says the same and writes nothing."""
    planned, told = (call(*ends, **options, dry_run=dry_run).to_dict() for dry_run in (True, False))
    for said in (planned, told):
        for name in (*OF_A_RUN, "dry_run", "root", "artifact_bytes"):
            del said[name]
        for name in ("failures", "lossy", "skips"):
            said[name].sort(key=str)
    assert planned == told
    return told


def test_a_dry_run_says_what_the_run_will_say(tmp_path: Path) -> None:
    uris = {}
    for name in ("restored", "copied"):
        new_sqlite_database(tmp_path / f"{name}.db")
        uris[name] = f"sqlite:///{tmp_path}/{name}.db"
    to = {"tracking_uri": uris["restored"], "artifact_location": str(tmp_path / "restored")}

    first = _told(unpack, str(ARCHIVE), **to)
    assert first["metric_rows"] > 0
    again = _told(unpack, str(ARCHIVE), **to)
    assert again["counts"]["run"]["written"] == 0

    packed = _told(pack, str(tmp_path / "a.tar.zst"), tracking_uri=uris["restored"])
    assert packed["counts"]["span"]["written"] > 0

    location = str(tmp_path / "copied")
    copied = _told(copy, uris["restored"], uris["copied"], artifact_location=location)
    assert copied["counts"]["span"] == packed["counts"]["span"]
    _told(copy, uris["restored"], uris["copied"], artifact_location=location)


def test_a_dry_run_through_the_api_says_what_the_run_will_say(
    tmp_path: Path, make_sqlite: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all kinds that is said of an archive, in ``test_everything``."""
    monkeypatch.chdir(tmp_path)
    source, target = make_sqlite(), make_sqlite()
    made = fill(source)

    def copied() -> Report:
        planned, done = (
            copy(source, target, preserve_ids=False, artifact_location="files", dry_run=dry_run)
            for dry_run in (True, False)
        )
        assert_foreseen(planned, done)
        return done

    assert copied().counts[Kind.RUN].written == 3
    assert copied().counts[Kind.RUN].skipped == 3
    client = MlflowClient(source, source)
    client.log_metric(made.runs["one"], "loss", 0.1, step=7)
    client.log_text(made.runs["two"], "other", "note.txt")  # which only its bytes tell
    client.create_model_version("net", f"runs:/{made.runs['three']}/model", made.runs["three"])
    grown = copied()
    assert grown.completions == {Kind.RUN: 2}
    assert grown.counts[Kind.MODEL_VERSION].written == 1


def test_a_dry_run_foresees_which_infinities_are_changed(
    tmp_path: Path, make_sqlite: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    source, target = str(tmp_path / "mlruns"), make_sqlite()
    client = MlflowClient(source)
    run_id = client.create_run(client.create_experiment("e")).info.run_id
    for step, values in enumerate(({"a": math.inf, "b": 1.0}, {"a": 1.0, "b": -math.inf})):
        for key, value in values.items():
            client.log_metric(run_id, key, value, step=step)

        told = _told(copy, source, target, artifact_location=str(tmp_path / "files"))

        expected = [f"{run_id}/{key}" for key, value in values.items() if math.isinf(value)]
        assert [loss["id"] for loss in told["lossy"] if "infinities" in loss["what"]] == expected
