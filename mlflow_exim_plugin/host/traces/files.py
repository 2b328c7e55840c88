"""The spans and attachments of traces that lie in files beside them."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import EximError, ServerLostError
from mlflow_exim_plugin.host.files.tree import ArtifactTree
from mlflow_exim_plugin.host.traces.documents import (
    ARTIFACT_LOCATION,
    SPANS_LOCATION,
    TRACKING_STORE,
)
from mlflow_exim_plugin.host.traces.spans import attachment_ids, from_dict, in_order
from mlflow_exim_plugin.schema.objects import Artifact, Failure, Kind, Loss, Trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mlflow_exim_plugin.host.files.tree import RootResolver

    Convert = Callable[[dict[str, Any], str], dict[str, Any]]
    Spans = Callable[[Trace], list[dict[str, Any]] | None]
    """A way to the spans of a trace; None says that they are not there."""

__all__ = [
    "ARCHIVED",
    "ATTACHMENTS",
    "ATTACHMENT_URI",
    "DATA_FILE",
    "TraceFiles",
    "expected_spans",
    "points",
    "spans_of",
    "take",
]

ATTACHMENTS = "attachments/"
ATTACHMENT_URI = b"mlflow-attachment:"
DATA_FILE = "traces.json"

_SIZE_STATS = "mlflow.trace.sizeStats"
_WITH_PAYLOAD = (_SIZE_STATS, "mlflow.trace.sizeBytes", "mlflow.trace_schema.version")
ARCHIVED = "ARCHIVE_REPO"
"""Where MLflow 3.17 puts the spans of old traces."""
_NO_FILE = {TRACKING_STORE, ARCHIVED}
"""Places of spans that are not ``traces.json``."""
_MALFORMED = (ValueError, KeyError, TypeError, AttributeError)


class TraceFiles:
    """Reads the spans and attachments that lie in files beside their traces.

    Args:
        deployment: Knows where artifact roots are to be found.
    """

    def __init__(self, deployment: RootResolver) -> None:
        self._deployment = deployment

    def fill(self, traces: list[Trace]) -> set[str]:
        """Read the spans of some traces into them, and name what cannot be read.

        Returns:
            Ids of those whose spans may point at attachments.
        """
        pointing = self._fill_together(traces)
        for trace in traces:
            expected = expected_spans(trace.info)
            if trace.spans is not None and len(trace.spans) < expected:
                what = f"the source has {len(trace.spans)} of its {expected} spans"
                trace.issues += (Loss(Kind.SPAN, trace.id, what),)
        return pointing

    def attachments(self, trace: Trace) -> list[Artifact | Failure]:
        """Return the files beside a trace whose spans point at some.

        A trace that came to its server under a new id still points by the old one.
        """
        wanted = attachment_ids(trace.spans or (), trace.id)
        root = trace.info["tags"].get(ARTIFACT_LOCATION)
        if not root:
            return []
        try:
            tree = ArtifactTree(self._deployment, root)
            there = {p: s for p, s in tree.files() if p.startswith(ATTACHMENTS)}
        except ServerLostError:
            raise
        except EximError as error:
            name = f"{trace.id}/{ATTACHMENTS}"
            return [Failure(Kind.ARTIFACT, name, error.message, max(1, len(wanted)))]
        found: list[Artifact | Failure] = [
            Artifact(path, size, partial(tree.open, path, size)) for path, size in there.items()
        ]
        found += [
            Failure(Kind.ARTIFACT, f"{trace.id}/{ATTACHMENTS}{name}", "its file is gone")
            for name in wanted
            if ATTACHMENTS + name not in there
        ]
        return found

    def _fill_together(self, traces: list[Trace]) -> set[str]:
        pointing: set[str] = set()
        for trace in traces:
            self._fill_one(trace, pointing, (self._spans_of_file,))
        return pointing

    def _fill_one(self, trace: Trace, pointing: set[str], readers: Iterable[Spans]) -> None:
        """Read the spans of one trace in ways that are tried in their order."""
        try:
            reasons: list[str] = []
            for read in readers:
                try:
                    spans = read(trace)
                except ServerLostError:
                    raise
                except EximError as error:
                    reasons.append(error.message)
                    continue
                if spans is not None:
                    take(trace, spans, from_dict)
                    if points(spans):
                        pointing.add(trace.id)
                    return
        except _MALFORMED as error:
            trace.issues += (_malformed(trace, error),)
            return
        if _expects_payload(trace.info):
            reason = "; ".join(dict.fromkeys(reasons)) or "its spans are gone"
            trace.issues += (Failure(Kind.SPAN, trace.id, reason),)
        else:
            trace.issues += (Loss(Kind.TRACE, trace.id, "the source has no spans of it"),)

    def _spans_of_file(self, trace: Trace) -> list[dict[str, Any]] | None:
        tags = trace.info["tags"]
        location = tags.get(ARTIFACT_LOCATION, "mlflow-artifacts:")
        # A server that passes files on has just been asked, and would be asked again and again.
        if tags.get(SPANS_LOCATION) in _NO_FILE or location.startswith("mlflow-artifacts:"):
            return None
        return self._spans_in(location, trace)

    def _spans_in(self, location: str, trace: Trace) -> list[dict[str, Any]] | None:
        with ArtifactTree(self._deployment, location).open(DATA_FILE) as stream:
            return spans_of(b"".join(iter(lambda: stream.read(1 << 20), b"")), trace)


def expected_spans(info: dict[str, Any]) -> int:
    """Return how many spans a trace says to have, 0 when it does not say."""
    try:
        return int(json.loads(info["trace_metadata"].get(_SIZE_STATS, "{}"))["num_spans"])
    except _MALFORMED:
        return 0


def take(
    trace: Trace,
    spans: Any,
    convert: Convert,
) -> None:
    """Give a trace its spans, or name them as malformed."""
    try:
        trace.spans = in_order(convert(span, trace.id) for span in spans)
    except _MALFORMED as error:
        trace.issues += (_malformed(trace, error),)


def points(spans: Any) -> bool:
    """Whether spans may point at attachments."""
    return ATTACHMENT_URI.decode() in str(spans)


def _malformed(trace: Trace, error: Exception) -> Failure:
    what = f"field {error} is missing" if isinstance(error, KeyError) else str(error)
    return Failure(Kind.SPAN, trace.id, f"its spans are malformed: {what}")


def spans_of(payload: bytes, trace: Trace) -> list[dict[str, Any]] | None:
    """Return the spans of a ``traces.json``; for other places "none" says "not there"."""
    spans: list[dict[str, Any]] = json.loads(payload)["spans"]
    if not spans and trace.info["tags"].get(SPANS_LOCATION) in _NO_FILE:
        return None
    return spans


def _expects_payload(info: dict[str, Any]) -> bool:
    """Whether there must have been spans: a finished trace that says where or how many."""
    if info["state"] not in {"OK", "ERROR"}:
        return False
    return SPANS_LOCATION in info["tags"] or any(
        key in info["trace_metadata"] for key in _WITH_PAYLOAD
    )
