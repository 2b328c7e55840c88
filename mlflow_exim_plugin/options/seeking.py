"""What is looked for in catalogues and archives."""

from __future__ import annotations

import functools
import operator
import re
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import UsageError
from mlflow_exim_plugin.kinds import Kind
from mlflow_exim_plugin.options.declared import AGAIN, asked, for_programs
from mlflow_exim_plugin.options.selection import parse_time_ms

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["Indexing", "MetricRange", "Seeking", "key_and_text"]

_ALL_OF = " Given several times, all must hold."
_METRIC = re.compile(r"(.+?)\s*(>=|<=|==|=|>|<)\s*([^<>=]+)", re.DOTALL)
_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "=": operator.eq,
}
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class MetricRange:
    """Which last values of a metric are meant.

    Attributes:
        key: The metric.
        sign: ``>``, ``>=``, ``<``, ``<=`` or ``=``; empty where any value is meant.
        bound: What values are compared with.
    """

    key: str
    sign: str = ""
    bound: float = 0.0

    @classmethod
    def read(cls, text: str) -> MetricRange:
        """Read ``acc>0.9``, or ``acc`` for any value.

        Raises:
            UsageError: It is neither.
        """
        found = _METRIC.fullmatch(text)
        if found is None:
            if not text or text[0] in "<>=" or text[-1] in "<>=":
                raise UsageError(f"--metric {text!r} is no range", "write 'acc>0.9' or acc")
            return cls(text)
        try:
            bound = float(found[3])
        except ValueError:
            raise UsageError(
                f"--metric {text!r}: {found[3]!r} is no number", "write 'acc>0.9' or acc"
            ) from None
        return cls(found[1], found[2].replace("==", "="), bound)

    def holds(self, smallest: float, largest: float) -> bool:
        """Whether a value from a range may be meant."""
        match self.sign:
            case ">" | ">=":
                return _OPERATORS[self.sign](largest, self.bound)
            case "<" | "<=":
                return _OPERATORS[self.sign](smallest, self.bound)
            case "=" if self.bound == self.bound:
                return smallest <= self.bound <= largest
            case _:
                return True


def key_and_text(option: str, text: str) -> tuple[str, str | None]:
    """Read ``KEY=VALUE``, or ``KEY`` for any value.

    Raises:
        UsageError: It has no key.
    """
    key, equals, value = text.partition("=")
    if not key:
        raise UsageError(f"{option} {text!r} has no key", f"write {option} team=risk")
    return key, value if equals else None


def _digests(typed: Iterable[str]) -> tuple[str, ...]:
    found = tuple(text.lower().removeprefix("sha256:") for text in typed)
    for text in found:
        if not _SHA256.fullmatch(text):
            raise UsageError(f"{text!r} is no SHA-256", "give 64 hex digits, as sha256sum does")
    return found


def _kinds(typed: Iterable[str]) -> tuple[str, ...]:
    found = tuple(text.replace("-", "_").replace(" ", "_") for text in typed)
    known = {str(kind) for kind in Kind}
    for text in found:
        if text not in known:
            raise UsageError(f"{text!r} is no kind", f"kinds are {', '.join(sorted(known))}")
    return found


@dataclass(frozen=True)
class Indexing:
    """How a catalogue is made.

    Attributes:
        progress: Called with what was read so far, after each archive.
    """

    rebuild: bool = asked(
        "Read every archive anew, and make one part of all, whatever the catalogue has.",
        default=False,
    )
    jobs: int = asked("How many archives are read at once.", default=4, least=1)
    progress: Callable[[Any], None] | None = for_programs(None)

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise UsageError(f"jobs is at least 1, not {self.jobs}")


@dataclass(frozen=True)
class Seeking:
    """What is looked for; all that is said must hold of an object.

    Attributes:
        limit: No more objects than these, the newest.
    """

    runs: tuple[str, ...] = asked(
        f"Run to find, by the id that it has or had, its beginning or a glob.{AGAIN}",
        default=(),
        flag="-r/--run-id",
        metavar="ID",
    )
    names: tuple[str, ...] = asked(
        f"Name of an object, or a glob.{AGAIN}", default=(), flag="--name", metavar="GLOB"
    )
    experiments: tuple[str, ...] = asked(
        f"Experiment that it is in, by name, id or glob.{AGAIN}",
        default=(),
        flag="-e/--experiment",
        metavar="NAME",
    )
    tags: tuple[str, ...] = asked(
        f"Tag that it has, KEY alone or with a value, which may be a glob.{_ALL_OF}",
        default=(),
        flag="--tag",
        metavar="KEY=GLOB",
    )
    params: tuple[str, ...] = asked(
        f"Param that it has, in the same way.{_ALL_OF}",
        default=(),
        flag="--param",
        metavar="KEY=GLOB",
    )
    metrics: tuple[str, ...] = asked(
        f"Metric that it has, KEY alone or with >, >=, <, <= or = and what its last value is "
        f"compared with, such as 'acc>0.9'.{_ALL_OF}",
        default=(),
        flag="--metric",
        metavar="RANGE",
    )
    models: tuple[str, ...] = asked(
        "Registered model or prompt, by name or glob: it, its versions, and the runs and logged "
        f"models that these were made of, where the same archive has them.{AGAIN}",
        default=(),
        flag="-m/--model",
        metavar="NAME",
    )
    users: tuple[str, ...] = asked(
        f"User who made it, or a glob.{AGAIN}", default=(), flag="--user", metavar="NAME"
    )
    datasets: tuple[str, ...] = asked(
        f"Digest of a dataset that a run took, or of an evaluation dataset.{AGAIN}",
        default=(),
        flag="--dataset",
        metavar="DIGEST",
    )
    sha256: tuple[str, ...] = asked(
        f"SHA-256 of a file that belongs to it.{AGAIN}",
        default=(),
        metavar="HEX",
        read=_digests,
    )
    kinds: tuple[str, ...] = asked(
        f"Kind of object, such as run or model_version.{AGAIN}",
        default=(),
        flag="--kind",
        metavar="KIND",
        read=_kinds,
    )
    since_ms: int | None = asked(
        "Only what began at this time (UTC) or later, such as 2026-01-31, yesterday or 7d.",
        default=None,
        flag="--since",
        metavar="TIME",
        read=parse_time_ms,
    )
    until_ms: int | None = asked(
        "Only what began at this time (UTC) or earlier; a date means its end.",
        default=None,
        flag="--until",
        metavar="TIME",
        read=functools.partial(parse_time_ms, end=True),
    )
    all_states: bool = asked(
        "Show every archive that has it, also where a later one of the same place has it in a "
        "later state.",
        default=False,
        flag="--all",
    )
    limit: int | None = asked(
        "Objects to show, the newest; all of them are counted.", default=None, least=1, typed=100
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "sha256", _digests(self.sha256))
        object.__setattr__(self, "kinds", _kinds(self.kinds))
        for text in self.metrics:
            MetricRange.read(text)
        for option, texts in (("--tag", self.tags), ("--param", self.params)):
            for text in texts:
                key_and_text(option, text)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is said that an object must fulfil."""
        about = (of.name for of in fields(self) if of.name not in {"all_states", "limit"})
        return not any(getattr(self, name) not in ((), None) for name in about)
