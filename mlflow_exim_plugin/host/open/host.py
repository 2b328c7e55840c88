"""One MLflow deployment: its tracking store, model registry and raw HTTP, with errors translated.

Authentication, TLS, proxies and workspaces stay MLflow's own business: every call goes through
MLflow's stores, or through its ``http_request`` where a store would build a Python object a row.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import requests

from mlflow_exim_plugin.errors import EximError, ServerError
from mlflow_exim_plugin.host.answers import NO_ANSWER, AskedStore, answered, object_of
from mlflow_exim_plugin.host.errors import chain, raise_for_status, translated
from mlflow_exim_plugin.host.open.absent import Absence, is_refused, judged
from mlflow_exim_plugin.host.open.first_stores import FirstRegistry, NothingOfToday
from mlflow_exim_plugin.host.open.generations import SEARCH, TODAY, generation_of
from mlflow_exim_plugin.host.open.locations import both_uris, is_database, require_local_store
from mlflow_exim_plugin.host.open.patience import patient
from mlflow_exim_plugin.host.open.sessions import BUSY, not_found, sent_through
from mlflow_exim_plugin.host.open.stores import StoreOpener, asks_server, cut_nothing_off
from mlflow_exim_plugin.host.tables import TableReader
from mlflow_exim_plugin.kinds import KINDS
from mlflow_exim_plugin.redaction import conceal, redact_url
from mlflow_exim_plugin.storage.urls import path_of_uri

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine
    from typing_extensions import Self

    from mlflow_exim_plugin.host.open.read_only import ReadOnlyDatabase
    from mlflow_exim_plugin.host.open.roots import ArtifactRoots
    from mlflow_exim_plugin.schema.objects import Kind

__all__ = ["Host"]

_log = logging.getLogger(__name__)
_WITHOUT_CALL = frozenset({404, 405, 501})
_OF_REGISTRY = frozenset({"registered_models", "webhooks"})
"""Tables of which the registry's database has the rows."""


