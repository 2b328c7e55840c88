"""Where each object stands in the archive's tree (spec, "Layout"): ids and names to member paths.

::

    exim.json                                            what this is
    README.txt                                           the same for people, and how to read it
    log/<n>.json                                         who packed what, step by step
    data/archive.json                                    what was packed, what failed
    data/experiments/<id>/experiment.json
    data/experiments/<id>/metrics/part-<n>.parquet       rows of many runs
    data/experiments/<id>/runs/<run id>/run.json
    data/experiments/<id>/runs/<run id>/artifacts/...
    data/experiments/<id>/logged_models/<model id>/logged_model.json
    data/experiments/<id>/logged_models/<model id>/artifacts/...
    data/experiments/<id>/traces/part-<n>.json           envelope of many traces, with
    data/experiments/<id>/traces/{traces,spans,assessments}-<n>.parquet
    data/experiments/<id>/traces/attachments/<trace id>/...
    data/experiments/<id>/<kind>/<id>.json               scorers, label schemas, issues, queues
    data/{models,prompts}/<name>/model.json
    data/{models,prompts}/<name>/versions/<number>/version.json
    data/models/<name>/versions/<number>/artifacts/...   only files that nothing else packed holds
    data/<kind>/<id>.json                                datasets, gateway, MCP servers, webhooks
    data/skills/<id>/artifacts/...                       files of a skill's versions
    data/workspaces/<name>/workspace.json                and the same tree again below it
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlflow_exim_plugin.container.paths import encode_path, encode_segment
from mlflow_exim_plugin.kinds import ENTITY_KINDS, KINDS, VERSION_KINDS, Kind

if TYPE_CHECKING:
    from collections.abc import Container

__all__ = [
    "ARCHIVE",
    "HEADER",
    "LOG",
    "README",
    "TRACE_TABLES",
    "TREE",
    "ObjectPath",
    "artifact_member",
    "attachment_folder",
    "attachment_member",
    "entity_member",
    "experiment_folder",
    "experiment_member",
    "files_at",
    "log_member",
    "logged_model_folder",
    "logged_model_member",
    "metrics_member",
    "model_folder",
    "model_member",
    "object_at",
    "run_folder",
    "run_member",
    "table_of",
    "trace_part_member",
    "trace_path",
    "trace_table_member",
    "version_folder",
    "version_member",
    "workspace_tree",
]

HEADER = "exim.json"
README = "README.txt"
LOG = "log/"
ARCHIVE = "data/archive.json"
TREE = "data/"
"""Tree of the default workspace; those of others are below ``workspaces/``."""

TRACE_TABLES = ("traces", "spans", "assessments")
"""Tables of a part of traces."""

_REGISTRY_FOLDERS = {kind: of.versions[0] for kind, of in KINDS.items() if of.versions}
_REGISTRY_KINDS = {folder: kind for kind, folder in _REGISTRY_FOLDERS.items()}
_ENTITY_FOLDERS = {
    (spec.of_experiment, spec.folder): kind
    for kind, spec in ENTITY_KINDS.items()
    if kind is not Kind.WORKSPACE
}
_PART = re.compile(r"part-([0-9]{5,})\.json")


@dataclass(frozen=True)
class ObjectPath:
    """What stands at a member path.

    Attributes:
        kind: Kind of the object whose envelope it is; ``TRACE`` for a part of traces.
        tree: Tree of the workspace, with its final slash.
        experiment: Segment of the experiment, empty outside of one.
        segment: Segment that encodes the object's id, name or number.
        model: Kind and segment of the registered model or prompt of a version.
    """

    kind: Kind
    tree: str
    experiment: str
    segment: str
    model: tuple[Kind, str] | None = None

    @property
    def experiment_folder(self) -> str:
        """Folder of the experiment that it belongs to, with its final slash; empty without one."""
        return f"{self.tree}experiments/{self.experiment}/" if self.experiment else ""

    def unnumbered(self, name: str) -> str:
        """Return the member that it is where its name meets no other's.

        Args:
            name: Of the registered model or prompt, of a version its model's; id of an entity.
        """
        if self.model is not None:
            folder = model_folder(name, kind=self.model[0], tree=self.tree)
            return f"{folder}versions/{self.segment}/version.json"
        if self.kind in VERSION_KINDS:
            return model_member(model_folder(name, kind=self.kind, tree=self.tree))
        return entity_member(self.kind, name, tree=self.tree, experiment=self.experiment_folder)


def object_at(path: str) -> ObjectPath | None:
    """Return whose envelope a member is; None for what is no envelope of an object."""
    tree, segments = _in_tree(path)
    match segments:
        case ["workspace.json"] if tree != TREE:
            return ObjectPath(Kind.WORKSPACE, tree, "", tree.split("/")[2])
        case ["experiments", experiment, "experiment.json"]:
            return ObjectPath(Kind.EXPERIMENT, tree, experiment, experiment)
        case ["experiments", experiment, "runs", run, "run.json"]:
            return ObjectPath(Kind.RUN, tree, experiment, run)
        case ["experiments", experiment, "logged_models", model, "logged_model.json"]:
            return ObjectPath(Kind.LOGGED_MODEL, tree, experiment, model)
        case ["experiments", experiment, "traces", name] if part := _PART.fullmatch(name):
            return ObjectPath(Kind.TRACE, tree, experiment, part[1])
        case ["experiments", experiment, folder, name] if name.endswith(".json"):
            return _entity_path(tree, experiment, folder, name)
        case [folder, model, "model.json"] if folder in _REGISTRY_KINDS:
            return ObjectPath(_REGISTRY_KINDS[folder], tree, "", model)
        case [folder, model, "versions", number, "version.json"] if folder in _REGISTRY_KINDS:
            owner = _REGISTRY_KINDS[folder]
            return ObjectPath(VERSION_KINDS[owner], tree, "", number, (owner, model))
        case [*folders, name] if name.endswith(".json"):
            return _entity_path(tree, "", "/".join(folders), name)
        case _:
            return None


def _entity_path(tree: str, experiment: str, folder: str, name: str) -> ObjectPath | None:
    kind = _ENTITY_FOLDERS.get((bool(experiment), folder))
    if kind is None:
        return None
    return ObjectPath(kind, tree, experiment, name.removesuffix(".json"))


def table_of(path: str) -> str | None:
    """Return which Parquet table a member is: ``metrics``, one of ``TRACE_TABLES``, or None."""
    match _in_tree(path)[1]:
        case ["experiments", _, "metrics", _]:
            return "metrics"
        case ["experiments", _, "traces", name] if name.endswith(".parquet"):
            table = name.partition("-")[0]
            return table if table in TRACE_TABLES else None
        case _:
            return None


def files_at(path: str) -> tuple[Kind, str, str] | None:
    """Return whose files a path leads to; None where it leads to nobody's.

    Args:
        path: Of a folder of files, or of one below it, by the names that the files have.

    Returns:
        Kind of the object; its envelope, for a trace its folder of attachments; the rest.
    """
    tree, segments = _in_tree(path)

    def envelope(length: int, name: str) -> str:
        return f"{tree}{'/'.join(segments[:length])}{name}"

    match segments:
        case ["experiments", _, "runs", _, "artifacts", *rest]:
            return Kind.RUN, run_member(envelope(4, "/")), "/".join(rest)
        case ["experiments", _, "logged_models", _, "artifacts", *rest]:
            return Kind.LOGGED_MODEL, logged_model_member(envelope(4, "/")), "/".join(rest)
        case ["experiments", _, "traces", "attachments", _, *rest]:
            return Kind.TRACE, envelope(5, ""), "/".join(rest)
        case [folder, _, "versions", _, "artifacts", *rest] if folder in _REGISTRY_KINDS:
            kind = VERSION_KINDS[_REGISTRY_KINDS[folder]]
            return kind, envelope(4, "/version.json"), "/".join(rest)
        case [folder, _, "artifacts", *rest] if (False, folder) in _ENTITY_FOLDERS:
            return _ENTITY_FOLDERS[False, folder], envelope(2, ".json"), "/".join(rest)
        case _:
            return None


def _in_tree(path: str) -> tuple[str, list[str]]:
    """Split a path into the tree it lies in and the segments below."""
    segments = path.split("/")
    if segments[:2] == ["data", "workspaces"] and len(segments) > 3:
        return "/".join([*segments[:3], ""]), segments[3:]
    return (TREE, segments[1:]) if segments[0] == "data" else ("", segments)


def workspace_tree(name: str) -> str:
    """Tree of a workspace that is not the default one, with its final slash."""
    return f"{TREE}workspaces/{encode_segment(name)}/"


def log_member(number: int) -> str:
    """Event ``number`` of the log, counted from 1."""
    return f"{LOG}{number:05d}.json"


def experiment_folder(experiment_id: str, tree: str = TREE) -> str:
    """Folder of an experiment, with its final slash."""
    return f"{tree}experiments/{encode_segment(experiment_id)}/"


def experiment_member(experiment_id: str, tree: str = TREE) -> str:
    """Envelope of an experiment."""
    return experiment_folder(experiment_id, tree) + "experiment.json"


def metrics_member(experiment: str, part: int) -> str:
    """Parquet file number ``part`` of the metric histories of the experiment whose folder it is."""
    return f"{experiment}metrics/part-{part:05d}.parquet"


def run_folder(experiment: str, run_id: str) -> str:
    """Folder of a run below the experiment whose folder is given, with its final slash."""
    return f"{experiment}runs/{encode_segment(run_id)}/"


def run_member(folder: str) -> str:
    """Envelope of the run whose folder is given."""
    return folder + "run.json"


def logged_model_folder(experiment: str, model_id: str) -> str:
    """Folder of a logged model below the experiment whose folder is given."""
    return f"{experiment}logged_models/{encode_segment(model_id)}/"


def logged_model_member(folder: str) -> str:
    """Envelope of the logged model whose folder is given."""
    return folder + "logged_model.json"


def trace_part_member(experiment: str, part: int) -> str:
    """Envelope of part number ``part`` of an experiment's traces."""
    return f"{experiment}traces/part-{part:05d}.json"


