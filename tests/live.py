"""``mlflow exim serve`` in a process of its own, and what differs between two servers' answers."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.processes import new_process

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["served", "with_owners"]

_STARTS_S = 120
_ADDRESS = re.compile(r"Served read only at (http://\S+)")
_OF_OWNER = re.compile(r"(?:runs:/|models:/(?=m-))([^/]+)(.*)")
_PLACE = "mlflow-artifacts:/"
_OF_PROMPTS = f"{_PLACE}data/prompts/"
_DOWNLOAD = "GET /api/2.0/mlflow-artifacts/artifacts/"


@contextmanager
def served(folder: Path, *archives: str) -> Iterator[str]:
    """Serve archives, give the address, and end it as Ctrl-C does.

    Args:
        archives: Path or URL of each.
        folder: Where the process is at home, with its cache and what it prints.
    """
    folder.mkdir(parents=True, exist_ok=True)
    printed = folder / "printed.txt"
    process = new_process(_serve, archives, str(folder), dict(os.environ))
    process.start()
    until = time.monotonic() + _STARTS_S
    while not (found := _ADDRESS.search(printed.read_text() if printed.exists() else "")):
        assert process.is_alive(), printed.read_text()
        assert time.monotonic() < until, printed.read_text()
        time.sleep(0.05)
    try:
        yield found[1]
    finally:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGINT)
        process.join(30)
        assert process.exitcode == 0, printed.read_text()


def _serve(archives: tuple[str, ...], folder: str, environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    home = Path(folder, "home")
    home.mkdir(exist_ok=True)
    os.chdir(home)
    os.dup2(os.open(Path(folder, "printed.txt"), os.O_WRONLY | os.O_CREAT, 0o600), 1)
    os.dup2(1, 2)
    sys.stdout = sys.stderr = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    from mlflow_exim_plugin.cli.main import exim
    from mlflow_exim_plugin.cli.process import OwnProcess

    signal.signal(signal.SIGINT, signal.default_int_handler)
    command = ["serve", *archives, "--port", "0", "--cache-dir", str(Path(folder, "cache"))]
    exim.main(command, prog_name="mlflow-exim", obj=OwnProcess())


def with_owners(*servers: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield what each of some servers answered with owners in the place of places of files."""
    replies = [reply for answers in servers for _, reply in answers.values()]
    places = {place: owner for reply in replies for owner, place in _owners(reply)}
    for answers in servers:
        yield {
            _about_owner(question, places): (status, _replaced(reply, places))
            for question, (status, reply) in answers.items()
        }


def _about_owner(question: str, places: dict[str, str]) -> str:
    if not question.startswith(_DOWNLOAD):
        return question
    return _DOWNLOAD + _owner(_PLACE + question.removeprefix(_DOWNLOAD), places)


def _owners(value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, list):
        for inner in value:
            yield from _owners(inner)
    elif isinstance(value, dict):
        place = value.get("artifact_uri")
        owner = value.get("run_id") or value.get("model_id")
        if place and owner:
            yield owner, place
        tags = value.get("tags")
        if "trace_id" in value and isinstance(tags, dict) and "mlflow.artifactLocation" in tags:
            yield value["trace_id"], tags["mlflow.artifactLocation"]
        for inner in value.values():
            yield from _owners(inner)


def _replaced(value: Any, places: dict[str, str]) -> Any:
    if isinstance(value, list):
        return [_replaced(inner, places) for inner in value]
    if isinstance(value, dict):
        return {key: _replaced(inner, places) for key, inner in value.items()}
    if isinstance(value, str) and value.startswith(_OF_PROMPTS):
        return "dummy-source"  # what MLflow itself says of prompts, which have no files
    if isinstance(value, str) and value.startswith(_PLACE):
        return _owner(value, places)
    if isinstance(value, str) and (named := _OF_OWNER.fullmatch(value)):
        return f"<{named[1]}>{named[2]}"
    if isinstance(value, str) and value[:1] in "{[" and _PLACE in value:
        return json.dumps(_replaced(json.loads(value), places))
    return value


def _owner(place: str, places: dict[str, str]) -> str:
    folder = place
    while folder:
        if folder in places:
            return f"<{places[folder]}>{place[len(folder) :]}"
        folder = folder.rpartition("/")[0]
    return place
