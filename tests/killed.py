"""Processes that are killed while they write a file."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

__all__ = ["kill_a_writer"]

_WRITER = """
import json, os, signal, sys
from mlflow_exim_plugin.storage.output import atomic_output
with atomic_output(sys.argv[1], storage_options=json.loads(sys.argv[2])) as file:
    file.write(bytes(20 << 20))
    file.write(bytes(20 << 20))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def kill_a_writer(url: str, options: dict[str, Any]) -> None:
    """Have a process write 40 MiB to a file on a store, and die before its end."""
    command = [sys.executable, "-c", _WRITER, url, json.dumps(options)]
    assert subprocess.run(command, check=False).returncode == -9
