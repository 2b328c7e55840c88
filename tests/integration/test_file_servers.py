"""Files of runs on servers of SSH and FTP, and in a file system of pyarrow's: both ways, whole."""

from __future__ import annotations

import io
import os
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from mlflow import MlflowClient
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from mlflow_exim_plugin import diff, open_archive, pack, unpack
from mlflow_exim_plugin.errors import ReplacedError, StoreError
from mlflow_exim_plugin.host.files import tree
from mlflow_exim_plugin.schema.objects import Kind
from mlflow_exim_plugin.storage.file_servers import folder, ftp, roots
from mlflow_exim_plugin.storage.file_servers.folder import FileServer, ServerFolder
from mlflow_exim_plugin.storage.file_servers.hadoop import arrow_server
from mlflow_exim_plugin.storage.file_servers.roots import server_folder
from tests import far_stores
from tests.compare import assert_count_law

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [
    pytest.mark.integration,
    # What MLflow's client of FTP leaves open.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

FILES = {
    "a.txt": b"a",
    "a/b c/100% é.txt": b"name",
    "a/ leading": b"blank",
    "empty": b"",
    ".hidden": b"dot",
    "large.bin": os.urandom(9 << 20),
    **{f"many/{number}.txt": str(number).encode() * 50 for number in range(40)},
}


@pytest.fixture(scope="module")
def ssh_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[far_stores.FarStore]:
    place = tmp_path_factory.mktemp("ssh")
    with far_stores.sftp(place) as store:
        (place / ".ssh").mkdir()
        host_key = (place / "host_key.pub").read_text()
        (place / ".ssh" / "known_hosts").write_text(f"[127.0.0.1]:{store.port} {host_key}")
        (place / ".ssh" / "config").write_text(f"Host 127.0.0.1\nIdentityFile {place / 'key'}\n")
        yield store


@pytest.fixture(scope="module")
def ftp_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[far_stores.FarStore]:
    with far_stores.ftp(tmp_path_factory.mktemp("ftp")) as store:
        yield store


@pytest.fixture(params=["sftp", "ftp", "arrow"])
def served(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, Path, FileServer]:
    """The URL of an empty folder of a server, where it is on this machine, and the server."""
    if request.param == "arrow":
        from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

        (place := tmp_path / "arrow").mkdir()
        return (
            "hdfs://cluster/exim",
            place / "exim",
            arrow_server(partial(SubTreeFileSystem, str(place), LocalFileSystem())),
        )
    if request.param == "sftp":
        store: far_stores.FarStore = request.getfixturevalue("ssh_store")
        root = store.root or Path()
        monkeypatch.setenv("HOME", str(root.parent))
        url = f"sftp://{far_stores._user()}@127.0.0.1:{store.port}{root}/{tmp_path.name}"
    else:
        store = request.getfixturevalue("ftp_store")
        root = store.root or Path()
        url = f"ftp://user:{quote('p@ss')}@127.0.0.1:{store.port}/{tmp_path.name}"
    found = server_folder(url)
    assert found is not None
    return url, root / tmp_path.name, found._server


def made(root: Path, files: dict[str, bytes]) -> None:
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)


def opened(served: tuple[str, Path, FileServer]) -> ServerFolder:
    url, _, server = served
    return ServerFolder(url, server, "/exim") if url.startswith("hdfs") else server_folder(url)  # type: ignore[return-value]


def test_files_are_listed_read_and_written(served: tuple[str, Path, FileServer]) -> None:
    _, root, _ = served
    assert opened(served).files() == []  # not there is not there, and no trouble
    sending = opened(served)
    for path, data in FILES.items():
        if len(data) > folder.SMALL_BYTES:
            with (root.parent / "source").open("w+b") as stream:
                stream.write(data)
                stream.seek(0)
                sending.put_stream(path, stream, len(data))
            (root.parent / "source").unlink()
        else:
            sending.put(path, data).result()
    there = {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}
    assert there == FILES

    far = opened(served)
    listed = dict(far.files())
    assert listed == {path: len(data) for path, data in FILES.items()}
    assert far.problems == {}
    for path, size_bytes in listed.items():
        with far.open(path, size_bytes) as stream:
            assert b"".join(iter(partial(stream.read, 1 << 20), b"")) == FILES[path]


