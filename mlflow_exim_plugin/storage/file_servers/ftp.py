"""Folders of files behind FTP, by Python's own client."""

from __future__ import annotations

import contextlib
import ftplib
import posixpath
import re
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import unquote, urlparse

from mlflow_exim_plugin.errors import StoreError
from mlflow_exim_plugin.storage.file_servers.connections import Connections
from mlflow_exim_plugin.storage.file_servers.folder import (
    AT_ONCE,
    FileServer,
    FolderEntry,
    FolderListing,
)
from mlflow_exim_plugin.storage.file_servers.transfer import ServedVersion

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["LOST", "FtpLine", "ftp_server"]

_SILENCE_SECONDS = 60
_ANY_BYTE = "latin-1"
_CHUNK_BYTES = 1 << 20
LOST = (ftplib.error_temp, ftplib.error_proto, EOFError, ConnectionError, TimeoutError)
_UNKNOWN = ("500", "501", "502", "504")
"""What servers say of commands that they do not have."""
_LINE = re.compile(
    rb"(?P<kind>[-dlbcps])[-\w]{9}\S?\s+\d+\s+\S+\s+\S+\s+(?P<size>\d+)"
    rb"\s+\w{3}\s+\d+\s+[\d:]+ (?P<name>.+)"
)
"""Of a listing as ``ls -l`` makes it."""


def ftp_server(url: str) -> FileServer:
    """Return the server of a URL, to which nothing is said yet.

    Source: ``mlflow.store.artifact.ftp_artifact_repo.FTPArtifactRepository``.
    """
    parts = urlparse(url)

    def connect() -> FtpLine:
        client = ftplib.FTP(timeout=_SILENCE_SECONDS)  # noqa: S321
        try:
            client.connect(parts.hostname or "localhost", parts.port or ftplib.FTP_PORT)
            try:
                client.login(parts.username or "", unquote(parts.password or ""))
            except ftplib.error_perm as error:
                hint = "check the user and password of the root"
                raise StoreError(f"{parts.hostname} lets nobody in: {error}", hint) from error
            return FtpLine(client)
        except BaseException:
            client.close()
            raise

    return FileServer(
        reading=Connections(connect, AT_ONCE),
        writing=Connections(connect, AT_ONCE),
        transient=LOST,
        refusal=lambda path: "FTP cannot say its name" if re.search(r"[\r\n]", path) else "",
    )


