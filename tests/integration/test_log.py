"""What the log of an archive tells of the steps that led to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mlflow_exim_plugin import open_archive, pack, verify
from mlflow_exim_plugin.options import SALT_VARIABLE
from mlflow_exim_plugin.schema.objects import Failure, Kind
from mlflow_exim_plugin.schema.report import Report
from mlflow_exim_plugin.sinks.archive.log import Step
from samples import generate

if TYPE_CHECKING:
    from mlflow_exim_plugin.schema.envelope import LogEvent

pytestmark = pytest.mark.integration

SAMPLES = Path(generate.FOLDER)


def taken(source: Path, out: Path, redact: tuple[str, ...] = ()) -> list[LogEvent]:
    pack(str(out), tracking_uri=str(source), redact=redact)
    assert [str(f) for f in verify(str(out)).findings if f.code.startswith("E")] == []
    with open_archive(str(out)) as archive:
        return archive.log


def test_an_archive_without_a_log_is_named_by_its_root(tmp_path: Path) -> None:
    old = SAMPLES / "written-by" / "0.2.0.dev0" / "archive.tar.zst"
    (event,) = taken(old, tmp_path / "new.tar.zst")
    with open_archive(str(old)) as archive:
        assert archive.log == []
        assert event.info.earlier is not None
        assert event.info.earlier.root == archive.reader.root
        assert event.info.earlier.content_root is None
        assert event.info.content_root == archive.content_root


def test_a_log_that_is_broken_stays_behind_and_is_named(tmp_path: Path) -> None:
    (event,) = taken(SAMPLES / "bad/E068_log_chain/archive.tar.zst", tmp_path / "new.tar.zst")
    (left,) = event.info.left_out
    assert (left.kind, left.count) == ("log", 1)
    assert "does not name the event before it" in left.reason


def test_what_is_taken_out_is_not_in_the_log_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SALT_VARIABLE, "some grains of salt, sixteen and more")
    source = SAMPLES / "good" / "minimal.tar.zst"
    (event,) = taken(source, tmp_path / "new.tar.zst", redact=("users",))
    with open_archive(str(source)) as archive:
        assert archive.log[0].system.user == "alice"
        assert event.info.earlier is not None
        assert event.info.earlier.root == archive.reader.root
        assert event.info.earlier.content_root == archive.content_root != event.info.content_root
    with open_archive(str(tmp_path / "new.tar.zst")) as archive:
        assert b"alice" not in archive.reader.read("log/00001.json")


def test_an_event_is_a_page_whatever_was_asked_and_failed() -> None:
    report = Report()
    for number in range(500):
        report.failed(Failure(Kind.RUN, f"{number}", f"reason {number} " + "x" * 500))
    selection = {"runs": [f"{number:032x}" for number in range(1000)]}
    data = Step(generate.SYSTEM).event(selection, report, "0" * 64)
    info = json.loads(data)["info"]
    assert len(data) < 3000
    assert sum(left["count"] for left in info["left_out"]) == 500
    assert info["selection"].keys() == {"sha256"}


def test_the_log_is_shown(tmp_path: Path) -> None:
    archive = tmp_path / "new.tar.zst"
    env = os.environ | {"SOURCE_DATE_EPOCH": "1790000000"}
    source = str(SAMPLES / "good" / "minimal.tar.zst")
    command = [sys.executable, "-m", "mlflow_exim_plugin"]
    asked = ["pack", str(archive), "--tracking-uri", source, "-e", "iris"]
    subprocess.run([*command, *asked], env=env, check=True, capture_output=True)
    shown = subprocess.run(
        [*command, "show", str(archive), "--log"], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    assert shown[0] == "1. 2026-09-21 13:33:20 UTC, alice: samples/generate.py"
    second = next(line for line in shown if line.startswith("2. "))
    assert second.startswith("2. 2026-09-21 14:13:20 UTC, ")
    assert second.endswith(": mlflow exim pack")
    assert f"   from {source}, by version" in "\n".join(shown)
    assert '   selected {"experiments": ["iris"]}' in shown
