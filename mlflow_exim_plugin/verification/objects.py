"""Checks every document and table of an archive against the object rules of the spec (E050...)."""

from __future__ import annotations

import contextlib
import re
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from mlflow_exim_plugin.container import layout
from mlflow_exim_plugin.container.paths import encode_segment
from mlflow_exim_plugin.container.tail import FORMAT_VERSION
from mlflow_exim_plugin.errors import InvalidArchiveError
from mlflow_exim_plugin.schema.canonical import content_digest
from mlflow_exim_plugin.schema.digests import ContentRoot, raw_digest
from mlflow_exim_plugin.schema.envelope import (
    FORMAT,
    ArchiveEnvelope,
    ArchiveHeader,
    ArtifactEntry,
    Document,
    EntityEnvelope,
    ExperimentEnvelope,
    Info,
    Listing,
    LoggedModelEnvelope,
    MetricsEntry,
    ModelEnvelope,
    RunEnvelope,
    TracePartEnvelope,
    VersionEnvelope,
    check_document,
    check_entity,
)
from mlflow_exim_plugin.schema.metric_rows import MetricsDigest, RowBatch, RunRows
from mlflow_exim_plugin.schema.objects import ENTITY_KINDS, VERSION_KINDS, Kind
from mlflow_exim_plugin.schema.rules import LIMITS
from mlflow_exim_plugin.schema.tables import METRICS
from mlflow_exim_plugin.sources.archive.log import read_log
from mlflow_exim_plugin.sources.archive.trace_parts import read_part
from mlflow_exim_plugin.verification.findings import Findings

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator

    from mlflow_exim_plugin.container.reader import ArchiveReader
    from mlflow_exim_plugin.schema.envelope import ArchiveInfo, ExperimentInfo
    from mlflow_exim_plugin.schema.rules import Finding
    from mlflow_exim_plugin.schema.stored_tables import StoredTable

__all__ = ["verify_objects"]

_Envelope = TypeVar("_Envelope", bound=Document)

# Kinds that are counted by what envelopes say, so only when all can be read.
_IN_ENVELOPES = {
    Kind.METRIC_HISTORY,
    Kind.ARTIFACT,
    Kind.TRACE,
    Kind.SPAN,
    Kind.ASSESSMENT,
    *(spec.parts[1] for spec in ENTITY_KINDS.values() if spec.parts),
}
_ROWS_AT_ONCE = 1 << 17
"""Of a row group; this package writes none that is larger."""
_COUNTED = [kind for kind in Kind if kind not in {Kind.PARAM, Kind.TAG}]


def verify_objects(reader: ArchiveReader, damaged: Container[str] = ()) -> list[Finding]:
    """Check that documents and tables are what the format says and agree with each other.

    Args:
        reader: Open archive.
        damaged: Members whose bytes were found wrong before; they are not read again.

    Returns:
        What breaks a rule, of each code at most ``MAX_FINDINGS`` and one.
    """
    check = _ObjectCheck(reader, damaged)
    check.run()
    return check.findings.listed()


