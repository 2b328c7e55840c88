"""What the tables of a database say is what MLflow says of them, and it is read without MLflow."""

from __future__ import annotations

import hashlib
import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy

from mlflow_exim_plugin import copy, pack
from mlflow_exim_plugin.errors import ExitCode
from mlflow_exim_plugin.host.api.histories import read_history
from mlflow_exim_plugin.host.api.reading import Reader
from mlflow_exim_plugin.host.open.host import Host
from mlflow_exim_plugin.host.open.schema_revisions import at_revision, upgrade
from mlflow_exim_plugin.host.sql.histories import StoredHistories
from mlflow_exim_plugin.host.sql.reading import reader_of
from mlflow_exim_plugin.kinds import KINDS, VERSION_KINDS
from mlflow_exim_plugin.schema.objects import Failure, Kind
from tests import everything
from tests.depth import one_of
from tests.filled import copy_of_server
from tests.told import assert_told_as_by_mlflow, told

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration

TRACE = f"tr-{0xA6E27:031x}0"
"""One of those of ``everything``."""
RUN_IDS = [f"{number:032x}" for number in range(1, 4)]
OF_0_9, OF_1_0, OF_1_1, OF_2_0 = "", "451aebb31d03", "df50e92ffc5e", "97727af70f4d"


def test_a_full_store_is_told_as_by_mlflow(tmp_path: Path) -> None:
    copy_of_server(tmp_path, everything.fill, env=everything.SERVER_ENV)
    with Host(f"sqlite:///{tmp_path}/mlflow.db", create=False) as host:
        kinds = assert_told_as_by_mlflow(host)
    by_others = {Kind.MCP_SERVER, Kind.SKILL, Kind.WORKSPACE, *VERSION_KINDS.values()}
    assert kinds >= set(map(str, {*KINDS} - by_others))

    loaded, why = packed(tmp_path / "mlflow.db")
    assert "mlflow" in loaded
    assert why == {
        "the model of scorer 'safe' is an endpoint of the gateway",
        f"MCP server: {KINDS[Kind.MCP_SERVER].by_mlflow}",
    }
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        database.execute("DELETE FROM mcp_servers")
        database.execute("DELETE FROM scorer_versions WHERE serialized_scorer LIKE '%gateway:/%'")
        database.commit()
        assert packed(tmp_path / "mlflow.db") == (set(), set())

        database.execute("UPDATE trace_info SET timestamp_ms = 'x' WHERE request_id = ?", (TRACE,))
        database.execute("UPDATE label_schemas SET input_config = '{' WHERE name = 'Feedback'")
        database.commit()
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    report = pack(str(tmp_path / "b.tar.zst"), tracking_uri=uri, artifacts=False)
    broken = [failure for failure in report.failures if failure.kind is not Kind.SPAN]
    assert {failure.kind for failure in broken} == {Kind.TRACE, Kind.LABEL_SCHEMA}
    assert [failure.id for failure in broken if failure.kind is Kind.TRACE] == [TRACE]
    assert report.counts[Kind.LABEL_SCHEMA].written > 0


def test_a_full_postgresql_is_told_as_by_mlflow(tmp_path: Path, postgres_uri: str) -> None:
    copy_of_server(tmp_path, everything.fill, env=everything.SERVER_ENV)
    source = f"sqlite:///{tmp_path}/mlflow.db"
    copy(source, postgres_uri, artifact_location=str(tmp_path), artifacts=False)
    with Host(postgres_uri, create=False) as host:
        assert assert_told_as_by_mlflow(host) >= {"run", "trace", "evaluation_dataset", "endpoint"}


def packed(path: Path) -> tuple[set[str], set[str]]:
    """Pack a database by a command of its own; return what that loaded, and why as it says."""
    command = ["pack", str(path.with_suffix(".tar.zst")), "--overwrite", "--no-artifacts"]
    command += ["--tracking-uri", f"sqlite:///{path}", "--verbose"]
    script = (
        "import atexit, sys; from mlflow_exim_plugin.entrypoints import main\n"
        "atexit.register(lambda: print(*{'mlflow', 'pandas'} & set(sys.modules)))\n"
        f"sys.argv = ['mlflow-exim', *{command!r}]; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True
    )
    assert done.returncode in {ExitCode.DONE, ExitCode.PARTIAL}, done.stderr
    why = re.findall("MLflow is loaded to read this database: (.*)", done.stderr)
    return set(done.stdout.splitlines()[-1].split()), set(why)


