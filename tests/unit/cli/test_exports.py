"""Old exports on the command line: what is shown, and how commands end."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner, Result

from mlflow_exim_plugin.cli.main import exim
from tests.old_exports import RUNS, Export

if TYPE_CHECKING:
    from pathlib import Path

FIRST, SECOND = RUNS


def call(*arguments: str) -> Result:
    return CliRunner().invoke(exim, arguments)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Export(tmp_path / "exported", "2.1").write_all()


def test_what_it_is_and_holds_is_listed(folder: Path) -> None:
    result = call("ls", str(folder))

    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines() == [
        "Read as export of mlflow-export-import, layout 2.1",
        "",
        "experiment  name  runs",
        "7           wine     2",
        "",
        "model       versions  aliases",
        "wine model  1-2, 10   champion 2",
    ]
    runs = [line.split() for line in call("ls", str(folder), "-e", "wine").stdout.splitlines()]
    assert runs[0][:4] == ["id", "name", "status", "stage"]
    assert sorted(line[:5] for line in runs[1:]) == [
        [FIRST, "first", "FINISHED", "active", *runs[1][4:5]],
        [SECOND, "└", "second", "FAILED", "deleted"],
    ]
    listed = json.loads(call("ls", str(folder), "--output", "json").stdout)
    assert listed["counts"]["metric_history"] == 2
    assert call("ls", str(folder), "--members").exit_code == 2
    assert call("ls", str(folder), "-e", "beer").exit_code == 4


def test_one_object_is_shown(folder: Path) -> None:
    for option, wanted, field in (
        ("--run-id", FIRST, "info"),
        ("--experiment", "wine", "experiment_id"),
        ("--model", "wine model", "versions"),
    ):
        result = call("show", str(folder), option, wanted, "--output", "json")
        assert result.exit_code == 0, result.stderr
        assert field in json.loads(result.stdout)
        summary = call("show", str(folder), option, wanted)
        assert (summary.exit_code, wanted in summary.stdout) == (0, True), summary.stderr
    assert call("show", str(folder), "--run-id", "9" * 32).exit_code == 4


def test_a_broken_file_ends_with_3_and_strictly_with_5(folder: Path, tmp_path: Path) -> None:
    broken = folder / "experiments" / "7" / SECOND / "run.json"
    broken.write_text(broken.read_text()[:-40])

    result = call("convert", str(folder), str(tmp_path / "a.tar.zst"))

    assert result.exit_code == 3, result.stderr
    assert f"Failed: run experiments/7/{SECOND}/run.json: " in result.stdout
    assert "is no JSON: " in result.stdout
    strict = call("convert", str(folder), str(tmp_path / "b.tar.zst"), "--strict")
    assert strict.exit_code == 5
    assert "is no JSON: " in strict.stderr
    assert not (tmp_path / "b.tar.zst").exists()


def test_there_and_back(folder: Path, tmp_path: Path) -> None:
    archive, back = str(tmp_path / "a.tar.zst"), str(tmp_path / "back")

    for arguments in ((str(folder), archive), (archive, back)):
        dry = call("convert", *arguments, "--dry-run")
        done = call("convert", *arguments)
        assert (dry.exit_code, done.exit_code) == (0, 0), dry.stderr + done.stderr
        tables = [
            [line for line in shown.stdout.splitlines()[1:] if line.startswith("  ")]
            for shown in (dry, done)
        ]
        assert tables[0] == tables[1] != []
    assert call("diff", str(folder), back).exit_code == 0
    assert call("convert", archive, back).exit_code == 8  # it is not empty any more
