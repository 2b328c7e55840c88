"""How REST's documents are put, wherever they come from: numbers, keyed entries, order, schemas.

Lists of keyed entries are sorted: their order means nothing to MLflow, and the same object must
give the same document from every source.
"""

from __future__ import annotations

import math
import re
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.kinds import GIVEN_BY_CALLERS, VERSION_KINDS, Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mlflow_exim_plugin.schema.rules import Limits

__all__ = [
    "CHECKS",
    "SCHEMAS",
    "dataset_identity",
    "json_number",
    "metric_identity",
    "names_too_many",
    "present",
    "sorted_entries",
    "without_empty",
]

_NAMING = (
    ("E053", "info", "metrics", "parts"),
    ("E054", "info", "artifacts"),
    ("E054", "info", "attachments"),
    ("E056", "mlflow", "runs"),
    ("E056", "mlflow", "logged_models"),
    ("E056", "mlflow", "versions"),
    ("E056", "mlflow", "experiments"),
    ("E056", "mlflow", "models"),
    ("E056", "mlflow", "prompts"),
    ("E056", "mlflow", "workspaces"),
)
"""Lists of an envelope of which each entry is a member of the archive, or a folder of some."""
_OF_MEMBERS = {"artifacts", "attachments", "packs"}
"""Lists of ``info`` that are longer where there is more."""
_VERSION = re.compile(r"[1-9][0-9]{0,17}")
_METRIC_IDENTITY = ("key", "run_id", "step", "timestamp", "dataset_name", "dataset_digest")


def json_number(value: float) -> float | str:
    """Return a double as REST's JSON has it: NaN and the infinities as strings."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def sorted_entries(texts: Mapping[str, str]) -> list[dict[str, str]]:
    """Return a dict as REST's list of keyed entries, by key."""
    return [{"key": key, "value": texts[key]} for key in sorted(texts)]


def dataset_identity(entry: dict[str, Any]) -> tuple[str, str]:
    """Return what tells one ``DatasetInput`` of a run from another."""
    return entry["dataset"]["name"], entry["dataset"]["digest"]


def metric_identity(metric: dict[str, Any]) -> list[str]:
    """Return what tells one ``Metric`` of a logged model from another."""
    return [str(metric.get(name, "")) for name in _METRIC_IDENTITY]


