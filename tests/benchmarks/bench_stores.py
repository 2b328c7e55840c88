"""An archive written to stores and read from them, against the stores' own clients in one run.

    python -m tests.benchmarks.bench_stores [s3|azure|ssh|http ...] [--megabytes N] [--rounds N]
        [--round-trip-ms N] [--connection-mb N] [--root FOLDER] [--one-run-of GIGABYTES]

100 runs of an ``mlruns`` folder with random bytes in a file of each. Every server is on loopback
behind ``tests/slow_network.py``: so much of each connection, and a round trip before each answer.
``write`` is ``pack`` of the folder, beside the clients' own ``put`` of the same archive, ``read``
is ``verify``, beside its bytes fetched by 8 ranges at once (SSH: paramiko's ``get``), ``one run``
is ``pack`` of one run out of it. Each is a process of its own, in turn, with all that it imports.
``--one-run-of 10`` is that alone, of a run of 10 MB in an archive of so many GB on S3, which has to
be on the disk; what counts is how much is asked for.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import sys
import tempfile
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from tests import far_stores
from tests.benchmarks.bench_folder import build, write_run
from tests.benchmarks.bench_pack import measured

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.far_stores import FarStore

SERVED: dict[str, Callable[[Path], contextlib.AbstractContextManager[FarStore]]] = {
    "s3": partial(far_stores.rclone_s3, etag_hash=""),
    "azure": far_stores.azure,
    "ssh": far_stores.sftp,
    "http": far_stores.web,
}
START = """
import json, os, sys
from pathlib import Path
url, options, place = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3:]
"""
PACK = """
from mlflow_exim_plugin import pack
report = pack(url, tracking_uri=place[0], storage_options=options, level=1, overwrite=True)
assert report.ok, report.failures
"""
VERIFY = """
from mlflow_exim_plugin import verify
report = verify(url, storage_options=options)
assert report.ok, report.findings
"""
ONE_RUN = """
from mlflow_exim_plugin import pack
from mlflow_exim_plugin.storage.pinned import PinnedSource
opened, begin = [], PinnedSource.__init__
def watched(self, *arguments):
    opened.append(self)
    begin(self, *arguments)
PinnedSource.__init__ = watched
report = pack(place[0], tracking_uri=url, storage_options=options, runs=[place[1]])
assert report.ok and report.artifact_bytes, report.failures
print(json.dumps([sum(s.requests for s in opened), sum(s.bytes_read for s in opened)]))
"""
PUT = """
import fsspec
fs, path = fsspec.core.url_to_fs(url, **options)
fs.put_file(place[0], path)
"""
PUT_BY_OBSTORE = """
import obstore
from obstore.store import AzureStore, S3Store
root, name = url.partition("://")[2].split("/", 1)
if url.startswith("s3:"):
    store = S3Store(
        root, endpoint=options["endpoint_url"], access_key_id=options["key"], region="us-east-1",
        secret_access_key=options["secret"], client_options={"allow_http": True},
        virtual_hosted_style_request=False,
    )
else:
    told = dict(part.split("=", 1) for part in options["connection_string"].split(";") if part)
    store = AzureStore(
        root, account_name=told["AccountName"], account_key=told["AccountKey"],
        endpoint=told["BlobEndpoint"], client_options={"allow_http": True},
    )
obstore.put(store, name, Path(place[0]))
"""
SSH = """
import paramiko
client = paramiko.SSHClient()
client.set_missing_host_key_policy(paramiko.AutoAddPolicy())
client.connect("127.0.0.1", **{k: v for k, v in options.items() if k != "skip_instance_cache"})
files, path = client.open_sftp(), url.partition("127.0.0.1")[2]
"""
PUT_BY_SSH = SSH + "files.put(place[0], path)\n"
GET_BY_SSH = SSH + "files.get(path, place[0])\n"
RANGES = """
from concurrent.futures import ThreadPoolExecutor
import fsspec
fs, path = fsspec.core.url_to_fs(url, **options)
size_bytes, step = fs.info(path)["size"], 8 << 20
def get(start):
    return len(fs.cat_file(path, start=start, end=min(start + step, size_bytes)))
with ThreadPoolExecutor(8) as pool:
    assert sum(pool.map(get, range(0, size_bytes, step))) == size_bytes
