"""Runs to a deployment: create or continue, write what is missing, read back, only then mark."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from mlflow_exim_plugin.errors import EximError, ServerError, ServerLostError, StoreError
from mlflow_exim_plugin.host.artifacts import ArtifactTree
from mlflow_exim_plugin.host.histories import read_history
from mlflow_exim_plugin.host.writing import BATCH_METRICS, HostWriter
from mlflow_exim_plugin.schema.objects import Artifact, Failure, Kind, Loss, Run
from mlflow_exim_plugin.schema.provenance import AS_OF_MS, CONTENT, OF_GROUP, ORIGIN, TAGS, chained
from mlflow_exim_plugin.schema.tables import HISTORY, rows_by_key, sort_history
from mlflow_exim_plugin.sinks.counting import count_run

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mlflow_exim_plugin.host.connection import Host
    from mlflow_exim_plugin.host.reading import Reader
    from mlflow_exim_plugin.schema.report import Report
    from mlflow_exim_plugin.sinks.client import UnpackOptions

__all__ = ["KnownRun", "RunMap", "RunWriter"]

PARENT = "mlflow.parentRunId"
_NAME = "mlflow.runName"
_USER = "mlflow.user"
_LOGGED_MODELS = "mlflow.log-model.history"
_LARGEST = 1.7976931348623157e308
"""SQL stores keep infinities as the largest double."""


@dataclass
class KnownRun:
    """A run that an unpack wrote.

    Attributes:
        id: Run id at the target.
        artifact_uri: Its artifact root there.
        content: Value of the tag ``CONTENT``, empty while it is unfinished.
        as_of_ms: When its source was read.
        is_deleted: Whether it is deleted at the target.
        old_artifact_uri: Its artifact root at the source, once it came by.
    """

    id: str
    artifact_uri: str
    content: str = ""
    as_of_ms: int = 0
    is_deleted: bool = False
    old_artifact_uri: str = ""


class RunMap:
    """Source run ids to runs at the target; safe to use from several threads."""

    def __init__(self) -> None:
        self._runs: dict[str, KnownRun] = {}

    def know(self, source_id: str, run: KnownRun) -> None:
        """Remember a run."""
        self._runs[source_id] = run

    def get(self, source_id: str) -> KnownRun | None:
        """Return the run that came from a source run."""
        return self._runs.get(source_id)


class RunWriter:
    """Writes runs; each is marked whole only after the target was read back.

    Args:
        host: The deployment.
        writer: Single writes to it.
        reader: Reads from it.
        runs: Shared id map.
        options: How to write.
    """

    def __init__(
        self,
        host: Host,
        writer: HostWriter,
        reader: Reader,
        runs: RunMap,
        options: UnpackOptions,
    ) -> None:
        self._host = host
        self._writer = writer
        self._reader = reader
        self._runs = runs
        self._options = options
        self._lock = threading.Lock()
        self._waiting: list[tuple[Run, KnownRun, bool]] = []

    def is_settled(self, run: Run, report: Report) -> bool:
        """Whether nothing is to be done for a run, which is then counted as skipped."""
        known = self._runs.get(run.id)
        if known is None:
            return False
        known.old_artifact_uri = str(run.info.get("artifact_uri") or "")
        if known.content and known.content == self._mark(run):
            reason = "it is there already"
            if run.info.get("lifecycle_stage") == "deleted" and not known.is_deleted:
                reason += ", and active though it is deleted at the source"
        elif known.content and known.as_of_ms > run.as_of_ms:
            reason = "the target has a later state of it"
        elif known.is_deleted and run.info.get("lifecycle_stage") != "deleted":
            reason = "its copy was deleted at the target"
        else:
            return False
        report.skipped(Kind.RUN, run.id, reason)
        return True

    def write(self, run: Run, experiment_id: str, group: str, report: Report) -> None:
        """Write one run, or go on with one that is unfinished.

        Args:
            run: The run.
            experiment_id: Experiment at the target.
            group: Origin of the source experiment.
            report: Counts and names what happens.

        Raises:
            ServerError: The target refused the run as a whole.
        """
        if self._options.dry_run:
            count_run(run, report)
            return
        known = self._runs.get(run.id)
        is_new = known is None
        if known is None:
            known = self._create(run, experiment_id, group, report)
        elif known.is_deleted:
            self._writer.set_run_deleted(known.id, deleted=False)
            known.is_deleted = False
        whole = self._fill(run, known, report, is_new=is_new)
        if PARENT in run.tags:
            with self._lock:
                self._waiting.append((run, known, whole))
        elif whole:
            self._complete(run, known)
        report.written(Kind.RUN)

    def finish(self, report: Report) -> None:
        """Link children to their parents, which may have come after them, and complete them."""
        waiting, self._waiting = self._waiting, []
        for run, known, whole in waiting:
            old_parent = run.tags[PARENT]
            parent = self._runs.get(old_parent)
            if parent is None:
                what = (
                    f"its parent run {old_parent} is not at the target; {PARENT} keeps the old id"
                )
                report.lost(Loss(Kind.RUN, run.id, what))
            try:
                self._writer.log_tags(known.id, {PARENT: parent.id if parent else old_parent})
                if whole:
                    self._complete(run, known)
            except ServerLostError:
                raise
            except ServerError as error:
                report.lost(Loss(Kind.RUN, run.id, error.message))

    def put_artifacts(
        self,
        owner: str,
        root: str,
        prefix: str,
        artifacts: Iterable[Artifact | Failure],
        report: Report,
    ) -> bool:
        """Upload files and look whether they arrived.

        Args:
            owner: Id of the run or version, for the report.
            root: Artifact root of a run at the target.
            prefix: Folder below the root, with its final slash, or empty.
            artifacts: The files.
            report: Counts and names what happens.

        Returns:
            True when every file arrived.
        """
        tree: ArtifactTree | None = None
        sent: dict[str, int] = {}
        whole = True
        for artifact in artifacts:
            if isinstance(artifact, Failure):
                report.failed(artifact)
                whole = False
                continue
            try:
                tree = tree or ArtifactTree(self._host, root)
                with artifact.open() as stream:
                    tree.put(prefix + artifact.path, stream, artifact.size_bytes)
                sent[prefix + artifact.path] = artifact.size_bytes
            except ServerLostError:
                raise
            except EximError as error:
                report.failed(Failure(Kind.ARTIFACT, f"{owner}/{artifact.path}", error.message))
                whole = False
        if tree is not None and sent:
            whole &= self._check_artifacts(owner, tree, sent, report)
        return whole

    def _check_artifacts(
        self, owner: str, tree: ArtifactTree, sent: dict[str, int], report: Report
    ) -> bool:
        try:
            there = dict(tree.files())
        except ServerLostError:
            raise
        except (ServerError, StoreError) as error:
            report.failed(Failure(Kind.ARTIFACT, f"{owner}/", error.message, len(sent)))
            return False
        whole = True
        for path, size_bytes in sent.items():
            if there.get(path) == size_bytes:
                report.written(Kind.ARTIFACT)
                report.add_bytes(size_bytes)
                continue
            reason = f"{size_bytes} bytes were sent, the target lists {there.get(path, 'no file')}"
            report.failed(Failure(Kind.ARTIFACT, f"{owner}/{path}", reason))
            whole = False
        return whole

    def _mark(self, run: Run) -> str:
        digest = run.digest or ""
        return digest if self._options.marks_content else f"{digest} without all artifacts"

    def _create(self, run: Run, experiment_id: str, group: str, report: Report) -> KnownRun:
        info = run.info
        if "start_time" not in info:
            report.lost(Loss(Kind.RUN, run.id, "it has no start time, the target sets one"))
        name = info.get("run_name") or run.tags.get(_NAME)
        if not name:
            report.lost(Loss(Kind.RUN, run.id, "it has no name, the target makes one up"))
        user = self._options.importer or str(info.get("user_id") or "")
        tags = {ORIGIN: chained(run.id, run.tags), OF_GROUP: group}
        run_id, artifact_uri = self._writer.create_run(
            experiment_id, user, info.get("start_time"), name, tags
        )
        known = KnownRun(run_id, artifact_uri, old_artifact_uri=str(info.get("artifact_uri") or ""))
        self._runs.know(run.id, known)
        return known

    def _fill(self, run: Run, known: KnownRun, report: Report, *, is_new: bool) -> bool:
        """Write params, tags, rows, datasets and files; return whether all arrived."""
        params, tags = run.params, self._tags(run, report)
        for key, reason in self._writer.log_params(known.id, params).items():
            report.failed(Failure(Kind.PARAM, f"{run.id}/{key}", reason))
            params.pop(key)
        for key, reason in self._writer.log_tags(known.id, tags).items():
            report.failed(Failure(Kind.TAG, f"{run.id}/{key}", reason))
            tags.pop(key)
        whole = len(params) == len(run.params)
        self._log_datasets(run, known, report)
        whole &= self._log_histories(run, known, report, is_new=is_new)
        whole &= self.put_artifacts(run.id, known.artifact_uri, "", run.artifacts, report)
        self._finish_info(run, known)
        return self._read_back(run, known, params, tags, report) and whole

    def _tags(self, run: Run, report: Report) -> dict[str, str]:
        tags = {key: value for key, value in run.tags.items() if key not in TAGS}
        if self._options.importer and _USER in tags:
            tags[_USER] = self._options.importer
        tags.pop(PARENT, None)
        if history := tags.get(_LOGGED_MODELS):
            tags[_LOGGED_MODELS] = _with_new_run_ids(history, run.id, self._runs)
        models = len(run.document.get("inputs", {}).get("model_inputs", ())) + len(
            run.document.get("outputs", {}).get("model_outputs", ())
        )
        if models:
            report.lost(
                Loss(Kind.RUN, run.id, f"{models} links to logged models stay in the archive")
            )
        return tags

    def _log_datasets(self, run: Run, known: KnownRun, report: Report) -> None:
        try:
            self._writer.log_inputs(known.id, run.document)
        except ServerLostError:
            raise
        except ServerError as error:
            report.lost(Loss(Kind.RUN, run.id, f"its dataset inputs: {error.message}"))

    def _finish_info(self, run: Run, known: KnownRun) -> None:
        info = run.info
        self._writer.finish_run(
            known.id, str(info.get("status", "RUNNING")), info.get("end_time"), None
        )

    def _log_histories(self, run: Run, known: KnownRun, report: Report, *, is_new: bool) -> bool:
        whole = True
        batch: list[pa.Table] = []
        rows = 0
        expected: list[pa.Table] = []
        pending_key: str | None = None
        for table in run.histories:
            if isinstance(table, Failure):
                report.failed(table)
                whole = False
                continue
            for key, history in rows_by_key(table):
                # A key's rows may come in several tables: it is checked when the next key begins.
                if key != pending_key and pending_key is not None:
                    batch, rows = self._send(known.id, batch, rows, everything=False)
                pending_key = key
                kept = self._without_refused(run.id, key, history, report)
                expected.append(kept)
                missing = kept if is_new else self._missing(known.id, key, kept)
                batch.append(missing)
                rows += missing.num_rows
            batch, rows = self._send(known.id, batch, rows, everything=False)
        self._send(known.id, batch, rows, everything=True)
        return self._check_histories(run.id, known.id, expected, report) and whole

    def _send(
        self, run_id: str, batch: list[pa.Table], rows: int, *, everything: bool
    ) -> tuple[list[pa.Table], int]:
        if not rows or (rows < BATCH_METRICS and not everything):
            return batch, rows
        table = pa.concat_tables(batch)
        start = 0
        while table.num_rows - start >= BATCH_METRICS or (everything and start < table.num_rows):
            self._writer.log_metrics(run_id, table.slice(start, BATCH_METRICS))
            start += BATCH_METRICS
        rest = table.slice(start)
        return ([rest], rest.num_rows) if rest.num_rows else ([], 0)

    def _without_refused(self, run_id: str, key: str, rows: pa.Table, report: Report) -> pa.Table:
        kept = rows.filter(pc.greater_equal(rows.column("timestamp"), 0))
        if refused := rows.num_rows - kept.num_rows:
            reason = f"{refused} rows have a time before 1970, which MLflow's API refuses"
            report.failed(Failure(Kind.METRIC_HISTORY, f"{run_id}/{key}", reason))
        return kept

    def _missing(self, run_id: str, key: str, rows: pa.Table) -> pa.Table:
        """Return the rows that an interrupted unpack, or an older archive, left out."""
        there = _as_stored(self._existing(run_id, key))
        if not there.num_rows:
            return rows
        wanted = _as_stored(rows).append_column("at", pa.array(range(rows.num_rows)))
        names = [*HISTORY.names[:-1], "bits"]
        left = _bits(wanted).join(_bits(there), names, join_type="left anti")
        return rows.take(left.column("at").combine_chunks().sort())

    def _existing(self, run_id: str, key: str) -> pa.Table:
        try:
            return read_history(self._host, run_id, key)
        except ServerLostError:
            raise
        except ServerError:
            return HISTORY.empty_table()

    def _check_histories(
        self, source_id: str, run_id: str, expected: list[pa.Table], report: Report
    ) -> bool:
        """Read every history back and compare it row by row."""
        whole = True
        by_key: dict[str, list[pa.Table]] = {}
        for table in expected:
            if table.num_rows:
                by_key.setdefault(table.column("key")[0].as_py(), []).append(table)
        for key, tables in by_key.items():
            sent = pa.concat_tables(tables)
            try:
                there = sort_history(read_history(self._host, run_id, key))
            except ServerLostError:
                raise
            except ServerError as error:
                report.failed(Failure(Kind.METRIC_HISTORY, f"{source_id}/{key}", error.message))
                whole = False
                continue
            difference = _difference(sent, there)
            if difference is None:
                report.failed(
                    Failure(
                        Kind.METRIC_HISTORY,
                        f"{source_id}/{key}",
                        f"{sent.num_rows} rows were sent, {there.num_rows} others came back",
                    )
                )
                whole = False
                continue
            report.written(Kind.METRIC_HISTORY)
            report.add_rows(sent.num_rows)
            if difference:
                report.lost(Loss(Kind.METRIC_HISTORY, f"{source_id}/{key}", difference))
        return whole

    def _read_back(
        self,
        run: Run,
        known: KnownRun,
        params: dict[str, str],
        tags: dict[str, str],
        report: Report,
    ) -> bool:
        there = Run(self._reader.run(known.id))
        whole = True
        for kind, sent, found in (
            (Kind.PARAM, params, there.params),
            (Kind.TAG, tags, there.tags),
        ):
            for key, value in sent.items():
                if key not in found:
                    report.failed(Failure(kind, f"{run.id}/{key}", "it did not arrive"))
                    whole = False
                elif found[key] != value:
                    what = f"the target keeps {len(found[key])} of {len(value)} characters"
                    if len(found[key]) >= len(value):
                        what = "the target keeps another value"
                    report.lost(Loss(kind, f"{run.id}/{key}", what))
        for name in ("status", "start_time", "end_time", "run_name"):
            wanted, found_value = run.info.get(name), there.info.get(name)
            if wanted and wanted != found_value:
                report.lost(Loss(Kind.RUN, run.id, f"{name} is {found_value}, not {wanted}"))
        return whole

    def _complete(self, run: Run, known: KnownRun) -> None:
        mark = self._mark(run)
        self._writer.log_tags(known.id, {AS_OF_MS: str(run.as_of_ms), CONTENT: mark})
        known.content, known.as_of_ms = mark, run.as_of_ms
        if run.info.get("lifecycle_stage") == "deleted":
            self._writer.set_run_deleted(known.id, deleted=True)
            known.is_deleted = True


def _with_new_run_ids(history: str, run_id: str, runs: RunMap) -> str:
    """Give the entries of ``mlflow.log-model.history`` the run ids of the target."""
    try:
        entries = json.loads(history)
    except ValueError:
        return history
    if not isinstance(entries, list):
        return history
    changed = False
    for entry in entries:
        if not isinstance(entry, dict):
            continue
        known = runs.get(str(entry.get("run_id", run_id)))
        if "run_id" in entry and known is not None:
            entry["run_id"] = known.id
            changed = True
    return json.dumps(entries) if changed else history


def _as_stored(rows: pa.Table) -> pa.Table:
    """Return rows as a SQL store keeps them: no infinities, no negative zero."""
    value = rows.column("value")
    value = pc.if_else(pc.equal(value, float("inf")), _LARGEST, value)
    value = pc.if_else(pc.equal(value, float("-inf")), -_LARGEST, value)
    value = pc.if_else(pc.equal(value, 0.0), 0.0, value)
    value = pc.if_else(pc.is_nan(value), float("nan"), value)
    return rows.set_column(HISTORY.get_field_index("value"), HISTORY.field("value"), value)


def _bits(rows: pa.Table) -> pa.Table:
    value = rows.column("value").combine_chunks()
    return rows.append_column("bits", value.view(pa.uint64())).drop_columns(["value"])


def _difference(sent: pa.Table, there: pa.Table) -> str | None:
    """Say how a history that came back differs: empty for not at all, None for wrongly."""
    sent = sort_history(sent)
    if _bits(sent).equals(_bits(there)):
        return ""
    stored = sort_history(_as_stored(sent))
    distinct = _bits(stored).group_by([*HISTORY.names[:-1], "bits"]).aggregate([])
    if distinct.num_rows != there.num_rows:
        return None
    back = _bits(sort_history(_as_stored(there))).group_by([*HISTORY.names[:-1], "bits"])
    if (
        back.aggregate([]).join(distinct, [*HISTORY.names[:-1], "bits"], join_type="inner").num_rows
        != distinct.num_rows
    ):
        return None
    notes = []
    if distinct.num_rows != sent.num_rows:
        notes.append(f"{sent.num_rows - distinct.num_rows} identical rows are kept once")
    value = sent.column("value")
    if pc.any(pc.is_inf(value)).as_py():
        notes.append("infinities are kept as the largest double")
    if not notes:
        notes.append("negative zeros are kept as zeros")
    return ", ".join(notes)