def fill_at(path: Path, revision: str) -> None:
    """Fill a database of an early schema, each table with the columns that it has."""
    engine = sqlalchemy.create_engine(f"sqlite:///{path}")
    at_revision(engine, revision)
    tables = sqlalchemy.MetaData()
    tables.reflect(engine)
    first, stage = "1", {"lifecycle_stage": "active"}
    rows: list[tuple[str, dict[str, Any]]] = [
        ("experiments", {"experiment_id": 0, "name": "Default", "artifact_location": "/a"} | stage),
        ("experiments", {"experiment_id": 1, "name": "old", "artifact_location": "/b"} | stage),
        ("experiment_tags", {"experiment_id": 1, "key": "team", "value": "a"}),
        ("registered_models", {"name": "m", "creation_time": 5, "description": "text"}),
        ("registered_model_tags", {"name": "m", "key": "k", "value": "v"}),
        ("registered_model_aliases", {"name": "m", "alias": "best", "version": 1}),
    ]
    for number, run_id in enumerate(RUN_IDS):
        info = {"experiment_id": first, "user_id": "ada", "status": "FINISHED", "start_time": 7}
        info |= {"artifact_uri": f"/b/{run_id}", "source_type": "LOCAL", "name": ""}
        rows.append(("runs", {"run_uuid": run_id} | info | stage))
        rows.append(("tags", {"run_uuid": run_id, "key": "mlflow.runName", "value": str(number)}))
        rows.append(("params", {"run_uuid": run_id, "key": "lr", "value": "0.1"}))
        for step, value in enumerate((0.1 + 0.2, 0.25, 1e300)):
            metric = {"run_uuid": run_id, "key": f"loss{step % 2}", "value": value, "is_nan": False}
            rows.append(("metrics", metric | {"timestamp": 10 - step, "step": 3 - step}))
            if step:
                rows.append(("latest_metrics", metric | {"timestamp": 10 - step, "step": 3 - step}))
    rows.append(("tags", {"run_uuid": RUN_IDS[0], "key": "mlflow.user", "value": "bob"}))
    version = {"name": "m", "current_stage": "None", "source": "/b/s", "status": "READY"}
    rows += [
        ("model_versions", version | {"version": 1, "creation_time": 6, "run_id": RUN_IDS[0]}),
        ("model_versions", version | {"version": 2, "current_stage": "Deleted_Internal"}),
        ("model_version_tags", {"name": "m", "version": 1, "key": "k", "value": "v"}),
    ]
    with engine.begin() as connection:
        for name, row in rows:
            if (table := tables.tables.get(name)) is not None:
                there = {column: value for column, value in row.items() if column in table.c}
                connection.execute(table.insert().values(**there))
    engine.dispose()


@pytest.mark.filterwarnings("ignore")  # MLflow's first migrations warn
@pytest.mark.parametrize("revision", one_of(OF_1_0, OF_0_9, OF_1_1, OF_2_0))
def test_an_early_schema_is_told_as_mlflow_tells_it_when_it_has_migrated_it(
    tmp_path: Path, revision: str
) -> None:
    old, migrated = tmp_path / "mlflow.db", tmp_path / "migrated.db"
    fill_at(old, revision)
    shutil.copyfile(old, migrated)
    before = hashlib.sha256(old.read_bytes()).hexdigest()
    engine = sqlalchemy.create_engine(f"sqlite:///{migrated}")
    upgrade(engine)
    engine.dispose()

    with Host(f"sqlite:///{migrated}", create=False) as host:
        expected = told(Reader(host))
        rows = {
            run_id: {key: read_history(host, run_id, key).to_pylist() for key in ("loss0", "loss1")}
            for run_id in RUN_IDS
        }
    for document in expected.values():
        if isinstance(document, dict):
            document.pop("workspace", None)  # which no server of that time had
    with Host(f"sqlite:///{old}", create=False) as host:
        reader = reader_of(host)
        found = told(reader)
        assert host.engine is not None
        with closing(StoredHistories(host.engine)) as histories:
            read = histories.start({run_id: {} for run_id in RUN_IDS}).finish()
            for run_id, parts in read.items():
                got = [row for part in parts for row in table_of(part)]
                assert got == [row for key in ("loss0", "loss1") for row in rows[run_id][key]]
    if revision in {OF_0_9, OF_1_0}:
        # That migration tags one run of an experiment with its user, and means all of them.
        users = [tags_of(found[f"run/{run_id}"]).pop("mlflow.user") for run_id in RUN_IDS]
        assert users == ["bob", "ada", "ada"]
        for told_of in (found, expected):
            for run_id in RUN_IDS:
                data = told_of[f"run/{run_id}"]["data"]
                data["tags"] = [tag for tag in data["tags"] if tag["key"] != "mlflow.user"]
    assert found == expected
    assert hashlib.sha256(old.read_bytes()).hexdigest() == before
    assert {path.name for path in tmp_path.iterdir()} == {"mlflow.db", "migrated.db"}


def tags_of(run: dict[str, Any]) -> dict[str, str]:
    return {tag["key"]: tag["value"] for tag in run["data"]["tags"]}


def table_of(part: Any) -> list[dict[str, Any]]:
    assert not isinstance(part, Failure)
    rows: list[dict[str, Any]] = part.table.to_pylist()
    return rows


def test_neither_mlflow_nor_pandas_is_loaded_for_what_is_read_from_tables(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    fill_at(path, OF_2_0)
    before = path.read_bytes()
    assert packed(path) == (set(), set())
    assert path.read_bytes() == before
