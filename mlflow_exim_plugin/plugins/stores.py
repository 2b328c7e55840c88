"""MLflow's tracking store and model registry store on archives, which only read.

They are MLflow's own stores of a database, on a private one that has all of the archives but what
is large. So filters, order, pages and errors are those of the MLflow that is installed. Metric
rows are put where its queries look for them when it asks for a history.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import re
import sqlite3
import sys
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import sqlalchemy
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as RegistryStore
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore as TrackingStore

from mlflow_exim_plugin.host.lent import lend
from mlflow_exim_plugin.host.traces.documents import ARTIFACT_LOCATION
from mlflow_exim_plugin.operations.live.archive import open_live
from mlflow_exim_plugin.plugins.address import Address
from mlflow_exim_plugin.plugins.refusal import as_mlflow, refused
from mlflow_exim_plugin.stages.in_archive import PLACE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from mlflow_exim_plugin.operations.live.archive import LiveArchives

__all__ = ["open_store"]

_READS = re.compile(
    r"(get|search|list|batch_get|calculate|filter|find|query|resolve|sanitize|sum|supports)(_|$)"
    r"|(end|flush|shut_down)_async_logging$"
)
"""Methods of MLflow's stores that write nothing; what such a one still writes, SQL refuses."""
_OF_HISTORIES = re.compile(r"^get_(metric_history|max_step_for_metric)")
"""Methods that look for metric rows; which there are differs by MLflow."""
_READING = ("SELECT", "WITH", "PRAGMA", "BEGIN", "SAVEPOINT", "RELEASE", "ROLLBACK")
_PLACES = {
    "runs": ("artifact_uri", ""),
    "logged_models": ("artifact_location", ""),
    "model_versions": ("storage_location", ""),
    "trace_tags": ("value", f"key = '{ARTIFACT_LOCATION}' AND "),
}
"""Columns that name places of files, and which rows of them do."""


def open_store(kind: str, uri: str) -> Any:
    """Return one of MLflow's stores on archives.

    Args:
        kind: ``tracking``, ``registry`` or ``workspace``.
        uri: Address of the archives.

    Raises:
        MlflowException: An archive is not there, or cannot be read.
    """
    with as_mlflow():
        address = replace(Address.parse(uri), folder="")
        live = open_live(*address.archives)
        if kind == "tracking":
            return _tracking_class(live.has_workspaces)(live, address, str(address))
        if kind == "registry":
            return _registry_class(live.has_workspaces)(live, address)
        from mlflow.store.workspace.sqlalchemy_store import SqlAlchemyStore

        return _class_of(SqlAlchemyStore)(_lent(live, address))


_Store: Any = object
"""The class of MLflow's that stands behind, see ``_class_of``."""


class _OfArchive(_Store):  # type: ignore[misc]
    """Stands before a store of MLflow's that is opened on archives.

    Args:
        live: The archives.
        address: What their members are an address below.
        arguments: Further ones of MLflow's store.
    """

    engine: sqlalchemy.Engine
    ManagedSessionMaker: Callable[..., Any]

    def __init__(self, live: LiveArchives, address: Address, *arguments: Any) -> None:
        self._live = live
        self._asked = threading.local()
        super().__init__(_lent(live, address), *arguments)
        sqlalchemy.event.listen(self.engine, "before_cursor_execute", _require_reading)

    def _create_default_experiment(self, session: Any) -> None:
        """Make none: an archive has what it has."""

    def _ensure_default_label_schema(self, *_: Any) -> None:
        """Make none for who lists them."""


class _WithHistories(_OfArchive):
    """Puts metric rows where MLflow's queries look for them while it asks for a history."""

    def __init__(self, live: LiveArchives, address: Address, *arguments: Any) -> None:
        super().__init__(live, address, *arguments)
        if live.has_histories:
            return
        inner = self.ManagedSessionMaker

        @contextlib.contextmanager
        def with_histories(*arguments: Any, **options: Any) -> Iterator[Any]:
            with inner(*arguments, **options) as session:
                asked = getattr(self._asked, "histories", None)
                if asked is None:
                    yield session
                    return
                connection = session.connection().connection.driver_connection
                self._put(connection, *asked)
                try:
                    yield session
                finally:
                    connection.execute("DELETE FROM temp.metrics")

        self.ManagedSessionMaker = with_histories

    @contextlib.contextmanager
    def asking(self, run_ids: Sequence[str], key: str) -> Iterator[None]:
        """Have the rows of a metric of some runs in the sessions of this thread."""
        before = getattr(self._asked, "histories", None)
        self._asked.histories = (list(run_ids), key)
        try:
            yield
        finally:
            self._asked.histories = before

    def _put(self, connection: sqlite3.Connection, run_ids: Sequence[str], key: str) -> None:
        connection.execute("DELETE FROM temp.metrics")
        with as_mlflow():
            for rows in self._live.metric_rows(run_ids, key):
                names = ", ".join(rows.column_names)
                marks = ", ".join("?" * rows.num_columns)
                columns = [column.to_pylist() for column in rows.columns]
                insert = f"INSERT INTO temp.metrics ({names}) VALUES ({marks})"  # noqa: S608 - ours
                connection.executemany(insert, zip(*columns, strict=True))


