"""The same state gives the same content root, and with a time that is given the same bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mlflow_exim_plugin import open_archive, pack

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration


def test_a_server_and_its_database_have_one_content_root(
    everything: tuple[str, str], everything_folder: Path, tmp_path: Path
) -> None:
    _, by_server = everything
    by_database = pack(
        str(tmp_path / "by-database.tar.zst"),
        tracking_uri=f"sqlite:///{everything_folder}/mlflow.db",
        artifacts_destination=str(everything_folder / "artifacts"),
        level=9,
        jobs=1,
    )
    with open_archive(by_server) as archive:
        assert by_database.content_root == archive.content_root
        assert by_database.root != archive.reader.root
