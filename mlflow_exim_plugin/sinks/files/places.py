"""Where the files of each object go below a folder: the tree of an archive, with names for ids."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from mlflow_exim_plugin.container.paths import encode_segment, numbered
from mlflow_exim_plugin.container.unicode import folded
from mlflow_exim_plugin.kinds import KINDS
from mlflow_exim_plugin.schema.objects import (
    Entity,
    Experiment,
    Kind,
    LoggedModel,
    ModelVersion,
    RegisteredModel,
    Run,
)

if TYPE_CHECKING:
    from mlflow_exim_plugin.schema.objects import StreamObject

__all__ = ["Places"]

_UNREADABLE = re.compile('["%*/:<>?\\\\|!\x00-\x1f\x7f-\x9f]')
_SHOWN_OF_ID = 8


class Places:
    """Gives each object a folder of its own, with its final slash.

    ::

        experiments/<name>/runs/<name>-<start of its id>/...
        experiments/<name>/runs/<name>-<start of its id>/<name of a model that it logged>/...
        experiments/<name>/logged_models/<name>-<id>/...
        models/<name>/versions/<number>/...
        skills/<id>/...
        workspaces/<name>/                                 and the same tree below it

    Args:
        one: Whether one run or version alone was asked for: its files need no folder.
    """

    def __init__(self, *, one: bool) -> None:
        self._one = one
        self._tree = ""
        self._experiments: dict[str, str] = {}
        self._runs: dict[str, str] = {}
        self._models: dict[str, str] = {}
        self._taken: set[str] = set()

    def of(self, item: StreamObject) -> str:
        """Return the folder of an object; those that it belongs to have come before it."""
        if isinstance(item, Entity) and item.kind is Kind.WORKSPACE:
            self._tree = self._free("workspaces/", item.id)
            return self._tree
        if isinstance(item, Experiment):
            folder = self._free(f"{self._tree}experiments/", item.name)
            self._experiments[item.id] = folder
            return folder
        if isinstance(item, Run):
            self._runs[item.id] = "" if self._one else self._of_run(item)
            return self._runs[item.id]
        if isinstance(item, LoggedModel):
            return self._of_logged_model(item)
        if isinstance(item, RegisteredModel):
            described = KINDS[item.kind].versions
            folder = described[0] if described else str(item.kind)
            self._models[item.name] = self._free(f"{self._tree}{folder}/", item.name)
            return self._models[item.name]
        if isinstance(item, ModelVersion):
            return "" if self._one else f"{self._models[item.name]}versions/{item.version}/"
        return self._free(f"{self._tree}{KINDS[item.kind].folder}/", item.id)

    def keep(self, folder: str, path: str) -> None:
        """Keep the name of what lies below a folder from being given to another folder there."""
        self._taken.add(folded(folder + path.partition("/")[0]))

    def _of_run(self, run: Run) -> str:
        name = str(run.info.get("run_name") or "")
        label = f"{name}-{run.id[:_SHOWN_OF_ID]}" if name else run.id
        return self._free(f"{self._experiments[run.experiment_id]}runs/", label)

    def _of_logged_model(self, model: LoggedModel) -> str:
        name = str(model.info.get("name") or "")
        run = self._runs.get(str(model.info.get("source_run_id") or ""))
        if run is not None:  # where MLflow shows it, too
            return self._free(run, name or model.id)
        label = f"{name}-{model.id}" if name else model.id
        return self._free(f"{self._experiments[model.experiment_id]}logged_models/", label)

    def _free(self, parent: str, name: str) -> str:
        """Return a folder that nothing else has, called as what is in it, as far as that may be."""
        label = encode_segment(_UNREADABLE.sub("_", name))
        found, number = label, 1
        while (key := folded(parent + found)) in self._taken:
            number += 1
            found = numbered(label, number)
        self._taken.add(key)
        return f"{parent}{found}/"
