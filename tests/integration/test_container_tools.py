"""What others read of our archives: every tool an auditor may have."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import warnings
from typing import TYPE_CHECKING

import pytest
import zstandard

from mlflow_exim_plugin.container.reader import ArchiveReader
from mlflow_exim_plugin.container.writer import ArchiveWriter
from mlflow_exim_plugin.storage.output import atomic_output

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration

BASE = "my b\u00e4ckup"
LARGE = os.urandom(9 << 20)
MEMBERS = {
    "exim.json": b"{}",
    "data/experiments/1/experiment.json": b'{"name": "x"}',
    "data/long/" + "/".join(["folder name"] * 12) + "/x.json": b"long path",
    "data/\u65e5\u672c\u8a9e/\U0001f600 \u00fc.txt": "\u00e9".encode(),
    "data/empty": b"",
    "data/middle.parquet": os.urandom(600_000),
    "data/large.bin": LARGE,
    "data/link.bin": LARGE[: 1 << 20],
    "data/same.bin": LARGE[: 1 << 20],
    "data/-dash = [1] (a) !21 'q' $x.txt": b"odd",
}


def tool(name: str) -> str:
    """Return a tool's path; where it is absent the test is skipped, but never in CI."""
    path = shutil.which(name)
    if path is None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{name} must be installed in CI")
        pytest.skip(f"{name} is not installed")
    return path


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tools") / "archive.tar.zst"
    with atomic_output(str(path)) as output, ArchiveWriter(output, base_directory=BASE) as writer:
        for name, data in MEMBERS.items():
            writer.add_stream(name, len(data), io.BytesIO(data))
        writer.add_link("data/link to large.bin", "data/large.bin")
    return path


def run(*command: str | Path, cwd: Path) -> str:
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    done = subprocess.run(command, cwd=cwd, check=True, capture_output=True, env=environment)
    assert done.stderr == b"" or command[0].__str__().endswith("7z")
    return done.stdout.decode()


def check_tree(folder: Path) -> None:
    """Compare an extracted bag to what was packed, then let sha256sum judge it as well."""
    assert [entry.name for entry in folder.iterdir() if entry.is_dir()] == [BASE]
    bag = folder / BASE
    for name, data in {**MEMBERS, "data/link to large.bin": LARGE}.items():
        assert (bag / name).read_bytes() == data
    sums = tool("sha256sum")
    run(sums, "--check", "--strict", "--quiet", "manifest-sha256.txt", cwd=bag)
    run(sums, "--check", "--strict", "--quiet", "tagmanifest-sha256.txt", cwd=bag)
    listed = (bag / "manifest-sha256.txt").read_text("utf-8").count("\n")
    assert listed == sum(path.is_file() for path in (bag / "data").rglob("*"))


@pytest.mark.parametrize("options", [["-xf"], ["--zstd", "-xf"], ["-I", "zstd", "-xf"]])
def test_gnu_tar(archive: Path, tmp_path: Path, options: list[str]) -> None:
    tool("zstd")
    run(tool("tar"), *options, archive, cwd=tmp_path)
    check_tree(tmp_path)


def test_bsdtar(archive: Path, tmp_path: Path) -> None:
    run(tool("bsdtar"), "-xf", archive, cwd=tmp_path)
    check_tree(tmp_path)


def test_7z_in_two_steps(archive: Path, tmp_path: Path) -> None:
    seven = tool("7z")
    run(seven, "x", "-y", "-ostep", archive, cwd=tmp_path)
    (tar,) = (tmp_path / "step").iterdir()
    extracted = tmp_path / "extracted"
    extracted.mkdir()
    run(seven, "x", "-y", tar, cwd=extracted)
    check_tree(extracted)


def test_zstd_tests_and_lists_it(archive: Path, tmp_path: Path) -> None:
    run(tool("zstd"), "--test", "--quiet", archive, cwd=tmp_path)


def test_python_without_us(archive: Path, tmp_path: Path) -> None:
    """The way README tells: zstandard's stream reader across frames, and tarfile."""
    with (
        archive.open("rb") as file,
        zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True) as stream,
        tarfile.open(fileobj=stream, mode="r|") as tar,
    ):
        tar.extractall(tmp_path, filter="data")
    check_tree(tmp_path)


def test_bagit_python_validates_the_bag(archive: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # bagit imports pkg_resources
        bagit = pytest.importorskip("bagit")
    run(tool("tar"), "-xf", archive, cwd=tmp_path)
    bag = bagit.Bag(str(tmp_path / BASE))
    assert bag.validate()
    assert bag.version_info == (1, 0)
    (tmp_path / BASE / "data" / "empty").write_bytes(b"changed")
    with pytest.raises(bagit.BagValidationError):
        bagit.Bag(str(tmp_path / BASE)).validate()


def test_pyzstd_reads_the_seek_table(archive: Path) -> None:
    pyzstd = pytest.importorskip("pyzstd")
    reader = ArchiveReader.open(str(archive))
    position = reader.position("data/large.bin")
    assert position is not None
    with pyzstd.SeekableZstdFile(str(archive)) as stream:
        stream.seek(reader.data_offset(position) + 5_000_000)
        assert stream.read(1000) == LARGE[5_000_000:5_001_000]
        stream.seek(0)
        digest = hashlib.sha256(stream.read()).hexdigest()
    whole = b"".join(reader.frames.span(0, reader.footer.tar_bytes))
    assert digest == hashlib.sha256(whole).hexdigest()
    reader.close()


def test_a_member_of_8_gib_is_listed_with_its_size(tmp_path: Path) -> None:
    """Zeros pack to nothing, so the pax size can be tested with the real tool and few bytes."""
    from mlflow_exim_plugin.container.tarball import END_OF_TAR, tar_header

    size_bytes = (8 << 30) + 512
    path = tmp_path / "large.tar"
    header = tar_header("bag/data/x", size_bytes)
    with path.open("wb") as file:  # sparse: nothing is stored
        file.write(header)
        file.seek(len(header) + size_bytes)
        file.write(END_OF_TAR)
    listing = run(tool("tar"), "-tvf", path, cwd=tmp_path)
    assert f" {size_bytes} " in listing
    assert f" {size_bytes} " in run(tool("bsdtar"), "-tvf", path, cwd=tmp_path)