class FtpLine:
    """A connection that is logged in.

    Args:
        client: Python's.
    """

    def __init__(self, client: ftplib.FTP) -> None:
        self._client = client
        client.encoding = _ANY_BYTE
        client.voidcmd("TYPE I")
        for more in ("OPTS UTF8 ON", "OPTS MLST type;size;modify;unique;"):
            with contextlib.suppress(ftplib.error_perm):
                client.sendcmd(more)

    def is_sound_after(self, error: BaseException) -> bool:
        """Whether nothing is on its way any more after an error."""
        return isinstance(error, ftplib.error_perm | FileNotFoundError)

    def is_lost(self) -> bool:
        """Whether it is closed."""
        return self._client.sock is None

    def close(self) -> None:
        """Close it."""
        self._client.close()

    def __del__(self) -> None:
        self.close()

    def listing(self, folder: str) -> FolderListing:
        """Return what a folder has."""
        try:
            self._client.cwd(_said(folder))
        except ftplib.error_perm as error:
            if self.is_missing(folder):
                raise FileNotFoundError(folder) from error
            raise
        try:
            lines = self._lines("MLSD")
        except ftplib.error_perm as error:
            if not str(error).startswith(_UNKNOWN):
                raise
            return FolderListing(list(self._without_facts(folder)))
        entries, identity = [], ""
        for facts, name in map(_facts, lines):
            kind = facts.get("type", "").lower()
            if kind == "cdir":
                identity = facts.get("unique", "")
            elif kind == "file" and facts.get("size", "").isdigit():
                entries.append(FolderEntry(name, int(facts["size"]), facts.get("modify", "")))
            elif kind == "dir":
                entries.append(FolderEntry(name))
            elif kind != "pdir" and name not in {".", ".."}:
                entries.append(self._looked_at(folder, name))
        if not identity and any(entry.size_bytes is None for entry in entries):
            identity = self._identity()
        return FolderListing(entries, identity)

    def _identity(self) -> str:
        """Return what the server calls the folder where it is, however it came there."""
        with contextlib.suppress(ftplib.error_perm):
            for line in self._client.sendcmd("MLST").splitlines():
                if line.startswith(" "):
                    return _facts(line.strip().encode(_ANY_BYTE))[0].get("unique", "")
        return ""

    def is_missing(self, folder: str) -> bool:
        """Whether what cannot be opened is missing: FTP has one code for all trouble."""
        above, name = posixpath.split(folder)
        if not name:
            return False
        try:
            self._client.cwd(_said(above))
        except ftplib.error_perm:
            return self.is_missing(above)
        return name not in self._names()

    def _names(self) -> list[str]:
        try:
            lines = self._lines("NLST -a")
        except ftplib.error_perm:
            try:
                lines = self._lines("NLST")
            except ftplib.error_perm as error:  # which some say of an empty folder
                if not str(error).startswith("550"):
                    raise
                lines = []
        names = (posixpath.basename(line.decode(errors="surrogateescape")) for line in lines)
        return [name for name in names if name not in {"", ".", ".."}]

    def _without_facts(self, folder: str) -> Iterator[FolderEntry]:
        """Yield the entries of the folder where it is, on a server that has no MLSD."""
        names = self._names()
        found = (_LINE.fullmatch(line) for line in self._lines("LIST -a"))
        listed = {match["name"]: match for match in found if match}
        for name in names:
            match = listed.get(name.encode(errors="surrogateescape"))
            if match and match["kind"] == b"-":
                yield FolderEntry(name, int(match["size"]))
            elif match and match["kind"] == b"d":
                yield FolderEntry(name)
            else:
                yield self._looked_at(folder, name)

    def _looked_at(self, folder: str, name: str) -> FolderEntry:
        place = f"{folder.rstrip('/')}/{name}"
        if self.has_folder(place):
            return FolderEntry(name)
        try:
            version = self.version(place)
        except ftplib.error_perm as error:
            return FolderEntry(name, problem=f"the server says of it {error}")
        return FolderEntry(name, version.size_bytes, version.stamp)

    def _lines(self, command: str) -> list[bytes]:
        with self._client.transfercmd(command) as data:
            text = b"".join(iter(lambda: data.recv(1 << 16), b""))
        self._client.voidresp()
        return [line for line in text.replace(b"\r\n", b"\n").split(b"\n") if line]

    def version(self, path: str) -> ServedVersion:
        """Return which version a file has."""
        size_bytes = self._size_bytes(path)
        stamp = ""
        with contextlib.suppress(ftplib.error_perm):
            stamp = self._client.sendcmd(f"MDTM {_said(path)}")[4:].strip()
        return ServedVersion(size_bytes, stamp)

    def data(self, path: str, start: int) -> Any:
        """Begin to send a file; returns the socket that it comes from."""
        return self._client.transfercmd(f"RETR {_said(path)}", start or None)

    def part(self, path: str, start: int, end: int) -> bytes:
        """Return bytes ``[start, end)`` of a file, fewer where it ends before."""
        pieces: list[bytes] = []
        left = end - start
        with self.data(path, start) as data:
            while left and (piece := data.recv(min(left, 1 << 16))):
                pieces.append(piece)
                left -= len(piece)
        with contextlib.suppress(ftplib.error_temp, ftplib.error_perm):  # it had more to send
            self.done()
        return b"".join(pieces)

    def done(self) -> None:
        """Hear that all of it was sent."""
        self._client.voidresp()

    def small(self, path: str, most_bytes: int) -> tuple[int, bytes]:
        """Return the size of a file, and its bytes where they are not more than so many."""
        size_bytes = self._size_bytes(path)
        if size_bytes > most_bytes:
            return size_bytes, b""
        with self.data(path, 0) as data:
            text = b"".join(iter(lambda: data.recv(1 << 16), b""))
        self.done()
        return size_bytes if size_bytes == len(text) else self._size_bytes(path), text

    def _size_bytes(self, path: str) -> int:
        return int(self._client.sendcmd(f"SIZE {_said(path)}").split()[1])

    def write(self, path: str, stream: BinaryIO) -> int:
        """Write a file and return how many bytes the server then says it has."""
        with self._client.transfercmd(f"STOR {_said(path)}") as data:
            while piece := stream.read(_CHUNK_BYTES):
                data.sendall(piece)
        self.done()
        return self._size_bytes(path)

    def replace(self, old: str, new: str) -> None:
        """Give a file a name that another may have."""
        try:
            self._client.rename(_said(old), _said(new))
        except ftplib.error_perm:  # some do not rename over a file
            self.remove(new)
            self._client.rename(_said(old), _said(new))

    def has_folder(self, path: str) -> bool:
        """Whether a folder is there."""
        try:
            self._client.cwd(_said(path))
        except ftplib.error_perm:
            return False
        return True

    def make_folder(self, path: str) -> None:
        """Make a folder in one that is there."""
        self._client.mkd(_said(path))

    def remove(self, path: str) -> None:
        """Remove a file."""
        with contextlib.suppress(ftplib.error_perm):
            self._client.delete(_said(path))


def _facts(line: bytes) -> tuple[dict[str, str], str]:
    """Return what MLSD says of an entry, and its name."""
    said, _, name = line.partition(b" ")
    facts = (fact.partition("=") for fact in said.decode(_ANY_BYTE).rstrip(";").split(";"))
    return {key.lower(): value for key, _, value in facts}, name.decode(errors="surrogateescape")


def _said(path: str) -> str:
    """Return a path as the client, which takes letters of one byte each, is to be told it."""
    return path.encode(errors="surrogateescape").decode(_ANY_BYTE)
