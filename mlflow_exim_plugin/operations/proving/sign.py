"""``sign`` and ``keygen``: who says what of an archive, in a file beside it."""

from __future__ import annotations

import contextlib
import getpass
import os
import posixpath
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.container.bag import TAG_MANIFEST
from mlflow_exim_plugin.container.paths import base_directory_for
from mlflow_exim_plugin.container.reader import ArchiveReader
from mlflow_exim_plugin.container.signing import keys
from mlflow_exim_plugin.container.signing.beside import beside, listed_beside, read_small
from mlflow_exim_plugin.container.signing.check import (
    SIGNATURE_SUFFIX,
    check_signatures,
    file_name,
    sign_root,
)
from mlflow_exim_plugin.container.signing.statements import MAX_SIGNATURE_FILE_BYTES, Predicate
from mlflow_exim_plugin.container.signing.timestamps import (
    MAX_ANSWER_BYTES,
    TIMESTAMP_SUFFIX,
    Authority,
    timestamp,
)
from mlflow_exim_plugin.errors import (
    ArchiveExistsError,
    EximError,
    NotFoundError,
    SignatureError,
    StoreError,
    UsageError,
)
from mlflow_exim_plugin.options import Opening, Packing, Signing, flat
from mlflow_exim_plugin.redaction import redact_url
from mlflow_exim_plugin.sources.archive.archive import Archive
from mlflow_exim_plugin.sources.archive.snapshot.set_folder import as_set, snapshot_path
from mlflow_exim_plugin.storage.output import atomic_output

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mlflow_exim_plugin.container.signing.check import Signature
    from mlflow_exim_plugin.container.signing.keys import PrivateKey, PublicKey
    from mlflow_exim_plugin.schema.report import Report
    from mlflow_exim_plugin.schema.rules import Finding
    from mlflow_exim_plugin.sources.archive.snapshot.set_folder import SetFolder, StoredSnapshot

__all__ = [
    "KeyPair",
    "PackedSigner",
    "Signable",
    "Signed",
    "keygen",
    "sign",
    "signatures_of",
    "signed_snapshot",
    "unchecked_signatures",
]

_MOST_FILES = 1000
"""Of signatures that are looked at."""
_SECRET_MODE, _PUBLIC_MODE = 0o600, 0o644


@dataclass(frozen=True)
class Signed:
    """A signature that was made.

    Attributes:
        file: Where it is.
        root: Root digest that it speaks of, hex.
        key_id: Id of the key.
        timestamp: Where its timestamp is; None without one.
    """

    file: str
    root: str
    key_id: str
    timestamp: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return vars(self)


@flat()
def sign(
    archive: str, key: str, *, opening: Opening = Opening(), signing: Signing = Signing()
) -> Signed:
    """Sign the root of an archive, in a file beside it; the archive itself is only read.

    Args:
        archive: Path or fsspec URL.
        key: Path of a private key in PEM, ``env:NAME`` of a variable that holds one, or a URI of
            securesystemslib, such as ``awskms:...``.
        opening: How the archive is opened; each option is a keyword of its own too, here and below.
        signing: What is said of it, by whom.

    Raises:
        NotFoundError: There is no such archive or key.
        InvalidArchiveError: It cannot be opened, or has another root than expected.
        ArchiveExistsError: The key has signed there already, and ``overwrite`` is false.
        SignatureError: What holds the key refuses, or the authority of the timestamp.
        ServerError: That authority does not answer; nothing was written.
        UsageError: It is no key that signs, or its passphrase is wrong.
        StoreError: The archive cannot be read, or nothing written beside it.
    """
    private = keys.private_key(key, public=signing.public_key, passphrase=signing.passphrase)
    if found := as_set(archive, opening.storage_options):
        folder, number = found
        snapshot = folder.asked(number, opening.snapshot, signing.expected_root)
        return signed_snapshot(folder, snapshot).write(private, signing, opening.storage_options)
    with ArchiveReader.open(
        archive, storage_options=opening.storage_options, expected_root=signing.expected_root
    ) as reader:
        # An older archive states none, and to make it all envelopes would be read.
        stated = Archive(reader).summary.info.content_root
        subject = f"{reader.base_directory}/{TAG_MANIFEST}"
        signed = Signable(archive, reader.root, subject, stated)
    return signed.write(private, signing, opening.storage_options)


