"""What the writers of all kinds share: one database, one transaction, one account of it."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import InvalidArchiveError, ServerError
from mlflow_exim_plugin.host.files.gate import path_problem
from mlflow_exim_plugin.host.files.tree import ArtifactTree
from mlflow_exim_plugin.host.open.workspaces import DEFAULT
from mlflow_exim_plugin.host.sql.two_databases import TwoDatabases
from mlflow_exim_plugin.host.sql.writer import TableWriter
from mlflow_exim_plugin.kinds import KINDS
from mlflow_exim_plugin.schema.objects import Failure, Kind, Loss
from mlflow_exim_plugin.schema.provenance import ORIGIN, names_of, newest
from mlflow_exim_plugin.sinks.database.metrics import MetricRows
from mlflow_exim_plugin.sinks.database.states import RowComparison, State, compare_rows
from mlflow_exim_plugin.sinks.left_out import LeftOut
from mlflow_exim_plugin.sinks.policy import LONGEST_NAME
from mlflow_exim_plugin.sinks.sink import Capabilities

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from mlflow_exim_plugin.host.open.host import Host
    from mlflow_exim_plugin.host.sql.writer import Rows
    from mlflow_exim_plugin.options import Writing
    from mlflow_exim_plugin.schema.objects import Run
    from mlflow_exim_plugin.schema.report import Report

__all__ = ["DatabaseTarget", "TargetExperiment"]

_TABLES = {Kind.LOGGED_MODEL: "logged_models", Kind.TRACE: "trace_info"}
"""Tables of the kinds that have more than one document."""


@dataclass
class TargetExperiment:
    """Where what belongs to one source experiment goes.

    Attributes:
        id: Experiment id at the target.
        location: Where its files are there.
        source_location: Where they are at the source.
        is_new: Whether nothing was in it before.
        is_copy: Whether an unpack made it, so that what is in it may have other ids.
        is_lost: Whether it, or what was being written to it, was taken back.
        datasets: Ids of its datasets by name and digest.
    """

    id: int
    location: str
    source_location: str
    is_new: bool
    is_copy: bool = False
    is_lost: bool = False
    datasets: dict[tuple[str, str], str] = field(default_factory=dict)

    def below(self, tail: str) -> str:
        """Return where something below the experiment's folder is.

        Raises:
            InvalidArchiveError: It would leave the folder.
        """
        if problem := path_problem(tail):
            what = f"{tail!r} would leave the folder of its experiment"
            raise InvalidArchiveError(f"{what}: {problem}")
        return f"{self.location.rstrip('/')}/{tail}"

    def moved(self, uri: str) -> str | None:
        """Return where what is below the source's folder is, None for what is elsewhere."""
        folder, tail = self.source_location.rstrip("/") + "/", ""
        if self.source_location and uri.startswith(folder):
            tail = uri[len(folder) :]
        return self.below(tail) if tail and not path_problem(tail) else None


