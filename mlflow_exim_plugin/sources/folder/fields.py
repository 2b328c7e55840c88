"""What a ``meta.yaml`` says, as REST's documents have it: checked field by field."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.schema.documents import present, sorted_entries, without_empty
from mlflow_exim_plugin.schema.runs import SOURCE_TYPES, TAGS_OF_FIELDS, with_tags_of
from mlflow_exim_plugin.sources.folder.files import UnreadableError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "Fields",
    "dataset_document",
    "experiment_document",
    "is_of_0x",
    "logged_model_info",
    "registered_model_document",
    "run_info",
    "tags_of_fields",
    "version_document",
    "without_line_ends",
]

_RUN_STATUS = {1: "RUNNING", 2: "SCHEDULED", 3: "FINISHED", 4: "FAILED", 5: "KILLED"}
_MODEL_STATUS = {
    0: "LOGGED_MODEL_STATUS_UNSPECIFIED",
    1: "LOGGED_MODEL_PENDING",
    2: "LOGGED_MODEL_READY",
    3: "LOGGED_MODEL_UPLOAD_FAILED",
}
_NUMBERED = ("_id", "version")
"""Ends of the names of fields that may be written as numbers: ids were once."""


class Fields:
    """The fields of one file.

    Args:
        place: The file, for messages.
        found: What it says.
    """

    def __init__(self, place: str, found: dict[str, Any]) -> None:
        self._place = place
        self._found = found

    def text(self, *names: str) -> str:
        """Return the first of some fields that is there.

        Raises:
            UnreadableError: There is none, or it is no text.
        """
        if (value := self.maybe_text(*names)) is None:
            raise UnreadableError(f"{self._place} is damaged: it lacks {names[0]}")
        return value

    def maybe_text(self, *names: str) -> str | None:
        """Return the first of some fields that is there, None without one.

        Raises:
            UnreadableError: It is no text.
        """
        value = next((self._found[n] for n in names if self._found.get(n) is not None), None)
        if names[0].endswith(_NUMBERED) and isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if value is not None and not isinstance(value, str):
            raise UnreadableError(f"{self._place} is damaged: its {names[0]} is no text")
        return value

    def texts(self, name: str) -> dict[str, str]:
        """Return an object of texts, an empty one without it.

        Raises:
            UnreadableError: It is something else.
        """
        value = self._found.get(name) or {}
        if not isinstance(value, dict):
            raise UnreadableError(f"{self._place} is damaged: its {name} have no names")
        return {str(key): str(said) for key, said in value.items()}

    def number(self, name: str) -> int | None:
        """Return a whole number of 64 bits, None without it.

        Raises:
            UnreadableError: It is something else.
        """
        value = self._found.get(name)
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or not -(2**63) <= value < 2**63:
            raise UnreadableError(f"{self._place} is damaged: its {name} is no whole number")
        return value

    def is_number(self, name: str) -> bool:
        """Whether a field is written as a number."""
        return isinstance(self._found.get(name), int)

    def one_of(self, name: str, values: Mapping[int, str], default: int) -> str:
        """Return what a number, or its word, stands for.

        Raises:
            UnreadableError: It stands for nothing.
        """
        value = self._found.get(name, default)
        if isinstance(value, str) and value in values.values():
            return value
        if not isinstance(value, int) or value not in values:
            raise UnreadableError(f"{self._place} is damaged: its {name} is {value!r}")
        return values[value]


def experiment_document(fields: Fields, tags: dict[str, str], *, deleted: bool) -> dict[str, Any]:
    """Return REST's ``Experiment``.

    MLflow before 0.8 had no deleted ones, and wrote ids as numbers.

    Args:
        fields: Of its ``meta.yaml``.
        tags: Its tags.
        deleted: Whether it lies where deleted ones do; MLflow before 2.0 wrote that nowhere else.
    """
    return present(
        {
            "experiment_id": fields.text("experiment_id"),
            "name": fields.text("name"),
            "artifact_location": fields.text("artifact_location"),
            "lifecycle_stage": "deleted" if deleted else _stage(fields),
            "last_update_time": fields.number("last_update_time") or None,
            "creation_time": fields.number("creation_time") or None,
            "effective_trace_archival_retention": fields.maybe_text(
                "effective_trace_archival_retention"
            ),
            "workspace": fields.maybe_text("workspace") or _default_workspace(),
            "tags": sorted_entries(tags),
        }
    )


def run_info(fields: Fields, tags: dict[str, str]) -> dict[str, Any]:
    """Return REST's ``RunInfo``."""
    run_id = fields.text("run_id", "run_uuid")
    name = fields.maybe_text("run_name")
    return present(
        {
            "run_id": run_id,
            "run_uuid": run_id,
            "run_name": name or tags.get("mlflow.runName") or name,
            "experiment_id": fields.text("experiment_id"),
            "user_id": fields.maybe_text("user_id"),
            "status": fields.one_of("status", _RUN_STATUS, 1),
            "start_time": fields.number("start_time"),
            "end_time": fields.number("end_time"),
            "artifact_uri": fields.maybe_text("artifact_uri"),
            "lifecycle_stage": fields.maybe_text("lifecycle_stage") or "active",
        }
    )


