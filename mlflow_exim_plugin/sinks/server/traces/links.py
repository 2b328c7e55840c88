"""Links from traces to runs and to versions of prompts, made when all of them are there."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import ServerError
from mlflow_exim_plugin.host.traces.writing import MAX_LINKS
from mlflow_exim_plugin.schema.objects import (
    LINKED_RUNS,
    PROMPTS_TAG,
    Failure,
    Kind,
    linked_prompts,
    named_prompts,
)
from mlflow_exim_plugin.schema.provenance import CONTENT

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mlflow_exim_plugin.host.traces.listing import TraceListing
    from mlflow_exim_plugin.host.traces.writing import TraceCalls
    from mlflow_exim_plugin.schema.objects import Trace
    from mlflow_exim_plugin.sinks.notes import Notes
    from mlflow_exim_plugin.sinks.server.ids import IdMap

__all__ = ["TraceLinks"]


class TraceLinks:
    """Collects the links of traces while these are written; safe to use from several threads.

    What is linked is read back; a trace that lacks a link is not marked as whole any more, so that
    the next unpack makes it.

    Args:
        calls: Makes the links.
        listing: Reads them back.
        ids: Source ids to target ids.
        notes: Collects what is lost.
        dry_run: Look which links could be made, and make none.
    """

    def __init__(
        self,
        calls: TraceCalls,
        listing: TraceListing,
        ids: IdMap,
        notes: Notes,
        *,
        dry_run: bool = False,
    ) -> None:
        self._calls = calls
        self._listing = listing
        self._ids = ids
        self._notes = notes
        self._dry_run = dry_run
        self._lock = threading.Lock()
        self._experiments: dict[str, str] = {}
        self._sources: dict[str, str] = {}
        self._runs: dict[str, list[str]] = {}
        self._prompts: dict[str, list[str]] = {}
        self._tags: dict[str, str] = {}

    def collect(
        self, trace: Trace, info: dict[str, Any], trace_id: str, experiment_id: str
    ) -> None:
        """Remember the links of a trace.

        Args:
            trace: As the source has it.
            info: As the target is to have it.
            trace_id: Its id at the target.
            experiment_id: Its experiment there.
        """
        versions = linked_prompts(trace.info)
        with self._lock:
            self._experiments[trace_id] = experiment_id
            self._sources[trace_id] = trace.id
            for run_id in trace.info.get(LINKED_RUNS, ()):
                self._runs.setdefault(run_id, []).append(trace_id)
            if versions:
                self._prompts[trace_id] = versions
            if tag := info["tags"].get(PROMPTS_TAG):
                self._tags[trace_id] = tag

    def make(self) -> None:
        """Make all links, and look whether they are there."""
        for run_id, trace_ids in self._runs.items():
            self._link(run_id, trace_ids)
        for trace_id, text in self._tags.items():
            self._rename_prompts(trace_id, text)
        made: dict[str, list[str]] = {}
        for trace_id, versions in self._prompts.items():
            for version in self._link_prompts(trace_id, versions):
                made.setdefault(version, []).append(trace_id)
        for version, trace_ids in made.items():
            ((_, found),) = self._listing.using(self._experiments_of(trace_ids), [version])
            self._require(trace_ids, found, f"its link to version {version} of a prompt")

    def _link(self, run_id: str, trace_ids: list[str]) -> None:
        new = self._ids.get(Kind.RUN, run_id)
        if new is None:
            what = f"links to run {run_id} are not restored: the run is not at the target"
            for trace_id in trace_ids:
                self._note(trace_id, what)
            return
        if self._dry_run:
            return
        try:
            for start in range(0, len(trace_ids), MAX_LINKS):
                self._calls.link_to_run(new, trace_ids[start : start + MAX_LINKS])
        except ServerError as error:
            for trace_id in trace_ids:
                what = f"links to run {run_id} are not restored: {error.message}"
                self._note(trace_id, what)
            return
        ((_, found),) = self._listing.linked_to(self._experiments_of(trace_ids), [new])
        self._require(trace_ids, found, f"its link to run {run_id}")

    def _rename_prompts(self, trace_id: str, text: str) -> None:
        """Let the tag of a trace name versions by their numbers at the target."""
        named = sorted(named_prompts(text))
        renamed = [self._version_at_target(trace_id, version) for version in named]
        if self._dry_run or renamed == named:
            return
        pairs = (version.rpartition("/") for version in renamed)
        listed = [{"name": name, "version": number} for name, _, number in pairs]
        try:
            self._calls.set_tag(trace_id, PROMPTS_TAG, json.dumps(listed))
        except ServerError as error:
            self._note(trace_id, f"{PROMPTS_TAG} stays: {error.message}")

    def _link_prompts(self, trace_id: str, versions: list[str]) -> list[str]:
        """Link a trace to versions and return them, which may have other numbers at the target."""
        there = [self._version_at_target(trace_id, version) for version in versions]
        if self._dry_run:
            return []
        pairs = [(name, number) for name, _, number in (v.rpartition("/") for v in there)]
        try:
            self._calls.link_prompts(trace_id, pairs)
        except ServerError as error:
            what = f"links to prompts are not restored: {error.message}"
            self._note(trace_id, what)
            return []
        return there

    def _version_at_target(self, trace_id: str, version: str) -> str:
        """Return a version as the target numbers it; one that is not there keeps its number."""
        new = self._ids.get(Kind.PROMPT_VERSION, version)
        if new is None:
            what = f"version {version} of a prompt, which it used, is not at the target"
            self._note(trace_id, what)
        return new or version

    def _note(self, trace_id: str, what: str) -> None:
        self._notes.add(Kind.TRACE, self._sources[trace_id], what)

    def _experiments_of(self, trace_ids: list[str]) -> list[str]:
        return sorted({self._experiments[trace_id] for trace_id in trace_ids})

    def _require(self, trace_ids: list[str], found: Iterable[str | Failure], what: str) -> None:
        """Name the links that did not arrive."""
        there, unread = set[str](), ""
        for linked in found:
            if isinstance(linked, Failure):
                unread = linked.reason
            else:
                there.add(linked)
        for trace_id in trace_ids:
            if trace_id in there:
                continue
            how = f"cannot be read back: {unread}" if unread else "did not arrive"
            self._note(trace_id, f"{what} {how}")
            self._calls.set_tag(trace_id, CONTENT, "")
