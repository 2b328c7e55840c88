"""Of failures and losses a document names a bounded number, and counts all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from mlflow_exim_plugin import open_archive, pack, verify
from mlflow_exim_plugin.schema import documents, report
from mlflow_exim_plugin.schema.objects import Failure, Kind, Loss
from mlflow_exim_plugin.schema.report import entries, failed_runs
from mlflow_exim_plugin.schema.rules import LIMITS, LIMITS_VARIABLE, Limits
from mlflow_exim_plugin.verification import objects
from samples.generate import archive, experiment, minimal, run

if TYPE_CHECKING:
    from pathlib import Path

MOST = 60


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a list have less."""
    for module in (report, objects):
        monkeypatch.setattr(module, "LIMITS", Limits(named=MOST))
    monkeypatch.setenv(LIMITS_VARIABLE, f"named={MOST}")


def failures(count: int, kind: Kind = Kind.RUN) -> list[Failure]:
    return [Failure(kind, f"{number:032x}", "the server answered 500") for number in range(count)]


def counted(told: list[dict[str, Any]], kind: Kind) -> int:
    return sum(entry["count"] for entry in told if entry["kind"] == kind)


@pytest.mark.usefixtures("few")
def test_what_may_be_named_is_named() -> None:
    assert [entry["id"] for entry in entries(failures(MOST))] == [f.id for f in failures(MOST)]
    assert "count" not in entries([Loss(Kind.RUN, "1", "gone")])[0]


@pytest.mark.usefixtures("few")
def test_one_entry_of_each_kind_stands_for_the_others() -> None:
    told = entries([*failures(MOST), *failures(7, Kind.ARTIFACT), Failure(Kind.RUN, "x", "y", 5)])
    assert len(told) <= MOST
    assert counted(told, Kind.RUN) == MOST + 5
    assert counted(told, Kind.ARTIFACT) == 7
    assert [entry["kind"] for entry in told if entry["id"] == "*"] == ["run", "artifact"]
    assert "the server answered 500" in told[-1]["reason"]
    losses = entries([Loss(Kind.RUN, str(number), "gone") for number in range(MOST + 1)])
    assert len(losses) <= MOST
    assert losses[-1]["what"].endswith("gone")


@pytest.mark.usefixtures("few")
def test_an_archive_counts_what_it_does_not_name(tmp_path: Path) -> None:
    file = tmp_path / "a.tar.zst"
    files = [
        Failure(Kind.ARTIFACT, f"{'8' * 32}/{n}", "permission denied") for n in range(MOST + 3)
    ]
    lost = run("8" * 32, "10", files={"there.txt": b"there"}, more=files)
    file.write_bytes(
        archive([experiment("10", "half"), lost, *failures(MOST + 9), *minimal()], "half")
    )
    result = verify(str(file))
    assert {finding.code for finding in result.findings} == {"W021"}
    with open_archive(str(file)) as there:
        info = there.summary.info
        assert (info.num_failed_runs, len(info.failed_runs)) == (MOST + 9, MOST)
    again = pack(str(tmp_path / "b.tar.zst"), tracking_uri=str(file))
    for kind in (Kind.RUN, Kind.ARTIFACT):
        assert again.counts[kind].failed == info.counts[str(kind)].failed, kind
    assert {finding.code for finding in verify(str(tmp_path / "b.tar.zst")).findings} == {"W021"}


def test_a_longer_list_is_refused_before_anything_is_made_of_it() -> None:
    for key in ("failures", "lossy", "counts", "x_unknown"):
        value: Any = [{}] * (LIMITS.named + 1)
        if key == "counts":
            value = dict.fromkeys(range(LIMITS.named + 1))
        found = documents.names_too_many({"info": {key: value}}, 10**7, LIMITS)
        assert found is not None
        assert found[0] == "E051"
    many = {"mlflow": {"workspaces": [{"name": "w", "models": ["m"] * (LIMITS.named + 1)}]}}
    assert (documents.names_too_many(many, 10, LIMITS) or ("",))[0] == "E056"
    assert documents.names_too_many(many, LIMITS.named + 1, LIMITS) is None


def test_failed_runs_are_counted_and_listed() -> None:
    told = failed_runs([*failures(3), *failures(1, Kind.TRACE)])
    assert told == {"num_failed_runs": 3, "failed_runs": [f.id for f in failures(3)]}
