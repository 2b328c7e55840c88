"""Which objects to take: the options, and what they mean for one object."""

from __future__ import annotations

import fnmatch
import functools
import re
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import UsageError
from mlflow_exim_plugin.options.declared import AGAIN, asked
from mlflow_exim_plugin.options.part import SelectionPart

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from mlflow_exim_plugin.schema.runs import RunHeader

__all__ = ["Selection", "age_s", "is_glob", "matches", "parse_time_ms", "version_asked"]

_LATEST = "latest"
_WHICH = re.compile(r"[1-9][0-9]{0,17}|latest(:[1-9][0-9]{0,8})?|stage:\S.*|alias:\S.*")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_AGE = re.compile(r"(\d{1,9})([smhdw])")
_DAYS = {"today": 0, "yesterday": 1}
_OF_VERSION = re.compile(rf"(.+)(/(?:[1-9][0-9]{{0,17}}|{_LATEST})|@[^/@]+)")


def age_s(text: str) -> int:
    """Read an age such as 12h or 7d in seconds.

    Raises:
        UsageError: It is none.
    """
    found = _AGE.fullmatch(text.strip())
    if found is None:
        raise UsageError(f"{text!r} is no age", "write 90m, 12h or 7d")
    return int(found[1]) * _SECONDS[found[2]]


