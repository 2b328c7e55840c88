"""Folders of files behind SSH, by paramiko: set up as MLflow has it, on hosts that are known."""

from __future__ import annotations

import contextlib
import socket
import stat
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import urlparse

from fsspec.config import conf

from mlflow_exim_plugin.errors import StoreError
from mlflow_exim_plugin.storage.file_servers.connections import Connections
from mlflow_exim_plugin.storage.file_servers.folder import (
    AT_ONCE,
    FileServer,
    FolderEntry,
    FolderListing,
)
from mlflow_exim_plugin.storage.file_servers.transfer import ServedVersion
from mlflow_exim_plugin.storage.ssh_ranges import SILENCE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ssh_server"]

_CHANNELS = 8
"""Of one connection; OpenSSH allows ten."""
_CHUNK_BYTES = 1 << 20
_AHEAD_BYTES = 16 << 20
_SFTP_PORT = 22
_CREDENTIALS_HINT = "check the user and password of the root, and what ~/.ssh has of the host"
_AS_FSSPEC = {
    *("username", "password", "port", "key_filename", "pkey", "passphrase"),
    *("allow_agent", "look_for_keys"),
}


def ssh_server(url: str) -> FileServer:
    """Return the server of a URL, to which nothing is said yet.

    Raises:
        ImportError: Paramiko is not installed.
    """
    import paramiko

    lines = _Lines(_settings(url))
    lost = (paramiko.SSHException, EOFError, ConnectionError, TimeoutError)
    return FileServer(
        reading=Connections(lines.channel, AT_ONCE),
        writing=Connections(lines.channel, AT_ONCE),
        transient=lost,
    )


def _settings(url: str) -> dict[str, Any]:
    """Return what paramiko is told.

    Source: ``mlflow.store.artifact.sftp_artifact_repo.SFTPArtifactRepository``.
    """
    from paramiko import SSHConfig

    parts = urlparse(url)
    host = parts.hostname or "localhost"
    told: dict[str, Any] = {}
    own = Path("~/.ssh/config").expanduser()
    if own.exists():
        of_host = SSHConfig.from_path(str(own)).lookup(host)
        host = of_host.get("hostname", host)
        told = {
            "username": of_host.get("user"),
            "port": int(of_host["port"]) if "port" in of_host else None,
            "key_filename": of_host.get("identityfile"),
        }
    told |= {key: value for key, value in conf.get("sftp", {}).items() if key in _AS_FSSPEC}
    in_url = {"username": parts.username, "password": parts.password, "port": parts.port}
    told |= {key: value for key, value in in_url.items() if value is not None}
    return {
        "hostname": host,
        "port": _SFTP_PORT,
        **{key: value for key, value in told.items() if value is not None},
        **dict.fromkeys(("timeout", "banner_timeout", "auth_timeout"), SILENCE_SECONDS),
    }


