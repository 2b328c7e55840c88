"""What ``ls`` lists: for people as tables, for programs as JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mlflow_exim_plugin.cli.look.runs import RunTable, duration_text
from mlflow_exim_plugin.cli.look.table import show_table
from mlflow_exim_plugin.cli.main import exim

SAMPLES = Path(__file__).parents[4] / "samples" / "v1"
GOOD = SAMPLES / "good"
MINIMAL = str(GOOD / "minimal.tar.zst")
MODELS = str(GOOD / "models.tar.zst")
MLFLOW_3 = str(GOOD / "mlflow3.tar.zst")


def call(*arguments: str) -> Result:
    return CliRunner().invoke(exim, arguments)


def parsed(*arguments: str) -> Any:
    result = call(*arguments, "--output", "json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_what_is_inside_is_named() -> None:
    lines = call("ls", MODELS).stdout.splitlines()
    listed = parsed("ls", MODELS)

    assert len(listed["models"]) > 1
    for model in listed["models"]:
        assert any(line.startswith(model["name"]) for line in lines)
    for experiment in listed["experiments"]:
        assert any(line.split()[:1] == [experiment["experiment_id"]] for line in lines)
    (prompt,) = parsed("ls", MLFLOW_3)["prompts"]
    assert prompt == {"name": "greeting", "versions": [1, 2], "aliases": {"production": 2}}


def test_runs_and_members_are_listed() -> None:
    (experiment,) = parsed("ls", MINIMAL)["experiments"]
    (run,) = parsed("ls", MINIMAL, "-e", experiment["name"])

    assert parsed("ls", MINIMAL, "-e", experiment["experiment_id"]) == [run]
    assert parsed("ls", MINIMAL, "-e", f"{experiment['name'][:2]}*") == [run]
    assert run["metrics"] == {"loss": 0.25}
    header, row = call("ls", MINIMAL, "-e", experiment["name"]).stdout.splitlines()
    assert row.startswith(run["run_id"])
    assert (header.split()[-1], row.split()[-1]) == ("loss", "0.25")
    members = {member["path"] for member in parsed("ls", MINIMAL, "--members")}
    lines = call("ls", MINIMAL, "--members").stdout.splitlines()
    assert {line.split(maxsplit=2)[2] for line in lines} == members
    assert any(f"runs/{run['run_id']}/run.json" in path for path in members)


def test_everything_is_csv_too() -> None:
    for arguments in ((MLFLOW_3,), (MINIMAL, "-e", "iris"), (MINIMAL, "--members")):
        result = call("ls", *arguments, "--output", "csv")
        header, *rows = csv.reader(io.StringIO(result.stdout))
        assert rows
        assert {len(row) for row in rows} == {len(header)}
    how = ("--columns", "start,metrics.loss", "--output", "csv")
    columns = call("ls", MINIMAL, "-e", "iris", *how)
    assert columns.stdout.splitlines()[1] == "2026-09-21T14:12:00.123+00:00,0.25"


def test_a_folder_of_archives_is_listed(tmp_path: Path) -> None:
    shutil.copy(MINIMAL, tmp_path)
    (tmp_path / "torn.tar.zst").write_bytes(Path(MODELS).read_bytes()[:900])
    (tmp_path / "note.txt").write_text("none")

    whole, torn = parsed("ls", str(tmp_path))
    text = call("ls", tmp_path.as_uri()).stdout

    assert (whole["name"], whole["error"]) == ("minimal.tar.zst", "")
    assert whole["root"] == parsed("ls", MINIMAL)["root"]
    assert whole["size_bytes"] == Path(MINIMAL).stat().st_size
    assert torn["error"]
    assert whole["root"] in text
    assert "Unreadable: torn.tar.zst: " in text


def test_what_cannot_be_is_said() -> None:
    for arguments in (
        ("ls", MINIMAL, "--limit", "3"),
        ("ls", MINIMAL, "-e", "iris", "--columns", "colour"),
        ("ls", MINIMAL, "-e", "iris", "--sort", "metrics."),
    ):
        assert call(*arguments).exit_code == 2, arguments
    near = call("ls", MINIMAL, "-e", "irs")
    assert (near.exit_code, "did you mean 'iris'?" in near.stderr) == (4, True)


def run(number: int, parent: int | None = None, **more: Any) -> dict[str, Any]:
    return {
        "run_id": f"{number:032x}",
        "run_name": f"run {number}",
        "status": "FINISHED",
        "lifecycle_stage": "active",
        "metric_rows": 0,
        "artifacts": 0,
        "experiment_id": "1",
        "parent_run_id": None if parent is None else f"{parent:032x}",
        "user_id": "bea",
        "start_time": 1000 * number,
        "end_time": None,
        "metrics": {},
        "params": {},
        "tags": {},
        **more,
    }


def test_children_stand_below_their_parents_and_circles_are_none() -> None:
    runs = [run(1), run(2, 1), run(3, 2), run(4), run(5, 99), run(6, 7), run(7, 6), run(8, 1)]

    _, rows = RunTable(runs).texts(["name"], None, short=True)

    assert [name for (name,) in rows] == [
        *("run 5", "run 4", "run 1", "└ run 8", "└ run 2", "  └ run 3", "run 7", "run 6"),
    ]


def test_the_order_is_that_of_a_column() -> None:
    values = [0.5, "NaN", -3, "-Infinity", 12.0]
    runs = [run(n, metrics={"loss": value}) for n, value in enumerate(values)]
    table = RunTable([*runs, run(9)])

    ordered = [r["metrics"].get("loss") for r in table.sorted("metrics.loss") if r != runs[1]]
    assert ordered == ["-Infinity", -3, 0.5, 12.0, None]
    assert table.sorted("-name")[0]["run_name"] == "run 9"
    assert table.sorted(None)[0]["run_id"] == run(9)["run_id"]


def test_short_ids_tell_runs_apart() -> None:
    rng = random.Random(7)
    runs = [run(rng.getrandbits(128)) for _ in range(50)]
    runs += [run(int(runs[0]["run_id"], 16) ^ 1)]

    _, rows = RunTable(runs).texts(["id"], None, short=True)

    assert len({identity for (identity,) in rows}) == len(runs)


def test_hostile_and_wide_texts_keep_the_columns(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [("\x1b[31mred", 1), ("日本語", 20), ("", 3)]

    show_table(("name", "number"), rows)

    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "name         number",
        "\\x1b[31mred       1",
        "日本語           20",
        "                  3",
    ]


@pytest.mark.parametrize(
    ("duration_ms", "text"),
    [
        (None, ""),
        (25, "25 ms"),
        (59_949, "59.9 s"),
        (60_000, "1 min 0 s"),
        (7_260_000, "2 h 1 min"),
        (3 * 86_400_000 + 3_600_000, "3 d 1 h"),
    ],
)
def test_durations_are_for_people(duration_ms: int | None, text: str) -> None:
    assert duration_text(duration_ms) == text
