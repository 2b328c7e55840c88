"""Take out of the stream what rules mean: fields, parts of texts, metrics and files."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import EximError, UsageError
from mlflow_exim_plugin.kinds import KINDS
from mlflow_exim_plugin.schema.objects import (
    Artifact,
    Entity,
    Failure,
    Kind,
    LoggedModel,
    Loss,
    ModelVersion,
    Run,
    Trace,
    Unpacked,
    closed_after,
)
from mlflow_exim_plugin.stages.privacy.file_texts import texts_of
from mlflow_exim_plugin.stages.privacy.roles import role
from mlflow_exim_plugin.stages.privacy.rules import OF_SYSTEM, SYSTEM, hashed
from mlflow_exim_plugin.stages.privacy.walk import FieldWalk, Texts

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from mlflow_exim_plugin.schema.metric_rows import RunRows
    from mlflow_exim_plugin.schema.objects import StreamItem, StreamObject
    from mlflow_exim_plugin.stages.privacy.rules import RedactionRule, RuleFile

__all__ = ["Redaction"]

_DONE = {"drop": "dropped", "hash": "hashed", "replace": "replaced"}


class Redaction:
    """A stage that takes out of the stream what rules mean, and says how much it was.

    It comes before all others: what they make of an object is made of what is left of it.

    Args:
        files: The rules.
        salt: What hashes are made with, None where none is given.

    Raises:
        UsageError: A rule hashes, and there is no salt.
    """

    def __init__(self, files: Sequence[RuleFile], salt: bytes | None = None) -> None:
        self._files = files
        self._rules = list(enumerate(rule for file in files for rule in file.rules))
        self._salt = salt
        self._lock = threading.Lock()
        self._walks: dict[Kind, FieldWalk] = {}
        self._of_system_changed: set[int] = set()
        self._texts = [Texts(rule, self._act) for _, rule in self._rules if rule.finders]
        self._restart()
        if salt is None and any(rule.action == "hash" for _, rule in self._rules):
            raise UsageError(
                "a rule hashes, and there is no salt",
                "give --salt-file, or the salt itself in MLFLOW_EXIM_SALT",
            )

    def __call__(self, stream: Iterator[StreamItem]) -> Iterator[StreamItem]:
        """Yield the stream without what is taken out of it."""
        self._restart()
        with closed_after(stream):
            for item in stream:
                if isinstance(item, Failure | Loss | Unpacked):
                    yield self._said(item)
                    continue
                self._touched.clear()
                new = self._redacted(item)
                self._objects.update((number, item.kind) for number in self._touched)
                yield new

    def losses(self) -> Iterator[Loss]:
        """Yield what was lost, rule by rule and kind by kind."""
        for (number, kind), count in sorted(self._files_dropped.items()):
            what = f"{count:,} file{'s' * (count != 1)} dropped: {self._name(number)}"
            yield Loss(kind, "*", what)
        for (number, kind), count in sorted(self._fields.items()):
            done = _DONE[self._rules[number][1].action]
            of = f"in {self._objects[number, kind]:,} of them {done}: {self._name(number)}"
            yield Loss(kind, "*", f"{count:,} field{'s' * (count != 1)} {of}")
        for (number, kind), count in sorted(self._ids_kept.items()):
            what = f"{count:,} id{'s' * (count != 1)} stay with what {self._name(number)} looks for"
            yield Loss(kind, "*", what)

    def record(self) -> list[dict[str, Any]]:
        """Return what the archive is told: which rules there were and what each did.

        What a pattern looks for may be a secret itself, and is not told.
        """
        told, first = [], 0
        for file in self._files:
            applied = []
            for number, rule in enumerate(file.rules, first):
                applied.append(
                    {
                        "fields": [self.shown(path) for path in rule.fields],
                        "action": rule.action,
                        "whole": not rule.finders,
                        "fields_changed": _counted(self._fields, number),
                        "files_dropped": _counted(self._files_dropped, number),
                    }
                )
            first += len(file.rules)
            name = {"name": file.name} if file.name else {}
            told.append({**name, "sha256": file.sha256, "rules": applied})
        return told

    def without_effect(self) -> list[str]:
        """Return the rules that met nothing."""
        met = {number for number, _ in (*self._fields, *self._files_dropped)}
        met |= self._of_system_changed
        return [self._name(number) for number, _ in self._rules if number not in met]

    def system(self, told: dict[str, Any]) -> dict[str, Any]:
        """Return what is told of who packed what from where, without what is taken out of it."""
        found: dict[str, Any] = self._of_system(told, SYSTEM)
        return found

    def shown(self, text: str) -> str:
        """Return a text that is about objects without what is looked for in any field."""
        for texts in self._texts:
            text = texts.of(text)
        return text

    def _restart(self) -> None:
        self._fields: Counter[tuple[int, Kind]] = Counter()
        self._objects: Counter[tuple[int, Kind]] = Counter()
        self._files_dropped: Counter[tuple[int, Kind]] = Counter()
        self._ids_kept: Counter[tuple[int, Kind]] = Counter()
        self._touched: set[int] = set()
        self._names: dict[tuple[Any, ...], set[str]] = defaultdict(set)
        self._changed_names: dict[tuple[Any, ...], set[str]] = defaultdict(set)
        self._workspace = ""

    def _name(self, number: int) -> str:
        for file in self._files:
            if number < len(file.rules):
                fields = file.rules[number].fields
                more = f" and {len(fields) - 1} more" if len(fields) > 1 else ""
                of = f" of {file.name}" if file.name else ""
                return f"rule {number + 1}{of} ({self.shown(fields[0])}{more})"
            number -= len(file.rules)
        raise LookupError

    def _act(self, rule: RedactionRule, text: str) -> str:
        if rule.action == "hash" and self._salt is not None:
            return hashed(text, self._salt)
        return rule.replacement

    def _count(self, kind: Kind, number: int, _path: str) -> None:
        self._fields[number, kind] += 1
        self._touched.add(number)

    def _keep(self, kind: Kind, number: int, _path: str) -> None:
        self._ids_kept[number, kind] += 1

    def _walk(self, kind: Kind) -> FieldWalk:
        if kind not in self._walks:
            self._walks[kind] = FieldWalk(
                kind, self._rules, self._act, partial(self._count, kind), partial(self._keep, kind)
            )
        return self._walks[kind]

    def _of_system(self, value: Any, path: str) -> Any:
        if isinstance(value, dict):
            return {key: self._of_system(inner, f"{path}.{key}") for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self._of_system(inner, path) for inner in value]
        if not isinstance(value, str) or not path.removeprefix(f"{SYSTEM}.").startswith(OF_SYSTEM):
            return value
        for number, rule in self._rules:
            if rule.reaches(path):
                new = Texts(rule, self._act).of(value) if rule.finders else self._act(rule, value)
                if new != value:
                    self._of_system_changed.add(number)
                value = new
        return value

    def _said(self, said: Any) -> Any:
        """Return a failure, loss or the like whose texts are about what is taken out."""
        if isinstance(said, Failure):
            return replace(said, id=self.shown(said.id), reason=self.shown(said.reason))
        if isinstance(said, Loss):
            return replace(said, id=self.shown(said.id), what=self.shown(said.what))
        return replace(said, kind=self.shown(said.kind), reason=self.shown(said.reason))

    def _redacted(self, item: StreamObject) -> StreamObject:
        if isinstance(item, Entity) and item.kind is Kind.WORKSPACE:
            self._workspace = item.id
        more: dict[str, Any] = {}
        if isinstance(item, Trace):
            whole = {**item.document, "spans": item.spans or []}
            document = self._walk(item.kind).document(whole)
            spans = document["spans"]
            document = {name: value for name, value in document.items() if name != "spans"}
            more["spans"] = None if item.spans is None else spans
            more["stamp"] = ""  # the mark is of what is left of them
            more["attachments"] = self._files_of(item, item.attachments, "attachments")
        else:
            document = self._walk(item.kind).document(item.document)
        if isinstance(item, Run):
            if document is not item.document:
                more["doubles"] = None
            more["histories"] = self._rows(item.histories)
        if isinstance(item, Run | LoggedModel | ModelVersion | Entity):
            more["artifacts"] = self._files_of(item, item.artifacts, "artifacts")
        issues = tuple(self._said(issue) for issue in item.issues)
        new = replace(item, document=document, digest=None, stored=None, issues=issues, **more)
        return self._with_own_name(item, new)

    def _with_own_name(self, old: StreamObject, new: StreamObject) -> StreamObject:
        """Return an object whose name, if it was changed, is no other's."""
        if isinstance(new, Run | LoggedModel | Trace | ModelVersion):
            return new
        of = KINDS[new.kind]
        name, before = new.document.get(of.name), old.document.get(of.name)
        if not isinstance(name, str):
            return new
        owner = new.experiment_id if isinstance(new, Entity) else ""
        place = self._workspace, new.kind, owner, new.document.get("organization")
        taken, changed = self._names[place], self._changed_names[place]
        if name in (taken if name != before else changed):
            if name == before or role(new.kind, of.name) == "name":
                raise UsageError(
                    f"two objects of kind {new.kind} would be called {name!r}",
                    "hash what is found in names, or replace it by something else",
                )
            numbers = (of.numbered.format(name, n) for n in range(2, len(taken) + 3))
            name = next(free for free in numbers if free not in taken)
            new = replace(new, document={**new.document, of.name: name})
        taken.add(name)
        if name != before:
            changed.add(name)
        return new

    def _rows(self, histories: Iterable[RunRows | Failure]) -> Iterator[RunRows | Failure]:
        """Yield a run's rows without those of metrics that are dropped."""
        walk = self._walk(Kind.RUN)
        for rows in histories:
            if isinstance(rows, Failure):
                yield self._said(rows)
                continue
            dropped = {key: walk.dropped_by(f"run.data.metrics[{key}]", key) for key in rows.keys}
            gone = {key for key, number in dropped.items() if number is not None}
            left = rows.without(gone) if gone else rows
            if left is not None:
                yield left

    def _files_of(
        self, item: StreamObject, files: Iterable[Artifact | Failure], where: str
    ) -> Iterator[Artifact | Failure]:
        """Yield an object's files but those that are dropped."""
        kind = item.kind
        for file in files:
            if isinstance(file, Failure):
                yield self._said(file)
                continue
            path = f"{kind}.{where}.{file.path}"
            try:
                number = self._drops_file(file, path)
            except EximError as error:
                yield Failure(Kind.ARTIFACT, f"{item.id}/{self.shown(file.path)}", error.message)
                continue
            if number is None:
                yield file
            else:
                with self._lock:  # files of several objects are asked for at once
                    self._files_dropped[number, kind] += 1

    def _drops_file(self, file: Artifact, path: str) -> int | None:
        """Return the rule that drops a file: for its path, or what stands in it."""
        for number, rule in self._rules:
            if not rule.reaches(path):
                continue
            if rule.places(file.path):
                return number
            if rule.reads_files and (not rule.finders or _stands_in(rule, file)):
                return number
        return None


def _counted(counts: Counter[tuple[int, Kind]], number: int) -> dict[str, int]:
    return {str(kind): counts[number, kind] for kind in Kind if counts[number, kind]}


def _stands_in(rule: RedactionRule, file: Artifact) -> bool:
    return any(rule.places(text) for text, _ in texts_of(file.open()))
