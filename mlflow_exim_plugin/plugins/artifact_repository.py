"""MLflow's artifact repository on an archive: files by ranges, from where the archive lies."""

from __future__ import annotations

import io
import posixpath
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

from mlflow.entities import FileInfo
from mlflow.store.artifact.artifact_repo import ArtifactRepository

from mlflow_exim_plugin.container.layout import files_at
from mlflow_exim_plugin.errors import NotFoundError
from mlflow_exim_plugin.host.files.gate import path_problem
from mlflow_exim_plugin.host.traces.files import DATA_FILE
from mlflow_exim_plugin.operations.live.archive import open_live
from mlflow_exim_plugin.plugins.address import Address
from mlflow_exim_plugin.plugins.refusal import as_mlflow, refused
from mlflow_exim_plugin.schema.objects import Kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from mlflow_exim_plugin.operations.live.archive import OpenArchive
    from mlflow_exim_plugin.schema.envelope import ArtifactEntry

__all__ = ["ArchiveArtifactRepository"]

_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True)
class _FilesOf:
    """Files of one object, or what is below a folder of them.

    Attributes:
        part: The archive.
        kind: Kind of the object.
        place: Its envelope, for a trace its folder of attachments.
        inside: The folder, or a file.
    """

    part: OpenArchive
    kind: Kind
    place: str
    inside: str

    def entries(self) -> Iterable[ArtifactEntry]:
        """Return all files of the object, but those that would be put where they do not belong."""
        found = self.part.files.of(self.kind, self.place).values()
        return (entry for entry in found if not path_problem(entry.path))

    def spans(self) -> bytes | None:
        """Return the file with the spans of a trace that MLflow does not look for in a table."""
        from mlflow_exim_plugin.host.sql.trace_rows import span_file

        if self.kind is not Kind.TRACE:
            return None
        try:
            trace = self.part.files.trace(self.place)
        except NotFoundError:
            return None
        return None if trace is None or trace.spans is None else span_file(trace)


class ArchiveArtifactRepository(ArtifactRepository):  # type: ignore[misc]
    """The files below one address.

    Args:
        artifact_uri: Address of a folder of files in an archive, or of the archive.

    Raises:
        MlflowException: The archive is not there, or cannot be read.
    """

    def __init__(self, artifact_uri: str) -> None:
        super().__init__(artifact_uri)
        with as_mlflow():
            self._address = Address.parse(artifact_uri)
            self._live = open_live(*self._address.archives)

    def list_artifacts(self, path: str | None = None) -> list[FileInfo]:
        """List what lies directly in a folder, by name; nothing for a file."""
        with as_mlflow():
            listed = {}
            for name, size_bytes in self._below(path or ""):
                first, _, deeper = name.partition("/")
                at = posixpath.join(path, first) if path else first
                listed[at] = FileInfo(at, bool(deeper), None if deeper else size_bytes)
            return [listed[at] for at in sorted(listed)]

    def _download_file(self, remote_file_path: str, local_path: str) -> None:
        with (
            as_mlflow(),
            self._open(remote_file_path) as source,
            Path(local_path).open("wb") as target,
        ):
            shutil.copyfileobj(source, target, _BUFFER_BYTES)

    def _below(self, path: str) -> Iterator[tuple[str, int]]:
        """Yield path and size of what lies below a folder, by the paths from there."""
        found = self._files(path)
        if found is None:
            return
        start = f"{found.inside}/" if found.inside else ""
        for entry in found.entries():
            if entry.path.startswith(start):
                yield entry.path.removeprefix(start), entry.size_bytes
        if not found.inside and (data := found.spans()) is not None:
            yield DATA_FILE, len(data)

    def _open(self, path: str) -> BinaryIO:
        """Open a file.

        Raises:
            NotFoundError: The archive does not hold it.
        """
        if (found := self._files(path)) is not None:
            for entry in found.entries():
                if entry.path == found.inside:
                    return found.part.archive.reader.open_member(entry.member)
            if found.inside == DATA_FILE and (data := found.spans()) is not None:
                return io.BytesIO(data)
        raise NotFoundError(f"{self._live.name} does not hold the file {path!r}")

    def _files(self, path: str) -> _FilesOf | None:
        whole = posixpath.join(self._address.folder, path.strip("/")).rstrip("/")
        if not whole:
            return None
        part, there = self._live.at(whole)
        found = files_at(there)
        return None if found is None else _FilesOf(part, *found)

    def _refuse(self, *_arguments: Any, **_named: Any) -> NoReturn:
        raise refused(f"Writing files to {self._live.name}")

    log_artifact = log_artifacts = delete_artifacts = _refuse
    log_artifact_from_stream = log_artifact_from_async_stream = _refuse
    upload_attachment = upload_trace_data = upload_archived_trace_data = _refuse
    upload_archived_trace_data_bytes = _refuse
