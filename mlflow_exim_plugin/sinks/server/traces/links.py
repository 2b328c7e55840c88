"""Links from traces to runs and to versions of prompts, made when all of them are there."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import ServerError, ServerLostError
from mlflow_exim_plugin.host.traces.writing import MAX_LINKS
from mlflow_exim_plugin.schema.objects import LINKED_RUNS, Kind

if TYPE_CHECKING:
    from mlflow_exim_plugin.host.traces.writing import TraceCalls
    from mlflow_exim_plugin.schema.objects import Trace
    from mlflow_exim_plugin.sinks.notes import Notes
    from mlflow_exim_plugin.sinks.server.ids import IdMap

__all__ = ["TraceLinks"]

_PROMPTS = "mlflow.linkedPrompts"


class TraceLinks:
    """Collects the links of traces while these are written; safe to use from several threads.

    Args:
        calls: Makes the links.
        ids: Source ids to target ids.
        notes: Collects what is lost.
    """

    def __init__(self, calls: TraceCalls, ids: IdMap, notes: Notes) -> None:
        self._calls = calls
        self._ids = ids
        self._notes = notes
        self._lock = threading.Lock()
        self._runs: dict[str, list[str]] = {}
        self._prompts: list[tuple[str, str]] = []

    def collect(self, trace: Trace, info: dict[str, Any], trace_id: str) -> None:
        """Remember the links of a trace.

        Args:
            trace: As the source has it.
            info: As the target is to have it.
            trace_id: Its id at the target.
        """
        with self._lock:
            for run_id in trace.info.get(LINKED_RUNS, ()):
                self._runs.setdefault(run_id, []).append(trace_id)
            if prompts := info["tags"].get(_PROMPTS):
                self._prompts.append((trace_id, prompts))

    def make(self) -> None:
        """Make all links."""
        for run_id, trace_ids in self._runs.items():
            self._link(run_id, trace_ids)
        for trace_id, text in self._prompts:
            self._link_prompts(trace_id, text)

    def _link(self, run_id: str, trace_ids: list[str]) -> None:
        new = self._ids.get(Kind.RUN, run_id)
        if new is None:
            what = f"links to run {run_id} are not restored: the run is not at the target"
            for trace_id in trace_ids:
                self._notes.add(Kind.TRACE, trace_id, what)
            return
        try:
            for start in range(0, len(trace_ids), MAX_LINKS):
                self._calls.link_to_run(new, trace_ids[start : start + MAX_LINKS])
        except ServerLostError:
            raise
        except ServerError as error:
            for trace_id in trace_ids:
                what = f"links to run {run_id} are not restored: {error.message}"
                self._notes.add(Kind.TRACE, trace_id, what)

    def _link_prompts(self, trace_id: str, text: str) -> None:
        """Link a trace to prompt versions, which may have other numbers at the target."""
        try:
            listed = [(str(p["name"]), str(p["version"])) for p in json.loads(text)]
        except (ValueError, KeyError, TypeError):
            self._notes.add(
                Kind.TRACE, trace_id, f"{_PROMPTS} is no list of prompts: no links are made"
            )
            return
        versions = []
        for name, number in listed:
            new = self._ids.get(Kind.PROMPT_VERSION, f"{name}/{number}")
            if new is None:
                what = f"{_PROMPTS} names a prompt version that is not at the target"
                self._notes.add(Kind.TRACE, trace_id, what)
                new = f"{name}/{number}"
            versions.append((new.rpartition("/")[0], new.rpartition("/")[2]))
        try:
            if versions != listed:
                renamed = [{"name": name, "version": number} for name, number in versions]
                self._calls.set_tag(trace_id, _PROMPTS, json.dumps(renamed))
            self._calls.link_prompts(trace_id, versions)
        except ServerLostError:
            raise
        except ServerError as error:
            self._notes.add(
                Kind.TRACE, trace_id, f"links to prompts are not restored: {error.message}"
            )