def trace_table_member(experiment: str, table: str, part: int) -> str:
    """One of ``TRACE_TABLES`` of a part of an experiment's traces."""
    return f"{experiment}traces/{table}-{part:05d}.parquet"


def trace_path(experiment: str, trace_id: str) -> str:
    """Return what stands for a trace in lists of objects; no member has this path."""
    return f"{experiment}traces/{encode_segment(trace_id)}"


def attachment_folder(experiment: str, trace_id: str) -> str:
    """Folder of the attachments of a trace, without a final slash."""
    return f"{experiment}traces/attachments/{encode_segment(trace_id)}"


def attachment_member(experiment: str, trace_id: str, path: str) -> str:
    """Member of an attachment of a trace."""
    return f"{attachment_folder(experiment, trace_id)}/{encode_path(path)}"


def entity_member(kind: Kind, identity: str, *, tree: str = TREE, experiment: str = "") -> str:
    """Envelope of an entity.

    Args:
        kind: Its kind.
        identity: Its id.
        tree: The workspace's tree.
        experiment: Folder of its experiment, for kinds that belong to one.
    """
    if kind is Kind.WORKSPACE:
        return workspace_tree(identity) + "workspace.json"
    spec = ENTITY_KINDS[kind]
    folder = experiment if spec.of_experiment else tree
    return f"{folder}{spec.folder}/{encode_segment(identity)}.json"


