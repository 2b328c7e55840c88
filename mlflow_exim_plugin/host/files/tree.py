"""Artifact trees of one deployment: list, open as a stream, put.

What lies in buckets is listed, read and written by obstore, where it is installed and can be set up
for them; what lies on servers of SSH, FTP and Hadoop by their own clients. Everything else is
listed by MLflow's own ``ArtifactRepository``; bytes are streamed where the root allows it (local
paths, the artifact proxy, any scheme that fsspec can open); elsewhere MLflow downloads one file at
a time into a temporary folder.
"""

from __future__ import annotations

import contextvars
import copy
import functools
import io
import logging
import os
import posixpath
import shutil
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, cast
from urllib.parse import quote, urlsplit

from mlflow_exim_plugin.errors import (
    EximError,
    MissingDependencyError,
    ServerError,
    ServerLostError,
    StoreError,
)
from mlflow_exim_plugin.host.answers import answered, object_of
from mlflow_exim_plugin.host.errors import raise_for_status, translated
from mlflow_exim_plugin.host.files.gate import require_path
from mlflow_exim_plugin.host.files.local import LocalFiles
from mlflow_exim_plugin.host.files.same_names import taken_for
from mlflow_exim_plugin.host.files.served import ServedFiles
from mlflow_exim_plugin.host.files.streams import (
    BrokenReplyError,
    MeasuredStream,
    RejoinedStream,
    ResumingStream,
    TemporaryFile,
    TranslatedStream,
)
from mlflow_exim_plugin.host.open.absent import is_absent
from mlflow_exim_plugin.host.open.host import Host
from mlflow_exim_plugin.storage import objects
from mlflow_exim_plugin.storage.file_servers.roots import server_folder
from mlflow_exim_plugin.storage.file_systems import file_system
from mlflow_exim_plugin.storage.leftovers import half_name
from mlflow_exim_plugin.storage.schemes import scheme_of
from mlflow_exim_plugin.storage.urls import path_of_uri

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow_exim_plugin.host.open.roots import ArtifactRoots
    from mlflow_exim_plugin.storage.file_servers.folder import ServerFolder

__all__ = ["SMALL_BYTES", "ArtifactTree", "RootResolver"]

_log = logging.getLogger(__name__)

SMALL_BYTES = objects.SMALL_BYTES
"""What is sent while others are: it is read first."""
_SPOOLED_BYTES = 8 << 20
"""What waits in memory of a file that comes from one server and goes to another."""
_CHUNK_BYTES = 1 << 20
_BLOCK_BYTES = 8 << 20
"""What an object store is asked for at once; s3fs' own default is 50 MiB."""
_MAX_DEPTH = 64
_CALLS_AT_ONCE = 4
"""Of one process to servers, for their files; as many as jobs are, if nobody says otherwise."""


class RootResolver(Protocol):
    """What is asked where the files of an artifact root are."""

    @property
    def roots(self) -> ArtifactRoots | None:
        """How roots are found that are not where they are said to be; None where it is written."""

    def artifact_root(self, root: str) -> str:
        """Return where the files of an artifact root are to be found from here."""

    def run_root(self, run_id: str) -> str:
        """Return the artifact root of a run."""

    def files_at(self, root: str) -> FilesOfRoot | None:
        """Return the files of a root, None where they are to be looked for by its URI."""


class FilesOfRoot(Protocol):
    """The files of an artifact root, listed and opened where they lie.

    Attributes:
        problems: By path, why what is there is no file that could be taken.
        renamed: By path, the name at the source of a file whose name is no UTF-8, as text.
    """

    problems: dict[str, str]
    renamed: dict[str, str]

    def walk(self) -> Iterator[tuple[str, int]]:
        """Yield path and size in bytes of every file."""

    def open(self, path: str) -> BinaryIO:
        """Open a file that was listed."""