class _ObjectCheck:
    def __init__(self, reader: ArchiveReader, damaged: Container[str]) -> None:
        self.findings = Findings()
        self._reader = reader
        self._damaged = damaged
        self._named: set[str] = {layout.ARCHIVE}
        self._ranges: dict[str, list[tuple[int, int, str]]] = {}
        self._digests: dict[str, tuple[str, MetricsEntry]] = {}
        self._open_digests: dict[str, MetricsDigest] = {}
        self._counts: dict[Kind, int] = dict.fromkeys(_COUNTED, 0)
        self._sums = {"metric_rows": 0, "artifact_bytes": 0}
        self._is_whole = True
        # Members that an envelope lists, and those that are of what is listed.
        self._listed: set[str] = set()
        self._there: set[str] = set()
        # Folders whose own envelope cannot be read: what it lists is not known.
        self._unread: set[str] = set()
        self._trees: dict[str, _TreeNames] = {layout.TREE: _TreeNames()}
        self._run_ids: set[str] = set()
        self._entities: set[tuple[Kind, str, str, str]] = set()
        self._are_runs_read = True
        # What older packages wrote is held to what their version of the format said.
        self._is_since_1_2 = reader.format_version >= (1, 2)
        # A later version may have objects in places that are not known here.
        self._knows_content_root = (1, 3) <= reader.format_version <= FORMAT_VERSION
        self._content_root = ContentRoot()
        self._logged_content_root: str | None = None

    def run(self) -> None:
        """Go through the archive once."""
        self._check_header()
        self._check_log()
        paths = self._reader.paths("data/")
        self._reader.expect(path for path in paths if layout.object_at(path))
        for path in paths:
            at = layout.object_at(path)
            if at is not None:
                self._trees.setdefault(at.tree, _TreeNames())
                self._check_envelope(path, at)
            elif layout.table_of(path) == "metrics":
                self._ranges.setdefault(path, [])
                self._named.add(path)
        self._check_listed()
        for member in sorted(self._ranges):
            self._check_table(member)
        self._check_summary()
        # What an unreadable envelope names is not known.
        for path in self._reader.paths("data/") if self._is_whole else ():
            if path not in self._named:
                self._find("W020", path, "no envelope names it")

    def _check_envelope(self, path: str, at: layout.ObjectPath) -> None:
        if at.kind is not Kind.TRACE:
            self._counts[at.kind] += 1
        match at.kind:
            case Kind.EXPERIMENT:
                self._check_experiment(path, at)
            case Kind.RUN:
                self._check_run(path, at)
            case Kind.LOGGED_MODEL:
                self._check_logged_model(path, at)
            case Kind.TRACE:
                self._check_traces(path, at)
            case kind if kind in VERSION_KINDS:
                self._check_model(path, at)
            case _ if at.model is not None:
                self._check_version(path, at, at.model)
            case _:
                self._check_entity(path, at)

    def _find(self, code: str, path: str, message: str) -> None:
        self.findings.add(code, path, message)

    def _parse(self, model: type[_Envelope], path: str) -> tuple[_Envelope, Any] | None:
        """Return a document and its JSON value, which alone has exactly what is stored."""
        self._named.add(path)
        try:
            if path not in self._damaged:
                value = self._reader.read_document(path)
                return check_document(model, value, path, len(self._reader)), value
        except InvalidArchiveError as error:
            self.findings.add_error(error)
        self._is_whole = False
        return None

    def _check_header(self) -> None:
        if layout.HEADER not in self._reader:
            self._find("E057", layout.HEADER, "is missing")
            return
        parsed = self._parse(ArchiveHeader, layout.HEADER)
        if parsed is None:
            return
        header, reader = parsed[0], self._reader
        version = ".".join(map(str, reader.format_version))
        stated = (header.format, header.format_version, set(header.required_features))
        wanted = (FORMAT, version, set(reader.required_features))
        if stated != wanted or not header.model_fields_set >= {"format", "format_version"}:
            self._find("E057", layout.HEADER, f"does not say what the footer says, {version}")

    def _check_log(self) -> None:
        try:
            for event, _ in read_log(self._reader):
                self._logged_content_root = event.info.content_root
        except InvalidArchiveError as error:
            self.findings.add_error(error, known=self._damaged)
            self._logged_content_root = None

    def _check_experiment(self, path: str, at: layout.ObjectPath) -> None:
        folder = path.removesuffix("experiment.json")
        parsed = self._parse(ExperimentEnvelope, path)
        if parsed is None:
            self._unread.add(folder)
            return
        envelope, value = parsed
        document, info = envelope.mlflow.experiment, envelope.info
        names = self._trees[at.tree]
        names.experiments.add((document["experiment_id"], document["name"]))
        self._check_identity(path, at.segment, document, "experiment_id")
        self._check_digest(path, info, value)
        self._content_root.add(path, info.content_digest)
        self._list(
            layout.run_member(layout.run_folder(folder, run_id)) for run_id in envelope.mlflow.runs
        )
        self._list(
            layout.logged_model_member(layout.logged_model_folder(folder, model_id))
            for model_id in envelope.mlflow.logged_models
        )
        if info.num_ok_runs != len(set(envelope.mlflow.runs)) or not _adds_up(info):
            self._find("E058", path, "its run counters do not add up")

    def _check_run(self, path: str, at: layout.ObjectPath) -> None:
        self._there.add(path)
        parsed = self._parse(RunEnvelope, path)
        if parsed is None:
            self._are_runs_read = False
            return
        envelope, value = parsed
        info = envelope.mlflow.run["info"]
        self._check_identity(path, at.segment, info, "run_id")
        self._check_identity(path, at.experiment, info, "experiment_id")
        if info["run_id"] in self._run_ids:
            self._find("E052", path, "is the second envelope of its run")
        self._run_ids.add(info["run_id"])
        metrics = envelope.info.metrics
        digest = metrics.digest if metrics else None
        self._check_digest(path, envelope.info, value, digest, envelope.info.artifacts)
        self._content_root.add(path, envelope.info.content_digest)
        self._check_artifacts(path, envelope.info.artifacts)
        if metrics is None:
            return
        if metrics.rows != sum(part.rows for part in metrics.parts):
            self._find("E053", path, "its row ranges do not add up to its rows")
        self._counts[Kind.METRIC_HISTORY] += metrics.keys
        self._sums["metric_rows"] += metrics.rows
        run_id = info["run_id"]
        self._digests[run_id] = (path, metrics)
        for part in metrics.parts:
            self._named.add(part.member)
            ranges = self._ranges.setdefault(part.member, [])
            ranges.append((part.first_row, part.rows, run_id))

    def _check_logged_model(self, path: str, at: layout.ObjectPath) -> None:
        self._there.add(path)
        parsed = self._parse(LoggedModelEnvelope, path)
        if parsed is None:
            return
        envelope, value = parsed
        info = envelope.mlflow.logged_model["info"]
        self._check_identity(path, at.segment, info, "model_id")
        self._check_identity(path, at.experiment, info, "experiment_id")
        self._check_digest(path, envelope.info, value, None, envelope.info.artifacts)
        self._content_root.add(path, envelope.info.content_digest)
        self._check_artifacts(path, envelope.info.artifacts)

    def _check_traces(self, path: str, at: layout.ObjectPath) -> None:
        parsed = self._parse(TracePartEnvelope, path)
        if parsed is None:
            return
        envelope, value = parsed
        info, part = envelope.info, envelope.mlflow
        self._check_identity(path, at.experiment, value["mlflow"], "experiment_id")
        self._check_artifacts(path, info.attachments)
        self._named.update(table.member for table in info.tables.values())
        counts = {Kind.TRACE: 0, Kind.SPAN: 0, Kind.ASSESSMENT: 0}
        digests: list[tuple[str, str]] = []
        try:
            for stored in read_part(self._reader, envelope, path):
                trace = stored.trace
                counts[Kind.TRACE] += 1
                counts[Kind.SPAN] += len(trace.spans or ())
                counts[Kind.ASSESSMENT] += len(trace.assessments)
                digests.append((trace.id, stored.digest))
                try:
                    stored.check(path)
                except InvalidArchiveError as error:
                    self.findings.add_error(error)
        except InvalidArchiveError as error:
            # A damaged member has been named before.
            self.findings.add_error(error, known=self._damaged)
            self._is_whole = False
            return
        for kind, count in counts.items():
            self._counts[kind] += count
        if part.traces != counts[Kind.TRACE]:
            self._find("E058", path, f"it counts {part.traces} traces, not {counts[Kind.TRACE]}")
        self._check_digest(path, info, value, traces=digests)
        if "E064" not in self.findings:
            stated = b"".join(raw_digest(digest) for _, digest in digests)
            self._content_root.add_traces(at.experiment_folder, stated)

    def _check_entity(self, path: str, at: layout.ObjectPath) -> None:
        parsed = self._parse(EntityEnvelope, path)
        if parsed is None:
            return
        envelope, value = parsed
        try:
            document = check_entity(envelope, at.kind, path)
        except InvalidArchiveError as error:
            self.findings.add_error(error)
            self._is_whole = False
            return
        spec = ENTITY_KINDS[at.kind]
        self._check_identity(path, at.segment, document, spec.id_field, may_be_numbered=True)
        self._check_digest(path, envelope.info, value, None, envelope.info.artifacts)
        place = at.unnumbered(document[spec.id_field])
        self._content_root.add(place, envelope.info.content_digest)
        self._check_artifacts(path, envelope.info.artifacts)
        identity = (at.kind, at.experiment, at.tree, document[spec.id_field])
        if identity in self._entities:
            self._find("E052", path, f"is the second envelope of {document[spec.id_field]!r}")
        self._entities.add(identity)
        if spec.parts and isinstance(parts := document.get(spec.parts[0]), list):
            self._counts[spec.parts[1]] += len(parts)

    def _check_model(self, path: str, at: layout.ObjectPath) -> None:
        folder = path.removesuffix("model.json")
        parsed = self._parse(ModelEnvelope, path)
        if parsed is None:
            self._unread.add(folder)
            return
        envelope, value = parsed
        document = envelope.mlflow.registered_model
        names = self._trees[at.tree].models.setdefault(at.kind, {})
        if document["name"] in names.values():
            self._find("E052", path, f"is the second folder of {document['name']!r}")
        names[at.segment] = document["name"]
        self._check_identity(path, at.segment, document, "name", may_be_numbered=True)
        self._check_digest(path, envelope.info, value)
        self._content_root.add(at.unnumbered(document["name"]), envelope.info.content_digest)
        self._list(layout.version_member(folder, number) for number in envelope.mlflow.versions)

    def _check_version(self, path: str, at: layout.ObjectPath, model: tuple[Kind, str]) -> None:
        self._there.add(path)
        parsed = self._parse(VersionEnvelope, path)
        if parsed is None:
            return
        envelope, value = parsed
        document = envelope.mlflow.model_version
        if document["version"] != at.segment:
            self._find("E052", path, "its document has another version")
        kind, segment = model
        names = self._trees[at.tree].models.get(kind, {})
        if names.get(segment, document["name"]) != document["name"]:
            self._find("E052", path, f"its document has the name {document['name']!r}")
        self._check_digest(path, envelope.info, value, None, envelope.info.artifacts)
        self._content_root.add(at.unnumbered(document["name"]), envelope.info.content_digest)
        self._check_artifacts(path, envelope.info.artifacts)

    def _check_identity(
        self,
        path: str,
        segment: str,
        document: dict[str, Any],
        field: str,
        *,
        may_be_numbered: bool = False,
    ) -> None:
        identity = document.get(field)
        wanted = encode_segment(identity) if isinstance(identity, str) else None
        numbered = re.escape(wanted or "") + "(~[1-9][0-9]*)?"
        if wanted == segment or (wanted and may_be_numbered and re.fullmatch(numbered, segment)):
            return
        self._find("E052", path, f"its {field} is {identity!r}")

    def _check_digest(
        self,
        path: str,
        info: Info,
        value: Any,
        metrics: str | None = None,
        artifacts: Iterable[ArtifactEntry] = (),
        traces: Iterable[tuple[str, str]] = (),
    ) -> None:
        contents = ((a.path, a.size_bytes, a.sha256) for a in artifacts)
        found = content_digest(value["mlflow"], metrics, contents, traces)
        if found != info.content_digest:
            self._find("E055", path, f"its content hashes to {found}")

    def _check_artifacts(self, path: str, artifacts: Iterable[ArtifactEntry]) -> None:
        for entry in artifacts:
            self._counts[Kind.ARTIFACT] += 1
            self._sums["artifact_bytes"] += entry.size_bytes
            if entry.member not in self._reader:
                self._find("E054", path, f"its artifact {entry.member} is not in the archive")
                continue
            self._named.add(entry.member)
            member = self._reader.member(entry.member)
            if (member.size_bytes, member.sha256) != (entry.size_bytes, entry.sha256):
                self._find("E054", path, f"its artifact {entry.member} has another size or digest")

    def _list(self, paths: Iterable[str]) -> None:
        for path in paths:
            if path in self._reader:
                self._listed.add(path)
            else:
                self._find("E056", path, "is listed but not there")

    def _check_listed(self) -> None:
        for path in sorted(self._there - self._listed):
            if self._unread.isdisjoint(_folders_above(path)):
                self._find("E056", path, "is not listed by its experiment or model")

    def _check_table(self, member: str) -> None:
        """Check one Parquet file and the digest of each run's rows in it."""
        if member not in self._reader:
            self._find("E053", member, "is named by a run but is not in the archive")
            return
        if member in self._damaged:
            return
        try:
            file = self._reader.open_table(member, METRICS, "E059")
            with contextlib.closing(file):
                self._check_ranges(member, file.num_rows)
                self._check_rows(member, file)
        except InvalidArchiveError as error:
            self.findings.add_error(error)

    def _check_ranges(self, member: str, rows: int) -> None:
        end = 0
        for first, count, run_id in sorted(self._ranges[member]):
            if first < end or (first > end and self._are_runs_read):
                self._find("E053", member, f"rows {end} to {first} belong to no run or to two")
            end = first + count
            if end > rows:
                self._find("E053", member, f"run {run_id} needs {end} rows, there are {rows}")
        if end < rows and self._are_runs_read:
            self._find("E053", member, f"rows {end} to {rows} belong to no run")

    def _check_rows(self, member: str, file: StoredTable) -> None:
        ranges = deque(_apart(self._ranges[member]))
        start = 0
        last = METRICS.empty_table()
        for number, table in _tables_of(file):
            if not _is_sorted(pa.concat_tables([last, table])):
                self._find("E060", member, f"row group {number} is not sorted")
            last = table.slice(table.num_rows - 1) if table.num_rows else last
            batch = RowBatch(table)
            end = start + table.num_rows
            while ranges and ranges[0][0] < end:
                first, count, run_id = ranges[0]
                low, high = max(first, start), min(first + count, end)
                if low < high:
                    rows = batch.of_run(run_id, low - start, high - start)
                    self._digest_rows(member, run_id, rows)
                if first + count > end:
                    break  # the next row group has more of it
                ranges.popleft()
            start = end

    def _digest_rows(self, member: str, run_id: str, rows: RunRows | None) -> None:
        if rows is None:
            self._find("E053", member, f"rows of run {run_id} belong to another")
            return
        path, metrics = self._digests[run_id]
        digest = self._open_digests.setdefault(run_id, MetricsDigest())
        digest.update(rows)
        if digest.rows >= metrics.rows:
            del self._open_digests[run_id]
            found = digest.hexdigest()
            if found != metrics.digest:
                self._find("E061", path, f"its metric rows hash to {found}")
            if self._is_since_1_2 and digest.keys != metrics.keys:
                self._find("E058", path, f"its metric rows have {digest.keys} keys")

    def _check_summary(self) -> None:
        if layout.ARCHIVE not in self._reader:
            self._find("E058", layout.ARCHIVE, "is missing")
            return
        parsed = self._parse(ArchiveEnvelope, layout.ARCHIVE)
        if parsed is None:
            return
        envelope = parsed[0]
        info, part = envelope.info, envelope.mlflow
        if self._is_whole:
            listings: dict[str, Listing] = {layout.TREE: part}
            listings |= {layout.workspace_tree(w.name): w for w in part.workspaces}
            if listings.keys() != self._trees.keys() or not all(
                self._trees[tree].is_listed(listing) for tree, listing in listings.items()
            ):
                self._find("E056", layout.ARCHIVE, "does not list what is in the archive")
            if any(getattr(info, name) != number for name, number in self._sums.items()):
                self._find("E058", layout.ARCHIVE, f"its sums are not {self._sums}")
        if info.num_ok_runs != self._counts[Kind.RUN] or not _adds_up(info):
            self._find("E058", layout.ARCHIVE, "its run counters do not add up")
        for kind, counts in envelope.info.counts.items():
            if counts.found != counts.written + counts.skipped + counts.failed:
                self._find("E058", layout.ARCHIVE, f"the counts of {kind} do not add up")
        for kind, there in self._counts.items():
            written = envelope.info.counts.get(str(kind))
            is_known = self._is_whole or kind not in _IN_ENVELOPES
            if is_known and (written.written if written else 0) != there:
                self._find("E058", layout.ARCHIVE, f"it does not count {there} of {kind}")
        self._check_failures(info)
        if self._logged_content_root not in (None, info.content_root):
            self._find("E068", layout.ARCHIVE, "the log ends with another content root")
        self._check_content_root(info.content_root)

    def _check_failures(self, info: ArchiveInfo) -> None:
        named: Counter[str] = Counter()
        for failure in info.failures:
            named[failure.kind] += failure.count
        counted = Counter({kind: counts.failed for kind, counts in info.counts.items()})
        unlike = [kind for kind in sorted(named | counted) if named[kind] != counted[kind]]
        if unlike and self._is_since_1_2:
            for kind in unlike:
                message = f"it names {named[kind]} of {counted[kind]} failed objects of {kind}"
                self._find("E066", layout.ARCHIVE, message)
        elif failed := (named | counted).total():
            self._find("W021", layout.ARCHIVE, f"{failed} objects could not be packed")

    def _check_content_root(self, stated: str | None) -> None:
        """Check the digest of all contents, which repeats what is wrong with any of them."""
        is_sound = not any(code.startswith("E") for code in self.findings)
        if self._knows_content_root and self._is_whole and is_sound:
            found = self._content_root.hexdigest()
            if found != stated:
                self._find("E067", layout.ARCHIVE, f"the content root is {found}")