def model_folder(
    name: str,
    taken: Container[str] = (),
    *,
    kind: Kind = Kind.REGISTERED_MODEL,
    tree: str = TREE,
) -> str:
    """Folder of a registered model or prompt, with its final slash.

    Args:
        name: Its name.
        taken: Case-folded folders of others; names that differ in case alone get a number.
        kind: ``REGISTERED_MODEL`` or ``PROMPT``.
        tree: The workspace's tree.
    """
    start = f"{tree}{_REGISTRY_FOLDERS[kind]}/{encode_segment(name)}"
    folder, number = f"{start}/", 1
    while folder.casefold() in taken:
        number += 1
        folder = f"{start}~{number}/"
    return folder


def model_member(folder: str) -> str:
    """Envelope of the registered model or prompt whose folder is given."""
    return folder + "model.json"


def version_folder(model: str, version: int) -> str:
    """Folder of a version of the model whose folder is given, with its final slash."""
    return f"{model}versions/{version}/"


def version_member(model: str, version: int) -> str:
    """Envelope of a version of the model whose folder is given."""
    return version_folder(model, version) + "version.json"


def artifact_member(folder: str, path: str) -> str:
    """Member of an artifact of the run, logged model or version whose folder is given."""
    return f"{folder}artifacts/{encode_path(path)}"
