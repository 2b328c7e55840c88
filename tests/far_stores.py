"""Real stores on loopback: what S3, Azure, Google, SSH and WebDAV servers do with our files."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import uuid
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import pytest

from tests.servers import CACHE, claim_port, locked, wait_for_port
from tests.slow_network import slow_network

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "FarStore",
    "azure",
    "exfat",
    "ftp",
    "google",
    "rclone_google",
    "rclone_s3",
    "sftp",
    "web",
    "webdav",
]

AZURITE = "azurite@3"
_AZURE_ACCOUNT = "devstoreaccount1"
_AZURE_KEY = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)
"""Of the account that every such emulator has; it is no secret."""


@dataclass(frozen=True)
class FarStore:
    """A store that listens on loopback.

    Attributes:
        url: What the URLs of its folders begin with.
        port: Where it listens.
        options: Of fsspec's file system.
        root: Where its files are on this machine, if they are files.
    """

    url: str
    port: int
    options: dict[str, Any] = field(default_factory=dict)
    root: Path | None = None

    def new_folder(self) -> str:
        """Make a folder and return its URL."""
        url = f"{self.url}exim-{uuid.uuid4().hex[:12]}"
        store, path = fsspec.core.url_to_fs(url, **self.options)
        store.mkdir(path)
        return url

    @contextlib.contextmanager
    def far_away(self, **network: float) -> Iterator[FarStore]:
        """Give the same store behind a slow network."""
        with slow_network(self.port, **network) as port:
            told = json.dumps(self.options).replace(f":{self.port}", f":{port}")
            options = json.loads(told.replace(f'"port": {self.port}', f'"port": {port}'))
            url = self.url.replace(f":{self.port}", f":{port}")
            yield replace(self, url=url, port=port, options=options)


@contextlib.contextmanager
def rclone_s3(folder: Path, *, etag_hash: str = "MD5") -> Iterator[FarStore]:
    """Serve a folder of this machine as S3 does; its folders are the buckets.

    Args:
        folder: What is served.
        etag_hash: What ETags are made of. MD5 takes a look at the whole object after it is written.
    """
    arguments = ["--auth-key", "testing,testingtesting", "--etag-hash", etag_hash]
    with _rclone("s3", folder, *arguments) as port:
        options = {
            "key": "testing",
            "secret": "testingtesting",
            "endpoint_url": f"http://127.0.0.1:{port}",
            "use_listings_cache": False,
            "skip_instance_cache": True,
        }
        yield FarStore("s3://", port, options, folder)


@contextlib.contextmanager
def rclone_google(folder: Path) -> Iterator[FarStore]:
    """Serve a folder of this machine to who speaks Google's XML API, which is S3's, as nobody.

    Buckets are made by S3's URLs: fsspec speaks the other API of Google's.
    """
    with _rclone("s3", folder) as port:
        endpoint = f"http://127.0.0.1:{port}"
        options = {"anon": True, "endpoint_url": endpoint, "skip_instance_cache": True}
        yield FarStore("s3://", port, options, folder)


@contextlib.contextmanager
def web(folder: Path) -> Iterator[FarStore]:
    """Serve a folder of this machine to be read, as web servers do."""
    with _rclone("http", folder) as port:
        yield FarStore(f"http://127.0.0.1:{port}/", port, root=folder)


@contextlib.contextmanager
def _rclone(protocol: str, folder: Path, *arguments: str) -> Iterator[int]:
    program = shutil.which("rclone") or f"{sysconfig.get_path('scripts')}/rclone"
    command = [program, "serve", protocol, str(folder), "--vfs-cache-mode", "off", "-q"]
    with _running([*command, *arguments, "--addr"], folder) as port:
        yield port


@contextlib.contextmanager
def azure(folder: Path) -> Iterator[FarStore]:
    """Serve Azure's blobs."""
    program = _azurite()
    arguments = ["--silent", "--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry"]
    with _running([*program, *arguments, "--blobPort"], folder, address="{port}") as port:
        endpoint = f"http://127.0.0.1:{port}/{_AZURE_ACCOUNT}"
        options = {
            "connection_string": (
                f"DefaultEndpointsProtocol=http;AccountName={_AZURE_ACCOUNT};"
                f"AccountKey={_AZURE_KEY};BlobEndpoint={endpoint};"
            ),
            "use_listings_cache": False,
            "skip_instance_cache": True,
        }
        yield FarStore("abfs://", port, options)


@contextlib.contextmanager
def google(folder: Path) -> Iterator[FarStore]:
    """Serve Google's buckets."""
    program = f"{sysconfig.get_path('scripts')}/gcp-storage-emulator"
    arguments = [sys.executable, program, "start", "--host", "127.0.0.1", "--in-memory", "--port"]
    # Of Google's clients one asks by gRPC what kind a bucket is, which the emulator does not speak.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    with _running(arguments, folder, address="{port}") as port:
        options = {
            "endpoint_url": f"http://127.0.0.1:{port}",
            "token": "anon",
            "project": "exim",
            "use_listings_cache": False,
            "skip_instance_cache": True,
        }
        yield FarStore("gs://", port, options)


