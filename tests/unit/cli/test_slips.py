"""What people write by mistake: it ends in one clear line, and a hint that is what they meant."""

from __future__ import annotations

import json
import logging
import shlex
import shutil
import socket
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner, Result

from mlflow_exim_plugin.cli.main import exim
from mlflow_exim_plugin.errors import NOTICE
from tests.servers import new_sqlite_database

if TYPE_CHECKING:
    from collections.abc import Iterator

GOOD = Path(__file__).parents[3] / "samples" / "v1" / "good"

SLIPS = {
    # A store in the place of its URI, and URIs that are none.
    "pack x --tracking-uri mlflow.db": (4, "is a database", "write sqlite:///mlflow.db"),
    "pack x --tracking-uri sqlite://mlflow.db": (2, "names no file", "write sqlite:///mlflow.db"),
    "pack x --tracking-uri sqlite:mlflow.db": (2, "names no file", "write sqlite:///mlflow.db"),
    "pack x --tracking-uri sqlite:/mlflow.db": (2, "names no file", "write sqlite:///mlflow.db"),
    "pack x --tracking-uri sqlite:///gone.db": (4, "no MLflow store", "check --tracking-uri"),
    "pack x --tracking-uri localhost:5000": (2, "has no scheme", "write http://localhost:5000"),
    "pack x --tracking-uri localhost": (2, "has no scheme", "write http://localhost"),
    "pack x --tracking-uri 10.0.0.1:80": (2, "has no scheme", "write http://10.0.0.1:80"),
    "pack x --tracking-uri ml.example.org": (4, "there is no", "http://…"),
    "pack x --tracking-uri http:/h:5000": (2, "lacks a slash", "write http://h:5000"),
    "pack x --tracking-uri htpp://h:5000": (2, "no kind of store htpp:", "did you mean http://?"),
    "pack x --tracking-uri postgres://u@h/db": (2, "no store for", "write postgresql://***@h/db"),
    "pack x --tracking-uri oracle://u@h/db": (2, "no kind of store oracle:", "MLflow has "),
    "pack x --tracking-uri mysql://u:secret@h/db": (
        *(1, "No module named 'MySQLdb'"),
        "pip install 'mlflow-exim-plugin[mysql]', and write mysql+pymysql://***@h/db",
    ),
    "pack x --tracking-uri postgresql+asyncpg://h/db": (
        *(2, "through asyncpg"),
        "write postgresql://h/db",
    ),
    "pack x --tracking-uri postgresql://h:port/db": (2, "is no URI", "postgresql://HOST:PORT/NAME"),
    "pack x --tracking-uri postgresql://127.0.0.1:CLOSED/db": (
        *(9, "onnection refused"),
        "check that the database runs",
    ),
    "pack x --tracking-uri exim:models.tar.zst": (2, "address for MLflow", "write models.tar.zst"),
    "pack x --tracking-uri folder": (4, "is no store of files", "did you mean folder/mlruns?"),
    "pack x --tracking-uri sqlite:///notes.db": (
        9,
        "file is not a database",
        "check that",
    ),
    "pack x --tracking-uri sqlite:///folder": (2, "folder", "write sqlite:///folder/mlflow.db"),
    # Servers that are none, or not there.
    "pack x --tracking-uri http://127.0.0.1:CLOSED": (9, "Connection refused", "the server runs"),
    "pack x --tracking-uri http://no.invalid": (9, "does not answer", "its address is right"),
    "pack x --tracking-uri https://127.0.0.1:PORT": (9, "does not speak TLS", "write http://"),
    "pack x --tracking-uri http://127.0.0.1:PORT": (9, "404", "is it an MLflow server?"),
    "pack x --tracking-uri http://127.0.0.1:PORT/tls": (9, "plain HTTP", "write https://"),
    # What is to be written.
    "pack out.zip --tracking-uri sqlite:///mlflow.db": (2, "no .zip", "write out.tar.zst"),
    "pack out.tar.gz --tracking-uri sqlite:///mlflow.db": (2, "no .gz", "write out.tar.zst"),
    "pack mlflow.db --tracking-uri sqlite:///mlflow.db --overwrite": (
        *(2, "no .db"),
        "write mlflow.tar.zst",
    ),
    "pack folder --tracking-uri sqlite:///mlflow.db": (2, "is a folder", "write folder/NAME.tar"),
    "pack folder/ --tracking-uri sqlite:///mlflow.db": (2, "is a folder", "or --set folder for"),
    "pack notes --tracking-uri sqlite:///mlflow.db --overwrite": (8, "no archive", "another name"),
    "pack models.tar.zst --tracking-uri sqlite:///mlflow.db": (8, "exists", "pass --overwrite"),
    "pack sqlite:///mlflow.db --tracking-uri x": (2, "no archive", "ARCHIVE --tracking-uri sqlite"),
    "pack exim:x.tar.zst --tracking-uri sqlite:///mlflow.db": (2, "for MLflow", "write x.tar.zst"),
    "pack s3:b/x.tar.zst --tracking-uri sqlite:///mlflow.db": (
        2,
        "slash",
        "write s3://b/x.tar.zst",
    ),
    # Both ends.
    "unpack sqlite:///mlflow.db --tracking-uri models.tar.zst": (
        *(2, "no archive"),
        "write unpack ARCHIVE --tracking-uri sqlite:///mlflow.db",
    ),
    "unpack models.tar.zst --tracking-uri b.tar.zst": (2, "only read", "write pack b.tar.zst"),
    "unpack models.tar.zst --tracking-uri exim:b.tar.zst": (2, "only read", "write pack b.tar.zst"),
    "unpack models.tar.zst --tracking-uri mlflow.db": (2, "no URI", "write sqlite:///mlflow.db"),
    "unpack models.tar.zst --tracking-uri new.db": (2, "no URI", "write sqlite:///new.db"),
    "unpack models.tar.zst --tracking-uri h:5000": (2, "no scheme", "write http://h:5000"),
    "unpack runs.zip --tracking-uri sqlite:///mlflow.db": (4, "no archive", "write zip://FOLDER::"),
    "unpack notes --tracking-uri sqlite:///mlflow.db": (4, "no archive", "what pack wrote"),
    "unpack model.tar.zst --tracking-uri sqlite:///mlflow.db": (
        *(4, "does not exist"),
        "did you mean 'models.tar.zst'",
    ),
    "verify folder": (4, "is not a file", "name an archive"),
    "copy mlflow.db sqlite:///new.db": (4, "is a database", "write sqlite:///mlflow.db"),
    "copy sqlite:///gone.db sqlite:///new.db": (4, "no MLflow store", "check --tracking-uri"),
    "copy sqlite:///mlflow.db x.tar.zst": (2, "is an archive", "write pack x.tar.zst"),
    "copy sqlite:///mlflow.db sqlite:///mlflow.db": (
        2,
        "are both",
        "--experiment-name or --rename",
    ),
    "copy sqlite:///mlflow.db sqlite:///mlflow.db --rename a=b --preserve-ids": (
        *(2, "cannot keep its ids"),
        "leave --preserve-ids out",
    ),
    "copy models.tar.zst sqlite:///new.db --rename a": (4, "no file a", "write OLD=NEW"),
    "copy models.tar.zst sqlite:///new.db --rename a=": (2, "a name is empty", "write OLD=NEW"),
    "copy models.tar.zst sqlite:///new.db --rename a=b*": (2, "one *", "'/Users/a/*=/Users/b/*'"),
    "pack x --tracking-uri models.tar.zst -m iris --versions newest": (
        *(2, "is no version"),
        "stage:Production",
    ),
    "pack x --tracking-uri models.tar.zst --versions 3": (2, "none is named", "add -m NAME"),
    "diff models.tar.zst localhost:5000": (2, "no scheme", "write http://localhost:5000"),
    "ls sqlite:///mlflow.db": (2, "is a database", "pack ARCHIVE --tracking-uri URI"),
    "verify sqlite:///mlflow.db": (2, "is a database", "pack ARCHIVE --tracking-uri URI"),
    "convert sqlite:///mlflow.db x.tar.zst": (2, "is a database", "pack ARCHIVE"),
    # Names, and words of the command line.
    "pack x --tracking-uri minimal.tar.zst -e irsi": (4, "no experiment", "did you mean 'iris'?"),
    "pack x --tracking-uri models.tar.zst -m irsi": (
        4,
        "no registered model",
        "did you mean 'iris'?",
    ),
    "copy minimal.tar.zst sqlite:///new.db -e irsi": (4, "no experiment", "did you mean 'iris'?"),
    "unpack models.tar.zst --tracking-uri sqlite:///new.db -m irsi": (
        *(4, "no registered model"),
        "did you mean 'iris'?",
    ),
    "pack x --tracking-uri sqlite:///mlflow.db --since 2026-02-01 --until 2026-01-01": (
        *(2, "later than --until"),
        "exchange the two",
    ),
    "pack x --tracking-uri sqlite:///mlflow.db --since 31.01.2026": (2, "not a time", "2026-01-31"),
}
USAGE = {
    "pak x": "No such command 'pak'. Did you mean 'pack'?",
    "pack x --trackinguri sqlite:///mlflow.db": "Did you mean '--tracking-uri'?",
    "unpack models.tar.zst sqlite:///mlflow.db": "A server or store is given as --tracking-uri.",
    "pack": "Missing argument 'ARCHIVE', or option '--set'.",
}