def present(document: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a document that are there."""
    return {key: value for key, value in document.items() if value is not None}


def without_empty(document: dict[str, Any]) -> dict[str, Any]:
    """Leave out what is empty and no caller gave: REST's client says it where there is nothing.

    What a caller may give stays: a server keeps empty text where it was not given, a database that
    is written to without one keeps nothing. Only REST's client does not tell the two apart.
    """
    return {k: v for k, v in document.items() if v != "" or k in GIVEN_BY_CALLERS}


_TEXT = {"type": "string"}
_NUMBER = {"type": "string", "pattern": "^[1-9][0-9]{0,17}$"}


def _object(*required: str, **fields: Any) -> dict[str, Any]:
    return {"type": "object", "required": [*required], "properties": fields}


def _list(of: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": of}


_KEYED = _list(_object("key", key=_TEXT))
_LINKED = _list(_object("model_id", model_id=_TEXT))

SCHEMAS = {
    "experiment": _object("experiment_id", "name", experiment_id=_TEXT, name=_TEXT, tags=_KEYED),
    "run": _object(
        "info",
        info=_object(
            "run_id",
            "experiment_id",
            run_id=_TEXT,
            experiment_id=_TEXT,
            start_time={"type": "integer"},
            end_time={"type": "integer"},
        ),
        data=_object(metrics=_KEYED, params=_KEYED, tags=_KEYED),
        inputs=_object(model_inputs=_LINKED),
        outputs=_object(model_outputs=_LINKED),
    ),
    "logged_model": _object(
        "info",
        info=_object("model_id", "experiment_id", model_id=_TEXT, experiment_id=_TEXT, tags=_KEYED),
        data=_object(metrics=_KEYED, params=_KEYED),
    ),
    "model": _object(
        "name",
        name=_TEXT,
        tags=_KEYED,
        aliases=_list(_object("alias", "version", alias=_TEXT, version=_NUMBER)),
    ),
    "version": _object("name", "version", name=_TEXT, version=_NUMBER, tags=_KEYED),
}
"""JSON Schemas of what an archive's documents have to have of REST's objects, and may have more.

They say what ``CHECKS`` do, which are faster; a test holds that both agree.
"""

_KEY = itemgetter("key")


def _check_texts(document: dict[str, Any], *names: str) -> None:
    for name in names:
        if not isinstance(document.get(name), str):
            raise ValueError(f"{name} must be there and a text")  # noqa: TRY004 - pydantic's


def _check_entries(document: dict[str, Any], *names: str) -> None:
    """Check REST's lists of keyed entries: objects with a ``key`` and mostly a ``value``."""
    for name in names:
        entries = document.get(name, [])
        if not isinstance(entries, list) or not set(map(type, entries)) <= {dict}:
            raise ValueError(f"{name} must be a list of objects")
        try:
            kinds = set(map(type, map(_KEY, entries)))
        except KeyError:
            kinds = {type(None)}
        if not kinds <= {str}:
            raise ValueError(f"every entry of {name} must have a key")


def _check_experiment(document: dict[str, Any]) -> dict[str, Any]:
    _check_texts(document, "experiment_id", "name")
    _check_entries(document, "tags")
    return document


def _info_and_data(document: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    info, data = document.get("info"), document.get("data", {})
    if not isinstance(info, dict) or not isinstance(data, dict):
        raise ValueError("info must be there, info and data objects")  # noqa: TRY004 - pydantic's
    return info, data


def _check_run(document: dict[str, Any]) -> dict[str, Any]:
    info, data = _info_and_data(document)
    _check_texts(info, "run_id", "experiment_id")
    for name in ("start_time", "end_time"):
        if type(info.get(name, 0)) is not int:
            raise ValueError(f"info.{name} must be a whole number")
    _check_entries(data, "metrics", "params", "tags")
    for part, name in (("inputs", "model_inputs"), ("outputs", "model_outputs")):
        links = document.get(part, {})
        listed = links.get(name, []) if isinstance(links, dict) else None
        if not isinstance(listed, list):
            raise ValueError(f"{part}.{name} must be a list")  # noqa: TRY004 - pydantic's
        for entry in listed:
            if not isinstance(entry, dict):
                raise ValueError(f"{part}.{name} must be a list of objects")  # noqa: TRY004 - pydantic's
            _check_texts(entry, "model_id")
    return document


def _check_logged_model(document: dict[str, Any]) -> dict[str, Any]:
    info, data = _info_and_data(document)
    _check_texts(info, "model_id", "experiment_id")
    _check_entries(info, "tags")
    _check_entries(data, "metrics", "params")
    return document


def _check_model(document: dict[str, Any]) -> dict[str, Any]:
    _check_texts(document, "name")
    _check_entries(document, "tags")
    aliases = document.get("aliases", [])
    if not isinstance(aliases, list):
        raise ValueError("aliases must be a list")  # noqa: TRY004 - pydantic's
    for entry in aliases:
        if not isinstance(entry, dict) or not isinstance(entry.get("alias"), str):
            raise ValueError("every alias must have a name")  # noqa: TRY004 - pydantic's
        _check_number(entry.get("version"))
    return document


def _check_version(document: dict[str, Any]) -> dict[str, Any]:
    _check_texts(document, "name", "version")
    _check_number(document["version"])
    _check_entries(document, "tags")
    return document


def _check_number(version: object) -> None:
    if not isinstance(version, str) or not _VERSION.fullmatch(version):
        raise ValueError("a version must be a decimal number as a text")


CHECKS: dict[Kind, Callable[[dict[str, Any]], object]] = {
    Kind.EXPERIMENT: _check_experiment,
    Kind.RUN: _check_run,
    Kind.LOGGED_MODEL: _check_logged_model,
    Kind.REGISTERED_MODEL: _check_model,
    Kind.PROMPT: _check_model,
    **dict.fromkeys(VERSION_KINDS.values(), _check_version),
}
"""What a document of a kind is checked by; raises ``ValueError``."""


def names_too_many(envelope: Any, members: int, limits: Limits) -> tuple[str, str] | None:
    """Return the broken rule, and how, where an envelope names more than it may.

    An entry takes ten times its text once it is looked at.

    Args:
        envelope: The JSON value.
        members: How many the archive has.
        limits: What an archive may be at most.
    """
    for code, part, *keys in _NAMING:
        listed = _at(envelope, part, *keys)
        if isinstance(listed, list) and len(listed) > max(limits.named, members):
            name = ".".join((part, *keys))
            return code, f"{name} has {len(listed)} entries, and the archive {members} members"
    told = _at(envelope, "info")
    for key, listed in told.items() if isinstance(told, dict) else ():
        if (
            isinstance(listed, (list, dict))
            and len(listed) > limits.named
            and key not in _OF_MEMBERS
        ):
            return "E051", f"info.{key:.100} has {len(listed)} entries, over the limit"
    workspaces = _at(envelope, "mlflow", "workspaces")
    for workspace in workspaces if isinstance(workspaces, list) else ():
        for key in ("experiments", "models", "prompts"):
            listed = _at(workspace, key)
            if isinstance(listed, list) and len(listed) > max(limits.named, members):
                return "E056", f"{key} of a workspace has {len(listed)} entries"
    return None


def _at(value: Any, *keys: str) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value
