"""A document without what rules take out of it; what others refer to stays as it is."""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.kinds import KINDS
from mlflow_exim_plugin.kinds.description import KEY, Json
from mlflow_exim_plugin.stages.privacy.roles import TAGS, role

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlflow_exim_plugin.kinds import Kind
    from mlflow_exim_plugin.stages.privacy.rules import RedactionRule

__all__ = ["GONE", "FieldWalk", "Texts"]

GONE: Any = object()
"""Stands for a field that is dropped."""

_OPENS = frozenset('{["')


class FieldWalk:
    """Takes out of the documents of one kind what rules mean.

    Args:
        kind: The kind.
        rules: The rules, each with a number.
        act: Gives what stands for a text that a rule hashes or replaces.
        count: Told of each field, by the number of its rule and its path.
        keep: Told likewise of each id that stays with what the rule looks for in it.
    """

    def __init__(
        self,
        kind: Kind,
        rules: list[tuple[int, RedactionRule]],
        act: Callable[[RedactionRule, str], str],
        count: Callable[[int, str], None],
        keep: Callable[[int, str], None],
    ) -> None:
        self._kind = kind
        self._rules = rules
        self._lists = KINDS[kind].lists
        self._refers = KINDS[kind].refers
        self._act = act
        self._count = count
        self._keep = keep
        self._reaching = functools.lru_cache(maxsize=1 << 14)(self._find_reaching)

    def document(self, document: dict[str, Any]) -> dict[str, Any]:
        """Return a document as it goes on; the same where nothing is taken out of it."""
        found: dict[str, Any] = self._fields(document, "", str(self._kind))
        return found

    def dropped_by(self, path: str, key: str) -> int | None:
        """Return the rule that drops what has a key: for its path, or for what the key says.

        Args:
            path: Its path.
            key: The key.
        """
        for number, rule in self._reaching(path):
            if (rule.action == "drop" and not rule.finders) or rule.places(key):
                return number
        return None

    def _find_reaching(self, path: str) -> list[tuple[int, RedactionRule]]:
        return [(number, rule) for number, rule in self._rules if rule.reaches(path)]

    def _value(self, value: Any, place: str, path: str, key: str = "") -> Any:
        reaching = self._reaching(path)
        if not isinstance(value, dict | list) and (
            value is None or value is True or value is False
        ):
            return self._dropped_scalar(value, place, path, reaching)
        if isinstance(value, dict | list):
            for number, rule in reaching:
                if rule.action == "drop" and not rule.finders and value:
                    if rule.excepted or self._leads_to_ids(place):
                        break
                    self._count(number, path)
                    return type(value)()
            return self._inside(value, place, path)
        return self._scalar(value, place, path, key, reaching)

    def _inside(self, value: Any, place: str, path: str) -> Any:
        if isinstance(value, dict):
            return self._fields(value, place, path)
        return self._elements(value, place, path)

    def _dropped_scalar(
        self, value: Any, place: str, path: str, reaching: list[tuple[int, RedactionRule]]
    ) -> Any:
        for number, rule in reaching:
            if rule.action == "drop" and not rule.finders and role(self._kind, place) != "id":
                self._count(number, path)
                return GONE
        return value

    def _leads_to_ids(self, place: str) -> bool:
        return place in TAGS or any(path.startswith(f"{place}.") for path in self._refers)

    def _fields(self, value: dict[str, Any], place: str, path: str) -> dict[str, Any]:
        prefix = f"{place}." if place else ""
        changed = None
        prunes = any(r.action == "drop" and not r.finders for _, r in self._reaching(path))
        for key, inner in value.items():
            below = f"{path}.{key}"
            if place and self._key_says(key, prefix + key, below):
                new = GONE
            else:
                new = self._value(inner, prefix + key, below, key)
                if prunes and inner and new in ({}, []):
                    new = GONE
            if new is not inner:
                changed = dict(value) if changed is None else changed
                if new is GONE:
                    del changed[key]
                else:
                    changed[key] = new
        return value if changed is None else changed

    def _elements(self, value: list[Any], place: str, path: str) -> list[Any]:
        names = self._lists.get(place)
        found, is_changed = [], False
        for number, element in enumerate(value):
            if names == KEY and isinstance(element, dict) and isinstance(element.get("key"), str):
                new = self._entry(element, place, path)
            else:
                name = str(number)
                if names and isinstance(element, dict):
                    name = ", ".join(str(_at(element, of)) for of in names)
                new = self._value(element, f"{place}[]", f"{path}[{name}]")
            is_changed |= new is not element
            if new is not GONE:
                found.append(new)
        return found if is_changed else value

    def _entry(self, entry: dict[str, Any], place: str, path: str) -> Any:
        """Return an entry of a list of keys and values, of metrics too."""
        key = entry["key"]
        if entry.keys() > {"key", "value"}:
            number = self.dropped_by(f"{path}[{key}]", key)
            if number is None:
                return entry
            self._count(number, f"{path}[{key}]")
            return GONE
        below = f"{path}.{key}"
        if self._key_says(key, f"{place}.{key}", below):
            return GONE
        old = entry.get("value", "")
        new = self._value(old, f"{place}.{key}", below, key)
        if new is GONE or new is old:
            return entry if new is old else GONE
        return entry | {"value": new}

    def _key_says(self, key: str, place: str, path: str) -> bool:
        """Whether a key itself has what is to be taken out: then it goes with its value."""
        for number, rule in self._reaching(path):
            if rule.finders and role(self._kind, place) != "id" and rule.places(key):
                self._count(number, path)
                return True
        return False

    def _scalar(
        self,
        value: Any,
        place: str,
        path: str,
        key: str,
        reaching: list[tuple[int, RedactionRule]],
    ) -> Any:
        is_a = role(self._kind, place)
        if is_a == "id" and isinstance(value, str):
            for number, rule in reaching:
                if rule.places(value):
                    self._keep(number, path)
        if is_a == "id" or (not isinstance(value, str) and is_a != "json"):
            return self._dropped_scalar(value, place, path, reaching)
        text = value if isinstance(value, str) else str(value)
        is_needed = is_a in ("name", "root") or place.rpartition(".")[2] == "name"
        for number, rule in reaching:
            if not rule.finders:
                if is_a in ("name", "root") or (not text and rule.action != "drop"):
                    continue
                self._count(number, path)
                if rule.action == "drop" and not is_needed:
                    return GONE
                return self._act(rule, text)
            refers = self._refers.get(place)
            kept = refers.field if isinstance(refers, Json) else ""
            new = Texts(rule, self._act, kept).of(text, key)
            if new != text:
                self._count(number, path)
                if rule.action == "drop" and not is_needed:
                    return GONE
                text = new
        return value if not isinstance(value, str) and text == str(value) else text


