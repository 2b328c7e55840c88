"""What a comparison found."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.comparison.shapes import ABSENT
from mlflow_exim_plugin.schema.report import plain

if TYPE_CHECKING:
    from mlflow_exim_plugin.comparison.rules import RuleSet
    from mlflow_exim_plugin.schema.objects import Failure, Kind, Unpacked

__all__ = ["ABSENT", "Comparison", "Difference", "KindCounts"]


@dataclass(frozen=True)
class Difference:
    """One field, or a whole object, that is not the same on both sides.

    Attributes:
        kind: Kind of the object.
        id: Its id at A, or at B where A does not have it.
        path: Field, beginning with the kind: ``run.data.params.lr``; the kind alone is the object.
        a: Value at A, with A's ids, or ``ABSENT``.
        b: Value at B, with A's ids in the place of B's, or ``ABSENT``.
        id_b: Its id at B where that is another one.
    """

    kind: Kind
    id: str
    path: str
    a: Any
    b: Any
    id_b: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON; a side that has nothing has no field."""
        told: dict[str, Any] = {"kind": self.kind.value, "id": self.id, "path": self.path}
        if self.id_b:
            told["id_b"] = self.id_b
        values = {"a": self.a, "b": self.b}
        return told | {side: value for side, value in values.items() if value is not ABSENT}


@dataclass
class KindCounts:
    """Objects of one kind; ``compared`` = ``equal`` + ``different``.

    What one side has and the other could not read is ``unreadable``, and not missing there.
    """

    compared: int = 0
    equal: int = 0
    different: int = 0
    only_in_a: int = 0
    only_in_b: int = 0
    unreadable: int = 0


@dataclass
class Comparison:
    """Two sides and what is not the same.

    Attributes:
        a: The first side, without secrets.
        b: The second side.
        rules: What was not compared, and how often that mattered.
        counts: Objects by kind.
        differences: The first of them, as many as were asked for.
        total: How many there are.
        unreadable: Side and what could not be read of it.
        not_compared: Side and what it has that no archive carries.
        left_out: Side, and what an unpack has added there for itself.
    """

    a: str
    b: str
    rules: RuleSet
    counts: dict[Kind, KindCounts] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)
    total: int = 0
    unreadable: list[tuple[str, Failure]] = field(default_factory=list)
    not_compared: list[tuple[str, Unpacked]] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        """True when nothing differs and nothing was unreadable."""
        return not self.total and not self.unreadable

    @property
    def verdict(self) -> str:
        """What was found, in a few words."""
        if self.equal:
            return f"Equal under the rules {self.rules.name!r}"
        if self.total:
            return f"Different: {self.total} difference{'' if self.total == 1 else 's'}"
        return "No difference in what could be read"

    def of(self, kind: Kind) -> KindCounts:
        """Return the counts of a kind."""
        return self.counts.setdefault(kind, KindCounts())

    def to_dict(self) -> dict[str, Any]:
        """Return everything as one JSON document."""
        rules = self.rules
        return {
            "ok": self.equal,
            "equal": self.equal,
            "a": self.a,
            "b": self.b,
            "counts": {
                kind.value: asdict(counts)
                for kind, counts in sorted(self.counts.items(), key=lambda entry: entry[0].value)
            },
            "total_differences": self.total,
            "differences": [difference.to_dict() for difference in self.differences],
            "unreadable": [{"side": side, **plain(failure)} for side, failure in self.unreadable],
            "not_compared": [{"side": side, **asdict(seen)} for side, seen in self.not_compared],
            "left_out": [{"side": side, "what": what} for side, what in self.left_out],
            "rules": {
                "name": rules.name,
                "applied": [
                    {
                        "name": rule.name,
                        "fields": list(rule.fields),
                        "reason": rule.reason,
                        "times": rules.applied[rule.name],
                    }
                    for rule in rules.rules
                    if rules.applied[rule.name]
                ],
                "ignored": [
                    {"pattern": pattern, "times": rules.ignored[pattern]}
                    for pattern in rules.ignore
                ],
            },
        }
