"""What of an archive may stand in another one as it is, so that nothing of it is made anew."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from mlflow_exim_plugin.errors import InvalidArchiveError, NotFoundError
from mlflow_exim_plugin.schema.envelope import RunEnvelope, TracePartEnvelope
from mlflow_exim_plugin.schema.objects import (
    Failure,
    Kind,
    Loss,
    StoredMember,
    StoredTracePart,
    Unpacked,
)
from mlflow_exim_plugin.schema.report import ALL_OTHERS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from mlflow_exim_plugin.options import Selection
    from mlflow_exim_plugin.schema.envelope import (
        ArchiveInfo,
        ExperimentInfo,
        Info,
        RunInfo,
        VersionInfo,
    )
    from mlflow_exim_plugin.sources.archive.archive import Archive

__all__ = ["StoredParts"]

_KINDS = {str(kind): kind for kind in Kind}


class StoredParts:
    """Tells what of an archive another one may take as it is, and what was told of it.

    Args:
        archive: Open archive.
        selection: What is taken of it.
        tables: Whether whole tables may be taken as they are.
    """

    def __init__(self, archive: Archive, selection: Selection, *, tables: bool = True) -> None:
        self._archive = archive
        self._tables = tables
        self._selection = selection
        self._said: set[Failure | Loss] = set()

    def member(self, path: str) -> StoredMember:
        """Return a member, to be taken as it is."""
        return StoredMember(self._archive.reader.holder(path), path)

    def envelope(self, path: str, info: VersionInfo | RunInfo) -> StoredMember | None:
        """Return an envelope to be taken as it is, None where not all of its files come."""
        if not self._selection.takes_all_artifacts:
            return None
        members = tuple(entry.member for entry in info.artifacts)
        return StoredMember(self._archive.reader.holder(path), path, members, info.content_digest)

    def issues(self, kind: Kind, info: Info) -> tuple[Failure | Loss, ...]:
        """Return what an envelope says to be missing of its object."""
        found = tuple(_issues(kind, info))
        self._said.update(found)
        return found

    def failed_runs(self, info: ExperimentInfo) -> Iterator[Failure]:
        """Yield the runs of an experiment that were not packed."""
        for run_id in info.failed_runs:
            failure = Failure(Kind.RUN, run_id, self._reasons.get(run_id, "it was not packed"))
            self._said.add(failure)
            yield failure
        if others := info.num_failed_runs - len(info.failed_runs):
            failure = Failure(Kind.RUN, ALL_OTHERS, "they were not packed", others)
            self._said.add(failure)
            yield failure

    @cached_property
    def _reasons(self) -> dict[str, str]:
        failures = self._archive.summary.info.failures
        return {failure.id: failure.reason for failure in failures if failure.kind == Kind.RUN}

    def rest(self) -> Iterator[Failure | Loss | Unpacked]:
        """Yield what the archive says of all that was packed, and of no object that was taken."""
        info = self._archive.summary.info
        for seen in info.not_packed:
            yield Unpacked(seen.kind, seen.seen, seen.at_least, seen.reason)
        if self._selection.takes_all_runs:
            yield from self._unsaid(info)

    def _unsaid(self, info: ArchiveInfo) -> Iterator[Failure | Loss]:
        """Yield what was not said yet; of an entry that stands for others, as many as were not."""
        stated: Counter[Kind] = Counter()
        told: Counter[Kind] = Counter()
        for said in self._said:
            told[said.kind] += said.count if isinstance(said, Failure) else 0
        others = []
        for issue in _issues(Kind.RUN, info):
            if isinstance(issue, Failure):
                stated[issue.kind] += issue.count
            if isinstance(issue, Failure) and issue.id == ALL_OTHERS:
                others.append(issue)
            elif issue not in self._said:
                told[issue.kind] += issue.count if isinstance(issue, Failure) else 0
                yield issue
        for issue in others:
            if (count := stated[issue.kind] - told[issue.kind]) > 0:
                told[issue.kind] += count
                yield replace(issue, count=count)

    def metrics_files(self, folder: str, runs: Iterable[str]) -> tuple[StoredMember, ...] | None:
        """Return the files of an experiment's metric rows, if each row belongs to one of its runs.

        Args:
            folder: Of the experiment.
            runs: Envelopes of all its runs, all of which are taken.
        """
        from mlflow_exim_plugin.schema.tables import METRICS

        reader = self._archive.reader
        files = reader.paths(f"{folder}metrics/") if self._tables else []
        if not files:
            return None
        rows: Counter[str] = Counter()
        try:
            for path in runs:
                metrics = self._archive.document(RunEnvelope, path).info.metrics
                for part in metrics.parts if metrics else ():
                    rows[part.member] += part.rows
            for path in files:
                with closing(reader.open_table(path, METRICS, "E059")) as table:
                    if rows[path] != table.num_rows:
                        return None
        except (InvalidArchiveError, NotFoundError):
            return None  # then each run is read by itself, and what is damaged is named
        return tuple(map(self.member, files)) if len(rows) == len(files) else None

    def traces(self, paths: Iterable[str]) -> tuple[StoredTracePart, ...] | None:
        """Return the parts of an experiment's traces, None where one of them cannot be taken so."""
        from mlflow_exim_plugin.sources.archive.trace_parts import hidden_traces, trace_digests

        if not self._tables:
            return None
        found = []
        try:
            for path in paths:
                envelope = self._archive.document(TracePartEnvelope, path)
                if hidden_traces(self._archive.reader, envelope):
                    return None
                info, tables = envelope.info, envelope.info.tables
                members = [entry.member for entry in info.attachments]
                members += [entry.member for entry in tables.values()]
                for member in members:
                    self._require_sound(member)
                counts = {
                    Kind.TRACE: envelope.mlflow.traces,
                    Kind.SPAN: tables["spans"].rows if "spans" in tables else 0,
                    Kind.ASSESSMENT: tables["assessments"].rows if "assessments" in tables else 0,
                    Kind.ARTIFACT: len(info.attachments),
                }
                size_bytes = sum(entry.size_bytes for entry in info.attachments)
                stored = StoredMember(self._archive.reader.holder(path), path, tuple(members))
                issues = self.issues(Kind.TRACE, info)
                digests = trace_digests(self._archive.reader, envelope)
                found.append(StoredTracePart(stored, counts, size_bytes, issues, digests))
        except (InvalidArchiveError, NotFoundError):
            return None
        return tuple(found)

    def _require_sound(self, path: str) -> None:
        """Read a member that would be read when it is copied."""
        reader = self._archive.reader.holder(path)
        if reader.own_frames(path) is None:
            with reader.open_member(path) as stream:
                while stream.read(1 << 20):
                    pass


def _issues(kind: Kind, info: Info | ArchiveInfo) -> Iterator[Failure | Loss]:
    """Yield what is told to be missing of an object of a kind, or of all."""
    for named in info.failures:
        count = getattr(named, "count", 1)
        count = count if isinstance(count, int) else 1
        yield Failure(_KINDS.get(named.kind, kind), named.id, named.reason, count)
    for named in info.lossy:
        yield Loss(_KINDS.get(named.kind, kind), named.id, named.what)
