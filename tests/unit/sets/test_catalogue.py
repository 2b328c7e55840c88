"""Catalogues of synthetic packs: every answer is compared with a look at all documents."""

from __future__ import annotations

import fnmatch
import math
import random
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlflow_exim_plugin.errors import InvalidArchiveError, UnsupportedFormatError, UsageError
from mlflow_exim_plugin.options import MetricRange, Seeking
from mlflow_exim_plugin.sets.catalogue import parts as parts_module
from mlflow_exim_plugin.sets.catalogue.listing import newest, publish, write_rows
from mlflow_exim_plugin.sets.catalogue.parts import PartTable, merge
from mlflow_exim_plugin.sets.catalogue.rows import ArchiveTold, CatalogueRows
from mlflow_exim_plugin.sets.catalogue.search import Shelf, search
from mlflow_exim_plugin.sets.catalogue.tables import TABLES, TableKind, shortened
from mlflow_exim_plugin.storage.folders.folder import MemoryFolder, open_folder
from tests.catalogue_seed import DAY_MS, START_MS, Pack, packs, rows_of_pack

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PACKS, RUNS, GROWN = 14, 40, 7


class Truth:
    """All states of all runs, by a look at their documents."""

    def __init__(self, all_packs: list[Pack]) -> None:
        self.packs = all_packs
        self.states: dict[str, list[tuple[Pack, dict[str, Any], list[Any]]]] = {}
        for pack in all_packs:
            for document, files in pack.runs:
                run_id = document["info"]["run_id"]
                self.states.setdefault(run_id, []).append((pack, document, files))

    def of(
        self, holds: Callable[[dict[str, Any], list[Any]], bool], *, all_states: bool = False
    ) -> set[tuple[str, str]]:
        """Return id and archive of the runs of which something holds."""
        return {
            (run_id, pack.archive)
            for run_id, states in self.states.items()
            for pack, document, files in (states if all_states else states[-1:])
            if holds(document, files)
        }


@pytest.fixture(scope="module")
def truth() -> Truth:
    return Truth(list(packs(PACKS, RUNS, grown=GROWN)))


