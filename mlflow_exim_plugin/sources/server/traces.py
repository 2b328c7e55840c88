"""Traces of a deployment, read some at a time with bounded parallel calls."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

from mlflow_exim_plugin.errors import ServerError
from mlflow_exim_plugin.host.open.schema_revisions import links_prompts
from mlflow_exim_plugin.host.sql.traces import StoredTraceReader, StoredTraces
from mlflow_exim_plugin.host.traces.files import ATTACHMENTS, expected_spans
from mlflow_exim_plugin.host.traces.listing import TraceListing, run_clause
from mlflow_exim_plugin.host.traces.reading import BATCH, TraceReader
from mlflow_exim_plugin.host.traces.search import TraceSearch
from mlflow_exim_plugin.schema.objects import (
    LINKED_PROMPTS,
    LINKED_RUNS,
    PROMPTS_TAG,
    SOURCE_RUN,
    UNLINKED_PROMPTS,
    Artifact,
    Failure,
    Kind,
    Trace,
    named_prompts,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future, ThreadPoolExecutor

    from mlflow_exim_plugin.host.open.host import Host
    from mlflow_exim_plugin.options import Selection
    from mlflow_exim_plugin.sources.server.known import KnownState
    from mlflow_exim_plugin.stages.select import Plan

__all__ = ["TraceSource"]

_SPANS_AHEAD = 2_000
"""Spans that one group may have by what the traces say of themselves."""


class TraceSource:
    """Reads the traces of one deployment.

    Args:
        host: The deployment.
        pool: Runs the calls.
        jobs: How many calls may be under way at once.
        selection: Which traces and attachments to take.
        plan: Which experiments and runs are taken.
        contents: False reads no spans, for a dry run.
        known: What was there at an earlier state, and need not be read again.
    """

    def __init__(
        self,
        host: Host,
        pool: ThreadPoolExecutor,
        jobs: int,
        selection: Selection,
        plan: Plan,
        *,
        contents: bool,
        known: KnownState | None = None,
    ) -> None:
        self._host = host
        self._known = known
        self._listing = TraceListing(TraceSearch(host))
        self._stored = StoredTraces(host.tables) if host.tables is not None else None
        self._reader = StoredTraceReader(host, self._stored) if self._stored else TraceReader(host)
        self._pool = pool
        self._jobs = jobs
        self._contents = contents
        self._selection = selection
        self._plan = plan
        self._links: dict[str, list[str]] = {}
        self._prompts: dict[str, set[str]] = {}
        self._asked: set[str] = set()
        self._without: set[str] = set()

    def find_links(self, prompt_versions: Callable[[], list[str]]) -> Iterator[Failure]:
        """Look for traces that are linked to prompts, or to runs which they do not come from.

        A server can only be asked for the links of a run, or of a prompt's version, so this is one
        call for each, and only where there are traces at all.

        Args:
            prompt_versions: Gives those of the source, each as ``NAME/NUMBER``.
        """
        chosen = self._plan.chosen
        if not self._selection.traces or not self._contents:
            return
        run_ids = sorted(self._plan.elsewhere.union(*chosen.values()))
        if self._stored is not None:
            try:
                if not self._host.may_have("trace_info"):
                    return
                for run_id, trace_id in self._stored.linked_to_runs(run_ids):
                    self._links.setdefault(trace_id, []).append(run_id)
            except ServerError as error:
                yield Failure(Kind.TRACE, "links to runs", error.message)
            return
        having = self._listing.having(sorted(chosen))
        self._without = set(chosen) - set(having)
        # One that cannot be told of is named when its traces are listed.
        with_traces = [experiment_id for experiment_id, why in having.items() if why is None]
        if not with_traces:
            return

        for run_id, found in self._listing.linked_to(with_traces, run_ids, self._pool.map):
            for linked in found:
                if isinstance(linked, Failure):
                    yield linked
                else:
                    self._links.setdefault(linked, []).append(run_id)
        versions = prompt_versions()
        for version, found in self._listing.using(with_traces, versions, self._pool.map):
            if any(isinstance(linked, Failure) for linked in found):
                continue  # MLflow before 3.5 has no such filter: the tag is its link
            self._asked.add(version)
            for linked in found:
                self._prompts.setdefault(str(linked), set()).add(version)

    def of_experiment(self, experiment_id: str) -> Iterator[Trace | Failure]:
        """Yield the traces of an experiment, oldest first.

        One that is not taken as a whole gives those of its runs that are taken, and those that are
        linked to them.
        """
        if not self._selection.traces or experiment_id in self._without:
            return
        is_whole = self._plan.takes_whole(experiment_id)
        run_ids = None if is_whole else self._plan.chosen[experiment_id]
        under_way: deque[Future[list[Trace]]] = deque()
        for group in self._groups(experiment_id, run_ids):
            if isinstance(group, Failure):
                yield group
                continue
            under_way.append(self._pool.submit(self._read, group))
            if len(under_way) > 2 * self._jobs:
                yield from under_way.popleft().result()
        while under_way:
            yield from under_way.popleft().result()

    def _groups(
        self, experiment_id: str, run_ids: Iterable[str] | None
    ) -> Iterator[list[Trace] | Failure]:
        """Yield so many traces at a time as one call reads and memory allows."""
        if self._stored is not None:
            pages = self._stored.pages(experiment_id, run_ids)
        else:
            clauses = [""] if run_ids is None else map(run_clause, sorted(run_ids))
            pages = self._listing.traces(experiment_id, clauses)
        group: list[Trace] = []
        spans = 0
        for page in pages:
            if isinstance(page, Failure):
                yield page
                continue
            for trace in page:
                expected = expected_spans(trace.info)
                if group and (len(group) == BATCH or spans + expected > _SPANS_AHEAD):
                    yield group
                    group, spans = [], 0
                group.append(trace)
                spans += expected
        if group:
            yield group

    def _read(self, traces: list[Trace]) -> list[Trace]:
        as_of_ms = time.time_ns() // 1_000_000
        unread = self._not_known(traces)
        pointing = self._reader.fill(unread) if self._contents and unread else set()
        self._tell_links(unread)
        for trace in traces:
            trace.as_of_ms = as_of_ms
            if trace.id in pointing and self._selection.takes_artifact(ATTACHMENTS):
                trace.attachments = [
                    item
                    for item in self._reader.attachments(trace)
                    if not isinstance(item, Artifact) or self._selection.takes_artifact(item.path)
                ]
        return traces

    def _not_known(self, traces: list[Trace]) -> list[Trace]:
        """Return the traces that are new or changed since an earlier state, as far as is known.

        What tells of spans is asked for before they are read: what is logged in between is new to
        the next time.
        """
        if self._known is None or self._stored is None:
            return traces
        try:
            stamps = self._stored.stamps(traces)
        except ServerError:
            return traces  # whoever reads them says why
        for trace in traces:
            trace.stamp = stamps.get(trace.id, "")
        if self._known.marks.is_empty:
            return traces
        self._tell_links(traces)
        return [trace for trace in traces if not self._known.has(trace)]

    def _tell_links(self, traces: list[Trace]) -> None:
        """Tell the prompts and runs that traces are linked to."""
        if self._contents:
            self._tell_prompts(traces)
            self._find_links_elsewhere(traces)
        for trace in traces:
            own = trace.info["trace_metadata"].get(SOURCE_RUN)
            if links := [run for run in self._links.get(trace.id, ()) if run != own]:
                trace.info[LINKED_RUNS] = links

    def _find_links_elsewhere(self, traces: list[Trace]) -> None:
        """Find the links of traces to runs that other parts hold, which a database can be asked."""
        part = self._selection.part
        if self._stored is not None and part is not None and part.runs is None:
            for run_id, trace_id in self._stored.linked_runs([trace.id for trace in traces]):
                if run_id not in (links := self._links.setdefault(trace_id, [])):
                    links.append(run_id)

    def _tell_prompts(self, traces: list[Trace]) -> None:
        """Tell the prompts that traces are linked to, where their tags do not say the same."""
        stored = self._stored_prompts(traces)
        for trace in traces:
            named = named_prompts(trace.info["tags"].get(PROMPTS_TAG))
            if stored is not None:
                linked = stored.get(trace.id, set())
            else:
                linked = self._prompts.get(trace.id, set()) | (named - self._asked)
            for name, versions in (
                (LINKED_PROMPTS, linked - named),
                (UNLINKED_PROMPTS, named - linked),
            ):
                if versions:
                    trace.info[name] = sorted(versions)

    def _stored_prompts(self, traces: list[Trace]) -> dict[str, set[str]] | None:
        """Return the links that a database holds, None where there is none that holds them."""
        if self._stored is None or not links_prompts():
            return None  # the tag is the link
        found: dict[str, set[str]] = {}
        for version, trace_id in self._stored.linked_prompts([trace.id for trace in traces]):
            found.setdefault(trace_id, set()).add(version)
        return found
