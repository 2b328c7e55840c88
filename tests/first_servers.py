"""Servers of MLflow 1, which today's MLflow no longer starts: by the program that served them."""

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
from tests.servers import CACHE, REQUIREMENTS, Server, locked

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["API", "VERSIONS", "FirstServer", "start_first_server"]

API = "/api/2.0/mlflow"
FOLDER = REQUIREMENTS / "first"
VERSIONS = sorted(Path(file).stem for file in FOLDER.glob("*.txt"))


class FirstServer:
    """A running server, called as its own clients did."""

    def __init__(self, server: Server) -> None:
        self.url = server.url
        self.stop = server.stop

    def call(self, endpoint: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """GET an endpoint, or POST a body to it, and return its answer."""
        request = urllib.request.Request(
            f"{self.url}{API}/{endpoint}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as answer:
            found: dict[str, Any] = json.load(answer)
        return found


def start_first_server(version: str, directory: Path) -> FirstServer:
    """Start a server on a new SQLite database, with its files in a folder of this machine."""
    directory.mkdir(parents=True, exist_ok=True)
    python = _python(version)
    port, port_lock = servers._claim_port()
    database, files = f"sqlite:///{directory}/mlflow.db", str(directory / "artifacts")
    environment = servers._server_environment(python) | {
        "_MLFLOW_SERVER_FILE_STORE": database,
        "_MLFLOW_SERVER_REGISTRY_STORE": database,
        "_MLFLOW_SERVER_ARTIFACT_ROOT": files,
    }
    command = [str(python), "-m", "gunicorn", "-b", f"127.0.0.1:{port}", "-w", "1"]
    log = directory / "server.log"
    executed = servers._execute([*command, "mlflow.server:app"], directory, environment, log)
    url = f"http://127.0.0.1:{port}"
    server = Server(url, directory, database, executed.pid, executed, port, port_lock)
    first = FirstServer(server)
    deadline = time.monotonic() + servers.START_TIMEOUT_SECONDS
    while True:
        try:
            first.call("experiments/list")
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
