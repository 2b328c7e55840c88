"""The stream: typed objects in dependency order, as sources yield and sinks take them.

An object carries its ``document``, the JSON object MLflow's REST API returns for it, and its
bulky parts as one-shot iterators: metric rows only as Arrow tables, artifacts only as streams.
A part that could not be read stands in the stream as a ``Failure``, so nothing goes missing unsaid.

Order of kinds: workspace; experiment, its runs, logged models, scorers, label schemas, issues,
traces, review queues; prompts, registered models and their versions, evaluation datasets, gateway,
MCP servers, skills, webhooks. Experiments come by number, runs by run id, versions by number.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from mlflow_exim_plugin.kinds import ENTITY_KINDS, VERSION_KINDS, Kind
from mlflow_exim_plugin.redaction import redact, writable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from mlflow_exim_plugin.schema.metric_rows import RunRows

__all__ = [
    "ENTITY_KINDS",
    "LINKED_PROMPTS",
    "LINKED_RUNS",
    "LINKS",
    "PROMPTS_TAG",
    "SOURCE_RUN",
    "UNLINKED_PROMPTS",
    "VERSION_KINDS",
    "Artifact",
    "Entity",
    "Experiment",
    "Failure",
    "Kind",
    "LoggedModel",
    "Loss",
    "ModelVersion",
    "NotThere",
    "RegisteredModel",
    "Run",
    "StoredMember",
    "StoredTracePart",
    "StreamItem",
    "StreamObject",
    "Trace",
    "Unpacked",
    "by_number",
    "closed_after",
    "created_ms",
    "encodable",
    "key_values",
    "linked_models",
    "linked_prompts",
    "model_behind",
    "model_only_told",
    "named_prompts",
]


_Item = TypeVar("_Item")
SOURCE_RUN = "mlflow.sourceRun"
"""Metadata of a trace: the run that it comes from."""
LINKED_RUNS = "linked_runs"
"""Field of a trace's info: runs that it was linked to beside the one it comes from."""
LINKED_PROMPTS = "linked_prompts"
"""Field of a trace's info: versions of prompts that it is linked to and its tag does not name."""
UNLINKED_PROMPTS = "unlinked_prompts"
"""Field of a trace's info: versions of prompts that its tag names and it is not linked to."""
PROMPTS_TAG = "mlflow.linkedPrompts"
"""Tag of a trace that names versions of prompts; MLflow's client sets it with the links."""
LINKS = {LINKED_RUNS, LINKED_PROMPTS, UNLINKED_PROMPTS}
IS_NUMBER = re.compile(r"[0-9]{1,19}")
"""Ids of experiments; Unicode has more digits than MLflow knows."""
_MODEL_ID = re.compile(r"m-[0-9a-f]{32}")


@dataclass(frozen=True)
class Failure:
    """One object, or part of one, that could not be read or written.

    Attributes:
        kind: Kind of the object.
        id: Its id or name at the source; a part is ``<owner id>/<key or path>``.
        reason: One line; what is secret in it is taken out.
        count: How many objects of the kind this stands for.
    """

    kind: Kind
    id: str
    reason: str
    count: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", writable(self.id))
        object.__setattr__(self, "reason", writable(redact(self.reason)))


class NotThere(Failure):
    """A name that was asked for, and that nothing at the source has."""


@dataclass(frozen=True)
class Loss:
    """Something that the target keeps differently, or not at all.

    Attributes:
        kind: Of the object.
        id: Its id, ``*`` for each of its kind.
        what: How it is kept.
        is_usual: Whether every target of this sort keeps it so: then nothing of these objects is
            lost that others would have kept.
    """

    kind: Kind
    id: str
    what: str
    is_usual: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", writable(self.id))
        object.__setattr__(self, "what", writable(redact(self.what)))


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


