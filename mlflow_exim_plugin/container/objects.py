"""Checks every document and table of an archive against the object rules of the spec (E050...)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mlflow_exim_plugin.container import layout
from mlflow_exim_plugin.errors import InvalidArchiveError
from mlflow_exim_plugin.schema.canonical import content_digest
from mlflow_exim_plugin.schema.envelope import (
    FORMAT,
    ArchiveEnvelope,
    ArchiveHeader,
    ArtifactEntry,
    Document,
    ExperimentEnvelope,
    MetricsEntry,
    ModelEnvelope,
    RunEnvelope,
    VersionEnvelope,
    parse_document,
)
from mlflow_exim_plugin.schema.rules import Finding
from mlflow_exim_plugin.schema.tables import METRICS, MetricsDigest

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

    from mlflow_exim_plugin.container.reader import ArchiveReader

__all__ = ["verify_objects"]

_Envelope = TypeVar("_Envelope", bound=Document)


def verify_objects(reader: ArchiveReader, damaged: Container[str] = ()) -> list[Finding]:
    """Check that documents and tables are what the format says and agree with each other.

    Args:
        reader: Open archive.
        damaged: Members whose bytes were found wrong before; they are not read again.

    Returns:
        What breaks a rule.
    """
    check = _ObjectCheck(reader, damaged)
    check.run()
    return check.findings


class _ObjectCheck:
    def __init__(self, reader: ArchiveReader, damaged: Container[str]) -> None:
        self.findings: list[Finding] = []
        self._reader = reader
        self._damaged = damaged
        self._named: set[str] = {layout.ARCHIVE}
        self._ranges: dict[str, list[tuple[int, int, str]]] = {}
        self._digests: dict[str, tuple[str, MetricsEntry]] = {}
        self._open_digests: dict[str, MetricsDigest] = {}
        self._counts = dict.fromkeys(("experiment", "run", "registered_model", "model_version"), 0)

    def run(self) -> None:
        """Go through the archive once."""
        self._check_header()
        runs_of: dict[str, set[str]] = {}
        versions_of: dict[str, set[int]] = {}
        for path in self._reader.paths("data/"):
            match path.split("/"):
                case ["data", "experiments", folder, "experiment.json"]:
                    self._check_experiment(path, folder, runs_of)
                case ["data", "experiments", folder, "runs", _, "run.json"]:
                    self._check_run(path, folder, runs_of)
                case ["data", "models", folder, "model.json"]:
                    self._check_model(path, folder, versions_of)
                case ["data", "models", folder, "versions", _, "version.json"]:
                    self._check_version(path, folder, versions_of)
                case _:
                    pass
        self._check_listed(runs_of, versions_of)
        for member in sorted(self._ranges):
            self._check_table(member)
        self._check_summary()
        for path in self._reader.paths("data/"):
            if path not in self._named:
                self._find("W020", path, "no envelope names it")

    def _find(self, code: str, path: str, message: str) -> None:
        self.findings.append(Finding(code, path, message))

    def _parse(self, model: type[_Envelope], path: str) -> _Envelope | None:
        self._named.add(path)
        if path in self._damaged:
            return None
        try:
            return parse_document(model, self._reader.read(path), path)
        except InvalidArchiveError as error:
            self.findings += error.findings
            return None

    def _check_header(self) -> None:
        if layout.HEADER not in self._reader:
            self._find("E057", layout.HEADER, "is missing")
            return
        header = self._parse(ArchiveHeader, layout.HEADER)
        if header is None:
            return
        version = ".".join(map(str, self._reader.format_version))
        if header.format != FORMAT or header.format_version != version:
            self._find(
                "E057",
                layout.HEADER,
                f"says {header.format} {header.format_version}, the footer {FORMAT} {version}",
            )

    def _check_experiment(self, path: str, folder: str, runs_of: dict[str, set[str]]) -> None:
        self._counts["experiment"] += 1
        envelope = self._parse(ExperimentEnvelope, path)
        if envelope is None:
            return
        self._check_identity(
            path, folder, layout.experiment_folder, envelope.mlflow.experiment, "experiment_id"
        )
        self._check_digest(path, envelope.info.content_digest, envelope.mlflow, None, ())
        for run_id in envelope.mlflow.runs:
            runs_of.setdefault(layout.run_folder("0", run_id).split("/")[-2], set()).add("listed")
        info = envelope.info
        if info.num_total_runs != info.num_ok_runs + info.num_failed_runs or (
            info.num_ok_runs != len(envelope.mlflow.runs)
        ):
            self._find("E058", path, "its run counters do not add up")

    def _check_run(self, path: str, folder: str, runs_of: dict[str, set[str]]) -> None:
        self._counts["run"] += 1
        runs_of.setdefault(path.split("/")[-2], set()).add("there")
        envelope = self._parse(RunEnvelope, path)
        if envelope is None:
            return
        info = envelope.mlflow.run.get("info")
        if not isinstance(info, dict):
            self._find("E051", path, "mlflow.run.info: Field required")
            return
        segment = path.split("/")[-2]
        self._check_identity(
            path, segment, lambda run_id: layout.run_folder("0", run_id), info, "run_id"
        )
        self._check_identity(path, folder, layout.experiment_folder, info, "experiment_id")
        metrics = envelope.info.metrics
        digest = metrics.digest if metrics else None
        self._check_digest(
            path, envelope.info.content_digest, envelope.mlflow, digest, envelope.info.artifacts
        )
        self._check_artifacts(path, envelope.info.artifacts)
        if metrics is None:
            return
        if metrics.rows != sum(part.rows for part in metrics.parts):
            self._find("E053", path, "its row ranges do not add up to its rows")
        run_id = str(info.get("run_id"))
        self._digests[run_id] = (path, metrics)
        for part in metrics.parts:
            self._named.add(part.member)
            ranges = self._ranges.setdefault(part.member, [])
            ranges.append((part.first_row, part.rows, run_id))

    def _check_model(self, path: str, folder: str, versions_of: dict[str, set[int]]) -> None:
        self._counts["registered_model"] += 1
        envelope = self._parse(ModelEnvelope, path)
        if envelope is None:
            return
        name = envelope.mlflow.registered_model.get("name")
        wanted = layout.model_folder(str(name)).split("/")[-2]
        if not (folder == wanted or folder.startswith(f"{wanted}~")):
            self._find("E052", path, f"is the folder of {name!r}")
        self._check_digest(path, envelope.info.content_digest, envelope.mlflow, None, ())
        versions_of[folder] = set(envelope.mlflow.versions)

    def _check_version(self, path: str, folder: str, versions_of: dict[str, set[int]]) -> None:
        self._counts["model_version"] += 1
        envelope = self._parse(VersionEnvelope, path)
        if envelope is None:
            return
        number = path.split("/")[-2]
        if str(envelope.mlflow.model_version.get("version")) != number:
            self._find("E052", path, "its document has another version")
        elif number.isdigit() and int(number) not in versions_of.get(folder, {int(number)}):
            self._find("E056", path, "is not listed by its model")
        self._check_digest(
            path,
            envelope.info.content_digest,
            envelope.mlflow,
            None,
            envelope.info.artifacts,
        )
        self._check_artifacts(path, envelope.info.artifacts)

    def _check_identity(
        self, path: str, segment: str, folder_of: Any, document: dict[str, Any], field: str
    ) -> None:
        identity = document.get(field)
        if not isinstance(identity, str) or folder_of(identity).split("/")[-2] != segment:
            self._find("E052", path, f"its {field} is {identity!r}")

    def _check_digest(
        self,
        path: str,
        stated: str,
        document: Document,
        metrics: str | None,
        artifacts: Iterable[ArtifactEntry],
    ) -> None:
        found = content_digest(
            document.to_json(), metrics, ((a.path, a.size_bytes, a.sha256) for a in artifacts)
        )
        if found != stated:
            self._find("E055", path, f"its content hashes to {found}")

    def _check_artifacts(self, path: str, artifacts: Iterable[ArtifactEntry]) -> None:
        for entry in artifacts:
            self._named.add(entry.member)
            if entry.member not in self._reader:
                self._find("E054", path, f"its artifact {entry.member} is not in the archive")
                continue
            member = self._reader.member(entry.member)
            if (member.size_bytes, member.sha256) != (entry.size_bytes, entry.sha256):
                self._find("E054", path, f"its artifact {entry.member} has another size or digest")

    def _check_listed(self, runs_of: dict[str, set[str]], versions_of: dict[str, set[int]]) -> None:
        for run, seen in runs_of.items():
            if seen == {"listed"}:
                self._find("E056", run, "is listed by its experiment but has no run.json")
            elif seen == {"there"}:
                self._find("E056", run, "is not listed by its experiment")
        for folder, numbers in versions_of.items():
            for number in numbers:
                if layout.version_member(f"{layout.MODELS}{folder}/", number) not in self._reader:
                    self._find("E056", folder, f"version {number} is listed but not there")

    def _check_table(self, member: str) -> None:
        """Check one Parquet file and the digest of each run's rows in it."""
        if member not in self._reader:
            self._find("E053", member, "is named by a run but is not in the archive")
            return
        if member in self._damaged:
            return
        try:
            with self._reader.open_member(member) as stream:
                file = pq.ParquetFile(stream, page_checksum_verification=True)
                if not file.schema_arrow.equals(METRICS):
                    self._find("E059", member, "has other columns than the format")
                    return
                self._check_ranges(member, file.metadata.num_rows)
                self._check_rows(member, file)
        except (pa.ArrowException, OSError, InvalidArchiveError) as error:
            self._find("E059", member, f"is not a Parquet file: {error}")

    def _check_ranges(self, member: str, rows: int) -> None:
        end = 0
        for first, count, run_id in sorted(self._ranges[member]):
            if first != end:
                self._find("E053", member, f"rows {end} to {first} belong to no run or to two")
            end = first + count
            if end > rows:
                self._find("E053", member, f"run {run_id} needs {end} rows, there are {rows}")
        if end < rows:
            self._find("E053", member, f"rows {end} to {rows} belong to no run")

    def _check_rows(self, member: str, file: pq.ParquetFile) -> None:
        ranges = sorted(self._ranges[member])
        start = 0
        for number in range(file.metadata.num_row_groups):
            table = file.read_row_group(number)
            if not _is_sorted(table):
                self._find("E060", member, f"row group {number} is not sorted")
            for first, count, run_id in ranges:
                low, high = max(first, start), min(first + count, start + table.num_rows)
                if low < high:
                    self._digest_rows(member, run_id, table.slice(low - start, high - low))
            start += table.num_rows

    def _digest_rows(self, member: str, run_id: str, rows: pa.Table) -> None:
        if not pc.all(pc.equal(rows.column("run_id"), run_id)).as_py():
            self._find("E053", member, f"rows of run {run_id} belong to another")
        path, metrics = self._digests[run_id]
        digest = self._open_digests.setdefault(run_id, MetricsDigest())
        digest.update(rows)
        if digest.rows >= metrics.rows:
            found = self._open_digests.pop(run_id).hexdigest()
            if found != metrics.digest:
                self._find("E061", path, f"its metric rows hash to {found}")

    def _check_summary(self) -> None:
        if layout.ARCHIVE not in self._reader:
            self._find("E058", layout.ARCHIVE, "is missing")
            return
        envelope = self._parse(ArchiveEnvelope, layout.ARCHIVE)
        if envelope is None:
            return
        for kind, counts in envelope.info.counts.items():
            if counts.found != counts.written + counts.skipped + counts.failed:
                self._find("E058", layout.ARCHIVE, f"the counts of {kind} do not add up")
        for kind, there in self._counts.items():
            written = envelope.info.counts.get(kind)
            if (written.written if written else 0) != there:
                self._find("E058", layout.ARCHIVE, f"it does not count {there} of {kind}")
        if envelope.info.failures:
            self._find(
                "W021", layout.ARCHIVE, f"{len(envelope.info.failures)} objects could not be packed"
            )


def _is_sorted(table: pa.Table) -> bool:
    order = pc.sort_indices(
        table.append_column("bits", table.column("value").combine_chunks().view(pa.uint64())),
        sort_keys=[(n, "ascending") for n in ("run_id", "key", "step", "timestamp", "bits")],
    )
    return bool(pc.all(pc.equal(order, pa.array(range(len(order)), order.type))).as_py())
