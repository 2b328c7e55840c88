"""Forks ``mlflow server`` out of a process that has imported MLflow: a start takes 1 s, not 8.

Run as a program: each line of standard input is a JSON object with ``arguments`` (of ``mlflow``),
``directory``, ``environment`` and ``log``; each line of standard output is the process id of the
server that was started for it. The servers end with the program, which ends with its input.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import sys
import traceback
from contextlib import suppress
from typing import Any

# All that a server imports. What it makes of its environment it does in modules of mlflow.server,
# and so each server imports these again.
_PRELOADED = ("mlflow.cli", "mlflow.server.fastapi_app", "uvicorn.lifespan.on")


def main() -> None:
    """Fork a server for each line of standard input."""
    replies = os.fdopen(os.dup(1), "w")
    for module in _PRELOADED:
        importlib.import_module(module)
    _forget_server_modules()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them: no zombies
    started = []
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _serve(**json.loads(line))
        started.append(pid)
        print(pid, file=replies, flush=True)
    for pid in started:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


def _serve(arguments: list[str], directory: str, environment: dict[str, str], log: str) -> None:
    """Become the server, as if ``python -m mlflow`` had been executed."""
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
        import mlflow.server
        from mlflow.cli import cli

        mlflow.server._exec_cmd = _exec_cmd
        cli(arguments, standalone_mode=False)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException as error:  # noqa: BLE001 - it ends here, as in any interpreter
        traceback.print_exception(error)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _exec_cmd(command: list[str], *, extra_env: dict[str, str], **_: Any) -> None:
    """Run in this process what ``mlflow server`` would start another interpreter for."""
    python, dash_m, module, *_rest = command
    if (python, dash_m) != (sys.executable, "-m"):
        raise RuntimeError(f"mlflow server starts {command}")
    os.environ.update(extra_env)
    _forget_server_modules()
    sys.argv = command[2:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _forget_server_modules() -> None:
    for name in list(sys.modules):
        if f"{name}.".startswith("mlflow.server."):
            del sys.modules[name]


if __name__ == "__main__":
    main()