@dataclass(frozen=True)
class StoredMember:
    """A member of an archive, which another archive may take as it is.

    Attributes:
        reader: The container that it lies in.
        path: Its path there.
        parts: Of an envelope, the members of the object's files.
        content_digest: Of an envelope, what it states.
    """

    reader: Any
    path: str
    parts: tuple[str, ...] = ()
    content_digest: str = ""


@dataclass(frozen=True)
class StoredTracePart:
    """A part of an experiment's traces, which another archive may take as it is.

    Attributes:
        envelope: Its envelope, with the members of its tables and attachments.
        counts: How many traces, spans, assessments and attachments it has.
        attachment_bytes: Size of these.
        issues: What it says to be missing.
        content_digests: What it states of each trace, 32 bytes.
    """

    envelope: StoredMember
    counts: dict[Kind, int]
    attachment_bytes: int
    issues: tuple[Failure | Loss, ...]
    content_digests: bytes


@dataclass
class Artifact:
    """One file of a run, logged model, model version or trace.

    Attributes:
        path: Path below the owner's artifact root, as MLflow lists it.
        size_bytes: Size as listed; the bytes that come are the truth.
        open: Opens the bytes from the start; raises an ``EximError``.
        sha256: Hex digest, known when the source is an archive.
        stored: The member that it is, where it goes from archive to archive.
        stamp: What its store says of it that is another when it was written anew: its time.
    """

    path: str
    size_bytes: int
    open: Callable[[], BinaryIO]
    sha256: str | None = None
    stored: StoredMember | None = None
    stamp: str = ""


@dataclass(kw_only=True)
class _Read:
    """What is known of every object that was read.

    Attributes:
        digest: Content digest, known when the source is an archive.
        as_of_ms: When the source was read, ms since the Unix epoch.
        issues: What the source knows to be missing of it, such as a parent that is gone.
        source_tags: What a copy is told of its source; see ``schema.lineage``.
        stored: Its envelope, where that may stand in another archive as it is; who changes the
            document takes it away.
    """

    digest: str | None = None
    as_of_ms: int = 0
    issues: tuple[Failure | Loss, ...] = ()
    source_tags: dict[str, str] = field(default_factory=dict)
    stored: StoredMember | None = None


class _WithInfo:
    """What has a part ``info`` in its document."""

    document: dict[str, Any]

    @property
    def info(self) -> dict[str, Any]:
        """REST's ``RunInfo``, ``LoggedModelInfo`` or ``TraceInfoV3``."""
        info: dict[str, Any] = self.document["info"]
        return info


@dataclass
class Experiment(_Read):
    """An experiment; ``document`` is REST's ``Experiment``.

    Attributes:
        document: REST's ``Experiment``.
        is_unused_default: Whether it is what MLflow makes by itself, and nothing of it comes.
        is_renamed: Whether its name was asked for, and is not that of the source.
        metrics_files: The files of its runs' metric rows, where another archive takes them as they
            are; then no run has ``histories``.
        trace_parts: Its traces, where another archive takes them as they are.
    """

    document: dict[str, Any]
    is_unused_default: bool = False
    is_renamed: bool = False
    metrics_files: tuple[StoredMember, ...] = ()
    trace_parts: tuple[StoredTracePart, ...] = ()
    kind: Kind = field(default=Kind.EXPERIMENT, init=False)

    @property
    def id(self) -> str:
        """Experiment id, a decimal number as text."""
        return str(self.document["experiment_id"])

    @property
    def name(self) -> str:
        """Experiment name."""
        return str(self.document["name"])

    @property
    def is_deleted(self) -> bool:
        """Whether it is deleted at the source."""
        return bool(self.document.get("lifecycle_stage") == "deleted")


