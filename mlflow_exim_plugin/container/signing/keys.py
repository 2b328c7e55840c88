"""Keys that sign: PEM of ed25519, ECDSA and RSA; all others through securesystemslib.

The schemes are those of securesystemslib, so that either verifies what the other signed. Its import
takes a fifth of a second and more, so PEM goes without it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mlflow_exim_plugin.container.signing.statements import KeySignature
from mlflow_exim_plugin.errors import (
    MissingDependencyError,
    NotFoundError,
    SignatureError,
    UsageError,
)
from mlflow_exim_plugin.options import KEY_KINDS, KEY_PASSPHRASE_VARIABLE
from mlflow_exim_plugin.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes, PublicKeyTypes

__all__ = [
    "PrivateKey",
    "PublicKey",
    "new_key",
    "private_key",
    "public_key",
]

_FROM_ENVIRONMENT = "env:"
_MAX_KEY_BYTES = 64 << 10
_RSA_BITS = 3072
_LEAST_RSA_BITS = 2048
_URI_SCHEMES = frozenset(
    ("awskms", "azurekms", "file2", "gcpkms", "gnupg", "hsm", "hv", "sigstore", "tkey")
)
"""Of securesystemslib's signers."""
_HINT = "pip install 'mlflow-exim-plugin[sign]'"


class PublicKey(Protocol):
    """A key that tells whether a signature is its own.

    Attributes:
        id: What signatures call it.
        name: What the user calls it.
    """

    id: str
    name: str

    def made(self, signature: KeySignature, data: bytes) -> bool:
        """Whether it made a signature of some bytes."""


class PrivateKey(Protocol):
    """A key that signs.

    Attributes:
        id: What its signatures call it.
    """

    id: str

    def sign(self, data: bytes) -> KeySignature:
        """Return its signature of some bytes.

        Raises:
            SignatureError: What holds the key refuses.
        """


def private_key(
    key: str,
    *,
    public: str | None = None,
    passphrase: Callable[[], str] | None = None,
) -> PrivateKey:
    """Return the key that signs.

    Args:
        key: Path of a PEM file, ``env:NAME`` of a variable that holds one, or a URI of
            securesystemslib.
        public: What :func:`public_key` takes, for a URI.
        passphrase: Asks for the passphrase of an encrypted key that no variable has.

    Raises:
        NotFoundError: There is no such file or variable.
        UsageError: It is no such key, or its passphrase is wrong.
        MissingDependencyError: What it needs is not installed.
    """
    if key.partition(":")[0] in _URI_SCHEMES:
        if public is None:
            raise UsageError(
                f"the key {key.partition(':')[0]}: needs its public key", "give --public-key too"
            )
        return _ForeignPrivateKey(key, public)
    return _PemPrivateKey(_decrypted(key, passphrase), key)


def public_key(key: str) -> _PemPublicKey | _ForeignPublicKey:
    """Return the key that verifies.

    Args:
        key: Path of a PEM file or of a key in securesystemslib's JSON, or ``env:NAME`` of a
            variable that holds one.

    Raises:
        NotFoundError: There is no such file or variable.
        UsageError: It is no such key.
        MissingDependencyError: What it needs is not installed.
    """
    text = text_of(key)
    if text.lstrip().startswith(b"{"):
        return _ForeignPublicKey(text, key)
    if b"PRIVATE KEY" in text:
        raise UsageError(f"{key} is a private key", "give the public one: it is no secret")
    with _cryptography():
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    try:
        return _PemPublicKey(load_pem_public_key(text), key)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UsageError(f"{key} is no public key in PEM") from error


def new_key(kind: str, passphrase: str | None) -> tuple[bytes, bytes]:
    """Return a new private key and its public one in PEM.

    Args:
        kind: One of ``KEY_KINDS``.
        passphrase: What the private one is encrypted with.
    """
    with _cryptography():
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    made: PrivateKeyTypes
    if kind == "ed25519":
        made = ed25519.Ed25519PrivateKey.generate()
    elif kind == "ecdsa":
        made = ec.generate_private_key(ec.SECP256R1())
    elif kind == "rsa":
        made = rsa.generate_private_key(65537, _RSA_BITS)
    else:
        raise UsageError(f"there is no kind of key {kind!r}", f"there are {', '.join(KEY_KINDS)}")
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase is not None:
        encryption = serialization.BestAvailableEncryption(passphrase.encode())
    pem = serialization.Encoding.PEM
    private = made.private_bytes(pem, serialization.PrivateFormat.PKCS8, encryption)
    public = made.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    return private, public


