"""A dry run says what the run will say, of an archive of every kind and the database it fills."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from mlflow_exim_plugin import copy, pack, unpack
from tests.pinned import ARCHIVE
from tests.servers import new_sqlite_database

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mlflow_exim_plugin.schema.report import Report

pytestmark = pytest.mark.integration


def _told(call: Callable[..., Report], *ends: str, **options: Any) -> dict[str, Any]:
    """Return what a run says, having seen that a dry run says the same and writes nothing."""
    planned, told = (call(*ends, **options, dry_run=dry_run).to_dict() for dry_run in (True, False))
    for said in (planned, told):
        for name in ("dry_run", "root", "artifact_bytes"):
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
