"""Targets that tell no case apart: of two names that are one there, one is kept out and named."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from mlflow import MlflowClient

from mlflow_exim_plugin import extract, pack, unpack
from mlflow_exim_plugin.host.files.same_names import NamesHere
from mlflow_exim_plugin.schema.objects import Kind
from mlflow_exim_plugin.storage.urls import path_of_uri
from tests import far_stores
from tests.compare import assert_count_law
from tests.seed import Seeded, log_files, new_run
from tests.servers import start_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.integration

ONE_OF_EACH = [{"A.txt", "a.txt"}, {"Model/x", "model/x"}, {"\u00e9", "\u00c9"}]
BOTH = {"stra\u00dfe", "STRASSE", "other.txt", "Model/y"}
"""Python's folding takes the first two for one, exFAT does not."""
FILES = {path: path.encode() for path in BOTH.union(*ONE_OF_EACH)}


@pytest.fixture(scope="module")
def exfat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with far_stores.exfat(tmp_path_factory.mktemp("exfat")) as place:
        yield place


@pytest.fixture
def packed(sqlite_uri: str, tmp_path: Path) -> tuple[str, str]:
    """An archive, and the id of its run."""
    client = MlflowClient(sqlite_uri, sqlite_uri)
    made = Seeded()
    made.experiments["e"] = client.create_experiment("e", (tmp_path / "source").as_uri())
    run_id = new_run(client, made, "r", made.experiments["e"])
    log_files(client, run_id, FILES)
    archive = str(tmp_path / "a.tar.zst")
    assert pack(archive, tracking_uri=sqlite_uri).ok
    return archive, run_id


def kept_out(there: dict[str, bytes], failed: set[str]) -> None:
    assert there.keys() | failed == FILES.keys()
    assert not there.keys() & failed
    assert there.keys() >= BOTH
    for pair in ONE_OF_EACH:
        assert len(pair & failed) == 1
    assert all(data == FILES[path] for path, data in there.items())


def test_names_are_one_where_the_file_system_says_so(exfat: Path, tmp_path: Path) -> None:
    (exfat / "names").mkdir()
    loose, strict = NamesHere(exfat / "names").key, NamesHere(tmp_path).key
    for name, other in map(sorted, ONE_OF_EACH):
        assert loose(name) == loose(other)
        assert strict(name) != strict(other)
    assert loose("stra\u00dfe") != loose("STRASSE")
    assert loose("a/B") == loose("A/b")
    assert not list((exfat / "names").iterdir())


def test_unpack_overwrites_none_by_another(
    exfat: Path, packed: tuple[str, str], make_sqlite: Callable[[], str]
) -> None:
    archive, run_id = packed
    target = make_sqlite()
    for _ in range(2):
        report = unpack(archive, tracking_uri=target, artifact_location=str(exfat / "unpacked"))
        assert_count_law(report)
        failed = {f.id.partition("/")[2]: f.reason for f in report.failures}
        root = Path(path_of_uri(MlflowClient(target).get_run(run_id).info.artifact_uri) or "")
        found = {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}
        # Two folders that are one have the files of both, below the name that came first.
        there = {data.decode(): data for data in found.values()}
        assert len(there) == len(found)
        if failed:
            kept_out(there, {path for path in failed if path not in there})
            assert all("to this file system" in reason for reason in failed.values())
    assert {path.name for path in root.iterdir()} >= {"stra\u00dfe", "STRASSE"}


@pytest.mark.parametrize("overwrite", [True, False])
def test_extract_overwrites_none_by_another(
    exfat: Path, packed: tuple[str, str], overwrite: bool
) -> None:
    archive, run_id = packed
    place = exfat / f"extracted-{overwrite}"
    report = extract(archive, str(place), runs=(run_id,), overwrite=overwrite)
    failed = {failure.id.partition("/")[2] for failure in report.failures}
    there = {p.read_bytes().decode(): p.read_bytes() for p in place.rglob("*") if p.is_file()}
    kept_out(there, failed)


def test_a_server_that_tells_no_case_apart_is_told_of(exfat: Path, packed: tuple[str, str]) -> None:
    archive, run_id = packed
    with start_server(exfat / "server") as server:
        report = unpack(archive, tracking_uri=server.url)
        assert_count_law(report)
        failed = {f.id.partition("/")[2] for f in report.failures}
    for pair in ONE_OF_EACH:  # which of them has its bytes there nobody can tell
        assert pair <= failed
    assert "other.txt" not in failed
    assert report.counts[Kind.ARTIFACT].failed == len(failed)
    assert run_id
