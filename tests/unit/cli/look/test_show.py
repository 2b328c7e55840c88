"""What ``show`` and ``cat`` tell people: the main things, by whatever name, and no noise."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mlflow_exim_plugin.cli.look.foreign import as_mlflow_has_them
from mlflow_exim_plugin.cli.look.summary import show_summary
from mlflow_exim_plugin.cli.main import exim
from mlflow_exim_plugin.errors import InvalidArchiveError

GOOD = Path(__file__).parents[4] / "samples" / "v1" / "good"
MINIMAL = str(GOOD / "minimal.tar.zst")
MLFLOW_3 = str(GOOD / "mlflow3.tar.zst")
RUN = "5" * 32


def call(*arguments: str) -> Result:
    return CliRunner().invoke(exim, arguments)


@pytest.mark.parametrize(
    ("archive", "asked", "expected"),
    [
        (MINIMAL, (), ["packed", "sqlite:///mlflow.db", "metric history"]),
        (MINIMAL, ("-r", RUN), ["FINISHED, 1 min 0 s", "1 file, 6 B", "0.25"]),
        (MINIMAL, ("-r", "5555"), [RUN]),
        (MINIMAL, ("-r", "run-5555"), [RUN]),
        (MINIMAL, ("-r", "run-*"), [RUN]),
        (MINIMAL, ("-e", "ir*"), ["iris"]),
        (MINIMAL, ("-m", "i*"), ["iris", "versions"]),
        (MLFLOW_3, ("-m", "greeting@production"), ["Hello {{name}}"]),
        (MLFLOW_3, ("--logged-model", "tree"), ["m-66666", "classifier", "depth"]),
        (MLFLOW_3, ("--trace", "tr-7777"), ["ask", "  step 2", "ERROR", "alice"]),
    ],
)
def test_what_matters_is_shown(archive: str, asked: tuple[str, ...], expected: list[str]) -> None:
    result = call("show", archive, *asked)

    assert result.exit_code == 0, result.stderr
    assert [text for text in expected if text not in result.stdout] == []


def test_what_may_be_several_is_said() -> None:
    several = call("show", MLFLOW_3, "--logged-model", "m-*")
    none = call("show", MINIMAL, "-r", "run-5556")

    assert several.exit_code == 2
    assert "'m-*' may be 2 logged models" in several.stderr
    assert none.exit_code == 4
    assert "did you mean 'run-5555'?" in none.stderr


@pytest.mark.parametrize(
    "info", [{"start_time": "abc", "end_time": 5}, {"start_time": [], "end_time": {}}, {}]
)
def test_what_is_not_as_mlflow_has_it_is_refused(info: dict[str, object]) -> None:
    document = {"mlflow": {"run": {"info": {"experiment_id": "1", **info}}}, "info": {}}

    with pytest.raises(InvalidArchiveError, match="not as MLflow has it"), as_mlflow_has_them():
        show_summary(document)


def test_no_binary_reaches_a_terminal_unasked() -> None:
    member = "data/experiments/1/metrics/part-00000.parquet"
    command = [sys.executable, "-m", "mlflow_exim_plugin", "cat", MINIMAL, member]
    ours, theirs = pty.openpty()
    try:
        refused = subprocess.run(
            command, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE, check=False
        )
        os.set_blocking(ours, False)
        with pytest.raises(BlockingIOError):
            os.read(ours, 1)
    finally:
        os.close(ours)
        os.close(theirs)

    assert refused.returncode == 2
    assert b"is no text" in refused.stderr
    assert call("cat", MINIMAL, member).stdout_bytes.startswith(b"PAR1")
