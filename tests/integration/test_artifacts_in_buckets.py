"""Files of runs in S3, Azure and Google: the same by obstore as by MLflow's own clients."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from mlflow import MlflowClient

from mlflow_exim_plugin import diff, open_archive, pack, unpack
from mlflow_exim_plugin.host.files import tree
from mlflow_exim_plugin.schema.objects import Kind
from mlflow_exim_plugin.storage import objects
from tests import far_stores
from tests.compare import assert_count_law
from tests.depth import one_of
from tests.proxy import FaultyProxy, Request
from tests.seed import Seeded, log_files, new_run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import Bucket

pytest.importorskip("obstore")
pytestmark = [
    pytest.mark.integration,
    # What the clouds' own clients keep open for later.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

FILES = {
    "a.txt": b"a",
    "a/b c/100% é#.txt": b"name",
    "empty": b"",
    "large.bin": os.urandom(9 << 20),
    **{f"many/{number}.txt": str(number).encode() * 50 for number in range(40)},
}


@pytest.fixture(scope="module")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[far_stores.FarStore]:
    with far_stores.azure(tmp_path_factory.mktemp("azure")) as store:
        yield store


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[far_stores.FarStore]:
    with far_stores.google(tmp_path_factory.mktemp("google")) as store:
        yield store


@pytest.fixture(params=one_of("S3", "Azure", "Google"))
def bucket(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, bool]:
    """A bucket that all clients find by the environment, and whether obstore serves it."""
    if request.param == "S3":
        return request.getfixturevalue("s3_bucket").url, True
    if request.param == "Azure":
        store: far_stores.FarStore = request.getfixturevalue("azurite")
        container = store.new_folder().rpartition("/")[2]
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", store.options["connection_string"])
        return f"wasbs://{container}@devstoreaccount1.blob.core.windows.net", True
    # Google's emulator does not speak the API that obstore does: MLflow's way is left.
    store = request.getfixturevalue("emulator")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", store.options["endpoint_url"])
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "exim")
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    return store.new_folder(), False


def test_an_archive_lies_on_another_store_than_the_files(
    s3_bucket: Bucket, sqlite_uri: str, make_sqlite: Callable[[], str], tmp_path: Path
) -> None:
    """Each with its own credentials: options are of the archive, the environment of the files."""
    client = MlflowClient(sqlite_uri, sqlite_uri)
    made = Seeded()
    made.experiments["e"] = client.create_experiment("e", f"{s3_bucket.url}/source")
    log_files(client, new_run(client, made, "r", made.experiments["e"]), {"a.txt": b"a"})
    (folder := tmp_path / "other").mkdir()
    with far_stores.rclone_s3(folder) as other:
        archive, options = f"{other.new_folder()}/a.tar.zst", other.options
        packed = pack(archive, tracking_uri=sqlite_uri, storage_options=options)
        unpacked = unpack(
            archive,
            tracking_uri=make_sqlite(),
            artifact_location=f"{s3_bucket.url}/target",
            storage_options=options,
        )
    for report in (packed, unpacked):
        assert report.failures == []
        assert report.counts[Kind.ARTIFACT].written == 1


def seeded(uri: str, location: str) -> str:
    """Make a run whose files MLflow's own client wrote."""
    client = MlflowClient(uri, uri)
    made = Seeded()
    made.experiments["e"] = client.create_experiment("e", location)
    run_id = new_run(client, made, "r", made.experiments["e"])
    log_files(client, run_id, FILES)
    return run_id


def test_they_come_and_go_whole(
    bucket: tuple[str, bool],
    sqlite_uri: str,
    make_sqlite: Callable[[], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url, is_served = bucket
    run_id = seeded(sqlite_uri, f"{url}/source")
    archive, target = str(tmp_path / "a.tar.zst"), make_sqlite()
    assert (objects.object_folder(f"{url}/source") is not None) is is_served

    with monkeypatch.context() as patch:
        if is_served:  # nobody else may be asked
            patch.setattr(tree.ArtifactTree, "_repository", None)
            patch.setattr(tree.ArtifactTree, "_fsspec_open", None)
        packed = pack(archive, tracking_uri=sqlite_uri)
        unpacked = unpack(archive, tracking_uri=target, artifact_location=f"{url}/target")

    for report in (packed, unpacked):
        assert report.failures == []
        assert_count_law(report)
        assert report.counts[Kind.ARTIFACT].written == len(FILES)
    with open_archive(archive) as opened:
        paths = [entry.path for entry in opened.artifacts(run_id)]
        assert {path: opened.open_artifact(run_id, path).read() for path in paths} == FILES
    root = Path(MlflowClient(target, target).download_artifacts(run_id, "", str(tmp_path)))
    there = {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}
    assert {path: there[path] for path in FILES} == FILES
    # Without it everything is as before.
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "obstore", None)
        patch.setitem(sys.modules, "obstore.store", None)
        objects._bucket.cache_clear()
        assert objects.object_folder(f"{url}/source") is None
        assert diff(sqlite_uri, archive).equal
    objects._bucket.cache_clear()


def test_what_goes_while_it_is_read_costs_itself_alone(
    s3_bucket: Bucket, sqlite_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import boto3

    run_id = seeded(sqlite_uri, f"{s3_bucket.url}/source")
    key = f"source/{run_id}/artifacts/"
    s3 = boto3.client("s3")

    def change(request: Request) -> None:
        if "list-type" in request.path and len(proxy.seen) > 1:  # the first one but looks
            s3.delete_object(Bucket=s3_bucket.name, Key=f"{key}many/7.txt")
            s3.put_object(Bucket=s3_bucket.name, Key=f"{key}many/8.txt", Body=b"longer" * 100)

    with FaultyProxy(s3_bucket.endpoint_url) as proxy:
        proxy.after = change
        # Fewer come than are there.
        proxy.bend = lambda r, data: b"x" if r.path.endswith("many/9.txt") else data
        monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", proxy.url)
        report = pack(str(tmp_path / "a.tar.zst"), tracking_uri=sqlite_uri)

    assert_count_law(report)
    assert {f.id for f in report.failures} == {f"{run_id}/many/7.txt", f"{run_id}/many/9.txt"}
    assert report.counts[Kind.ARTIFACT].written == len(FILES) - 2
    with open_archive(str(tmp_path / "a.tar.zst")) as opened:
        assert opened.open_artifact(run_id, "many/8.txt").read() == b"longer" * 100


def test_a_key_that_obstore_cannot_say_costs_nothing(
    s3_bucket: Bucket, sqlite_uri: str, tmp_path: Path
) -> None:
    import boto3

    run_id = seeded(sqlite_uri, f"{s3_bucket.url}/source")
    key = f"source/{run_id}/artifacts/many/\x01.txt"
    boto3.client("s3").put_object(Bucket=s3_bucket.name, Key=key, Body=b"odd")

    report = pack(str(tmp_path / "a.tar.zst"), tracking_uri=sqlite_uri)

    assert_count_law(report)
    assert report.failures == []
    assert report.counts[Kind.ARTIFACT].written == len(FILES) + 1
