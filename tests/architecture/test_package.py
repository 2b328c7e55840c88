"""What is built is the same wherever it is built."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from uv import find_uv_bin

if TYPE_CHECKING:
    import pytest

ROOT = Path(__file__).parents[2]


def test_two_builds_of_a_wheel_are_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of folders with other names, modes and times of files, in other zones."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1790000000")
    built = []
    for name, mode, zone in (("one", 0o644, "UTC"), ("another", 0o600, "Asia/Kathmandu")):
        folder, out = tmp_path / name, tmp_path / f"{name}.out"
        source = folder / "mlflow_exim_plugin"
        shutil.copytree(
            ROOT / "mlflow_exim_plugin", source, ignore=shutil.ignore_patterns("__pycache__")
        )
        for file in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copyfile(ROOT / file, folder / file)
        for path in folder.rglob("*.*"):
            if path.is_file():
                path.chmod(mode)
                path.touch()
        monkeypatch.setenv("TZ", zone)
        subprocess.run(
            [find_uv_bin(), "build", "-q", "--wheel", "-o", str(out), str(folder)], check=True
        )
        [wheel] = out.glob("*.whl")
        built.append((wheel.name, wheel.read_bytes()))
    assert built[0] == built[1]
