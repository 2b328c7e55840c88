"""Documents as they are compared: entries by their key, ids by what they stand for.

Which places of a document hold ids of other objects, and which lists have no order of their own,
stands here as tables. A path names fields by dots and the elements of a list by ``[]``.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.schema.canonical import canonical_bytes
from mlflow_exim_plugin.schema.lineage import later_hops
from mlflow_exim_plugin.schema.objects import Kind
from mlflow_exim_plugin.schema.provenance import ORIGIN, is_provenance

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Ids = Callable[[Kind, str], str | None]
    """Gives what an id stands for on both sides; None for what an unpack made for itself."""

    _Reference = Kind | Callable[[Any, Ids], Any]

__all__ = ["SHAPES", "ByKey", "Entries", "Shape", "place_in_runs", "shaped"]

_ID = re.compile(r"[0-9a-f]{32}|m-[0-9a-f]{32}")
_KEY = ("key",)


class Entries(dict[str, Any]):
    """A list of keys and values: its values by key."""


class ByKey(Entries):
    """A list without an order of its own: its elements by what tells them apart."""


@dataclass(frozen=True)
class Shape:
    """Where a kind's documents have what must be read in another way.

    Attributes:
        lists: Fields that tell the elements of a list apart, by path; without fields the elements
            are texts that stand for themselves.
        references: What an id stands for, by path: the kind of object that it names, or a function
            of the value and ``Ids``.
    """

    lists: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    references: Mapping[str, _Reference] = field(default_factory=dict)


def shaped(kind: Kind, document: dict[str, Any], ids: Ids | None) -> dict[str, Any]:
    """Return a document as it is compared, without what says where the object came from.

    Args:
        kind: Kind of the object.
        document: The document of the stream.
        ids: Gives what an id stands for; None leaves ids as they are.
    """
    found: dict[str, Any] = _Walk(SHAPES[kind], ids).value(document, "")
    return found


class _Walk:
    def __init__(self, shape: Shape, ids: Ids | None) -> None:
        self._lists = shape.lists
        self._references = shape.references
        self._ids = ids

    def value(self, value: Any, path: str) -> Any:
        if isinstance(value, list):
            fields = self._lists.get(path)
            if fields == _KEY and _are_key_values(value):
                return self._entries({e["key"]: e.get("value", "") for e in value}, path)
            elements = [self.value(element, path + "[]") for element in value]
            return elements if fields is None else _by_key(elements, fields)
        if isinstance(value, dict):
            return self._entries(value, path) if path in _TAGS else self._fields(value, path)
        refers_to = self._references.get(path)
        if refers_to is None or value is None or self._ids is None:
            return value
        if isinstance(refers_to, Kind):
            return self._ids(refers_to, str(value)) if value != "" else value
        return refers_to(value, self._ids)

    def _entries(self, value: dict[str, Any], path: str) -> Entries:
        own = {k: v for k, v in value.items() if path not in _TAGS or not is_provenance(k)}
        return Entries(self._fields(own, path))

    def _fields(self, value: dict[str, Any], path: str) -> dict[str, Any]:
        prefix = path + "." if path else ""
        return {key: self.value(inner, prefix + key) for key, inner in value.items()}


_TAGS = {"tags", "data.tags", "info.tags"}


def drop_later_hops(a: dict[str, Any], b: dict[str, Any], further: int) -> bool:
    """Take out of two shaped documents the source tags of hops that the later one has more.

    Args:
        a: One document.
        b: The other one.
        further: How many hops more ``a`` has come than ``b``; below zero where ``b`` has.

    Returns:
        Whether there were any.
    """
    later, earlier = (a, b) if further > 0 else (b, a)
    dropped = False
    for path in _TAGS if further else ():
        there, before = _at(later, path), _at(earlier, path)
        if isinstance(there, Entries):
            known = before if isinstance(before, Entries) else {}
            for key in later_hops(there, known, abs(further)):
                there.pop(key)
                dropped = True
    return dropped


def hops_of(document: dict[str, Any]) -> int:
    """Return how many hops the provenance of an object's document tells of."""
    for path in _TAGS:
        for entry in _at(document, path) or ():
            if isinstance(entry, dict) and entry.get("key") == ORIGIN:
                return len(str(entry.get("value", "")).split())
    return 0


def _are_key_values(entries: list[Any]) -> bool:
    """Whether a list is one of keys and values, each key once."""
    keys = [e.get("key") for e in entries if isinstance(e, dict) and e.keys() <= {"key", "value"}]
    distinct = {key for key in keys if isinstance(key, str)}
    return len(distinct) == len(entries)


def _by_key(elements: list[Any], fields: tuple[str, ...]) -> ByKey:
    found = ByKey()
    for element in elements:
        if fields:
            name = ", ".join(_name(_at(element, of)) for of in fields)
            if len(fields) == 1 and isinstance(_at(element, fields[0]), str):
                element = _without(element, fields[0])  # noqa: PLW2901 - its name says it
        else:
            name = str(element)
        number, unique = 1, name
        while unique in found:
            number += 1
            unique = f"{name}#{number}"
        found[unique] = element
    return found


