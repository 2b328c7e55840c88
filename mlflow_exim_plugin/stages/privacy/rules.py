"""What is to be taken out: RULES.yaml, read and checked before anything else happens."""

from __future__ import annotations

import difflib
import functools
import hashlib
import hmac
import re
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mlflow_exim_plugin.errors import NotFoundError, UsageError
from mlflow_exim_plugin.kinds import KINDS, Kind
from mlflow_exim_plugin.kinds.fields import compiled, first_of, written
from mlflow_exim_plugin.stages.privacy.detectors import DETECTORS, is_secret_name, span_of
from mlflow_exim_plugin.stages.privacy.roles import role

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mlflow_exim_plugin.stages.privacy.detectors import Finder, Place

__all__ = [
    "OF_SYSTEM",
    "READY",
    "SYSTEM",
    "RedactionRule",
    "RuleFile",
    "hashed",
    "is_known",
    "load_rules",
    "load_salt",
    "ready_rules",
]

SYSTEM = "system"
"""What stands in rules for what an archive says of where, when and by whom it was packed."""
OF_SYSTEM = ("user", "mlflow_tracking_uri", "platform", "selection", "taken_from")
_FILES = ("artifacts", "attachments")
_ACTIONS = ("drop", "hash", "replace")
_KEYS = ("field", "action", "match", "find", "except", "with")
_REPLACEMENT = "redacted"
_HASH_DIGITS = 32
_LEAST_SALT_BYTES = 16
READY = ("users", "trace-content", "places", "secrets")
"""Names of the ready rules."""


@dataclass(frozen=True)
class RedactionRule:
    """One rule.

    Attributes:
        fields: Paths of the fields, as the user wrote them.
        action: ``drop``, ``hash`` or ``replace``.
        finders: Find what is meant in a text; without any that is the whole field.
        excepted: Paths of fields that stay.
        replacement: What stands for what is replaced.
        reads_names: Whether what a name says to be secret is found too.
        reads_files: Whether files are meant.
    """

    fields: tuple[str, ...]
    action: str
    finders: tuple[Finder, ...] = ()
    excepted: tuple[str, ...] = ()
    replacement: str = _REPLACEMENT
    reads_names: bool = False
    reads_files: bool = False
    _paths: re.Pattern[str] = field(init=False, repr=False)
    _excepted: re.Pattern[str] | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_paths", compiled(map(_expression, self.fields)))
        excepted = compiled(map(_expression, self.excepted)) if self.excepted else None
        object.__setattr__(self, "_excepted", excepted)

    def reaches(self, path: str) -> bool:
        """Whether a field, or one that it lies below, is meant."""
        if not self._paths.fullmatch(path):
            return False
        return self._excepted is None or not self._excepted.fullmatch(path)

    def places(self, text: str, key: str = "") -> list[Place]:
        """Return where what is meant stands in a text, in order, nothing twice.

        Args:
            text: Any text.
            key: What the text is the value of.
        """
        if self.reads_names and key and len(text) >= 4 and is_secret_name(key):
            return [(0, len(text))]
        joined: list[Place] = []
        found = (place for finder in self.finders for place in finder(text))
        for begin, end in sorted(place for place in found if place[0] < place[1]):
            if joined and begin <= joined[-1][1]:
                joined[-1] = joined[-1][0], max(end, joined[-1][1])
            else:
                joined.append((begin, end))
        return joined


@dataclass(frozen=True)
class RuleFile:
    """The rules of one file.

    Attributes:
        name: Of ready rules; empty for those of a user.
        sha256: Digest of the file, hex.
        rules: The rules.
    """

    name: str
    sha256: str
    rules: tuple[RedactionRule, ...]


def load_rules(asked: Iterable[str]) -> tuple[RuleFile, ...]:
    """Read rules.

    Args:
        asked: Names of ready rules, and paths of files.

    Raises:
        NotFoundError: There is no such file.
        UsageError: A rule says what cannot be.
    """
    return tuple(map(_load, asked))