@dataclass
class Run(_Read, _WithInfo):
    """A run with its histories and artifacts; ``document`` is REST's ``Run``.

    Attributes:
        document: ``info``, ``data``, ``inputs``, ``outputs``.
        histories: Its metric rows, sorted, keys never going backwards.
        artifacts: The run's files in path order.
        doubles: All doubles in its document, where that was made of columns of known types, and so
            has the form of a run and holds nothing else that JSON does not: to look for them takes
            longer than all else that a digest costs.
        metrics: What its envelope says of its rows, where the experiment has ``metrics_files``.
        stamp: What its source says of its rows that is another when there are more.
        mark: See ``stages.marks``, where it is known already; then what is as it was has no parts.
    """

    document: dict[str, Any]
    histories: Iterable[RunRows | Failure] = ()
    artifacts: Iterable[Artifact | Failure] = ()
    doubles: list[float] | None = None
    metrics: dict[str, Any] | None = None
    stamp: str = ""
    mark: bytes = b""
    kind: Kind = field(default=Kind.RUN, init=False)

    @property
    def id(self) -> str:
        """Run id."""
        return str(self.document["info"]["run_id"])

    @property
    def experiment_id(self) -> str:
        """Id of the run's experiment."""
        return str(self.document["info"]["experiment_id"])

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
class LoggedModel(_Read, _WithInfo):
    """A logged model with its files; ``document`` is REST's ``LoggedModel``.

    Attributes:
        document: ``info`` and ``data`` (params, and metrics with their run and dataset).
        artifacts: The model's files in path order.
    """

    document: dict[str, Any]
    artifacts: Iterable[Artifact | Failure] = ()
    kind: Kind = field(default=Kind.LOGGED_MODEL, init=False)

    @property
    def id(self) -> str:
        """Model id, ``m-`` and 32 hex digits."""
        return str(self.info["model_id"])

    @property
    def experiment_id(self) -> str:
        """Id of the experiment that owns it."""
        return str(self.info["experiment_id"])

    @property
    def tags(self) -> dict[str, str]:
        """Tags by key."""
        return key_values(self.info.get("tags"))


@dataclass
class Trace(_Read, _WithInfo):
    """A trace with its spans and assessments (spec, "Traces").

    Attributes:
        document: ``info``, REST's ``TraceInfoV3`` without ``assessments``, times in ms; and
            ``assessments``, REST's ``Assessment`` each; see ``schema.traces``.
        spans: The spans as ``schema.traces`` has them; None where the source has no payload for
            the trace.
        attachments: Files that spans point at.
        stamp: What its source says of its spans that is another when one is new or changed.
        mark: See ``stages.marks``, where it is known already; then what is as it was has no spans.
        came_from: Its origins, where it has another id than at its source.
    """

    document: dict[str, Any]
    experiment_id: str
    spans: list[dict[str, Any]] | None = None
    attachments: Iterable[Artifact | Failure] = ()
    stamp: str = ""
    mark: bytes = b""
    came_from: str = ""
    kind: Kind = field(default=Kind.TRACE, init=False)

    @property
    def id(self) -> str:
        """Trace id, up to 50 characters."""
        return str(self.info["trace_id"])

    @property
    def assessments(self) -> list[dict[str, Any]]:
        """REST's ``Assessment`` each, by id."""
        listed: list[dict[str, Any]] = self.document.get("assessments", [])
        return listed


@dataclass
class RegisteredModel(_Read):
    """A registered model or prompt without its versions; ``document`` is ``RegisteredModel``.

    To MLflow's registry a prompt is a registered model with the tag ``mlflow.prompt.is_prompt``.

    Attributes:
        document: REST's ``RegisteredModel``.
    """

    document: dict[str, Any]
    kind: Kind = Kind.REGISTERED_MODEL

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
class ModelVersion(_Read):
    """A version of a registered model or prompt; ``document`` is REST's ``ModelVersion``.

    Attributes:
        document: REST's ``ModelVersion``.
        artifacts: Its files, only where no packed run or logged model holds them.
        files_at: Where its files stay while it moves, if that is not its source.
    """

    document: dict[str, Any]
    artifacts: Iterable[Artifact | Failure] = ()
    kind: Kind = Kind.MODEL_VERSION
    files_at: str | None = None

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