def _at(element: Any, path: str) -> Any:
    for name in path.split("."):
        element = element.get(name, "") if isinstance(element, dict) else ""
    return element


def _without(element: Any, name: str) -> Any:
    if not isinstance(element, dict):
        return element
    return {key: value for key, value in element.items() if key != name}


def _name(value: Any) -> str:
    if isinstance(value, dict | list):
        return hashlib.sha256(canonical_bytes(value)).hexdigest()[:12]
    return str(value)


def place_in_runs(uri: str) -> tuple[str, str] | None:
    """Return the id of the run or logged model whose files a URI leads to, and the path there."""
    segments = uri.split("/")
    for position in reversed(range(len(segments))):
        if _ID.fullmatch(segments[position]):
            below = segments[position + 1 :]
            if below[:1] == ["artifacts"]:
                below = below[1:]
            return segments[position], "/".join(below).rstrip("/")
    return None


def _place(uri: Any, ids: Ids) -> Any:
    """Name a place in a deployment by its run or logged model, whatever the root of its files."""
    found = place_in_runs(str(uri))
    if found is None:
        return uri
    old_id, below = found
    kind = Kind.LOGGED_MODEL if old_id.startswith("m-") else Kind.RUN
    token = ids(kind, old_id)
    if token is None:
        return f"runs:/-/{below}"
    return f"{'models' if kind is Kind.LOGGED_MODEL else 'runs'}:/{token}/{below}"


def _json(change: Callable[[Any, Ids], None] | None) -> Callable[[Any, Ids], Any]:
    """Make what reads a text as JSON, so that its spelling does not matter."""

    def read(text: Any, ids: Ids) -> Any:
        try:
            value = json.loads(text)
        except (TypeError, ValueError):
            return text
        if change is not None and isinstance(value, list):
            for entry in value:
                if isinstance(entry, dict):
                    change(entry, ids)
        return value

    return read


def _run_of_history(entry: dict[str, Any], ids: Ids) -> None:
    if isinstance(entry.get("run_id"), str):
        entry["run_id"] = ids(Kind.RUN, entry["run_id"])


def _name_of_version(entry: dict[str, Any], ids: Ids) -> None:
    if isinstance(entry.get("name"), str):
        entry["name"] = ids(Kind.REGISTERED_MODEL, entry["name"])


def _experiments(text: Any, ids: Ids) -> Any:
    """Read the comma-separated experiment ids that a prompt's tag holds."""
    return ByKey({ids(Kind.EXPERIMENT, one) or one: True for one in str(text).split(",") if one})


_NAMED = {"tags": _KEY, "aliases": ("alias",)}
_OF_PROMPT: dict[str, _Reference] = {"tags._mlflow_experiment_ids": _experiments}
_VERSION_LISTS: dict[str, tuple[str, ...]] = {"tags": _KEY, "aliases": ()}
_VERSION_REFERENCES: dict[str, _Reference] = {
    "run_id": Kind.RUN,
    "model_id": Kind.LOGGED_MODEL,
    "source": _place,
}

