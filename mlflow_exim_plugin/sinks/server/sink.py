"""Sink ``client``: the stream goes back to an MLflow deployment through its own API.

The API sets ids and some times anew; what it can keep is kept, the rest is said in the report.
Every object carries the tags of ``schema.provenance``, by which a later unpack knows it again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_exim_plugin.errors import InvalidArchiveError, ServerError
from mlflow_exim_plugin.host.open.workspaces import Workspaces, entered
from mlflow_exim_plugin.schema.objects import Entity, Failure, Kind, StreamObject
from mlflow_exim_plugin.sinks.absent_kinds import AbsentKinds
from mlflow_exim_plugin.sinks.counting import skip_whole
from mlflow_exim_plugin.sinks.server.ids import IdMap
from mlflow_exim_plugin.sinks.server.texts import LONGEST_TEXTS
from mlflow_exim_plugin.sinks.server.workspace import WorkspaceSink
from mlflow_exim_plugin.sinks.sink import Capabilities
from mlflow_exim_plugin.sinks.workspaces import as_it_is_there, document_for, say_lost

if TYPE_CHECKING:
    from mlflow_exim_plugin.host.open.host import Host
    from mlflow_exim_plugin.options import Writing
    from mlflow_exim_plugin.schema.report import Report

__all__ = ["ServerSink"]


class ServerSink:
    """Writes a stream to one deployment, each workspace of it into the one of the same name.

    Args:
        host: The deployment.
        options: How to write.
        jobs: How many runs, logged models or groups of traces may be written at once.
    """

    def __init__(self, host: Host, options: Writing, *, jobs: int = 4) -> None:
        self.parallel = 1 if options.dry_run else jobs
        self._host = host
        self._options = options
        self._workspaces = Workspaces(host)
        self._ids = IdMap()
        self._absent = AbsentKinds(host)
        self._workspace = self._workspaces.first()
        self._closed = ""
        self._sink = self._new_sink()

    @property
    def capabilities(self) -> Capabilities:
        """What the deployment can keep; a kind is known to be absent once one of it came."""
        return Capabilities(
            keeps_ids=False,
            keeps_times=False,
            keeps_infinities=False,
            lacks=self._absent.kinds,
            longest_name=self._absent.longest_name,
            longest_texts=LONGEST_TEXTS,
        )

    def reach(self) -> None:
        """List the target once, before anything is written.

        Raises:
            ServerError: It cannot be listed: then every object would fail for this one reason. Or
                the server of a database of workspaces would not start any more, as its default
                experiment could not be made.
        """
        tables = self._host.tables if self._workspace else None
        if tables is not None and not tables.values("experiments", "name", experiment_id=0):
            raise ServerError(
                "its server was never started: it has no default experiment",
                "start `mlflow server` on it once, or leave --new-ids out",
            )
        with entered(self._workspace):
            self._sink.reach()

    def write(self, item: StreamObject, report: Report) -> None:
        """Write one object with its parts.

        Raises:
            ConflictError: The target has a namesake of that name and the policy is ``fail``.
            InvalidArchiveError: The object's document is not as MLflow has it.
            ServerError: The target refused the object.
        """
        if isinstance(item, Entity) and item.kind is Kind.WORKSPACE:
            self._enter(item, report)
            return
        if self._closed:
            skip_whole(item, self._closed, report)
            return
        try:
            with entered(self._workspace):
                self._sink.write(item, report)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            # An archive is untrusted: its documents may lack what MLflow's always have.
            raise InvalidArchiveError(
                f"its document is not as MLflow has it: {type(error).__name__} {error}",
                "if it came from a server, this is a defect: please report it",
            ) from error

    def finish(self, report: Report) -> None:
        """Do what had to wait for what came later: links between objects, aliases, deletions."""
        with entered(self._workspace):
            self._sink.finish(report)
        self._absent.say(report)

    def close(self) -> None:
        """Nothing is held open: every object was written by calls of its own."""

    def _enter(self, workspace: Entity, report: Report) -> None:
        """Finish the workspace before, and write what follows into this one."""
        self.finish(report)
        self._workspace, self._closed = self._workspaces.first(), ""
        with entered(self._workspace):
            listed = {document["name"]: document for document in self._workspaces.documents()}
        there = listed.get(workspace.id)
        if there is not None:
            reason = as_it_is_there(workspace.document, there)
            report.skipped(Kind.WORKSPACE, workspace.id, reason)
        elif not listed:
            self._closed = f"the target has no workspaces, and it is in {workspace.id!r}"
            reason = "the target runs without workspaces: start it with --enable-workspaces"
            report.failed(Failure(Kind.WORKSPACE, workspace.id, reason))
            return
        elif self._options.dry_run:
            document_for(workspace, report)
            report.written(Kind.WORKSPACE)
            self._workspaces.plan(workspace.id)
        else:
            try:
                self._make(workspace, report)
            except ServerError:
                self._closed = f"its workspace {workspace.id!r} could not be made"
                raise
        self._workspace = workspace.document
        self._sink = self._new_sink()

    def _make(self, workspace: Entity, report: Report) -> None:
        """Make a workspace and read it back.

        Raises:
            ServerError: The target refused, or took it and has not got it.
        """
        document = document_for(workspace, report)
        self._workspaces.create(document)
        listed = {document["name"]: document for document in self._workspaces.documents()}
        there = listed.get(workspace.id)
        if there is None:
            raise ServerError("it did not arrive")
        report.written(Kind.WORKSPACE)
        say_lost(document, there, report)

    def _new_sink(self) -> WorkspaceSink:
        with entered(self._workspace):
            return WorkspaceSink(self._host, self._options, self._ids, self._absent, self.parallel)
