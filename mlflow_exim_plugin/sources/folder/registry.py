"""The model registry of an ``mlruns`` folder: registered models and prompts, versions, aliases."""

from __future__ import annotations

import contextlib
import re
import time
from typing import TYPE_CHECKING

from mlflow_exim_plugin.host.open.locations import store_folder
from mlflow_exim_plugin.kinds import VERSION_KINDS
from mlflow_exim_plugin.schema.objects import (
    IS_NUMBER,
    Failure,
    Kind,
    Loss,
    ModelVersion,
    RegisteredModel,
)
from mlflow_exim_plugin.sources.folder.fields import (
    Fields,
    registered_model_document,
    version_document,
)
from mlflow_exim_plugin.sources.folder.files import META, StoreFiles, UnreadableError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow_exim_plugin.sources.folder.other_registry import RegistryOfHost

__all__ = ["RegistryFolder", "registry_elsewhere"]

_MODELS = "models"
_PROMPT_TAG = "mlflow.prompt.is_prompt"
_PARTS = frozenset({META, "tags", "aliases"})
_VERSION = re.compile(r"version-([1-9][0-9]{0,18})")
_DELETED = "Deleted_Internal"


@contextlib.contextmanager
def registry_elsewhere(uri: str | None) -> Iterator[RegistryFolder | RegistryOfHost | None]:
    """Open the registry that is to be read in place of a folder's own.

    Args:
        uri: Where it is, None where there is no such registry.
    """
    if uri is None:
        yield None
    elif (folder := store_folder(uri)) is not None:
        yield RegistryFolder(StoreFiles(str(folder)))
    else:
        from mlflow_exim_plugin.sources.folder.other_registry import RegistryOfHost

        with RegistryOfHost.open(uri) as registry:
            yield registry


class RegistryFolder:
    """Reads what MLflow's registry of files keeps; each object by itself.

    Args:
        files: The folder.
    """

    def __init__(self, files: StoreFiles) -> None:
        self._files = files
        self._roots: dict[str, str] = {}

    def models(self) -> Iterator[RegisteredModel | Failure | Loss]:
        """Yield every registered model and prompt, by name."""
        try:
            listed = self._files.folders(_MODELS) or []
        except UnreadableError as error:
            yield Failure(Kind.REGISTERED_MODEL, f"{_MODELS}/", error.message)
            return
        for name in listed:
            path = f"{_MODELS}/{name}"
            try:
                names = self._files.names(path)
                known = _PARTS | set(filter(_VERSION.fullmatch, names))
                if not known & names.keys():
                    self._files.left_alone.append(path)
                    continue
                self._files.leave_alone(path, names, known)
                yield from self._model(name, path)
            except UnreadableError as error:
                yield Failure(Kind.REGISTERED_MODEL, name, error.message)

    def versions(self, model: RegisteredModel) -> Iterator[ModelVersion | Failure | Loss]:
        """Yield the versions of a registered model or prompt, by number."""
        path = f"{_MODELS}/{model.name}"
        kind = VERSION_KINDS[model.kind]
        try:
            names = self._files.folders(path) or []
        except UnreadableError as error:
            yield Failure(kind, f"{model.name}/", error.message)
            return
        aliases: dict[int, list[str]] = {}
        for alias, number in model.aliases.items():
            aliases.setdefault(number, []).append(alias)
        found = (_VERSION.fullmatch(name) for name in names)
        for number in sorted(int(match[1]) for match in found if match):
            yield from self._version(model, number, f"{path}/version-{number}", aliases)

    def root(self, version: ModelVersion) -> str:
        """Return where the files of a version that was just read are."""
        return self._roots.pop(version.id, "") or str(version.document.get("source") or "")

    def _model(self, name: str, path: str) -> Iterator[RegisteredModel | Failure | Loss]:
        failed: list[Failure | Loss] = []
        tags = self._files.texts(Kind.TAG, name, f"{path}/tags", failed)
        aliases = self._files.texts(Kind.TAG, name, f"{path}/aliases", failed)
        for alias, number in list(aliases.items()):
            if not IS_NUMBER.fullmatch(number):
                reason = f"{self._files.place(f'{path}/aliases/{alias}')} names no version"
                failed.append(Failure(Kind.TAG, f"{name}/{alias}", reason))
                del aliases[alias]
        fields = Fields(self._files.place(f"{path}/{META}"), self._files.meta(path))
        document = registered_model_document(fields, tags, aliases)
        self._files.require_place(path, "name", name, document["name"])
        kind = Kind.PROMPT if tags.get(_PROMPT_TAG) == "true" else Kind.REGISTERED_MODEL
        yield from failed
        yield RegisteredModel(document, kind, as_of_ms=time.time_ns() // 1_000_000)

    def _version(
        self, model: RegisteredModel, number: int, path: str, aliases: dict[int, list[str]]
    ) -> Iterator[ModelVersion | Failure | Loss]:
        kind, name = VERSION_KINDS[model.kind], f"{model.name}/{number}"
        try:
            self._files.leave_alone(path, self._files.names(path), _PARTS)
            fields = Fields(self._files.place(f"{path}/{META}"), self._files.meta(path))
            if fields.maybe_text("current_stage") == _DELETED:
                return
            failed: list[Failure | Loss] = []
            tags = self._files.texts(Kind.TAG, name, f"{path}/tags", failed)
            document = version_document(fields, tags, aliases.get(number, []))
            self._files.require_place(path, "name", model.name, document["name"])
            self._files.require_place(path, "version", str(number), document["version"])
            location = fields.maybe_text("storage_location")
        except UnreadableError as error:
            yield Failure(kind, name, error.message)
            return
        yield from failed
        if location:
            self._roots[name] = location
        yield ModelVersion(document, as_of_ms=model.as_of_ms, kind=kind)