@dataclass
class Entity(_Read):
    """An object that is one document and no more; ``schema.kinds`` lists the kinds.

    Attributes:
        kind: What it is.
        document: What the archive keeps of it, with its parts (versions, records, items) inside.
        experiment_id: The experiment it belongs to, empty where it belongs to none.
        artifacts: Files of its parts, below a folder for each part.
    """

    kind: Kind
    document: dict[str, Any]
    experiment_id: str = ""
    artifacts: Iterable[Artifact | Failure] = ()

    @property
    def id(self) -> str:
        """What identifies it among its kind, in its experiment if it has one."""
        return str(self.document[ENTITY_KINDS[self.kind].id_field])


StreamObject = Experiment | Run | LoggedModel | Trace | RegisteredModel | ModelVersion | Entity
"""What a sink writes."""

StreamItem = StreamObject | Failure | Loss | Unpacked
"""What a source yields."""


@contextlib.contextmanager
def closed_after(stream: Iterator[_Item]) -> Iterator[Iterator[_Item]]:
    """Let go of what a stream holds, on this very thread, also where it is not read to its end.

    Args:
        stream: One that was made for this block alone.
    """
    try:
        yield stream
    finally:
        if isinstance(stream, Generator):
            stream.close()


def linked_models(run: dict[str, Any]) -> tuple[list[str], list[tuple[str, int]]]:
    """Return the models that REST's ``Run`` takes as input, and those it made with their steps."""
    inputs = run.get("inputs", {}).get("model_inputs", ())
    outputs = run.get("outputs", {}).get("model_outputs", ())
    return (
        [str(entry["model_id"]) for entry in inputs],
        [(str(entry["model_id"]), int(entry.get("step", 0))) for entry in outputs],
    )


def model_behind(version: dict[str, Any]) -> str | None:
    """Return the id of the logged model that a ``ModelVersion`` says it was made of."""
    if model_id := version.get("model_id"):
        return str(model_id)
    found = _MODEL_ID.search(str(version.get("source") or ""))
    return found[0] if found else None


def encodable(text: str) -> str:
    """Return a text that UTF-8 can hold: half a surrogate pair becomes its escape."""
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def model_only_told(version: dict[str, Any]) -> str | None:
    """Return the id of the logged model that a ``ModelVersion`` tells and its source does not.

    Only stores of files keep it.
    """
    told = model_behind(version)
    return told if told != model_behind({"source": version.get("source")}) else None


def by_number(identity: str) -> tuple[int, str]:
    """Sort key for ids that are decimal numbers as text; what is none comes first."""
    return (int(identity) if IS_NUMBER.fullmatch(identity) else -1, identity)


def created_ms(item: Experiment | LoggedModel | RegisteredModel) -> int:
    """Return when an object was made at its source, 0 where that is not told."""
    if isinstance(item, LoggedModel):
        told = item.info.get("creation_timestamp_ms")
    elif isinstance(item, RegisteredModel):
        told = item.document.get("creation_timestamp")
    else:
        told = item.document.get("creation_time")
    return int(told) if told is not None and IS_NUMBER.fullmatch(str(told)) else 0


def key_values(entries: Iterable[dict[str, Any]] | None) -> dict[str, str]:
    """Turn REST's list of ``{key, value}`` into a dict; an absent value is the empty string."""
    return {str(e["key"]): str(e.get("value", "")) for e in entries or ()}


def named_prompts(tag: str | None) -> set[str]:
    """Return the versions of prompts that a trace's tag names, each as ``NAME/NUMBER``."""
    try:
        return {f"{named['name']}/{named['version']}" for named in json.loads(tag or "[]")}
    except (KeyError, TypeError, RecursionError, ValueError):
        return set()  # it is no list of them


def linked_prompts(info: dict[str, Any]) -> list[str]:
    """Return the versions of prompts that a trace is linked to, sorted."""
    named = named_prompts(info["tags"].get(PROMPTS_TAG))
    linked = named.union(map(str, info.get(LINKED_PROMPTS) or ()))
    return sorted(linked.difference(info.get(UNLINKED_PROMPTS) or ()))
