"""Whether a document is of the types that MLflow's own messages have.

A database takes a text where MLflow keeps a number, and the server on it answers 500 from then on.
So what comes is held to MLflow's messages before it reaches any target.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from google.protobuf.descriptor import FieldDescriptor
from mlflow.entities import LifecycleStage
from mlflow.entities.model_registry.model_version_stages import ALL_STAGES
from mlflow.protos import model_registry_pb2, service_pb2

from mlflow_exim_plugin.errors import InvalidArchiveError
from mlflow_exim_plugin.kinds import KINDS
from mlflow_exim_plugin.kinds.description import Json
from mlflow_exim_plugin.schema.objects import (
    IS_NUMBER,
    Entity,
    Experiment,
    Kind,
    LoggedModel,
    Run,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from google.protobuf.descriptor import Descriptor

    from mlflow_exim_plugin.schema.objects import StreamObject

__all__ = ["require_types"]

_MESSAGES = {
    Kind.EXPERIMENT: service_pb2.Experiment,
    Kind.RUN: service_pb2.Run,
    Kind.LOGGED_MODEL: getattr(service_pb2, "LoggedModel", None),
    Kind.REGISTERED_MODEL: model_registry_pb2.RegisteredModel,
    Kind.PROMPT: model_registry_pb2.RegisteredModel,
    Kind.MODEL_VERSION: model_registry_pb2.ModelVersion,
    Kind.PROMPT_VERSION: model_registry_pb2.ModelVersion,
}
_STAGES = {stage.lower() for stage in ALL_STAGES}
_DOUBLES = {"NaN", "Infinity", "-Infinity"}
"""What REST's JSON has for the doubles that JSON has not."""
_WORDS: dict[str, Callable[[str], bool]] = {
    "lifecycle_stage": LifecycleStage.is_valid,
    "current_stage": lambda stage: stage.lower() in _STAGES,
}
"""Fields that are texts to REST, of which MLflow knows some."""
_KEYED = {"key", "value"}
_PLAIN = {
    FieldDescriptor.CPPTYPE_STRING: str,
    FieldDescriptor.CPPTYPE_BOOL: bool,
    FieldDescriptor.CPPTYPE_DOUBLE: float,
}


def require_types(item: StreamObject) -> None:
    """Refuse an object whose document MLflow could not have made.

    Raises:
        InvalidArchiveError: A field is of another type or out of range, or has a word that MLflow
            does not know.
    """
    message = _MESSAGES.get(item.kind)
    problem = _problem(item.document, message.DESCRIPTOR) if message is not None else ""
    if isinstance(item, Experiment) and not IS_NUMBER.fullmatch(item.id):
        problem = f"experiment_id is {item.id!r}, no decimal number"
    if isinstance(item, Run | LoggedModel) and not problem:
        problem = _wrong_word(item.info)
    if isinstance(item, Entity):
        problem = _no_json(item)
    if problem:
        raise InvalidArchiveError(f"its document is not as MLflow has it: {problem}")


def _no_json(entity: Entity) -> str:
    """Return which text of an object has to be JSON, which MLflow reads again, and is none."""
    for path, named in KINDS[entity.kind].refers.items():
        field, _, inner = path.partition("[].")
        if not isinstance(named, Json) or not inner:
            continue
        for part in entity.document.get(field) or ():
            try:
                found = json.loads(part[inner])
            except (ValueError, RecursionError) as error:
                return f"{path} is no JSON: {error}"
            if not isinstance(found, dict):
                return f"{path} is no object"
    return ""


def _problem(document: dict[str, Any], message: Descriptor) -> str:
    fields = _fields(message)
    for name, value in document.items():
        field = fields.get(name)
        if field is None or value is None or type(value) is field.plain:
            continue
        values: Iterable[Any] = (value,)
        if field.is_list:
            if type(value) is not list:
                return f"{name} is no list"
            if field.holds_texts and _are_texts(value):
                continue
            values = value
        for one in values:
            if problem := field.check(one):
                return f"{name}{problem}"
    return _wrong_word(document)


def _wrong_word(document: dict[str, Any]) -> str:
    for name, knows in _WORDS.items():
        word = document.get(name)
        if word is not None and not (isinstance(word, str) and knows(word)):
            return f"{name} is {word!r:.60}"
    return ""


def _are_texts(entries: list[Any]) -> bool:
    """Whether keyed entries, of which a run may have thousands, are texts."""
    if not set(map(type, entries)) <= {dict}:
        return False
    return {type(value) for entry in entries for value in entry.values()} <= {str}


@dataclass(frozen=True)
class _Field:
    """A field of a message.

    Attributes:
        is_list: Whether it is a list.
        holds_texts: Whether its entries are keys and values.
        plain: A type all of whose values are right.
        check: Says what is wrong with a value.
    """

    is_list: bool
    holds_texts: bool
    plain: type | None
    check: Callable[[Any], str]


@cache
def _fields(message: Descriptor) -> dict[str, _Field]:
    return {field.name: _field(field) for field in message.fields}


def _field(field: FieldDescriptor) -> _Field:
    inner, is_list = field.message_type, _is_list(field)
    texts = inner is not None and {one.name for one in inner.fields} == _KEYED
    plain = None if is_list else _PLAIN.get(field.cpp_type)
    return _Field(is_list, texts, plain, _check_of(field))


def _is_list(field: FieldDescriptor) -> bool:
    if hasattr(field, "is_repeated"):
        return bool(field.is_repeated)
    label: int = getattr(field, "label")  # noqa: B009 - all that protobuf had before 6
    return label == FieldDescriptor.LABEL_REPEATED


def _check_of(field: FieldDescriptor) -> Callable[[Any], str]:
    message = field.message_type
    words = field.enum_type.values_by_name if field.enum_type else {}

    def check(value: Any) -> str:
        match field.cpp_type:
            case FieldDescriptor.CPPTYPE_MESSAGE:
                if type(value) is not dict:
                    return " is no object"
                problem = _problem(value, message) if message else ""
                return f".{problem}" if problem else ""
            case FieldDescriptor.CPPTYPE_STRING:
                is_right = type(value) is str
            case FieldDescriptor.CPPTYPE_ENUM:
                is_right = value in words
            case FieldDescriptor.CPPTYPE_BOOL:
                is_right = type(value) is bool
            case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
                is_right = type(value) in {int, float} or value in _DOUBLES
            case FieldDescriptor.CPPTYPE_INT32 | FieldDescriptor.CPPTYPE_UINT32:
                is_right = type(value) is int and -(2**31) <= value < 2**31
            case _:
                is_right = type(value) is int and -(2**63) <= value < 2**63
        return "" if is_right else f" is {value!r:.60}"

    return check
