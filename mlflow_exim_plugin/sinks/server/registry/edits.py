"""What was edited at the source since it came: copies in a registry follow where that is asked."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.host.api.reading import PROMPT_TAG
from mlflow_exim_plugin.schema.objects import Loss, ModelVersion, key_values
from mlflow_exim_plugin.schema.provenance import is_provenance
from mlflow_exim_plugin.sinks.server.target import attempt
from mlflow_exim_plugin.sinks.server.texts import is_beginning

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlflow_exim_plugin.schema.objects import RegisteredModel
    from mlflow_exim_plugin.schema.report import Report
    from mlflow_exim_plugin.sinks.server.target import ServerTarget
    from mlflow_exim_plugin.sinks.server.texts import RegistryTags

    Registered = RegisteredModel | ModelVersion

__all__ = ["EXPERIMENT_IDS", "RegistryEdits", "differing"]

EXPERIMENT_IDS = "_mlflow_experiment_ids"
"""Tag of a prompt that has the ids of its experiments, which are others at the target."""
_OF_TARGET = {PROMPT_TAG, EXPERIMENT_IDS}
_TEXT, _STAGE = "description", "current_stage"


def differing(item: Registered, there: dict[str, Any]) -> dict[str, str]:
    """Return what a copy has otherwise than its source, and what that is at the source.

    Args:
        item: A registered model, prompt or version at the source.
        there: The document of its copy.

    Returns:
        Values by ``description``, ``current_stage`` and tag. A text of
        which the target holds as much as it can is no other.
    """
    document = item.document
    own = {_TEXT: ""} | ({_STAGE: "None"} if isinstance(item, ModelVersion) else {})
    found = {
        what: wanted
        for what, unset in own.items()
        if not is_beginning(
            str(there.get(what) or unset), wanted := str(document.get(what) or unset)
        )
    }
    tags = key_values(there.get("tags"))
    for key, value in key_values(document.get("tags")).items():
        if is_provenance(key) or key in _OF_TARGET:
            continue
        if key not in tags or not is_beginning(tags[key], value):
            found[f"tag {key}"] = value
    return found


class RegistryEdits:
    """Gives copies in a registry the texts, tags and stages that their sources have now.

    Args:
        target: The deployment and how to write to it.
        tags: Gives tags there.
    """

    def __init__(self, target: ServerTarget, tags: RegistryTags) -> None:
        self._writer = target.writer
        self._options = target.options
        self._tags = tags

    def follow(self, item: Registered, name: str, there: dict[str, Any], report: Report) -> bool:
        """Let a copy follow its source, where edits are taken.

        Args:
            item: The source.
            name: Name of the registered model or prompt at the target.
            there: The document of the copy.
            report: Names what the target refuses.

        Returns:
            Whether something of it became another.
        """
        edits = differing(item, there) if self._options.takes_edits else {}
        if self._options.dry_run:
            return bool(edits)
        number = int(there["version"]) if isinstance(item, ModelVersion) else None
        taken = [
            self._put(item, what, value, self._call(what, name, number), report)
            for what, value in edits.items()
        ]
        return any(taken)

    def _call(self, what: str, name: str, number: int | None) -> Callable[[str], None]:
        writer, key = self._writer, what.removeprefix("tag ")
        if number is None:
            if what == _TEXT:
                return partial(writer.set_model_description, name)
            return partial(writer.set_model_tag, name, key)
        if what == _TEXT:
            return partial(writer.set_version_description, name, number)
        if what == _STAGE:
            return partial(writer.set_stage, name, number)
        return partial(writer.set_version_tag, name, number, key)

    def _put(
        self, item: Registered, what: str, value: str, send: Callable[[str], None], report: Report
    ) -> bool:
        if what == _STAGE:
            unset = Loss(item.kind, item.id, f"stage {value} is not set")
            return attempt(partial(send, value), unset, report)
        return self._tags.put(item, send, what, value, report)
