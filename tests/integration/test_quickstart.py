"""README's first command does what README says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.compat]

QUICKSTART = Path(__file__).parents[2] / "samples" / "quickstart.py"


def test_quickstart(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")

    done = subprocess.run(
        [sys.executable, str(QUICKSTART), str(tmp_path / "folder")],
        env=os.environ | {"PYTHONWARNINGS": "ignore", "GIT_PYTHON_REFRESH": "quiet"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    commands = [line.split()[3] for line in lines if line.startswith("$ mlflow exim ")]
    assert commands == ["pack", "ls", "verify", "unpack"]
    compared = lines[lines.index("Laptop and team, as MLflow reads them:") + 1 :]
    assert len(compared) == 7
    assert all(line.endswith("  equal") for line in compared)
    assert (tmp_path / "folder" / "backup.tar.zst").exists()
    assert "Traceback" not in done.stderr
