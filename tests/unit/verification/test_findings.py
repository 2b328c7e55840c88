"""An archive that is wrong a hundred thousand times is told so in a few lines and little memory."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from mlflow_exim_plugin import verify
from mlflow_exim_plugin.container.reader import ArchiveReader
from mlflow_exim_plugin.schema.rules import LIMITS, Limits
from mlflow_exim_plugin.verification.findings import MAX_FINDINGS
from samples.forging import Forgery
from tests.crafted import GENERATED
from tests.unit.container.crafting import MemorySource

ROOT = Path(__file__).parents[3]
GOOD = ROOT / "samples" / "v1" / "good" / "mlflow3.tar.zst"
MOST_KB = 300_000
MEASURED = """
import sys
from pathlib import Path
from mlflow_exim_plugin import verify
status = lambda: int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
verify(sys.argv[1])
import json, pyarrow.parquet
before = status()
result = verify(sys.argv[2])
print(json.dumps([status() - before, [[f.code, f.path, f.message] for f in result.findings]]))
"""


def bent(tmp_path: Path, end: str, times: int) -> Path:
    """Return an archive, a list of which names a number of things that are not there."""
    with ArchiveReader.from_source(MemorySource(GOOD.read_bytes())) as reader:
        members = {path: reader.read(path) for path in reader.paths() if path not in GENERATED}
    path = max(path for path in members if path.endswith(end))
    document = json.loads(members[path])
    if end == "experiment.json":
        document["mlflow"]["runs"] += [f"{n:032x}" for n in range(times)]
    else:
        entry = {"size_bytes": 1, "sha256": "0" * 64}
        document["info"]["artifacts"] = [
            {"path": f"a/{n}", "member": f"data/{n}", **entry} for n in range(times)
        ]
    members[path] = json.dumps(document).encode()
    payload = {path: data for path, data in members.items() if path.startswith("data/")}
    tags = {path: data for path, data in members.items() if path not in payload}
    file = tmp_path / "bent.tar.zst"
    file.write_bytes(Forgery(payload, tags).data())
    return file


@pytest.mark.parametrize(
    ("end", "times", "code"),
    [
        ("experiment.json", 99_000, "E056"),
        ("experiment.json", 400_000, "E056"),
        ("run.json", 90_000, "E054"),
        ("run.json", 101_000, "E054"),
    ],
)
def test_broken_references_are_counted(end: str, times: int, code: str, tmp_path: Path) -> None:
    file = bent(tmp_path, end, times)
    command = [sys.executable, "-c", MEASURED, str(GOOD), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    taken_kb, findings = json.loads(done.stdout)
    assert taken_kb < MOST_KB
    of_code = [finding for finding in findings if finding[0] == code]
    if times < 100_000:
        assert len(of_code) == MAX_FINDINGS + 1
        assert of_code[-1][2] == f"and {times - MAX_FINDINGS} more findings"
    else:
        assert len(of_code) == 1
        assert str(times)[:-2] in of_code[0][2]
    assert len(findings) < MAX_FINDINGS + 20


def test_the_page_on_security_has_the_limits() -> None:
    page = (ROOT / "docs" / "security.md").read_text()
    for of in fields(Limits):
        assert f"| `{of.name}` |" in page
        assert f"| {getattr(LIMITS, of.name)} |" in page
    assert verify(str(GOOD)).limits == {}
