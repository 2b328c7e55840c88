"""An archive may say what it likes: it is refused by rule, in time and memory, touching nothing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from samples.forging import Forgery
from tests.crafted import GENERATED
from tests.hostile import WAYS, good, verdict

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.property

SEEDS = range(int(os.environ.get("TEST_HOSTILE", "6")))
FOUND = [("tables", 16), ("tables", 480), ("tables", 571), ("tables", 643)]
"""What brought a reader down once."""


@pytest.mark.parametrize("way", WAYS)
def test_whatever_is_bent_is_refused_or_harmless(way: str) -> None:
    found = {seed: verdict(way, seed) for seed in SEEDS}
    assert {seed: one.problem for seed, one in found.items() if one.problem} == {}


@pytest.mark.parametrize(("way", "seed"), FOUND)
def test_what_was_found_once_stays_mended(way: str, seed: int) -> None:
    assert verdict(way, seed).problem == ""


def test_good_archives_are_accepted() -> None:
    """... or all of the above would hold of a reader that refuses everything."""
    from tests.hostile import GOOD, _is_accepted

    assert all(_is_accepted(good(number).data) for number in range(len(GOOD)))


PLACES = re.compile(
    rb'("(?:artifact_uri|artifact_location|source|storage_location|uri|schema|profile|member)": )'
    rb'"[^"]*"'
)
CHILD = """
import sys
from pathlib import Path
from mlflow_exim_plugin.container.reader import ArchiveReader
from tests.hostile import _is_accepted, _read_all
from mlflow_exim_plugin import open_archive, verify
from mlflow_exim_plugin.errors import EximError

def read(path):
    try:
        verify(path, jobs=2)
        with open_archive(path) as archive:
            _read_all(archive)
            for run in archive.runs():
                for entry in run.info.artifacts:
                    try:
                        archive.open_artifact(run.mlflow.run["info"]["run_id"], entry.path).read()
                    except EximError:
                        pass
    except EximError as error:
        print("refused", error)

good, *hostile = sys.argv[1:]
read(good)  # all modules are imported then
read(hostile[0])
seen = []

def watch(event, arguments):
    if event == "open" and str(arguments[0]) in hostile:
        return
    if event.partition(".")[0] in WATCHED or event in {"open", "exec", "compile"}:
        seen.append((event, repr(arguments)[:200]))

WATCHED = {
    *("os", "socket", "subprocess", "shutil", "tempfile", "pathlib", "glob", "ctypes", "import"),
    *("marshal", "pickle", "urllib", "http", "ftplib", "webbrowser", "sqlite3", "pty", "mmap"),
}
sys.addaudithook(watch)
for path in hostile:
    read(path)
print("seen", seen)
code = bool(seen)
Path(good).open("rb").close()
assert seen, "nothing would have been seen"
sys.exit(code)
"""


def test_reading_opens_nothing_but_the_archive(tmp_path: Path) -> None:
    """No file, socket or process, whatever places its documents name."""
    (tmp_path / "bait").mkdir()
    (tmp_path / "bait" / "private").write_bytes(b"secret")
    members = {p: d for p, d in good(2).members.items() if p not in GENERATED}
    paths = []
    for number, place in enumerate(
        [
            f"file://{tmp_path}/bait/private",
            f"{tmp_path}/bait/private",
            "http://127.0.0.1:9/x",
            "s3://bucket/key",
            "../../../bait/private",
            "mlflow-artifacts:/../../bait",
        ]
    ):
        said = json.dumps(place).encode()
        bent = {
            path: PLACES.sub(rb"\1" + said.replace(b"\\", rb"\\"), data)
            if path.endswith(".json") and "/artifacts/" not in path
            else data
            for path, data in members.items()
        }
        assert bent != members
        payload = {path: data for path, data in bent.items() if path.startswith("data/")}
        tags: dict[str, bytes | None] = {p: d for p, d in bent.items() if p not in payload}
        path = tmp_path / f"{number}.tar.zst"
        path.write_bytes(Forgery(payload, tags=tags).data())
        paths.append(str(path))
    good_copy = tmp_path / "good.tar.zst"
    good_copy.write_bytes(good(2).data)

    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(good_copy), *paths],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )

    assert done.stdout.splitlines()[-1:] == ["seen []"], done.stdout + done.stderr
    assert done.returncode == 0