@contextlib.contextmanager
def sftp(folder: Path) -> Iterator[FarStore]:
    """Serve a folder of this machine with OpenSSH."""
    program = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        absent("OpenSSH's server (Debian's openssh-server)")
    key, host_key = folder / "key", folder / "host_key"
    for file in (key, host_key):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(file)]
        subprocess.run(command, check=True)
    Path("/run/sshd").mkdir(exist_ok=True)
    files = folder / "files"
    files.mkdir()
    port, claim = claim_port()
    configuration = folder / "sshd_config"
    configuration.write_text(
        f"""Port {port}
ListenAddress 127.0.0.1
HostKey {host_key}
AuthorizedKeysFile {key}.pub
StrictModes no
UsePAM no
PidFile none
MaxStartups 100
Subsystem sftp internal-sftp
"""
    )
    process = subprocess.Popen(
        [str(program), "-D", "-f", str(configuration)], stderr=subprocess.DEVNULL
    )
    try:
        wait_for_port(port, process)
        options = {"username": _user(), "port": port, "key_filename": str(key)}
        options |= {"look_for_keys": False, "allow_agent": False, "skip_instance_cache": True}
        yield FarStore(f"sftp://127.0.0.1{files}/", port, options, files)
    finally:
        process.kill()
        process.wait()
        claim.close()


@contextlib.contextmanager
def webdav(folder: Path) -> Iterator[FarStore]:
    """Serve a folder of this machine by WebDAV."""
    files = folder / "files"
    files.mkdir()
    program = f"{sysconfig.get_path('scripts')}/wsgidav"
    arguments = [program, "--host", "127.0.0.1", "--auth", "anonymous"]
    arguments += ["--root", str(files), "--no-config", "-q", "--port"]
    with _running(arguments, folder, address="{port}") as port:
        options = {"base_url": f"http://127.0.0.1:{port}", "skip_instance_cache": True}
        yield FarStore("webdav://", port, options, files)


@contextlib.contextmanager
def ftp(folder: Path, *, most_connections: int = 0) -> Iterator[FarStore]:
    """Serve a folder of this machine by FTP."""
    files = folder / "files"
    files.mkdir()
    # Its own command line has no word for how many connections it takes.
    program = [sys.executable, "-Wignore", "-c"]
    program.append(
        f"from pyftpdlib.servers import FTPServer; FTPServer.max_cons_per_ip = {most_connections}; "
        "from pyftpdlib.__main__ import main; main()"
    )
    program += ["-i", "127.0.0.1", "-w", "-d", str(files), "-u", "user", "-P", "p@ss", "-p"]
    with _running(program, folder, address="{port}") as port:
        options = {"username": "user", "password": "p@ss", "skip_instance_cache": True}
        yield FarStore(f"ftp://127.0.0.1:{port}/", port, options, files)


@contextlib.contextmanager
def exfat(folder: Path) -> Iterator[Path]:
    """Give a folder of a file system that tells no case apart, which only root can mount."""
    programs = [shutil.which(name, path="/usr/sbin:/sbin:/usr/bin") for name in _EXFAT]
    if None in programs or os.geteuid():
        pytest.skip("only root may mount exFAT (Debian's exfat-fuse and exfatprogs)")
    losetup, make, mount, unmount = map(str, programs)
    image, place = folder / "image", folder / "exfat"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    place.mkdir()
    subprocess.run([make, str(image)], check=True, stdout=subprocess.DEVNULL)
    named = subprocess.run(
        [losetup, "-f", "--show", str(image)], stdout=subprocess.PIPE, check=False
    )
    if named.returncode:
        absent("a loop device")
    device = named.stdout.decode().strip()
    try:
        mounted = subprocess.run([mount, device, str(place)], capture_output=True, check=False)
        if mounted.returncode or not place.is_mount():
            pytest.skip("nothing can be mounted")
        try:
            yield place
        finally:
            subprocess.run([unmount, str(place)], check=True)
    finally:
        subprocess.run([losetup, "-d", device], check=True)


_EXFAT = ("losetup", "mkfs.exfat", "mount.exfat-fuse", "umount")


def absent(what: str) -> None:
    """Skip what cannot be tried here; on CI it fails."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what} is not here")
    pytest.skip(f"{what} is not here")


@contextlib.contextmanager
def _running(
    command: list[str], folder: Path, *, address: str = "127.0.0.1:{port}"
) -> Iterator[int]:
    port, claim = claim_port()
    with (folder.parent / f"{folder.name}.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, address.format(port=port)],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
        )
    try:
        wait_for_port(port, process)
        yield port
    finally:
        process.kill()
        process.wait()
        claim.close()


def _azurite() -> list[str]:
    """Install Azurite once on a machine, and return how it is started."""
    if (npm := shutil.which("npm")) is None:
        absent("npm, which brings Azurite")
    folder = CACHE / "azurite"
    program = folder / "node_modules" / ".bin" / "azurite-blob"
    with locked(CACHE / "azurite.lock"):
        if not program.exists():
            folder.mkdir(parents=True, exist_ok=True)
            command = [str(npm), "install", "--silent", "--no-fund", "--no-audit", AZURITE]
            subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return [str(program)]


def _user() -> str:
    import getpass

    return getpass.getuser()