class Host:
    """A tracking server or store together with its model registry; a context manager.

    The stores of a database that is only read are opened by who first asks for them: to load MLflow
    takes longer than to read a small one, and most of its tables are read without.

    Args:
        tracking_uri: MLflow tracking URI; None takes MLflow's own default.
        registry_uri: MLflow registry URI; None takes MLflow's own default.
        create: Whether it is written to: a local store that is not there may be created then, as
            MLflow would. Else a database is opened so that nothing can write to it.
        snapshot: Whether all that is read of a database is to be of one moment.
        force: Whether a database of a newer schema is read as far as it is known.
        artifacts_destination: Where the server of a database keeps the files of
            ``mlflow-artifacts:``; unknown without it.
        artifact_root: Where new experiments have their files in a database of workspaces.
        roots: How artifact roots are found when it is read.

    Attributes:
        tracking_uri: The URI in use; may carry a password, see ``display_uri``.
        generation: What a server answers otherwise than those of today.
        unread: Tables and columns of a database of a newer schema, which are left out.
        unmapped: Tables and columns of a database that no kind is made of and that hold something.
        unproven: Kinds that a server says it does not have, and nothing else tells.
        workspaces: REST's ``Workspace`` of each in a database, none where it has the default one
            alone. A server is asked for its own.

    Raises:
        NotFoundError: The local database or folder is not there and ``create`` is false.
        UnsupportedFormatError: The schema of a database is newer than MLflow's, or, where it is
            written to, older.
        ServerError: MLflow cannot open the store.
    """

    def __init__(
        self,
        tracking_uri: str | None = None,
        registry_uri: str | None = None,
        *,
        create: bool,
        snapshot: bool = False,
        force: bool = False,
        artifacts_destination: str | None = None,
        artifact_root: str | None = None,
        roots: ArtifactRoots | None = None,
    ) -> None:
        self.roots = roots
        self._artifacts_destination = artifacts_destination
        self._artifact_root = artifact_root
        self.mlflow_version = metadata.version("mlflow")
        self.tracking_uri, self._registry_uri = both_uris(tracking_uri, registry_uri)
        conceal(self.tracking_uri)
        conceal(self._registry_uri)
        self._opened = contextlib.ExitStack()
        self._reads = not create
        self._databases: dict[str, ReadOnlyDatabase] = {}
        self._own_engine: Engine | None = None
        self._stores: dict[str, Any] = {}
        self._opening = threading.RLock()
        self.workspaces: list[dict[str, Any]] = []
        self.unread: list[str] = []
        self.unmapped: list[str] = []
        self.unproven: set[Kind] = set()
        self._has_rows: dict[str, bool] = {}
        self._said: set[str] = set()
        self._given_up: set[str] = set()
        self._retries: list[Any] = []
        self.is_http = False
        self.generation = TODAY
        if not create:
            require_local_store(self.tracking_uri)
        with contextlib.ExitStack() as failing:
            failing.callback(self.close)
            for uri in dict.fromkeys([self.tracking_uri, self._registry_uri]):
                with translated(f"opening {redact_url(uri)}"):
                    self._look_at(uri, create=create, snapshot=snapshot, force=force)
            if self.tracking_uri in self._databases:
                self._own_engine = self._engine_of(self.tracking_uri)
            else:
                stores = self.tracking, self.registry
                self.is_http = asks_server(self.tracking_uri, self.tracking)
                if self.is_http:
                    self._retries = self._opened.enter_context(patient(self._address))
                    self._meet(registry_too=self._registry_uri == self.tracking_uri)
                if create and self.generation.lists_experiments:
                    self._take_500()  # so it refuses what it is sent
                if create:
                    cut_nothing_off(*stores)
            failing.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Give up what was opened to read a database."""
        self._opened.close()

    @property
    def _address(self) -> str:
        return str(self.tracking.get_host_creds().host).rstrip("/")

    def send_through(self, between: Callable[[Any], Any]) -> None:
        """Let an adapter stand for the usual one in all calls to a server while it is open."""
        if self.is_http:
            self._opened.enter_context(sent_through(self._address, between))

    def _meet(self, *, registry_too: bool) -> None:
        """Find out what kind of server it is, and take stores that can speak to it."""
        try:
            self.generation = generation_of(self._told, has_search=self._has_search)
            if self.generation.lists_experiments:
                self._take_500()
            if self.generation.is_0x:
                self._stores = dict.fromkeys(self._stores, NothingOfToday(self.tracking))
            elif registry_too and (path := self.generation.registry(self._told)):
                self._stores["registry"] = FirstRegistry(path, self.get_json, self.registry)
        except ServerError:
            return  # whatever is asked first will say what is wrong

    def _has_search(self) -> bool:
        doing, body = "meeting the server", {"max_results": 1}
        with self.call("POST", SEARCH, doing=doing, body=body) as response:
            return response.status_code not in _WITHOUT_CALL

    def _told(self, endpoint: str, params: list[tuple[str, str]]) -> dict[str, Any] | None:
        """Return the JSON object that an endpoint gives, None for anything else."""
        with self.call("GET", endpoint, doing="meeting the server", params=params) as response:
            if response.status_code != requests.codes.ok:
                return None
            with translated("meeting the server"), contextlib.suppress(*NO_ANSWER):
                return object_of(response.content)
        return None

    def _take_500(self) -> None:
        """Ask no more after an internal error: it is about what was asked for."""
        for way in self._retries:
            way.status_forcelist = frozenset(way.status_forcelist) - {500}

    def _look_at(self, uri: str, *, create: bool, snapshot: bool, force: bool) -> None:
        """Look at a database before anything of MLflow's does."""
        if not is_database(uri):
            return
        from mlflow_exim_plugin.host.open.read_only import ReadOnlyDatabase, require_current_schema

        if create:
            workspaces = require_current_schema(uri)
        else:
            database = ReadOnlyDatabase(uri, snapshot=snapshot, force=force)
            self._opened.callback(database.close)
            self._databases[uri] = database
            self.unread += database.unread
            self.unmapped += database.unmapped
            workspaces = database.workspaces
        if uri == self.tracking_uri:
            self.workspaces = workspaces

    def _engine_of(self, uri: str) -> Engine:
        from sqlalchemy import create_engine

        engine = create_engine(self._databases[uri].uri)
        self._opened.callback(engine.dispose)
        return engine

    @property
    def tracking(self) -> Any:
        """MLflow's tracking store.

        Raises:
            ServerError: MLflow cannot open it.
        """
        return self._store("tracking")

    @property
    def registry(self) -> Any:
        """MLflow's model registry store.

        Raises:
            ServerError: MLflow cannot open it.
        """
        return self._store("registry")

    def _store(self, which: str) -> Any:
        with self._opening:
            if which not in self._stores:
                try:
                    self._stores[which] = self._opened_store(which)
                except EximError as error:  # not again for each of many objects
                    self._stores[which] = error
            if isinstance(found := self._stores[which], EximError):
                raise found
            return found

    def _opened_store(self, which: str) -> Any:
        how = {"reads": self._reads, "has_workspaces": bool(self.workspaces)}
        opener = StoreOpener(self._opened, **how, artifact_root=self._artifact_root)
        given = self.tracking_uri if which == "tracking" else self._registry_uri
        uri = self._for_mlflow(given)
        with translated(f"opening the {which} store"):
            if which == "tracking":
                store = opener.tracking(uri)
            else:
                store = opener.registry(uri, self._for_mlflow(self.tracking_uri))
        database = self._databases.get(given)
        if which == "tracking" and database is not None and database.lacks_default:
            from mlflow_exim_plugin.host.open.read_only import drop_default_experiment

            drop_default_experiment(store.engine)
        return AskedStore(store) if asks_server(given, store) else store

    def _for_mlflow(self, uri: str) -> str:
        if (database := self._databases.get(uri)) is None:
            return uri
        return database.for_mlflow()

    @cached_property
    def is_server_of_files(self) -> bool:
        """Whether it is a server on a folder of files, which fails (500) at what that cannot keep.

        Once that is known, nothing is tried again for it.

        Raises:
            ServerLostError: It does not answer.
        """
        if not self.is_http:
            return False
        try:
            told = self.get_json("/api/3.0/mlflow/server-info", []) or {}
        except ServerError:  # servers before MLflow 3.9, whose folders keep what their API has
            return False
        found = told.get("store_type") == "FileStore"
        if found:
            self._take_500()
        return found

    @property
    def takes_models(self) -> bool:
        """Whether its registry takes what is known by tags; the first ones had none."""
        return not isinstance(self.registry, FirstRegistry)

    def refused(self, error: ServerError) -> bool:
        """Whether an error says that the deployment refuses what it was sent."""
        return is_refused(error, by_failing=self.generation.lists_experiments)

    @cached_property
    def server_version(self) -> str:
        """MLflow of a server, empty where it does not say, and elsewhere.

        Raises:
            ServerLostError: It does not answer.
        """
        if not self.is_http:
            return ""
        try:
            told = self.call("GET", "/version", doing="asking for the server's version").text
        except ServerError:
            return ""
        return told if re.fullmatch(r"\d+\.\d+[\w.]*", told) else ""

    def absence(
        self,
        kind: Kind,
        error: ServerError | None = None,
        *,
        since: str = "",
        of_files: bool = False,
    ) -> Absence:
        """Return whether it has a kind, has it not, or is not believed.

        Args:
            kind: What was asked for.
            error: What was answered; None for a status alone.
            since: MLflow that had first what was asked, where that is not when the kind came.
            of_files: Whether a server on a folder of files has none of it.
        """
        is_old = not self.is_http or self.generation.lists_experiments
        found = judged(
            error,
            since or KINDS[kind].since,
            lambda: None if is_old else self.server_version,
            of_files=of_files and self.is_server_of_files,
        )
        if found.is_open:
            self.unproven.add(kind)
        return found

    @property
    def engine(self) -> Engine | None:
        """The database's engine where this process opens the store itself, None elsewhere."""
        if self.is_http:
            return None
        if self._own_engine is not None:
            return self._own_engine
        from sqlalchemy import Engine

        found = getattr(self.tracking, "engine", None)
        return found if isinstance(found, Engine) else None

    @cached_property
    def tables(self) -> TableReader | None:
        """Reads a few rows of the database at a time, None where there is none."""
        return None if self.engine is None else TableReader(self.engine, by_arrow=False)

    @property
    def has_one_store(self) -> bool:
        """Whether tracking and registry are of one database."""
        if self._databases:
            return self._registry_uri == self.tracking_uri
        found = getattr(self.registry, "engine", None)
        return self.engine is not None and getattr(found, "url", None) == self.engine.url

    @cached_property
    def registry_engine(self) -> Engine | None:
        """The engine of the registry's database, None where that is none of this process."""
        if self._databases and self._registry_uri in self._databases:
            return self._engine_of(self._registry_uri)
        from sqlalchemy import Engine

        found = getattr(self.registry, "engine", None)
        return found if isinstance(found, Engine) else None

    def may_have(self, table: str) -> bool:
        """Whether there may be any of what a table of a database keeps; elsewhere nobody can tell.

        A listing by MLflow takes milliseconds for each experiment, of which there may be thousands,
        and before the first one it is loaded.

        Raises:
            ServerError: The database refused.
        """
        if self.tables is None or (table in _OF_REGISTRY and not self.has_one_store):
            return True
        if not self._reads:
            return self.tables.has_rows(table)
        if table not in self._has_rows:
            self._has_rows[table] = self.tables.has_rows(table)
        return self._has_rows[table]

    def ask_mlflow(self, why: str) -> None:
        """Say in the log, once, why MLflow's own store is asked for what a database holds.

        To load MLflow takes longer than to read a small database without it.
        """
        if why not in self._said:
            self._said.add(why)
            _log.info("MLflow is loaded to read this database: %s", why)

    def files_at(self, root: str) -> None:
        """Return nothing: the files of a root are found by its URI."""

    def artifact_root(self, root: str) -> str:
        """Return where the files of an artifact root are to be found from here.

        Raises:
            ServerError: Only the server of a database knows.
        """
        if self.roots is not None:
            root = self.roots.found(root)
        parts = urlsplit(root)
        if parts.scheme != "mlflow-artifacts" or self.is_http:
            return root
        if self._artifacts_destination is None:
            raise ServerError(
                f"only the server knows where {root} is",
                "give --artifacts-destination as `mlflow server` has it",
            )
        if ".." in parts.path.split("/"):
            raise ServerError(f"{root} would leave the folder of its server's files")
        return self._artifacts_destination.rstrip("/") + "/" + parts.path.lstrip("/")

    def run_root(self, run_id: str) -> str:
        """Return the artifact root of a run.

        Raises:
            ServerError: The deployment does not say it.
        """
        with translated(f"opening artifact root runs:/{run_id}"):
            if self.tables is not None:
                found = self.tables.values("runs", "artifact_uri", run_uuid=run_id)
                if not found:
                    raise ServerError(f"there is no run {run_id}")
                return str(found[0] or "")
            return str(self.tracking.get_run(run_id).info.artifact_uri or "")

    def reaches(self, location: str) -> bool:
        """Whether what is put below an artifact location from here comes to the deployment."""
        path = path_of_uri(location)
        if not self.is_http or path is None:
            return True
        root = Path(path).parent  # whose first file makes it
        is_to_come = root.parent != Path(root.anchor) and root.parent.is_dir()
        return root.is_dir() or is_to_come

    @property
    def display_uri(self) -> str:
        """The tracking URI without its secrets."""
        return redact_url(self.tracking_uri)

    def get_json(
        self,
        endpoint: str,
        params: list[tuple[str, str]],
        *,
        object_hook: Callable[[dict[str, Any]], Any] | None = None,
    ) -> dict[str, Any] | None:
        """GET one endpoint of an HTTP server and parse its JSON, a bare NaN allowed.

        Args:
            endpoint: Path below the server's root.
            params: Query, keys may repeat.
            object_hook: Called for each JSON object, innermost first; gives what stands for it.

        Returns:
            The reply, or None where the server does not have this endpoint.

        Raises:
            ServerError: The server refused or answered something else than JSON.
        """

        def ask() -> Any:
            with self.get(endpoint, params) as response:
                if response.status_code in _WITHOUT_CALL:
                    return None
                raise_for_status(response)
                return object_of(response.content or b"{}", object_hook)

        with translated(f"GET {endpoint}"):
            # A hook may have kept what came before an answer broke.
            found: dict[str, Any] | None = answered(ask) if object_hook is None else ask()
        return found

    def post_json(self, endpoint: str, body: dict[str, Any]) -> None:
        """POST a JSON body to one endpoint of an HTTP server.

        Raises:
            ServerError: The server refused.
        """
        from mlflow.utils.rest_utils import http_request

        with translated(f"POST {endpoint}"):
            response = http_request(
                host_creds=self.tracking.get_host_creds(),
                endpoint=endpoint,
                method="POST",
                json=body,
            )
            raise_for_status(response)

    def call(
        self,
        method: str,
        endpoint: str,
        *,
        doing: str,
        body: dict[str, Any] | None = None,
        params: list[tuple[str, str]] | None = None,
        data: bytes | None = None,
        headers: dict[str, str] | None = None,
        retries: bool = True,
    ) -> requests.Response:
        """Call one endpoint of an HTTP server, whatever it answers.

        An internal error (500) is not tried again: it is about the objects that were asked for.

        Args:
            method: HTTP's method.
            endpoint: Path below the server's root.
            doing: What is being done, for messages.
            body: Sent as JSON.
            params: Query, keys may repeat.
            data: Sent as it is, in place of ``body``.
            headers: Further headers.
            retries: Whether a server that is busy is asked again. Some say so (503) of what is
                switched off.

        Raises:
            ServerError: The server refused this client, or has no time for it even after retries.
        """
        from mlflow.utils.rest_utils import http_request

        if not self.generation.has(endpoint):
            return not_found()
        payload: dict[str, Any] = {"data": data} if body is None else {"json": body}
        with translated(doing):
            response: requests.Response = http_request(
                host_creds=self.tracking.get_host_creds(),
                endpoint=endpoint,
                method=method,
                params=params,
                extra_headers=headers,
                retry_codes=BUSY if retries else frozenset(),
                **payload,
            )
            if response.status_code in {401, 403}:
                raise_for_status(response)
        return response

    def read(
        self, method: str, endpoint: str, *, retries: bool = True, **arguments: Any
    ) -> requests.Response:
        """Call one endpoint that only reads, as ``call`` does.

        One that stayed busy through all retries is asked just once from then on, until it answers:
        else each of many objects would wait for minutes.

        Args:
            method: HTTP's method.
            endpoint: Path below the server's root.
            retries: Whether a server that is busy is asked again.
            arguments: Further ones of ``call``.

        Raises:
            ServerError: The server refused this client, or has no time for it even after retries.
        """
        retries = retries and endpoint not in self._given_up
        try:
            response = self.call(method, endpoint, retries=retries, **arguments)
        except ServerError as error:
            if any(isinstance(e, requests.exceptions.RetryError) for e in chain(error)):
                self._given_up.add(endpoint)
            raise
        if response.status_code not in BUSY:
            self._given_up.discard(endpoint)
        return response

    def get(
        self, endpoint: str, params: list[tuple[str, str]] | None = None, *, stream: bool = False
    ) -> requests.Response:
        """GET one endpoint of an HTTP server with MLflow's credentials and retries."""
        from mlflow.utils.rest_utils import http_request

        if not self.generation.has(endpoint):
            return not_found()
        with translated(f"GET {endpoint}"):
            response: requests.Response = http_request(
                host_creds=self.tracking.get_host_creds(),
                endpoint=endpoint,
                method="GET",
                params=params,
                stream=stream,
            )
        return response
