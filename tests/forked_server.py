"""Forks ``mlflow server`` out of a process that has imported MLflow: a start takes 1 s, not 8.

Run as a program: each line of standard input is a JSON object with ``arguments`` (of ``mlflow``),
``directory``, ``environment`` and ``log``; each line of standard output is the process id of the
server that was started for it. The servers end with the program, which ends with its input.
"""

from __future__ import annotations

import functools
import gc
import importlib
import json
import os
import runpy
import signal
import sqlite3
import sys
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# All that a server imports.
_PRELOADED = ("mlflow.cli", "mlflow.server.fastapi_app", "uvicorn.lifespan.on")


def main() -> None:
    """Fork a server for each line of standard input."""
    replies = os.fdopen(os.dup(1), "w")
    for module in _PRELOADED:
        importlib.import_module(module)
    # What a server makes of its environment as it is imported it does in modules of mlflow.server.
    _forget_server()
    read = _read_by_import("mlflow.server.fastapi_app")
    remember_schema_revision()
    from sqlalchemy import Engine, event
    from sqlalchemy.orm import configure_mappers

    configure_mappers()
    event.listen(Engine, "connect", write_later)
    gc.freeze()  # what is shared stays shared
    gc.set_threshold(20_000, 20, 20)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them: no zombies
    started = []
    for line in sys.stdin:
        started.append(_start(read, **json.loads(line)))
        print(started[-1], file=replies, flush=True)
    for pid in started:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


def write_later(connection: Any, _: Any) -> None:
    """Do not wait for the disk: a test ends before the power does."""
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous = OFF")


def remember_schema_revision() -> None:
    """Find the newest revision of MLflow's schema once in a process, and not for each store.

    MLflow imports all its migrations for it, and these do not change.
    """
    from mlflow.store.db import utils

    if not hasattr(utils._get_latest_schema_revision, "cache_info"):
        utils._get_latest_schema_revision = functools.cache(utils._get_latest_schema_revision)
        utils._get_latest_schema_revision()


def _read_by_import(module: str) -> dict[str, str | None]:
    """Import a module and return what was read of the environment for it."""
    read: dict[str, str | None] = {}
    kind = type(os.environ)
    get = kind.__getitem__

    def noted(environ: os._Environ[str], name: str) -> str:
        read[name] = None
        read[name] = get(environ, name)
        return get(environ, name)

    kind.__getitem__ = noted  # type: ignore[method-assign]
    try:
        importlib.import_module(module)
    finally:
        kind.__getitem__ = get  # type: ignore[method-assign]
    return read


def _forget_server() -> None:
    for name in list(sys.modules):
        if f"{name}.".startswith("mlflow.server."):
            del sys.modules[name]


def _start(
    read: Mapping[str, str | None],
    arguments: list[str],
    directory: str,
    environment: dict[str, str],
    log: str,
) -> int:
    """Start a server as ``mlflow server`` does: a process that looks, then one that serves.

    Args:
        read: The environment that the modules of the server are imported for: with another one they
            are imported again.
        arguments: Of ``mlflow``.
        directory: Where it works.
        environment: All of its environment.
        log: Gets what it prints.

    Returns:
        The process that serves; where there is none, the one that has found out why.
    """

    def look() -> None:
        import_what_differs()
        import mlflow.server
        from mlflow.cli import cli

        mlflow.server._exec_cmd = tell
        cli(arguments, standalone_mode=False)

    def tell(command: list[str], *, extra_env: dict[str, str], **_: Any) -> None:
        os.write(told, json.dumps([command, extra_env]).encode())
        os._exit(0)

    def import_what_differs() -> None:
        if any(os.environ.get(name) != value for name, value in read.items()):
            _forget_server()

    def serve() -> None:
        import_what_differs()
        python, dash_m, module, *_ = command
        if (python, dash_m) != (sys.executable, "-m"):
            raise RuntimeError(f"mlflow server starts {command}")
        sys.argv = command[2:]
        runpy.run_module(module, run_name="__main__", alter_sys=True)

    reading, told = os.pipe()
    looking = _fork(look, directory, environment, log)
    os.close(told)
    with os.fdopen(reading) as pipe:
        answer = pipe.read()
    if not answer:
        return looking
    command, more = json.loads(answer)
    return _fork(serve, directory, environment | more, log)


def _fork(call: Callable[[], None], directory: str, environment: dict[str, str], log: str) -> int:
    """Call a function in a process of its own, which ends with it."""
    pid = os.fork()
    if pid:
        return pid
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()  # a process group that can be killed as a whole
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    status = 1
    try:
        call()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException as error:  # noqa: BLE001 - it ends here, as in any interpreter
        traceback.print_exception(error)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
