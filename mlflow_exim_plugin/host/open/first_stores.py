"""Stores in the place of MLflow's own, whose client cannot speak to servers of other times."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.host.answers import NO_TOKEN, UnbelievableError, answered, doubted

if TYPE_CHECKING:
    from mlflow_exim_plugin.host.open.generations import Ask

__all__ = ["FirstRegistry", "NothingOfToday"]

_VERSIONS = "model-versions/search"


class NothingOfToday:
    """Stands for a store of a server that has none of its calls.

    Args:
        store: MLflow's own, which knows the credentials.
    """

    def __init__(self, store: Any) -> None:
        self.get_host_creds = store.get_host_creds

    def __getattr__(self, name: str) -> Any:
        def absent(*_arguments: object, **_named: object) -> None:
            raise NotImplementedError(f"servers before MLflow 1.0 have no {name}")

        return absent


class FirstRegistry:
    """A registry that gives all its models and versions at once, as MLflow before 1.13 did.

    Args:
        path: Of its calls for registered models.
        get: GETs an endpoint.
        store: MLflow's own, for all else.
    """

    def __init__(self, path: str, get: Ask, store: Any) -> None:
        self._path = path
        self._get = get
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    @cached_property
    def _models(self) -> dict[str, Any]:
        from mlflow.entities.model_registry import RegisteredModel
        from mlflow.protos.model_registry_pb2 import RegisteredModel as Proto

        listed = self._listed(f"{self._path}/list", "registered_models", ("page_token", NO_TOKEN))
        return {model.name: model for model in _entities(listed, Proto, RegisteredModel)}

    @cached_property
    def _versions(self) -> list[Any]:
        from mlflow.entities.model_registry import ModelVersion
        from mlflow.protos.model_registry_pb2 import ModelVersion as Proto

        endpoint = f"{self._path.rpartition('/')[0]}/{_VERSIONS}"
        listed = self._listed(endpoint, "model_versions", ("filter", NO_TOKEN))
        return list(_entities(listed, Proto, ModelVersion))

    def _listed(self, endpoint: str, field: str, nonsense: tuple[str, str]) -> list[dict[str, Any]]:
        """Return all that a listing gives, page after page; what is empty is doubted."""

        def ask(*more: tuple[str, str]) -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = []
            token, seen = "", set()
            while True:
                query = [*more, *([("page_token", token)] if token else [])]
                answer = self._get(endpoint, query)
                if answer is None:
                    raise NotImplementedError(f"this server has no {endpoint}")
                # MLflow 1.4 had another form: the name of an object is one deeper.
                page = answer.get(f"{field}_detailed", answer.get(field, []))
                if not isinstance(page, list):
                    raise UnbelievableError(f"{field} is no list")
                found += [_flat(entry) for entry in page]
                token = answer.get("next_page_token") or ""
                if not token:
                    return found
                if token in seen:
                    raise UnbelievableError("its pages go on for ever and bring nothing new")
                seen.add(token)

        return answered(ask) or doubted(ask, lambda: ask(nonsense))

    def search_registered_models(self, filter_string: str | None, **_: object) -> list[Any]:
        """Return all registered models; none for a filter, which asks for what came later."""
        return [] if filter_string else [*self._models.values()]

    def get_registered_model(self, name: str) -> Any:
        """Return one."""
        return _found(self._models.get(name), f"registered model {name!r}")

    def search_model_versions(self, *_: object) -> list[Any]:
        """Return all versions of all models; whoever asks looks at their names."""
        return self._versions

    def get_model_version(self, name: str, version: str) -> Any:
        """Return one."""
        its = (v for v in self._versions if v.name == name and str(v.version) == version)
        return _found(next(its, None), f"version {version} of {name!r}")

    def get_model_version_download_uri(self, name: str, version: str) -> str:
        """Return where the files of a version are: those servers too say its source."""
        return str(self.get_model_version(name, version).source)


def _flat(entry: Any) -> dict[str, Any]:
    """Return an object of MLflow 1.4 in the form that it has had since."""
    if not isinstance(entry, dict):
        raise UnbelievableError("an element of a listing is no object")
    flat = dict(entry)
    for inner in ("model_version", "registered_model"):
        if isinstance(flat.get(inner), dict):
            flat |= flat.pop(inner)
    if "latest_versions" in flat:
        flat["latest_versions"] = [_flat(version) for version in flat["latest_versions"]]
    return flat


def _entities(listed: list[dict[str, Any]], proto: Any, entity: Any) -> list[Any]:
    from google.protobuf.json_format import ParseDict

    return [
        entity.from_proto(ParseDict(found, proto(), ignore_unknown_fields=True)) for found in listed
    ]


def _found(entity: Any, what: str) -> Any:
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST

    if entity is None:
        raise MlflowException(f"there is no {what}", RESOURCE_DOES_NOT_EXIST)
    return entity