def test_one_that_is_there_is_replaced(served: tuple[str, Path, FileServer]) -> None:
    _, root, _ = served
    made(root, {"a.txt": b"old"})
    opened(served).put("a.txt", b"new").result()
    assert (root / "a.txt").read_bytes() == b"new"
    assert [file.name for file in root.iterdir()] == ["a.txt"]


def test_a_stream_that_breaks_leaves_nothing(served: tuple[str, Path, FileServer]) -> None:
    class Broken:
        def read(self, size: int) -> bytes:
            self.left = getattr(self, "left", 3) - 1
            if not self.left:
                raise StoreError("the source died")
            return bytes(size)

    _, root, _ = served
    made(root, {"a.txt": b"old"})
    far = opened(served)
    with pytest.raises(StoreError, match="the source died"):
        far.put_stream("a.txt", Broken(), 9 << 20)  # type: ignore[arg-type]
    assert [(file.name, file.read_bytes()) for file in root.iterdir()] == [("a.txt", b"old")]


@pytest.mark.parametrize("served", ["sftp"], indirect=True)
def test_what_is_no_file_is_named_alone(served: tuple[str, Path, FileServer]) -> None:
    _, root, _ = served
    made(root, {"a.txt": b"a", "b/c.txt": b"c"})
    os.mkfifo(root / "pipe")
    (root / "b" / "back").symlink_to("..")
    (root / "dead").symlink_to("nowhere")
    Path(os.fsdecode(os.fsencode(root) + b"/caf\xe9.txt")).write_bytes(b"au lait")
    far = opened(served)

    assert dict(far.files()) == {"a.txt": 1, "b/c.txt": 1, "caf!E9.txt": 7}

    assert far.open("caf!E9.txt", 7).read() == b"au lait"
    assert far.renamed == {"caf!E9.txt": r"caf\xe9.txt"}
    assert far.problems.keys() == {"pipe", "b/back/", "dead"}


@pytest.mark.parametrize("served", ["sftp", "ftp"], indirect=True)
def test_a_link_that_leads_back_doubles_nothing(served: tuple[str, Path, FileServer]) -> None:
    _, root, _ = served
    made(root, {"a.txt": b"a", "b/c.txt": b"c", "d/e.txt": b"e"})
    (root / "b" / "back").symlink_to("..")
    (root / "b" / "over").symlink_to("../d")
    (root / "d" / "over").symlink_to("../b")
    far = opened(served)

    found = dict(far.files())

    assert found == {
        "a.txt": 1,
        "b/c.txt": 1,
        "d/e.txt": 1,
        "b/over/e.txt": 1,  # the same folder by another way
        "d/over/c.txt": 1,
    }
    assert far.problems.keys() == {
        *("b/back/", "b/over/over/", "d/over/over/", "d/over/back/"),
    }


def test_what_is_written_anew_meanwhile_is_told(served: tuple[str, Path, FileServer]) -> None:
    _, root, _ = served
    size_bytes = 120 << 20
    made(root, {"large.bin": bytes(size_bytes)})
    with opened(served).open("large.bin", size_bytes) as stream:
        assert stream.read(10)
        made(root, {"large.bin": b"1" * (size_bytes + 1)})
        with pytest.raises((ReplacedError, StoreError), match="replaced"):
            shutil.copyfileobj(stream, io.BytesIO())
    opened(served).put("after.txt", b"x").result()
    assert opened(served).open("after.txt", 1).read() == b"x"


