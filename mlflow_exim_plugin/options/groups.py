"""How locations are opened, read, written and compared, and how much is done at once."""

from __future__ import annotations

import getpass
import json
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import EximError, NotFoundError, UsageError
from mlflow_exim_plugin.options.archives import TakingOut
from mlflow_exim_plugin.options.declared import AGAIN, asked, at_least_one, for_programs
from mlflow_exim_plugin.options.selection import age_s

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from mlflow_exim_plugin.schema.report import Report

__all__ = [
    "Clearing",
    "Comparing",
    "Drawing",
    "Extracting",
    "OnConflict",
    "Opening",
    "Publishing",
    "Reading",
    "Rename",
    "Scanning",
    "Work",
    "Writing",
]


def _pairs(typed: Iterable[str], form: str, hint: str) -> Iterator[tuple[str, str]]:
    option, _, wanted = form.partition(" ")
    for pair in typed:
        key, equals, text = pair.partition("=")
        if not (key and equals):
            raise UsageError(f"{option} is not {wanted}", hint)
        yield key, text


def _storage_options(typed: Iterable[str]) -> dict[str, Any] | None:
    """Read ``KEY=VALUE``, the value as JSON where it is some."""
    options: dict[str, Any] = {}
    for key, text in _pairs(typed, "--storage-option KEY=VALUE", "write anon=true"):
        try:
            options[key] = json.loads(text)
        except ValueError:
            options[key] = text
    return options or None


def _artifact_roots(typed: Iterable[str]) -> dict[str, str] | None:
    """Read ``OLD=NEW``."""
    roots = dict(_pairs(typed, "--artifact-root OLD=NEW", "write /old/mlruns=/new/mlruns"))
    if not all(roots.values()):
        raise UsageError(
            "--artifact-root has nothing behind its =", "write where the files are now"
        )
    return roots or None


@dataclass(frozen=True)
class Opening:
    """How a location is opened."""

    registry_uri: str | None = asked(
        "MLflow registry URI; MLFLOW_REGISTRY_URI or the tracking URI without it.",
        default=None,
        metavar="URI",
    )
    artifacts_destination: str | None = asked(
        "Where the server of a database keeps the files of mlflow-artifacts:, as its own option "
        "of this name says.",
        default=None,
        metavar="URI",
    )
    storage_options: Mapping[str, Any] | None = asked(
        f"Option for the fsspec file system that an archive lies on, such as anon=true.{AGAIN}",
        default=None,
        flag="--storage-option",
        metavar="KEY=VALUE",
        read=_storage_options,
    )
    snapshot: str | None = asked(
        "Snapshot of a set: its number, or a time such as 2026-06-30 or 7d, for the last one until "
        "then; the newest without it.",
        default=None,
        flag="--at",
        metavar="SNAPSHOT",
    )

    def at(self, location: str) -> Opening:
        """Return this for a tracking URI that is given: then it is the registry's too."""
        return replace(self, registry_uri=self.registry_uri or location)

    def over(self, other: Opening) -> Opening:
        """Return this with what only the other says."""
        said = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(other, **{name: value for name, value in said.items() if value is not None})


@dataclass(frozen=True)
class Reading:
    """How a source is read.

    Attributes:
        marks: ``stages.marks.Marks`` of an earlier state: runs that are as they were are not read.
    """

    force: bool = asked(
        "Read a database whose schema is newer than this MLflow's as far as it is known, and name "
        "what is left out.",
        default=False,
    )
    artifact_roots: Mapping[str, str] | None = asked(
        f"Where artifact roots that begin with OLD, a URI or a path, are to be found now.{AGAIN}",
        default=None,
        flag="--artifact-root",
        metavar="OLD=NEW",
        read=_artifact_roots,
    )
    follow_links: bool = asked(
        "Take files behind links that lead out of an artifact folder.", default=False
    )
    marks: Any = for_programs(None)


