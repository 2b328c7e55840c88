"""The command line as a user has it: processes, exit codes, two streams, a terminal, a store."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from mlflow import MlflowClient

from mlflow_exim_plugin import pack
from mlflow_exim_plugin.cli.main import exim as cli
from tests.filled import copy_of_database
from tests.servers import new_sqlite_database

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import Bucket

pytestmark = pytest.mark.integration

SCRIPTS = Path(sys.executable).parent
EXIM = [str(SCRIPTS / "mlflow-exim")]
WAYS = {
    "mlflow exim": [str(SCRIPTS / "mlflow"), "exim"],
    "mlflow-exim": EXIM,
    "python -m": [sys.executable, "-m", "mlflow_exim_plugin"],
}
HOSTILE_NAME = "größe \x1b[31mred"
MANY_FILES = 1500


@dataclass(frozen=True)
class Store:
    """A small SQLite store and an archive of it."""

    uri: str
    folder: Path
    archive: str
    run_id: str


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("store")
    run_id = copy_of_database(folder, fill)
    uri, archive = f"sqlite:///{folder}/mlflow.db", str(folder / "all.tar.zst")
    assert pack(archive, tracking_uri=uri).ok
    return Store(uri, folder, archive, run_id)


def fill(uri: str) -> str:
    client = MlflowClient(uri, uri)
    experiment_id = client.create_experiment("e", Path("artifacts").resolve().as_uri())
    run_id: str = client.create_run(experiment_id, run_name=HOSTILE_NAME).info.run_id
    for step in range(3):
        client.log_metric(run_id, "loss", 1 / (step + 1), step=step)
    files = Path("files")
    files.mkdir()
    for number in range(MANY_FILES):
        (files / f"a file with a rather long name {number:05}.txt").write_text("x")
    (files / "long.txt").write_text("a line of many\n" * 500_000)
    client.log_artifacts(run_id, str(files))
    client.set_terminated(run_id)
    return run_id


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"PYTHONWARNINGS": "ignore", "GIT_PYTHON_REFRESH": "quiet"} | more


def call(*command: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    program = list(command) if command[0] not in WAYS else [*WAYS[command[0]], *command[1:]]
    return subprocess.run(
        program,
        cwd=cwd,
        env=environment(**env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        timeout=200,
        check=False,
    )


exim = partial(call, "mlflow-exim")


def here(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Call a command in this process: where MLflow is there already, that is seconds faster."""
    result = CliRunner().invoke(cli, arguments)
    return subprocess.CompletedProcess(arguments, result.exit_code, result.stdout, result.stderr)


def assert_refused(
    done: subprocess.CompletedProcess[str], exit_code: int, *words: str, hint: bool = False
) -> None:
    assert done.returncode == exit_code, done.stderr
    assert "Traceback" not in done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1 + hint
    assert lines[0].startswith("Error: ")
    for word in words:
        assert word in lines[0]
    if hint:
        assert lines[1].startswith("Hint: ")


@pytest.mark.parametrize("way", WAYS)
def test_every_way_in_is_the_same_command(way: str, store: Store) -> None:
    good = call(way, "ls", store.archive)
    bad = call(way, "ls", "nowhere.tar.zst", "--output", "json")

    assert (good.returncode, good.stderr) == (0, "")
    assert good.stdout == exim("ls", store.archive).stdout
    assert_refused(bad, 4, "nowhere.tar.zst does not exist")
    assert json.loads(bad.stdout)["error"]["code"] == "not_found"


def test_there_and_back_in_a_script(
    store: Store, tmp_path: Path, make_sqlite: Callable[[], str]
) -> None:
    target = make_sqlite()

    packed = exim(
        "pack", "named as I like", "--tracking-uri", store.uri, "--output", "json", cwd=tmp_path
    )
    again = exim("pack", "named as I like", "--tracking-uri", store.uri, cwd=tmp_path)
    to_target = ["unpack", "named as I like", "--tracking-uri", target, "--output", "json"]
    unpacked = exim(*to_target, "--artifact-location", str(tmp_path / "there"), cwd=tmp_path)
    repeated = exim(*to_target, cwd=tmp_path)

    assert_refused(again, 8, "named as I like exists", hint=True)
    for done in (packed, unpacked, repeated):
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
    wrote = json.loads(packed.stdout)
    assert wrote["counts"]["artifact"]["written"] == MANY_FILES + 1
    assert json.loads(unpacked.stdout)["counts"] == wrote["counts"]
    assert json.loads(unpacked.stdout)["root"] == wrote["root"]
    assert json.loads(repeated.stdout)["counts"]["run"] == {
        "found": 1,
        "written": 0,
        "skipped": 1,
        "failed": 0,
    }