def ready_rules(name: str) -> bytes:
    """Return the file of ready rules."""
    return resources.files(__package__).joinpath(f"ready/{name}.yaml").read_bytes()


def load_salt(given: str | None, path: str | None) -> bytes | None:
    """Return the salt of hashes, None where none is given.

    Args:
        given: The salt itself.
        path: A file with it; it wins.

    Raises:
        NotFoundError: There is no such file.
        UsageError: It is so short that it can be guessed.
    """
    if path is not None:
        salt = _read(path)
    elif given is not None:
        salt = given.encode()
    else:
        return None
    salt = salt.rstrip(b"\r\n")
    if len(salt) < _LEAST_SALT_BYTES:
        raise UsageError(
            f"a salt has at least {_LEAST_SALT_BYTES} bytes: what is hashed with a shorter one can "
            "be guessed",
            "make one with: openssl rand -hex 32",
        )
    return salt


def hashed(text: str, salt: bytes) -> str:
    """Return what stands for a text, the same for the same text and salt."""
    return f"hmac-{hmac.new(salt, text.encode(), hashlib.sha256).hexdigest()[:_HASH_DIGITS]}"


def _load(asked: str) -> RuleFile:
    is_ready = asked in READY
    data = ready_rules(asked) if is_ready else _read(asked)
    try:
        document = yaml.safe_load(data)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        what = " ".join(str(error).split())
        raise UsageError(f"{asked} is no YAML: {what}") from None
    listed = document.get("rules") if isinstance(document, dict) else None
    if not isinstance(listed, list) or not listed or set(document) != {"rules"}:
        raise UsageError(
            f"{asked} is no list of rules", "write `rules:` and below it `- field: …, action: …`"
        )
    rules = tuple(_rule(entry, f"{asked}: rule {n}") for n, entry in enumerate(listed, 1))
    return RuleFile(asked if is_ready else "", hashlib.sha256(data).hexdigest(), rules)


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        hint = _near(path, READY) or f"ready rules are {', '.join(READY)}"
        raise NotFoundError(f"there is no file {path}", hint) from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None


def _rule(entry: Any, where: str) -> RedactionRule:
    if not isinstance(entry, dict):
        raise UsageError(f"{where} is no rule", "write `- field: …` and `action: …`")
    for key in entry:
        _require(str(key), _KEYS, f"{where} has a", "key")
    if "action" not in entry:
        raise UsageError(f"{where} has no action", f"there are {', '.join(_ACTIONS)}")
    action = entry["action"]
    _require(str(action), _ACTIONS, f"{where} has an", "action")
    fields = _texts(entry, "field", where)
    if not fields:
        raise UsageError(f"{where} has no field", "write a field such as run.data.params.api_key")
    names, patterns = _texts(entry, "find", where), _texts(entry, "match", where)
    for name in names:
        _require(name, tuple(DETECTORS), f"{where} finds with a", "detector")
    finders = [DETECTORS[name] for name in names] + [_finder(p, where) for p in patterns]
    rule = RedactionRule(
        fields=fields,
        action=str(action),
        finders=tuple(finders),
        excepted=_texts(entry, "except", where),
        replacement=str(entry.get("with", _REPLACEMENT)),
        reads_names="password" in names,
        reads_files=any(_is_of_files(path) for path in fields),
    )
    if "with" in entry and rule.action != "replace":
        raise UsageError(f"{where} has a `with` and does not replace", "leave `with` out")
    for path in (*fields, *rule.excepted):
        _check_path(path, where)
    for path in fields:
        _check_action(path, rule, where)
    return rule


def _texts(entry: dict[str, Any], key: str, where: str) -> tuple[str, ...]:
    value = entry.get(key, [])
    listed = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) and text for text in listed):
        raise UsageError(f"{where}: {key} is a text or a list of texts", "put it in quotes")
    return tuple(listed)


