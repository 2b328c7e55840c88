"""The registered models and prompts of an export, with their versions by number."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import StoreError
from mlflow_exim_plugin.schema.objects import (
    Failure,
    Kind,
    Loss,
    ModelVersion,
    RegisteredModel,
)
from mlflow_exim_plugin.sources.exports.documents import (
    IS_PROMPT,
    entries,
    prompt_version_document,
    registered_model_document,
    version_document,
)

if TYPE_CHECKING:
    from mlflow_exim_plugin.sources.exports.claims import Claims
    from mlflow_exim_plugin.sources.exports.layout import ExportedObject, ExportLayout

__all__ = ["ExportedModel", "ExportedRegistry"]


@dataclass
class ExportedModel:
    """A registered model or prompt.

    Attributes:
        model: It itself.
        folder: Where its file lies.
        versions: Its versions by number.
        failures: Of versions that cannot be read.
    """

    model: RegisteredModel
    folder: str
    versions: dict[int, ModelVersion] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)

    def lacks(self, what: str) -> None:
        """Note what the export did not have of it."""
        self.model.issues += (Loss(self.model.kind, self.model.name, what),)


class ExportedRegistry:
    """Reads all registered models and prompts at once: they are few and small.

    Args:
        layout: The export.
        claims: Gains what models say of their versions.

    Attributes:
        models: By name, prompts first.
        failures: What cannot be read.
        experiment_names: By run id, what a version says of the experiment of its run.
    """

    def __init__(self, layout: ExportLayout, claims: Claims) -> None:
        self._claims = claims
        self.failures: list[Failure] = []
        self.experiment_names: dict[str, str] = {}
        self._files: dict[str, ExportedObject] = {}
        self.models: dict[str, ExportedModel] = {}
        layout.take(Kind.PROMPT, self._take_prompt, self.failures)
        layout.take(Kind.REGISTERED_MODEL, self._take_model, self.failures)
        layout.take(Kind.MODEL_VERSION, self._take_version, self.failures)
        order = sorted(
            self.models.values(), key=lambda m: (m.model.kind is not Kind.PROMPT, m.model.name)
        )
        self.models = {one.model.name: one for one in order}

    def _take_model(self, read: ExportedObject) -> None:
        said = read.payload.get("registered_model")
        if not isinstance(said, dict):
            raise StoreError(f"{read.path} says of no registered model")
        document = registered_model_document(said)
        if (known := self._files.get(document["name"])) is not None:
            if known.payload != read.payload:
                raise StoreError(f"{read.path}: {document['name']!r} is in {known.path} otherwise")
            return
        self._files[document["name"]] = read
        self._claims.note(read)
        tags = {tag["key"]: tag["value"] for tag in document["tags"]}
        kind = Kind.PROMPT if tags.get(IS_PROMPT) == "true" else Kind.REGISTERED_MODEL
        model = RegisteredModel(document, kind, as_of_ms=read.as_of_ms)
        one = self.models[model.name] = ExportedModel(model, read.folder)
        if "permissions" in document:
            one.lacks("its permissions are in the archive, and not applied")
        listed = said.get("versions")
        if listed is None and (listed := said.get("latest_versions")):
            one.lacks("the export has but the latest version of each stage")
        for version in listed or ():
            self._add(one, version, read)

    def _take_version(self, read: ExportedObject) -> None:
        said = read.payload.get("model_version")
        if not isinstance(said, dict) or not isinstance(said.get("name"), str):
            raise StoreError(f"{read.path} says of no version")
        name = said["name"]
        if name not in self.models:
            document = registered_model_document({"name": name})
            model = RegisteredModel(document, as_of_ms=read.as_of_ms)
            self.models[name] = ExportedModel(model, read.folder)
            self.models[name].lacks("the export has a version of it alone")
        self._add(self.models[name], said, read)

    def _take_prompt(self, read: ExportedObject) -> None:
        said = read.payload.get("prompt")
        if not isinstance(said, dict):
            raise StoreError(f"{read.path} says of no prompt")
        document = prompt_version_document(said)
        name, number = document["name"], _number_of(document)
        if name not in self.models:
            model = RegisteredModel(
                {"name": name, "tags": entries({IS_PROMPT: "true"}), "aliases": []},
                Kind.PROMPT,
                as_of_ms=read.as_of_ms,
            )
            self.models[name] = ExportedModel(model, read.folder)
            self.models[name].lacks("such exports have neither its aliases nor its own tags")
        one = self.models[name]
        if number in one.versions:
            raise StoreError(f"{name}/{number} is in the export twice")
        one.versions[number] = ModelVersion(
            document, kind=Kind.PROMPT_VERSION, as_of_ms=read.as_of_ms
        )
        if created := document.get("creation_timestamp"):
            known = one.model.document.get("creation_timestamp", created)
            one.model.document["creation_timestamp"] = min(known, created)

    def _add(self, one: ExportedModel, said: Any, read: ExportedObject) -> None:
        name = one.model.name
        shown = said.get("version") if isinstance(said, dict) else "?"
        try:
            if not isinstance(said, dict):
                raise StoreError("it is no object")  # noqa: TRY301
            document = version_document(said, name)
            number = _number_of(document)
            if number in one.versions:
                raise StoreError("it is in the export twice")  # noqa: TRY301
        except StoreError as error:
            one.failures.append(Failure(Kind.MODEL_VERSION, f"{name}/{shown}", error.message))
            return
        aliases = [a for a, v in one.model.aliases.items() if v == number]
        document["aliases"] = sorted({*document["aliases"], *aliases})
        if (run_id := document.get("run_id")) and isinstance(said.get("_experiment_name"), str):
            self.experiment_names.setdefault(str(run_id), said["_experiment_name"])
        one.versions[number] = ModelVersion(document, as_of_ms=read.as_of_ms)


def _number_of(version: dict[str, Any]) -> int:
    try:
        return int(version["version"])
    except ValueError:
        raise StoreError(f"{version['version']!r:.60} is no number of a version") from None
