"""The JSON documents of an archive: envelopes of three parts, ``system``, ``info`` and ``mlflow``.

Field names of ``system`` and of the run counters are those of mlflow-export-import, whose files
people know. Unknown fields are kept and ignored everywhere (spec, "Versioning").
"""

from __future__ import annotations

import getpass
import os
import platform
import time
from datetime import datetime, timezone
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    FailFast,
    Field,
    Strict,
    ValidationError,
    WithJsonSchema,
)

from mlflow_exim_plugin.errors import InvalidArchiveError, UsageError
from mlflow_exim_plugin.schema.documents import CHECKS, SCHEMAS, names_too_many
from mlflow_exim_plugin.schema.objects import ENTITY_KINDS, Kind
from mlflow_exim_plugin.schema.rules import Finding, Limits
from mlflow_exim_plugin.version import __version__

__all__ = [
    "FORMAT",
    "FORMAT_VERSION",
    "ArchiveEnvelope",
    "ArchiveHeader",
    "ArtifactEntry",
    "AttachmentEntry",
    "Document",
    "EntityEnvelope",
    "ExperimentEnvelope",
    "Listing",
    "LogEvent",
    "LoggedModelEnvelope",
    "MetricsEntry",
    "MetricsRange",
    "ModelEnvelope",
    "RunEnvelope",
    "System",
    "TableEntry",
    "TracePartEnvelope",
    "VersionEnvelope",
    "check_document",
    "check_entity",
]

FORMAT = "mlflow-exim-archive"
FORMAT_VERSION = "1.3"

_MOST_ERRORS = 1000
_EPOCH = "SOURCE_DATE_EPOCH"
_YEAR_10000_MS = 253_402_300_800_000
_Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
_Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Count = Annotated[int, Field(ge=0)]
_FIRST, _LAX = FailFast(), Strict(strict=False)
"""Of a list the first wrong entry says enough; it may be a list where a tuple stands."""


class Document(BaseModel):
    """Base of all documents: immutable, strict, and lossless for fields it does not know."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="allow", populate_by_name=True, allow_inf_nan=False
    )

    def to_json(self) -> dict[str, Any]:
        """Return the document as JSON values: what it was made of, unknown fields included."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


class Platform(Document):
    """Machine that packed."""

    python_version: str
    system: str
    processor: str = ""


