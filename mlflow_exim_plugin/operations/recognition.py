"""What lies at a location: told by its form, or by a look at a few names there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mlflow_exim_plugin.container.frames import begins_frame
from mlflow_exim_plugin.container.layout import HEADER
from mlflow_exim_plugin.container.paths import ARCHIVE_SUFFIX
from mlflow_exim_plugin.errors import EximError, NotFoundError
from mlflow_exim_plugin.host.open.locations import store_folder
from mlflow_exim_plugin.options import Opening
from mlflow_exim_plugin.redaction import redact_url
from mlflow_exim_plugin.sources.archive.snapshot.set_folder import as_set
from mlflow_exim_plugin.sources.exports.layout import FILES
from mlflow_exim_plugin.storage.file_systems import file_system, store_errors
from mlflow_exim_plugin.storage.ranges import open_range
from mlflow_exim_plugin.storage.schemes import is_far
from mlflow_exim_plugin.storage.urls import local_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = [
    "is_archive",
    "is_export",
    "is_server",
    "is_store_folder",
    "nothing_at",
    "store_below",
]

_STORE_FILES = ("*/meta.yaml", ".trash/*/meta.yaml", "models/*/meta.yaml", "[0-9]*/*/meta.yaml")
_HOLDERS = (".trash", "models")
"""Folders of a store whose own folders are its objects, as those of an experiment are its runs."""
_USUAL = "mlruns"
_LOOKED_INTO = 20
_SQLITE_MAGIC = b"SQLite format 3\x00"


def is_archive(location: str, opening: Opening) -> bool:
    """Whether it is an archive, a set of archives or a snapshot of one.

    Raises:
        NotFoundError: It is a file of something else.
    """
    url = urlsplit(location)
    if location.endswith(ARCHIVE_SUFFIX) or (url.scheme and url.path.endswith(ARCHIVE_SUFFIX)):
        return True
    if as_set(location, opening.storage_options):
        return True
    if is_far(location):  # whatever its name is, it is a file
        try:
            open_range(location, opening.storage_options).close()
        except NotFoundError:
            return False
        return True
    path = store_folder(location)
    return path is not None and path.is_file() and _starts_as_archive(path)


def is_server(location: str, _: Opening) -> bool:
    """Whether it can be a server; MLflow's plugins have schemes of their own."""
    return store_folder(location) is None and not is_far(location)


def is_store_folder(location: str, opening: Opening = Opening()) -> bool:
    """Whether it is the folder of a store of files."""
    if is_far(location):
        store, root = file_system(location, opening.storage_options)
        with store_errors(location, "list"):
            return bool(store.isdir(root)) and _holds_store(store, root)
    path = store_folder(location)
    return path is not None and any(found for glob in _STORE_FILES for found in path.glob(glob))


def is_export(location: str, _: Opening) -> bool:
    """Whether it is a folder with files of an export; a far store is not looked into for that."""
    if (folder := local_path(location)) is None:
        return is_far(location)
    path = Path(folder)
    if not path.is_dir() or (path / HEADER).exists():  # an archive that was extracted
        return False
    return any(True for name in FILES for _ in path.rglob(name))


def store_below(location: str, opening: Opening) -> str:
    """Return a question whether a store of files in a folder there is meant, empty without one."""
    try:
        inner = _store_in(location, opening)
    except EximError:
        return ""  # what could not be opened is said already
    return f"did you mean {redact_url(inner)}?" if inner else ""


def nothing_at(location: str, opening: Opening, kinds: Mapping[str, str]) -> NotFoundError:
    """Return what says that nothing is there of what was looked for.

    Args:
        location: Where.
        opening: How it is opened.
        kinds: What each kind of end looks like by its name, for people.
    """
    path, below = store_folder(location), store_below(location, opening)
    if path is not None and path.is_dir():
        missing = []
        if "folder" in kinds:
            missing.append(f"no store of files: there is no {', '.join(_STORE_FILES)} in it")
        if "export" in kinds:
            missing.append(f"no export: there is no {', '.join([*FILES][:3])} and such in it")
        return NotFoundError(f"{path} is {', and '.join(missing)}", below)
    return NotFoundError(
        f"there is no {', '.join(kinds)} at {redact_url(location)}",
        below or _zip_hint(path) or f"write {', '.join(kinds.values())}",
    )


def _holds_store(store: Any, root: str) -> bool:
    """Whether a folder of a file system has one of ``_STORE_FILES``; asks for few."""
    inner = _folders(store, root)
    if any(store.exists(f"{folder}/meta.yaml") for folder in inner[:_LOOKED_INTO]):
        return True
    holders = [f for f in inner if (name := _name(f)) in _HOLDERS or name[:1].isdigit()]
    return any(
        store.exists(f"{folder}/meta.yaml")
        for holder in holders[:_LOOKED_INTO]
        for folder in _folders(store, holder)[:_LOOKED_INTO]
    )


def _store_in(location: str, opening: Opening) -> str | None:
    """Return where in a folder a store of files is, None where none of the first ones is one."""
    if not is_far(location):
        path = store_folder(location)
        if path is None or not path.is_dir():
            return None
        folders = [path / name for name in _usual_first(f.name for f in path.iterdir())]
        return next((str(f) for f in folders if is_store_folder(str(f))), None)
    store, root = file_system(location, opening.storage_options)
    with store_errors(location, "list"):
        inner = {_name(folder): folder for folder in _folders(store, root)}
        found = (n for n in _usual_first(inner) if _holds_store(store, inner[n]))
        name = next(found, None)
    if name is None:
        return None
    outermost, chained, rest = location.partition("::")
    joint = "" if outermost.endswith("/") else "/"
    return f"{outermost}{joint}{name}{chained}{rest}"


def _usual_first(names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda name: (name != _USUAL, name))[:_LOOKED_INTO]


def _folders(store: Any, root: str) -> list[str]:
    listed = store.ls(root, detail=True)
    return [str(e["name"]).rstrip("/") for e in listed if e["type"] == "directory"]


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _zip_hint(path: Path | None) -> str:
    is_zip = path is not None and path.suffix == ".zip"
    return f"write zip://FOLDER::{path} for a folder in it" if is_zip else ""


def _starts_as_archive(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(len(_SQLITE_MAGIC))
    if start == _SQLITE_MAGIC:
        raise NotFoundError(
            f"{path} is a database, which is given by its URI", f"write sqlite:///{path}"
        )
    if not begins_frame(start):
        what = f"{path} is no archive: it does not start with a zstd frame"
        raise NotFoundError(what, _zip_hint(path) or "archives are what pack wrote")
    return True