class _Lines:
    """Connections of SSH to one server, each with some channels.

    Args:
        settings: What paramiko is told.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings
        self._turn = threading.Lock()
        self._client: Any = None
        self._left = 0

    def channel(self) -> _Channel:
        """Open a channel."""
        with self._turn:
            transport = self._client and self._client.get_transport()
            if not self._left or not transport or not transport.is_active():
                self._client = self._connected()
                self._left = _CHANNELS
            self._left -= 1
            client = self._client
        sftp = client.open_sftp()
        sftp.get_channel().settimeout(SILENCE_SECONDS)
        return _Channel(client, sftp)

    def _connected(self) -> Any:
        from paramiko import AuthenticationException, BadHostKeyException, SSHClient, SSHException

        client = SSHClient()  # which refuses servers that it does not know
        client.load_system_host_keys()
        host, port = self._settings["hostname"], self._settings["port"]
        try:
            client.connect(**self._settings)
        except (AuthenticationException, BadHostKeyException) as error:
            raise StoreError(f"{host} lets nobody in: {error}", _CREDENTIALS_HINT) from error
        except SSHException as error:
            if "known_hosts" not in str(error):
                raise
            hint = f"if it is who it should be: ssh-keyscan -p {port} {host} >> ~/.ssh/known_hosts"
            raise StoreError(str(error), hint) from error
        # Requests are small: each would wait until the one before was confirmed.
        client.get_transport().sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return client


class _Channel:
    """A channel, of which the connection ends with the last one.

    Args:
        client: Paramiko's connection.
        sftp: Paramiko's channel.
    """

    def __init__(self, client: Any, sftp: Any) -> None:
        self._client = client
        self._sftp = sftp

    def is_sound_after(self, error: BaseException) -> bool:
        return isinstance(error, FileNotFoundError | PermissionError)

    def is_lost(self) -> bool:
        return bool(self._sftp.get_channel().closed)

    def close(self) -> None:
        with contextlib.suppress(Exception):  # of a connection that may be lost
            self._sftp.close()

    def listing(self, folder: str) -> FolderListing:
        place = _bytes(folder)
        try:
            found = [(one.filename, one) for one in self._sftp.listdir_attr(place)]
        except UnicodeDecodeError:
            found = list(self._listed_as_bytes(place))
        try:
            identity = str(self._sftp.normalize(place))
        except UnicodeDecodeError:
            identity = ""
        return FolderListing([self._entry(folder, name, told) for name, told in found], identity)

    def _listed_as_bytes(self, place: bytes) -> Iterator[tuple[str, Any]]:
        """Yield what a folder has, which paramiko's own listing gives only where all is UTF-8."""
        from paramiko import SFTPAttributes
        from paramiko.sftp import CMD_CLOSE, CMD_OPENDIR, CMD_READDIR

        _, message = self._sftp._request(CMD_OPENDIR, place)  # noqa: SLF001
        handle = message.get_binary()
        with contextlib.suppress(EOFError):  # which is its end
            while True:
                _, message = self._sftp._request(CMD_READDIR, handle)  # noqa: SLF001
                for _ in range(message.get_int()):
                    name = message.get_binary().decode(errors="surrogateescape")
                    message.get_binary()
                    told = SFTPAttributes._from_msg(message)  # noqa: SLF001
                    if name not in {".", ".."}:
                        yield name, told
        self._sftp._request(CMD_CLOSE, handle)  # noqa: SLF001

    def _entry(self, folder: str, name: str, told: Any) -> FolderEntry:
        if stat.S_ISLNK(told.st_mode or 0):
            try:
                told = self._sftp.stat(_bytes(f"{folder.rstrip('/')}/{name}"))
            except OSError:
                return FolderEntry(name, problem="it is a link to what is not there")
        mode = told.st_mode or 0
        if stat.S_ISDIR(mode):
            return FolderEntry(name)
        if stat.S_ISREG(mode):
            return FolderEntry(name, int(told.st_size or 0), str(told.st_mtime))
        return FolderEntry(name, problem="it is no file, and is not opened")

    def small(self, path: str, most_bytes: int) -> tuple[int, bytes]:
        with self._sftp.open(_bytes(path), "rb") as file:
            size_bytes = int(file.stat().st_size or 0)
            if size_bytes > most_bytes:
                return size_bytes, b""
            if size_bytes <= file.MAX_REQUEST_SIZE:
                return size_bytes, file.read(size_bytes)
            file.prefetch(size_bytes)
            return size_bytes, b"".join(iter(lambda: file.read(file.MAX_REQUEST_SIZE), b""))

    def version(self, path: str) -> ServedVersion:
        told = self._sftp.stat(_bytes(path))
        return ServedVersion(int(told.st_size or 0), str(told.st_mtime))

    def data(self, path: str, start: int) -> _Pipelined:
        return _Pipelined(self._sftp.open(_bytes(path), "rb"), start)

    def done(self) -> None:
        pass

    def write(self, path: str, stream: BinaryIO) -> int:
        place = _bytes(path)
        with self._sftp.open(place, "wb") as file:
            file.set_pipelined(True)
            while data := stream.read(_CHUNK_BYTES):
                file.write(data)
        return int(self._sftp.stat(place).st_size or 0)

    def replace(self, old: str, new: str) -> None:
        try:
            self._sftp.posix_rename(_bytes(old), _bytes(new))
        except OSError:  # a server that is not OpenSSH's may not know it
            with contextlib.suppress(FileNotFoundError):
                self._sftp.remove(_bytes(new))
            self._sftp.rename(_bytes(old), _bytes(new))

    def has_folder(self, path: str) -> bool:
        try:
            return stat.S_ISDIR(self._sftp.stat(_bytes(path)).st_mode or 0)
        except FileNotFoundError:
            return False

    def make_folder(self, path: str) -> None:
        self._sftp.mkdir(_bytes(path))

    def remove(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._sftp.remove(_bytes(path))


class _Pipelined:
    """A file of which some megabytes are asked for at once.

    Args:
        file: Paramiko's.
        start: Where it begins.
    """

    def __init__(self, file: Any, start: int) -> None:
        self._file = file
        self._file.seek(start)
        self._size_bytes = int(file.stat().st_size or 0)
        self._position = self._asked = start

    def recv_into(self, buffer: Any) -> int:
        if self._position == self._asked:
            self._asked = min(self._size_bytes, self._asked + _AHEAD_BYTES)
            self._file.prefetch(self._asked)
        # What is more than one answer costs paramiko twice the time.
        most_bytes = min(len(buffer), self._asked - self._position, self._file.MAX_REQUEST_SIZE)
        data = self._file.read(most_bytes)
        self._position += len(data)
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()


def _bytes(path: str) -> bytes:
    return path.encode(errors="surrogateescape")
