"""Real MLflow servers on loopback: this interpreter's MLflow, or an old one in its own venv."""

from __future__ import annotations

import fcntl
import functools
import http.client
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version as installed_version
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pytest
from uv import find_uv_bin

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType

    from typing_extensions import Self

__all__ = [
    "CACHE",
    "Server",
    "claim_port",
    "is_listened_to",
    "locked",
    "mlflow_python",
    "new_sqlite_database",
    "old_versions",
    "start_server",
    "wait_for_port",
]

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlflow-exim-tests"
REQUIREMENTS = Path(__file__).parent / "servers_requirements"
START_TIMEOUT_SECONDS = 120.0
_NOT_OF_SERVERS = {
    *("PYTHONPATH", "MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"),
    # Of what is installed beside an old MLflow little is imported: that is compiled once, and kept.
    "PYTHONDONTWRITEBYTECODE",
}


@dataclass
class Server:
    """A running ``mlflow server``; as a context manager it stops at the end."""

    url: str
    directory: Path
    backend_uri: str
    pid: int
    # None: it was forked, and is no child of this process.
    _executed: subprocess.Popen[bytes] | None = field(repr=False)
    _port: int = field(repr=False)
    _port_lock: IO[str] = field(repr=False)

    @property
    def log(self) -> str:
        """What the server has printed so far."""
        return (self.directory / "server.log").read_text(errors="replace")

    def stop(self) -> None:
        """Kill the server and its workers, which outlive it when only the parent is told to end."""
        with suppress(ProcessLookupError):  # it may have ended by itself
            os.killpg(self.pid, signal.SIGKILL)
        while self.is_running or is_listened_to(self._port):
            time.sleep(0.01)  # neither it nor its workers are ours to wait for
        self._port_lock.close()

    @property
    def is_running(self) -> bool:
        """Whether the process is there."""
        if self._executed is not None:
            return self._executed.poll() is None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


def start_server(
    directory: Path,
    *,
    mlflow_version: str | None = None,
    backend_store_uri: str | None = None,
    serve_artifacts: bool = True,
    artifacts_destination: str | None = None,
    env: Mapping[str, str] | None = None,
    workers: int = 1,
) -> Server:
    """Start ``mlflow server`` and wait until it answers.

    Args:
        directory: Where the database, the artifacts and ``server.log`` are kept; made if absent. A
            second server on the same directory continues with the first one's data.
        mlflow_version: ``"2.22.5"`` and the like: any that has a file in ``servers_requirements``.
            None is this interpreter's MLflow.
        backend_store_uri: None is ``mlflow.db`` in the directory.
        serve_artifacts: Through the server; False gives clients the destination itself.
        artifacts_destination: None is ``artifacts`` in the directory.
        env: Additions to the server's environment.
        workers: Server processes.

    Raises:
        RuntimeError: It ended or did not answer in time; the message holds its log.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if backend_store_uri is None:
        database = directory / "mlflow.db"
        if not database.exists():
            new_sqlite_database(database, mlflow_version)
        backend_store_uri = f"sqlite:///{database}"
    artifacts = artifacts_destination or str(directory / "artifacts")
    python = mlflow_python(mlflow_version)
    port, port_lock = claim_port()
    arguments = ["server", "--host", "127.0.0.1", "--port", str(port), "--workers", str(workers)]
    arguments += ["--backend-store-uri", backend_store_uri]
    if serve_artifacts:
        arguments += ["--serve-artifacts", "--artifacts-destination", artifacts]
    else:
        arguments += ["--no-serve-artifacts", "--default-artifact-root", artifacts]
    environment = _server_environment(python) | dict(env or {})
    log = directory / "server.log"
    executed = None
    # What an interpreter reads when it starts needs one that starts.
    asks_interpreter = any(name.startswith("PYTHON") for name in env or ())
    if mlflow_version is None and workers == 1 and not asks_interpreter and _runs_uvicorn():
        pid = _fork(arguments, directory, environment, log)
    else:
        command = [str(python), "-m", "mlflow", *arguments]
        executed = _execute(command, directory, environment, log)
        pid = executed.pid
    url = f"http://127.0.0.1:{port}"
    server = Server(url, directory, backend_store_uri, pid, executed, port, port_lock)
    try:
        _wait_until_healthy(server, port)
    except BaseException:
        server.stop()
        raise
    return server


def _execute(
    command: list[str], directory: Path, environment: Mapping[str, str], log: Path
) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a process group that can be killed as a whole
        )


def _fork(arguments: list[str], directory: Path, environment: Mapping[str, str], log: Path) -> int:
    order = {
        "arguments": arguments,
        "directory": str(directory),
        "environment": dict(environment),
        "log": str(log),
    }
    forking = _forking_process()
    assert forking.stdin is not None
    assert forking.stdout is not None
    forking.stdin.write(json.dumps(order) + "\n")
    forking.stdin.flush()
    return int(forking.stdout.readline())


@functools.cache
def _runs_uvicorn() -> bool:
    """Whether this interpreter's MLflow does: MLflow 2 runs gunicorn, a program."""
    mlflow = find_spec("mlflow")
    assert mlflow is not None
    assert mlflow.origin is not None
    return Path(mlflow.origin).with_name("server").joinpath("fastapi_app.py").exists()