@dataclass(frozen=True)
class Scanning:
    """What is looked for, and how much of it is told.

    Attributes:
        found: Called with each ``ScanFinding`` that is kept.
        progress: Called with the ``Scan`` after each object.
    """

    find: tuple[str, ...] = asked(
        f"Detector to use: token, private-key, password, email or card; all without it.{AGAIN}",
        default=(),
        metavar="DETECTOR",
    )
    allow: tuple[str, ...] = asked(
        "What is no secret: a regular expression for the whole of what is found, such as "
        rf"'.*@example\.com'.{AGAIN}",
        default=(),
        metavar="PATTERN",
    )
    ignore: tuple[str, ...] = asked(
        "Field to leave out with all below it, with * and ?, such as run.data.tags.mlflow.user or "
        f"'*.artifacts.docs/*'.{AGAIN}",
        default=(),
        metavar="FIELD",
    )
    limit: int | None = asked(
        "Findings to show; all of them are counted.", default=None, least=0, typed=1000
    )
    jobs: int = asked("How many calls to a server may be under way at once.", default=4, least=1)
    found: Callable[[Any], None] | None = for_programs(None)
    progress: Callable[[Any], None] | None = for_programs(None)

    def __post_init__(self) -> None:
        at_least_one(self.jobs)


@dataclass(frozen=True)
class Publishing:
    """How a file to be looked at is written."""

    overwrite: bool = asked("Replace a file that is there.", default=False)


@dataclass(frozen=True)
class Drawing:
    """What is drawn."""

    runs: tuple[str, ...] = asked(
        f"Run to draw, by id, beginning of an id, name or glob.{AGAIN}",
        default=(),
        flag="-r/--run-id",
        metavar="RUN",
    )
    keys: tuple[str, ...] = asked(
        f"Metric to draw, by key or glob.{AGAIN}", default=(), flag="-k/--key", metavar="KEY"
    )
    by: str = asked(
        "What is drawn from left to right: steps, or seconds since a run's first row.",
        default="step",
        choices=("step", "time"),
    )
    logarithmic: bool = asked("Draw values on a logarithmic axis.", default=False)


@dataclass(frozen=True)
class Extracting:
    """How files are written to a folder."""

    overwrite: bool = asked("Replace files that are there with other content.", default=False)
    members: bool = asked(
        "Take members of the archive, as `ls --members` lists them, by their paths there.",
        default=False,
    )


class OnConflict(str, Enum):
    """What to do where the target has something else under the same name."""

    MERGE = "merge"
    SKIP = "skip"
    RENAME = "rename"
    FAIL = "fail"

    @classmethod
    def _missing_(cls, value: object) -> OnConflict:
        raise UsageError(f"on_conflict is merge, skip, rename or fail, not {value!r}")


@dataclass(frozen=True)
class Rename:
    """Names that objects get on their way.

    Attributes:
        experiments: New experiment name by old name.
        models: New registered model name by old name.
        names: New name by old name of experiments, registered models, prompts and evaluation
            datasets alike; a ``*`` on both sides stands for the same text.
    """

    experiments: Mapping[str, str] = field(default_factory=dict)
    models: Mapping[str, str] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for old, new in self.names.items():
            if max(old.count("*"), new.count("*")) > 1 or new.count("*") > old.count("*"):
                raise UsageError(
                    f"--rename {old}={new}: one * on each side stands for the same text",
                    "write '/Users/a/*=/Users/b/*'",
                )

    @classmethod
    def read(cls, typed: Iterable[str]) -> Rename:
        """Read what the command line says: ``OLD=NEW``, or the path of a file.

        Raises:
            NotFoundError: There is no such file.
            UsageError: It is neither.
        """
        found = cls()
        for text in typed:
            old, equals, new = text.partition("=")
            if not equals or Path(text).is_file():
                more = cls.from_file(text)
            elif old and new:
                more = cls(names={old: new})
            else:
                raise UsageError(f"--rename {text}: a name is empty", "write OLD=NEW")
            found = cls(
                {**found.experiments, **more.experiments},
                {**found.models, **more.models},
                {**found.names, **more.names},
            )
        return found

    @classmethod
    def from_file(cls, path: str) -> Rename:
        """Read ``{"experiments": {"old": "new"}, "models": {"old": "new"}, "names": {...}}``.

        Raises:
            NotFoundError: There is no such file.
            UsageError: It is not such a document.
        """
        try:
            document = json.loads(Path(path).read_text(encoding="utf-8"))
            names = [document.get(key, {}) for key in _RENAMED]
            unknown = set(document) - set(_RENAMED)
        except FileNotFoundError:
            raise NotFoundError(f"there is no file {path}", "write OLD=NEW for a name") from None
        except (OSError, ValueError, AttributeError) as error:
            raise UsageError(f"{path} is no JSON object of names: {error}") from None
        if unknown or not all(
            isinstance(part, dict) and all(isinstance(v, str) for v in part.values())
            for part in names
        ):
            raise UsageError(
                f"{path}: expected {{'experiments': {{old: new}}, 'models': {{old: new}}}}"
            )
        return cls(*names)


