"""Servers that today's MLflow no longer starts, or only in its own way: called by plain HTTP."""

from __future__ import annotations

import json
import shutil
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uv import find_uv_bin

from tests import servers
from tests.servers import CACHE, REQUIREMENTS, Server, locked, start_server

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["VERSIONS", "FirstServer", "start_first_server"]

FOLDER = REQUIREMENTS / "first"
PREVIEW = "/api/2.0/preview/mlflow"
_NEWER = {"2.22.5", "3.1.4", "this"}
"""Started as all other servers of the tests are."""


def by_age(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split("."))) if version != "this" else (9,)


VERSIONS = sorted({Path(file).stem for file in FOLDER.glob("*.txt")} | _NEWER, key=by_age)
_SHIM = """\
import mlflow.server.handlers
from mlflow.store.file_store import FileStore
mlflow.server.handlers.store = FileStore("mlruns")
from mlflow.server import app
"""
"""There was no command for a server yet: ``mlflow ui`` set this by hand."""


class FirstServer:
    """A running server, called as its own clients did."""

    def __init__(self, server: Server, version: str) -> None:
        self.url = server.url
        self.directory = server.directory
        self.stop = server.stop
        self.version = version
        self.age = by_age(version)
        self.api = PREVIEW if self.age < (1, 0) else "/api/2.0/mlflow"
        # The registry came as a preview.
        self.registry = PREVIEW if self.age < (1, 9) else self.api

    @property
    def run_id(self) -> str:
        """What the id of a run is called."""
        return "run_uuid" if self.age < (1, 0) else "run_id"

    def call(
        self, endpoint: str, body: Mapping[str, Any] | None = None, method: str | None = None
    ) -> dict[str, Any]:
        """GET an endpoint, or POST a body to it, and return its answer."""
        api = self.registry if endpoint.startswith(("registered-", "model-")) else self.api
        data = None if body is None else json.dumps(body)
        if data is not None and self.age < (0, 4):
            data = json.dumps(data)  # its own clients did it twice
        request = urllib.request.Request(
            f"{self.url}{api}/{endpoint}",
            data=None if data is None else data.encode(),
            headers={"Content-Type": "application/json"},
            method=method,
        )
        with urllib.request.urlopen(request) as answer:
            found: dict[str, Any] = json.load(answer)
        return found


def start_first_server(
    version: str, directory: Path, *, of_files: bool = False, hands_files_out: bool = False
) -> FirstServer:
    """Start a server, with its files in a folder of this machine.

    Args:
        version: One of ``VERSIONS``.
        directory: Where all is kept.
        of_files: Whether its store is a folder, as all were before 0.9, and no SQLite database.
        hands_files_out: Whether clients get files through it, as they can since 1.23.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if version in _NEWER:
        mlflow_version = None if version == "this" else version
        store = str(directory / "mlruns") if of_files else None
        started = start_server(
            directory,
            mlflow_version=mlflow_version,
            backend_store_uri=store,
            serve_artifacts=False,
        )
        return FirstServer(started, version)
    python = _python(version)
    port, port_lock = servers.claim_port()
    of_files = of_files or by_age(version) < (1, 0)
    store = str(directory / "mlruns") if of_files else f"sqlite:///{directory}/mlflow.db"
    # One that is below the server's own folder is where nobody else finds it.
    files = "files" if by_age(version) < (1, 0) else str(directory / "files")
    environment = servers._server_environment(python)
    for prefix in ("MLFLOW_SERVER", "_MLFLOW_SERVER"):
        environment[f"{prefix}_FILE_STORE"] = store
        environment[f"{prefix}_ARTIFACT_ROOT"] = files
    environment["_MLFLOW_SERVER_REGISTRY_STORE"] = store
    if hands_files_out:
        environment["_MLFLOW_SERVER_SERVE_ARTIFACTS"] = "true"
        environment["_MLFLOW_SERVER_ARTIFACT_DESTINATION"] = files
        environment["_MLFLOW_SERVER_ARTIFACT_ROOT"] = "mlflow-artifacts:/"
    (directory / "first_app.py").write_text(_SHIM)
    app = "first_app:app" if by_age(version) < (0, 2) else "mlflow.server:app"
    command = [
        str(python),
        "-m",
        "gunicorn",
        "-b",
        f"127.0.0.1:{port}",
        "-w",
        "1",
        "--timeout",
        "120",
        app,
    ]
    if by_age(version) >= (2, 20):
        command = [str(python), "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
        command += ["--backend-store-uri", store]
        command += (
            ["--artifacts-destination", files]
            if hands_files_out
            else ["--default-artifact-root", files, "--no-serve-artifacts"]
        )
    executed = servers._execute(command, directory, environment, directory / "server.log")
    url = f"http://127.0.0.1:{port}"
    server = Server(url, directory, store, executed.pid, executed, port, port_lock)
    first = FirstServer(server, version)
    # It makes its database too, with all of its migrations.
    deadline = time.monotonic() + 2 * servers.START_TIMEOUT_SECONDS
    while True:
        try:
            first.call("experiments/get?experiment_id=0")
        except (urllib.error.URLError, ConnectionError):
            if not server.is_running or time.monotonic() > deadline:
                server.stop()
                raise RuntimeError(f"MLflow {version} did not answer:\n{server.log}") from None
            time.sleep(0.1)
        else:
            return first


def _python(version: str) -> Path:
    """Return an interpreter with an MLflow that knows nothing of what it is installed beside."""
    directory = CACHE / version / "venv"
    python = directory / "bin" / "python"
    with locked(directory.with_suffix(".lock")):
        if not (directory / "complete").exists():
            shutil.rmtree(directory, ignore_errors=True)
            uv = find_uv_bin()
            servers._run(uv, "venv", "--quiet", "--python", "3.11", str(directory))
            install = [uv, "pip", "install", "--quiet", "-p", str(python)]
            servers._run(*install, "-r", str(FOLDER / f"{version}.txt"))
            servers._run(*install, "--no-deps", f"mlflow=={version}")
            (directory / "complete").touch()
    return python
