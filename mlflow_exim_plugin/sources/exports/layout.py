"""What an export holds and where, told by what its files say.

mlflow-export-import has changed its folders and fields seven times and its version number twice, so
nothing is told from that number (docs, "Coming from mlflow-export-import").
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, BinaryIO

from mlflow_exim_plugin.errors import StoreError
from mlflow_exim_plugin.schema.objects import Failure, Kind, encodable

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from mlflow_exim_plugin.sources.file_tree import FileTree

__all__ = ["FILES", "ExportLayout", "ExportedFile", "ExportedObject"]

_RUN = "run.json"
FILES = {
    _RUN: Kind.RUN,
    "experiment.json": Kind.EXPERIMENT,
    "model.json": Kind.REGISTERED_MODEL,
    "version.json": Kind.MODEL_VERSION,
    "manifest.json": Kind.EXPERIMENT,
    "logged_model.json": Kind.LOGGED_MODEL,
    "trace.json": Kind.TRACE,
    "prompt.json": Kind.PROMPT,
    "evaluation_dataset.json": Kind.EVALUATION_DATASET,
}
"""The names of the files of objects, and the kinds of these."""
_SINCE_22 = {"logged_model.json", "trace.json", "prompt.json", "evaluation_dataset.json"}
_SOME = ""
"""A layout of several that have the same such file."""
_OWNERS = {_RUN, "logged_model.json", "trace.json", "version.json", "model.json"}
_HOLDERS = {"artifacts", "version_model", "version_models"}
_LISTS = re.compile(
    r"(experiments|models|traces|logged_models|models_manifest"
    r"|(prompts|evaluation_datasets|import)_summary)\.json"
)


@dataclass(frozen=True)
class ExportedFile:
    """A file of an object.

    Attributes:
        path: Below the object's artifact root.
        place: In the export.
        size_bytes: Its size.
    """

    path: str
    place: str
    size_bytes: int


@dataclass(frozen=True)
class ExportedObject:
    """An object of an export.

    Attributes:
        path: Its JSON file.
        folder: Where that lies, with the object's files.
        payload: What the file says of the object.
        info: What it says of the export.
        as_of_ms: When it was exported, ms since the Unix epoch; 0 where it does not say.
    """

    path: str
    folder: str
    payload: dict[str, Any]
    info: dict[str, Any]
    as_of_ms: int


class ExportLayout:
    """Tells the files of an export apart by their names, places and contents.

    Args:
        tree: Its files.

    Attributes:
        paths: The files of objects by kind, in the order of their paths.
        lists: The files that say what is in others.
        failures: What is there and cannot be read.
        generations: Layouts of mlflow-export-import that were seen.
        tracking_uris: Where it says that it comes from.
        mlflow_versions: MLflow's versions that read it there.
    """

    def __init__(self, tree: FileTree) -> None:
        self._tree = tree
        self.failures: list[Failure] = []
        self.generations: set[str] = set()
        self.tracking_uris: set[str] = set()
        self.mlflow_versions: set[str] = set()
        self.paths: dict[Kind, list[str]] = {kind: [] for kind in FILES.values()}
        self._unzip_runs()
        self.lists: list[str] = []
        for path in self._tree.paths:
            name = path.rpartition("/")[2]
            if name in FILES and not self._is_held(path):
                self.paths[FILES[name]].append(path)
            elif _LISTS.fullmatch(name) and not self._is_held(path):
                self.lists.append(path)
        for path, problem in self._tree.problems.items():
            self.failures.append(Failure(Kind.ARTIFACT, path, problem))

    @property
    def described(self) -> str:
        """What the export is, for people."""
        told = sorted(self.generations - {_SOME}) or ["not to be told"]
        return f"export of mlflow-export-import, layout {', '.join(told)}"

    def take(
        self, kind: Kind, take_one: Callable[[ExportedObject], None], failures: list[Failure]
    ) -> None:
        """Hand over all objects of a kind, each by itself.

        Args:
            kind: The kind.
            take_one: Takes one; raises ``StoreError`` where it cannot.
            failures: Gain those that cannot be read.
        """
        for path in self.paths[kind]:
            try:
                with self.reading(path) as found:
                    take_one(found)
            except StoreError as error:
                failures.append(Failure(kind, path, error.message))

    @contextlib.contextmanager
    def reading(self, path: str) -> Generator[ExportedObject]:
        """Read a file of an object, and let nothing malformed in it raise anything else.

        Raises:
            StoreError: It cannot be read, is no JSON, or is not as such files are.
        """
        try:
            yield self.read(path)
        except StoreError as error:
            if path in error.message:
                raise
            raise StoreError(f"{path}: {error.message}", error.hint) from error
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
            raise StoreError(f"{path} is malformed: {error}") from error

    def read(self, path: str) -> ExportedObject:
        """Read a file of an object.

        Raises:
            StoreError: It cannot be read, or is no JSON.
        """
        document = self._tree.json(path)
        payload, info = payload_of(document)
        system = document.get("system") or info
        for name, said in (
            ("mlflow_tracking_uri", self.tracking_uris),
            ("mlflow_version", self.mlflow_versions),
        ):
            if value := system.get(name):
                said.add(encodable(str(value)))
        self.generations.add(_generation(path, document, payload))
        return ExportedObject(path, path.rpartition("/")[0], payload, info, _time_ms(system))

    def files_of(self, found: ExportedObject) -> list[ExportedFile]:
        """Return the artifacts of a run, logged model or trace, by path."""
        files = self.files_below(found.folder, "artifacts")
        if found.path.rpartition("/")[2] == _RUN:  # until 2021 notebooks lay beside the artifacts
            files += [
                ExportedFile(f"notebooks/{name}", f"{found.folder}/{name}".lstrip("/"), size_bytes)
                for name, size_bytes in self._tree.below(found.folder)
                if name.startswith("notebook.") and "/" not in name
            ]
        return sorted(files, key=lambda file: file.path)

    def files_below(self, *folders: str) -> list[ExportedFile]:
        """Return the files below a folder of the export."""
        folder = "/".join(filter(None, folders))
        return [
            ExportedFile(path, f"{folder}/{path}", size_bytes)
            for path, size_bytes in self._tree.below(folder)
        ]

    def open(self, file: ExportedFile) -> BinaryIO:
        """Open an artifact.

        Raises:
            StoreError: It is gone or cannot be read.
        """
        return self._tree.open(file.place)

    def content(self, file: ExportedFile) -> bytes:
        """Return all bytes of an artifact.

        Raises:
            StoreError: It is gone or cannot be read.
        """
        return self._tree.read(file.place)

    def _unzip_runs(self) -> None:
        """Look into zip files: until 2021 runs were exported as such."""
        for path in [path for path in self._tree.paths if path.endswith(".zip")]:
            if not self._is_held(path):
                try:
                    self._tree.unzip(path, _RUN)
                except StoreError as error:
                    self.failures.append(Failure(Kind.RUN, path, error.message))

    def _is_held(self, path: str) -> bool:
        """Whether a file is among the files of an object, where it may have any name."""
        parts = path.split("/")
        return any(
            part in _HOLDERS
            and any("/".join([*parts[:depth], name]) in self._tree.sizes for name in _OWNERS)
            for depth, part in enumerate(parts[:-1])
        )


def payload_of(document: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what a file says of its object, and of the export."""
    if isinstance(document.get("system"), dict):
        return _object(document.get("mlflow")), _object(document.get("info") or {})
    info: dict[str, Any] = {}
    for name in ("info", "export_info", "summary", "custom_info"):
        if isinstance(document.get(name), dict):
            info |= document[name]
    return document, info


