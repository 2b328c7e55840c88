"""Signature files that spec/v1/signing.md allows, and one for each of its rules that breaks it.

They are made of the text alone, with keys that everybody can make from this file.
"""

from __future__ import annotations

import base64
import hashlib
import json
from datetime import datetime, timedelta, timezone
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

PAYLOAD_TYPE = "application/vnd.in-toto+json"
ARCHIVE = "minimal.tar.zst"


def signatures(root: str) -> dict[str, bytes]:
    """Return files and what a verifier must say of them, by path.

    Args:
        root: Of the archive that they speak of.
    """
    alice, bob, mallory = map(_Key, ("alice", "bob", "mallory"))
    good = _statement(root, "alice")
    files = {
        "alice.sig.json": alice.signed(good),
        "alice_again.sig.json": alice.signed(_statement(root, "alice", meaning="seen again")),
        "bob.sig.json": bob.signed(_statement(root, "bob")),
        "both.sig.json": _with(alice.signed(good), bob.signature(good)),
        "other_alphabet.sig.json": _url_safe(alice.signed(good)),
        "later_fields.sig.json": alice.signed(_statement(root, "alice", x_ticket="R-7")),
        "without_key_id.sig.json": _without_key_id(alice.signed(good)),
        "S001_signature_file.sig.json": _with(
            alice.signed(good), *[mallory.signature(good)] * 64
        ),
        "S002_payload_type.sig.json": alice.signed(good, "application/json"),
        "S003_statement.sig.json": alice.signed(good | {"predicateType": "https://example.org/v1"}),
        "S004_subject.sig.json": alice.signed(_statement("0" * 64, "alice")),
        "S005_signature_value.sig.json": _altered(alice.signed(good)),
        "S006_unknown_key.sig.json": mallory.signed(_statement(root, "alice")),
    }
    files["S008_timestamp.sig.json"] = alice.signed(_statement(root, "alice", meaning="in time"))
    one = [{"files": [n], "keys": ["alice"], "require": 1, "codes": []} for n in files if n[0] != "S"]
    one[2]["keys"] = ["bob"]
    bad = [
        {"files": [name], "keys": ["alice"], "require": 1, "codes": [name[:4], "S007"]}
        for name in files
        if name[0] == "S"
    ]
    bad[-1] |= {"authority": "authority.pem"}
    files["S008_timestamp.sig.json.tsr"] = b"0\x03\x02\x01\x00"
    many = [
        {"files": ["alice.sig.json", "bob.sig.json"], "keys": ["alice", "bob"], "require": 2},
        {"files": ["both.sig.json"], "keys": ["alice", "bob"], "require": 2},
        {"files": ["alice.sig.json"], "keys": ["alice", "bob"], "require": 1},
    ]
    few = [
        {"files": ["alice.sig.json", "alice_again.sig.json"], "keys": ["alice", "bob"], "require": 2},
        {"files": [], "keys": ["alice"], "require": 1},
    ]
    noted = {
        "files": ["S006_unknown_key.sig.json", "S004_subject.sig.json", "alice.sig.json"],
        "keys": ["alice"],
        "require": 1,
        "codes": ["S006", "S004"],
    }
    cases = [*one, *({**c, "codes": []} for c in many), noted, *bad]
    cases += [{**case, "codes": ["S007"]} for case in few]
    files["authority.pem"] = alice.certificate()
    files |= {f"{key.name}.pub": key.pem for key in (alice, bob)}
    files["cases.json"] = _json({"archive": f"good/{ARCHIVE}", "cases": cases})
    return {f"signatures/{name}": data for name, data in files.items()}


class _Key:
    def __init__(self, name: str) -> None:
        self.name = name
        self._key = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest())
        public = self._key.public_key()
        self.pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        self.id = hashlib.sha256(der).hexdigest()

    def certificate(self) -> bytes:
        """Return a certificate that an authority could have."""
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, self.name)])
        builder = x509.CertificateBuilder(name, name, self._key.public_key(), serial_number=1)
        begun = datetime(2026, 9, 21, tzinfo=timezone.utc)
        builder = builder.not_valid_before(begun).not_valid_after(begun + timedelta(days=3650))
        made = builder.sign(self._key, None)
        return made.public_bytes(Encoding.PEM)

    def signature(self, statement: dict[str, Any], kind: str = PAYLOAD_TYPE) -> dict[str, str]:
        payload = json.dumps(statement).encode()
        data = b"DSSEv1 %d %b %d %b" % (len(kind), kind.encode(), len(payload), payload)
        return {"keyid": self.id, "sig": base64.b64encode(self._key.sign(data)).decode()}

    def signed(self, statement: dict[str, Any], kind: str = PAYLOAD_TYPE) -> bytes:
        payload = base64.b64encode(json.dumps(statement).encode()).decode()
        signature = self.signature(statement, kind)
        return _json({"payload": payload, "payloadType": kind, "signatures": [signature]})


def _statement(root: str, signer: str, **more: str) -> dict[str, Any]:
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "minimal/tagmanifest-sha256.txt", "digest": {"sha256": root}}],
        "predicateType": "https://pypi.org/project/mlflow-exim-plugin/signature/v1",
        "predicate": {
            "archive": ARCHIVE,
            "signer": signer,
            "role": "data steward",
            "meaning": "fit for release",
            "time": "2026-09-21T13:33:20Z",
            **more,
        },
    }


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def _with(file: bytes, *signatures: dict[str, str]) -> bytes:
    document = json.loads(file)
    return _json({**document, "signatures": [*document["signatures"], *signatures]})


def _url_safe(file: bytes) -> bytes:
    document = json.loads(file)
    document["signatures"][0]["sig"] = _other_alphabet(document["signatures"][0]["sig"])
    return _json({**document, "payload": _other_alphabet(document["payload"])})


def _other_alphabet(text: str) -> str:
    return base64.urlsafe_b64encode(base64.b64decode(text)).decode()


def _without_key_id(file: bytes) -> bytes:
    document = json.loads(file)
    return _json({**document, "signatures": [{"sig": document["signatures"][0]["sig"]}]})


def _altered(file: bytes) -> bytes:
    document = json.loads(file)
    payload = base64.b64decode(document["payload"]).replace(b"steward", b"officer")
    return _json({**document, "payload": base64.b64encode(payload).decode()})
