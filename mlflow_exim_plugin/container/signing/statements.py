"""Signature files: a DSSE envelope around an in-toto statement of an archive's root.

Pure documents: which key made a signature is the business of ``check.py``. Source:
spec/v1/signing.md.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import Field, ValidationError

from mlflow_exim_plugin.errors import InvalidArchiveError, SignatureError
from mlflow_exim_plugin.schema.canonical import document_bytes, parse_json
from mlflow_exim_plugin.schema.envelope import Document
from mlflow_exim_plugin.schema.rules import Finding, Rule

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "MAX_SIGNATURES",
    "MAX_SIGNATURE_FILE_BYTES",
    "PAYLOAD_TYPE",
    "PREDICATE_TYPE",
    "SIGNATURE_RULES",
    "STATEMENT_TYPE",
    "Envelope",
    "KeySignature",
    "Predicate",
    "Statement",
    "refuse_signature",
]

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "https://pypi.org/project/mlflow-exim-plugin/signature/v1"

MAX_SIGNATURE_FILE_BYTES = 1 << 20
MAX_SIGNATURES = 64

_RULES = {
    "S001 signature_file": "A signature file MUST be a DSSE envelope in JSON of at most 1 MiB and "
    "64 signatures.",
    "S002 payload_type": "The envelope's payloadType MUST be 'application/vnd.in-toto+json'.",
    "S003 statement": "The payload MUST be an in-toto statement of version 1 with one subject and "
    "the fields of the predicate type of this text.",
    "S004 subject": "The SHA-256 of the subject MUST be the archive's root.",
    "S005 signature_value": "A signature that names a key which the verifier has MUST be that "
    "key's, over payload type and payload.",
    "S006 unknown_key": "A signature file MUST have a signature by a key which the verifier has.",
    "S007 too_few": "As many different keys as the verifier asks for MUST have signed; a key "
    "counts once, however often it signed.",
    "S008 timestamp": "Where the verifier has certificates of an authority, a signature file MUST "
    "have a timestamp beside it that is theirs, of its bytes.",
}

SIGNATURE_RULES: dict[str, Rule] = {
    name[:4]: Rule(name[:4], name[5:], sentence, "rules") for name, sentence in _RULES.items()
}
"""What a verifier of signatures looks at, in this order; none of them makes an archive invalid."""


class _Subject(Document):
    """What is signed."""

    name: str
    digest: dict[str, str]


class Predicate(Document):
    """Who says what of the archive."""

    archive: str
    """Name of the archive's file when it was signed."""
    signer: str
    """Who signs, as they call themselves."""
    content_root: str | None = None
    """What the archive states of what it holds, hex."""
    role: str = ""
    """As what they sign."""
    meaning: str = ""
    """What they say by it."""
    time: str
    """When, by the signer's clock: RFC 3339, UTC."""


class Statement(Document):
    """An in-toto statement of version 1."""

    type: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type")
    subject: Annotated[list[_Subject], Field(min_length=1, max_length=1)]
    predicate_type: Literal["https://pypi.org/project/mlflow-exim-plugin/signature/v1"] = Field(
        alias="predicateType"
    )
    predicate: Predicate

    @classmethod
    def of(cls, root: str, tag_manifest: str, predicate: Predicate) -> Statement:
        """Return the statement of an archive.

        Args:
            root: Its root digest, hex.
            tag_manifest: Path of the file whose digest that is, base directory included.
            predicate: What is said of it.
        """
        subject = _Subject(name=tag_manifest, digest={"sha256": root})
        return cls(
            type=STATEMENT_TYPE,
            subject=[subject],
            predicate_type=PREDICATE_TYPE,
            predicate=predicate,
        )

    @classmethod
    def parse(cls, payload: bytes, name: str) -> Statement:
        """Return the statement that a payload is.

        Raises:
            SignatureError: S003.
        """
        try:
            return cls.model_validate(parse_json(payload, name))
        except (InvalidArchiveError, ValidationError) as error:
            raise refuse_signature("S003", name, f"its payload is {_told(error)}") from error

    @property
    def root(self) -> str | None:
        """The root digest that it speaks of."""
        return self.subject[0].digest.get("sha256")

    def encode(self) -> bytes:
        """Return the payload."""
        return json.dumps(self.to_json(), ensure_ascii=False).encode()


