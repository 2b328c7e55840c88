"""What can be asked: groups of options, each option declared once with what it says of itself.

The command line, the keywords of the Python functions and the reference are made from the fields of
these classes. A function takes whole groups; ``flat`` lets it take their fields as keywords too.
"""

from __future__ import annotations

import fnmatch
import functools
import getpass
import inspect
import json
import re
import warnings
from dataclasses import Field, dataclass, field, fields, replace
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mlflow_exim_plugin.errors import EximError, NotFoundError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from mlflow_exim_plugin.schema.report import Report
    from mlflow_exim_plugin.schema.runs import RunHeader

__all__ = [
    "Comparing",
    "OnConflict",
    "Opening",
    "Option",
    "Packing",
    "Reading",
    "Rename",
    "Selection",
    "Work",
    "Writing",
    "flat",
    "flat_fields",
    "matches",
    "option_of",
    "parse_time_ms",
]

_Result = TypeVar("_Result")
_OPTION = "option"


@dataclass(frozen=True)
class Option:
    """How a field is asked for on the command line.

    Attributes:
        help: What it does, for every place that says so.
        flag: Its names there; made from the field's name without them.
        metavar: What stands for its value.
        choices: The values there are, where they are few.
        least: Smallest value of a number.
        most: Largest value of a number, None without an end.
        read: Makes the value of what was typed; raises ``UsageError``.
        old_switch: A switch that once stood for the value it has without it.
        typed: What the command line takes where the field's own default is for programs.
    """

    help: str
    flag: str = ""
    metavar: str = ""
    choices: tuple[str, ...] = ()
    least: int | None = None
    most: int | None = None
    read: Callable[[Any], Any] | None = None
    old_switch: str = ""
    typed: Any = None


def _asked(help: str, *, default: Any, typed: Any = None, **how: Any) -> Any:  # noqa: A002 - click's word for it
    option = Option(help, typed=typed, **how)
    return field(default=default, metadata={_OPTION: option})


def _for_programs(default: Any) -> Any:
    """Declare what no command line asks for and a keyword can give."""
    return field(default=default, metadata={_OPTION: None})


def option_of(of: Field[Any]) -> Option | None:
    """Return how a field is asked for, None where only programs can give it."""
    found: Option | None = of.metadata.get(_OPTION)
    return found


