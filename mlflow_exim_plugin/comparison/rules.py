"""What may differ: the rule sets, and the fields that a user leaves out."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.comparison.shapes import ABSENT, ByKey
from mlflow_exim_plugin.errors import UsageError
from mlflow_exim_plugin.kinds import rest_fields
from mlflow_exim_plugin.kinds.fields import compiled, first_of, written
from mlflow_exim_plugin.schema.objects import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["MOVED_RULES", "REST_RULES", "RULE_SETS", "DiffRule", "RuleSet", "rules_table"]

_LARGEST = 1.7976931348623157e308
_PARAM_LENGTH = 6000
_TAG_LENGTH = 8000


@dataclass(frozen=True)
class DiffRule:
    """One difference that a copy over MLflow's REST API cannot avoid.

    Attributes:
        name: What it is called in results.
        fields: Paths of the fields; ``*`` stands for one name, ``[*]`` for one key of a list, and
            ``**`` for whatever comes.
        reason: Why, in one sentence.
        when: Whether two values differ in just this way; None takes any two.
    """

    name: str
    fields: tuple[str, ...]
    reason: str
    when: Callable[[Any, Any], bool] | None = None


def _either(test: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    """Make a test that does not ask which side is the copy."""
    return lambda a, b: test(a, b) or test(b, a)


def _cut_at(length: int) -> Callable[[Any, Any], bool]:
    return _either(
        lambda a, b: (
            isinstance(a, str) and isinstance(b, str) and len(a) > length and b == a[: len(b)]
        )
    )


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _as_stored(value: Any) -> float | None:
    number = _number(value)
    if number is None or math.isnan(number):
        return None
    return math.copysign(_LARGEST, number) if math.isinf(number) else number


def _same_stored(a: Any, b: Any) -> bool:
    return _as_stored(a) is not None and _as_stored(a) == _as_stored(b)


def _one_absent(a: Any, b: Any) -> bool:
    return a is ABSENT or b is ABSENT


def _empty_or_absent(a: Any, b: Any) -> bool:
    return all(value is ABSENT or value in ("", 0, False) for value in (a, b))


def _by_copy(a: Any, b: Any) -> bool:
    return any("/mlflow_exim/" in str(value) for value in (a, b))


def _same_end(a: Any, b: Any) -> bool:
    return all(isinstance(value, str) for value in (a, b)) and (
        a.rstrip("/").rpartition("/")[2] == b.rstrip("/").rpartition("/")[2]
    )


def _rule(
    name: str, reason: str, fields: str = "", when: Callable[[Any, Any], bool] | None = None
) -> DiffRule:
    """Make a rule for some fields and for those that the kinds name for its reason."""
    return DiffRule(name, (*fields.split(), *rest_fields(name)), reason, when)


_TIMES = ("creation_timestamp", "last_updated_timestamp", "created_at", "last_updated_at")
REST_RULES: tuple[DiffRule, ...] = (
    _rule(
        "times",
        "the server sets them when it creates or changes the object",
        " ".join(f"{of}.{time}" for of in ("*", "*.*[*]") for time in _TIMES),
    ),
    _rule("users", "the server sets them to who calls it"),
    _rule("inner ids", "the server makes them; nothing else refers to them by these"),
    _rule("artifact roots", "the target has its own root; the files below it are compared"),
    _rule("places of spans", "a deployment keeps spans where it wants; the spans are compared"),
    _rule("marks of the server", "the server adds them", when=_one_absent),
    _rule("version status", "the server sets it"),
    _rule(
        "untouched default",
        "every server makes the experiment 0 by itself: it may be missing while nobody used it",
        "experiment",
        when=lambda _a, _b: False,
    ),
    _rule(
        "source tags",
        "a copy may tell of one place more where it was than the object it was made from",
        "*.tags run.data.tags logged_model.info.tags",
        when=lambda _a, _b: False,
    ),
    _rule("workspace", "MLflow before 3.10 does not name it", "*.workspace", when=_one_absent),
    _rule(
        "carried files",
        "no run or logged model held the version's files: a run of the unpack does, and the files "
        "are compared",
        "model_version.source",
        when=_by_copy,
    ),
    _rule(
        "infinities and zeros",
        "SQL stores keep infinities as the largest double, negative zeros as zeros, and identical "
        "rows once",
        "run.histories.** run.data.metrics[*].value logged_model.data.metrics[*].value",
        when=_same_stored,
    ),
    _rule(
        "webhooks",
        "one without its secret is disabled",
        "webhook.status",
        when=lambda a, b: "DISABLED" in (a, b),
    ),
    _rule(
        "long params",
        f"servers cut what is longer than {_PARAM_LENGTH} characters",
        "run.data.params.** logged_model.data.params.**",
        when=_cut_at(_PARAM_LENGTH),
    ),
    _rule(
        "long tags",
        f"servers cut what is longer than {_TAG_LENGTH} characters",
        "*.tags.** *.data.tags.** *.info.tags.**",
        when=_cut_at(_TAG_LENGTH),
    ),
    _rule(
        "run name",
        "the server makes up a name for a run without one",
        "run.info.run_name run.data.tags.mlflow.runName",
        when=_either(lambda a, _: a is ABSENT or a == ""),
    ),
    _rule(
        "run start",
        "a run without a start time gets 0 or the present time",
        "run.info.start_time",
        when=_one_absent,
    ),
    _rule(
        "empty is absent",
        "the API does not tell an empty text from none",
        "*.description run.info.user_id *.display_name",
        when=_empty_or_absent,
    ),
)
"""What REST cannot keep. Ids are no part of it: they are compared by what they stand for."""

MOVED_RULES: tuple[DiffRule, ...] = (
    *(
        rule
        for rule in REST_RULES
        if rule.name
        in {
            *("artifact roots", "places of spans", "untouched default"),
            *("infinities and zeros", "webhooks"),  # no database keeps these
            *("empty is absent", "workspace"),  # and MLflow does not tell these apart
        }
    ),
    _rule(
        "moved sources",
        "the files of a version are where the new root is, and are compared",
        "model_version.source model_version.storage_location",
        when=_same_end,
    ),
    _rule(
        "secrets",
        "they are not packed",
        "model_definition.secret_*",
        when=_one_absent,
    ),
)
"""What a restore that keeps ids and times has otherwise: places, and what no database keeps."""

RULE_SETS: dict[str, tuple[DiffRule, ...]] = {
    "rest": REST_RULES,
    "moved": MOVED_RULES,
    "exact": (),
}
AUTO = "auto"


class RuleSet:
    """Says of each difference whether it counts, and counts those that do not.

    Args:
        name: ``rest``, ``moved`` or ``exact``; ``auto`` is left open until both sides are known.
        ignore: Paths to leave out, with globs; a path stands for all that lies below it.

    Attributes:
        name: The rule set.
        rules: Its rules.
        is_open: Whether the sides are still to decide which it is.
        ignore: What the user leaves out.
        applied: How many differences each rule took away, by its name.
        ignored: The same by pattern of the user.

    Raises:
        UsageError: There is no such rule set, or a pattern begins with no kind.
    """

    def __init__(self, name: str = AUTO, ignore: Sequence[str] = ()) -> None:
        if name not in {*RULE_SETS, AUTO}:
            raise UsageError(f"the rules are {AUTO}, rest, moved or exact, not {name!r}")
        self.is_open = name == AUTO
        self._take("rest" if self.is_open else name)
        self.ignore = tuple(ignore)
        self.applied: Counter[str] = Counter()
        self.ignored: Counter[str] = Counter()
        self._ignored = [(glob, compiled([written(_checked(glob))])) for glob in self.ignore]

    def _take(self, name: str) -> None:
        self.name = name
        self.rules = RULE_SETS[name]
        self._rules = [(rule, compiled(map(_of_rule, rule.fields))) for rule in self.rules]

    def settle(self, *, ids_kept: bool) -> None:
        """Decide what was left open.

        Args:
            ids_kept: Whether what is on both sides has the same ids there.
        """
        self.is_open = False
        self._take("moved" if ids_kept else "rest")

    @property
    def maps_ids(self) -> bool:
        """Whether an id equals the id that its copy has."""
        return self.name == "rest"

    def counts(self, path: str, a: Any, b: Any, *, silent: bool = False) -> bool:
        """Whether a difference counts.

        Args:
            path: Where it is.
            a: Value at A, or ``ABSENT``.
            b: Value at B, or ``ABSENT``.
            silent: Only ask, without counting.
        """
        found = self._taken_away_by(path, a, b)
        if found is not None and not silent:
            counter, key = found
            counter[key] += 1
        return found is None

    def note(self, rule_name: str) -> None:
        """Count a use of a rule by a part of the comparison that decides on its own."""
        self.applied[rule_name] += 1

    def has(self, rule_name: str) -> bool:
        """Whether a rule is in force."""
        return any(rule.name == rule_name for rule in self.rules)

    def _taken_away_by(self, path: str, a: Any, b: Any) -> tuple[Counter[str], str] | None:
        for pattern, expression in self._ignored:
            if expression.fullmatch(path):
                return self.ignored, pattern
        for rule, expression in self._rules:
            if expression.fullmatch(path) and (rule.when is None or rule.when(a, b)):
                return self.applied, rule.name
        for side, other in ((a, b), (b, a)):
            # An object that is missing as a whole counts unless each of its fields does not.
            if other is ABSENT and isinstance(side, dict) and side:
                found = None
                shape = "{}[{}]" if isinstance(side, ByKey) else "{}.{}"
                for key, value in side.items():
                    found = self._taken_away_by(shape.format(path, key), value, ABSENT)
                    if found is None:
                        return None
                return found
        return None


def rules_table(rules: Sequence[DiffRule] = REST_RULES) -> str:
    """Return rules as a table in Markdown."""
    lines = ["| rule | fields | reason |", "|---|---|---|"]
    lines += [
        f"| {rule.name} | {', '.join(f'`{name}`' for name in rule.fields)} | {rule.reason} |"
        for rule in rules
    ]
    return "\n".join(lines)


def _checked(pattern: str) -> str:
    first = first_of(pattern)
    if "*" not in first and "?" not in first and first not in {kind.value for kind in Kind}:
        raise UsageError(
            f"{pattern!r} begins with no kind of object",
            "write for example run.data.tags.mlflow.user or *.tags.mlflow.user",
        )
    return pattern


def _of_rule(glob: str) -> str:
    """Translate the field of a rule, which must not reach into names that users give."""
    return (
        re.escape(glob)
        .replace(r"\*\*", ".*")
        .replace(r"\[\*\]", r"\[[^\]]*\]")
        .replace(r"\*", r"[^.\[]*")
    )
