"""What it takes to list, open and look into a set, from ten thousand to ten million runs.

    python -m tests.benchmarks.bench_set_size [--runs N ...]

One archive of ten thousand runs is packed; the others are named by the snapshot and were never
there: what is measured must not need them. Layers and snapshots are those that sets write. Bytes
are those that the process reads, once it has imported what it needs; each look has a client of its
own.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import pyarrow as pa

from mlflow_exim_plugin import open_archive, pack
from mlflow_exim_plugin.operations.look.archives import snapshots_in
from mlflow_exim_plugin.options import Opening
from mlflow_exim_plugin.schema.canonical import document_bytes
from mlflow_exim_plugin.sets.layers import layer_of, next_layers
from mlflow_exim_plugin.sets.state import SetState
from mlflow_exim_plugin.sources.archive.snapshot.layers import StateLayers, ids_of
from mlflow_exim_plugin.sources.archive.snapshot.set_folder import SetFolder
from mlflow_exim_plugin.sources.archive.snapshot.tables import LAYER
from tests.benchmarks.workload import build

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_Found = TypeVar("_Found")

_IN_A_PACK = 10_000
_ROWS_A_RUN = 100
_SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
_SEED = 1


def _random(rows: int, size_bytes: int, chance: np.random.Generator) -> pa.Array:
    data = pa.py_buffer(chance.bytes(size_bytes * rows))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(size_bytes), rows, [None, data])


def _simulated(count: int, chance: np.random.Generator) -> Iterator[pa.Table]:
    """Yield the objects of so many experiments, each of which fills an archive."""
    for number in range(count):
        text = chance.bytes(16 * _IN_A_PACK).hex()
        ids = sorted(text[at : at + 32] for at in range(0, len(text), 32))
        folder = f"data/experiments/s{number:05d}"
        paths = [f"{folder}/experiment.json", *(f"{folder}/runs/{i}/run.json" for i in ids)]
        rows = len(paths)
        start_ms = 1_700_000_000_000 + number * 86_400_000
        columns = {
            "path": paths,
            "kind": ["experiment", *["run"] * len(ids)],
            "content_digest": _random(rows, 32, chance),
            "mark": _random(rows, 16, chance).cast(pa.binary()),
            "member": [""] * rows,
            "name": [f"experiment {number}", *[""] * len(ids)],
            "start_ms": [None, *range(start_ms, start_ms + len(ids))],
            "metric_rows": [0, *[_ROWS_A_RUN] * len(ids)],
            "block": [number + 1] * rows,
        }
        zeros = [0] * rows
        given = ((of, columns.get(of.name, zeros)) for of in LAYER)
        arrays = [c if isinstance(c, pa.Array) else pa.array(c, of.type) for of, c in given]
        yield pa.Table.from_arrays(arrays, schema=LAYER)


def _grow(real: SetFolder, place: Path, runs: int) -> SetFolder:
    """Make a set of one archive that is there, and of others that are not."""
    shutil.copytree(real.url, place, ignore=shutil.ignore_patterns("states", "ids"))
    folder = SetFolder(str(place))
    snapshot = real.snapshot(1).document
    known = StateLayers(real, snapshot.info.layers).table()
    count = runs // _IN_A_PACK - 1
    ids = [ids_of(known)]

    def tables() -> Iterator[pa.Table]:
        yield known
        for table in _simulated(count, np.random.default_rng(_SEED)):
            ids.append(ids_of(table))
            yield table

    states = list(layer_of(folder, tables(), ids[0].slice(0, 0)).states)
    order = [("segment", "ascending"), ("folder", "ascending")]
    of_ids = layer_of(folder, [], pa.concat_tables(ids).sort_by(order)).ids
    layer = {
        "rows": sum(part.rows for part in states),
        "states": [part.to_json() for part in states],
        "ids": [part.to_json() for part in of_ids],
    }
    document = snapshot.to_json()
    info, packs = document["info"], document["info"]["packs"]
    for number in range(1, count + 1):
        name = f"{number:064x}"
        path = f"packs/{name[:2]}/{name}.tar.zst"
        packs.append({**packs[0], "path": path, "root": name, "block": number})
        entry = {"experiment_id": f"s{number - 1:05d}", "name": f"experiment {number - 1}"}
        document["mlflow"]["experiments"].append(entry)
    info["layers"] = [layer]
    info["num_total_runs"] = info["num_ok_runs"] = runs
    info["counts"]["run"] = {"found": runs, "written": runs, "skipped": 0, "failed": 0}
    info["metric_rows"] = runs * _ROWS_A_RUN
    (place / "snapshots" / "00000001.json").write_bytes(document_bytes(document))
    return folder


def _read_bytes() -> int:
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith("rchar"):
            return int(line.split()[1])
    raise OSError("this kernel does not tell what a process reads")


def _cost(look: Callable[[], _Found]) -> tuple[_Found, float, int]:
    """Return what is found, in how many ms of wall time and by how many bytes; the second time."""
    look()
    before, begun_s = _read_bytes(), time.perf_counter()
    found = look()
    spent_ms = (time.perf_counter() - begun_s) * 1000
    own = len(Path("/proc/self/io").read_bytes())
    return found, spent_ms, _read_bytes() - before - own


def _measure(folder: SetFolder, run_id: str, runs: int) -> dict[str, object]:
    place = folder.url

    def listed() -> int:
        found = snapshots_in(place, Opening())
        assert found is not None
        return found[0].runs

    def opened() -> int:
        with open_archive(place) as state:
            return state.summary.info.num_ok_runs

    def one_run() -> str:
        with open_archive(place) as state:
            return state.run(run_id).id

    def history() -> int:
        with open_archive(place) as state:
            return int(state.metric_history(run_id).num_rows)

    size_bytes = sum(sum(folder.sizes(name).values()) for name in ("states", "ids"))
    told: dict[str, object] = {
        "runs": runs,
        "snapshot_bytes": folder.size_bytes("snapshots/00000001.json"),
        "layers_bytes": size_bytes,
    }
    looks: dict[str, Callable[[], object]] = {
        "list": listed,
        "open": opened,
        "run": one_run,
        "history": history,
    }
    for name, look in looks.items():
        found, spent_ms, read = _cost(look)
        if name in {"list", "open"}:
            assert found == runs
        told |= {f"{name}_ms": round(spent_ms), f"{name}_bytes": read}
    return told | _changed(folder)


def _changed(folder: SetFolder) -> dict[str, object]:
    """Return what a layer of a thousand runs that changed takes, beside all others."""
    info = folder.snapshot(1).document.info
    first = info.layers[0].states[0]
    some = SetState.of_table(
        StateLayers(folder, [info.layers[0].model_copy(update={"states": (first,)})]).table()
    )
    fewer = SetState(dict(list(some.rows.items())[: max(len(some.rows) - 1000, 0)]))
    before = sum(sum(folder.sizes(name).values()) for name in ("states", "ids"))
    begun_s = time.perf_counter()
    next_layers(folder, info.layers, fewer, some)
    spent_ms = (time.perf_counter() - begun_s) * 1000
    after = sum(sum(folder.sizes(name).values()) for name in ("states", "ids"))
    return {"layer_of_1000_ms": round(spent_ms), "layer_of_1000_bytes": after - before}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, nargs="*", default=_SIZES)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        build("runs", root / "store")
        real = root / "real"
        pack(tracking_uri=f"sqlite:///{root / 'store' / 'mlflow.db'}", set=str(real))
        with open_archive(str(real)) as state:
            run_ids = state.run_ids()
        for runs in asked.runs:
            place = root / f"set-{runs}"
            folder = _grow(SetFolder(str(real)), place, runs)
            os.sync()
            print(json.dumps(_measure(folder, run_ids[len(run_ids) // 2], runs)), flush=True)
            shutil.rmtree(place)


if __name__ == "__main__":
    main()