def signed_snapshot(folder: SetFolder, snapshot: StoredSnapshot) -> Signable:
    """Return a snapshot as what is signed: its root covers all archives that it names."""
    path = snapshot_path(snapshot.number)
    return Signable(folder.at(path), snapshot.sha256, path, snapshot.document.info.content_root)


class PackedSigner:
    """Signs an archive that is about to be packed: the key is looked at before anything is read.

    Args:
        archive: Path or fsspec URL.
        packing: Which key, if any.

    Raises:
        NotFoundError: There is no such key.
        UsageError: It is no key that signs, or its passphrase is wrong.
    """

    def __init__(self, archive: str, packing: Packing) -> None:
        self._archive = archive
        self._packing = packing
        self._key = (
            keys.private_key(packing.sign, passphrase=packing.passphrase) if packing.sign else None
        )

    def sign(self, report: Report, opening: Opening, packed: Signable | None = None) -> None:
        """Sign what was packed, if that was asked for, and say so in its report.

        Args:
            report: Of the pack.
            opening: How the store is opened.
            packed: What is signed; the archive without it.

        Raises:
            SignatureError: It cannot be signed; the archive is there.
        """
        if self._key is None or report.root is None or report.dry_run:
            return
        signing = Signing(overwrite=self._packing.overwrite)
        if packed is None:
            subject = f"{base_directory_for(self._archive)}/{TAG_MANIFEST}"
            packed = Signable(self._archive, report.root, subject, report.content_root)
        try:
            report.signature = packed.write(self._key, signing, opening.storage_options).file
        except EximError as error:
            raise SignatureError(
                f"{redact_url(self._archive)} is packed and not signed: {error.message}",
                "sign it with `mlflow exim sign`",
            ) from error


@dataclass(frozen=True)
class Signable:
    """An archive or snapshot that is signed.

    Attributes:
        location: Where it is.
        root: Its root digest, hex.
        subject: The file that has this digest.
        content_root: That of what it holds, if it states it.
    """

    location: str
    root: str
    subject: str
    content_root: str | None

    def write(
        self, key: PrivateKey, signing: Signing, storage_options: Mapping[str, Any] | None
    ) -> Signed:
        """Write a signature beside it, and the answer of an authority of timestamps.

        Raises:
            EximError: See ``sign``.
        """
        may_be_absent = {
            "content_root": self.content_root,
            "role": signing.role,
            "meaning": signing.meaning,
        }
        said = Predicate(
            archive=_name_of(self.location),
            signer=signing.signer or _login(),
            **{name: text for name, text in may_be_absent.items() if text},
            time=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        )
        data = sign_root(self.root, self.subject, key, said)
        url = signing.signature or beside(self.location, file_name("", key.id))
        files = [(url, data)]
        if signing.timestamp is not None:
            answer = timestamp(data, signing.timestamp)
            files.append((beside(url, TIMESTAMP_SUFFIX), answer))
        for where, content in files:
            with atomic_output(
                where, overwrite=signing.overwrite, storage_options=storage_options
            ) as output:
                output.write(content)
        names = [redact_url(where) for where, _ in files]
        return Signed(names[0], self.root, key.id, *names[1:])