class ArtifactTree:
    """The files below one artifact root.

    Args:
        deployment: The deployment that the root belongs to.
        root: ``artifact_uri`` of a run, or where a model version's files are, ``runs:/`` included.
        owner: Id of the run or logged model that they belong to. Its server is asked itself where
            there seems to be nothing, or where only that can reach the root.

    Attributes:
        root: Where it is from here.
        problems: By path, why what ``files`` met is not among what it gave.
        renamed: By path, the name at the source of a file whose name is no UTF-8, as text.
    """

    def __init__(self, deployment: RootResolver, root: str, owner: str | None = None) -> None:
        if root.startswith("runs:/"):
            root = _run_folder(deployment, root)
        root = deployment.artifact_root(root)
        self.root = root
        path = path_of_uri(root)
        self._local = None if path is None else Path(path)
        self._served: ServedFiles | None = None
        if owner and isinstance(deployment, Host) and deployment.is_http:
            self._served = ServedFiles(deployment, owner)
        self._by_server = False
        self._roots = deployment.roots
        self._given = deployment.files_at(root)
        self._files: FilesOfRoot = self._given or LocalFiles(
            Path(path or ""), follows_links=self._roots is None or self._roots.follows_links
        )
        self.problems: dict[str, str] = self._files.problems
        self.renamed: dict[str, str] = self._files.renamed
        self._scheme = scheme_of(root)
        self._has_odd_keys = False
        self._proxied: Any = None  # how a server is asked for them: its URL, who asks
        if urlsplit(root).scheme == "mlflow-artifacts":
            if not isinstance(deployment, Host) or not deployment.is_http:
                raise ServerError(f"only its server knows where {root} is")
            with translated(f"opening artifact root {root}"):
                from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository

                self._proxied = copy.copy(deployment.tracking.get_host_creds())
                address = str(self._proxied.host)
                self._proxied.host = MlflowArtifactsRepository.resolve_uri(root, address)

    @cached_property
    def _repository(self) -> Any:
        with translated(f"opening artifact root {self.root}"):
            from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

            return get_artifact_repository(self.root)

    @property
    def _far(self) -> objects.ObjectFolder | ServerFolder | None:
        """The same without MLflow, None where the files are of no store that is known here."""
        return None if self._has_odd_keys else self._far_folder

    @cached_property
    def _far_folder(self) -> objects.ObjectFolder | ServerFolder | None:
        if self._given is not None or self._local is not None:
            return None
        if self._scheme.objects is not None:
            return objects.object_folder(self.root)
        return server_folder(self.root)

    @property
    def at_once(self) -> int:
        """How many files it is worth to send at once."""
        if self._local is not None:
            return 1
        if self._proxied is not None:
            return _CALLS_AT_ONCE
        return 1 if self._far is None else self._far.at_once

    def stamp(self, path: str) -> str:
        """Return what the store says of a listed file that is another when it was written anew.

        Returns:
            Nothing where a server lists names and sizes alone.
        """
        if self._by_server:
            return ""
        if self._far is not None:
            return self._far.stamps.get(path, "")
        return self._files.stamps.get(path, "") if isinstance(self._files, LocalFiles) else ""

    @property
    def is_remote(self) -> bool:
        """True when every file costs a call over the network."""
        return self._local is None or self._by_server

    def files(self) -> Iterator[tuple[str, int]]:
        """Yield path and size in bytes of every file, in path order within each folder.

        Raises:
            ServerError: The root cannot be listed.
        """
        some = False
        if not self._by_server:
            for found in self._reached():
                some = True
                yield found
        if some:
            return
        if self._served is None:
            self._require_root()
            return
        try:
            for found in self._served.files():
                self._by_server = True
                yield found
        except ServerError as error:
            if not is_absent(error):
                raise
            if self._local is not None and not self._local.exists():
                raise ServerError(f"{self.root}: only its server reaches it") from error

    def _reached(self) -> Iterator[tuple[str, int]]:
        if self._given is not None:
            yield from self._given.walk()
        elif self._far is not None:
            yield from self._far_files(self._far)
        elif self._local is None:
            yield from self._listed()
        elif os.path.lexists(self._local):
            yield from self._files.walk()

    def _far_files(self, folder: objects.ObjectFolder | ServerFolder) -> Iterator[tuple[str, int]]:
        try:
            found = folder.files()
        except objects.OddKeyError as error:
            _log.debug("%s: not by obstore: %s", self.root, error)
            self._has_odd_keys = True
            yield from self._listed()
        else:
            self.problems |= folder.problems
            self.renamed |= folder.renamed
            yield from found

    def _require_root(self) -> None:
        """Refuse to take a root that is not there for an empty one.

        Raises:
            StoreError: It is not there.
        """
        if self._local is None or self._roots is None or os.path.lexists(self._local):
            return
        if missing := self._roots.missing(self._local, self.root):
            raise StoreError(*missing)

    def _listed(self) -> Iterator[tuple[str, int]]:
        """Yield the files that MLflow lists, folder by folder; a server is asked for many at once.

        Raises:
            ServerError: The root cannot be listed.
        """
        level: list[str | None] = [None]
        entries: dict[str | None, list[Any]] = {}
        for depth in range(_MAX_DEPTH + 2):
            for folder, found in zip(level, self._entries_of(level, depth), strict=True):
                if isinstance(found, list):
                    entries[folder] = sorted(found, key=lambda entry: str(entry.path))
                elif folder is None:
                    raise found
                else:
                    self.problems[f"{folder}/"] = found.message
            level = [e.path for f in level for e in entries.get(f, ()) if e.is_dir]
            if not level:
                break
        waiting = [iter(entries[None])]
        while waiting:
            if (entry := next(waiting[-1], None)) is None:
                waiting.pop()
            elif entry.is_dir:
                waiting.append(iter(entries.pop(entry.path, ())))  # it may list itself
            else:
                yield entry.path, int(entry.file_size or 0)

    def _entries_of(
        self, folders: list[str | None], depth: int
    ) -> Iterator[list[Any] | ServerError]:
        """Yield the entries of each folder, or why they cannot be listed."""

        def listed(folder: str | None) -> list[Any] | ServerError:
            try:
                if depth > _MAX_DEPTH:
                    raise ServerError(f"it is nested deeper than {_MAX_DEPTH}")  # noqa: TRY301
                return self._entries(folder)
            except ServerError as error:
                return error

        if self._proxied is None or len(folders) == 1:
            yield from map(listed, folders)
            return
        here = contextvars.copy_context()
        yield from _callers().map(lambda folder: here.copy().run(listed, folder), folders)

    def _entries(self, folder: str | None) -> list[Any]:
        with translated(f"listing artifacts of {self.root}"):
            if self._proxied is not None:
                return answered(lambda: [*self._proxied_entries(folder or "")])
            return list(answered(lambda: self._repository.list_artifacts(folder)))

    def _proxied_entries(self, folder: str) -> Iterator[Any]:
        """Yield the entries of a folder whose names MLflow's client allows, and name the others.

        Its own listing refuses the whole folder for one of them, and knows no credentials of
        plugins.

        Source: ``mlflow.store.artifact.http_artifact_repo.HttpArtifactRepository``.
        """
        from mlflow.entities import FileInfo
        from mlflow.exceptions import MlflowException
        from mlflow.utils.rest_utils import http_request
        from mlflow.utils.uri import validate_path_is_safe

        endpoint = "/mlflow-artifacts/artifacts"
        asked = copy.copy(self._proxied)
        asked.host, _, root = asked.host.partition(endpoint)
        params = {"path": posixpath.join(root.strip("/"), folder)}
        response = http_request(asked, endpoint, "GET", params=params)
        raise_for_status(response)
        for entry in object_of(response.content).get("files", []):
            path = posixpath.join(folder, entry["path"])
            try:
                validate_path_is_safe(entry["path"])
            except MlflowException as error:
                self.problems[path] = f"MLflow's server gives no such file: {error.message}"
            else:
                yield FileInfo(path, entry["is_dir"], int(entry.get("file_size") or 0))

    def open(self, path: str, size_bytes: int | None = None) -> BinaryIO:
        """Open one file as a stream of bytes.

        Args:
            path: As ``files`` gave it.
            size_bytes: As ``files`` gave it. A store of another machine is held to it: what else
                comes, such as a page to log in, is an error of the stream at its end.

        Raises:
            ServerError: The file is gone or the store refused.
        """
        if not self._by_server and (folder := self._far) is not None:
            return folder.open(path, size_bytes)
        stream = self._opened(path)
        # Some kinds of stores list files without their sizes.
        if (
            size_bytes is None
            or not self.is_remote
            or not (size_bytes or self._proxied or self._by_server)
        ):
            return stream
        return cast("BinaryIO", MeasuredStream(stream, path, size_bytes, self.files))

    def read(self, path: str, size_bytes: int) -> Future[bytes] | None:
        """Begin to read a small file, None where only :meth:`open` does."""
        if self._by_server or (folder := self._far) is None:
            return None
        return folder.read(path, size_bytes)

    def _opened(self, path: str) -> BinaryIO:
        if self._by_server and self._served is not None:
            served = self._served
            return cast("BinaryIO", ResumingStream(lambda: served.bytes_of(path)))
        if self._given is not None or self._local is not None:
            return self._files.open(path)
        if self._proxied is not None:
            return cast("BinaryIO", ResumingStream(lambda: self._http_stream(path)))
        if self._scheme.opens_artifacts and (stream := self._fsspec_open(path)) is not None:
            return stream
        return self._downloaded(path)

    def put(self, path: str, stream: BinaryIO, size_bytes: int) -> None:
        """Write one file; one that is there is replaced by the whole of it or stays.

        Args:
            path: Path below the root.
            stream: The bytes; it is read to its end.
            size_bytes: Their number, as the source lists it.

        Raises:
            ServerError: The store refused.
            StoreError: It did, or the path would lead out of the root.
        """
        self.send(path, stream, size_bytes).result()

    def send(self, path: str, stream: BinaryIO, size_bytes: int) -> Future[None]:
        """Begin to write one file, as :meth:`put` does; what is small goes while others do.

        Every file of any object goes through here, to whatever target.

        Args:
            path: Path below the root.
            stream: The bytes; it is read to its end before this returns.
            size_bytes: Their number, as the source lists it.

        Raises:
            EximError: What the stream raises; of a file that is not small, what the store does.
        """
        require_path(path, is_local=self._local is not None)
        folder = None if self._local is not None or self._proxied is not None else self._far
        if folder is not None and (refusal := folder.refusal(path)):
            _log.debug("%s/%s: not written by it: %s", self.root, path, refusal)
            folder = None
        if size_bytes <= SMALL_BYTES and (folder is not None or self._proxied is not None):
            if len(data := _beginning(stream)) <= SMALL_BYTES:
                if folder is not None:
                    return folder.put(path, data)
                here = contextvars.copy_context()
                return _callers().submit(
                    here.run, self._http_put, path, io.BytesIO(data), len(data)
                )
            stream = cast("BinaryIO", RejoinedStream(data, stream))
        if folder is not None:
            folder.put_stream(path, stream, size_bytes)
        elif self._proxied is not None:
            self._http_put(path, stream, size_bytes)
        else:
            self._put(path, stream)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _put(self, path: str, stream: BinaryIO) -> None:
        if self._local is not None:
            target = _inside(self._local, path)
            # Beside it first: no piece may stand for the whole, and the stream may be of this file.
            beside = target.with_name(half_name(path))
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    with beside.open("wb") as file:
                        shutil.copyfileobj(stream, file, _CHUNK_BYTES)
                    if (other := taken_for(self._local, path)) is not None:
                        raise StoreError(f"{path} is {other} to this file system")
                    beside.replace(target)
                except (EximError, OSError):
                    beside.unlink(missing_ok=True)
                    raise
            except EximError:
                raise
            except OSError as error:
                raise StoreError(f"{path}: {error.strerror or error}") from error
            return
        with tempfile.TemporaryDirectory(prefix="mlflow-exim-") as folder:
            local = Path(folder) / posixpath.basename(path)
            with local.open("wb") as file:
                shutil.copyfileobj(stream, file, _CHUNK_BYTES)
            with translated(f"writing artifact {path}"):
                self._repository.log_artifact(str(local), posixpath.dirname(path) or None)

    def _endpoint(self, path: str) -> str:
        return "/" + quote(path)

    def _http_stream(self, path: str) -> Iterator[bytes]:
        from mlflow.utils.rest_utils import http_request

        with translated(f"reading artifact {path}"):
            response = http_request(
                self._proxied,
                self._endpoint(path),
                "GET",
                stream=True,
            )
        with response:
            if response.status_code != 200:
                raise ServerError(f"artifact {path}: the server answered {response.status_code}")
            try:
                with translated(f"reading artifact {path}"):
                    yield from response.iter_content(_CHUNK_BYTES)
            except (ServerError, ServerLostError) as error:
                raise BrokenReplyError(error.message) from error

    def _http_put(self, path: str, stream: BinaryIO, size_bytes: int) -> None:
        if not size_bytes or not stream.seekable():
            # A connection that breaks is tried again, from the start of what is sent.
            with tempfile.SpooledTemporaryFile(_SPOOLED_BYTES) as waiting:
                shutil.copyfileobj(stream, waiting, _CHUNK_BYTES)
                size_bytes = waiting.tell()
                waiting.seek(0)
                self._http_send(path, cast("BinaryIO", waiting) if size_bytes else b"")
        else:
            self._http_send(path, stream)

    def _http_send(self, path: str, data: BinaryIO | bytes) -> None:
        from mlflow.utils.rest_utils import http_request

        with translated(f"writing artifact {path}"):
            response = http_request(
                self._proxied,
                self._endpoint(path),
                "PUT",
                data=data,
                extra_headers={"Content-Type": "application/octet-stream"},
            )
            if response.status_code != 200:
                raise ServerError(f"artifact {path}: the server answered {response.status_code}")

    def _fsspec_open(self, path: str) -> BinaryIO | None:
        options: dict[str, Any] = {}
        if self._scheme.name == "s3":  # as MLflow's own S3 repository is set up
            if url := os.environ.get("MLFLOW_S3_ENDPOINT_URL"):
                options["endpoint_url"] = url
            if os.environ.get("MLFLOW_S3_IGNORE_TLS", "").lower() in {"1", "true"}:
                options["client_kwargs"] = {"verify": False}
        try:
            store, location = file_system(f"{self.root.rstrip('/')}/{path}", options)
        except MissingDependencyError:  # MLflow's own way is left
            return None
        with translated(f"reading artifact {path}"):
            stream = store.open(location, "rb", block_size=_BLOCK_BYTES)
        return cast("BinaryIO", TranslatedStream(stream, f"reading artifact {path}"))

    def _downloaded(self, path: str) -> BinaryIO:
        folder = tempfile.mkdtemp(prefix="mlflow-exim-")
        try:
            with translated(f"reading artifact {path}"):
                local = self._repository.download_artifacts(path, folder)
            return TemporaryFile(local, folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def _run_folder(deployment: RootResolver, uri: str) -> str:
    """Resolve ``runs:/`` by its own deployment: MLflow would ask the default tracking server."""
    with translated(f"opening artifact root {uri}"):
        from mlflow.store.artifact.runs_artifact_repo import RunsArtifactRepository
        from mlflow.utils.uri import append_to_uri_path

        run_id, path = RunsArtifactRepository.parse_runs_uri(uri)
        return str(append_to_uri_path(deployment.run_root(run_id), path or ""))


def _inside(root: Path, path: str) -> Path:
    """Return where a file is below a root, which a link there may not lead out of."""
    base = os.path.realpath(root)
    if os.path.commonpath([base, os.path.realpath((root / path).parent)]) != base:
        raise StoreError(f"artifact path {path!r} is refused: a link leads out of its folder")
    return root / path


def _beginning(stream: BinaryIO) -> bytes:
    """Return all of a stream that is small, and a little more than that of another."""
    pieces: list[bytes] = []
    left = SMALL_BYTES + 1
    while left and (piece := stream.read(left)):
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


@functools.cache
def _callers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_CALLS_AT_ONCE, "exim-call")