@dataclass
class _TreeNames:
    """Names of what was found in the tree of one workspace."""

    experiments: set[tuple[str, str]] = field(default_factory=set)
    models: dict[Kind, dict[str, str]] = field(default_factory=dict)

    def is_listed(self, listing: Listing) -> bool:
        """Whether a listing has them and no others."""
        return (
            {(e.experiment_id, e.name) for e in listing.experiments} == self.experiments
            and set(listing.models) == set(self.models.get(Kind.REGISTERED_MODEL, {}).values())
            and set(listing.prompts) == set(self.models.get(Kind.PROMPT, {}).values())
        )


def _apart(ranges: Iterable[tuple[int, int, str]]) -> Iterator[tuple[int, int, str]]:
    """Yield sorted ranges, without those that begin in another: they have been named before."""
    end = 0
    for first, count, run_id in sorted(ranges):
        if first >= end:
            yield first, count, run_id
            end = first + count


def _folders_above(path: str) -> Iterator[str]:
    end = path.rfind("/")
    while end > 0:
        yield path[: end + 1]
        end = path.rfind("/", 0, end)


def _adds_up(info: ExperimentInfo | ArchiveInfo) -> bool:
    return min(info.num_failed_runs, LIMITS.named) == len(info.failed_runs) and (
        info.num_total_runs == info.num_ok_runs + info.num_failed_runs
    )


def _tables_of(file: StoredTable) -> Iterator[tuple[int, pa.Table]]:
    """Yield the rows of a table, a row group or a part of a large one at a time."""
    for number, rows in enumerate(file.groups):
        table = file.row_group(number)
        for first in range(0, rows, _ROWS_AT_ONCE) or (0,):
            yield number, table.slice(first, _ROWS_AT_ONCE)


def _is_sorted(table: pa.Table) -> bool:
    order = pc.sort_indices(
        table.append_column("bits", table.column("value").combine_chunks().view(pa.uint64())),
        sort_keys=[(n, "ascending") for n in ("run_id", "key", "step", "timestamp", "bits")],
    )
    return bool(pc.all(pc.equal(order, pa.array(range(len(order)), order.type))).as_py())