class OtherServer(BaseHTTPRequestHandler):
    """Answers as a web server does that knows nothing of MLflow."""

    def do_GET(self) -> None:
        tls = self.path.startswith("/tls")
        self.send_response(400 if tls else 404)
        self.end_headers()
        what = "The plain HTTP request was sent to HTTPS port" if tls else "Not here"
        self.wfile.write(f"<html>{what}</html>".encode())

    do_POST = do_GET  # noqa: N815 - http.server's word

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), OtherServer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for name in ("models.tar.zst", "minimal.tar.zst"):
        shutil.copyfile(GOOD / name, tmp_path / name)
    shutil.copyfile(GOOD / "models.tar.zst", tmp_path / "b.tar.zst")
    new_sqlite_database(tmp_path / "mlflow.db")
    (tmp_path / "folder" / "mlruns" / "0").mkdir(parents=True)
    (tmp_path / "folder" / "mlruns" / "0" / "meta.yaml").touch()
    for name in ("notes", "notes.db"):
        (tmp_path / name).write_text("none of all these\n" * 500)
    with zipfile.ZipFile(tmp_path / "runs.zip", "w") as packed:
        packed.writestr("mlruns/0/meta.yaml", "")
    return tmp_path


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def call(line: str, port: int = 0) -> Result:
    line = line.replace("PORT", str(port)) if port and "HOST" not in line else line
    return CliRunner().invoke(exim, shlex.split(line.replace("CLOSED", str(closed_port()))))