def test_a_listing_without_facts_is_read(
    tmp_path: Path, ftp_store: far_stores.FarStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As vsftpd's; it has no MLSD."""
    made((ftp_store.root or Path()) / tmp_path.name, FILES)
    whole = ftp.FtpLine._lines

    def without(line: ftp.FtpLine, command: str) -> list[bytes]:
        if command == "MLSD":
            command = "XMLSD"  # which the server does not know
        asked.append(command)
        return whole(line, command)

    asked: list[str] = []
    monkeypatch.setattr(ftp.FtpLine, "_lines", without)
    monkeypatch.setattr(ftp.FtpLine, "_looked_at", None)  # nothing is asked for each file
    far = server_folder(f"ftp://user:p%40ss@127.0.0.1:{ftp_store.port}/{tmp_path.name}")

    assert far is not None
    assert dict(far.files()) == {path: len(data) for path, data in FILES.items()}
    assert "LIST -a" in asked


def test_a_server_that_takes_few_connections_is_served(tmp_path: Path) -> None:
    with far_stores.ftp(tmp_path, most_connections=2) as store:
        made(tmp_path / "files", FILES)
        far = server_folder(store.url.replace("//", "//user:p%40ss@"))
        assert far is not None
        listed = far.files()
        coming = {path: far.read(path) for path, size in listed if size < folder.SMALL_BYTES}
        assert len(coming) == len(FILES) - 1
        assert all(one.result() == FILES[path] for path, one in coming.items())


@pytest.mark.parametrize("served", ["sftp", "ftp"], indirect=True)
def test_they_come_and_go_by_the_commands(
    served: tuple[str, Path, FileServer],
    sqlite_uri: str,
    make_sqlite: Callable[[], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url, root, _ = served
    client = MlflowClient(sqlite_uri, sqlite_uri)
    run = client.create_run(client.create_experiment("e", f"{url}/source"))
    run_id = run.info.run_id
    made(root / "source" / run_id / "artifacts", FILES)
    archive, target = str(tmp_path / "a.tar.zst"), make_sqlite()
    monkeypatch.setattr(tree.ArtifactTree, "_repository", None)  # nobody else may be asked

    packed = pack(archive, tracking_uri=sqlite_uri)
    unpacked = unpack(archive, tracking_uri=target, artifact_location=f"{url}/target")

    for report in (packed, unpacked):
        assert report.failures == []
        assert_count_law(report)
        assert report.counts[Kind.ARTIFACT].written == len(FILES)
    with open_archive(archive) as opened_archive:
        paths = [entry.path for entry in opened_archive.artifacts(run_id)]
        got = {path: opened_archive.open_artifact(run_id, path).read() for path in paths}
    assert got == FILES
    assert diff(sqlite_uri, target).equal
    assert (root / "target" / "1" / run_id / "artifacts" / "large.bin").exists()
    if url.startswith("ftp"):  # MLflow's own client sees the same
        place = MlflowClient(target, target).get_run(run_id).info.artifact_uri
        monkeypatch.undo()
        repository = get_artifact_repository(place)
        assert repository.download_artifacts("a/b c/100% é.txt", str(tmp_path))
        assert (tmp_path / "a/b c/100% é.txt").read_bytes() == b"name"


def test_what_keeps_everybody_out_is_told(
    ssh_store: far_stores.FarStore,
    ftp_store: far_stores.FarStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    there = f"127.0.0.1:{ssh_store.port}{ssh_store.root}"

    def said(url: str) -> StoreError:
        far = server_folder(url)
        assert far is not None
        with pytest.raises(StoreError) as told:
            far.files()
        return told.value

    unknown = said(f"sftp://nobody:secret@{there}")
    assert "known_hosts" in unknown.message
    assert "ssh-keyscan" in unknown.hint
    shutil.copytree((ssh_store.root or Path()).parent / ".ssh", home / ".ssh")
    (home / ".ssh" / "config").unlink()
    roots._server.cache_clear()  # which leaves it alone for a while
    wrong = said(f"sftp://nobody:secret@{there}")
    assert "lets nobody in" in wrong.message
    wrong_ftp = said(f"ftp://user:secret@127.0.0.1:{ftp_store.port}/")
    assert "530" in wrong_ftp.message
    for error in (unknown, wrong, wrong_ftp):
        assert "secret" not in error.message + error.hint


def test_a_channel_of_ssh_that_breaks_is_made_anew(
    ssh_store: far_stores.FarStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = ssh_store.root or Path()
    monkeypatch.setenv("HOME", str(root.parent))
    made(root / tmp_path.name, FILES)
    url = f"sftp://127.0.0.1:{ssh_store.port}{root}/{tmp_path.name}"
    far = server_folder(url)
    assert far is not None
    listed = dict(far.files())
    (client,) = {line._client for line in far._server.reading._free}
    client.close()  # as a server does that is started again

    assert far.open("a.txt", 1).read() == b"a"
    with far.open("large.bin", listed["large.bin"]) as stream:
        assert stream.read() == FILES["large.bin"]
