"""From a source to a deployment: which sink, which stages, and what is looked at before."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from mlflow_exim_plugin.errors import UsageError
from mlflow_exim_plugin.sinks.policy import OnConflict, UnpackOptions
from mlflow_exim_plugin.sources.source import Source
from mlflow_exim_plugin.stages.lineage import ImportTags
from mlflow_exim_plugin.stages.rename import Rename
from mlflow_exim_plugin.transfer import transfer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sqlalchemy import Engine

    from mlflow_exim_plugin.host.open.host import Host
    from mlflow_exim_plugin.schema.envelope import System
    from mlflow_exim_plugin.schema.report import Report
    from mlflow_exim_plugin.sinks.database.sink import DatabaseSink
    from mlflow_exim_plugin.sinks.server.sink import ServerSink
    from mlflow_exim_plugin.stages.select import Selection
    from mlflow_exim_plugin.transfer import Stage

__all__ = ["NumberedSource", "deliver", "tags_and_names", "write_options"]


class NumberedSource(Source, Protocol):
    """A source that knows all its experiments."""

    def experiment_ids(self) -> Iterable[str]:
        """Return the ids of all experiments that there are, taken or not."""


def deliver(
    source: Source,
    names: NumberedSource,
    host: Host,
    options: UnpackOptions,
    selection: Selection,
    stages: Sequence[Stage],
    *,
    preserve_ids: bool | None,
    jobs: int,
    report: Report,
    strict: bool,
    progress: Callable[[Report], None] | None,
) -> Report:
    """Write a stream to a deployment.

    Args:
        source: Where the objects come from.
        names: The same, where only names are looked at.
        host: The deployment.
        options: How to write.
        selection: Which objects to take.
        stages: Applied in order.
        preserve_ids: Whether ids are kept; None where that can be done.
        jobs: How much may be written at once.
        report: Filled and returned.
        strict: Stop at the first object that fails.
        progress: Called after each object.

    Raises:
        UsageError: Ids are to be kept and the target is none that can keep them.
        ConflictError: ``fail`` was asked for and a name or id is taken; nothing was written.
        PartialTransferError: An object failed and ``strict`` was asked for.
        ServerError: The target cannot be reached, or died.
    """
    database = _database(host, preserve_ids)
    looks = options.on_conflict is OnConflict.FAIL or (strict and database is not None)
    if looks and not options.dry_run:
        # Every name, and what a database cannot hold, is known before the first object is written.
        look = replace(options, dry_run=True)
        with closing(_sink(host, database, look, names, jobs)) as looking:
            transfer(names, looking, selection, stages=stages, strict=strict)
    with closing(_sink(host, database, options, names, jobs)) as sink:
        sink.reach()
        return transfer(
            source,
            sink,
            selection,
            stages=stages,
            report=report,
            strict=strict,
            progress=progress,
        )


def _database(host: Host, preserve_ids: bool | None) -> Engine | None:
    """Return the database to write to directly, None where MLflow's API is to write.

    Raises:
        UsageError: Ids are to be kept and the target is none that can keep them.
    """
    if preserve_ids is False:
        return None
    if host.engine is not None and host.has_one_store:
        return host.engine
    if preserve_ids:
        raise UsageError(
            f"{host.display_uri} cannot keep ids: MLflow's API makes its own",
            "write to the database of the server, or leave --preserve-ids out",
        )
    return None


def _sink(
    host: Host, database: Engine | None, options: UnpackOptions, names: NumberedSource, jobs: int
) -> ServerSink | DatabaseSink:
    if database is None:
        from mlflow_exim_plugin.sinks.server.sink import ServerSink

        return ServerSink(host, options, jobs=jobs)
    from mlflow_exim_plugin.sinks.database.sink import DatabaseSink

    return DatabaseSink(host, database, options, source_ids=names.experiment_ids, jobs=jobs)


def write_options(
    on_conflict: OnConflict | str,
    importer: str | None,
    artifact_location: str | None,
    selection: Selection | None,
    source_tags: bool,
    *,
    dry_run: bool,
) -> UnpackOptions:
    """Return how to write.

    Raises:
        UsageError: There is no such policy.
    """
    try:
        policy = OnConflict(on_conflict)
    except ValueError:
        raise UsageError(
            f"on_conflict is merge, skip, rename or fail, not {on_conflict!r}"
        ) from None
    return UnpackOptions(
        on_conflict=policy,
        importer=importer,
        artifact_location=artifact_location,
        marks_content=selection is None or selection.takes_all_artifacts,
        source_tags=source_tags,
        dry_run=dry_run,
    )


def tags_and_names(
    system: System, options: UnpackOptions, experiment_name: str | None, rename: Rename | None
) -> list[Stage]:
    """Return the stages that objects pass on their way to a deployment."""
    stages: list[Stage] = [ImportTags(system)] if options.source_tags else []
    if experiment_name is not None:
        rename = Rename(every_experiment=experiment_name)
    return [*stages, rename] if rename else stages