def is_of_0x(fields: Fields) -> bool:
    """Whether MLflow before 1.0 wrote the ``meta.yaml`` of a run."""
    return fields.maybe_text("run_id") is None


def tags_of_fields(fields: Fields, tags: dict[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the tags of a run of MLflow before 1.0 as later ones have them, and its own fields.

    Args:
        fields: Of its ``meta.yaml``.
        tags: Its tags, which win.
    """
    own: dict[str, str] = {}
    for name in TAGS_OF_FIELDS:
        if name == "source_type":
            said: str | None = fields.one_of(name, SOURCE_TYPES, 1000)
        else:
            said = fields.maybe_text(name)
        if said:
            own[name] = said
    return with_tags_of(own, tags), own


def without_line_ends(texts: dict[str, str]) -> dict[str, str]:
    """Return params or tags as MLflow before 1.0 read them: it wrote a line and cut its blanks."""
    return {
        key: text.removesuffix("\n") if "\n" in text.removesuffix("\n") else text.strip()
        for key, text in texts.items()
    }


def _stage(fields: Fields) -> str:
    if fields.is_number("experiment_id"):
        return fields.maybe_text("lifecycle_stage") or "active"
    return fields.text("lifecycle_stage")


def logged_model_info(fields: Fields, tags: dict[str, str]) -> dict[str, Any]:
    """Return REST's ``LoggedModelInfo``, with its ``lifecycle_stage`` where it is deleted."""
    found = without_empty(
        present(
            {
                "experiment_id": fields.text("experiment_id"),
                "model_id": fields.text("model_id"),
                "name": fields.maybe_text("name"),
                "artifact_uri": fields.text("artifact_location"),
                "creation_timestamp_ms": fields.number("creation_timestamp"),
                "last_updated_timestamp_ms": fields.number("last_updated_timestamp"),
                "model_type": fields.maybe_text("model_type"),
                "source_run_id": fields.maybe_text("source_run_id"),
                "status": fields.one_of("status", _MODEL_STATUS, 0),
                "status_message": fields.maybe_text("status_message"),
            }
        )
    )
    if fields.maybe_text("lifecycle_stage") == "deleted":
        found["lifecycle_stage"] = "deleted"
    return found | {"tags": sorted_entries(tags)}


def registered_model_document(
    fields: Fields, tags: dict[str, str], aliases: dict[str, str]
) -> dict[str, Any]:
    """Return REST's ``RegisteredModel`` without its versions."""
    found = without_empty(
        present(
            {
                "name": fields.text("name"),
                "creation_timestamp": fields.number("creation_timestamp"),
                "last_updated_timestamp": fields.number("last_updated_timestamp") or None,
                "description": fields.maybe_text("description"),
                "deployment_job_id": fields.maybe_text("deployment_job_id"),
            }
        )
    )
    listed = [{"alias": alias, "version": aliases[alias]} for alias in sorted(aliases)]
    return found | {"tags": sorted_entries(tags), "aliases": listed}


def version_document(fields: Fields, tags: dict[str, str], aliases: list[str]) -> dict[str, Any]:
    """Return REST's ``ModelVersion``."""
    found = without_empty(
        present(
            {
                "name": fields.text("name"),
                "version": fields.text("version"),
                "creation_timestamp": fields.number("creation_timestamp"),
                "last_updated_timestamp": fields.number("last_updated_timestamp"),
                "description": fields.maybe_text("description"),
                "user_id": fields.maybe_text("user_id"),
                "current_stage": fields.maybe_text("current_stage"),
                "source": fields.maybe_text("source"),
                "run_id": fields.maybe_text("run_id"),
                "run_link": fields.maybe_text("run_link"),
                "status": fields.maybe_text("status") or "READY",
                "status_message": fields.maybe_text("status_message"),
                "model_id": fields.maybe_text("model_id"),
            }
        )
    )
    return found | {"tags": sorted_entries(tags), "aliases": sorted(aliases)}


def dataset_document(fields: Fields) -> dict[str, Any]:
    """Return REST's ``Dataset``."""
    document = {name: fields.text(name) for name in ("name", "digest", "source_type", "source")}
    more = {name: fields.maybe_text(name) for name in ("schema", "profile")}
    return document | without_empty(present(more))


@cache
def _default_workspace() -> str | None:
    """Return what this MLflow, which is not imported for it, says of an experiment in none."""
    mlflow = importlib.util.find_spec("mlflow")
    places = mlflow.submodule_search_locations if mlflow else None
    knows = any(Path(place, "entities", "workspace.py").exists() for place in places or ())
    return "default" if knows else None
