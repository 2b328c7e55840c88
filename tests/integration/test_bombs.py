"""What a small archive says of itself takes little memory of any command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from mlflow_exim_plugin import unpack, verify
from mlflow_exim_plugin.container import frame_writer, writer
from mlflow_exim_plugin.errors import InvalidArchiveError
from mlflow_exim_plugin.schema.objects import Kind
from mlflow_exim_plugin.schema.rules import LIMITS_VARIABLE, Limits
from samples.generate import RUN, archive, experiment, run
from tests.bombs import BOMBS, GOOD, made, taken_by

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

MOST_MB = 300
COMMANDS = ("verify", "ls", "show", "diff", "unpack")
TRIED = ("failures", "tags", "keys", "wide_text")
"""Those that the default run tries: one of each way to say much."""


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in TRIED else pytest.mark.exhaustive) for name in BOMBS],
)
def test_no_command_takes_much_for_a_small_archive(name: str, tmp_path: Path) -> None:
    bomb = made(name, tmp_path)
    for command in COMMANDS if name not in TRIED else ("verify", "ls"):
        taken, usual = taken_by(command, bomb), taken_by(command, GOOD)
        assert taken.code in range(8), taken
        assert taken.peak_mb - usual.peak_mb < MOST_MB, (command, taken)


@pytest.mark.parametrize(
    ("count", "limits"),
    [
        (4_000, {"free_bytes": 300_000, "free_values": 10_000}),
        pytest.param(300_000, {}, marks=pytest.mark.exhaustive),
    ],
)
def test_a_run_of_many_tiny_files_that_are_alike_is_no_bomb(
    count: int, limits: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {f"files/{number:07d}.txt": b"the same" for number in range(count)}
    there = tmp_path / "a.tar.zst"
    asked = " ".join(f"{name}={most}" for name, most in limits.items())
    monkeypatch.setattr(frame_writer, "LIMITS", Limits(**limits))
    monkeypatch.setenv(LIMITS_VARIABLE, asked)
    stream: list[Any] = [experiment("1", "iris"), run(RUN, "1", files=files)]
    there.write_bytes(archive(stream, "many"))
    assert verify(str(there)).findings == []
    target = f"sqlite:///{tmp_path}/target.db"
    report = unpack(str(there), tracking_uri=target, artifacts_destination=str(tmp_path / "files"))
    assert report.counts[Kind.ARTIFACT].written == count
    # What is not cut into smaller frames would have been refused.
    monkeypatch.setattr(frame_writer, "has_to_pay", lambda *_: False)
    monkeypatch.setattr(writer, "has_to_pay", lambda *_: False)
    there.write_bytes(archive(stream, "many"))
    with pytest.raises(InvalidArchiveError, match="made of"):
        verify(str(there))