def _generation(path: str, document: dict[str, Any], payload: dict[str, Any]) -> str:
    """Return which layout a file is of."""
    name = path.rpartition("/")[2]
    if "system" in document:
        if "export_file_version" not in document["system"]:
            return "2.0"
        if name == _RUN:
            return "2.2" if isinstance(payload.get("inputs"), dict) else "2.1"
        if name == "experiment.json":
            return "2.2" if "logged_models" in payload else _SOME
        return "2.2" if name in _SINCE_22 else _SOME
    if "summary" in document or "custom_info" in document:
        return "1c"
    exported = document.get("export_info")
    if isinstance(exported, dict) and "export_time" in exported:
        return "1b" if isinstance(exported["export_time"], dict) else "1a"
    return "0" if name == _RUN else _SOME


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise StoreError("it is no object")
    return value


def _time_ms(system: dict[str, Any]) -> int:
    """Return when an export was made; three ways to write it are known."""
    said = system.get("export_time")
    if isinstance(said, dict):
        said = said.get("seconds")
    if isinstance(said, int | float) and not isinstance(said, bool):
        return int(said * 1000)
    if isinstance(said, str):
        try:
            moment = datetime.fromisoformat(said)
        except ValueError:
            return 0
        return int(moment.replace(tzinfo=timezone.utc).timestamp() * 1000)
    return 0
