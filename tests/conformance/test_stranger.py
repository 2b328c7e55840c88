"""A reader in another language, written from the text alone, says of every archive what we say."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mlflow_exim_plugin import errors, verify
from samples import generate, run_conformance
from tests.conformance.test_more_faults import FAULTS
from tests.far_stores import absent
from tests.servers import CACHE, locked
from tests.unit.verification.test_container_rules import BROKEN

ROOT = Path(generate.__file__).resolve().parents[1]
SOURCES = ROOT / "samples" / "readers" / "javascript"
HEAVY = {"many values", "a long text", "large row group", "a long key many times"}
"""Faults that take seconds to read, and are other faults' kin."""
MAY_DIFFER = {"keys by their difference"}
"""What a reader may refuse and need not."""
OWN_CHECKER = """
import sys
from mlflow_exim_plugin import errors, verify
for line in sys.stdin:
    try:
        found = verify(line.rstrip("\\n")).findings
    except errors.EximError as error:
        found = error.findings
    print(*{finding.code for finding in found}, flush=True)
"""


@pytest.fixture(scope="session")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reader's sources, with the packages that it needs beside them."""
    if (npm := shutil.which("npm")) is None or shutil.which("node") is None:
        absent("node, with npm")
    lock = (SOURCES / "package-lock.json").read_bytes()
    packages = CACHE / f"stranger-{hashlib.sha256(lock).hexdigest()[:16]}"
    with locked(CACHE / "stranger.lock"):
        if not (packages / "done").exists():
            packages.mkdir(parents=True, exist_ok=True)
            for name in ("package.json", "package-lock.json"):
                shutil.copy(SOURCES / name, packages)
            command = [str(npm), "ci", "--silent", "--no-fund", "--no-audit", "--ignore-scripts"]
            subprocess.run(command, cwd=packages, check=True, stdout=subprocess.DEVNULL)
            (packages / "done").touch()
    folder = tmp_path_factory.mktemp("stranger")
    (folder / "spec").symlink_to(ROOT / "spec")
    made = folder / "samples" / "readers" / "javascript"
    shutil.copytree(SOURCES / "src", made / "src")
    shutil.copy(SOURCES / "package.json", made)
    (made / "node_modules").symlink_to(packages / "node_modules")
    return made / "src"


def answers(reader: Path, command: str, paths: list[Path]) -> list[str]:
    asked = "".join(f"{path}\n" for path in paths)
    done = subprocess.run(
        ["node", str(reader / "main.js"), command, "--stream"],
        input=asked,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def conformance(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, run_conformance.__file__, *command],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_stranger_finds_the_codes_of_every_sample(reader: Path) -> None:
    done = conformance("--stream", "node", str(reader / "main.js"), "codes", "--stream")
    count = len(run_conformance.expected())
    assert done.stdout == f"{count} of {count} samples as expected\n"
    assert done.returncode == 0


def test_our_own_checker_passes_the_same_way() -> None:
    done = conformance("--stream", sys.executable, "-c", OWN_CHECKER)
    assert done.returncode == 0, done.stdout


def test_a_checker_that_misses_something_fails(tmp_path: Path) -> None:
    """Called for one archive after the other, it finds E001 in all of them."""
    pack = tmp_path / "samples"
    for path in ("good/minimal.tar.zst", "bad/E001_path_relative", "warn/W020_unnamed_member"):
        there = ROOT / "samples" / "v1" / path
        copy = shutil.copytree if there.is_dir() else shutil.copy
        (pack / "v1" / path).parent.mkdir(parents=True, exist_ok=True)
        copy(there, pack / "v1" / path)
    runner = shutil.copy(run_conformance.__file__, pack)
    command = [sys.executable, str(runner), "sh", "-c", "test -f $0 && echo E001"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "good/minimal.tar.zst: expected nothing, found E001",
        "warn/W020_unnamed_member/archive.tar.zst: expected W020, found E001",
        "1 of 3 samples as expected",
    ]


def test_the_stranger_reads_what_we_read(reader: Path) -> None:
    folder = ROOT / "samples" / "v1"
    paths = [*folder.glob("good/*.tar.zst"), *folder.glob("written-by/*/archive.tar.zst")]
    for path, line in zip(paths, answers(reader, "contents", paths), strict=True):
        stored = path.with_name("expected.json")
        ours = generate.expected_content(path.read_bytes())
        if stored.exists():
            ours = {**ours, **json.loads(stored.read_text("utf-8"))}
        theirs = json.loads(line)
        for key in ("codes", "root", "content_root", "members", "histories"):
            assert theirs[key] == ours[key], (path, key)
        assert theirs["documents"]
        for member, document in theirs["documents"].items():
            assert document == ours["documents"][member], (path, member)
        assert theirs["traces"] == [bare(trace) for trace in ours["traces"]]


def bare(trace: dict[str, Any]) -> dict[str, Any]:
    """Return a trace without the empty fields that our reader gives every object."""

    def of(document: dict[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in document.items() if v is not None and v not in ([], {})}

    spans = trace["spans"]
    return {
        "info": of(trace["info"]),
        "assessments": [*map(of, trace["assessments"])],
        "spans": None if spans is None else [*map(of, spans)],
    }


def test_the_stranger_agrees_on_the_vectors(reader: Path) -> None:
    command = ["node", str(reader / "vectors.js"), str(ROOT / "samples" / "v1" / "vectors")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert int(done.stdout.split()[0]) > 90


def test_the_stranger_finds_what_we_find_in_forged_archives(reader: Path, tmp_path: Path) -> None:
    forged = {
        f"{code} {name}": tree.forgery().data()
        for code, name, tree in FAULTS
        if name not in HEAVY | MAY_DIFFER
    }
    for code, forgeries in BROKEN.items():
        for number, forgery in enumerate(forgeries):
            forged[f"{code} container {number}"] = forgery.data()
    # Its manifests alone are over 4 MiB.
    forged["a large tail"] = generate.large_tail()
    paths = []
    for number, data in enumerate(forged.values()):
        paths.append(tmp_path / f"{number}.tar.zst")
        paths[-1].write_bytes(data)
    theirs = [line.split() for line in answers(reader, "codes", paths)]
    ours = [codes_of(path) for path in paths]
    assert dict(zip(forged, theirs, strict=True)) == dict(zip(forged, ours, strict=True))
    assert ours[-1] == ["W020"]


def codes_of(path: Path) -> list[str]:
    try:
        found = verify(str(path), jobs=1).findings
    except (errors.InvalidArchiveError, errors.UnsupportedFormatError) as error:
        found = [*error.findings]
    return sorted({finding.code for finding in found})