def state(folder: Path) -> dict[str, tuple[int, int]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in files}


@pytest.mark.parametrize(("line", "expected"), SLIPS.items(), ids=SLIPS)
def test_a_slip_is_told_with_what_was_meant(
    line: str, expected: tuple[int, str, str], folder: Path, port: int
) -> None:
    exit_code, error, hint = expected
    before = state(folder)

    done = call(line, port)

    assert done.exit_code == exit_code, done.output
    *_, said, meant = done.stderr.splitlines()
    assert said.startswith("Error: ")
    assert error in said
    assert len(said) < 300
    assert meant.startswith("Hint: ")
    assert hint in meant
    assert "secret" not in done.output
    assert state(folder) == before


@pytest.mark.parametrize(("line", "message"), USAGE.items(), ids=USAGE)
@pytest.mark.usefixtures("folder")
def test_a_slip_in_the_words_is_told_in_both_formats(line: str, message: str) -> None:
    text, document = call(line), call(f"{line} --output json")

    assert text.exit_code == document.exit_code == 2
    assert message in text.stderr
    assert message in json.loads(document.stdout)["error"]["message"]


def test_names_with_colons_and_of_files_that_are_there_are_meant(folder: Path) -> None:
    for name in ("run:5.tar.zst", "backup-12:30.tar.zst", "localhost", "htpp:x"):
        shutil.copyfile(folder / "b.tar.zst", folder / name)
        assert call(f"verify '{name}'").exit_code == 0
    assert call("pack noon-12:30.tar.zst --tracking-uri b.tar.zst").exit_code == 0


def test_what_is_replaced_is_an_archive_or_empty(folder: Path) -> None:
    (folder / "empty").touch()
    (folder / "cut.tar.zst").write_bytes((folder / "b.tar.zst").read_bytes()[:100])
    for name in ("empty", "cut.tar.zst", "models.tar.zst", "new.tar.zst"):
        assert call(f"pack {name} --tracking-uri b.tar.zst --overwrite").exit_code == 0
        assert call(f"verify {name}").exit_code == 0


def test_a_server_that_is_down_is_told_at_once_and_waited_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")
    import mlflow  # what takes long the first time is not waiting

    assert mlflow
    began_s = time.time()

    with caplog.at_level(logging.INFO, "mlflow_exim_plugin"):
        done = call("pack x --tracking-uri http://127.0.0.1:CLOSED")

    assert (done.exit_code, (folder / "x").exists()) == (9, False)
    (told,) = [record for record in caplog.records if record.levelno == NOTICE]
    assert told.getMessage().endswith("(Connection refused): it is asked again in 2 s.")
    assert time.time() - told.created > 1.5 > told.created - began_s
