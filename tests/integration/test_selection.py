"""What is asked for is taken, with what it needs and nothing else; the source is only read."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from mlflow import MlflowClient

from mlflow_exim_plugin import open_archive, pack
from mlflow_exim_plugin.cli.main import exim
from mlflow_exim_plugin.errors import NotFoundError, UsageError
from mlflow_exim_plugin.options import Selection, parse_time_ms
from mlflow_exim_plugin.schema.objects import Kind
from tests.compare import assert_count_law, snapshot
from tests.integration.conftest import rows_of
from tests.new_ids import unpack
from tests.seed import T0, Seeded, log_files, new_run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.sources import Source

pytestmark = pytest.mark.integration

Chosen = tuple[set[str], set[str], set[str]]
"""Names of experiments, roles of runs, names of models."""


def contents(archive: str) -> Chosen:
    with open_archive(archive) as opened:
        return (
            {str(e.mlflow.experiment["name"]) for e in opened.experiments()},
            {
                next(t["value"] for t in run.mlflow.run["data"]["tags"] if t["key"] == "role")
                for run in opened.runs()
            },
            {str(m.mlflow.registered_model["name"]) for m in opened.models()},
        )


@pytest.fixture(params=["pack", "unpack"])
def choose(
    request: pytest.FixtureRequest,
    sqlite_source: Source,
    make_sqlite: Callable[[], str],
    tmp_path: Path,
) -> Callable[[Selection], Chosen]:
    """Select while packing from the source, or while unpacking an archive of everything."""

    def choose_at_pack(selection: Selection) -> Chosen:
        archive = str(tmp_path / f"{time.monotonic_ns()}.tar.zst")
        report = pack(archive, tracking_uri=sqlite_source.uri, selection=selection)
        assert report.ok, report.failures
        assert_count_law(report)
        return contents(archive)

    def choose_at_unpack(selection: Selection) -> Chosen:
        uri = make_sqlite()
        report = unpack(sqlite_source.archive, tracking_uri=uri, selection=selection)
        assert report.ok, report.failures
        assert_count_law(report)
        found = snapshot(uri, files=False)
        written = {n for n, e in found.experiments.items() if e["tags"]}
        roles = {run["data"]["tags"]["role"] for run in found.runs.values()}
        return written, roles, set(found.models)

    return choose_at_pack if request.param == "pack" else choose_at_unpack


def runs_of(source: Source, experiment: str) -> set[str]:
    id_ = source.made.experiments[experiment]
    return {
        run["data"]["tags"]["role"]
        for run in source.snapshot.runs.values()
        if run["info"]["experiment_id"] == id_
    }


ELSEWHERE = {"child elsewhere", "parent elsewhere"}


def test_an_experiment_by_name(
    choose: Callable[[Selection], Chosen], sqlite_source: Source
) -> None:
    experiments, runs, models = choose(Selection(experiments=("plain",)))

    # One child has its parent in another experiment: the parent comes along, its siblings do not.
    assert experiments == {"plain", "artifacts"}
    assert runs == runs_of(sqlite_source, "plain") | {"parent elsewhere"}
    assert models == set()


def test_an_experiment_by_glob_and_by_a_name_that_looks_like_one(
    choose: Callable[[Selection], Chosen],
) -> None:
    assert choose(Selection(experiments=("odd*",)))[1] == {"in odd"}
    odd = 'odd/näme ✓ 100% [a-z]* it\'s "x"'
    assert choose(Selection(experiments=(odd,)))[0] == {odd}


def test_an_experiment_by_id(choose: Callable[[Selection], Chosen], sqlite_source: Source) -> None:
    empty = sqlite_source.made.experiments["empty"]

    assert choose(Selection(experiments=(empty,))) == ({"nothing in it"}, set(), set())


def test_a_run_with_its_ancestors(
    choose: Callable[[Selection], Chosen], sqlite_source: Source
) -> None:
    runs = sqlite_source.made.runs

    assert choose(Selection(runs=(runs["grandchild"],)))[1] == {"grandchild", "child 0", "parent"}
    assert choose(Selection(runs=(runs["child elsewhere"],)))[:2] == (
        {"artifacts", "plain"},
        {"child elsewhere", "parent"},
    )
    assert choose(Selection(runs=(runs["ring 1"],)))[1] == {"ring 1", "ring 2"}
    assert choose(Selection(runs=(runs["own parent"],)))[1] == {"own parent"}
    assert choose(Selection(runs=(runs["child of gone"],)))[1] == {"child of gone"}
    assert choose(Selection(runs=(runs["bare"][:12] + "*",)))[1] == {"bare"}


def test_a_model_with_the_runs_behind_it(choose: Callable[[Selection], Chosen]) -> None:
    chosen = choose(Selection(models=("churn*",)))

    assert chosen == ({"plain"}, {"artifacts", "deleted"}, {"churn ✓ model"})


def test_no_deleted(choose: Callable[[Selection], Chosen], sqlite_source: Source) -> None:
    experiments, runs, _ = choose(Selection(deleted=False))

    assert "deleted with its runs" not in experiments
    gone = {"deleted", "deleted parent", "in deleted experiment"}
    assert runs == set(sqlite_source.made.runs) - gone


@pytest.mark.parametrize(
    ("filter_string", "roles"),
    [
        ("tags.role = 'metrics'", {"metrics"}),
        ("params.p000 = '0'", {"params and tags"}),
        ("attributes.status = 'KILLED'", {"status KILLED", "status KILLED ended"}),
        ("metrics.`train/loss` > 0.1 and tags.role LIKE 'm%'", {"metrics"}),
    ],
)
def test_filter(choose: Callable[[Selection], Chosen], filter_string: str, roles: set[str]) -> None:
    assert choose(Selection(filter=filter_string))[1] == roles


def test_a_wrong_filter_is_refused(sqlite_source: Source, sqlite_uri: str, tmp_path: Path) -> None:
    wrong = Selection(filter="metrics.loss >>> 1")
    archive = tmp_path / "a.tar.zst"

    with pytest.raises(UsageError, match=">>>"):
        pack(str(archive), tracking_uri=sqlite_source.uri, selection=wrong)
    with pytest.raises(UsageError, match=">>>"):
        unpack(sqlite_source.archive, tracking_uri=sqlite_uri, selection=wrong)

    assert not archive.exists()


def test_since_and_until_include_their_ends(
    choose: Callable[[Selection], Chosen], sqlite_source: Source
) -> None:
    """Runs start one second after the other; two roles without parents stand at the ends."""
    order = list(sqlite_source.made.runs)
    first, last = order.index("metrics") * 1000 + T0, order.index("in odd") * 1000 + T0

    between = {"metrics", "params and tags", "artifacts", "in odd"}
    assert choose(Selection(since_ms=first, until_ms=last))[1] == between
    inner = choose(Selection(since_ms=first + 1, until_ms=last - 1))[1]
    assert inner == between - {"metrics", "in odd"}


@pytest.fixture
def tokyo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("tokyo")
def test_times_are_utc_wherever_the_user_is(sqlite_uri: str, tmp_path: Path) -> None:
    assert time.localtime(0).tm_hour == 9  # the fixture works
    client = MlflowClient(sqlite_uri, sqlite_uri)
    midnight = 1_704_067_200_000  # 2024-01-01T00:00Z
    for role, start in {
        "last of the year": midnight - 1,
        "first": midnight,
        "last of the day": midnight + 86_399_999,
        "next day": midnight + 86_400_000,
    }.items():
        client.create_run("0", start, {"role": role})
    archive = str(tmp_path / "a.tar.zst")
    arguments = ["pack", archive, "--tracking-uri", sqlite_uri]
    arguments += ["--since", "2024-01-01", "--until", "2024-01-01"]

    result = CliRunner().invoke(exim, arguments)

    assert result.exit_code == 0, result.output
    assert contents(archive)[1] == {"first", "last of the day"}
    assert parse_time_ms("2024-01-01T09:00:00+09:00") == midnight


def test_artifacts(sqlite_uri: str, make_sqlite: Callable[[], str], tmp_path: Path) -> None:
    client = MlflowClient(sqlite_uri, sqlite_uri)
    made = Seeded(experiments={"plain": client.create_experiment("plain")})
    run_id = new_run(client, made, "one", made.experiments["plain"])
    log_files(client, run_id, {"model/MLmodel": b"1", "model/big.bin": b"2", "log.txt": b"3"})

    def taken(selection: Selection) -> set[str]:
        archive = str(tmp_path / f"{time.monotonic_ns()}.tar.zst")
        pack(archive, tracking_uri=sqlite_uri, selection=selection)
        whole, target = str(tmp_path / "whole.tar.zst"), make_sqlite()
        pack(whole, tracking_uri=sqlite_uri, overwrite=True)
        assert unpack(whole, tracking_uri=target, selection=selection).ok
        (run,) = snapshot(target).runs.values()
        with open_archive(archive) as opened:
            packed = {entry.path for entry in opened.artifacts(run_id)}
        assert packed == set(run["files"])
        return packed

    assert taken(Selection()) == {"model/MLmodel", "model/big.bin", "log.txt"}
    assert taken(Selection(artifacts=False)) == set()
    assert taken(Selection(include=("model/*",))) == {"model/MLmodel", "model/big.bin"}
    assert taken(Selection(exclude=("*.bin",))) == {"model/MLmodel", "log.txt"}
    assert taken(Selection(include=("model/*",), exclude=("*.bin",))) == {"model/MLmodel"}


@pytest.mark.parametrize(
    "selection",
    [
        Selection(experiments=("plian", "no such")),
        Selection(experiments=("no such*",)),
        Selection(runs=("f" * 32,)),
        Selection(runs=("zz*",)),
        Selection(models=("no such",)),
    ],
)
def test_unknown_names_are_refused(
    selection: Selection, sqlite_source: Source, sqlite_uri: str, tmp_path: Path
) -> None:
    MlflowClient(sqlite_uri, sqlite_uri)  # MLflow makes its default experiment when it opens it
    archive, before = tmp_path / "a.tar.zst", rows_of(sqlite_uri)

    with pytest.raises(NotFoundError):
        pack(str(archive), tracking_uri=sqlite_source.uri, selection=selection)
    with pytest.raises(NotFoundError):
        unpack(sqlite_source.archive, tracking_uri=sqlite_uri, selection=selection)

    assert list(tmp_path.glob("*.zst*")) == []
    assert rows_of(sqlite_uri) == before


def test_the_archive_says_what_was_asked_for(sqlite_source: Source, tmp_path: Path) -> None:
    archive = str(tmp_path / "a.tar.zst")
    pack(
        archive,
        tracking_uri=sqlite_source.uri,
        selection=Selection(experiments=("nothing*",), exclude=("*.bin",)),
    )

    with open_archive(archive) as opened:
        selection = opened.summary.mlflow.selection
    assert json.loads(json.dumps(selection)) == {
        "experiments": ["nothing*"],
        "exclude": ["*.bin"],
    }


def test_counts_of_a_selection(sqlite_source: Source, tmp_path: Path) -> None:
    report = pack(
        str(tmp_path / "a.tar.zst"),
        tracking_uri=sqlite_source.uri,
        selection=Selection(runs=(sqlite_source.made.runs["metrics"],)),
    )

    histories = sqlite_source.snapshot.runs[sqlite_source.made.runs["metrics"]]["histories"]
    assert {k: c.written for k, c in report.counts.items()} == {
        Kind.EXPERIMENT: 1,
        Kind.RUN: 1,
        Kind.METRIC_HISTORY: len(histories),
    }
    assert report.metric_rows == sum(len(rows) for rows in histories.values())
