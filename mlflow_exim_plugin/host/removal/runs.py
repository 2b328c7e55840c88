"""Runs of one deployment leave it, are hidden, hollowed or given to another experiment.

What a run is taken for by whoever asks for that is looked at again in the very transaction.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_exim_plugin.errors import ConflictError, NotFoundError, ServerError, UsageError
from mlflow_exim_plugin.host.errors import translated
from mlflow_exim_plugin.host.files.tree import ArtifactTree
from mlflow_exim_plugin.host.open.roots import make_root
from mlflow_exim_plugin.host.removal.tables import RemovalTables, RunParts
from mlflow_exim_plugin.host.removal.uses import Use, folders_of, is_own_folder, uses_in_tables
from mlflow_exim_plugin.schema.provenance import HOLLOW, MARKS, PURGING
from mlflow_exim_plugin.storage.urls import path_of_uri

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from mlflow_exim_plugin.host.open.host import Host

__all__ = ["KeptElsewhere", "Removal"]


@dataclass(frozen=True)
class KeptElsewhere:
    """What is kept elsewhere of runs that are to be freed.

    Attributes:
        owners: Ids of the runs, and of logged models and traces.
        files: Of a run or logged model by its id: the path and the size in bytes.
    """

    owners: Collection[str]
    files: Collection[tuple[str, str, int]]


class Removal:
    """Takes runs away at a database, or lets a server do so.

    Args:
        host: The deployment, opened to be written to.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._tables: RemovalTables | None = None
        self._registry: RemovalTables | None = None
        if (engine := host.engine) is not None:
            self._tables = self._registry = RemovalTables(engine)
            if not host.has_one_store:
                other = host.registry_engine
                self._registry = None if other is None else RemovalTables(other, only_looks=True)

    @property
    def is_direct(self) -> bool:
        """Whether it is a database whose rows can be taken away from here."""
        return self._tables is not None

    @property
    def tables(self) -> RemovalTables:
        """The database.

        Raises:
            UsageError: It is none.
        """
        if self._tables is None:
            raise UsageError(
                f"{self._host.display_uri} lets nobody take rows and files away: MLflow's API "
                "only hides runs",
                "give the database of the server, such as --tracking-uri postgresql://…",
            )
        return self._tables

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[RemovalTables]:
        """Make all that is done visible at once, or nothing of it."""
        tables = self.tables
        try:
            yield tables
            tables.commit()
        finally:
            tables.rollback()
            if self._registry is not None:
                self._registry.rollback()

    def uses(self, run_ids: Collection[str]) -> list[Use]:
        """Return what uses runs of a database.

        Raises:
            ServerError: The registry lies in no database, or one cannot be read.
        """
        with self._transaction() as tables:
            return self._uses(tables, tables.parts(run_ids))

    def _uses(self, tables: RemovalTables, runs: Mapping[str, RunParts]) -> list[Use]:
        if self._registry is None:
            raise ServerError(
                "the model registry is no database, so nobody can tell what it uses",
                "give its own with --registry-uri",
            )
        return list(uses_in_tables(tables, self._registry, runs))

    def state_of(self, run_id: str) -> list[str]:
        """Return what tells whether anything of a run changed, but for our own marks.

        Raises:
            NotFoundError: There is no such run.
            ServerError: The deployment refused.
        """
        if not self.is_direct:
            with translated(f"reading run {run_id}"):
                run = self._host.tracking.get_run(run_id)
            told = run.to_dictionary()
            tags = {k: v for k, v in told["data"]["tags"].items() if k not in MARKS}
            told["data"]["tags"] = tags
            return [repr(told)]
        with self._transaction() as tables:
            return tables.state_of(_one(tables, run_id), MARKS)

    def hide(self, run_id: str, marks: Mapping[str, str], state: list[str] | None = None) -> None:
        """Delete a run as MLflow's API does it, so that it can be restored there.

        Args:
            run_id: The run.
            marks: Tags that it gets before.
            state: What it must be, as ``state_of`` gave it.

        Raises:
            ConflictError: It is not what it was.
            ServerError: The deployment refused.
        """
        if not self.is_direct:
            if state is not None and self.state_of(run_id) != state:
                raise _changed(run_id)
            self._hide_by_server(run_id, marks)
            return
        with self._transaction() as tables:
            parts = self._unchanged(tables, run_id, state)
            tables.tag(run_id, dict(marks))
            if not parts.is_deleted:
                tables.hide(run_id)

    def _hide_by_server(self, run_id: str, marks: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        with translated(f"deleting run {run_id}"):
            store = self._host.tracking
            if store.get_run(run_id).info.lifecycle_stage == "deleted":
                return
            for key, value in marks.items():
                store.set_tag(run_id, RunTag(key, value))
            store.delete_run(run_id)
            if store.get_run(run_id).info.lifecycle_stage != "deleted":
                raise ServerError("the server took the call, and the run is not deleted")

    def hollow(
        self,
        run_id: str,
        place: str,
        leaving: Collection[str],
        state: list[str] | None = None,
        kept: KeptElsewhere | None = None,
    ) -> int:
        """Free the metric rows and the files of a run, which stays with all else.

        Args:
            run_id: The run.
            place: Where what goes has been put, which its tag says.
            leaving: The runs that become hollow as well.
            state: What it must be, as ``state_of`` gave it.
            kept: What is kept at that place; nothing goes with a file that is not.

        Returns:
            How many rows went.

        Raises:
            ConflictError: It is not what it was, or something uses it.
            ServerError: The deployment refused.
        """
        with self._transaction() as tables:
            parts = self._unchanged(tables, run_id, state)
            self._require_unused(tables, parts, leaving)
            self._require_files_kept(parts, {run_id}, kept)
            for owner, files in parts.folders.items():
                if owner != run_id and run_id in folders_of(files):
                    raise ConflictError(f"files of {owner}, which stays, lie in its folder")
            tables.tag(run_id, {HOLLOW: place, PURGING: place})
            rows = tables.delete("metrics", run_uuid=run_id)
        self._end_hollow(parts)
        return rows

    def _end_hollow(self, parts: RunParts) -> None:
        if place := parts.folders.get(parts.id):
            self._free_folder(parts.id, place)
            make_root(self._host.artifact_root(place))  # it has no files, and that is no loss
        with self._transaction() as tables:
            tables.delete("tags", run_uuid=parts.id, key=PURGING)

    def place_of_experiment(self, name: str) -> str:
        """Return where an experiment of a database has its files, empty where there is none.

        Raises:
            ServerError: The database cannot be read.
        """
        with self._transaction() as tables:
            row = tables.one("experiments", name=name)
            return str((row or {}).get("artifact_location") or "")

    def being_freed(self) -> dict[str, str]:
        """Return where the runs are kept whose rows or files are being freed, by their ids.

        Raises:
            ServerError: The database cannot be read.
        """
        with self._transaction() as tables:
            rows = tables.select("tags", key=PURGING)
            return {row["run_uuid"]: row["value"] for row in rows}

    def go_on(self, run_id: str, kept: KeptElsewhere) -> bool:
        """End what was begun with a run that is being freed; it was proven then.

        Args:
            run_id: The run.
            kept: What is kept elsewhere.

        Returns:
            Whether it is done; not so where somebody restored the run meanwhile.

        Raises:
            ServerError: There is a file that is kept nowhere else, or the deployment refused.
        """
        with self._transaction() as tables:
            parts = _one(tables, run_id)
            is_hollow = tables.one("tags", run_uuid=run_id, key=HOLLOW) is not None
            rows = tables.count("metrics", run_uuid=run_id)
        if not is_hollow and not parts.is_deleted:
            return False
        if is_hollow and rows:
            raise ServerError(f"run {run_id} has new metrics since it was hollowed")
        if is_hollow:
            self._require_files_kept(parts, {run_id}, kept)
            self._end_hollow(parts)
        else:
            self._require_kept(parts, kept)
            self._end_purge(parts)
        return True

    def _require_kept(self, parts: RunParts, kept: KeptElsewhere | None) -> None:
        """Refuse to free what goes with a run where it was not proven to be kept elsewhere."""
        if kept is None:
            return
        for kind, owners in (("logged model", parts.models), ("trace", parts.traces)):
            for owner in owners:
                if owner not in kept.owners:
                    raise ServerError(
                        f"{kind} {owner} would go with run {parts.id}, and is kept nowhere"
                    )
        self._require_files_kept(parts, {parts.id, *parts.models}, kept)

    def _require_files_kept(
        self, parts: RunParts, owners: Collection[str], kept: KeptElsewhere | None
    ) -> None:
        for owner in owners if kept is not None else ():
            for path, size in self._files(parts.folders.get(owner, "")):
                if kept is not None and (owner, path, size) not in kept.files:
                    raise ServerError(
                        f"run {parts.id} has a new file {path}, which is kept nowhere"
                    )

    def _files(self, place: str) -> Iterator[tuple[str, int]]:
        path = path_of_uri(self._host.artifact_root(place)) if place else None
        if place and (path is None or Path(path).exists()):
            yield from ArtifactTree(self._host, place).files()

    def purge(
        self,
        run_id: str,
        place: str,
        leaving: Collection[str],
        state: list[str] | None = None,
        kept: KeptElsewhere | None = None,
    ) -> int:
        """Free the rows and files of a run, its logged models and its traces.

        It is marked first, so that whoever goes on after a crash knows that it was proven.

        Args:
            run_id: The run.
            place: Where it has been put.
            leaving: The runs that go as well, so that what they use may go too.
            state: What it must be, as ``state_of`` gave it.
            kept: What is kept at that place; nothing goes where a logged model, a trace or a file
                is not.

        Returns:
            How many rows went.

        Raises:
            ConflictError: It is not what it was, or something uses it.
            NotFoundError: There is no such run.
            ServerError: The deployment refused.
        """
        with self._transaction() as tables:
            parts = self._unchanged(tables, run_id, state)
            self._require_unused(tables, parts, leaving)
            self._require_kept(parts, kept)
            tables.tag(run_id, {PURGING: place})
            tables.hide(run_id)
        return self._end_purge(parts)

    def _end_purge(self, parts: RunParts) -> int:
        for owner, folder in parts.folders.items():
            self._free_folder(owner, folder)
            path = path_of_uri(self._host.artifact_root(folder))
            if path is not None and Path(path).parent.name == owner:
                with contextlib.suppress(OSError):  # something else lies in it, or it is gone
                    Path(path).parent.rmdir()
        with self._transaction() as tables:
            rows = tables.delete_traces(tuple(parts.traces))
            rows += tables.delete_models(tuple(parts.models))
            return rows + tables.delete_run(parts.id)

    def put_into(self, run_id: str, experiment_id: str) -> None:
        """Give a run to another experiment; it keeps its id, and its files stay where they are.

        Raises:
            ConflictError: The experiment is deleted, or of another workspace.
            NotFoundError: There is no such run or experiment.
            ServerError: The deployment refused, or more changed than the experiment.
        """
        with self._transaction() as tables:
            parts = _one(tables, run_id)
            into = tables.one("experiments", experiment_id=int(experiment_id))
            if into is None:
                raise NotFoundError(f"there is no experiment {experiment_id}")
            if into["lifecycle_stage"] == "deleted":
                raise ConflictError(
                    f"experiment {into['name']!r} is deleted", "restore it, or take another one"
                )
            if str(into.get("workspace") or parts.workspace) != parts.workspace:
                raise ConflictError(
                    f"run {run_id} is of workspace {parts.workspace!r}, and experiment "
                    f"{into['name']!r} of another one"
                )
            before = tables.state_of(parts)
            tables.put_into(parts, int(experiment_id))
            after = _one(tables, run_id)
            if tables.state_of(after) != before or after.row["experiment_id"] != int(experiment_id):
                raise ServerError(f"run {run_id} would not be what it was; it stays where it is")

    def show(self, run_id: str) -> None:
        """Take back that a run was deleted, and what says so.

        Raises:
            ServerError: The deployment refused.
        """
        store = self._host.tracking
        with translated(f"restoring run {run_id}"):
            if store.get_run(run_id).info.lifecycle_stage == "deleted":
                store.restore_run(run_id)

    def unmark(self, run_id: str) -> None:
        """Take our own marks off a run.

        Raises:
            ServerError: The deployment refused.
        """
        store = self._host.tracking
        with translated(f"taking marks off run {run_id}"):
            for key in sorted(MARKS & {*store.get_run(run_id).data.tags}):
                store.delete_tag(run_id, key)

    def marks_of(self, run_id: str) -> dict[str, str] | None:
        """Return our own marks of a run, None where there is no such run.

        Raises:
            ServerError: The deployment refused.
        """
        if self.is_direct:
            with self._transaction() as tables:
                if tables.one("runs", run_uuid=run_id) is None:
                    return None
                rows = tables.select("tags", run_uuid=run_id, key=tuple(MARKS))
                return {row["key"]: row["value"] for row in rows}
        from mlflow.exceptions import MlflowException

        with translated(f"reading run {run_id}"):
            try:
                tags = self._host.tracking.get_run(run_id).data.tags
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return None
                raise
        return {key: tags[key] for key in MARKS & {*tags}}

    def _require_unused(
        self, tables: RemovalTables, parts: RunParts, leaving: Collection[str]
    ) -> None:
        others = {parts.id, *leaving}
        for use in self._uses(tables, {parts.id: parts}):
            if use.of == parts.id and use.run_id not in others:
                raise ConflictError(f"run {parts.id} is in use: {use.by}")

    @contextlib.contextmanager
    def filling(self, run_id: str) -> Iterator[RemovalTables]:
        """Give a hollow run its metric rows again: all of them or none.

        Raises:
            NotFoundError: There is no such run.
            ServerError: The database refused.
        """
        with self._transaction() as tables:
            _one(tables, run_id)
            tables.delete("metrics", run_uuid=run_id)
            yield tables
            tables.delete("tags", run_uuid=run_id, key=PURGING)

    def mark(self, run_id: str, marks: Mapping[str, str]) -> None:
        """Put marks on a run of a database.

        Raises:
            ServerError: The database refused.
        """
        with self._transaction() as tables:
            tables.tag(run_id, dict(marks))

    def _unchanged(self, tables: RemovalTables, run_id: str, state: list[str] | None) -> RunParts:
        parts = _one(tables, run_id)
        if state is not None and tables.state_of(parts, MARKS) != state:
            raise _changed(run_id)
        return parts

    def _free_folder(self, owner: str, place: str) -> None:
        """Delete the files of a run, logged model or trace, and see that they are gone.

        Raises:
            ServerError: They lie in no folder of their own, or the store refused.
        """
        if not place:
            return
        root = self._host.artifact_root(place)
        path = path_of_uri(root)
        really = root if path is None else Path(path).resolve().as_posix()
        if not all(is_own_folder(owner, where) for where in (place, root, really)):
            raise ServerError(f"files of {owner} lie in {really}, which is no folder of its own")
        if path is not None and not Path(path).exists():
            return
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        with translated(f"deleting the files in {root}"):
            get_artifact_repository(root).delete_artifacts()
        left = next(ArtifactTree(self._host, place).files(), None)
        if left is not None:
            raise ServerError(f"{left[0]} is still in {root}")


def _one(tables: RemovalTables, run_id: str) -> RunParts:
    found = tables.parts([run_id])
    if not found:
        raise NotFoundError(f"there is no run {run_id}")
    return found[run_id]


def _changed(run_id: str) -> ConflictError:
    return ConflictError(f"run {run_id} changed while it was looked at", "try again")
