"""A folder of files says what MLflow's own store says of it, and each damage costs only itself."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from mlflow import MlflowClient

from mlflow_exim_plugin import diff, pack, unpack
from mlflow_exim_plugin.errors import NotFoundError, StoreError
from mlflow_exim_plugin.host.open.host import Host
from mlflow_exim_plugin.operations.ends import open_source
from mlflow_exim_plugin.options import Opening, Selection
from mlflow_exim_plugin.schema.metric_rows import RunRows
from mlflow_exim_plugin.schema.objects import (
    Artifact,
    Experiment,
    Kind,
    RegisteredModel,
    Run,
    Unpacked,
)
from mlflow_exim_plugin.sources.server.source import ServerSource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from mlflow_exim_plugin.schema.report import Report
    from tests.folder_seed import Store

pytestmark = pytest.mark.integration

SELECTIONS = {
    "all": Selection(),
    "an experiment": Selection(experiments=("e",)),
    "a model": Selection(models=("net",)),
    "by filter": Selection(filter="params.empty = '' and metrics.`m/x` > 1"),
    "nothing deleted": Selection(deleted=False),
    "since": Selection(since_ms=1_000_000_000_000),
    "until": Selection(until_ms=1_000_000_000_000),
    "no traces": Selection(traces=False, include=("a/*",)),
}


@pytest.mark.parametrize("selection", SELECTIONS.values(), ids=SELECTIONS)
def test_it_says_what_mlflows_own_store_says(filled_folder: Store, selection: Selection) -> None:
    with Host(filled_folder.uri, filled_folder.uri, create=False) as host:
        expected = told(ServerSource(host).stream(selection))
    with open_source(filled_folder.uri) as opened:
        found = told(opened.stream.stream(selection))

    assert found == expected
    assert found


def test_what_is_put_back_is_no_different(
    filled_folder: Store, sqlite_uri: str, tmp_path: Path
) -> None:
    archive = str(tmp_path / "a.tar.zst")
    assert pack(archive, tracking_uri=filled_folder.uri).ok
    report = unpack(archive, tracking_uri=sqlite_uri, artifact_location=str(tmp_path / "files"))
    assert [loss.what for loss in report.losses] == ["infinities are kept as the largest double"]

    result = diff(filled_folder.uri, sqlite_uri)
    assert result.equal, result.differences
    client = MlflowClient(sqlite_uri, sqlite_uri)
    for name, source in (("copied", "models:/net/1"), ("of model", "models:/m-")):
        meta = (filled_folder.folder / "models" / name / "version-1" / "meta.yaml").read_text()
        assert f"source: {source}" in meta
        assert client.get_model_version(name, "1").source.startswith(source)
    assert str(tmp_path / "files") in client.get_model_version_download_uri("copied", "1")


def test_a_run_taken_alone_brings_what_it_made(filled_folder: Store) -> None:
    selection = Selection(runs=(filled_folder.runs["parent"], filled_folder.runs["full"][:8] + "*"))
    with Host(filled_folder.uri, filled_folder.uri, create=False) as host:
        expected = told(ServerSource(host).stream(selection))
    with open_source(filled_folder.uri) as opened:
        assert told(opened.stream.stream(selection)) == expected

        (found,) = opened.names.find(filled_folder.runs["full"])
        assert found.id == filled_folder.runs["full"]
        with pytest.raises(NotFoundError, match="'nobody'"):
            list(opened.stream.stream(Selection(runs=("nobody",))))


def test_nothing_but_the_folder_is_touched(
    filled_folder: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled_folder.copied(tmp_path / "mlruns")
    shutil.rmtree(store.folder / "models")
    shutil.rmtree(store.folder / ".trash")
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    before = state(store.folder)

    report = pack(str(tmp_path / "a.tar.zst"), tracking_uri=store.uri)

    assert report.counts[Kind.RUN].written == 3
    assert state(store.folder) == before
    assert list((tmp_path / "cwd").iterdir()) == []


def test_a_run_without_its_empty_folders_is_a_run(filled_folder: Store, tmp_path: Path) -> None:
    """Version control, zip and object stores keep no empty folder."""
    store = filled_folder.copied(tmp_path / "mlruns")
    bare = store.run("parent")
    for part in bare.iterdir():
        if part.is_dir():
            shutil.rmtree(part)

    report = packed(store, tmp_path)

    assert report.failures == []
    assert report.counts[Kind.RUN].written == 4


def test_what_git_lfs_left_for_a_file_is_named(filled_folder: Store, tmp_path: Path) -> None:
    store = filled_folder.copied(tmp_path / "mlruns", says_so=True)
    start = "version https://git-lfs.github.com/spec/v1\n"
    pointer = f"{start}oid sha256:{'0a' * 32}\nsize 123456\n"
    for name, text in (("w.bin", pointer), ("w.txt", pointer.replace("v1", "v2"))):
        (store.run("full") / "artifacts" / name).write_text(text)

    report = packed(store, tmp_path)

    lost = [loss.id for loss in report.losses if "Git LFS" in loss.what]
    assert lost == [f"{store.runs['full']}/w.bin"]


def _cut_line(store: Store) -> None:
    file = store.run("full") / "metrics" / "m" / "x"
    file.write_text(file.read_text()[:-4] + "17")


def _open_line(store: Store) -> None:
    file = store.run("full") / "metrics" / "m" / "x"
    file.write_text(file.read_text()[:-1])


def _empty_metric(store: Store) -> None:
    (store.run("full") / "metrics" / "nan").write_bytes(b"")


def _binary_param(store: Store) -> None:
    (store.run("full") / "params" / "empty").write_bytes(b"\xff")


def _lost(file: str) -> Callable[[Store], None]:
    return lambda store: (store.run("full") / file).unlink()


def _empty(file: str) -> Callable[[Store], object]:
    return lambda store: (store.run("full") / file).write_bytes(b"")


def _moved_run(store: Store) -> None:
    shutil.move(store.run("full"), store.folder / "0" / store.runs["full"])


def _experiment(text: bytes | None) -> Callable[[Store], None]:
    def damage(store: Store) -> None:
        meta = store.folder / store.experiments["e"] / "meta.yaml"
        meta.unlink() if text is None else meta.write_bytes(text)

    return damage


def _text_for_a_time(store: Store) -> None:
    meta = store.run("full") / "meta.yaml"
    meta.write_text(meta.read_text().replace("start_time: ", "start_time: x"))


DAMAGES: dict[str, tuple[Callable[[Store], object], dict[str, int], set[str]]] = {
    "a cut line": (_cut_line, {"metric_history": 1}, {"line 5 is damaged"}),
    "a line without its end": (
        _open_line,
        {"metric_history": 1},
        {"line 5 has no end and may be cut"},
    ),
    "an empty metric": (_empty_metric, {"metric_history": 1}, {"it is empty"}),
    "a param that is no text": (_binary_param, {"param": 1}, {"params/empty"}),
    "a run's lost meta": (_lost("meta.yaml"), {"run": 1}, {"meta.yaml"}),
    "a run's empty meta": (_empty("meta.yaml"), {"run": 1}, {"is empty"}),
    "text for a time": (_text_for_a_time, {"run": 1}, {"start_time"}),
    "a run that was moved": (_moved_run, {"run": 1}, {"its meta.yaml says experiment"}),
    "an experiment's lost meta": (
        _experiment(None),
        {"experiment": 1, "run": 3},
        {"has lost its meta.yaml"},
    ),
    "an experiment's empty meta": (_experiment(b""), {"experiment": 1, "run": 3}, {"is empty"}),
    "an experiment's broken meta": (
        _experiment(b"name: [\n"),
        {"experiment": 1, "run": 3},
        {"is damaged at line"},
    ),
}


@pytest.mark.parametrize(("damage", "failed", "said"), DAMAGES.values(), ids=DAMAGES)
def test_a_damage_costs_itself_and_is_named(
    filled_folder: Store,
    tmp_path: Path,
    damage: Callable[[Store], None],
    failed: dict[str, int],
    said: set[str],
) -> None:
    store = filled_folder.copied(tmp_path / "mlruns")
    whole = packed(store, tmp_path)
    damage(store)

    report = packed(store, tmp_path)

    assert {str(k): c.failed for k, c in report.counts.items() if c.failed} == failed
    reasons = " ".join(f"{f.id} {f.reason}" for f in report.failures)
    assert all(text in reasons for text in said), reasons
    assert str(store.folder) in reasons
    for kind in (Kind.EXPERIMENT, Kind.RUN):
        assert report.counts[kind].found == whole.counts[kind].found
    others = whole.counts[Kind.RUN].written - failed.get("run", 0)
    assert report.counts[Kind.RUN].written == others


def test_the_rest_of_a_damaged_history_arrives(filled_folder: Store, tmp_path: Path) -> None:
    store = filled_folder.copied(tmp_path / "mlruns")
    _cut_line(store)
    archive, target = str(tmp_path / "a.tar.zst"), f"sqlite:///{tmp_path}/t.db"
    pack(archive, tracking_uri=store.uri)
    unpack(archive, tracking_uri=target, artifact_location=str(tmp_path / "files"))

    client = MlflowClient(target, target)

    rows = client.get_metric_history(store.runs["full"], "m/x")
    assert sorted(row.step for row in rows) == [0, 1, 2, 3]
    assert client.get_run(store.runs["full"]).data.params["p/q"] == "v"


def test_folders_of_others_are_left_alone_and_named_once(
    filled_folder: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = filled_folder.copied(tmp_path / "mlruns")
    of_others = [".ipynb_checkpoints", "@eaDir", "lost+found", "my model"]
    for name in of_others:
        (store.folder / name / "data").mkdir(parents=True)
        (store.folder / store.experiments["e"] / name).mkdir()
    (store.folder / ".DS_Store").touch()
    (store.run("full") / "meta.yaml.bak").touch()

    with caplog.at_level(logging.INFO, "mlflow_exim_plugin"):
        report = packed(store, tmp_path)

    assert report.failures == []
    assert report.counts[Kind.RUN].written == 4
    lines = [record.getMessage() for record in caplog.records if "left alone" in record.message]
    assert all(name in lines[0] for name in [*of_others, "meta.yaml.bak"])
    assert len(lines) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read all")
def test_what_may_not_be_read_is_named(filled_folder: Store, tmp_path: Path) -> None:
    store = filled_folder.copied(tmp_path / "mlruns")
    (store.run("full") / "params" / "empty").chmod(0)
    store.run("parent").chmod(0)

    report = packed(store, tmp_path)

    store.run("parent").chmod(0o700)
    assert {str(k): c.failed for k, c in report.counts.items() if c.failed} == {
        "run": 1,
        "param": 1,
    }


def test_what_lies_in_the_trash_is_deleted(filled_folder: Store, tmp_path: Path) -> None:
    """MLflow before 2.0 moves a deleted experiment there and writes nothing into it."""
    store = filled_folder.copied(tmp_path / "mlruns")
    meta = store.folder / ".trash" / store.experiments["gone"] / "meta.yaml"
    meta.write_text(meta.read_text().replace("lifecycle_stage: deleted", "lifecycle_stage: active"))

    with open_source(store.uri) as opened:
        stages = {
            item.id: item.document["lifecycle_stage"]
            for item in opened.stream.stream(Selection())
            if isinstance(item, Experiment)
        }

    assert stages[store.experiments["gone"]] == "deleted"
    assert stages[store.experiments["e"]] == "active"


def test_a_registry_elsewhere_is_read_with_the_folder(filled_folder: Store, tmp_path: Path) -> None:
    registry = f"sqlite:///{tmp_path}/registry.db"
    MlflowClient(registry, registry).create_registered_model("elsewhere")

    with open_source(filled_folder.uri, Opening(registry_uri=registry)) as opened:
        found = [
            item.id
            for item in opened.stream.stream(Selection())
            if isinstance(item, RegisteredModel)
        ]

    assert found == ["elsewhere"]


def test_a_long_history_is_read_key_by_key(
    filled_folder: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_source(filled_folder.uri) as opened:
        at_once = told(opened.stream.stream(Selection()))
    monkeypatch.setattr("mlflow_exim_plugin.sources.folder.store._HELD_BYTES", 1)

    with open_source(filled_folder.uri) as opened:
        assert told(opened.stream.stream(Selection())) == at_once


def test_a_folder_that_cannot_be_listed(tmp_path: Path, filled_folder: Store) -> None:
    store = filled_folder.copied(tmp_path / "mlruns")
    if os.geteuid() == 0:
        pytest.skip("root may list all")
    store.folder.chmod(0o100)
    with pytest.raises((StoreError, NotFoundError)):
        pack(str(tmp_path / "a.tar.zst"), tracking_uri=store.uri)
    store.folder.chmod(0o700)


def packed(store: Store, tmp_path: Path) -> Report:
    return pack(str(tmp_path / "a.tar.zst"), tracking_uri=store.uri, overwrite=True)


def state(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(p), p.stat().st_mtime_ns) for p in [folder, *folder.rglob("*")])


def told(stream: Iterator[Any]) -> list[tuple[str, str, str]]:
    """Return each object with all that hangs on it, as text: NaN equals NaN there."""
    found = []
    for item in stream:
        if isinstance(item, Unpacked):
            continue  # of servers
        if not hasattr(item, "document"):
            found.append((str(item.kind), item.id, repr(item)))
            continue
        parts: dict[str, Any] = {**item.document, "issues": item.issues}
        for part in ("artifacts", "attachments"):
            parts[part] = [contents(a) for a in getattr(item, part, ())]
        rows = getattr(item, "histories", ()) if isinstance(item, Run) else ()
        parts["rows"] = [
            row for r in rows for row in (r.table.to_pylist() if isinstance(r, RunRows) else [r])
        ]
        parts["spans"] = getattr(item, "spans", None)
        found.append((str(item.kind), item.id, json.dumps(parts, sort_keys=True, default=repr)))
    return found


def contents(artifact: Any) -> object:
    if not isinstance(artifact, Artifact):
        return artifact
    with artifact.open() as file:
        return artifact.path, artifact.size_bytes, file.read()


def test_mlflow_is_not_imported_for_a_folder(filled_folder: Store, tmp_path: Path) -> None:
    """It takes longer than all else that a small folder costs."""
    program = (
        "import sys\n"
        "from mlflow_exim_plugin import pack\n"
        f"report = pack({str(tmp_path / 'a.tar.zst')!r}, tracking_uri={filled_folder.uri!r})\n"
        "assert report.ok\n"
        "assert 'mlflow' not in sys.modules\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
