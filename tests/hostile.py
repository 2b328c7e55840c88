"""Archives that an enemy may hand us, each made of a good one by a seed, and what must hold then.

A way of bending is named for what it aims at: bytes of the file as they come, or one structure, the
digests and sizes of which are made right again, so that whatever parses it gets to see it.

    python -m tests.hostile [--seconds N | --count N] [--from SEED] [WAY ...]

tries seed after seed and prints what did not hold, with the seed that makes it again.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import re
import resource
import signal
import struct
import sys
import time
import traceback
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zstandard

from mlflow_exim_plugin.container.reader import ArchiveReader
from mlflow_exim_plugin.errors import EximError
from mlflow_exim_plugin.schema.objects import ENTITY_KINDS, Kind
from mlflow_exim_plugin.schema.rules import RULES
from mlflow_exim_plugin.sources.archive.archive import Archive
from mlflow_exim_plugin.verification.archive import verify_archive
from mlflow_exim_plugin.verification.objects import verify_objects
from samples.forging import Forgery, TarMember, tar_header, zstd_frame
from tests.crafted import GENERATED
from tests.unit.container.crafting import MemorySource

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["WAYS", "Verdict", "bent", "verdict"]

ROOT = Path(__file__).parents[1]
GOOD = [
    *(ROOT / "samples" / "v1" / "good" / f"{name}.tar.zst" for name in ("mlflow3", "parts")),
    ROOT / "tests" / "golden" / "everything.tar.zst",
]
MOST_S = 5.0
MOST_KB = 300_000
STATUS = Path("/proc/self/status")
TELLING = [0, 1, 0x7F, 0x80, 0xFF, 1 << 16, 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 63) - 1]
"""Numbers that a size, place or count may be made."""


@dataclass(frozen=True)
class Good:
    """A good archive.

    Attributes:
        data: Its bytes.
        members: Its members by path.
    """

    data: bytes
    members: dict[str, bytes]


@cache
def good(number: int) -> Good:
    data = GOOD[number].read_bytes()
    with ArchiveReader.from_source(MemorySource(data)) as reader:
        return Good(data, {path: reader.read(path) for path in reader.paths()})


def _scrambled(data: bytes, chance: random.Random, other: bytes = b"") -> bytes:
    """Return bytes changed at one to three places."""
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        start, end = sorted(chance.randrange(len(data) + 1) for _ in range(2))
        near = data[start : start + chance.choice((1, 2, 4, 8, 100, 5000))]
        how = chance.randrange(9)
        if how <= 2 and near:
            at = start + chance.randrange(len(near))
            data = data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]
        elif how == 3:
            number = struct.pack("<Q", chance.choice(TELLING))[: chance.choice((1, 2, 4, 8))]
            data = data[:start] + number + data[start + len(number) :]
        elif how == 4:
            data = data[:start] + data[start + len(near) :]
        elif how == 5:
            data = data[:start] + near + near + data[start + len(near) :]
        elif how == 6:
            data = data[:start] + chance.randbytes(len(near)) + data[start + len(near) :]
        elif how == 7 and other:
            at = chance.randrange(len(other))
            data = data[:start] + other[at : at + len(near)] + data[start + len(near) :]
        else:
            data = data[:start] + data[end:] if chance.random() < 0.2 else data[:end]
    return data


def _flipped(archive: Good, chance: random.Random) -> bytes:
    at = chance.randrange(len(archive.data))
    flipped = archive.data[at] ^ 1 << chance.randrange(8)
    return archive.data[:at] + bytes([flipped]) + archive.data[at + 1 :]


def _spliced(archive: Good, chance: random.Random) -> bytes:
    if chance.random() < 0.25:
        return archive.data[: chance.randrange(len(archive.data))]
    return _scrambled(archive.data, chance, good(chance.randrange(len(GOOD))).data)


def _sealed(archive: Good, **bend: Any) -> bytes:
    payload = {path: data for path, data in archive.members.items() if path.startswith("data/")}
    tags: dict[str, bytes | None] = {
        path: data
        for path, data in archive.members.items()
        if path not in payload and path not in GENERATED
    }
    return Forgery(**{"payload": payload, "tags": tags, **bend}).data()


def _footer(archive: Good, chance: random.Random) -> bytes:
    return _sealed(archive, footer_bytes=lambda data: _scrambled(data, chance))


def _index(archive: Good, chance: random.Random) -> bytes:
    def pack(packed: bytes) -> bytes:
        raw = zstandard.ZstdDecompressor().decompress(packed)
        if chance.random() < 0.3:
            return _scrambled(packed, chance)
        return zstd_frame(_scrambled(raw, chance))

    return _sealed(archive, pack_index=pack)


def _seek_table(archive: Good, chance: random.Random) -> bytes:
    def table(entries: bytearray) -> None:
        entries[:] = _scrambled(bytes(entries), chance)

    return _sealed(archive, table=table)


def _frames(archive: Good, chance: random.Random) -> bytes:
    def frames(all_frames: list[bytes], sizes: list[int]) -> None:
        one, other = (chance.randrange(len(all_frames)) for _ in range(2))
        how = chance.randrange(4)
        if how == 0:
            all_frames[one], all_frames[other] = all_frames[other], all_frames[one]
            sizes[one], sizes[other] = sizes[other], sizes[one]
        elif how == 1:
            all_frames.insert(one, all_frames[other])
            sizes.insert(one, sizes[other])
        elif how == 2:
            sizes[one] = min(chance.choice(TELLING), (1 << 32) - 1)
        else:
            all_frames[one] = _scrambled(all_frames[one], chance) or b"\0"

    return _sealed(archive, frames=frames)


def _manifest(archive: Good, chance: random.Random) -> bytes:
    name = chance.choice(("manifest", "tag_manifest"))
    file = {"manifest": "manifest-sha256.txt", "tag_manifest": "tagmanifest-sha256.txt"}[name]
    return _sealed(archive, **{name: _scrambled(archive.members[file], chance)})


def _tar(archive: Good, chance: random.Random) -> bytes:
    def members(listed: list[TarMember]) -> list[TarMember]:
        member = chance.choice(listed)
        header = member.header or tar_header(f"sample/{member.path}", size=len(member.data))
        changed = bytearray(_scrambled(header, chance))
        if len(changed) >= 512 and chance.random() < 0.8:  # ... or its checksum says all
            changed[148:156] = b" " * 8
            changed[148:156] = b"%06o\0 " % sum(changed[:512])
        member.header = bytes(changed)
        return listed

    return _sealed(archive, members=members)


def _documents(archive: Good, chance: random.Random) -> bytes:
    return _with_member(archive, chance, r".*\.json")


def _tables(archive: Good, chance: random.Random) -> bytes:
    return _with_member(archive, chance, r"data/.*\.parquet")


def _with_member(archive: Good, chance: random.Random, pattern: str) -> bytes:
    path = chance.choice([path for path in archive.members if re.fullmatch(pattern, path)])
    other = chance.choice([path for path in archive.members if re.fullmatch(pattern, path)])
    changed = _scrambled(archive.members[path], chance, archive.members[other])
    return _sealed(Good(b"", {**archive.members, path: changed}))


WAYS: dict[str, Callable[[Good, random.Random], bytes]] = {
    "flips": _flipped,
    "splices": _spliced,
    "footer": _footer,
    "index": _index,
    "seek_table": _seek_table,
    "frames": _frames,
    "manifests": _manifest,
    "tar": _tar,
    "documents": _documents,
    "tables": _tables,
}
"""Of the first two no digest is made right again."""
UNSEALED = {"flips", "splices"}


def bent(way: str, seed: int) -> tuple[Good, bytes]:
    """Return a good archive, and what a seed makes of it."""
    chance = random.Random(f"{way} {seed}")
    archive = good(chance.randrange(len(GOOD)))
    return archive, WAYS[way](archive, chance)


@dataclass(frozen=True)
class Verdict:
    """What was made of an archive.

    Attributes:
        is_accepted: Whether it opens and breaks no MUST.
        problem: What must not be, empty without one.
    """

    is_accepted: bool
    problem: str = ""


def verdict(way: str, seed: int) -> Verdict:
    """Verify and read an archive that a seed bends, and say what must not be."""
    archive, data = bent(way, seed)
    before_kb = _kilobytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    is_accepted, problem = False, ""
    with _limited():
        try:
            is_accepted = _is_accepted(data)
        except EximError as error:
            codes = {finding.code for finding in getattr(error, "findings", ())}
            if not codes or not codes <= set(RULES):
                problem = f"{type(error).__name__} without a rule: {error}"
        except _TooLongError:
            problem = f"takes more than {MOST_S} s"
        except Exception:  # noqa: BLE001 - that is what is looked for
            problem = traceback.format_exc()
    taken_kb = _kilobytes("VmHWM") - before_kb
    if taken_kb > MOST_KB:
        problem += f" takes {taken_kb} kB"
    if is_accepted and way in UNSEALED and _by_tar(data) != _by_tar(archive.data):
        problem += " is accepted, and holds something else"
    return Verdict(is_accepted, problem)


def _is_accepted(data: bytes) -> bool:
    with ArchiveReader.from_source(MemorySource(data)) as reader:
        findings = verify_archive(reader)
        findings += verify_objects(reader, {finding.path for finding in findings})
        assert {finding.code for finding in findings} <= set(RULES)
        _read_all(Archive(reader))
    return not any(finding.code.startswith("E") for finding in findings)


def _read_all(archive: Archive) -> None:
    """Read every object: what one is refused for must not keep the others."""

    def run_with_rows() -> None:
        for run in archive.runs():
            archive.metric_history(run.mlflow.run["info"]["run_id"])

    readings: list[Callable[[], object]] = [
        run_with_rows,
        lambda: list(archive.experiments()),
        lambda: list(archive.logged_models()),
        lambda: list(archive.traces()),
        lambda: list(archive.models()),
        lambda: list(archive.models(Kind.PROMPT)),
        *(lambda kind=kind: list(archive.entities(kind)) for kind in ENTITY_KINDS),
    ]
    for reading in readings:
        with contextlib.suppress(EximError):
            reading()


class _TooLongError(Exception):
    pass


@contextlib.contextmanager
def _limited() -> Any:
    def stop(*_: object) -> None:
        raise _TooLongError

    # Of the processor: the machine may have others to serve.
    previous = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, MOST_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)


def _by_tar(data: bytes) -> bytes:
    """Return what every zstd makes of an archive."""
    return zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True).read()


def _kilobytes(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+)", STATUS.read_text())
    assert found is not None
    return int(found[1])


def main() -> int:
    """Try seeds until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ways", nargs="*", default=list(WAYS))
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--count", type=int, default=sys.maxsize)
    parser.add_argument("--from", dest="first", type=int, default=0)
    asked = parser.parse_args()
    problems = 0
    for way in asked.ways:
        start, accepted, tried, longest_s = time.process_time(), 0, 0, 0.0
        while tried < asked.count and time.process_time() - start < asked.seconds:
            began = time.process_time()
            found = verdict(way, asked.first + tried)
            longest_s = max(longest_s, time.process_time() - began)
            accepted += found.is_accepted
            if found.problem:
                problems += 1
                print(f"{way} {asked.first + tried}: {found.problem}", flush=True)  # noqa: T201
            tried += 1
        print(  # noqa: T201
            f"{way}: {tried} tried, {accepted} accepted, longest {longest_s:.2f} s, "
            f"{time.process_time() - start:.0f} s CPU, "
            f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MB",
            flush=True,
        )
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