class _PemPublicKey:
    def __init__(self, key: PublicKeyTypes, name: str) -> None:
        from cryptography.hazmat.primitives import serialization

        self.name = name
        self.id = hashlib.sha256(
            key.public_bytes(
                serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        ).hexdigest()
        self.key = key
        self._scheme = _scheme(key, name)

    def made(self, signature: KeySignature, data: bytes) -> bool:
        from cryptography.exceptions import InvalidSignature

        try:
            self.key.verify(signature.value, data, *self._scheme)  # type: ignore[union-attr]
        except InvalidSignature:
            return False
        return True


class _PemPrivateKey:
    def __init__(self, key: PrivateKeyTypes, name: str) -> None:
        self.id = _PemPublicKey(key.public_key(), name).id
        self._key = key
        self._scheme = _scheme(key.public_key(), name)

    def sign(self, data: bytes) -> KeySignature:
        value = self._key.sign(data, *self._scheme)  # type: ignore[union-attr]
        return KeySignature(self.id, value)


def _scheme(key: PublicKeyTypes, name: str) -> tuple[Any, ...]:
    """Return how a key of this kind signs: securesystemslib's scheme for it."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

    if isinstance(key, ed25519.Ed25519PublicKey):
        return ()
    if isinstance(key, ec.EllipticCurvePublicKey):
        digest = {256: hashes.SHA256(), 384: hashes.SHA384(), 521: hashes.SHA512()}
        if key.curve.name.startswith("secp") and key.curve.key_size in digest:
            return (ec.ECDSA(digest[key.curve.key_size]),)
    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= _LEAST_RSA_BITS:
        salted = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.DIGEST_LENGTH)
        return (salted, hashes.SHA256())
    raise UsageError(
        f"{name} is a key of a kind that does not sign archives",
        "take ed25519, ECDSA over P-256, P-384 or P-521, or RSA of 2048 bits or more",
    )


class _ForeignPublicKey:
    """One in securesystemslib's JSON, which says its scheme."""

    def __init__(self, text: bytes, name: str) -> None:
        with _securesystemslib():
            from securesystemslib.signer import Key
        self.name = name
        try:
            document = json.loads(text)
            self.id = document.pop("keyid", hashlib.sha256(text).hexdigest())
            self.key: Any = Key.from_dict(self.id, document)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UsageError(f"{name} is no key of securesystemslib") from error

    def made(self, signature: KeySignature, data: bytes) -> bool:
        from securesystemslib.exceptions import UnverifiedSignatureError
        from securesystemslib.signer import Signature

        found = Signature(self.id, signature.value.hex(), dict(signature.more))
        try:
            self.key.verify_signature(found, data)
        except UnverifiedSignatureError:
            return False
        return True


class _ForeignPrivateKey:
    """One that a URI of securesystemslib names; another machine or program may hold it."""

    def __init__(self, uri: str, public: str) -> None:
        with _securesystemslib():
            from securesystemslib.signer import Signer, SSlibKey
        known = public_key(public)
        key = (
            known.key
            if isinstance(known, _ForeignPublicKey)
            else SSlibKey.from_crypto(known.key, keyid=known.id)
        )
        self.id = known.id
        self._name = redact(uri)
        try:
            self._signer = Signer.from_priv_key_uri(uri, key)
        except Exception as error:  # each signer has errors of its own
            raise UsageError(f"the key {self._name} cannot be used: {error}") from error

    def sign(self, data: bytes) -> KeySignature:
        try:
            made = self._signer.sign(data)
        except Exception as error:
            raise SignatureError(f"the key {self._name} does not sign: {error}") from error
        return KeySignature(self.id, bytes.fromhex(made.signature), made.unrecognized_fields)


def _decrypted(key: str, passphrase: Callable[[], str] | None) -> PrivateKeyTypes:
    text = text_of(key)
    with _cryptography():
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    try:
        try:
            return load_pem_private_key(text, None)
        except TypeError:  # it is encrypted
            secret = os.environ.get(KEY_PASSPHRASE_VARIABLE) or (
                passphrase() if passphrase else None
            )
            if not secret:
                raise UsageError(
                    f"{key} is encrypted", f"put its passphrase into {KEY_PASSPHRASE_VARIABLE}"
                ) from None
            return load_pem_private_key(text, secret.encode())
    except ValueError as error:
        is_encrypted = b"ENCRYPTED" in text
        what = "cannot be decrypted with this passphrase" if is_encrypted else "is no PEM of a key"
        raise UsageError(f"{key} {what}") from error
    except UnsupportedAlgorithm as error:
        raise UsageError(f"{key} is of a kind that is not known here") from error


def text_of(key: str) -> bytes:
    """Return the text of a file, or of the variable that ``env:NAME`` names.

    Raises:
        NotFoundError: There is none.
        UsageError: It cannot be read.
    """
    if key.startswith(_FROM_ENVIRONMENT):
        name = key.removeprefix(_FROM_ENVIRONMENT)
        value = os.environ.get(name)
        if value is None:
            raise NotFoundError(f"there is no variable {name} with a key")
        return value.encode()
    try:
        with Path(key).expanduser().open("rb") as file:
            return file.read(_MAX_KEY_BYTES)
    except FileNotFoundError:
        raise NotFoundError(f"there is no key {key}") from None
    except OSError as error:
        raise UsageError(f"the key {key} cannot be read: {error.strerror}") from error


@contextlib.contextmanager
def _cryptography() -> Generator[None]:
    try:
        yield
    except ImportError as error:
        raise MissingDependencyError(f"signatures need cryptography: {error}", _HINT) from error


@contextlib.contextmanager
def _securesystemslib() -> Generator[None]:
    try:
        yield
    except ImportError as error:
        raise MissingDependencyError(f"this key needs securesystemslib: {error}", _HINT) from error
    from securesystemslib import signer

    # Its format is not settled, so securesystemslib knows it only where it is told to.
    signer.SIGNER_FOR_URI_SCHEME.setdefault(signer.SigstoreSigner.SCHEME, signer.SigstoreSigner)
    signer.KEY_FOR_TYPE_AND_SCHEME.setdefault(("sigstore-oidc", "Fulcio"), signer.SigstoreKey)
