"""What a transfer did, object by object: found = written + skipped + failed (the count law)."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.schema.objects import Failure, Kind, Loss, Unpacked
from mlflow_exim_plugin.schema.rules import LIMITS
from mlflow_exim_plugin.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = [
    "ALL_OTHERS",
    "Counts",
    "ExtractedFile",
    "Extraction",
    "Report",
    "entries",
    "failed_runs",
    "plain",
]

ALL_OTHERS = "*"
"""Id of the entry of a document that stands for what is not named by itself."""


@dataclass
class Counts:
    """How many objects of one kind were found and what became of them."""

    found: int = 0
    written: int = 0
    skipped: int = 0
    failed: int = 0


class Report:
    """Counts, failures and losses of one transfer; safe to fill from several threads.

    Attributes:
        counts: By kind.
        completions: How many of those written were there in an earlier state, by kind.
        failures: Each failed object with its reason.
        losses: What the target keeps differently.
        unpacked: What was seen and is not carried.
        skips: Each skipped object with its reason.
        metric_rows: Metric rows written.
        artifact_bytes: Artifact bytes written.
        root: Root digest of the archive written or read, hex.
        content_root: What it holds in one digest, hex: the same for each archive of one state;
            None where that was not made, or is an older archive's that does not state it.
        signature: Where the signature of the archive written is; None without one.
        redacted: What was taken out on the way, by file of rules and by rule.
        snapshot: Of a set, its number, where it lies and what is new in it.
        read_as: What kind of source was found, where that had to be found out.
        source: What was read, without secrets.
        archive: Of the archive that was written or read: ``location``, ``size_bytes``,
            ``members`` and ``format_version``; None without one.
        started_ms: When it began; ms since the Unix epoch.
        ended_ms: When it was done.
        archive_was_there: Whether the archive was read, and not written.
        planned: How many objects of a kind will come, as far as that is known.
        files_at: Where the files of new experiments are at the target; None for an archive.
        dry_run: True when nothing was written.
    """

    def __init__(self, *, dry_run: bool = False) -> None:
        self.counts: defaultdict[Kind, Counts] = defaultdict(Counts)
        self.completions: Counter[Kind] = Counter()
        self.failures: list[Failure] = []
        self.losses: list[Loss] = []
        self.unpacked: list[Unpacked] = []
        self.skips: list[Failure] = []
        self.metric_rows = 0
        self.artifact_bytes = 0
        self.root: str | None = None
        self.content_root: str | None = None
        self.signature: str | None = None
        self.redacted: list[dict[str, Any]] = []
        self.read_as: str | None = None
        self.source: str | None = None
        self.archive: dict[str, Any] | None = None
        self.archive_was_there = True
        self.snapshot: dict[str, Any] | None = None
        self.planned: Mapping[Kind, int] = {}
        self.started_ms = self.ended_ms = _now_ms()
        self.files_at: str | None = None
        self.dry_run = dry_run
        self._lock = threading.Lock()

    def told_archive(
        self, location: str, size_bytes: int, members: int, version: tuple[int, int]
    ) -> None:
        """Say which archive was written or read.

        Args:
            location: Where it is, without secrets.
            size_bytes: Its size.
            members: How many there are in it.
            version: Of its format.
        """
        self.archive = {
            "location": location,
            "size_bytes": size_bytes,
            "members": members,
            "format_version": ".".join(map(str, version)),
        }

    def ended(self) -> None:
        """Note that it is done."""
        self.ended_ms = _now_ms()

    @property
    def duration_s(self) -> float:
        """How long it took."""
        return (self.ended_ms - self.started_ms) / 1000

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())

    def __repr__(self) -> str:
        return f"Report(ok={self.ok}, {self.to_dict()['counts']})"

    @property
    def ok(self) -> bool:
        """True when nothing failed."""
        return not self.failures

    def written(self, kind: Kind, count: int = 1) -> None:
        """Count objects that were found and written."""
        with self._lock:
            counts = self.counts[kind]
            counts.found += count
            counts.written += count

    def written_of(self, kind: Kind) -> int:
        """Return how many objects of a kind were written."""
        counts = self.counts.get(kind)
        return 0 if counts is None else counts.written

    def completed(self, kind: Kind, count: int = 1) -> None:
        """Count objects, counted as written too, that were there in an earlier state."""
        with self._lock:
            self.completions[kind] += count

    def withdraw(self, kind: Kind, count: int) -> None:
        """Take objects back that were counted as written and are not there after all."""
        with self._lock:
            counts = self.counts[kind]
            counts.found -= count
            counts.written -= count

    def skipped(self, kind: Kind, id: str, reason: str, count: int = 1) -> None:  # noqa: A002 - MLflow's word for it
        """Count objects that were found and rightly left alone."""
        if not count:
            return
        with self._lock:
            counts = self.counts[kind]
            counts.found += count
            counts.skipped += count
            self.skips.append(Failure(kind, id, reason, count))

    def failed(self, failure: Failure) -> None:
        """Count and name an object that could not be read or written."""
        with self._lock:
            counts = self.counts[failure.kind]
            counts.found += failure.count
            counts.failed += failure.count
            self.failures.append(failure)

    def issue(self, issue: Failure | Loss) -> None:
        """Count and name what a source or sink found wrong with an object."""
        if isinstance(issue, Failure):
            self.failed(issue)
        else:
            self.lost(issue)

    def lost(self, loss: Loss) -> None:
        """Name something that the target keeps differently."""
        with self._lock:
            self.losses.append(loss)

    def recounted(self, kind: Kind) -> list[Failure]:
        """Forget what was counted of a kind, to be counted anew; return what had failed of it."""
        with self._lock:
            failed = [failure for failure in self.failures if failure.kind is kind]
            self.failures = [failure for failure in self.failures if failure.kind is not kind]
            self.skips = [skip for skip in self.skips if skip.kind is not kind]
            self.counts.pop(kind, None)
            self.completions.pop(kind, None)
        return failed

    def add(self, other: Report) -> None:
        """Add what another one has counted and named."""
        for kind, counts in other.counts.items():
            self.written(kind, counts.written)
        for failure in other.failures:
            self.failed(failure)
        for skip in other.skips:
            self.skipped(skip.kind, skip.id, skip.reason, skip.count)
        for loss in other.losses:
            self.lost(loss)

    def not_packed(self, seen: Unpacked) -> None:
        """Name objects that were seen and are not carried."""
        with self._lock:
            self.unpacked.append(seen)

    def add_rows(self, rows: int) -> None:
        """Add to the metric rows written."""
        with self._lock:
            self.metric_rows += rows

    def add_bytes(self, size_bytes: int) -> None:
        """Add to the artifact bytes written."""
        with self._lock:
            self.artifact_bytes += size_bytes

    def take(self, other: Report) -> None:
        """Add what another report counts and names; what both say in the same words is said once.

        Args:
            other: The report of a part of the same transfer.
        """
        with self._lock:
            for kind, counts in other.counts.items():
                mine = self.counts[kind]
                mine.found += counts.found
                mine.written += counts.written
                mine.skipped += counts.skipped
                mine.failed += counts.failed
            self.completions.update(other.completions)
            self.failures += other.failures
            self.skips += other.skips
            self.losses = list(dict.fromkeys([*self.losses, *other.losses]))
            self.unpacked = list(dict.fromkeys([*self.unpacked, *other.unpacked]))
            self.redacted += [what for what in other.redacted if what not in self.redacted]
            self.metric_rows += other.metric_rows
            self.artifact_bytes += other.artifact_bytes
            self.read_as = self.read_as or other.read_as

    @classmethod
    def of_dict(cls, document: Mapping[str, Any]) -> Report:
        """Return what a report told that is of one part of a transfer: counts and what is named.

        Args:
            document: What :meth:`to_dict` gave.
        """
        report = cls()
        for kind, counts in document["counts"].items():
            report.counts[Kind(kind)] = Counts(**counts)
        report.completions.update({Kind(k): count for k, count in document["completed"].items()})
        report.failures = [Failure(**_of_kind(failure)) for failure in document["failures"]]
        report.losses = [Loss(**_of_kind(loss)) for loss in document["lossy"]]
        report.skips = [Failure(**_of_kind(skip)) for skip in document["skips"]]
        report.unpacked = [Unpacked(**seen) for seen in document["not_packed"]]
        report.redacted = list(document["redacted"])
        report.metric_rows = document["metric_rows"]
        report.artifact_bytes = document["artifact_bytes"]
        report.read_as = document["read_as"]
        return report

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        with self._lock:
            return {
                "ok": not self.failures,
                "dry_run": self.dry_run,
                "root": self.root,
                "content_root": self.content_root,
                "signature": self.signature,
                "redacted": self.redacted,
                "read_as": self.read_as,
                "source": self.source,
                "archive": self.archive,
                "snapshot": self.snapshot,
                "start_time": _iso(self.started_ms),
                "end_time": _iso(self.ended_ms),
                "duration_s": self.duration_s,
                "package_version": __version__,
                "files_at": self.files_at,
                "counts": {str(k): asdict(self.counts[k]) for k in Kind if k in self.counts},
                "completed": {str(k): self.completions[k] for k in Kind if self.completions[k]},
                "metric_rows": self.metric_rows,
                "artifact_bytes": self.artifact_bytes,
                "failures": [plain(f) for f in self.failures],
                "lossy": [plain(loss) for loss in self.losses],
                "skips": [plain(s) for s in self.skips],
                "not_packed": [asdict(u) for u in self.unpacked],
            }


@dataclass(frozen=True)
class ExtractedFile:
    """One file in the folder that files were extracted to.

    Attributes:
        path: Its path below that folder, with ``/``.
        size_bytes: Its size.
        sha256: Hex digest of its bytes.
        kind: Kind of the object that it belongs to, None for a member of the archive.
        id: Id of that object.
        artifact: Path below the object's artifact root, or of the member.
        was_there: Whether it was there before, with these bytes.
    """

    path: str
    size_bytes: int
    sha256: str
    kind: Kind | None
    id: str
    artifact: str
    was_there: bool = False


class Extraction(Report):
    """What an extraction did.

    Attributes:
        files: Every file that is in the folder now.
    """

    def __init__(self, *, dry_run: bool = False) -> None:
        super().__init__(dry_run=dry_run)
        self.files: list[ExtractedFile] = []

    def extracted(self, file: ExtractedFile) -> None:
        """Count a file that is in the folder now."""
        if file.was_there:
            self.skipped(Kind.ARTIFACT, f"{file.id}/{file.artifact}", "it is there already")
        else:
            self.written(Kind.ARTIFACT)
            self.add_bytes(file.size_bytes)
        with self._lock:
            self.files.append(file)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        files = sorted(self.files, key=lambda file: file.path)
        return super().to_dict() | {
            "files": [asdict(f) | {"kind": f.kind and str(f.kind)} for f in files]
        }


def entries(issues: Iterable[Failure | Loss]) -> list[dict[str, Any]]:
    """Return failures, or losses, as ``info`` has them.

    Where there are more than it may have, one entry of each kind stands for the others.

    Args:
        issues: All failures, or all losses.
    """
    most = LIMITS.named
    listed = [_named(issue) for issue in issues]
    if len(listed) <= most:
        return listed
    named, others = listed[: most - len(Kind)], listed[most - len(Kind) :]
    counts: Counter[str] = Counter()
    first: dict[str, dict[str, Any]] = {}
    for entry in others:
        counts[entry["kind"]] += entry.get("count", 1)
        first.setdefault(entry["kind"], entry)
    for kind, entry in first.items():
        why = "reason" if "reason" in entry else "what"
        said = f"{counts[kind]} more that are not named, the first of them: {entry[why]}"
        named.append({"kind": kind, "id": ALL_OTHERS, why: said, "count": counts[kind]})
    return named


def failed_runs(failures: Iterable[Failure]) -> dict[str, Any]:
    """Return how many runs failed, and the ids of as many as may be listed."""
    failed = [failure.id for failure in failures if failure.kind is Kind.RUN]
    return {"num_failed_runs": len(failed), "failed_runs": failed[: LIMITS.named]}


def _named(issue: Failure | Loss) -> dict[str, Any]:
    entry: dict[str, Any] = {"kind": str(issue.kind), "id": issue.id}
    if isinstance(issue, Loss):
        return entry | {"what": issue.what}
    return entry | {"reason": issue.reason, "count": issue.count}


def plain(entry: Failure | Loss) -> dict[str, Any]:
    """Return a failure or loss as JSON values."""
    return asdict(entry) | {"kind": str(entry.kind)}


def _of_kind(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {**entry, "kind": Kind(entry["kind"])}


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _iso(time_ms: int) -> str:
    moment = datetime.fromtimestamp(time_ms / 1000, timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
