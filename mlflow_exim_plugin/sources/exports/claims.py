"""What the files of an export say of other objects: that it has them, or could not have them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.schema.objects import Kind, Loss, encodable
from mlflow_exim_plugin.sources.exports.documents import decimal_id

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from collections.abc import Set as AbstractSet

    from mlflow_exim_plugin.sources.exports.layout import ExportedObject

__all__ = ["Claims"]

_HELD = {
    "runs": Kind.RUN,
    "run_ids": Kind.RUN,
    "ok_runs": Kind.RUN,
    "logged_models": Kind.LOGGED_MODEL,
    "traces": Kind.TRACE,
    "experiments": Kind.EXPERIMENT,
    "experiment_names": Kind.EXPERIMENT,
    "models": Kind.REGISTERED_MODEL,
    "ok_models": Kind.REGISTERED_MODEL,
    "datasets": Kind.EVALUATION_DATASET,
}
_FAILED = {
    "failed_runs": Kind.RUN,
    "failed_run_ids": Kind.RUN,
    "failed_logged_models": Kind.LOGGED_MODEL,
    "failed_traces": Kind.TRACE,
    "failed_models": Kind.REGISTERED_MODEL,
    "failed_versions": Kind.MODEL_VERSION,
}
_FAILED_EXPORTS = {
    "prompts_summary.json": Kind.PROMPT,
    "evaluation_datasets_summary.json": Kind.EVALUATION_DATASET,
}
"""What is counted as ``failed_exports``, and not named."""
_NAMES = {
    Kind.EXPERIMENT: ("name", "id"),
    Kind.EVALUATION_DATASET: ("dataset_id", "name"),
    Kind.REGISTERED_MODEL: ("name",),
}


class Claims:
    """Collects them from one file after another; each object is named by the first that does."""

    def __init__(self) -> None:
        self._held: dict[tuple[Kind, str], tuple[str, tuple[str, ...]]] = {}
        self._failed: dict[tuple[Kind, str], str] = {}
        self._counted: list[tuple[Kind, str, int]] = []

    def note(self, found: ExportedObject) -> None:
        """Take what a file says of others."""
        path = found.path
        said = found.info | found.payload
        for listed in (said, *_objects(said.get("experiments"))):
            for name, kind in _HELD.items():
                for names in _named(kind, listed.get(name)):
                    self._held.setdefault((kind, names[0]), (path, names))
        model = said.get("registered_model")
        owner = str(model.get("name")) if isinstance(model, dict) else ""
        for name, kind in _FAILED.items():
            given = said.get(name)
            if isinstance(given, int):
                self._counted.append((kind, path, given))
                continue
            for one in given if isinstance(given, list) else ():
                identity = f"{owner}/{_version(one)}" if owner else encodable(str(one))
                self._failed.setdefault((kind, identity), path)
        if isinstance(count := said.get("failed_exports"), int):
            self._counted.append((_FAILED_EXPORTS[path.rpartition("/")[2]], path, count))

    def losses(self, there: Mapping[Kind, AbstractSet[str]]) -> Iterator[Loss]:
        """Yield what is not there, though a file has it, and what files say that is missing.

        Args:
            there: Ids and names of what the export has.
        """
        for (kind, name), (path, names) in self._held.items():
            if there[kind].isdisjoint(names) and (kind, name) not in self._failed:
                yield Loss(kind, name, f"{path} lists it, and the export does not have it")
        named = [kind for kind, _ in self._failed]
        for (kind, identity), path in self._failed.items():
            yield Loss(kind, identity, f"{path} says that it could not be exported")
        for kind, path, count in self._counted:
            if count > named.count(kind):  # which may be said of each elsewhere
                yield Loss(kind, path, f"it says that {count} could not be exported, and not which")


def _objects(given: Any) -> list[dict[str, Any]]:
    return [one for one in given if isinstance(one, dict)] if isinstance(given, list) else []


def _named(kind: Kind, given: Any) -> Iterator[tuple[str, ...]]:
    """Yield what each entry of a list may be called."""
    for one in given if isinstance(given, list) else ():
        names = [one.get(name) for name in _NAMES.get(kind, ())] if isinstance(one, dict) else [one]
        told = [encodable(str(name)) for name in names if name not in (None, "")]
        if told and kind is Kind.EXPERIMENT:
            told.append(decimal_id(told[-1]))  # one that is no number is kept as another
        if told:
            yield tuple(told)


def _version(failed: Any) -> str:
    """Return the number of a version that could not be exported, of which much is told."""
    while isinstance(failed, dict):
        failed = failed.get("version")
    return encodable(str(failed))
