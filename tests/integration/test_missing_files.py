"""What an unpack could not bring, as to a full disk, the next one brings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from mlflow import MlflowClient

from mlflow_exim_plugin import pack, unpack
from tests.compare import assert_count_law

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("preserve_ids", [True, False], ids=["by ids", "by API"])
def test_files_that_are_missing_come_with_the_next_unpack(
    make_sqlite: Callable[[], str], tmp_path: Path, *, preserve_ids: bool
) -> None:
    source, target, archive = make_sqlite(), make_sqlite(), str(tmp_path / "a.tar.zst")
    client = MlflowClient(source, source)
    experiment_id = client.create_experiment("e", str(tmp_path / "at source"))
    run_id = client.create_run(experiment_id).info.run_id
    client.log_text(run_id, "run", "of run.txt")
    client.log_text(run_id, "kept", "kept.txt")
    client.set_terminated(run_id)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "of version.txt").write_text("version")
    client.create_registered_model("m")
    client.create_model_version("m", str(folder))
    wanted = {"of run.txt": "run", "of version.txt": "version", "kept.txt": "kept"}
    if hasattr(client, "create_logged_model"):
        model = client.create_logged_model(experiment_id, "lm")
        (tmp_path / "of model.txt").write_text("model")
        client.log_model_artifact(model.model_id, str(tmp_path / "of model.txt"))
        client.finalize_logged_model(model.model_id, "READY")
        wanted["of model.txt"] = "model"
    assert pack(archive, tracking_uri=source).ok
    files = tmp_path / "files"

    def come() -> dict[str, str]:
        report = unpack(
            archive,
            tracking_uri=target,
            preserve_ids=preserve_ids,
            artifact_location=str(files),
        )
        assert report.ok
        assert_count_law(report)
        return {path.name: path.read_text() for path in files.rglob("*.txt")}

    assert come() == wanted
    for path in list(files.rglob("of *.txt")):
        if preserve_ids or path.name == "of version.txt":  # a mark says that the others are whole
            path.unlink()
    assert come() == wanted
