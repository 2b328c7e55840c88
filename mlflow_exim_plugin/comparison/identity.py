"""What an object is known by on the other side: its id, its oldest origin, its name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.schema.canonical import canonical_bytes
from mlflow_exim_plugin.schema.objects import (
    ENTITY_KINDS,
    Entity,
    Experiment,
    Kind,
    LoggedModel,
    ModelVersion,
    RegisteredModel,
    Run,
    Trace,
)
from mlflow_exim_plugin.schema.provenance import ORIGIN, experiment_origin, model_origin, told

if TYPE_CHECKING:
    from mlflow_exim_plugin.schema.objects import StreamObject

__all__ = ["Identities", "Identity"]


@dataclass(frozen=True)
class Identity:
    """How an object finds its counterpart.

    Attributes:
        id: What other objects of its side call it.
        own: What identifies it wherever it is: its id, or a fingerprint where ids are counted.
        oldest: Where it was first: the last of its chain of origins, or ``own``.
        natural: What people know it by, within its owner; empty where that says nothing.
        owner: Kind and id of the experiment or model that it belongs to, None without one.
    """

    id: str
    own: str
    oldest: str
    natural: str
    owner: tuple[Kind, str] | None = None


class Identities:
    """Identifies the objects of one stream, in its order."""

    def __init__(self) -> None:
        self._workspace = ""
        self._model = ""

    def of(self, item: StreamObject) -> Identity:
        """Return how an object is known."""
        if isinstance(item, Experiment):
            origin = experiment_origin(item.document)
            return self._tagged(item.id, origin, item.document, item.name)
        if isinstance(item, Run):
            info = item.info
            natural = _joined(info.get("run_name"), info.get("start_time"), info.get("user_id"))
            data = item.document.get("data", {})
            return self._tagged(item.id, item.id, data, natural, _experiment(item.experiment_id))
        if isinstance(item, LoggedModel):
            name = str(item.info.get("name", ""))
            owner = _experiment(item.experiment_id)
            return self._tagged(item.id, item.id, item.info, name, owner)
        if isinstance(item, Trace):
            oldest = _oldest(told(item.info.get("tags", {}), ORIGIN), item.id)
            return Identity(item.id, item.id, oldest, "", _experiment(item.experiment_id))
        if isinstance(item, RegisteredModel):
            self._model = model_origin(item.document)
            return self._tagged(item.name, self._model, item.document, item.name)
        if isinstance(item, ModelVersion):
            kind = Kind.PROMPT if item.kind is Kind.PROMPT_VERSION else Kind.REGISTERED_MODEL
            own = f"{self._model}/{item.version}"
            number = str(item.version)
            return self._tagged(item.id, own, item.document, number, (kind, item.name))
        return self._of_entity(item)

    def _of_entity(self, entity: Entity) -> Identity:
        spec = ENTITY_KINDS[entity.kind]
        if entity.kind is Kind.WORKSPACE:
            self._workspace = ""
        identity = str(entity.document[spec.id_column])
        found = self._tagged(
            identity,
            identity,
            entity.document if entity.kind is Kind.EVALUATION_DATASET else {},
            _natural_of_entity(entity),
            _experiment(entity.experiment_id) if entity.experiment_id else None,
        )
        if entity.kind is Kind.WORKSPACE:
            self._workspace = entity.id
        elif spec.is_named:
            natural = found.natural
            return Identity(identity, natural, natural, natural, found.owner)
        return found

    def _tagged(
        self,
        identity: str,
        own: str,
        tagged: dict[str, Any],
        natural: str,
        owner: tuple[Kind, str] | None = None,
    ) -> Identity:
        chain = told(_texts(tagged.get("tags")), ORIGIN)
        if owner is None and self._workspace:
            natural = f"{self._workspace}\n{natural}"
        return Identity(identity, own, _oldest(chain, own), natural, owner)


def _natural_of_entity(entity: Entity) -> str:
    described = ENTITY_KINDS[entity.kind]
    names = [entity.document.get(name) for name in described.natural]
    if len(names) > 1:
        return _joined(*names)
    # MLflow takes no two queues that differ in case.
    name = str(names[0] if names[0] is not None else "")
    return name.lower() if "name_key" in described.unique else name


def _experiment(experiment_id: str) -> tuple[Kind, str]:
    return Kind.EXPERIMENT, experiment_id


def _texts(tags: Any) -> dict[str, str]:
    """Return tags by key; foreign archives may hold anything."""
    entries = [e for e in (tags if isinstance(tags, list) else ()) if isinstance(e, dict)]
    return {str(e.get("key")): str(e.get("value", "")) for e in entries}


def _oldest(chain: str, own: str) -> str:
    return chain.rsplit(" ", maxsplit=1)[-1] if chain else own


def _joined(*values: Any) -> str:
    return canonical_bytes(values).decode("utf-8")
