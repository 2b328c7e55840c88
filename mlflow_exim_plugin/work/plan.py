"""A plan: what a source has, divided into parts that are packed one by one (docs/scale-out.md)."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import UnsupportedFormatError, UsageError
from mlflow_exim_plugin.options import Selection
from mlflow_exim_plugin.schema.objects import Failure, Kind
from mlflow_exim_plugin.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Entry", "Size", "TaskPlan"]

_FORMAT, _VERSION = "mlflow-exim-plan", "1.0"


@dataclass(frozen=True)
class Size:
    """How much one entry has, as it was estimated.

    Attributes:
        runs: Runs, which were counted.
        members: Members of its archive.
        rows: Metric rows.
        artifact_bytes: Bytes of artifacts.
        seconds: Time on one core.
    """

    runs: int = 0
    members: int = 0
    rows: int = 0
    artifact_bytes: int = 0
    seconds: float = 0

    def __add__(self, other: Size) -> Size:
        return Size(
            self.runs + other.runs,
            self.members + other.members,
            self.rows + other.rows,
            self.artifact_bytes + other.artifact_bytes,
            self.seconds + other.seconds,
        )


@dataclass(frozen=True)
class Entry:
    """One part.

    Attributes:
        selection: What is taken.
        size: How much that is.
    """

    selection: Selection
    size: Size

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        size = {**asdict(self.size), "seconds": round(self.size.seconds, 1)}
        return {"selection": self.selection.to_json(), **size}


@dataclass(frozen=True)
class TaskPlan:
    """Parts that are together what was asked for.

    Attributes:
        source: What is read, without secrets.
        as_of_ms: The time that all archives say they were packed at, ms since the Unix epoch.
        selection: What was asked for.
        entries: The parts.
        failures: What could not be read while it was divided, and is in no part.
    """

    source: str
    as_of_ms: int
    selection: Selection
    entries: tuple[Entry, ...]
    failures: tuple[Failure, ...] = field(default=())

    @property
    def size(self) -> Size:
        """How much all parts have."""
        return sum((entry.size for entry in self.entries), Size())

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "format": _FORMAT,
            "format_version": _VERSION,
            "package_version": __version__,
            "source": self.source,
            "as_of_ms": self.as_of_ms,
            "selection": self.selection.to_json(),
            "entries": [entry.to_json() for entry in self.entries],
            "failures": [asdict(f) | {"kind": str(f.kind)} for f in self.failures],
        }

    @classmethod
    def of_json(cls, document: Mapping[str, Any]) -> TaskPlan:
        """Return what :meth:`to_json` gave.

        Raises:
            UsageError: It is no plan.
            UnsupportedFormatError: It is of a later version.
        """
        if document.get("format") != _FORMAT:
            raise UsageError("that is no plan", "make one with `mlflow exim plan -o FILE`")
        version = str(document.get("format_version", ""))
        if version.partition(".")[0] != _VERSION.partition(".")[0]:
            raise UnsupportedFormatError(
                f"the plan is of version {version}, and {_VERSION} is known"
            )
        try:
            return cls(
                source=str(document["source"]),
                as_of_ms=int(document["as_of_ms"]),
                selection=Selection.of_json(document["selection"]),
                entries=tuple(_entry(entry) for entry in document["entries"]),
                failures=tuple(_failure(failure) for failure in document.get("failures", ())),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UsageError(
                f"the plan is not as `mlflow exim plan` writes it: {type(error).__name__} {error}"
            ) from error

    @classmethod
    def of_text(cls, text: str | bytes) -> TaskPlan:
        """Return the plan that a text is.

        Raises:
            UsageError: It is no plan.
            UnsupportedFormatError: It is of a later version.
        """
        try:
            document = json.loads(text)
        except ValueError as error:
            raise UsageError(f"the plan is no JSON: {error}") from error
        return cls.of_json(document if isinstance(document, dict) else {})


def _entry(document: Mapping[str, Any]) -> Entry:
    return Entry(
        Selection.of_json(document["selection"]),
        Size(
            int(document.get("runs", 0)),
            int(document.get("members", 0)),
            int(document.get("rows", 0)),
            int(document.get("artifact_bytes", 0)),
            float(document.get("seconds", 0)),
        ),
    )


def _failure(document: Mapping[str, Any]) -> Failure:
    return Failure(Kind(document["kind"]), str(document["id"]), str(document["reason"]))