def _finder(pattern: str, where: str) -> Finder:
    try:
        expression = re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise UsageError(f"{where}: {pattern!r} is no regular expression: {error}") from None
    return lambda text: (span_of(found) for found in expression.finditer(text))


def _expression(path: str) -> str:
    return written(path.replace("[]", "[*]"))


def _is_of_files(path: str) -> bool:
    return any(re.search(rf"(?:^|[.*]){word}(?:$|[.*\[])", path) for word in _FILES)


def _require(given: str, known: tuple[str, ...], before: str, what: str) -> None:
    if given not in known:
        hint = _near(given, known) or f"there are {', '.join(known)}"
        raise UsageError(f"{before} {what} {given!r} that there is not", hint)


def _near(given: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(given, list(known), n=3)
    return f"did you mean {' or '.join(near)}?" if near else ""


@functools.cache
def _known_paths() -> tuple[str, ...]:
    """Return the paths that rules may name, as far as they are described."""
    found = [f"{SYSTEM}.{name}" for name in OF_SYSTEM]
    for kind, of in KINDS.items():
        columns = of.rows.columns.values() if of.rows else ()
        described = {
            *of.secrets.split(),
            *of.names.split(),
            *of.refers,
            *of.lists,
            *(path for paths in of.rest.values() for path in paths.split()),
            *(path for path in columns if isinstance(path, str) and path),
        }
        files = "attachments" if kind is Kind.TRACE else "artifacts"
        found += [f"{kind}.{path.replace('[]', '[*]')}" for path in sorted(described)]
        found.append(f"{kind}.{files}")
    return tuple(found)


def _check_path(path: str, where: str) -> None:
    kinds = (*(str(kind) for kind in KINDS), SYSTEM)
    first = first_of(path)
    if "*" not in first and "?" not in first:
        _require(first, kinds, f"{where} names a", "kind")
        if path == first:
            raise UsageError(
                f"{where}: {path} is a kind and no field",
                "to leave whole objects out, select others: -e, -r, -m, --no-traces",
            )
    if not is_known(path):
        raise UsageError(
            f"{where}: nothing that could be taken out lies at {path}",
            _near(path, _known_paths()) or "see the fields with `mlflow exim show` or `diff`",
        )


@functools.lru_cache(maxsize=1 << 12)
def is_known(path: str) -> bool:
    """Whether a path may lead to something that can be taken out, as far as that is described."""
    if path.strip("*") in ("", "."):
        return True
    described = _known_paths()
    at_or_above = compiled([_expression(path)])
    steps = re.split(r"(?=[.\[])", path)
    owners = [re.compile(_expression("".join(steps[:n]))) for n in range(2, len(steps))]
    return any(
        at_or_above.fullmatch(known) or any(owner.fullmatch(known) for owner in owners)
        for known in described
    )


def _check_action(path: str, rule: RedactionRule, where: str) -> None:
    if not rule.finders and path.strip("*") in ("", "."):
        raise UsageError(f"{where} means every field", "add a `match` or a `find`, or name a field")
    if _is_of_files(path) and rule.action != "drop":
        raise UsageError(f"{where}: files can only be dropped", "write action: drop")
    if path.startswith("run.data.metrics") and rule.action != "drop":
        raise UsageError(f"{where}: metrics can only be dropped", "write action: drop")
    is_a = _kept_paths().get(path.replace("[*]", "[]"))
    if is_a == "id":
        raise UsageError(f"{where}: {path} is an id", "ids stay as they are")
    if is_a == "name":
        raise UsageError(
            f"{where}: {path} is a name that others refer to it by",
            "a rule with field: '*' and a match changes it wherever it stands",
        )


@functools.cache
def _kept_paths() -> dict[str, str]:
    """Return what would lead nowhere if it were changed in one place, and what it is."""
    found = {
        f"{kind}.{path}": role(kind, path)
        for kind, of in KINDS.items()
        for path in {*of.names.split(), *of.refers, *filter(None, [of.id_field])}
    }
    return {path: is_a for path, is_a in found.items() if is_a in ("id", "name")}