@functools.cache
def _forking_process() -> subprocess.Popen[str]:
    """Start ``forked_server.py``, which ends with this process."""
    return subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("forked_server.py"))],
        env=_server_environment(Path(sys.executable)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def mlflow_python(mlflow_version: str | None) -> Path:
    """Return the interpreter that has this MLflow; a venv for it is made on first use."""
    if mlflow_version in {None, installed_version("mlflow")}:
        return Path(sys.executable)
    directory = CACHE / str(mlflow_version) / "venv"
    python = directory / "bin" / "python"
    with locked(directory.with_suffix(".lock")):
        if not (directory / "complete").exists():
            shutil.rmtree(directory, ignore_errors=True)
            uv = find_uv_bin()
            _run(uv, "venv", "--quiet", "--python", sys.executable, str(directory))
            install = [uv, "pip", "install", "--quiet", "-p", str(python)]
            _run(*install, "-r", str(REQUIREMENTS / f"{mlflow_version}.txt"))
            # What is put over it without what it asks for.
            alone = REQUIREMENTS / "no_deps" / f"{mlflow_version}.txt"
            if alone.exists():
                _run(*install, "--no-deps", "-r", str(alone))
            (directory / "complete").touch()
    return python


def old_versions(first: str, *others: str) -> list[Any]:
    """Return versions as parameters: one is tried by default, the others by ``generations``."""
    return [first, *(pytest.param(version, marks=pytest.mark.generations) for version in others)]


def new_sqlite_database(path: Path, mlflow_version: str | None = None) -> None:
    """Write the empty database of an MLflow version, as MLflow itself creates it.

    MLflow runs all its migrations for a new database, which takes seconds: it is asked once, later
    calls copy the result. The default experiment is left to the server, which knows its artifacts.
    """
    name = mlflow_version or installed_version("mlflow")
    template = CACHE / name / "empty.db"
    with locked(template.with_suffix(".lock")):
        if not template.exists():
            unfinished = template.with_suffix(".new")
            unfinished.unlink(missing_ok=True)
            python = mlflow_python(mlflow_version)
            _run(
                str(python),
                "-c",
                "import sys, sqlite3\n"
                "from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore\n"
                "SqlAlchemyStore('sqlite:///' + sys.argv[1], '/').engine.dispose()\n"
                "with sqlite3.connect(sys.argv[1]) as database:\n"
                "    database.execute('DELETE FROM experiments')\n",
                str(unfinished),
                env=_server_environment(python),
            )
            unfinished.replace(template)
    shutil.copyfile(template, path)


def _server_environment(python: Path) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if name not in _NOT_OF_SERVERS}
    return environment | {
        # Old MLflow finds gunicorn on the PATH.
        "PATH": f"{python.parent}{os.pathsep}{environment.get('PATH', os.defpath)}",
        "PYTHONWARNINGS": "ignore",
        "GIT_PYTHON_REFRESH": "quiet",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        # Without one each server makes a key of its own, as it imports MLflow, and a copy of its
        # database is unreadable to others.
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
    }


def _run(*command: str, env: Mapping[str, str] | None = None) -> None:
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed:\n{done.stdout}{done.stderr}")


def _wait_until_healthy(server: Server, port: int) -> None:
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        if not server.is_running:
            raise RuntimeError(f"mlflow server ended at once:\n{server.log}")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/health")
            if connection.getresponse().status == http.HTTPStatus.OK:
                return
        except (OSError, http.client.HTTPException):
            time.sleep(0.05)  # not listening yet
        finally:
            connection.close()
    raise RuntimeError(f"mlflow server did not answer in time:\n{server.log}")


def wait_for_port(port: int, process: subprocess.Popen[Any] | None = None) -> None:
    """Wait until a server listens.

    Args:
        port: Of 127.0.0.1.
        process: The server's, which may end instead.
    """
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while not is_listened_to(port):
        if process is not None and process.poll() is not None:
            raise RuntimeError(f"the server ended at once: {process.args!r}")
        if time.monotonic() > deadline:
            raise RuntimeError(f"nothing listens to port {port}")
        time.sleep(0.02)


def is_listened_to(port: int) -> bool:
    """Whether somebody takes connections to a port of 127.0.0.1."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


def claim_port() -> tuple[int, IO[str]]:
    """Find a free port and keep it from the other test processes while the file is open."""
    claims = Path(tempfile.gettempdir()) / "mlflow-exim-test-ports"
    claims.mkdir(exist_ok=True)
    # Below the range that systems give to outgoing connections.
    candidates = list(range(20000, 30000))
    random.SystemRandom().shuffle(candidates)
    for port in candidates:
        claim = (claims / str(port)).open("w")
        try:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:  # another test's, or another program's
            claim.close()
        else:
            return port, claim
    raise RuntimeError("no free port")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep a file locked: the other test processes wait for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