class Texts:
    """Takes out of texts what one rule finds, also where they are JSON.

    Args:
        rule: The rule.
        act: Gives what stands for what it finds.
        kept: Field of JSON objects whose value is an id.
    """

    def __init__(
        self, rule: RedactionRule, act: Callable[[RedactionRule, str], str], kept: str = ""
    ) -> None:
        self._rule = rule
        self._act = act
        self._kept = kept

    def of(self, text: str, key: str = "") -> str:
        """Return a text without what is found.

        Args:
            text: Any text.
            key: What it is the value of.
        """
        if text[:1] in _OPENS:
            try:
                value = json.loads(text)
            except (ValueError, RecursionError):
                value = None
            if isinstance(value, dict | list | str):
                new = self._value(value, key)
                if new != value:
                    return json.dumps(new)
                if self._kept:
                    return text  # what is found across fields may be an id
        return self._plain(text, key)  # JSON too: a key may be there twice

    def _plain(self, text: str, key: str) -> str:
        parts, at = [], 0
        for begin, end in self._rule.places(text, key):
            parts += [text[at:begin], self._act(self._rule, text[begin:end])]
            at = end
        return "".join([*parts, text[at:]]) if at else text

    def _value(self, value: Any, key: str) -> Any:
        if isinstance(value, dict):
            return {
                name: inner if name == self._kept else self._value(inner, name)
                for name, inner in value.items()
                if not self._rule.places(name)
            }
        if isinstance(value, list):
            return [self._value(inner, key) for inner in value]
        if isinstance(value, str):
            return self.of(value, key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            found = self._plain(str(value), "")
            return value if found == str(value) else found
        return value


def _at(element: dict[str, Any], path: str) -> Any:
    value: Any = element
    for name in path.split("."):
        value = value.get(name, "") if isinstance(value, dict) else ""
    return value