"""


def fill(folder: Path, megabytes: int) -> str:
    """Write the runs with their files; returns the id of one of them."""
    chance = random.Random(7)
    runs = sorted(path.parent for path in build(folder, scale=0.01).glob("*/*/meta.yaml"))
    for run in runs:
        with (run / "artifacts" / "weights.bin").open("wb") as file:
            for _ in range(megabytes):
                file.write(chance.randbytes(1_000_000 // len(runs)))
    return runs[len(runs) // 2].name


def bench_one_run(root: Path, gigabytes: int) -> None:
    """Count what is asked for of a large archive, for one of its runs."""
    experiments = [*build(root, scale=0).iterdir()]
    chance = random.Random(7)
    same = root / "weights.bin"
    same.write_bytes(chance.randbytes(10_000_000))
    runs = []
    for number in range(gigabytes * 100):
        run = write_run(experiments[number % len(experiments)], number, chance, 0)
        os.link(same, run / "artifacts" / same.name)
        runs.append(run.name)
    with served("s3", root, root) as store:
        folder = store.new_folder()
        archive = root / "s3" / folder.rpartition("/")[2] / "large.tar.zst"
        ran(PACK, str(archive), {}, (root / "mlruns").as_uri())
        one, run_id = root / "one.tar.zst", runs[len(runs) // 2]
        found = ran(ONE_RUN, f"{folder}/{archive.name}", store.options, str(one), run_id)
        requests, bytes_read = json.loads(found["output"])
        print(
            f"s3, {archive.stat().st_size / 1e9:.2f} GB, one run of {one.stat().st_size / 1e6:.2f} "
            f"MB: {requests} requests, {bytes_read / 1e6:.2f} MB, {found['seconds']:.1f} s"
        )


@contextlib.contextmanager
def served(kind: str, root: Path, archive: Path) -> Iterator[FarStore]:
    """Start the server of a store; the web server has the archive already."""
    (folder := root / kind).mkdir()
    if kind == "http":
        os.link(archive, folder / archive.name)
    with SERVED[kind](folder) as store:
        yield store


def ran(program: str, url: str, options: dict[str, Any], *place: str) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", "-c", START + program, url, json.dumps(options)]
    result = measured([*command, *place])
    if result["exit_code"]:
        raise SystemExit(f"failed:\n{program}")
    return result


def bench(kind: str, store: FarStore, source: str, archive: Path, run_id: str, rounds: int) -> None:
    """Write and read by turns and print the middle of all rounds."""
    folder = store.url if kind == "http" else store.new_folder()
    url = f"{folder}{archive.name}" if kind == "http" else f"{folder}/ours.tar.zst"
    theirs = f"{folder}/theirs.tar.zst"
    options = {name: told for name, told in store.options.items() if name != "use_listings_cache"}
    writers = {"paramiko": PUT_BY_SSH} if kind == "ssh" else {"fsspec": PUT}
    if kind != "ssh" and find_spec("obstore"):
        writers["obstore"] = PUT_BY_OBSTORE
    reader = ("paramiko", GET_BY_SSH) if kind == "ssh" else ("8 ranges", RANGES)
    one = archive.with_name("one.tar.zst")
    writes: dict[str, list[dict[str, Any]]] = {}
    reads: dict[str, list[dict[str, Any]]] = {}
    for _ in range(rounds):
        if kind != "http":
            for name, program in writers.items():
                done = ran(program, theirs, options, str(archive))
                writes.setdefault(name, []).append(done)
            writes.setdefault("ours", []).append(ran(PACK, url, options, source))
        reads.setdefault(reader[0], []).append(ran(reader[1], url, options, str(one)))
        reads.setdefault("ours", []).append(ran(VERIFY, url, options))
    one.unlink(missing_ok=True)
    requests, bytes_read = json.loads(ran(ONE_RUN, url, options, str(one), run_id)["output"])
    one_mb = one.stat().st_size / 1e6
    one.unlink()
    print(f"{kind}, {archive.stat().st_size / 1e6:,.0f} MB")
    for what, found in (("write", writes), ("read", reads)):
        show(what, found)
    print(f"  one run of {one_mb:.1f} MB: {requests} requests, {bytes_read / 1e6:.1f} MB")


def show(what: str, found: dict[str, list[dict[str, Any]]]) -> None:
    for name, rounds in found.items():
        seconds, cpu = (median(r[key] for r in rounds) for key in ("seconds", "cpu_seconds"))
        peak_mb = max(r["peak_mb"] for r in rounds)
        print(f"  {what:5} {name:9} {seconds:7.2f} s {cpu:7.2f} s of CPU {peak_mb:6.0f} MB", end="")
        ratios = sorted(
            own["seconds"] / floor["seconds"]
            for floor, own in zip(rounds, found["ours"], strict=True)
        )
        spread = f"({ratios[0]:.2f} to {ratios[-1]:.2f})"
        print("" if name == "ours" else f"  ours is {median(ratios):.2f} of it {spread}")
    if found:
        print()


def main() -> None:
    """Bench the stores that were named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stores", nargs="*", default=[*SERVED])
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--round-trip-ms", type=float, default=30)
    parser.add_argument("--connection-mb", type=float, default=20, help="MB a second of each")
    parser.add_argument("--root", type=Path)
    parser.add_argument("--one-run-of", type=int, metavar="GIGABYTES")
    arguments = parser.parse_args()
    network = {
        "round_trip_seconds": arguments.round_trip_ms / 1000,
        "bytes_per_second": arguments.connection_mb * 1e6,
    }
    with tempfile.TemporaryDirectory(dir=arguments.root) as folder:
        root = Path(folder)
        if arguments.one_run_of:
            bench_one_run(root, arguments.one_run_of)
            return
        run_id = fill(root, arguments.megabytes)
        source, archive = (root / "mlruns").as_uri(), root / "local.tar.zst"
        ran(PACK, str(archive), {}, source)
        for kind in arguments.stores:
            with served(kind, root, archive) as near, near.far_away(**network) as store:
                bench(kind, store, source, archive, run_id, arguments.rounds)


if __name__ == "__main__":
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    main()