@dataclass(frozen=True)
class KeySignature:
    """A signature by one key.

    Attributes:
        key_id: What it calls the key; may be empty.
        value: Its bytes.
        more: What else its kind of key needs, such as the bundle of Sigstore.
    """

    key_id: str
    value: bytes
    more: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> KeySignature:
        """Return what stands in an envelope."""
        if not isinstance(document, dict):
            raise TypeError("no object")
        more = {name: document[name] for name in document if name not in {"keyid", "sig"}}
        return cls(_text(document.get("keyid", "")), _from_base64(document["sig"]), more)

    def to_json(self) -> dict[str, Any]:
        """Return what stands in an envelope."""
        return {"keyid": self.key_id, "sig": _base64(self.value), **self.more}


@dataclass(frozen=True)
class Envelope:
    """A DSSE envelope.

    Attributes:
        payload: What is signed.
        payload_type: What that is.
        signatures: By whom.
    """

    payload: bytes
    payload_type: str
    signatures: tuple[KeySignature, ...]

    @classmethod
    def parse(cls, data: bytes, name: str) -> Envelope:
        """Return the envelope that a file is.

        Raises:
            SignatureError: S001 or S002.
        """
        if len(data) > MAX_SIGNATURE_FILE_BYTES:
            raise refuse_signature("S001", name, "is larger than 1 MiB")
        try:
            document = parse_json(data, name)
            listed = document["signatures"]
            if not isinstance(listed, list):
                raise TypeError("no list")  # noqa: TRY301 - as all else that is no envelope
            if not 0 < len(listed) <= MAX_SIGNATURES:
                raise refuse_signature("S001", name, f"has {len(listed)} signatures")
            envelope = cls(
                _from_base64(document["payload"]),
                document["payloadType"],
                tuple(map(KeySignature.from_json, listed)),
            )
        except InvalidArchiveError as error:
            raise refuse_signature("S001", name, f"is {_told(error)}") from error
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise refuse_signature("S001", name, "is no DSSE envelope") from error
        if envelope.payload_type != PAYLOAD_TYPE:
            raise refuse_signature("S002", name, "its payload is of another type")
        return envelope

    @classmethod
    def of(cls, payload: bytes, *signatures: KeySignature) -> Envelope:
        """Return the envelope around a statement."""
        return cls(payload, PAYLOAD_TYPE, signatures)

    def encode(self) -> bytes:
        """Return the file."""
        return document_bytes(
            {
                "payload": _base64(self.payload),
                "payloadType": self.payload_type,
                "signatures": [signature.to_json() for signature in self.signatures],
            }
        )

    @staticmethod
    def signed_bytes(payload: bytes) -> bytes:
        """Return what a key signs: DSSE's pre-authentication encoding."""
        kind = PAYLOAD_TYPE.encode()
        return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def refuse_signature(code: str, name: str, message: str, hint: str = "") -> SignatureError:
    """Return the error of a signature file, with one finding."""
    return SignatureError(f"{name}: {message}", hint, [Finding(code, name, message)])


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _from_base64(text: Any) -> bytes:
    """Read either alphabet, as DSSE has it."""
    try:
        return base64.b64decode(_text(text).translate(_STANDARD), validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from error


_STANDARD = str.maketrans("-_", "+/")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("no text")
    return value


def _told(error: InvalidArchiveError | ValidationError) -> str:
    if isinstance(error, InvalidArchiveError):
        return f"not as it should be: {error.findings[0].message}"
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(map(str, first["loc"]))
    return f"no statement of this kind: {place}: {first['msg']}"