def test_options_can_come_from_the_environment(store: Store, tmp_path: Path) -> None:
    done = exim(
        "pack",
        "x.tar.zst",
        cwd=tmp_path,
        MLFLOW_EXIM_PACK_DRY_RUN="1",
        MLFLOW_TRACKING_URI=store.uri,
    )

    assert done.returncode == 0, done.stderr
    assert "Would pack into x.tar.zst" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_what_fails_is_named_and_the_rest_is_packed(tmp_path: Path) -> None:
    new_sqlite_database(tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(uri, uri)
    client.create_registered_model("m")
    client.create_model_version("m", str(tmp_path / "gone"))

    done = exim("pack", "x.tar.zst", "--tracking-uri", uri, cwd=tmp_path)
    strict = exim("pack", "y.tar.zst", "--tracking-uri", uri, "--strict", cwd=tmp_path)

    assert (done.returncode, done.stderr) == (3, "")
    assert "Failed: artifact m/1/: " in done.stdout
    assert exim("verify", "x.tar.zst", cwd=tmp_path).returncode == 0
    assert_refused(strict, 3, "stopped at artifact m/1/", hint=True)
    assert {path.name for path in tmp_path.iterdir() if "tar" in path.name} == {"x.tar.zst"}


PACKS = {
    "no store": (["x", "--tracking-uri", "sqlite:///nowhere.db"], 4, "no MLflow store", True),
    "no folder": (["no/x", "--tracking-uri", "URI"], 9, "its folder does not exist", False),
    "a folder": ([".", "--tracking-uri", "URI"], 2, "is a folder", True),
    "filter": (["x", "--tracking-uri", "URI", "--filter", "metrics >"], 2, "--filter", False),
    "experiment": (["x", "--tracking-uri", "URI", "-e", "nobody"], 4, "'nobody'", False),
    "run": (["x", "--tracking-uri", "URI", "-r", "nobody"], 4, "'nobody'", False),
    "model": (["x", "--tracking-uri", "URI", "-m", "nobody"], 4, "'nobody'", False),
    "scheme": (["x", "--tracking-uri", "nowhere://x"], 2, "nowhere://x", True),
    "package": (["smb://b/x", "--tracking-uri", "URI"], 1, "smbprotocol", True),
}


@pytest.mark.parametrize(("arguments", "code", "word", "hint"), PACKS.values(), ids=PACKS)
def test_a_pack_that_cannot_be(
    arguments: list[str],
    code: int,
    word: str,
    hint: bool,
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)

    done = here("pack", *(store.uri if a == "URI" else a for a in arguments))

    assert_refused(done, code, word, hint=hint)
    assert list(tmp_path.iterdir()) == []


def test_an_unpack_cannot_filter_by_nonsense(store: Store, make_sqlite: Callable[[], str]) -> None:
    done = here("unpack", store.archive, "--tracking-uri", make_sqlite(), "--filter", "metrics >")

    assert_refused(done, 2, "--filter")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission_to_write(store: Store, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)

    done = here("pack", str(tmp_path / "x.tar.zst"), "--tracking-uri", store.uri)

    assert_refused(done, 9, "Permission denied")


@pytest.mark.parametrize(
    "uri",
    ["http://user:hunter2@127.0.0.1:1", "postgresql+psycopg2://user:hunter2@127.0.0.1:1/db"],
)
def test_a_dead_server_is_told_soon_and_without_its_password(
    uri: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    start = time.monotonic()

    to = ("--tracking-uri", uri, "--artifact-location", "/files")
    done = here("unpack", store.archive, *to, "--output", "json")

    assert time.monotonic() - start < 30
    assert done.returncode == 9, done.stderr
    assert "127.0.0.1" in done.stderr
    assert "Connection refused" in done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads(done.stdout)["ok"] is False
    assert "hunter2" not in done.stdout + done.stderr


def test_a_folder_of_files_can_be_packed(tmp_path: Path) -> None:
    """MLflow 3.13 and later refuse to open one; whoever packs it is about to leave it."""
    made = call(
        sys.executable,
        "-c",
        "import mlflow\n"
        "client = mlflow.MlflowClient('mlruns')\n"
        "client.log_param(client.create_run('0').info.run_id, 'p', 'v')\n",
        cwd=tmp_path,
        MLFLOW_ALLOW_FILE_STORE="true",
    )
    assert made.returncode == 0, made.stderr

    packed = exim("pack", "x.tar.zst", "--tracking-uri", "mlruns", "--output", "json", cwd=tmp_path)

    assert packed.returncode == 0, packed.stderr
    assert json.loads(packed.stdout)["counts"]["run"]["written"] == 1
    (run,) = json.loads(exim("ls", "x.tar.zst", "-e", "0", "--output", "json", cwd=tmp_path).stdout)
    shown = json.loads(
        exim("show", "x.tar.zst", "-r", run["run_id"], "--output", "json", cwd=tmp_path).stdout
    )
    assert shown["mlflow"]["run"]["data"]["params"] == [{"key": "p", "value": "v"}]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("command", [("ls",), ("ls", "--output", "json"), ("cat",)], ids=" ".join)
def test_an_output_that_cannot_be_written_is_told(command: tuple[str, ...], store: Store) -> None:
    name, *options = command
    members = ["data/archive.json"] if name == "cat" else []
    with open("/dev/full", "wb") as full:  # noqa: PTH123 - a device
        done = subprocess.run(
            [*EXIM, name, store.archive, *members, *options],
            env=environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert_refused(done, 9, "the output cannot be written: No space left on device")


@pytest.mark.parametrize("command", ["ls", "verify", "pack"])
def test_a_pipe_is_no_archive_and_is_not_waited_for(
    command: str, store: Store, tmp_path: Path
) -> None:
    pipe = tmp_path / "a.tar.zst"
    os.mkfifo(pipe)
    more = ["--overwrite", "--tracking-uri", store.uri] if command == "pack" else []
    with subprocess.Popen(
        [*EXIM, command, str(pipe), *more], env=environment(), stderr=subprocess.PIPE, text=True
    ) as process:
        _, said = process.communicate(timeout=60)
    assert process.returncode == (9 if command == "pack" else 4), said
    assert "is not a" in said
    assert pipe.is_fifo()


@pytest.mark.parametrize("command", ["ls", "cat"])
def test_a_reader_that_leaves_is_no_error(command: str, store: Store) -> None:
    long = f"data/experiments/1/runs/{store.run_id}/artifacts/long.txt"
    with subprocess.Popen(
        [*EXIM, command, store.archive, long if command == "cat" else "--members"],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().endswith("\n")
        process.stdout.close()

        assert process.stderr.read() == ""
        assert process.wait(60) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interruption_is_one_line_and_leaves_nothing(
    tmp_path: Path, number: signal.Signals
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        process = subprocess.Popen(
            [*EXIM, "pack", "x.tar.zst", "--tracking-uri", uri],
            cwd=tmp_path,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        silent.settimeout(60)
        connection, _ = silent.accept()  # it has begun and waits for an answer
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        connection.close()

    assert (process.returncode, out, err.strip()) == (128 + number, "", "Interrupted.")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_leaves_no_copy_of_a_database(
    tmp_path: Path, sqlite_uri: str, number: signal.Signals
) -> None:
    copies = tmp_path / "copies"
    copies.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        server = f"http://127.0.0.1:{silent.getsockname()[1]}"
        files = f"{server}/api/2.0/mlflow-artifacts/artifacts/far"
        client = MlflowClient(sqlite_uri, sqlite_uri)
        client.create_run(client.create_experiment("far", files))
        process = subprocess.Popen(
            [*EXIM, "pack", str(tmp_path / "x.tar.zst"), "--tracking-uri", sqlite_uri],
            env=environment(TMPDIR=str(copies), MLFLOW_HTTP_REQUEST_MAX_RETRIES="0"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        silent.settimeout(60)
        connection, _ = silent.accept()  # it lists files, and waits for an answer
        assert [p.name for p in copies.glob("*/mlflow.db")] == ["mlflow.db"]
        process.send_signal(number)
        connection.close()
    out, err = process.communicate(timeout=60)

    assert (process.returncode, out, err.strip()) == (128 + number, "", "Interrupted.")
    assert list(copies.iterdir()) == []
    assert not (tmp_path / "x.tar.zst").exists()


def test_who_ignores_a_hangup_goes_on_ignoring_it(store: Store) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as `nohup` has it for what it starts
    try:
        process = subprocess.Popen(
            [*EXIM, "verify", store.archive, "--output", "json"],
            env=environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
    finally:
        signal.signal(signal.SIGHUP, before)
    while process.poll() is None:
        process.send_signal(signal.SIGHUP)
        time.sleep(0.01)
    out, _ = process.communicate(timeout=60)

    assert process.returncode == 0
    assert json.loads(out)["ok"]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_terminal_can_show_any_name(encoding: str, store: Store) -> None:
    text = subprocess.run(
        [*EXIM, "ls", store.archive, "-e", "e"],
        env=environment(PYTHONIOENCODING=encoding),
        capture_output=True,
        check=False,
    )
    document = exim("ls", store.archive, "-e", "e", "--output", "json", PYTHONIOENCODING=encoding)

    assert text.returncode == 0, text.stderr
    size = r"gr\xf6\xdfe" if encoding == "ascii" else "größe"
    assert rf"  {size} \x1b[31mred  " in text.stdout.decode(encoding)
    assert json.loads(document.stdout)[0]["run_name"] == HOSTILE_NAME


def test_progress_is_for_terminals(store: Store, tmp_path: Path) -> None:
    main, side = pty.openpty()
    shown = bytearray()

    def read() -> None:
        try:
            while chunk := os.read(main, 4096):
                shown.extend(chunk)
        except OSError:  # Linux's way to say that the other side is closed
            pass

    reader = threading.Thread(target=read)
    reader.start()
    process = subprocess.run(
        [*EXIM, "pack", str(tmp_path / "x.tar.zst"), "--tracking-uri", store.uri, "--level", "19"],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=side,
        check=False,
    )
    os.close(side)
    reader.join()
    os.close(main)

    assert process.returncode == 0
    assert b"\r\x1b[K" in shown
    assert bytes(shown).endswith(b"\r\x1b[K")
    assert b"\x1b" not in process.stdout


class _Files(BaseHTTPRequestHandler):
    """Gives ranges of one file to whoever knows its name."""

    data = b""

    def do_HEAD(self) -> None:
        self._answer(send_body=False)

    def do_GET(self) -> None:
        self._answer(send_body=True)

    def _answer(self, *, send_body: bool) -> None:
        if self.path.startswith("/forbidden"):
            self.send_error(403)
        elif not self.path.startswith("/a.tar.zst"):
            self.send_error(404)
        else:
            wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            body = self.data[int(wanted[1]) : int(wanted[2]) + 1] if wanted else self.data
            self.send_response(206 if wanted else 200)
            self.send_header("Accept-Ranges", "bytes")
            if wanted:
                self.send_header("Content-Range", f"bytes {wanted[1]}-{wanted[2]}/{len(self.data)}")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if send_body:
                self.wfile.write(body)

    def log_message(self, *_arguments: object) -> None:
        """Keep quiet."""


@pytest.fixture
def web(store: Store) -> Iterator[str]:
    handler = type("Handler", (_Files,), {"data": Path(store.archive).read_bytes()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_archive_on_the_web_is_read_in_place(web: str, store: Store) -> None:
    presigned = f"{web}/a.tar.zst?signature=hunter2"

    assert exim("ls", presigned).stdout == exim("ls", store.archive).stdout
    assert exim("verify", presigned).stdout == exim("verify", store.archive).stdout
    assert_refused(exim("ls", f"{web}/b.tar.zst?signature=hunter2"), 4, "signature=***")
    assert_refused(exim("ls", f"{web}/forbidden"), 9, "403")
    assert_refused(exim("ls", "http://user:hunter2@127.0.0.1:1/a"), 9, "http://***@127.0.0.1:1/a")
    refused = here("pack", f"{web}/b.tar.zst", "--tracking-uri", store.uri)
    assert_refused(refused, 9, "can neither commit", hint=True)


def test_an_archive_in_a_bucket(
    s3_bucket: Bucket, store: Store, make_sqlite: Callable[[], str]
) -> None:
    url = f"{s3_bucket.url}/nightly/all.tar.zst"

    def report(*command: str) -> dict[str, Any]:
        done = here(*command, "--output", "json")
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        reply: dict[str, Any] = json.loads(done.stdout)
        return reply

    packed = report("pack", url, "--tracking-uri", store.uri)
    assert report("ls", url)["root"] == packed["root"]
    assert report("verify", url, "--root", packed["root"])["authentic"] is True
    unpacked = report("unpack", url, "--tracking-uri", make_sqlite(), "--no-artifacts")
    assert unpacked["counts"]["run"]["written"] == 1
    assert_refused(here("pack", url, "--tracking-uri", store.uri), 8, "exists", hint=True)
    assert_refused(exim("ls", f"{s3_bucket.url}/nothing"), 4, "does not exist")
    wrong = exim("ls", url, AWS_SECRET_ACCESS_KEY="hunter2", AWS_ENDPOINT_URL="http://127.0.0.1:1")
    assert_refused(wrong, 9)
    assert "hunter2" not in wrong.stderr
