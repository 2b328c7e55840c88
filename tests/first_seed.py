"""What the clients of the first servers would have put there, by plain HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

if TYPE_CHECKING:
    from pathlib import Path

    from tests.first_servers import FirstServer

__all__ = ["FILES", "MODEL", "SOURCE", "T0", "TAGS_OF_SOURCE", "fill", "register", "rows", "told"]

T0 = 1_600_000_000_000
FILES = {"folder/a.txt": b"hi", "b.bin": b"\x00\xff", "empty": b""}
SOURCE = {
    "source_type": "PROJECT",
    "source_name": "git://wine",
    "source_version": "0a1b2c",
    "entry_point_name": "main",
}
TAGS_OF_SOURCE = {
    "mlflow.source.type": "PROJECT",
    "mlflow.source.name": "git://wine",
    "mlflow.source.git.commit": "0a1b2c",
    "mlflow.project.entryPoint": "main",
    "mlflow.user": "ada",
}
MODEL = "m 'x"


def fill(server: FirstServer) -> list[str]:
    """Fill a server as its own clients would, and return the ids of its runs."""
    experiment_id = made(server.call("experiments/create", {"name": "wine"}))
    if server.age >= (0, 8):
        gone = made(server.call("experiments/create", {"name": "gone"}))
        server.call("experiments/delete", {"experiment_id": gone})
    run_ids = [add_run(server, experiment_id, i) for i in range(3)]
    if server.age >= (0, 8):
        server.call("runs/delete", {"run_id": run_ids[2]})
    return run_ids


def made(answer: dict[str, Any]) -> str:
    return str(answer.get("experiment_id") or answer["experimentId"])


def add_run(server: FirstServer, experiment_id: str, i: int) -> str:
    """Add a run with files, and return its id."""
    is_0x = server.age < (1, 0)
    asked: dict[str, Any] = {"experiment_id": experiment_id, "user_id": "ada", "start_time": T0 + i}
    asked["run_name"] = f"run {i}"
    if is_0x:
        asked |= SOURCE
    else:
        asked["tags"] = [{"key": "mlflow.runName", "value": f"run {i}"}]
    info = server.call("runs/create", asked)["run"]["info"]
    run = {server.run_id: info["run_uuid"]}
    for n in range(3):
        row: dict[str, Any] = {"key": "loss", "value": 1 / (n + 1), "timestamp": T0 + n, "step": n}
        if is_0x:  # whose clients gave seconds
            row |= {"timestamp": T0 // 1000 + n}
            del row["step"]
        server.call("runs/log-metric", run | row)
    server.call("runs/log-parameter", run | {"key": "lr", "value": f"{i}"})
    put_files(server.directory / urlsplit(info["artifact_uri"]).path)
    server.call("runs/update", run | {"status": "FINISHED", "end_time": T0 + 9})
    return str(info["run_uuid"])


def put_files(root: Path) -> None:
    for path, content in FILES.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


def register(server: FirstServer, run_id: str) -> None:
    """Make a registered model of two versions, the second of which is in production."""
    uri = told(server, run_id)["info"]["artifact_uri"]
    version = {"name": MODEL, "source": f"{uri}/folder", "run_id": run_id}
    if server.age < (1, 5):  # in the first form of them
        model = {"registered_model": {"name": MODEL}}
        server.call("registered-models/create", {"name": MODEL})
        server.call("registered-models/update", model | {"description": "text"}, "PATCH")
        for _ in range(2):
            server.call("model-versions/create", version)
        second = {"model_version": model | {"version": "2"}, "stage": "Production"}
        server.call("model-versions/update", second, "PATCH")
        return
    server.call("registered-models/create", {"name": MODEL})
    server.call("registered-models/update", {"name": MODEL, "description": "text"}, "PATCH")
    for _ in range(2):
        server.call("model-versions/create", version)
    stage = {"name": MODEL, "version": "2", "stage": "Production"}
    server.call("model-versions/transition-stage", {**stage, "archive_existing_versions": False})


def told(server: FirstServer, run_id: str) -> dict[str, Any]:
    """Return what a server says of a run."""
    found: dict[str, Any] = server.call(f"runs/get?{server.run_id}={run_id}")["run"]
    return found


def rows(server: FirstServer, run_id: str, key: str = "loss") -> list[tuple[float, int, int]]:
    """Return value, time and step of a run's metric as the server says them."""
    limit = "" if server.age < (0, 5) else "&max_results=100"
    query = f"{server.run_id}={run_id}&metric_key={quote(key)}{limit}"
    return [
        (float(row["value"]), int(row["timestamp"]), int(row.get("step", 0)))
        for row in server.call(f"metrics/get-history?{query}")["metrics"]
    ]
