"""The stream: typed objects in dependency order, as sources yield and sinks take them.

An object carries its ``document``, the JSON object MLflow's REST API returns for it, and its
bulky parts as one-shot iterators: metric rows only as Arrow tables, artifacts only as streams.
A part that could not be read stands in the stream as a ``Failure``, so nothing goes missing unsaid.

Order of kinds: workspace, experiment, run, logged model, trace, prompt, evaluation dataset,
registered model, model version. Experiments come by number, runs by run id, versions by number.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import pyarrow as pa

__all__ = [
    "Artifact",
    "Experiment",
    "Failure",
    "Kind",
    "Loss",
    "ModelVersion",
    "RegisteredModel",
    "Run",
    "StreamItem",
    "StreamObject",
    "Unpacked",
    "by_number",
    "key_values",
]


class Kind(str, Enum):
    """What the stream can hold; the values stand in reports and archives."""

    WORKSPACE = "workspace"
    EXPERIMENT = "experiment"
    RUN = "run"
    PARAM = "param"
    TAG = "tag"
    METRIC_HISTORY = "metric_history"
    ARTIFACT = "artifact"
    LOGGED_MODEL = "logged_model"
    TRACE = "trace"
    PROMPT = "prompt"
    EVALUATION_DATASET = "evaluation_dataset"
    REGISTERED_MODEL = "registered_model"
    MODEL_VERSION = "model_version"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Failure:
    """One object, or part of one, that could not be read or written.

    Attributes:
        kind: Kind of the object.
        id: Its id or name at the source; a part is ``<owner id>/<key or path>``.
        reason: One line, without secrets.
        count: How many objects of the kind this stands for.
    """

    kind: Kind
    id: str
    reason: str
    count: int = 1


@dataclass(frozen=True)
class Loss:
    """Something that the target keeps differently, or not at all."""

    kind: Kind
    id: str
    what: str


@dataclass(frozen=True)
class Unpacked:
    """Objects seen at the source that this version does not carry.

    Attributes:
        kind: What they are, in MLflow's words.
        seen: How many were seen.
        at_least: True when counting stopped before the end.
        reason: Why they are not carried.
    """

    kind: str
    seen: int
    at_least: bool
    reason: str


@dataclass
class Artifact:
    """One file of a run or model version.

    Attributes:
        path: Path below the owner's artifact root, as MLflow lists it.
        size_bytes: Size as listed; the bytes that come are the truth.
        open: Opens the bytes from the start; raises an ``EximError``.
        sha256: Hex digest, known when the source is an archive.
    """

    path: str
    size_bytes: int
    open: Callable[[], BinaryIO]
    sha256: str | None = None


@dataclass
class Experiment:
    """An experiment; ``document`` is REST's ``Experiment``."""

    document: dict[str, Any]
    kind: Kind = field(default=Kind.EXPERIMENT, init=False)

    @property
    def id(self) -> str:
        """Experiment id, a decimal number as text."""
        return str(self.document["experiment_id"])

    @property
    def name(self) -> str:
        """Experiment name."""
        return str(self.document["name"])


@dataclass
class Run:
    """A run with its histories and artifacts; ``document`` is REST's ``Run``.

    Attributes:
        document: ``info``, ``data``, ``inputs``, ``outputs``.
        histories: Tables of schema ``tables.HISTORY``, sorted, keys never going backwards.
        artifacts: The run's files in path order.
        digest: Content digest, known when the source is an archive.
        as_of_ms: When the source was read, ms since the Unix epoch.
        losses: What the source already knows to be missing, such as a parent that is gone.
    """

    document: dict[str, Any]
    histories: Iterable[pa.Table | Failure] = ()
    artifacts: Iterable[Artifact | Failure] = ()
    digest: str | None = None
    as_of_ms: int = 0
    losses: tuple[Loss, ...] = ()
    kind: Kind = field(default=Kind.RUN, init=False)

    @property
    def info(self) -> dict[str, Any]:
        """REST's ``RunInfo``."""
        info: dict[str, Any] = self.document["info"]
        return info

    @property
    def id(self) -> str:
        """Run id."""
        return str(self.info["run_id"])

    @property
    def experiment_id(self) -> str:
        """Id of the run's experiment."""
        return str(self.info["experiment_id"])

    @property
    def tags(self) -> dict[str, str]:
        """Tags by key."""
        return key_values(self.document.get("data", {}).get("tags"))

    @property
    def params(self) -> dict[str, str]:
        """Parameters by key."""
        return key_values(self.document.get("data", {}).get("params"))

    @property
    def metric_keys(self) -> list[str]:
        """Keys of the latest metrics, sorted."""
        return sorted(str(m["key"]) for m in self.document.get("data", {}).get("metrics") or ())


@dataclass
class RegisteredModel:
    """A registered model without its versions; ``document`` is REST's ``RegisteredModel``."""

    document: dict[str, Any]
    as_of_ms: int = 0
    kind: Kind = field(default=Kind.REGISTERED_MODEL, init=False)

    @property
    def id(self) -> str:
        """The name, which is its id."""
        return self.name

    @property
    def name(self) -> str:
        """Name of the registered model."""
        return str(self.document["name"])

    @property
    def aliases(self) -> dict[str, int]:
        """Version number by alias."""
        listed = self.document.get("aliases") or ()
        return {str(entry["alias"]): int(entry["version"]) for entry in listed}


@dataclass
class ModelVersion:
    """A model version; ``document`` is REST's ``ModelVersion``.

    Attributes:
        document: REST's ``ModelVersion``.
        artifacts: Its files, only where no packed run holds them.
    """

    document: dict[str, Any]
    artifacts: Iterable[Artifact | Failure] = ()
    as_of_ms: int = 0
    kind: Kind = field(default=Kind.MODEL_VERSION, init=False)

    @property
    def id(self) -> str:
        """Name and number, ``name/7``."""
        return f"{self.name}/{self.version}"

    @property
    def name(self) -> str:
        """Name of the registered model."""
        return str(self.document["name"])

    @property
    def version(self) -> int:
        """The version's number."""
        return int(self.document["version"])


StreamObject = Experiment | Run | RegisteredModel | ModelVersion
"""What a sink writes."""

StreamItem = StreamObject | Failure | Loss | Unpacked
"""What a source yields."""


def by_number(identity: str) -> tuple[int, str]:
    """Sort key for ids that are decimal numbers as text; what is none comes first."""
    return (int(identity) if identity.isdecimal() else -1, identity)


def key_values(entries: Iterable[dict[str, Any]] | None) -> dict[str, str]:
    """Turn REST's list of ``{key, value}`` into a dict; an absent value is the empty string."""
    return {str(e["key"]): str(e.get("value", "")) for e in entries or ()}