_RENAMED = ("experiments", "models", "names")


def _importer(user: str) -> str | None:
    if user == "source":
        return None
    try:
        return getpass.getuser()
    except (ImportError, KeyError, OSError):  # a container's user may have no name
        raise EximError("the system does not tell who you are", "set LOGNAME") from None


_WITHOUT_ARTIFACTS = " without all artifacts"
_WITH_SOURCE_TAGS = " with source tags"


@dataclass(frozen=True)
class Writing(TakingOut):
    """How objects are put onto a deployment.

    Attributes:
        dry_run: Look, but write nothing.
        marks_content: False when artifacts are left out, so that a later unpack adds them.
        sends_files: False when no artifacts come.
        is_strict: Whether an object is refused of which the target cannot hold all.
        among_others: Whether others write runs to the same experiments meanwhile.
    """

    experiment_name: str | None = asked(
        "Put all runs into one experiment of this name.", default=None, metavar="NAME"
    )
    rename: Rename | None = asked(
        "New name of an experiment, registered model, prompt or evaluation dataset; with * on both "
        "sides of all names that begin or end so, such as '/Users/a/*=/Users/b/*'. Or a JSON file: "
        f'{{"experiments": {{"old": "new"}}, "models": {{"old": "new"}}}}.{AGAIN}',
        default=None,
        metavar="OLD=NEW|FILE",
        read=Rename.read,
    )
    on_conflict: OnConflict = asked(
        "What to do when the target has something else under the same name.",
        default=OnConflict.MERGE,
        choices=tuple(policy.value for policy in OnConflict),
    )
    since_last: bool = asked(
        "Of a copy, look only at what is new or changed at the source since the last copy with "
        "this option from this machine; what the target lost meanwhile does not come again.",
        default=False,
    )
    importer: str | None = asked(
        "Keep the users of the runs, or make them yours.",
        default=None,
        flag="--user",
        choices=("source", "importer"),
        read=_importer,
        typed="source",
        old_switch="--use-src-user-id",
    )
    import_source_tags: bool = asked(
        "Keep ids, times, users and other fields that the target sets anew as tags mlflow_exim.*.",
        default=False,
    )
    artifact_location: str | None = asked(
        "Artifact root for new experiments; the target's own without it, which a PostgreSQL or "
        "MySQL database cannot tell. For a database 'source' leaves all files where the source has "
        "them.",
        default=None,
        metavar="URI",
    )
    preserve_ids: bool | None = asked(
        "Keep ids and times, which needs a database as target and is the default there, or let "
        "MLflow's API make new ones.",
        default=None,
        flag="--preserve-ids/--new-ids",
    )
    takes_edits: bool = asked(
        "Let the target follow where what came before has another name, text, tag, alias or stage "
        "at the source now, or is deleted there; else what it has stays and is named. Runs and "
        "aliases that went through MLflow's API follow in any case.",
        default=False,
        flag="--take-edits",
    )
    dry_run: bool = False
    marks_content: bool = True
    sends_files: bool = True
    is_strict: bool = False
    among_others: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "on_conflict", OnConflict(self.on_conflict))
        if not isinstance(self.rename, Rename | None):
            raise UsageError(f"rename is a Rename or None, not {self.rename!r}")
        if self.experiment_name and self.rename and self.rename.experiments:
            raise UsageError("an experiment name and new names of experiments exclude each other")

    @property
    def keeps_locations(self) -> bool:
        """Whether files stay where the source has them."""
        return self.artifact_location == "source"

    def mark(self, digest: str | None) -> str:
        """Return what a copy of an object with this digest is marked with once it is whole."""
        whole = "" if self.marks_content else _WITHOUT_ARTIFACTS
        return (digest or "") + whole + (_WITH_SOURCE_TAGS if self.import_source_tags else "")

    def is_whole(self, mark: str, digest: str | None) -> bool:
        """Whether a copy with this mark has all but, perhaps, source tags."""
        return mark.removesuffix(_WITH_SOURCE_TAGS) == self.mark(digest).removesuffix(
            _WITH_SOURCE_TAGS
        )

    def lacks_source_tags(self, mark: str) -> bool:
        """Whether a whole copy with this mark is still to be given source tags."""
        return self.import_source_tags and not mark.endswith(_WITH_SOURCE_TAGS)