class DatabaseTarget:
    """A database that is written to.

    Args:
        engine: The database.
        options: How to write.
        host: The deployment that files are sent to; None where all stay where the source has them.

    Attributes:
        tables: The database's tables.
        metrics: Metric rows on their way.
        lock: Held by whoever uses the two.
        workspace: Workspace that is written to.
        ids: Objects that have another id at the target, by kind.
        left: Runs and logged models that were left out.
    """

    def __init__(self, engine: Engine, options: Writing, host: Host | None = None) -> None:
        self._host = host
        self.options = options
        registry = None if host is None or host.has_one_store else host.registry_engine
        if registry is None:
            self.tables = TableWriter(engine, only_looks=options.dry_run)
        else:
            self.tables = TwoDatabases(engine, registry, only_looks=options.dry_run)
        self.metrics = MetricRows(self.tables)
        self.lock = threading.RLock()
        self.workspace = DEFAULT
        self.ids: dict[Kind, dict[str, str]] = {kind: {} for kind in Kind}
        self._moved_roots: dict[str, str] = {}
        self._shared_roots: dict[str, dict[int, str]] = {}
        self.left = LeftOut()
        self._copies: dict[str, dict[str, str]] = {}
        self._own: dict[tuple[Any, ...], int | None] = {}
        self._own_now: list[tuple[Any, ...]] = []
        self._written: Counter[Kind] = Counter()
        self._completed: Counter[Kind] = Counter()
        self._rows = self._bytes = 0

    @property
    def host(self) -> Host:
        """The deployment that files are sent to."""
        assert self._host is not None  # noqa: S101 - who sends none asks for none
        return self._host

    @cached_property
    def capabilities(self) -> Capabilities:
        """What the database can keep: a kind whose table it lacks is one that it does not know."""
        tables = {kind: of.table for kind, of in KINDS.items() if of.table} | _TABLES
        lacks = {kind for kind, table in tables.items() if not self.tables.has(table)}
        longest_name = 0 if self.tables.backend == "sqlite" else LONGEST_NAME
        return Capabilities(
            keeps_infinities=False, lacks=frozenset(lacks), longest_name=longest_name
        )

    def commit(self, report: Report) -> None:
        """Make everything since the last commit visible at once, and look whether it is.

        Raises:
            ServerError: The database refused it, or does not have it.
        """
        with self.lock:
            self.metrics.finish()
            self.tables.commit()
            if self._own_now and not self.options.dry_run:
                table, *key = self._own_now[-1]
                if self.tables.one(table, **dict(key)) is None:
                    raise ServerError("the database did not keep what was committed")
            infinite = [] if self.capabilities.keeps_infinities else self.metrics.take_infinite()
            for run_id, metric in infinite:
                what = "infinities are kept as the largest double"
                report.lost(Loss(Kind.METRIC_HISTORY, f"{run_id}/{metric}", what))
            for kind, count in self._completed.items():
                report.completed(kind, count)
            self._begin_account()

    def abandon(self, scope: str, reason: str, report: Report) -> None:
        """Take back everything since the last commit, and say so of each kind."""
        with self.lock:
            self.metrics.forget()
            self.tables.rollback()
            for kind, count in self._written.items():
                report.withdraw(kind, count)
                report.failed(Failure(kind, scope, f"taken back: {reason}", count))
            report.add_rows(-self._rows)
            report.add_bytes(-self._bytes)
            for own in self._own_now:
                self._own.pop(own, None)
            self._begin_account()

    def _begin_account(self) -> None:
        self._written.clear()
        self._completed.clear()
        self._own_now.clear()
        self._rows = self._bytes = 0

    @property
    def has_written(self) -> bool:
        """Whether objects were written since the last commit."""
        return bool(self._written)

    def count(self, kind: Kind, report: Report, count: int = 1, *, rows: int = 0) -> None:
        """Count what was written in this transaction."""
        with self.lock:
            self._written[kind] += count
            self._rows += rows
            report.written(kind, count)
            report.add_rows(rows)

    def count_bytes(self, size_bytes: int, report: Report) -> None:
        """Count a file that was written."""
        with self.lock:
            self._bytes += size_bytes
            self.count(Kind.ARTIFACT, report)
            report.add_bytes(size_bytes)

    def is_there(self, table: str, **key: Any) -> bool:
        """Whether the target has a row with this key, be it a new one."""
        with self.lock:
            own = (table, *sorted(key.items()))
            return own in self._own or (
                self.tables.has(table) and self.tables.was_there(table, **key)
            )

    def find(self, kind: Kind, identity: str) -> str | None:
        """Return the id at the target of an object of the source, None where it is not there.

        Args:
            kind: Its kind.
            identity: Its id at the source, for a version of a scorer with a slash and its number.
        """
        described, (owner, _, number) = KINDS[kind], identity.partition("/")
        if not described.table:
            return self.ids[kind].get(identity)
        new = self.ids[kind].get(owner, owner)
        key = {described.id_column: new}
        if not number:
            return new if self.is_there(described.table, **key) else None
        number = self.ids[kind].get(identity, number)
        versions = {**key, "scorer_version": int(number)}
        is_there = self.options.dry_run or self.tables.select("scorer_versions", **versions)
        return number if is_there else None

    def owned(self, table: str, **key: Any) -> dict[str, Any]:
        """Return a key of a table within the workspace that is written to, if it knows any."""
        if self.tables.has(table, "workspace"):
            key["workspace"] = self.workspace
        return key

    def compare(self, kind: Kind, rows: Rows, key: dict[str, Any]) -> RowComparison | None:
        """Return how what the target has of an object stands to it, None where its id is free.

        Args:
            kind: Its kind.
            rows: Its rows, its own first.
            key: Columns that say in its tables which rows are its.
        """
        own_table, own = rows[0]
        its = {name: value for name, value in key.items() if name in own}
        with self.lock:
            if (own_table, *sorted(its.items())) in self._own:
                return RowComparison(own_table, its, own)  # this very unpack wrote it
            if not self.is_there(own_table, **its):
                return None
            takes_edits = self.options.takes_edits
            return compare_rows(self.tables, kind, rows, key, takes_edits=takes_edits)

    def leave(
        self, kind: Kind, identity: str, compared: RowComparison, report: Report, place: str = ""
    ) -> None:
        """Leave an object as it is, and name what differs unless the target is only ahead.

        Args:
            kind: Its kind.
            identity: Its id.
            compared: How the target stands to it.
            report: Counts and names what happens.
            place: Where it is, for the report.
        """
        reason = f"it is there already{place}"
        if compared.state is State.LATER:
            reason = "the target has a later state of it"
        elif compared.differing:
            what = ", ".join(compared.differing)
            reason = f"the target has another state of it, which stays: {what}"
            report.lost(Loss(kind, identity, reason))
        report.skipped(kind, identity, reason)

    def grow(self, kind: Kind, identity: str, compared: RowComparison, report: Report) -> None:
        """Complete an earlier state of an object with the rows that come, and name what stays."""
        if compared.kept:
            what = f"the target keeps its own {', '.join(compared.kept)}"
            report.lost(Loss(kind, identity, what))
        with self.lock:
            self._completed[kind] += 1
        if self.options.dry_run:
            return
        with self.lock:
            self.tables.add(compared.missing)
            for table, row, key in compared.changed:
                values = {column: value for column, value in row.items() if column not in key}
                self.tables.update(table, values, **key)
            if compared.update:
                self.tables.update(compared.own_table, compared.update, **compared.own_key)

    def copy_of(self, identity: str, table: str, key: str, owner: str) -> str | None:
        """Return what an unpack by MLflow's API made of an object, None where it made nothing.

        Args:
            identity: Id of the object at the source.
            table: Table of tags.
            key: Its column of keys; that of values is called alike.
            owner: Its column that says whose they are.
        """
        if table not in self._copies:
            value = key.replace("key", "value")
            self._copies[table] = {
                newest(str(tag[value])): str(tag[owner])
                for tag in self.tables.select(table, **{key: names_of(ORIGIN)})
            }
        return self._copies[table].get(identity)

    def original_of(
        self, table: str, column: str, wanted: list[str], into: TargetExperiment
    ) -> str:
        """Return the id of what an object was made of, where its experiment has that; else nothing.

        Args:
            table: Table of such objects.
            column: Its column of ids.
            wanted: All that the object is and was.
            into: The experiment.
        """
        for identity in wanted[1:]:
            there = self.tables.one(table, **{column: identity})
            if there is not None and there["experiment_id"] == into.id:
                return identity
        return ""

    def require_kept(self, into: TargetExperiment) -> None:
        """Refuse to write to an experiment that was taken back.

        Raises:
            ServerError: It was.
        """
        if into.is_lost:
            raise ServerError("its experiment was taken back")

    def require_types(self, rows: Rows) -> None:
        """Refuse an object that is no message of MLflow's and has other types than its columns.

        Raises:
            InvalidArchiveError: It has.
        """
        if problem := self.tables.types.misfit_of(rows):
            raise InvalidArchiveError(f"its document is not as MLflow has it: {problem}")

    def fit(self, kind: Kind, identity: str, rows: Rows, report: Report) -> Rows:
        """Return an object's rows as the database can hold them, and name what that takes away.

        Raises:
            ServerError: That is refused, as ``strict`` asks for.
        """
        fitting, notes = self.tables.fitted(rows)
        for note in notes:
            if self.options.is_strict:
                raise ServerError(f"the target cannot hold it as it is: {note}")
            report.lost(Loss(kind, identity, f"the target cannot hold all of it: {note}"))
        return fitting

    @property
    def longest_name(self) -> int:
        """How long a name is cut to that is longer: 0 where it is not."""
        return 0 if self.options.is_strict else self.capabilities.longest_name

    def require(self, rows: Rows) -> None:
        """Refuse an object that the database cannot hold as it is.

        It would refuse it itself, and with it all that is written in the same transaction.

        Raises:
            ServerError: A text or number is too large for its column, or something is missing.
        """
        types = self.tables.types
        problem = types.lacking_in(rows) or types.too_large_in(rows) or self.tables.problem_of(rows)
        if problem:
            raise ServerError(
                f"the target cannot hold it: {problem}", "shorten it at the source, or leave it out"
            )

    def add(self, rows: Rows, **key: Any) -> None:
        """Write rows, in a dry run only know that they would be there.

        Args:
            rows: The rows of an object, its own first.
            key: Values of its own by which it is known from now on.
        """
        with self.lock:
            if key:
                own = (rows[0][0], *sorted(key.items()))
                self._own[own] = rows[0][1].get("experiment_id")
                self._own_now.append(own)
            if not self.options.dry_run:
                self.tables.add(rows)

    def know_root(self, old: str, new: str) -> None:
        """Remember where the files below a place of the source are at the target."""
        if old:
            self._moved_roots[old.rstrip("/")] = new.rstrip("/")

    def know_experiment(self, number: int, old: str, new: str) -> None:
        """Remember where the files of an experiment are, which may share its root with others."""
        self.know_root(old, new)
        if old:
            self._shared_roots.setdefault(old.rstrip("/"), {})[number] = new.rstrip("/")

    def know_kin(self, run: Run, kin: dict[str, Any]) -> None:
        """Remember under which id and place a run is at the target already."""
        self.ids[Kind.RUN][run.id] = str(kin["run_uuid"])
        if not self.keeps_locations:
            self.know_root(str(run.info.get("artifact_uri") or ""), str(kin["artifact_uri"] or ""))

    def place(self, uri: str, into: TargetExperiment, own: str) -> str:
        """Return where the files of an object are at the target, in the folder of its experiment.

        Args:
            uri: Where they are at the source.
            into: The experiment.
            own: Where below its folder they go: what another object has is not to be had.

        Raises:
            InvalidArchiveError: That would leave the folder.
        """
        if self.keeps_locations and uri:
            return uri
        new = into.below(own)
        if into.moved(uri) != new:
            with self.lock:
                self.know_root(uri, new)
        return new

    def moved(self, uri: str) -> str | None:
        """Return where a place of the source is at the target, None where nobody knows."""
        folder = uri.rstrip("/")
        while folder:
            if (new := self._moved_roots.get(folder)) is not None:
                tail = uri.rstrip("/")[len(folder) :]
                places = self._shared_roots.get(folder, {})
                if len({*places.values()}) > 1:
                    owner = self._experiment_of(tail.split("/")[1:3])
                    new = places.get(owner, new) if owner is not None else new
                return None if tail and path_problem(tail[1:]) else new + tail
            folder = folder.rpartition("/")[0]
        return None

    def _experiment_of(self, names: list[str]) -> int | None:
        """Return the experiment of a run or logged model by folders that may be named for it."""
        for name in names:
            for kind, table, column in (
                (Kind.RUN, "runs", "run_uuid"),
                (Kind.LOGGED_MODEL, "logged_models", "model_id"),
            ):
                identity = self.ids[kind].get(name, name)
                own = (table, (column, identity))
                if own in self._own:
                    return self._own[own]
                if self.tables.has(table):
                    there = self.tables.one(table, **{column: identity})
                    if there is not None:
                        return int(there["experiment_id"])
        return None

    @property
    def keeps_locations(self) -> bool:
        """Whether files stay where the source has them."""
        return self.options.keeps_locations

    @property
    def artifact_root(self) -> str:
        """Where new experiments have their folders."""
        root = self.options.artifact_location or str(self.host.tracking.artifact_root_uri)
        return root.rstrip("/")

    @property
    def has_local_files(self) -> bool:
        """Whether no file goes over a network."""
        if self.keeps_locations:
            return True
        try:
            return not ArtifactTree(self.host, self.artifact_root).is_remote
        except ServerError:
            return True  # nobody knows where files are to go, which each of them will say

    def experiment_folder(self, number: int, source_location: str) -> str:
        """Return where the files of a new experiment are, as MLflow's own store would say.

        A server with workspaces has a folder of each, one without has none of the default one.
        """
        of_workspace = f"workspaces/{self.workspace}/"
        is_inside = self.workspace != DEFAULT or f"/{of_workspace}" in source_location
        return f"{self.artifact_root}/{of_workspace if is_inside else ''}{number}"