class System(Document):
    """Who wrote the document, when, with what and from where."""

    package_version: str
    """Version of this package."""
    script: str
    """Command or function that packed."""
    format_version: str = FORMAT_VERSION
    """Version of the archive format, MAJOR.MINOR."""
    export_time: int
    """When packing began, seconds since the Unix epoch."""
    export_time_ms: int = 0
    """The same in milliseconds; orders archives of one source."""
    export_time_text: str = Field(alias="_export_time")
    """The same in UTC for people."""
    mlflow_version: str
    """Version of the MLflow client that read the source."""
    mlflow_tracking_uri: str
    """The source, without secrets."""
    user: str
    """Operating system user that packed."""
    platform: Platform

    @classmethod
    def now(
        cls, script: str, mlflow_version: str, tracking_uri: str, as_of_ms: int | None = None
    ) -> System:
        """Describe this process as the writer.

        Args:
            script: Command or function that packs.
            mlflow_version: Version of the MLflow client that reads the source.
            tracking_uri: The source, already without secrets.
            as_of_ms: Now, ms since the Unix epoch; ``SOURCE_DATE_EPOCH`` or the clock without it.

        Raises:
            UsageError: ``SOURCE_DATE_EPOCH`` or ``as_of_ms`` is no time.
        """
        now_ms = _moment_ms(as_of_ms)
        moment = datetime.fromtimestamp(now_ms // 1000, timezone.utc)
        try:
            user = getpass.getuser()
        except (KeyError, OSError):  # a container's uid may have no name
            user = "unknown"
        return cls(
            package_version=__version__,
            script=script,
            format_version=FORMAT_VERSION,
            export_time=now_ms // 1000,
            export_time_ms=now_ms,
            export_time_text=moment.strftime("%Y-%m-%d %H:%M:%S"),
            mlflow_version=mlflow_version,
            mlflow_tracking_uri=tracking_uri,
            user=user,
            platform=Platform(
                python_version=platform.python_version(),
                system=platform.system(),
                processor=platform.machine(),
            ),
        )


def _moment_ms(as_of_ms: int | None) -> int:
    """Return the time that is told as now (https://reproducible-builds.org/specs)."""
    if as_of_ms is None and (text := os.environ.get(_EPOCH, "")):
        if not text.isdecimal():
            raise UsageError(f"{_EPOCH} is {text!r}", "it is whole seconds since 1970, in UTC")
        as_of_ms = int(text) * 1000
    if as_of_ms is None:
        return time.time_ns() // 1_000_000
    if not 0 <= as_of_ms < _YEAR_10000_MS:
        raise UsageError(f"{as_of_ms} ms since 1970 is no time of the years 1970 to 9999")
    return as_of_ms


class ArchiveHeader(Document):
    """``exim.json``, the archive's first member."""

    format: str = FORMAT
    format_version: str = FORMAT_VERSION
    required_features: tuple[str, ...] = Field(default=(), strict=False)
    """What a reader must know, or refuse the archive."""
    read_me: str = ""

    @classmethod
    def now(cls, required_features: tuple[str, ...] = ()) -> ArchiveHeader:
        """Describe an archive that is being written."""
        return cls(
            format=FORMAT,
            format_version=FORMAT_VERSION,
            required_features=required_features,
            read_me="A BagIt 1.0 bag. Check: sha256sum -c manifest-sha256.txt. Envelopes are JSON "
            "with the parts system, info and mlflow; metric histories and traces are Parquet; "
            "artifacts are the files.",
        )


class Named(Document):
    """A failure, skip or loss, as reports have it."""

    kind: str
    id: str
    reason: str = ""
    what: str = ""
    count: _Count = 1
    """How many objects it stands for."""


class Info(Document):
    """Part ``info`` of every object's envelope."""

    content_digest: _Digest
    """Says that the object is unchanged, whoever packed it and when."""
    failures: Annotated[tuple[Named, ...], _FIRST, _LAX] = ()
    """Parts of the object that could not be read."""
    lossy: Annotated[tuple[Named, ...], _FIRST, _LAX] = ()
    """What is known to be missing, such as a parent run that is gone."""


class ArtifactEntry(Document):
    """One artifact of a run, logged model or model version."""

    path: str
    """Path below the artifact root, as MLflow lists it."""
    member: str
    """Member that holds the bytes."""
    size_bytes: _Count
    sha256: _Hex


class AttachmentEntry(ArtifactEntry):
    """One attachment of a trace."""

    trace_id: str


class MetricsRange(Document):
    """Consecutive rows of one Parquet file that belong to one run."""

    member: str
    first_row: _Count
    rows: _Count


class MetricsEntry(Document):
    """Where a run's metric rows are and what they hash to."""

    digest: _Digest
    keys: _Count
    rows: _Count
    parts: Annotated[tuple[MetricsRange, ...], _FIRST, _LAX]


class RunInfo(Info):
    """Part ``info`` of ``run.json``."""

    metrics: MetricsEntry | None = None
    """Absent when the run has no metric rows."""
    artifacts: Annotated[tuple[ArtifactEntry, ...], _FIRST, _LAX] = ()


class TableEntry(Document):
    """One of the tables of a part of traces."""

    member: str
    rows: _Count


class TracePartInfo(Info):
    """Part ``info`` of ``part-NNNNN.json``."""

    tables: dict[str, TableEntry]
    """By name: ``traces``, and ``spans`` and ``assessments`` where there are any."""
    attachments: Annotated[tuple[AttachmentEntry, ...], _FIRST, _LAX] = ()


class VersionInfo(Info):
    """Part ``info`` of ``version.json``, ``logged_model.json`` and entities."""

    artifacts: Annotated[tuple[ArtifactEntry, ...], _FIRST, _LAX] = ()


class ExperimentInfo(Info):
    """Part ``info`` of ``experiment.json``."""

    num_total_runs: _Count
    num_ok_runs: _Count
    num_failed_runs: _Count
    failed_runs: tuple[str, ...] = Field(default=(), strict=False)


# Objects of MLflow's REST API: kept as they are, checked for what is read of them here.
_Experiment = Annotated[
    dict[str, Any],
    AfterValidator(CHECKS[Kind.EXPERIMENT]),
    WithJsonSchema(SCHEMAS["experiment"]),
]
_Run = Annotated[
    dict[str, Any],
    AfterValidator(CHECKS[Kind.RUN]),
    WithJsonSchema(SCHEMAS["run"]),
]
_LoggedModel = Annotated[
    dict[str, Any],
    AfterValidator(CHECKS[Kind.LOGGED_MODEL]),
    WithJsonSchema(SCHEMAS["logged_model"]),
]
_Model = Annotated[
    dict[str, Any],
    AfterValidator(CHECKS[Kind.REGISTERED_MODEL]),
    WithJsonSchema(SCHEMAS["model"]),
]
_Version = Annotated[
    dict[str, Any],
    AfterValidator(CHECKS[Kind.MODEL_VERSION]),
    WithJsonSchema(SCHEMAS["version"]),
]


class ExperimentPart(Document):
    """REST's reply to ``experiments/get``, and the ids of the runs in the archive."""

    experiment: _Experiment
    runs: tuple[str, ...] = Field(default=(), strict=False)
    logged_models: tuple[str, ...] = Field(default=(), strict=False)
    """Ids of the logged models in the archive; absent without any."""


class RunPart(Document):
    """REST's reply to ``runs/get``."""

    run: _Run


class LoggedModelPart(Document):
    """REST's reply to ``logged-models/get``."""

    logged_model: _LoggedModel


class TracePart(Document):
    """Whose traces they are and how many."""

    experiment_id: str
    traces: _Count


class ModelPart(Document):
    """REST's reply to ``registered-models/get``, and the version numbers in the archive."""

    registered_model: _Model
    versions: Annotated[tuple[int, ...], _FIRST, _LAX] = ()


class VersionPart(Document):
    """REST's reply to ``model-versions/get``."""

    model_version: _Version


class ExperimentEnvelope(Document):
    """``experiment.json``."""

    system: System
    info: ExperimentInfo
    mlflow: ExperimentPart


class RunEnvelope(Document):
    """``run.json``."""

    system: System
    info: RunInfo
    mlflow: RunPart


class LoggedModelEnvelope(Document):
    """``logged_model.json``."""

    system: System
    info: VersionInfo
    mlflow: LoggedModelPart


class TracePartEnvelope(Document):
    """``traces/part-NNNNN.json``."""

    system: System
    info: TracePartInfo
    mlflow: TracePart


class EntityEnvelope(Document):
    """An object that is one document: its ``mlflow`` has one field, named for its kind."""

    system: System
    info: VersionInfo
    mlflow: dict[str, Any]


class ModelEnvelope(Document):
    """``model.json``, of a registered model or a prompt."""

    system: System
    info: Info
    mlflow: ModelPart


class VersionEnvelope(Document):
    """``version.json``, of a registered model or a prompt."""

    system: System
    info: VersionInfo
    mlflow: VersionPart


class CountsEntry(Document):
    """The count law for one kind: found = written + skipped + failed."""

    found: _Count
    written: _Count
    skipped: _Count
    failed: _Count


class NotPacked(Document):
    """A kind of object that was seen at the source and is not in the archive."""

    kind: str
    seen: _Count
    at_least: bool = False
    reason: str


class ArchiveInfo(Document):
    """Part ``info`` of ``archive.json``: what was packed and what was not."""

    counts: dict[str, CountsEntry]
    num_total_runs: _Count
    num_ok_runs: _Count
    num_failed_runs: _Count
    failed_runs: tuple[str, ...] = Field(default=(), strict=False)
    metric_rows: _Count
    artifact_bytes: _Count
    failures: Annotated[tuple[Named, ...], _FIRST, _LAX] = ()
    lossy: Annotated[tuple[Named, ...], _FIRST, _LAX] = ()
    not_packed: Annotated[tuple[NotPacked, ...], _FIRST, _LAX] = ()
    content_root: _Hex | None = None
    """What the archive holds in one digest; absent before version 1.3."""
    read_as: str | None = None
    """What kind of source it was, where that had to be found out."""
    taken_from: tuple[dict[str, Any], ...] = Field(default=(), strict=False)
    """Archives that the objects were taken from, the last one first: ``archive``, ``root`` and the
    ``selection`` that it was packed with."""
    redacted: tuple[dict[str, Any], ...] = Field(default=(), strict=False)
    """What was taken out of the objects, by file of rules, the last one first."""


class ExperimentName(Document):
    """An experiment in the list of all."""

    experiment_id: str
    name: str


class Listing(Document):
    """What is in one workspace of the archive."""

    experiments: Annotated[tuple[ExperimentName, ...], _FIRST, _LAX] = ()
    models: tuple[str, ...] = Field(default=(), strict=False)
    prompts: tuple[str, ...] = Field(default=(), strict=False)


class WorkspaceListing(Listing):
    """What is in a workspace that is not the default one."""

    name: str


class ArchivePart(Listing):
    """What was asked for, and what came of it; the default workspace's at the top."""

    selection: dict[str, Any] = Field(default_factory=dict)
    workspaces: Annotated[tuple[WorkspaceListing, ...], _FIRST, _LAX] = ()


class ArchiveEnvelope(Document):
    """``archive.json``."""

    system: System
    info: ArchiveInfo
    mlflow: ArchivePart


class LeftBehind(Document):
    """Objects that a step left behind."""

    kind: str
    count: _Count
    reason: str


class EarlierArchive(Document):
    """The archive that a step took its objects from."""

    root: _Hex
    content_root: _Hex | None = None
    event: _Hex | None = None
    """Digest of the last event of its log, where it has one."""


class EventInfo(Document):
    """Part ``info`` of an event: what came of it."""

    content_root: _Hex
    """That of the archive that was written."""
    selection: dict[str, Any] = Field(default_factory=dict)
    """What was asked for; of a long one its digest."""
    left_out: Annotated[tuple[LeftBehind, ...], _FIRST, _LAX] = ()
    lossy: _Count = 0
    """How many losses the archive names."""
    earlier: EarlierArchive | None = None


class LogEvent(Document):
    """``log/NNNNN.json``: one step of the objects into this archive; ``system`` says whose."""

    system: System
    info: EventInfo


_Parsed = TypeVar("_Parsed", bound=Document)


def check_entity(envelope: EntityEnvelope, kind: Kind, path: str) -> dict[str, Any]:
    """Return the document of an entity.

    Args:
        envelope: Its envelope.
        kind: What it must be.
        path: Member path, for the message.

    Raises:
        InvalidArchiveError: It is of another kind or has no id.
    """
    document = envelope.mlflow.get(str(kind))
    field = ENTITY_KINDS[kind].id_field
    if not isinstance(document, dict) or not isinstance(document.get(field), str):
        message = f"mlflow.{kind}: must be an object whose {field} is a text"
        raise _refused([Finding("E051", path, message)])
    return document


def check_document(
    model: type[_Parsed], value: Any, path: str, members: int | None = None
) -> _Parsed:
    """Check one document that is parsed already.

    Args:
        model: What it must be.
        value: The JSON value.
        path: Member path, for the message.
        members: How many the archive has, where one that names more is to be refused before
            anything is made of it.

    Raises:
        InvalidArchiveError: A field is missing or of another type.
    """
    if members is not None and (found := names_too_many(value, members, Limits.of_environment())):
        raise _refused([Finding(found[0], path, found[1])])
    try:
        return model.model_validate(value)
    except ValidationError as error:
        if error.error_count() > _MOST_ERRORS:
            message = f"{error.error_count()} fields are missing or of another type"
            findings = [Finding("E051", path, message)]
        else:
            findings = [
                Finding("E051", path, f"{'.'.join(map(str, e['loc'])) or 'document'}: {e['msg']}")
                for e in error.errors(include_url=False, include_input=False)
            ]
        raise _refused(findings) from None


def _refused(findings: list[Finding]) -> InvalidArchiveError:
    hint = "the archive was damaged or not written by this format"
    return InvalidArchiveError(f"{findings[0].path}: {findings[0].message}", hint, findings)