def parse_time_ms(text: str, *, end: bool = False) -> int:
    """Read a time as ms since the Unix epoch; without a zone it is UTC.

    Args:
        text: ISO 8601 date or time, or a whole number of ms.
        end: A bare date means the last millisecond of that day.

    Raises:
        UsageError: It is no time.
    """
    if re.fullmatch(r"-?\d{11,}", text):
        return int(text)
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        raise UsageError(
            f"{text!r} is not a time", "write 2026-01-31 or 2026-01-31T12:00:00 (UTC)"
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    start_ms = round(moment.timestamp() * 1000)
    is_whole_day = re.fullmatch(r"\d{4}-\d\d-\d\d", text)
    return start_ms + 86_400_000 - 1 if end and is_whole_day else start_ms


def matches(patterns: Iterable[str], names: Iterable[str]) -> bool:
    """Whether one of some names is meant by one of some globs.

    A name that is spelled out wins over reading it as a glob: names may hold brackets.
    """
    return any(
        pattern == name or fnmatch.fnmatchcase(name, pattern)
        for pattern in patterns
        for name in names
    )


_AGAIN = " May be given several times."


@dataclass(frozen=True)
class Selection:
    """Which objects to take; empty takes everything."""

    experiments: tuple[str, ...] = _asked(
        f"Experiment to take, by name, id or glob.{_AGAIN}",
        default=(),
        flag="-e/--experiment",
        metavar="NAME",
    )
    runs: tuple[str, ...] = _asked(
        f"Run to take with its ancestors, by id or glob.{_AGAIN}",
        default=(),
        flag="-r/--run-id",
        metavar="ID",
    )
    models: tuple[str, ...] = _asked(
        "Registered model or prompt to take with all versions and their runs, by name or glob."
        f"{_AGAIN}",
        default=(),
        flag="-m/--model",
        metavar="NAME",
    )
    filter: str = _asked(
        "Take only runs that match, in MLflow's search language.", default="", metavar="EXPRESSION"
    )
    since_ms: int | None = _asked(
        "Take only runs that started at this time (UTC) or later, such as 2026-01-31.",
        default=None,
        flag="--since",
        metavar="TIME",
        read=parse_time_ms,
    )
    until_ms: int | None = _asked(
        "Take only runs that started at this time (UTC) or earlier; a date means its end.",
        default=None,
        flag="--until",
        metavar="TIME",
        read=functools.partial(parse_time_ms, end=True),
    )
    deleted: bool = _asked("Take deleted experiments and runs too.", default=True)
    traces: bool = _asked("Take traces.", default=True)
    artifacts: bool = _asked("Take artifacts.", default=True)
    include: tuple[str, ...] = _asked(
        f"Take only artifacts whose path matches.{_AGAIN}", default=(), metavar="GLOB"
    )
    exclude: tuple[str, ...] = _asked(
        f"Leave out artifacts whose path matches.{_AGAIN}", default=(), metavar="GLOB"
    )

    @property
    def is_narrow(self) -> bool:
        """True when objects are named: then what is not named stays behind."""
        return bool(self.experiments or self.runs or self.models)

    @property
    def takes_all_runs(self) -> bool:
        """True when no run is left out, whatever is in it."""
        is_timed = self.since_ms is not None or self.until_ms is not None
        return self.deleted and not (self.is_narrow or self.filter or is_timed)

    @property
    def takes_all_artifacts(self) -> bool:
        """True when no artifact is left out."""
        return self.artifacts and not self.include and not self.exclude

    def takes_experiment(self, experiment_id: str, name: str, lifecycle_stage: str) -> bool:
        """Whether an experiment is taken with all its runs that match."""
        if lifecycle_stage == "deleted" and not self.deleted:
            return False
        if not self.is_narrow:
            return True
        return matches(self.experiments, (experiment_id, name))

    def takes_run(self, header: RunHeader, *, in_experiment: bool) -> bool:
        """Whether a run is taken.

        Args:
            header: The run.
            in_experiment: Whether its experiment is taken as a whole.
        """
        if header.lifecycle_stage == "deleted" and not self.deleted:
            return False
        if self.since_ms is not None and header.start_time_ms < self.since_ms:
            return False
        if self.until_ms is not None and header.start_time_ms > self.until_ms:
            return False
        return in_experiment or matches(self.runs, (header.run_id,))

    def takes_model(self, name: str) -> bool:
        """Whether a registered model is taken with all its versions."""
        if self.models:
            return matches(self.models, (name,))
        return not self.is_narrow

    def takes_artifact(self, path: str) -> bool:
        """Whether an artifact is taken."""
        if not self.artifacts or (self.include and not matches(self.include, (path,))):
            return False
        return not matches(self.exclude, (path,))

    def server_filter(self) -> str:
        """Return the run filter to send to a server: the user's and the time window."""
        clauses = [self.filter] if self.filter else []
        if self.since_ms is not None:
            clauses.append(f"attributes.start_time >= {self.since_ms}")
        if self.until_ms is not None:
            clauses.append(f"attributes.start_time <= {self.until_ms}")
        return " and ".join(clauses)


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

    registry_uri: str | None = _asked(
        "MLflow registry URI; MLFLOW_REGISTRY_URI or the tracking URI without it.",
        default=None,
        metavar="URI",
    )
    artifacts_destination: str | None = _asked(
        "Where the server of a database keeps the files of mlflow-artifacts:, as its own option "
        "of this name says.",
        default=None,
        metavar="URI",
    )
    storage_options: Mapping[str, Any] | None = _asked(
        f"Option for the fsspec file system that an archive lies on, such as anon=true.{_AGAIN}",
        default=None,
        flag="--storage-option",
        metavar="KEY=VALUE",
        read=_storage_options,
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
    """How a source is read."""

    force: bool = _asked(
        "Read a database whose schema is newer than this MLflow's as far as it is known, and name "
        "what is left out.",
        default=False,
    )
    artifact_roots: Mapping[str, str] | None = _asked(
        f"Where artifact roots that begin with OLD, a URI or a path, are to be found now.{_AGAIN}",
        default=None,
        flag="--artifact-root",
        metavar="OLD=NEW",
        read=_artifact_roots,
    )
    follow_links: bool = _asked(
        "Take files behind links that lead out of an artifact folder.", default=False
    )


@dataclass(frozen=True)
class Packing:
    """How an archive is written."""

    level: int = _asked("zstd compression level.", default=3, least=1, most=22)
    overwrite: bool = _asked("Replace an archive that is there.", default=False)
    export_source_tags: bool = _asked(
        "Give packed runs their ids, times, users and mlflow. tags again as tags "
        "mlflow_export_import.*.",
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
    """

    experiments: Mapping[str, str] = field(default_factory=dict)
    models: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_file(cls, path: str) -> Rename:
        """Read ``{"experiments": {"old": "new"}, "models": {"old": "new"}}``.

        Raises:
            NotFoundError: There is no such file.
            UsageError: It is not such a document.
        """
        try:
            document = json.loads(Path(path).read_text(encoding="utf-8"))
            names = [document.get("experiments", {}), document.get("models", {})]
            unknown = set(document) - {"experiments", "models"}
        except FileNotFoundError:
            raise NotFoundError(f"there is no file {path}") from None
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
class Writing:
    """How objects are put onto a deployment.

    Attributes:
        dry_run: Look, but write nothing.
        marks_content: False when artifacts are left out, so that a later unpack adds them.
        sends_files: False when no artifacts come.
        is_strict: Whether an object is refused of which the target cannot hold all.
    """

    experiment_name: str | None = _asked(
        "Put all runs into one experiment of this name.", default=None, metavar="NAME"
    )
    rename: Rename | None = _asked(
        'JSON file of new names: {"experiments": {"old": "new"}, "models": {"old": "new"}}.',
        default=None,
        metavar="FILE",
        read=Rename.from_file,
    )
    on_conflict: OnConflict = _asked(
        "What to do when the target has something else under the same name.",
        default=OnConflict.MERGE,
        choices=tuple(policy.value for policy in OnConflict),
    )
    importer: str | None = _asked(
        "Keep the users of the runs, or make them yours.",
        default=None,
        flag="--user",
        choices=("source", "importer"),
        read=_importer,
        typed="source",
        old_switch="--use-src-user-id",
    )
    import_source_tags: bool = _asked(
        "Keep ids, times, users and other fields that the target sets anew as tags mlflow_exim.*.",
        default=False,
    )
    artifact_location: str | None = _asked(
        "Artifact root for new experiments; the target's own without it, which a PostgreSQL or "
        "MySQL database cannot tell. For a database 'source' leaves all files where the source has "
        "them.",
        default=None,
        metavar="URI",
    )
    preserve_ids: bool | None = _asked(
        "Keep ids and times, which needs a database as target and is the default there, or let "
        "MLflow's API make new ones.",
        default=None,
        flag="--preserve-ids/--new-ids",
    )
    dry_run: bool = False
    marks_content: bool = True
    sends_files: bool = True
    is_strict: bool = False

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


def _at_least_one(jobs: int) -> None:
    if jobs < 1:
        raise UsageError(f"jobs is at least 1, not {jobs}")


@dataclass(frozen=True)
class Work:
    """How much is done at once, and whether at all.

    Attributes:
        script: Name of the command, kept in envelopes and source tags.
        progress: Called with the report after each object.
    """

    jobs: int = _asked("How much may be under way at once.", default=4, least=1)
    dry_run: bool = _asked(
        "Look at everything, write nothing, and say what would be.", default=False
    )
    strict: bool = _asked("Stop at the first object that fails.", default=False)
    script: str = _for_programs("")
    progress: Callable[[Report], None] | None = _for_programs(None)

    def __post_init__(self) -> None:
        _at_least_one(self.jobs)


@dataclass(frozen=True)
class Comparing:
    """How two sides are compared.

    Attributes:
        found: Called with each ``Difference`` that is kept.
        progress: Called with the side that is read and its objects so far.
    """

    rules: str = _asked(
        "`rest` does not count what MLflow's REST API cannot keep, such as ids and creation times; "
        "`exact` counts everything.",
        default="rest",
        choices=("rest", "exact"),
    )
    ignore: tuple[str, ...] = _asked(
        "Field to leave out with all below it, with * and ?, such as run.info.end_time or "
        f"'*.tags.mlflow.user'; a kind alone leaves its missing objects out.{_AGAIN}",
        default=(),
        metavar="FIELD",
    )
    limit: int | None = _asked(
        "Differences to show; all of them are counted.", default=None, least=0, typed=1000
    )
    jobs: int = _asked("How many calls to a server may be under way at once.", default=4, least=1)
    found: Callable[[Any], None] | None = _for_programs(None)
    progress: Callable[[str, int], None] | None = _for_programs(None)

    def __post_init__(self) -> None:
        _at_least_one(self.jobs)


def flat_fields(function: Callable[..., Any]) -> dict[str, tuple[str, Field[Any]]]:
    """Return the parameter and field behind each keyword that stands for an option.

    A group that is taken as ``source_opening`` gives keywords that begin with ``source_``.
    """
    found = {}
    for name, parameter in inspect.signature(function, follow_wrapped=True).parameters.items():
        group = type(parameter.default)
        if group.__module__ == __name__:
            prefix = name.removesuffix(group.__name__.lower())
            asked = [of for of in fields(group) if _OPTION in of.metadata]
            found.update({prefix + of.name: (name, of) for of in asked})
    return found


def flat(**renamed: str) -> Callable[[Callable[..., _Result]], Callable[..., _Result]]:
    """Let a function that takes groups of options take each option as a keyword of its own too.

    Args:
        renamed: New name of a keyword by the name that it had once, which still works.
    """

    def decorate(function: Callable[..., _Result]) -> Callable[..., _Result]:
        signature = inspect.signature(function)
        keywords = flat_fields(function)

        @functools.wraps(function)
        def called(*arguments: Any, **given: Any) -> _Result:
            for old in given.keys() & renamed.keys():
                new = renamed[old]
                warnings.warn(f"{old} is called {new}", FutureWarning, stacklevel=2)
                given.setdefault(new, given.pop(old))
            groups: dict[str, dict[str, Any]] = {}
            for keyword in given.keys() & keywords.keys():
                parameter, of = keywords[keyword]
                value = given.pop(keyword)
                one = of.default == () and isinstance(value, str)  # meant, and not its letters
                groups.setdefault(parameter, {})[of.name] = (value,) if one else value
            unknown = given.keys() - signature.parameters.keys()
            if unknown:
                known = ", ".join(sorted({*signature.parameters, *keywords}))
                raise UsageError(f"there is no option {min(unknown)!r}", f"there are {known}")
            for name, said in groups.items():
                default = signature.parameters[name].default
                given[name] = replace(given.get(name) or default, **said)
            return function(*arguments, **{k: v for k, v in given.items() if v is not None})

        return called

    return decorate
