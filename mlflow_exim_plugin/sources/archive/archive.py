"""An archive read in place: its objects, each by its envelope.

Arrow is imported where tables are read: to look at documents takes less time than that import.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from mlflow_exim_plugin.container import layout
from mlflow_exim_plugin.container.paths import decode_segment, encode_segment, names_archive
from mlflow_exim_plugin.container.reader import ArchiveReader
from mlflow_exim_plugin.errors import DigestMismatchError, NotFoundError, UsageError
from mlflow_exim_plugin.redaction import redact_url
from mlflow_exim_plugin.schema.envelope import (
    ArchiveEnvelope,
    ArtifactEntry,
    Document,
    EntityEnvelope,
    LogEvent,
    MetricsEntry,
    TracePartEnvelope,
    check_document,
)
from mlflow_exim_plugin.schema.objects import Kind, Trace, by_number
from mlflow_exim_plugin.schema.rules import Finding
from mlflow_exim_plugin.sources.archive.frames import frame_of, stages_of
from mlflow_exim_plugin.sources.archive.log import read_log
from mlflow_exim_plugin.sources.archive.objects import (
    ArchivedExperiment,
    ArchivedLoggedModel,
    ArchivedModel,
    ArchivedRun,
    ArchivedVersion,
    Shown,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import pandas as pd
    import pyarrow as pa
    import pyarrow.dataset as ds
    from typing_extensions import Self

    from mlflow_exim_plugin.container.members import Members
    from mlflow_exim_plugin.schema.metric_rows import RunRows
    from mlflow_exim_plugin.sources.archive.metrics import MetricsTables
    from mlflow_exim_plugin.sources.archive.snapshot.lost import LostObject

__all__ = ["Archive", "Tree", "open_archive"]

_Parsed = TypeVar("_Parsed", bound=Document)
_NO_EXPERIMENT = "the archive has no experiment"


@dataclass
class Tree:
    """Members of the envelopes of one workspace; experiments by their segment.

    Attributes:
        workspace: Envelope of the workspace, None for the default one.
        experiments: Envelope of each experiment.
        runs: Envelopes of its runs, by segment.
        logged_models: Envelopes of its logged models.
        traces: Envelopes of the parts of its traces.
        entities: Envelopes of entities by kind and experiment, which is empty outside of one.
        models: Envelope of each registered model, or prompt, by kind and segment.
        versions: Envelopes of its versions, in the same way.
    """

    workspace: str | None = None
    experiments: dict[str, str] = field(default_factory=dict)
    runs: dict[str, dict[str, str]] = field(default_factory=dict)
    logged_models: dict[str, list[str]] = field(default_factory=dict)
    traces: dict[str, list[str]] = field(default_factory=dict)
    entities: dict[tuple[Kind, str], list[str]] = field(default_factory=dict)
    models: dict[tuple[Kind, str], str] = field(default_factory=dict)
    versions: dict[tuple[Kind, str], list[str]] = field(default_factory=dict)

    def add(self, found: layout.ObjectPath, path: str) -> None:
        """Add the envelope at a member path."""
        experiment = found.experiment
        match found.kind:
            case Kind.WORKSPACE:
                self.workspace = path
            case Kind.EXPERIMENT:
                self.experiments[experiment] = path
            case Kind.RUN:
                self.runs.setdefault(experiment, {})[found.segment] = path
            case Kind.LOGGED_MODEL:
                self.logged_models.setdefault(experiment, []).append(path)
            case Kind.TRACE:
                self.traces.setdefault(experiment, []).append(path)
            case Kind.REGISTERED_MODEL | Kind.PROMPT:
                self.models[found.kind, found.segment] = path
            case _ if found.model is not None:
                self.versions.setdefault(found.model, []).append(path)
            case _:
                self.entities.setdefault((found.kind, experiment), []).append(path)


class Archive(Shown):
    """Objects of one archive, read where it lies; nothing is unpacked.

    Args:
        reader: Open container; closed with this object.

    Attributes:
        reader: The container: members, digests, root.
    """

    def __init__(self, reader: Members) -> None:
        self.reader = reader

    @cached_property
    def trees(self) -> list[Tree]:
        """Members by workspace, the default one first."""
        trees: dict[str, Tree] = {layout.TREE: Tree()}
        for path in self.reader.paths("data/"):
            if found := layout.object_at(path):
                trees.setdefault(found.tree, Tree()).add(found, path)
        return list(trees.values())

    @property
    def lost(self) -> Sequence[LostObject]:
        """Objects of a set's state that are in none of its archives any more."""
        return self.reader.lost

    @classmethod
    def open(
        cls,
        url: str,
        *,
        storage_options: Mapping[str, Any] | None = None,
        expected_root: str | None = None,
        snapshot: str | None = None,
    ) -> Archive:
        """Open an archive, or a snapshot of a set, at a path or any fsspec URL.

        Args:
            url: Where it lies: an archive, a set or a snapshot of one.
            storage_options: Given to the fsspec file system.
            expected_root: Root digest it must have, hex.
            snapshot: Of a set, number of the snapshot, or the time when it was the last one; the
                newest without it.

        Raises:
            NotFoundError: There is nothing at the URL.
            InvalidArchiveError: It is no archive, or damaged.
            UnsupportedFormatError: It needs a newer reader.
            StoreError: The store refused.
        """
        if not names_archive(url):
            from mlflow_exim_plugin.sources.archive.snapshot.layered import reader_of
            from mlflow_exim_plugin.sources.archive.snapshot.set_folder import as_set

            if found := as_set(url, storage_options):
                folder, number = found
                return cls(reader_of(folder, folder.asked(number, snapshot, expected_root)))
        if snapshot is not None:
            raise UsageError(f"{redact_url(url)} is no set, and has no snapshots")
        return cls(
            ArchiveReader.open(url, storage_options=storage_options, expected_root=expected_root)
        )

    def _facts(self) -> dict[str, Any]:
        summary = self.summary
        written = [f"{kind}: {counts.written}" for kind, counts in summary.info.counts.items()]
        return {
            "source": summary.system.mlflow_tracking_uri,
            "packed": summary.system.export_time_text,
            "root": self.reader.root,
            "objects": ", ".join(written).replace("_", " "),
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the container."""
        if "_tables" in vars(self):
            self._tables.close()
        self.reader.close()

    @cached_property
    def _tables(self) -> MetricsTables:
        from mlflow_exim_plugin.sources.archive.metrics import MetricsTables

        return MetricsTables(self.reader)

    @property
    def summary(self) -> ArchiveEnvelope:
        """What was packed, what failed and what is missing (``data/archive.json``)."""
        return self.document(ArchiveEnvelope, layout.ARCHIVE)

    @property
    def content_root(self) -> str:
        """What the archive holds in one digest, hex: the same for each archive of one state.

        It does not depend on when, by whom and how it was packed. An archive of before format 1.3
        does not state it: its documents are read.
        """
        if stated := self.summary.info.content_root:
            return stated
        from mlflow_exim_plugin.sources.archive.content_root import content_root_of

        return content_root_of(self.reader)

    @property
    def log(self) -> list[LogEvent]:
        """The steps that led to this archive, the oldest first; empty where it has no log."""
        return [event for event, _ in read_log(self.reader)]

    def experiments(self) -> Iterator[ArchivedExperiment]:
        """Yield the experiments by number."""
        for tree in self.trees:
            for segment in sorted(tree.experiments, key=by_number):
                yield self.document(ArchivedExperiment, tree.experiments[segment])

    def runs(self, experiment_id: str | None = None) -> Iterator[ArchivedRun]:
        """Yield the runs of one experiment, or all, by run id."""
        for path in self._in_experiments(experiment_id, lambda tree, e: tree.runs.get(e, {})):
            yield self.document(ArchivedRun, path)

    def run_ids(self) -> list[str]:
        """Return the ids of all runs, without a look at their envelopes."""
        return [
            self.document(ArchivedRun, path).mlflow.run["info"]["run_id"]
            if (run_id := decode_segment(segment)) is None
            else run_id
            for tree in self.trees
            for runs in tree.runs.values()
            for segment, path in runs.items()
        ]

    def run(self, run_id: str) -> ArchivedRun:
        """Return one run.

        Raises:
            NotFoundError: The archive has no such run.
        """
        if (path := self._run_path(run_id)) is None:
            raise NotFoundError(f"the archive has no run {run_id!r}")
        return self.document(ArchivedRun, path)

    def has_run(self, run_id: str) -> bool:
        """Whether there is a run of an id."""
        return self._run_path(run_id) is not None

    def _run_path(self, run_id: str) -> str | None:
        segment = encode_segment(run_id)
        folders = self.reader.folders_of(segment)
        if folders is None:
            found = (runs.get(segment) for tree in self.trees for runs in tree.runs.values())
        else:
            known = (layout.run_member(f"{f}{segment}/") for f in folders if f.endswith("/runs/"))
            found = (path for path in known if path in self.reader)
        return next(filter(None, found), None)

    def logged_models(self, experiment_id: str | None = None) -> Iterator[ArchivedLoggedModel]:
        """Yield the logged models of one experiment, or all, by model id."""
        for path in self._in_experiments(
            experiment_id, lambda tree, e: tree.logged_models.get(e, ())
        ):
            yield self.document(ArchivedLoggedModel, path)

    def logged_model(self, model_id: str) -> ArchivedLoggedModel:
        """Return one logged model.

        Raises:
            NotFoundError: The archive has no such logged model.
        """
        segment = encode_segment(model_id)
        folders = self.reader.folders_of(segment)
        if folders is None:
            of_all = chain.from_iterable(tree.logged_models.values() for tree in self.trees)
            found = (path for path in chain(*of_all) if path.split("/")[-2] == segment)
        else:
            of_models = (f for f in folders if f.endswith("/logged_models/"))
            known = (layout.logged_model_member(f"{f}{segment}/") for f in of_models)
            found = (path for path in known if path in self.reader)
        if (path := next(found, None)) is None:
            raise NotFoundError(f"the archive has no logged model {model_id!r}")
        return self.document(ArchivedLoggedModel, path)

    def trace_parts(self, experiment_id: str | None = None) -> Iterator[TracePartEnvelope]:
        """Yield the envelopes of the parts of the traces of one experiment, or all."""
        for path in self._in_experiments(experiment_id, lambda tree, e: tree.traces.get(e, ())):
            yield self.document(TracePartEnvelope, path)

    def trace_ids(self) -> list[str]:
        """Return the ids of all traces, without their spans.

        Raises:
            InvalidArchiveError: A part is damaged.
        """
        from mlflow_exim_plugin.sources.archive.trace_parts import trace_ids

        return [i for part in self.trace_parts() for i in trace_ids(self.reader, part)]

    def trace(self, trace_id: str) -> Trace:
        """Return one trace.

        Raises:
            NotFoundError: The archive has no such trace.
            InvalidArchiveError: Its part, or it itself, is damaged.
        """
        from mlflow_exim_plugin.sources.archive.trace_parts import holds_trace, read_part

        for path in self._in_experiments(None, lambda tree, e: tree.traces.get(e, ())):
            envelope = self.document(TracePartEnvelope, path)
            if holds_trace(self.reader, envelope, trace_id):
                for stored in read_part(self.reader, envelope, path):
                    if stored.trace.id == trace_id:
                        stored.check(path)
                        return stored.trace
        raise NotFoundError(f"the archive has no trace {trace_id!r}")

    def traces(self, experiment_id: str | None = None) -> Iterator[Trace]:
        """Yield the traces of one experiment, or all, part by part and there by trace id.

        Raises:
            InvalidArchiveError: A part or a trace is damaged.
        """
        from mlflow_exim_plugin.sources.archive.trace_parts import read_part

        for path in self._in_experiments(experiment_id, lambda tree, e: tree.traces.get(e, ())):
            for stored in read_part(self.reader, self.document(TracePartEnvelope, path), path):
                stored.check(path)
                yield stored.trace

    def entities(self, kind: Kind, experiment_id: str | None = None) -> Iterator[EntityEnvelope]:
        """Yield the envelopes of a kind of ``schema.objects.ENTITY_KINDS``.

        Args:
            kind: The kind.
            experiment_id: Only those of this experiment.
        """
        wanted = None if experiment_id is None else encode_segment(experiment_id)
        for tree in self.trees:
            for (of_kind, segment), paths in tree.entities.items():
                if of_kind is kind and wanted in (None, segment):
                    self.reader.expect(paths)
                    for path in paths:
                        yield self.document(EntityEnvelope, path)

    def models(self, kind: Kind = Kind.REGISTERED_MODEL) -> Iterator[ArchivedModel]:
        """Yield the registered models, or the prompts, by folder."""
        for tree in self.trees:
            for (of_kind, _), path in tree.models.items():
                if of_kind is kind:
                    yield self.document(ArchivedModel, path)

    def model(self, name: str) -> ArchivedModel:
        """Return one registered model or prompt.

        Raises:
            NotFoundError: The archive has no such model.
        """
        tree, key = self._model_folder(name)
        return self.document(ArchivedModel, tree.models[key])

    def versions(self, name: str) -> list[ArchivedVersion]:
        """Return the versions of a registered model or prompt, by number.

        Raises:
            NotFoundError: The archive has no such model.
        """
        tree, key = self._model_folder(name)
        found = [self.document(ArchivedVersion, member) for member in tree.versions.get(key, ())]
        return sorted(found, key=lambda v: int(v.mlflow.model_version["version"]))

    def metric_history(self, run: str | ArchivedRun, key: str | None = None) -> pa.Table:
        """Return metric rows of one run.

        Args:
            run: Its id, or what ``runs`` gives.
            key: Metric key as logged; None takes all.

        Returns:
            Rows sorted by key, step and timestamp: ``key``; ``step`` int64; ``timestamp`` int64,
            ms since the Unix epoch, UTC; ``value`` float64, NaN and infinities allowed.

        Raises:
            NotFoundError: The archive has no such run, or the run no such metric.
            DigestMismatchError: The rows differ from what the envelope says.

        Source: spec/v1/archive.md, "Metric histories".
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        from mlflow_exim_plugin.schema.tables import HISTORY

        found = self._run(run)
        metrics = found.info.metrics
        tables = [part.table for part in self.histories(found.id, metrics)] if metrics else []
        table = pa.concat_tables(tables) if tables else HISTORY.empty_table()
        if key is None:
            return table
        rows = table.filter(pc.equal(table.column("key"), key))
        if not rows.num_rows:
            raise NotFoundError(f"run {found.id!r} has no metric {key!r}")
        return rows

    def histories(self, run_id: str, metrics: MetricsEntry) -> Iterator[RunRows]:
        """Yield a run's rows in order, a few row groups at a time, then check their digest.

        Raises:
            DigestMismatchError: The rows differ from what the envelope says.
            InvalidArchiveError: A table is missing or not as the format has it.
        """
        from mlflow_exim_plugin.schema.metric_rows import MetricsDigest

        digest = MetricsDigest()
        for part in metrics.parts:
            for rows in self._tables.rows(run_id, part):
                digest.update(rows)
                yield rows
        if (found := digest.hexdigest()) != metrics.digest:
            message = f"the metric rows of run {run_id} hash to {found}, not {metrics.digest}"
            raise DigestMismatchError(
                message, "run `verify` to see all damage", [Finding("E061", run_id, message)]
            )

    def search_runs(
        self,
        experiment_ids: Sequence[str] | None = None,
        filter_string: str = "",
        run_view_type: int | str = "active_only",
        max_results: int = 100_000,
        *,
        experiment_names: Sequence[str] | None = None,
    ) -> pd.DataFrame:
        """Return runs as ``mlflow.search_runs`` would at the source, the last started first.

        Columns, types and values are the same. MLflow is imported for a filter alone. What MLflow
        does with ``order_by``, pandas does with ``sort_values``.

        Args:
            experiment_ids: Experiments by id; without these and names all that are not deleted.
            filter_string: In MLflow's search language.
            run_view_type: MLflow's ``ViewType``, or ``active_only``, ``deleted_only`` or ``all``.
            max_results: No more rows than these.
            experiment_names: Experiments by name.

        Raises:
            NotFoundError: The archive has no such experiment.
            UsageError: Ids and names are both given, or the filter is not in MLflow's language.
            MissingDependencyError: pandas is not installed.
            InvalidArchiveError: A run is damaged.
        """
        stages = stages_of(run_view_type)
        runs = [
            dict(envelope.mlflow.run)
            for experiment_id in self._chosen_experiments(experiment_ids, experiment_names)
            for envelope in self.runs(experiment_id)
            if envelope.mlflow.run["info"].get("lifecycle_stage", "active") in stages
        ]
        if filter_string:
            from mlflow_exim_plugin.host.documents import matching_runs

            runs = matching_runs(runs, filter_string)
        return frame_of(runs, max_results)

    def metrics(self, experiment: str) -> ds.Dataset:
        """Return the metric rows of an experiment's runs, to be read by pyarrow, DuckDB or Polars.

        Only what a query needs is fetched. It can be read while the archive is open.

        Args:
            experiment: Its id or name.

        Returns:
            Rows sorted by run, key, step and timestamp: ``run_id``; ``key``; ``step`` int64;
            ``timestamp`` int64, ms since the Unix epoch, UTC; ``value`` float64, NaN and
            infinities allowed. Their digests are not checked, unlike those of `metric_history`.

        Raises:
            NotFoundError: The archive has no such experiment.
            InvalidArchiveError: A table is not as the format has it.

        Source: spec/v1/tables.md.
        """
        listed = [e.mlflow.experiment for e in self.experiments()]
        by_name = {e["name"]: e["experiment_id"] for e in listed}
        ids = {e["experiment_id"] for e in listed}
        if experiment not in ids and experiment not in by_name:
            raise NotFoundError.among(_NO_EXPERIMENT, experiment, ids | by_name.keys())
        segment = encode_segment(experiment if experiment in ids else by_name[experiment])
        return self._tables.dataset(
            path
            for tree in self.trees
            if (document := tree.experiments.get(segment))
            for path in self.reader.paths(f"{document.rpartition('/')[0]}/metrics/")
        )

    def artifacts(self, run: str | ArchivedRun) -> tuple[ArtifactEntry, ...]:
        """Return the artifacts of a run, given by its id or as ``runs`` gives it."""
        return self._run(run).info.artifacts

    def open_artifact(self, run: str | ArchivedRun, path: str) -> BinaryIO:
        """Open one artifact of a run as a seekable stream.

        Args:
            run: Its id, or what ``runs`` gives.
            path: Its path below the run's artifacts.

        Raises:
            NotFoundError: The run has no such artifact.
        """
        found = self._run(run)
        for entry in found.info.artifacts:
            if entry.path == path:
                return self.reader.open_member(entry.member)
        raise NotFoundError(f"run {found.id!r} has no artifact {path!r}")

    def _run(self, run: str | ArchivedRun) -> ArchivedRun:
        return run if isinstance(run, ArchivedRun) else self.run(run)

    def _chosen_experiments(
        self, ids: Sequence[str] | None, names: Sequence[str] | None
    ) -> Iterator[str]:
        """Yield the ids of experiments; without ids and names of all that are not deleted."""
        if ids and names:
            raise UsageError("ids and names of experiments exclude each other")
        listed = [e.mlflow.experiment for e in self.experiments()]
        if not ids and not names:
            listed = [e for e in listed if e.get("lifecycle_stage", "active") == "active"]
        field, wanted = ("name", names) if names else ("experiment_id", ids)
        asked = {wanted} if isinstance(wanted, str) else set(wanted or ())
        known = {e[field] for e in listed}
        for missing in sorted(asked - known):
            raise NotFoundError.among(_NO_EXPERIMENT, missing, known)
        yield from (e["experiment_id"] for e in listed if not asked or e[field] in asked)

    def _model_folder(self, name: str) -> tuple[Tree, tuple[Kind, str]]:
        # Names that differ in case alone have numbered folders, so the envelope decides.
        for tree in self.trees:
            for key, path in tree.models.items():
                envelope = self.document(ArchivedModel, path)
                if envelope.mlflow.registered_model.get("name") == name:
                    return tree, key
        raise NotFoundError(f"the archive has no registered model or prompt {name!r}")

    def _in_experiments(
        self, experiment_id: str | None, members: Callable[[Tree, str], Any]
    ) -> Iterator[str]:
        """Yield the members of what lies below one experiment, or all."""
        wanted = None if experiment_id is None else encode_segment(experiment_id)
        for tree in self.trees:
            for segment in sorted(tree.experiments, key=by_number):
                if wanted in (None, segment):
                    found = members(tree, segment)
                    paths = found.values() if isinstance(found, dict) else found
                    self.reader.expect(paths)
                    yield from paths

    def document(self, model: type[_Parsed], path: str) -> _Parsed:
        """Read and check one envelope.

        Raises:
            InvalidArchiveError: It is damaged, or not as the format has it.
        """
        return check_document(model, self.reader.read_document(path), path, self.reader.most_named)


open_archive = Archive.open
