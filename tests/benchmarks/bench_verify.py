"""``verify`` against ``zstd -d | sha256sum`` of the same archive, and what its levels cost.

    python -m tests.benchmarks.bench_verify [MEGABYTES] [ARCHIVE]

Without an archive one is written: half of it noise, half of it text, in large and in small members.
"""

from __future__ import annotations

import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_exim_plugin import verify
from mlflow_exim_plugin.container.writer import ArchiveWriter
from mlflow_exim_plugin.storage.output import atomic_output

if TYPE_CHECKING:
    from collections.abc import Callable

REPEATS = 3
MEMBER_BYTES = 4 << 20
SMALL_MEMBERS = 20_000


def write(target: Path, megabytes: int) -> None:
    chance = random.Random(1)
    words = [b"%012x" % chance.getrandbits(48) for _ in range(5000)]
    text = b" ".join(chance.choices(words, k=MEMBER_BYTES // 13 + 1))[:MEMBER_BYTES]
    with (
        atomic_output(str(target)) as output,
        ArchiveWriter(output, base_directory="bench") as writer,
    ):
        for number in range((megabytes << 20) // MEMBER_BYTES):
            turned = text[number * 997 :] + text[: number * 997]
            writer.add(f"data/{number}.bin", os.urandom(MEMBER_BYTES) if number % 2 else turned)
        for number in range(SMALL_MEMBERS):
            writer.add(f"data/small/{number}.json", b'{"n": %d}' % number**3)


def costs(work: Callable[[], object]) -> tuple[float, float]:
    """Return seconds on the clock and of the processors."""
    before, start = os.times(), time.perf_counter()
    work()
    seconds, after = time.perf_counter() - start, os.times()
    return seconds, sum(after[:4]) - sum(before[:4])


def main() -> None:
    megabytes = int(sys.argv[1]) if len(sys.argv) > 1 else 400
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(folder) / "a.tar.zst"
        if not archive.exists():
            write(archive, megabytes)
        pipe = ["sh", "-c", 'zstd -dc "$0" | sha256sum', str(archive)]
        works: dict[str, Callable[[], object]] = {
            "zstd -d | sha256sum": lambda: subprocess.run(
                pipe, check=True, stdout=subprocess.DEVNULL
            ),
            "verify": lambda: verify(str(archive)),
            "verify --jobs 1": lambda: verify(str(archive), jobs=1),
            "verify --sample 5": lambda: verify(str(archive), sample=5),
            "verify --quick": lambda: verify(str(archive), quick=True),
        }
        measured = {name: [costs(work) for _ in range(REPEATS)] for name, work in works.items()}
        floor_s, floor_cpu_s = map(min, zip(*measured["zstd -d | sha256sum"], strict=True))
        for name, all_costs in measured.items():
            clock_s, cpu_s = map(min, zip(*all_costs, strict=True))
            print(
                f"{name:20} {clock_s:6.2f} s, {cpu_s:6.2f} s CPU; "
                f"speed {floor_s / clock_s:5.2f}x, by CPU {floor_cpu_s / cpu_s:5.2f}x of the pipe"
            )
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


if __name__ == "__main__":
    main()
