"""Pack speed against ``tar --zstd``, in one run so that the ratio means something.

    python tests/benchmarks/bench_container.py [MEGABYTES] [FOLDER]

Prints for incompressible artifacts: MB/s of tar and of ArchiveWriter (SHA-256, manifests and index
included), their ratio at levels 1 and 3, and verification; then the cost of a small member and of
opening an archive with many.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_exim_plugin.container.reader import ArchiveReader
from mlflow_exim_plugin.container.writer import ArchiveWriter
from mlflow_exim_plugin.storage.output import atomic_output
from mlflow_exim_plugin.verification.archive import verify_archive

if TYPE_CHECKING:
    from collections.abc import Callable

ARTIFACTS = 10
SMALL_MEMBERS = 100_000
REPEATS = 3


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def pack(files: list[Path], target: Path, level: int) -> None:
    with (
        atomic_output(str(target), overwrite=True) as output,
        ArchiveWriter(output, base_directory="bench", level=level) as writer,
    ):
        for file in files:
            with file.open("rb") as stream:
                writer.add_stream(f"data/{file.name}", file.stat().st_size, stream)


def tar(files: list[Path], target: Path, level: int) -> None:
    with target.open("wb") as output:  # synced like ours, or the comparison is one of page caches
        subprocess.run(
            ["tar", "-C", str(files[0].parent), "-I", f"zstd -{level} -T2", "-cf", "-"]
            + [file.name for file in files],
            stdout=output,
            check=True,
        )
        os.fsync(output.fileno())


def bench_artifacts(folder: Path, megabytes: int) -> None:
    sources = folder / "sources"
    sources.mkdir()
    files = [sources / f"artifact-{number}.bin" for number in range(ARTIFACTS)]
    for file in files:
        with file.open("wb") as stream:
            for _ in range(megabytes // ARTIFACTS):
                stream.write(os.urandom(1 << 20))
    total = sum(file.stat().st_size for file in files) / 1e6
    ours, theirs = folder / "ours.tar.zst", folder / "theirs.tar.zst"
    for level in (1, 3):
        times = []
        for _ in range(REPEATS):
            # Each writes a new file while the other's is gone: on a virtual machine the first
            # touch of memory costs more than everything measured here.
            theirs.unlink(missing_ok=True)
            ours.unlink(missing_ok=True)
            tar_s = seconds(partial(tar, files, theirs, level))
            theirs.unlink()
            times.append((tar_s, seconds(partial(pack, files, ours, level))))
        tar_s, pack_s = (min(column) for column in zip(*times, strict=True))
        print(
            f"level {level}: tar --zstd -T2 {total / tar_s:6.0f} MB/s, "
            f"ArchiveWriter {total / pack_s:6.0f} MB/s, ratio {tar_s / pack_s:.2f}"
        )
    for jobs in (1, 2):
        with ArchiveReader.open(str(ours)) as reader:
            verify_s = seconds(partial(verify_archive, reader, jobs=jobs))
        print(f"verify, {jobs} jobs: {total / verify_s:.0f} MB/s")


def bench_small_members(folder: Path) -> None:
    target = folder / "small.tar.zst"
    bodies = [b'{"run_id": "%032x", "status": "FINISHED"}' % number for number in range(1000)]

    def write() -> None:
        with (
            atomic_output(str(target)) as output,
            ArchiveWriter(output, base_directory="bench") as writer,
        ):
            for number in range(SMALL_MEMBERS):
                body = b"%d%b" % (number, bodies[number % 1000])
                writer.add(f"data/experiments/1/runs/{number:032x}/run.json", body)

    write_s = seconds(write)
    open_s = seconds(lambda: ArchiveReader.open(str(target)).close())
    print(
        f"{SMALL_MEMBERS} small members: write {write_s / SMALL_MEMBERS * 1e6:.1f} us each, "
        f"open {open_s:.2f} s, {target.stat().st_size / SMALL_MEMBERS:.0f} bytes each"
    )


def main() -> None:
    megabytes = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    parent = sys.argv[2] if len(sys.argv) > 2 else None
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        bench_artifacts(Path(folder), megabytes)
        bench_small_members(Path(folder))
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


if __name__ == "__main__":
    main()
