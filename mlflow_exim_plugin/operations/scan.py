"""``scan``: secrets and personal data in a source, found before they leave it."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import yaml

from mlflow_exim_plugin.errors import EximError, UsageError
from mlflow_exim_plugin.kinds.fields import compiled, written
from mlflow_exim_plugin.operations.ends import open_source
from mlflow_exim_plugin.options import Opening, Reading, Scanning, Selection, flat
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
from mlflow_exim_plugin.schema.report import plain
from mlflow_exim_plugin.stages.privacy.detectors import DETECTORS
from mlflow_exim_plugin.stages.privacy.file_texts import texts_of
from mlflow_exim_plugin.stages.privacy.roles import role
from mlflow_exim_plugin.stages.privacy.rules import RedactionRule, is_known
from mlflow_exim_plugin.stages.privacy.walk import FieldWalk

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mlflow_exim_plugin.schema.objects import StreamObject

__all__ = ["Scan", "ScanFinding", "scan"]

_SHOWN = 4
_OF_FILES_ONLY = ("token", "private-key")
"""What is looked for in files that are no texts: all else is found in weights by chance."""
_MOST_FIELDS = 1000
"""More fields than these in rules that are written become all fields."""


@dataclass(frozen=True)
class ScanFinding:
    """One place where something was found.

    Attributes:
        kind: Kind of the object.
        id: Its id.
        path: Path of the field, as ``diff`` writes it, or of the file.
        detector: What found it.
        shown: The beginning of what was found, and its length.
        count: How often it was found there.
    """

    kind: Kind
    id: str
    path: str
    detector: str
    shown: str
    count: int = 1


@dataclass
class Scan:
    """What was found.

    Attributes:
        location: What was looked through, without secrets.
        findings: The first of them, as many as were asked for.
        counts: How many places, by kind and detector.
        objects: How many objects were looked through, by kind.
        file_bytes: Bytes of files that were looked through.
        failures: What could not be read.
        rules: Rules that take out what was found.
    """

    location: str
    findings: list[ScanFinding] = field(default_factory=list)
    counts: Counter[tuple[Kind, str]] = field(default_factory=Counter)
    objects: Counter[Kind] = field(default_factory=Counter)
    file_bytes: int = 0
    failures: list[Failure] = field(default_factory=list)
    rules: list[dict[str, Any]] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """True when nothing was found, and everything could be read."""
        return not self.counts and not self.failures

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        counts: dict[str, dict[str, int]] = defaultdict(dict)
        for (kind, detector), count in sorted(self.counts.items()):
            counts[str(kind)][detector] = count
        return {
            "clean": self.clean,
            "location": self.location,
            "counts": counts,
            "findings": [asdict(one) | {"kind": str(one.kind)} for one in self.findings],
            "objects": {str(kind): self.objects[kind] for kind in Kind if self.objects[kind]},
            "file_bytes": self.file_bytes,
            "failures": [plain(failure) for failure in self.failures],
            "rules": self.rules,
        }

    def rules_yaml(self) -> str:
        """Return the rules as a file for ``--redact``; nothing of what was found stands in it."""
        text: str = yaml.safe_dump({"rules": self.rules}, sort_keys=False, allow_unicode=True)
        return text


@flat()
def scan(
    location: str | None = None,
    *,
    opening: Opening = Opening(),
    selection: Selection = Selection(),
    reading: Reading = Reading(),
    scanning: Scanning = Scanning(),
) -> Scan:
    """Look for secrets and personal data in parameters, tags, traces, prompts, files and all else.

    Nothing is written, and nothing that is found is shown or kept whole. What has a format of its
    own is found, and what is said to be secret; files are looked through as they are, and not what
    is compressed in them.

    Args:
        location: Tracking URI of a server or store, path or fsspec URL of an archive or export;
            MLflow's own default without it.
        opening: How it is opened; each option is a keyword of its own too, here and below.
        selection: What to look through; everything without it.
        reading: How it is read.
        scanning: What to look for.

    Returns:
        What was found and where, and rules for ``redact`` that take it out.

    Raises:
        UsageError: A pattern is none, or there is no such detector.
        NotFoundError: There is nothing to look through, or a name or id in the selection is not
            there.
        InvalidArchiveError: The archive cannot be opened.
        ServerError: The server cannot be reached, or died.
    """
    looking = _Looking(scanning)
    if location is not None:
        opening = opening.at(location)
    with open_source(location, opening, reading, jobs=scanning.jobs) as source:
        result = Scan(source.name)
        with closed_after(source.stream.stream(selection)) as stream:
            for item in stream:
                if isinstance(item, Failure):
                    result.failures.append(item)
                elif not isinstance(item, Loss | Unpacked):
                    looking.through(item, result)
                    result.objects[item.kind] += 1
                    if scanning.progress is not None:
                        scanning.progress(result)
    result.rules = looking.rules()
    return result


class _Looking:
    """Looks through objects, one after the other."""

    def __init__(self, scanning: Scanning) -> None:
        self._names = scanning.find or tuple(DETECTORS)
        for name in self._names:
            if name not in DETECTORS:
                raise UsageError(f"there is no detector {name!r}", f"there are {[*DETECTORS]}")
        self._limit, self._found = scanning.limit, scanning.found
        self._allowed = [_pattern(allowed) for allowed in scanning.allow]
        self._ignored = compiled(map(written, scanning.ignore)) if scanning.ignore else None
        self._rules = list(enumerate(map(self._rule, self._names)))
        self._walks: dict[Kind, FieldWalk] = {}
        self._texts: list[str] = []
        self._places: list[tuple[int, str, list[str]]] = []
        self._fields: dict[tuple[str, str], set[str]] = defaultdict(set)

    def through(self, item: StreamObject, result: Scan) -> None:
        """Look through an object and its files."""
        document = item.document
        files: Iterable[Artifact | Failure] = ()
        where = "artifacts"
        if isinstance(item, Trace):
            document = {**document, "spans": item.spans or []}
            files, where = item.attachments, "attachments"
        elif isinstance(item, Run | LoggedModel | ModelVersion | Entity):
            files = item.artifacts
        self._walk(item.kind).document(document)
        for number, path, texts in self._places:
            self._say(item, self._names[number], path, texts, result)
        self._places = []
        if isinstance(item, Run):
            result.failures += [part for part in item.histories if isinstance(part, Failure)]
        for file in files:
            if isinstance(file, Failure):
                result.failures.append(file)
                continue
            try:
                self._look_into(item, file, f"{item.kind}.{where}.{file.path}", result)
            except EximError as error:
                result.failures.append(
                    Failure(Kind.ARTIFACT, f"{item.id}/{file.path}", error.message)
                )

    def rules(self) -> list[dict[str, Any]]:
        """Return rules that take out what was found."""
        rules: list[dict[str, Any]] = []
        for (action, detector), fields in sorted(self._fields.items()):
            if len(fields) > _MOST_FIELDS:
                fields = {"*.artifacts.*", "*.attachments.*"} if action == "drop" else {"*"}  # noqa: PLW2901
            listed = ["*"] if "*" in fields else sorted(fields)
            rules.append({"field": listed, "find": detector, "action": action})
        return rules

    def _rule(self, name: str) -> RedactionRule:
        return RedactionRule(("*",), "replace", (DETECTORS[name],), reads_names=name == "password")

    def _walk(self, kind: Kind) -> FieldWalk:
        if kind not in self._walks:
            self._walks[kind] = FieldWalk(
                kind, self._rules, self._act, partial(self._note, kind), partial(self._note, kind)
            )
        return self._walks[kind]

    def _act(self, _rule: RedactionRule, text: str) -> str:
        self._texts.append(text)
        return ""

    def _note(self, _kind: Kind, number: int, path: str) -> None:
        texts, self._texts = self._texts, []
        self._places.append((number, path, texts))

    def _say(
        self, item: StreamObject, detector: str, path: str, texts: list[str], result: Scan
    ) -> None:
        in_key = not texts
        texts = texts or [path[a:b] for a, b in DETECTORS[detector](path)]
        texts = [text for text in texts if not any(of.fullmatch(text) for of in self._allowed)]
        shown_path = self._without(path)
        if not texts or (self._ignored and self._ignored.fullmatch(path)):
            return
        is_file = path.startswith((f"{item.kind}.artifacts.", f"{item.kind}.attachments."))
        if is_file:
            self._fields["drop", detector].add(shown_path)
        else:
            self._fields["replace", detector].add(_field_of(item.kind, shown_path))
        shown = _masked(texts[0]) + (" in its name" if in_key else "")
        said = ScanFinding(
            item.kind, self._without(item.id), shown_path, detector, shown, len(texts)
        )
        result.counts[item.kind, detector] += 1
        if self._limit is None or len(result.findings) < self._limit:
            result.findings.append(said)
            if self._found is not None:
                self._found(said)

    def _without(self, text: str) -> str:
        """Return a path or id in which what would be found is question marks."""
        for name in self._names:
            for begin, end in DETECTORS[name](text):
                text = text[:begin] + "?" * (end - begin) + text[end:]
        return text

    def _look_into(self, item: StreamObject, file: Artifact, path: str, result: Scan) -> None:
        names: Iterable[str] = self._names
        found: dict[str, list[str]] = defaultdict(list)
        counts: Counter[str] = Counter()
        for name in names:
            for begin, end in DETECTORS[name](file.path):
                found[name].append(file.path[begin:end])
        is_first = True
        for text, new in texts_of(file.open()):
            if is_first and "\0" in text[:8192]:
                names = [name for name in names if name in _OF_FILES_ONLY]
            is_first = False
            result.file_bytes += len(text) - new
            for name in names:
                for begin, end in DETECTORS[name](text):
                    if end > new and not any(a.fullmatch(text[begin:end]) for a in self._allowed):
                        counts[name] += 1
                        if len(found[name]) < _MOST_FIELDS:
                            found[name].append(text[begin:end])
        for name, texts in found.items():
            if texts:
                self._say(item, name, path, texts, result)


def _field_of(kind: Kind, path: str) -> str:
    """Return the field of a rule for a path: any element of a list, and all where it must be so."""
    field_path = re.sub(r"\[[^\]]*\]", "[*]", path)
    place = field_path.removeprefix(f"{kind}.").replace("[*]", "[]")
    if role(kind, place) == "name" or not is_known(field_path):
        return "*"
    return field_path


def _masked(text: str) -> str:
    shown = text[: _SHOWN if len(text) >= 3 * _SHOWN else 1]
    return f"{shown}… ({len(text)} characters)"


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise UsageError(f"{text!r} is no regular expression: {error}") from None
