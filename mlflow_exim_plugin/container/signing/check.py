"""Signatures of an archive's root: made with a key, and held against keys.

The root covers every byte of every member (``container/reader.py``), so a signature covers all and
stays right when the archive is compressed anew. Source: spec/v1/signing.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mlflow_exim_plugin.container.signing.statements import (
    Envelope,
    Statement,
    refuse_signature,
)
from mlflow_exim_plugin.errors import SignatureError
from mlflow_exim_plugin.schema.rules import Finding

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mlflow_exim_plugin.container.signing.keys import PrivateKey, PublicKey
    from mlflow_exim_plugin.container.signing.statements import Predicate

__all__ = ["SIGNATURE_SUFFIX", "TOO_FEW", "Signature", "check_signatures", "file_name", "sign_root"]

SIGNATURE_SUFFIX = ".sig.json"
TOO_FEW = "S007"
"""The rule that is broken when not all have signed who had to."""
_KEY_ID_DIGITS = 16


@dataclass(frozen=True)
class Signature:
    """What a signature file says, and whether that was checked.

    Attributes:
        file: Name of the file.
        signer: Who says so.
        role: As what.
        meaning: What they say by it.
        time: When, by the signer's clock.
        keys: Keys that made it, as they were given; empty while that was not checked.
        confirmed: When it was there, as an authority says; empty where none was asked for.
    """

    file: str
    signer: str
    role: str
    meaning: str
    time: str
    keys: tuple[str, ...] = ()
    confirmed: str = ""

    def __str__(self) -> str:
        role = f" ({self.role})" if self.role else ""
        meaning = f": {self.meaning}" if self.meaning else ""
        confirmed = f" (confirmed {self.confirmed})" if self.confirmed else ""
        return f"{self.signer}{role}, {self.time}{confirmed}{meaning}"


def file_name(archive: str, key_id: str) -> str:
    """Return the name of a signature file, beside the archive: one for each key."""
    return f"{archive}.{key_id[:_KEY_ID_DIGITS]}{SIGNATURE_SUFFIX}"


def sign_root(root: str, subject: str, key: PrivateKey, predicate: Predicate) -> bytes:
    """Return a signature file.

    Args:
        root: Root digest of the archive, hex.
        subject: What to call the file that has this digest.
        key: Who signs.
        predicate: What they say.

    Raises:
        SignatureError: What holds the key refuses.
    """
    payload = Statement.of(root, subject, predicate).encode()
    signature = key.sign(Envelope.signed_bytes(payload))
    return Envelope.of(payload, signature).encode()


def check_signatures(
    files: Mapping[str, bytes | SignatureError],
    keys: Sequence[PublicKey],
    root: str,
    required: int,
    time_of: Callable[[str, bytes], str] = lambda _name, _data: "",
) -> tuple[list[Signature], list[Finding]]:
    """Hold signature files against keys and the root of an archive.

    Args:
        files: Bytes of each by its name, or why there are none.
        keys: Whose signatures count.
        root: The archive's.
        required: How many different keys must have signed.
        time_of: Tells when a file was there, by its name and bytes; raises ``SignatureError``.

    Returns:
        What the files say that speak of this archive and are signed by one of the keys, or of all
        that can be read where no key is given; and the rules that are broken, S007 if it is not
        enough.
    """
    signatures: list[Signature] = []
    findings: list[Finding] = []
    signed: set[str] = set()
    for name, data in files.items():
        try:
            if isinstance(data, SignatureError):
                raise data
            signature, ids = _checked(name, data, keys, root)
            signature = replace(signature, confirmed=time_of(name, data))
        except SignatureError as error:
            findings += error.findings
            continue
        signatures.append(signature)
        signed |= ids
    if len(signed) < required:
        message = f"{len(signed)} of {required} keys that must have signed have"
        findings.append(Finding(TOO_FEW, "<signatures>", message))
    return signatures, findings


def _checked(
    name: str, data: bytes, keys: Sequence[PublicKey], root: str
) -> tuple[Signature, set[str]]:
    envelope = Envelope.parse(data, name)
    # What nobody known has signed is not even parsed.
    made_by = _keys_of(envelope, keys, name) if keys else []
    statement = Statement.parse(envelope.payload, name)
    if statement.root != root:
        raise refuse_signature("S004", name, f"speaks of an archive with the root {statement.root}")
    said = statement.predicate
    names = tuple(key.name for key in made_by)
    found = Signature(name, said.signer, said.role, said.meaning, said.time, names)
    return found, {key.id for key in made_by}


def _keys_of(envelope: Envelope, keys: Sequence[PublicKey], name: str) -> list[PublicKey]:
    """Return the keys that signed; a key's id is only a hint, so each is tried."""
    data = Envelope.signed_bytes(envelope.payload)
    found = [key for key in keys if any(key.made(s, data) for s in envelope.signatures)]
    if found:
        return found
    named = {signature.key_id for signature in envelope.signatures}
    if claimed := [key for key in keys if key.id in named]:
        message = f"was not signed by {claimed[0].name} as it is: it was altered"
        raise refuse_signature("S005", name, message)
    raise refuse_signature("S006", name, "is signed by none of the keys that were given")
