"""A model registry of a database or server that is read together with an ``mlruns`` folder."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from mlflow_exim_plugin.errors import ServerError
from mlflow_exim_plugin.host.open.host import Host
from mlflow_exim_plugin.host.sql.reading import reader_of
from mlflow_exim_plugin.kinds import VERSION_KINDS
from mlflow_exim_plugin.schema.objects import Failure, Kind, Loss, ModelVersion, RegisteredModel

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Self

__all__ = ["RegistryOfHost"]


class RegistryOfHost:
    """Reads a registry that is a database's or a server's.

    Args:
        host: That one.
    """

    def __init__(self, host: Host) -> None:
        self._reader = reader_of(host)

    @classmethod
    @contextlib.contextmanager
    def open(cls, uri: str) -> Iterator[Self]:
        """Open a registry to be read."""
        with Host(uri, uri, create=False) as host:
            yield cls(host)

    def models(self) -> Iterator[RegisteredModel | Failure | Loss]:
        """Yield every registered model and prompt, by name."""
        names, prompts = self._reader.registered_models()
        for name in sorted(names + prompts):
            kind = Kind.PROMPT if name in prompts else Kind.REGISTERED_MODEL
            try:
                document = self._reader.registered_model(name)
            except ServerError as error:
                yield Failure(kind, name, error.message)
            else:
                yield RegisteredModel(document, kind, as_of_ms=time.time_ns() // 1_000_000)

    def versions(self, model: RegisteredModel) -> Iterator[ModelVersion | Failure | Loss]:
        """Yield the versions of a registered model or prompt, by number."""
        kind = VERSION_KINDS[model.kind]
        try:
            listed = self._reader.model_versions(model.name, model.aliases, model.kind)
        except ServerError as error:
            yield Failure(kind, f"{model.name}/", error.message)
            return
        for document in listed:
            yield ModelVersion(document, as_of_ms=model.as_of_ms, kind=kind)

    def root(self, version: ModelVersion) -> str:
        """Return where the files of a version are."""
        source = str(version.document.get("source") or "")
        return self._reader.download_uri(version.name, version.version) or source