SHAPES: dict[Kind, Shape] = {
    Kind.WORKSPACE: Shape(),
    Kind.EXPERIMENT: Shape({"tags": _KEY}, {"experiment_id": Kind.EXPERIMENT}),
    Kind.RUN: Shape(
        {
            "data.metrics": _KEY,
            "data.params": _KEY,
            "data.tags": _KEY,
            "inputs.dataset_inputs": ("dataset.name", "dataset.digest"),
            "inputs.dataset_inputs[].tags": _KEY,
            "inputs.model_inputs": ("model_id",),
            "outputs.model_outputs": ("model_id", "step"),
        },
        {
            "info.run_id": Kind.RUN,
            "info.run_uuid": Kind.RUN,
            "info.experiment_id": Kind.EXPERIMENT,
            "info.artifact_uri": _place,
            "data.tags.mlflow.parentRunId": Kind.RUN,
            "data.tags.mlflow.log-model.history": _json(_run_of_history),
            "inputs.model_inputs[].model_id": Kind.LOGGED_MODEL,
            "outputs.model_outputs[].model_id": Kind.LOGGED_MODEL,
        },
    ),
    Kind.LOGGED_MODEL: Shape(
        {
            "info.tags": _KEY,
            "data.params": _KEY,
            "data.metrics": (
                "key",
                "run_id",
                "step",
                "timestamp",
                "dataset_name",
                "dataset_digest",
            ),
        },
        {
            "info.model_id": Kind.LOGGED_MODEL,
            "info.experiment_id": Kind.EXPERIMENT,
            "info.source_run_id": Kind.RUN,
            "info.artifact_uri": _place,
            "info.tags.mlflow.modelVersions": _json(_name_of_version),
            "data.metrics[].run_id": Kind.RUN,
            "data.metrics[].model_id": Kind.LOGGED_MODEL,
        },
    ),
    Kind.SCORER: Shape(
        {"versions": ("scorer_version",)},
        {
            "scorer_id": Kind.SCORER,
            "experiment_id": Kind.EXPERIMENT,
            "versions[].serialized_scorer": _json(None),
            "online_configs[].experiment_id": Kind.EXPERIMENT,
        },
    ),
    Kind.LABEL_SCHEMA: Shape(
        {}, {"schema_id": Kind.LABEL_SCHEMA, "experiment_id": Kind.EXPERIMENT}
    ),
    Kind.ISSUE: Shape(
        {},
        {
            "issue_id": Kind.ISSUE,
            "experiment_id": Kind.EXPERIMENT,
            "source_run_id": Kind.RUN,
        },
    ),
    Kind.TRACE: Shape(
        {"assessments": ("assessment_id",), "spans": ("span_id",), "info.linked_runs": ()},
        {
            "experiment_id": Kind.EXPERIMENT,
            "info.trace_id": Kind.TRACE,
            "info.linked_runs[]": Kind.RUN,
            "info.trace_metadata.mlflow.sourceRun": Kind.RUN,
            "info.trace_metadata.mlflow.modelId": Kind.LOGGED_MODEL,
            "spans[].attributes.mlflow.modelId": Kind.LOGGED_MODEL,
            "assessments[].metadata.mlflow.assessment.sourceRunId": Kind.RUN,
            # The name of an assessment that speaks of an issue is the issue's id.
            "assessments[].assessment_name": Kind.ISSUE,
        },
    ),
    Kind.REVIEW_QUEUE: Shape(
        {"users": (), "schema_ids": (), "items": ("item_id",)},
        {
            "queue_id": Kind.REVIEW_QUEUE,
            "experiment_id": Kind.EXPERIMENT,
            "schema_ids[]": Kind.LABEL_SCHEMA,
            "items[].item_id": Kind.TRACE,
        },
    ),
    Kind.PROMPT: Shape(_NAMED, _OF_PROMPT),
    Kind.PROMPT_VERSION: Shape(
        _VERSION_LISTS, _OF_PROMPT | _VERSION_REFERENCES | {"name": Kind.PROMPT}
    ),
    Kind.REGISTERED_MODEL: Shape(_NAMED),
    Kind.MODEL_VERSION: Shape(
        _VERSION_LISTS, {**_VERSION_REFERENCES, "name": Kind.REGISTERED_MODEL}
    ),
    Kind.EVALUATION_DATASET: Shape(
        # MLflow tells the records of a dataset apart by their inputs.
        {"tags": _KEY, "records": ("inputs",), "experiment_ids": ()},
        {
            "dataset_id": Kind.EVALUATION_DATASET,
            "schema": _json(None),
            "profile": _json(None),
            "experiment_ids[]": Kind.EXPERIMENT,
            "records[].dataset_id": Kind.EVALUATION_DATASET,
            "records[].source.source_data.trace_id": Kind.TRACE,
        },
    ),
    Kind.MODEL_DEFINITION: Shape({}, {"model_definition_id": Kind.MODEL_DEFINITION}),
    Kind.ENDPOINT: Shape(
        {
            "tags": _KEY,
            "model_mappings": ("model_definition_id", "linkage_type", "fallback_order"),
            "bindings": ("resource_type", "resource_id"),
            "guardrails": ("guardrail_id",),
        },
        {
            "endpoint_id": Kind.ENDPOINT,
            "experiment_id": Kind.EXPERIMENT,
            "model_mappings[].model_definition_id": Kind.MODEL_DEFINITION,
            "bindings[].resource_id": Kind.SCORER,
            "guardrails[].guardrail_id": Kind.GUARDRAIL,
        },
    ),
    Kind.GUARDRAIL: Shape(
        {},
        {
            "guardrail_id": Kind.GUARDRAIL,
            "scorer.scorer_id": Kind.SCORER,
            "scorer.experiment_id": Kind.EXPERIMENT,
        },
    ),
    Kind.BUDGET_POLICY: Shape(
        {}, {"budget_policy_id": Kind.BUDGET_POLICY, "target_value": Kind.ENDPOINT}
    ),
    Kind.MCP_SERVER: Shape(
        {
            "tags": _KEY,
            "aliases": ("alias",),
            "versions": ("version",),
            "versions[].tags": _KEY,
            "access_endpoints": ("url", "transport_type"),
        },
    ),
    Kind.WEBHOOK: Shape({"events": ("entity", "action")}, {"webhook_id": Kind.WEBHOOK}),
}
"""One for every kind that stands in the stream by itself."""