def _lent(live: LiveArchives, address: Address) -> str:
    """Return a URI that MLflow opens the database of an archive by."""
    url = sqlalchemy.make_url(f"sqlite:///{live.database}")
    return lend(url, lambda: _connection(live, address)).render_as_string()


def _connection(live: LiveArchives, address: Address) -> sqlite3.Connection:
    """Open a connection that shows the places of files as addresses, and has room for rows."""
    uri = f"{live.database.as_uri()}?mode=ro&immutable=1"
    connection = sqlite3.connect(uri, uri=True, check_same_thread=False)
    connection.execute("PRAGMA temp_store=MEMORY")
    if not live.has_histories:
        connection.execute("CREATE TEMP TABLE metrics AS SELECT * FROM main.metrics LIMIT 0")
        connection.execute("CREATE INDEX temp.metrics_of_run ON metrics (run_uuid, key, step)")
    there = {name for (name,) in connection.execute("SELECT name FROM main.sqlite_master")}
    for table, (column, where) in ({} if _is_server_of_files() else _PLACES).items():
        if table in there:
            connection.execute(_view(connection, table, column, where, address.members))
    connection.commit()
    return connection


def _is_server_of_files() -> bool:
    """Whether this process is a server of MLflow whose clients ask it for files too."""
    server = sys.modules.get("mlflow.server")
    root = os.environ.get(getattr(server, "ARTIFACT_ROOT_ENV_VAR", ""), "")
    return root.startswith(PLACE)


def _view(connection: sqlite3.Connection, table: str, column: str, where: str, base: str) -> str:
    """Return the statement that shows a table with other places in one of its columns."""
    listed = connection.execute(f"PRAGMA main.table_info({table})").fetchall()
    literal = base.replace("'", "''")
    start, length = f"substr({column}, 1, {len(PLACE)}) = '{PLACE}'", len(PLACE) + 1
    moved = f"CASE WHEN {where}{start} THEN '{literal}' || substr({column}, {length}) "
    moved += f"ELSE {column} END AS {column}"
    columns = ", ".join(moved if name == column else f'"{name}"' for _, name, *_ in listed)
    return f"CREATE TEMP VIEW {table} AS SELECT {columns} FROM main.{table}"  # noqa: S608 - MLflow's


def _require_reading(_connection: Any, _cursor: Any, statement: str, *_more: Any) -> None:
    if not statement.lstrip().upper().startswith(_READING):
        raise refused("Writing")


@functools.cache
def _tracking_class(has_workspaces: bool) -> Any:
    """Return the class of the tracking store: MLflow's own, behind what is different here."""
    if has_workspaces:
        with contextlib.suppress(ImportError):  # this MLflow has none
            from mlflow.store.tracking.sqlalchemy_workspace_store import (
                WorkspaceAwareSqlAlchemyStore,
            )

            return _class_of(WorkspaceAwareSqlAlchemyStore, _InWorkspace, _WithHistories)
    return _class_of(TrackingStore, _WithHistories)


@functools.cache
def _registry_class(has_workspaces: bool) -> Any:
    if has_workspaces:
        with contextlib.suppress(ImportError):
            from mlflow.store.model_registry.sqlalchemy_workspace_store import (
                WorkspaceAwareSqlAlchemyStore,
            )

            return _class_of(WorkspaceAwareSqlAlchemyStore, _InWorkspace, _OfArchive)
    return _class_of(RegistryStore, _OfArchive)


class _InWorkspace:
    """Stands before a store of an archive with workspaces: it shows those of the caller's."""

    @staticmethod
    def _workspaces_enabled() -> bool:
        return True

    @staticmethod
    def _get_active_workspace() -> str:
        from mlflow.utils.workspace_context import get_request_workspace

        from mlflow_exim_plugin.host.open.workspaces import DEFAULT

        return str(get_request_workspace() or DEFAULT)

    def _initialize_store_state(self) -> None:
        """Look for no default experiment: an archive has what it has."""


def _class_of(store: type, *ours: type) -> Any:
    """Return a store's class whose methods refuse to write before they look at anything."""
    public = [n for n in dir(store) if not n.startswith("_") and callable(getattr(store, n))]
    methods = {name: _refusing(name) for name in public if not _READS.match(name)}
    methods |= {n: _with_rows(getattr(store, n)) for n in public if _OF_HISTORIES.search(n)}
    return type(f"Archive{store.__name__}", (*ours, store), methods)


def _with_rows(history: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method of a tracking store that has the rows while it looks for them."""
    signature = inspect.signature(history)

    @functools.wraps(history)
    def method(self: _WithHistories, *arguments: Any, **named: Any) -> Any:
        given = signature.bind(self, *arguments, **named).arguments
        run_ids = given["run_ids"] if "run_ids" in given else [given["run_id"]]
        with self.asking(run_ids, given["metric_key"]):
            return history(self, *arguments, **named)

    return method


def _refusing(name: str) -> Callable[..., Any]:
    def method(*_arguments: Any, **_named: Any) -> Any:
        raise refused(name)

    method.__name__ = name
    return method