def parse_time_ms(text: str, *, end: bool = False) -> int:
    """Read a time as ms since the Unix epoch; without a zone it is UTC.

    Args:
        text: ISO 8601 date or time, a whole number of ms, ``today``, ``yesterday``, or how long ago
            it was, such as ``7d``.
        end: A bare date means the last millisecond of that day.

    Raises:
        UsageError: It is no time.
    """
    if re.fullmatch(r"-?\d{11,}", text):
        return int(text)
    now = datetime.now(timezone.utc)
    if text in _DAYS:
        text = (now - timedelta(days=_DAYS[text])).strftime("%Y-%m-%d")
    try:
        if _AGE.fullmatch(text):
            return round((now - timedelta(seconds=age_s(text))).timestamp() * 1000)
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except (ValueError, OverflowError):
        raise UsageError(
            f"{text!r} is not a time",
            "write 2026-01-31, 2026-01-31T12:00:00 (UTC), yesterday or 7d",
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


def is_glob(pattern: str) -> bool:
    """Whether a pattern may mean several names."""
    return any(char in pattern for char in "*?[")


def version_asked(pattern: str) -> tuple[str, str] | None:
    """Return the model, a name or glob, and which version of it a pattern asks for.

    Returns:
        The version as a number, ``latest`` or ``@ALIAS``; None where all versions are meant.
    """
    found = _OF_VERSION.fullmatch(pattern)
    return (found[1], found[2].removeprefix("/")) if found else None


def _which_versions(typed: Iterable[str]) -> tuple[str, ...]:
    """Read ``latest:3|stage:Production|alias:champion|7``."""
    read = tuple(which.strip() for text in typed for which in text.split("|"))
    for which in read:
        if not _WHICH.fullmatch(which):
            raise UsageError(
                f"{which!r} is no version", "write 7, latest:3, stage:Production or alias:champion"
            )
    return read


def _meant(
    which: str,
    numbers: Collection[int],
    aliases: Mapping[str, int],
    stages: Callable[[], Mapping[int, str]],
) -> set[int]:
    """Return the versions of a model that a part of ``--versions`` means."""
    how, _, name = which.partition(":")
    if how == "latest":
        found = set(sorted(numbers)[-int(name or 1) :])
    elif how == "stage":
        found = {n for n, stage in stages().items() if stage.lower() == name.lower()}
    else:
        found = {aliases.get(name, 0) if how == "alias" else int(how)}
    return found & set(numbers)


@dataclass(frozen=True)
class Selection:
    """Which objects to take; empty takes everything.

    Attributes:
        alone: Whether what is named comes without what it needs at a target: a run without its
            ancestors, a version with its files in place of its run.
        part: Which part of all that is taken now; None for all of it.
        oldest_first: Whether experiments come in the order in which they were made, not of their
            ids.
    """

    experiments: tuple[str, ...] = asked(
        f"Experiment to take, by name, id or glob.{AGAIN}",
        default=(),
        flag="-e/--experiment",
        metavar="NAME",
    )
    runs: tuple[str, ...] = asked(
        f"Run to take with its ancestors, by id or glob.{AGAIN}",
        default=(),
        flag="-r/--run-id",
        metavar="ID",
    )
    models: tuple[str, ...] = asked(
        "Registered model or prompt to take with all versions and their runs, by name or glob; "
        f"MODEL/3, MODEL@ALIAS and MODEL/latest take one version.{AGAIN}",
        default=(),
        flag="-m/--model",
        metavar="NAME",
    )
    versions: tuple[str, ...] = asked(
        "Versions to take of the models that -m names: a number, latest:N, stage:NAME or "
        f"alias:NAME, several with | between them.{AGAIN}",
        default=(),
        metavar="WHICH",
        read=_which_versions,
    )
    datasets: tuple[str, ...] = asked(
        f"Evaluation dataset to take, by name, id or glob.{AGAIN}",
        default=(),
        flag="--dataset",
        metavar="NAME",
    )
    filter: str = asked(
        "Take only runs that match, in MLflow's search language.", default="", metavar="EXPRESSION"
    )
    since_ms: int | None = asked(
        "Take only runs that started at this time (UTC) or later, such as 2026-01-31, yesterday or "
        "7d, which is seven days ago.",
        default=None,
        flag="--since",
        metavar="TIME",
        read=parse_time_ms,
    )
    until_ms: int | None = asked(
        "Take only runs that started at this time (UTC) or earlier; a date means its end.",
        default=None,
        flag="--until",
        metavar="TIME",
        read=functools.partial(parse_time_ms, end=True),
    )
    deleted: bool = asked(
        "Take deleted experiments and runs too. Without them a version of a model whose run is "
        "deleted comes with its files, and without the run.",
        default=True,
    )
    traces: bool = asked("Take traces.", default=True)
    artifacts: bool = asked("Take artifacts.", default=True)
    include: tuple[str, ...] = asked(
        f"Take only artifacts whose path matches.{AGAIN}", default=(), metavar="GLOB"
    )
    exclude: tuple[str, ...] = asked(
        f"Leave out artifacts whose path matches.{AGAIN}", default=(), metavar="GLOB"
    )
    alone: bool = False
    part: SelectionPart | None = None
    oldest_first: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "versions", _which_versions(self.versions))
        since_ms, until_ms = self.since_ms, self.until_ms
        if since_ms is not None and until_ms is not None and since_ms > until_ms:
            raise UsageError("--since is later than --until", "exchange the two")
        if self.versions and not self.models:
            raise UsageError("--versions is of models, and none is named", "add -m NAME, or -m '*'")

    def to_json(self) -> dict[str, Any]:
        """Return what was asked for as JSON values, without what was left at its default."""
        default = asdict(Selection())
        asked = {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
            if value != default[key]
        }
        return asked if self.part is None else asked | {"part": self.part.to_json()}

    @classmethod
    def of_json(cls, document: Mapping[str, Any]) -> Selection:
        """Return what :meth:`to_json` gave.

        Raises:
            UsageError: There is no such option.
        """
        read: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in document.items()
        }
        if (part := read.get("part")) is not None:
            read["part"] = SelectionPart.of_json(part)
        try:
            return cls(**read)
        except TypeError as error:
            raise UsageError(f"the selection is not as this version has it: {error}") from error

    @property
    def names_objects(self) -> bool:
        """True when objects are named, whatever part of it is taken now."""
        return bool(self.experiments or self.runs or self.models or self.datasets)

    @property
    def is_narrow(self) -> bool:
        """True when what belongs to no experiment stays behind but for what is named."""
        in_part = self.part is None or self.part.beside_experiments
        return self.names_objects or not in_part

    @property
    def takes_all_runs(self) -> bool:
        """True when no run is left out, whatever is in it."""
        return self.part is None and self.means_all_runs

    @property
    def means_all_runs(self) -> bool:
        """True when no run is left out by all parts together."""
        return not self.names_objects and self.deleted and not self.is_sifted

    @property
    def is_sifted(self) -> bool:
        """True when what a run says of itself decides on it."""
        return bool(self.filter) or self.since_ms is not None or self.until_ms is not None

    @property
    def takes_beside_runs(self) -> bool:
        """True when what belongs to experiments beside their runs is in this part."""
        return self.part is None or self.part.beside_runs

    @property
    def takes_all_artifacts(self) -> bool:
        """True when no artifact is left out."""
        return self.artifacts and not self.include and not self.exclude

    def takes_experiment(self, experiment_id: str, name: str, lifecycle_stage: str) -> bool:
        """Whether an experiment is taken with all its runs that match."""
        if self.part is not None and experiment_id not in self.part.experiments:
            return False
        return self.means_experiment(experiment_id, name, lifecycle_stage)

    def means_experiment(self, experiment_id: str, name: str, lifecycle_stage: str) -> bool:
        """Whether an experiment is taken so in any part."""
        if lifecycle_stage == "deleted" and not self.deleted:
            return False
        if not self.names_objects:
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
        """Whether a registered model is taken, with all its versions or some."""
        if self.part is not None and not self.part.beside_experiments:
            return False
        if self.models:
            bases = (asked[0] for asked in map(version_asked, self.models) if asked)
            return matches((*self.models, *bases), (name,))
        return not self.is_narrow

    def versions_asked(
        self,
        name: str,
        numbers: Collection[int],
        aliases: Mapping[str, int],
        stages: Callable[[], Mapping[int, str]] = dict,
    ) -> dict[str, set[int]] | None:
        """Return which versions of a registered model are taken, by what asks for them.

        Args:
            name: Of the model.
            numbers: Its versions.
            aliases: Version by alias.
            stages: Tells the stage of versions; asked only where that matters.

        Returns:
            None where all are taken.
        """
        found: dict[str, set[int]] = {}
        if not self.models or matches(self.models, (name,)):
            if not self.versions:
                return None
            taken: set[int] = set()
            for which in self.versions:
                taken |= _meant(which, numbers, aliases, stages)
            whole = [pattern for pattern in self.models if matches((pattern,), (name,))]
            found = dict.fromkeys(whole, taken) if taken else {}
        for pattern in self.models:
            asked = version_asked(pattern)
            if asked is None or not matches(asked[:1], (name,)):
                continue
            which = asked[1]
            if which == _LATEST:
                number = max(numbers, default=0)
            else:
                number = int(which) if which.isdecimal() else aliases.get(which[1:], 0)
            if number in numbers:
                found[pattern] = {number}
        return found

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