@pytest.fixture(scope="module", params=["pack by pack", "at once"])
def shelf(request: pytest.FixtureRequest, truth: Truth) -> Shelf:
    folder = MemoryFolder()
    # Small groups, so that few runs are many of them.
    with pytest.MonkeyPatch.context() as patch:
        for name, kind in list(TABLES.items()):
            small = TableKind(**{**vars(kind), "group_rows": max(16, kind.group_rows // 64)})
            patch.setitem(TABLES, name, small)
        if request.param == "at once":
            rows = CatalogueRows()
            for pack in truth.packs:
                rows_of_pack(pack, rows)
            publish(folder, [write_rows(folder, rows)])
        else:
            for pack in truth.packs:
                publish(folder, [write_rows(folder, rows_of_pack(pack))])
    return Shelf(folder, newest(folder).parts)


def found(shelf: Shelf, **asked: Any) -> set[tuple[str, str]]:
    answer = search([shelf], Seeking(**asked))
    rows = [(row["id"], row["archive"]) for row in answer.objects]
    assert len(rows) == len(set(rows)) == answer.total
    return set(rows)


def values(document: dict[str, Any], part: str) -> dict[str, Any]:
    return {entry["key"]: entry["value"] for entry in document["data"][part]}


def dataset(document: dict[str, Any]) -> str:
    digest: str = document["inputs"]["dataset_inputs"][0]["dataset"]["digest"]
    return digest


QUESTIONS: dict[str, tuple[dict[str, Any], Callable[[dict[str, Any], list[Any]], bool]]] = {
    "a tag": ({"tags": ("team=risk",)}, lambda d, _: values(d, "tags")["team"] == "risk"),
    "a tag by glob": (
        {"tags": ("team=f*",)},
        lambda d, _: values(d, "tags")["team"].startswith("f"),
    ),
    "any value of a tag": ({"tags": ("ticket",)}, lambda _, __: True),
    "no such tag": ({"tags": ("tickets",)}, lambda _, __: False),
    "a param": ({"params": ("lr=0.01",)}, lambda d, _: values(d, "params")["lr"] == "0.01"),
    "two params": (
        {"params": ("lr=0.01", "depth=1?")},
        lambda d, _: (
            values(d, "params")["lr"] == "0.01"
            and fnmatch.fnmatchcase(values(d, "params")["depth"], "1?")
        ),
    ),
    "a metric above": ({"metrics": ("acc>0.9",)}, lambda d, _: values(d, "metrics")["acc"] > 0.9),
    "a metric between": (
        {"metrics": ("acc >= 0.2", "acc<0.25")},
        lambda d, _: 0.2 <= values(d, "metrics")["acc"] < 0.25,
    ),
    "metric, param and tag": (
        {"metrics": ("loss<=0.5",), "params": ("optimizer=adam",), "tags": ("team=ads",)},
        lambda d, _: (
            values(d, "metrics")["loss"] <= 0.5
            and values(d, "params")["optimizer"] == "adam"
            and values(d, "tags")["team"] == "ads"
        ),
    ),
    "a name by glob": (
        {"names": ("bald-1*", "crow-*7")},
        lambda d, _: (
            fnmatch.fnmatchcase(d["info"]["run_name"], "bald-1*")
            or fnmatch.fnmatchcase(d["info"]["run_name"], "crow-*7")
        ),
    ),
    "a user": (
        {"users": ("user07@example.org",)},
        lambda d, _: d["info"]["user_id"] == "user07@example.org",
    ),
    "an experiment by id": (
        {"experiments": ("7",)},
        lambda d, _: d["info"]["experiment_id"] == "7",
    ),
    "an experiment by name": (
        {"experiments": ("experiment 1?",)},
        lambda d, _: len(d["info"]["experiment_id"]) == 2 and d["info"]["experiment_id"][0] == "1",
    ),
    "a time": (
        {"since_ms": START_MS + 3 * DAY_MS, "until_ms": START_MS + 5 * DAY_MS},
        lambda d, _: START_MS + 3 * DAY_MS <= d["info"]["start_time"] <= START_MS + 5 * DAY_MS,
    ),
    "a time and a tag": (
        {"since_ms": START_MS + 9 * DAY_MS, "tags": ("team=search",)},
        lambda d, _: (
            d["info"]["start_time"] >= START_MS + 9 * DAY_MS
            and values(d, "tags")["team"] == "search"
        ),
    ),
    "a kind": ({"kinds": ("run",)}, lambda _, __: True),
    "another kind": ({"kinds": ("logged_model",)}, lambda _, __: False),
    "the beginning of ids": (
        {"runs": ("00a*", "beef", "c0")},  # the last is too short for a beginning
        lambda d, _: d["info"]["run_id"].startswith(("00a", "beef")),
    ),
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_an_answer_is_what_all_documents_say(truth: Truth, shelf: Shelf, question: str) -> None:
    asked, holds = QUESTIONS[question]
    for all_states in (False, True):
        wanted = truth.of(holds, all_states=all_states)
        assert found(shelf, **asked, all_states=all_states) == wanted
    assert wanted or question in {"no such tag", "another kind", "the beginning of ids"}


def test_one_run_is_found_by_its_id_its_dataset_and_its_files(truth: Truth, shelf: Shelf) -> None:
    chance = random.Random(3)
    every = truth.of(lambda _, __: True)
    for run_id in chance.sample(sorted(truth.states), 8):
        pack, document, files = truth.states[run_id][-1]
        assert found(shelf, runs=(run_id,)) == {(run_id, pack.archive)}
        assert found(shelf, runs=(run_id[:12],)) == {(run_id, pack.archive)}
        digest = dataset(document)
        taking = {key for key in every if dataset(truth.states[key[0]][-1][1]) == digest}
        assert found(shelf, datasets=(digest,)) == taking
        sha256, path, _ = files[1]
        (row,) = search([shelf], Seeking(sha256=(sha256.upper(),))).objects
        assert (row["id"], row["files"]) == (run_id, [path])
        info = document["info"]
        told = {name: row[name] for name in ("name", "user", "status", "experiment_id")}
        assert told == {
            "name": info["run_name"],
            "user": info["user_id"],
            "status": info["status"],
            "experiment_id": info["experiment_id"],
        }
        times = row["start_time_ms"], row["end_time_ms"], row["packed_ms"]
        assert times == (info["start_time"], info["end_time"], pack.packed_ms)


def test_an_earlier_state_answers_only_where_it_is_asked_for(truth: Truth, shelf: Shelf) -> None:
    grown = [run_id for run_id, states in truth.states.items() if len(states) > 1]
    assert len(grown) == (PACKS - 1) * GROWN
    for run_id in grown[::20]:
        first, second = (state[0].archive for state in truth.states[run_id])
        was = values(truth.states[run_id][0][1], "metrics")["acc"]
        metric = f"acc={was!r}"
        assert found(shelf, runs=(run_id,)) == {(run_id, second)}
        assert found(shelf, runs=(run_id,), all_states=True) == {(run_id, first), (run_id, second)}
        assert found(shelf, metrics=(metric,)) == set()
        assert found(shelf, metrics=(metric,), all_states=True) == {(run_id, first)}


@pytest.mark.parametrize("limit", [7, 100])
@pytest.mark.parametrize(
    "asked", [{"tags": ("team=risk",)}, {"kinds": ("run",)}, {"until_ms": START_MS + 9 * DAY_MS}]
)
def test_what_is_limited_are_the_newest(shelf: Shelf, asked: dict[str, Any], limit: int) -> None:
    every = search([shelf], Seeking(**asked)).objects
    answer = search([shelf], Seeking(**asked, limit=limit))

    times = [row["start_time_ms"] for row in every]
    assert times == sorted(times, reverse=True)
    assert answer.objects == every[:limit]
    of_all_states = len(search([shelf], Seeking(**asked, all_states=True)).objects)
    assert len(every) <= answer.total <= of_all_states


def test_parts_are_few_and_their_files_are_the_only_ones(truth: Truth) -> None:
    folder = MemoryFolder()
    for count, pack in enumerate(truth.packs, 1):
        listing = publish(folder, [write_rows(folder, rows_of_pack(pack))])
        assert listing.number == count
        assert len(listing.parts) <= 8
    names = {f"{part.number:08x}.parquet" for part in newest(folder).parts}
    for name in TABLES:
        assert {file.name for file in folder.files(f"catalogue/{name}")} == names
    assert len(folder.files("catalogue/parts")) <= 16
    rows = sum(part.tables["archives"].rows for part in newest(folder).parts)
    assert rows == PACKS


def rows_by_table(folder: MemoryFolder) -> dict[str, list[tuple[Any, ...]]]:
    """Return all rows of a catalogue; an object is its id and archive in place of its number."""
    listing = newest(folder)
    opened = PartTable.open_all(folder, [(part, name) for part in listing.parts for name in TABLES])
    names = {}
    for (_, name), table in opened.items():
        if name == "objects":
            for rows in table.all_rows():
                for row in rows.to_pylist():
                    names[row["object"]] = row["archive"], row["id"]
    found: dict[str, list[tuple[Any, ...]]] = {name: [] for name in TABLES}
    for (_, name), table in opened.items():
        for rows in table.all_rows():
            for row in rows.to_pylist():
                if "object" in row:
                    row["object"] = names[row["object"]]
                found[name].append(tuple(row.values()))
    return {name: sorted(rows, key=repr) for name, rows in found.items()}


def test_merging_loses_and_changes_nothing(truth: Truth) -> None:
    at_once, one_by_one = MemoryFolder(), MemoryFolder()
    rows = CatalogueRows()
    for pack in truth.packs[:11]:
        rows_of_pack(pack, rows)
        publish(one_by_one, [write_rows(one_by_one, rows_of_pack(pack))])
    publish(at_once, [write_rows(at_once, rows)])

    assert rows_by_table(one_by_one) == rows_by_table(at_once)


def test_tables_are_sorted_and_their_objects_are_rows_of_theirs(shelf: Shelf) -> None:
    for part in shelf.parts:
        for name, kind in TABLES.items():
            (data,) = shelf.folder.ranges([(part.path(name), 0, part.tables[name].size_bytes)])
            table = pq.read_table(pa.BufferReader(data))
            assert table.schema.equals(kind.schema)
            keys = [
                tuple((value is not None, value) for value in row)
                for row in zip(
                    *(table.column(column).to_pylist() for column in kind.order), strict=True
                )
            ]
            assert keys == sorted(keys)
            if name == "objects":
                first = part.number << 32
                expected = list(range(first, first + part.objects))
                assert table.column("object").to_pylist() == expected


def test_gone_archives_leave_and_what_they_hid_comes_back(truth: Truth) -> None:
    folder = MemoryFolder()
    for pack in truth.packs[:10]:
        publish(folder, [write_rows(folder, rows_of_pack(pack))])
    last = truth.packs[9]
    parts = newest(folder).parts
    gone = {part.number: {last.archive: last.packed_ms} for part in parts}
    hidden = truth.packs[8].runs[GROWN][0]["info"]["run_id"]
    assert truth.states[hidden][1][0] is last
    before = Shelf(folder, parts, gone)

    assert found(before, runs=(hidden,)) == {(hidden, truth.packs[8].archive)}
    every = found(before, kinds=("run",))
    publish(folder, [], gone={number: {last.archive} for number in gone})
    after = Shelf(folder, newest(folder).parts)
    assert found(after, kinds=("run",)) == every
    assert last.archive not in {archive for _, archive in every}
    assert sum(part.tables["archives"].rows for part in after.parts) == 9


def test_writers_at_once_lose_nothing(truth: Truth, tmp_path: Path) -> None:
    def write(pack: Pack) -> None:
        folder = open_folder(str(tmp_path))
        publish(folder, [write_rows(folder, rows_of_pack(pack))])

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(write, truth.packs))

    folder = open_folder(str(tmp_path))
    listing = newest(folder)
    assert listing.number == PACKS
    expected = truth.of(lambda _, __: True)
    assert found(Shelf(folder, listing.parts), kinds=("run",)) == expected
    assert len(list((tmp_path / "catalogue" / "objects").iterdir())) == len(listing.parts)


def one_run(**more: Any) -> CatalogueRows:
    rows = CatalogueRows()
    rows.begin(ArchiveTold("a.tar.zst", "0" * 64, 1, "", 1, "http://x"))
    info = {"run_id": "r1", "experiment_id": "0", "start_time": 5, "end_time": 2**70}
    rows.run({"info": info, **more}, "e", [])
    rows.end()
    return rows


def shelf_of(rows: CatalogueRows) -> Shelf:
    folder = MemoryFolder()
    return Shelf(folder, [write_rows(folder, rows)])


def test_values_that_json_has_no_number_for_are_found() -> None:
    values = {"nan": "NaN", "inf": "Infinity", "minus": "-Infinity", "one": 1}
    metrics = [{"key": key, "value": value} for key, value in values.items()]
    shelf = shelf_of(one_run(data={"metrics": metrics}))

    for asked, holds in {
        "nan=nan": True,
        "nan>0": False,
        "nan": True,
        "inf>1e308": True,
        "inf=inf": True,
        "minus<-1e308": True,
        "minus>0": False,
        "one=1": True,
        "one=nan": False,
        "one>nan": False,
        "two": False,
    }.items():
        assert bool(found(shelf, metrics=(asked,))) is holds, asked
    (row,) = search([shelf], Seeking(kinds=("run",))).objects
    assert (row["start_time_ms"], row["end_time_ms"]) == (5, None)


def test_long_texts_are_found_whole_and_by_their_beginning() -> None:
    text = "start " + "x" * 5000
    data = {"params": [{"key": "long", "value": text}, {"key": "odd", "value": "a[1]*"}]}
    shelf = shelf_of(one_run(data=data))

    assert found(shelf, params=(f"long={text}",))
    assert not found(shelf, params=(f"long={text}y",))
    assert found(shelf, params=("long=start *",))
    assert found(shelf, params=("odd=a[1]*",))  # a text that is spelled out is no glob
    assert len(shortened(text)) < 300


def test_a_copy_is_found_by_the_id_that_it_had() -> None:
    tags = [{"key": "mlflow_exim.run_info.run_id", "value": "before"}]
    shelf = shelf_of(one_run(data={"tags": tags}))

    assert found(shelf, runs=("before",)) == found(shelf, runs=("r1",)) != set()
    assert search([shelf], Seeking(), "before").total == 1


def test_odd_documents_leave_no_half_of_themselves() -> None:
    rows = CatalogueRows()
    rows.begin(ArchiveTold("a.tar.zst", "0" * 64, 1, "", 1, "http://x"))
    odd = {"info": {"run_id": "r", "experiment_id": "0"}, "data": {"metrics": [{"key": "k"}]}}
    with pytest.raises(KeyError):
        rows.run(odd, "e", [])
    rows.end()

    tables = rows.tables(1)
    assert {name: len(table) for name, table in tables.items() if name != "archives"} == (
        dict.fromkeys([name for name in TABLES if name != "archives"], 0)
    )


def damaged(shelf: Shelf, table: str, change: Callable[[bytearray], None]) -> Shelf:
    assert isinstance(shelf.folder, MemoryFolder)
    path = shelf.parts[0].path(table)
    data = bytearray(shelf.folder._files[path])
    change(data)
    shelf.folder._files[path] = bytes(data)
    return shelf


def flip(place: int) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        data[place] ^= 0x5A

    return change


@pytest.mark.parametrize("table", ["values", "objects", "hashes", "ids"])
def test_damage_is_named_and_never_an_answer(table: str, truth: Truth) -> None:
    run_id = truth.packs[0].runs[0][0]["info"]["run_id"]

    def answered(shelf: Shelf) -> set[tuple[str, str]]:
        if table == "ids":  # a search by what objects hold reads it of those with several states
            return {
                (row["id"], row["archive"]) for row in search([shelf], Seeking(), run_id).objects
            }
        return found(shelf, tags=("team=risk",))

    right, hints = None, set()
    for place in random.Random(5).sample(range(3000), 30):
        shelf = shelf_of(rows_of_pack(truth.packs[0]))
        right = right or answered(shelf)
        size = shelf.parts[0].tables[table].size_bytes
        damaged(shelf, table, flip(place % size))
        try:
            answer = answered(shelf)
        except InvalidArchiveError as error:
            hints.add(error.hint)
        else:
            assert answer == right
    assert hints == {"`mlflow exim index --rebuild` makes it anew"}


def test_what_listings_may_not_say_is_refused(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    publish(folder, [write_rows(folder, one_run())])
    place = tmp_path / "catalogue" / "parts" / "00000001.json"
    good = place.read_text()
    (part,) = newest(folder).parts
    footer = f'"footer_bytes":{part.tables["ids"].footer_bytes}'
    for text, error in {
        good.replace('"1.0"', '"2.0"'): UnsupportedFormatError,
        good.replace('"1.0"', '"1.9"'): None,
        good.replace("catalogue", "cat"): InvalidArchiveError,
        good.replace('"number":1', '"number":2', 1): InvalidArchiveError,
        good[:-20]: InvalidArchiveError,
        "[]": InvalidArchiveError,
    }.items():
        place.write_text(text)
        if error is None:
            assert newest(folder).number == 1
            continue
        with pytest.raises(error):
            newest(folder)
    for wrong in ("0", "8", "99999999"):
        place.write_text(good.replace(footer, f'"footer_bytes":{wrong}'))
        with pytest.raises(InvalidArchiveError):
            search([Shelf(folder, newest(folder).parts)], Seeking(runs=("r1",)))
    publish(folder, [write_rows(folder, one_run())], anew=True)
    assert len(newest(folder).parts) == 1
    assert len(list((tmp_path / "catalogue" / "ids").iterdir())) == 1


def test_merging_holds_a_few_row_groups_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = MemoryFolder()
    parts = [write_rows(folder, rows_of_pack(pack)) for pack in packs(4, 4000)]
    held: list[int] = []
    merging = parts_module._merged

    def watched(streams: Any, kind: TableKind) -> Any:
        for table in merging(streams, kind):
            held.append(table.num_rows / kind.group_rows)
            yield table

    monkeypatch.setattr(parts_module, "_merged", watched)
    merged = merge(folder, parts, 7, {})

    assert merged.objects == 16_000
    assert max(held) <= len(parts)


def test_ranges_of_metrics_are_read() -> None:
    assert MetricRange.read("acc>0.9") == MetricRange("acc", ">", 0.9)
    assert MetricRange.read("val/acc @ 5 <= -1e-3") == MetricRange("val/acc @ 5", "<=", -0.001)
    assert MetricRange.read("a==1") == MetricRange("a", "=", 1.0)
    assert MetricRange.read("a") == MetricRange("a")
    assert math.isnan(MetricRange.read("a=nan").bound)
    for wrong in ("", "a>", "a>b", ">1"):
        with pytest.raises(UsageError):
            Seeking(metrics=(wrong,))
    for more in ({"tags": ("=x",)}, {"sha256": ("abc",)}, {"kinds": ("runs",)}):
        with pytest.raises(UsageError):
            Seeking(**more)  # type: ignore[arg-type]