def signatures_of(
    archive: str,
    root: str,
    public: Sequence[PublicKey],
    required: int,
    named: Sequence[str] = (),
    storage_options: Mapping[str, Any] | None = None,
    authority: Authority | None = None,
) -> tuple[list[Signature], list[Finding]]:
    """Return what is signed of an archive, and what is wrong with it.

    Args:
        archive: Where it is.
        root: Its root digest.
        public: Keys whose signatures count.
        required: How many of them must have signed.
        named: Where the signatures are; beside the archive without it.
        storage_options: For the file system.
        authority: Whose timestamps must be beside the signatures, if anybody's.

    Raises:
        NotFoundError: A file that is named is not there.
        StoreError: The store refused or died.
    """
    if named:
        urls, may_be_absent = list(named), False
    else:
        listed = listed_beside(archive, SIGNATURE_SUFFIX, storage_options)
        may_be_absent = listed is None
        # A store that lists nothing still has what a key's own file is called.
        urls = (listed or [])[:_MOST_FILES]
        if listed is None and "?" not in archive:
            urls = [beside(archive, file_name("", key.id)) for key in public]
    files: dict[str, bytes | SignatureError] = {}
    found_at = {_name_of(url): url for url in urls}
    for url in urls:
        try:
            files[_name_of(url)] = read_small(url, MAX_SIGNATURE_FILE_BYTES, storage_options)
        except NotFoundError:
            if not may_be_absent:
                raise
    if authority is None:
        return check_signatures(files, public, root, required)
    asked = authority

    def time_of(name: str, data: bytes) -> str:
        answer: bytes | None = None
        with contextlib.suppress(NotFoundError):
            where = beside(found_at[name], TIMESTAMP_SUFFIX)
            answer = read_small(where, MAX_ANSWER_BYTES, storage_options)
        return asked.time_of(name, data, answer)

    return check_signatures(files, public, root, required, time_of)


def unchecked_signatures(
    archive: str, root: str, storage_options: Mapping[str, Any] | None
) -> list[Signature]:
    """Return what the files beside an archive say of it, whoever wrote them.

    None of them is checked; none is told where the store does not tell.
    """
    try:
        return signatures_of(archive, root, [], 0, storage_options=storage_options)[0]
    except EximError:
        return []


@dataclass(frozen=True)
class KeyPair:
    """Keys that were made.

    Attributes:
        private: File of the key that signs, which only its owner can read.
        public: File of the key that verifies.
        key_id: Id of both.
    """

    private: str
    public: str
    key_id: str

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return vars(self)


def keygen(
    path: str, *, kind: str = "ed25519", passphrase: Callable[[], str] | None = None
) -> KeyPair:
    """Make a key that signs archives, and beside it ``PATH.pub`` that verifies.

    Args:
        path: File for the private key, which must not be there.
        kind: ``ed25519``, ``ecdsa`` (P-256) or ``rsa`` (3072 bits).
        passphrase: Gives what the private key is encrypted with; without it it is not.

    Raises:
        ArchiveExistsError: One of the files is there: no key is ever overwritten.
        UsageError: There is no such kind of key.
        StoreError: They cannot be written.
    """
    private, public = Path(path).expanduser(), Path(f"{path}.pub").expanduser()
    for file in (private, public):
        if file.exists():
            raise ArchiveExistsError(f"{file} exists", "choose another name: no key is overwritten")
    secret = passphrase() if passphrase else None
    if secret == "":
        raise UsageError("an empty passphrase protects nothing")
    private_pem, public_pem = keys.new_key(kind, secret)
    _write_new(private, private_pem, _SECRET_MODE)
    try:
        _write_new(public, public_pem, _PUBLIC_MODE)
    except BaseException:
        private.unlink()  # nobody has used it
        raise
    return KeyPair(str(private), str(public), keys.public_key(str(public)).id)


def _write_new(file: Path, data: bytes, mode: int) -> None:
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        raise ArchiveExistsError(
            f"{file} exists", "choose another name: no key is overwritten"
        ) from None
    except OSError as error:
        raise StoreError(f"cannot write {file}: {error.strerror}") from error
    with os.fdopen(descriptor, "wb") as opened:
        opened.write(data)
        opened.flush()
        os.fsync(descriptor)


def _name_of(url: str) -> str:
    return posixpath.basename(redact_url(url).partition("?")[0].replace(os.sep, "/"))


def _login() -> str:
    with contextlib.suppress(ImportError, KeyError, OSError):
        return getpass.getuser()
    return ""  # a container's user may have no name