@dataclass(frozen=True)
class Work:
    """How much is done at once, and whether at all.

    Attributes:
        script: Name of the command, kept in envelopes and source tags.
        progress: Called with the report after each object.
    """

    jobs: int = asked("How much may be under way at once.", default=4, least=1)
    dry_run: bool = asked(
        "Look at everything, write nothing, and say what would be.", default=False
    )
    strict: bool = asked("Stop at the first object that fails.", default=False)
    script: str = for_programs("")
    progress: Callable[[Report], None] | None = for_programs(None)

    def __post_init__(self) -> None:
        at_least_one(self.jobs)


@dataclass(frozen=True)
class Comparing:
    """How two sides are compared.

    Attributes:
        found: Called with each ``Difference`` that is kept.
        progress: Called with the side that is read and its objects so far.
    """

    rules: str = asked(
        "`rest` does not count what MLflow's REST API cannot keep, such as ids and creation times; "
        "`moved` counts all but where files lie; `exact` counts everything. `auto` is `moved` "
        "where runs and experiments have the same ids on both sides, else `rest`.",
        default="auto",
        choices=("auto", "rest", "moved", "exact"),
    )
    ignore: tuple[str, ...] = asked(
        "Field to leave out with all below it, with * and ?, such as run.info.end_time or "
        f"'*.tags.mlflow.user'; a kind alone leaves its missing objects out.{AGAIN}",
        default=(),
        metavar="FIELD",
    )
    limit: int | None = asked(
        "Differences to show; all of them are counted.", default=None, least=0, typed=1000
    )
    jobs: int = asked("How many calls to a server may be under way at once.", default=4, least=1)
    found: Callable[[Any], None] | None = for_programs(None)
    progress: Callable[[str, int], None] | None = for_programs(None)

    def __post_init__(self) -> None:
        at_least_one(self.jobs)


@dataclass(frozen=True)
class Clearing:
    """What is removed of what interrupted packs left.

    Attributes:
        removing: Called with each ``Leftover`` that is about to be removed.
    """

    clear: bool = asked(
        "Remove what processes left that are no more. What one on this machine writes stays.",
        default=False,
    )
    older_than_s: int | None = asked(
        "With --clear, remove also what nothing on this machine tells of, if it is so old, such as "
        "12h or 7d. Another machine may be at it.",
        default=None,
        flag="--older-than",
        metavar="AGE",
        read=age_s,
    )
    removing: Callable[[Any], None] | None = for_programs(None)

    def __post_init__(self) -> None:
        if self.older_than_s is not None and not self.clear:
            raise UsageError("an age says what to clear, and nothing is to be", "add --clear")
