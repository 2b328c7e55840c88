"""Signature files: the text, the rules, the samples and other people's programs say the same."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    load_pem_private_key,
    load_pem_public_key,
)
from securesystemslib.dsse import Envelope
from securesystemslib.signer import SSlibKey
from uv import find_uv_bin

from mlflow_exim_plugin import keygen, sign, verify
from mlflow_exim_plugin.container.reader import ArchiveReader
from mlflow_exim_plugin.container.signing.statements import (
    PAYLOAD_TYPE,
    PREDICATE_TYPE,
    SIGNATURE_RULES,
    Statement,
)
from tests.far_stores import absent
from tests.servers import CACHE, locked

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "samples" / "v1"
FOLDER = SAMPLES / "signatures"
TOLD = json.loads((FOLDER / "cases.json").read_text())
ARCHIVE = SAMPLES / TOLD["archive"]
TEXT = (ROOT / "spec" / "v1" / "signing.md").read_text("utf-8")


def named(case: dict[str, Any]) -> str:
    return "+".join(file.partition(".")[0] for file in case["files"]) or "none"


@pytest.mark.parametrize("case", TOLD["cases"], ids=named)
def test_a_sample_gives_exactly_its_codes(case: dict[str, Any], tmp_path: Path) -> None:
    archive = shutil.copy(ARCHIVE, tmp_path / "minimal.tar.zst")
    for file in case["files"]:
        shutil.copy(FOLDER / file, f"{archive}.{file}")
    keys = [str(FOLDER / f"{name}.pub") for name in case["keys"]]

    result = verify(str(archive), keys=keys, require=case["require"])

    assert sorted(finding.code for finding in result.findings) == sorted(case["codes"])
    assert result.signed == result.ok == result.authentic == ("S007" not in case["codes"])
    assert result.valid
    assert all(signature.signer in {"alice", "bob"} for signature in result.signatures)


def test_every_rule_has_a_sentence_and_a_sample() -> None:
    flat = " ".join(TEXT.split())
    for rule in SIGNATURE_RULES.values():
        assert rule.sentence.rstrip(".") in flat, rule.code
        assert f"({rule.code})" in flat
    assert set(re.findall(r"\bS\d{3}\b", TEXT)) == set(SIGNATURE_RULES)
    broken = {code for case in TOLD["cases"] for code in case["codes"]}
    assert broken == set(SIGNATURE_RULES)
    files = {path.name.partition(".")[0] for path in FOLDER.glob("S*.sig.json")}
    assert files == {f"{r.code}_{r.slug}" for r in SIGNATURE_RULES.values()} - {"S007_too_few"}


def test_the_example_statement_is_one() -> None:
    [example] = re.findall(r"<!-- example: statement -->\n```json\n(.*?)\n```", TEXT, re.DOTALL)
    statement = Statement.parse(example.encode(), "example")
    assert statement.to_json() == json.loads(example)
    assert f"`{PAYLOAD_TYPE}`" not in TEXT  # ... but in quotes
    assert f"'{PAYLOAD_TYPE}'" in TEXT
    assert PREDICATE_TYPE in example


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an archive that is signed by a key of each kind."""
    folder = tmp_path_factory.mktemp("signed")
    archive = shutil.copy(ARCHIVE, folder / "nightly.tar.zst")
    for name, kind in (("alice", "ed25519"), ("bob", "ecdsa"), ("carol", "rsa")):
        keygen(str(folder / f"{name}.pem"), kind=kind)
        sign(str(archive), str(folder / f"{name}.pem"), signer=name)
    return folder


def test_openssl_and_jq_verify_as_the_text_says(signed: Path) -> None:
    if shutil.which("jq") is None:
        absent("jq")
    [block] = re.findall(r"```console\n(.*?)```", TEXT, re.DOTALL)
    commands = [line.removeprefix("$ ") for line in block.splitlines()]
    [file] = [p.name for p in signed.glob("*.sig.json") if "alice" in payload_of(p)]
    assert re.search(r"^sig=nightly\.tar\.zst\.[0-9a-f]{16}\.sig\.json$", commands[0])
    commands[0] = f"sig={file}"
    script = "\n".join(["set -e", "tar --zstd -xf nightly.tar.zst --one-top-level=.", *commands])
    base = json.loads(payload_of(signed / file))["subject"][0]["name"].partition("/")[0]

    done = subprocess.run(
        ["bash", "-c", script], cwd=signed, capture_output=True, text=True, check=True
    )

    assert done.stdout.splitlines()[-2:] == [
        "Signature Verified Successfully",
        f"{base}/tagmanifest-sha256.txt: OK",
    ]


def payload_of(file: Path) -> str:
    return base64.b64decode(json.loads(file.read_text())["payload"]).decode()


def test_securesystemslib_verifies_ours(signed: Path) -> None:
    accepted = set()
    for file in signed.glob("*.sig.json"):
        document = json.loads(file.read_text())
        key_id = document["signatures"][0]["keyid"]
        for public in signed.glob("*.pub"):
            pem = load_pem_public_key(public.read_bytes())
            key = SSlibKey.from_crypto(pem, keyid=key_id)  # type: ignore[arg-type,unused-ignore]
            der = subprocess.run(
                ["openssl", "pkey", "-pubin", "-in", public, "-outform", "DER"],
                capture_output=True,
                check=True,
            ).stdout
            if hashlib.sha256(der).hexdigest() == key_id:
                Envelope.from_dict(json.loads(file.read_text())).verify([key], 1)
                accepted.add(public.name)
    assert accepted == {"alice.pem.pub", "bob.pem.pub", "carol.pem.pub"}


def test_we_verify_what_securesystemslib_signed(signed: Path, tmp_path: Path) -> None:
    """Its URIs lead to keys in clouds and hardware; the one of a file stands for them here."""
    archive = shutil.copy(ARCHIVE, tmp_path / "a.tar.zst")
    for name in ("alice", "bob", "carol"):
        private, public = signed / f"{name}.pem", str(signed / f"{name}.pem.pub")
        sign(str(archive), f"file2:{private}", public_key=public)
    keys = [str(path) for path in signed.glob("*.pub")]
    assert verify(str(archive), keys=keys).authentic


def test_a_key_in_securesystemslibs_json_verifies(signed: Path, tmp_path: Path) -> None:
    pem = load_pem_public_key((signed / "bob.pem.pub").read_bytes())
    key = SSlibKey.from_crypto(pem)  # type: ignore[arg-type,unused-ignore]
    stored = tmp_path / "bob.json"
    stored.write_text(json.dumps({"keyid": key.keyid, **key.to_dict()}))
    assert verify(str(signed / "nightly.tar.zst"), keys=str(stored)).authentic


@pytest.fixture(scope="session")
def model_signing() -> Path:
    """OpenSSF's program, in an environment of its own."""
    folder = CACHE / "model-signing"
    with locked(CACHE / "model-signing.lock"):
        program = folder / "bin" / "model_signing"
        if not program.exists():
            uv, python = find_uv_bin(), str(folder / "bin" / "python")
            subprocess.run([uv, "venv", "-q", "--clear", folder], check=True)
            packages = ["model-signing==1.1.1", "pyopenssl"]
            subprocess.run([uv, "pip", "install", "-q", "-p", python, *packages], check=True)
    return program


@pytest.mark.integration
def test_openssf_model_signing_verifies_the_tree_by_our_digests(
    model_signing: Path, signed: Path, tmp_path: Path
) -> None:
    archive = signed / "nightly.tar.zst"
    with ArchiveReader.open(str(archive)) as reader:
        digests = {member.path: member.sha256 for member in reader.members()}
        base = reader.base_directory
    bundle = tmp_path / "model.sig"
    bundle.write_text(json.dumps(bundle_of(base, digests, signed / "bob.pem")))
    subprocess.run(["tar", "--zstd", "-xf", archive, "-C", tmp_path], check=True)
    command: list[str | Path] = [model_signing, "verify", "key", "--signature", bundle]
    command += ["--public_key", signed / "bob.pem.pub", tmp_path / base]

    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "succeeded" in done.stdout + done.stderr
    assert done.returncode == 0

    with (tmp_path / base / "data" / "archive.json").open("a") as file:
        file.write(" ")
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0


def bundle_of(base: str, digests: dict[str, str], key: Path) -> dict[str, Any]:
    """Return a bundle as model-signing 1.1 writes it: sign its statement of our digests."""
    private = load_pem_private_key(key.read_bytes(), None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    resources = [
        {"name": path, "algorithm": "sha256", "digest": digest}
        for path, digest in sorted(digests.items())
    ]
    together = hashlib.sha256(b"".join(bytes.fromhex(r["digest"]) for r in resources))
    payload = json.dumps(
        {
            "_type": "https://in-toto.io/Statement/v1",
            "subject": [{"name": base, "digest": {"sha256": together.hexdigest()}}],
            "predicateType": "https://model_signing/signature/v1.0",
            "predicate": {
                "serialization": {
                    "method": "files",
                    "hash_type": "sha256",
                    "allow_symlinks": False,
                    "ignore_paths": [],
                },
                "resources": resources,
            },
        }
    ).encode()
    data = b"DSSEv1 %d %b %d %b" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload)
    value = private.sign(data, ec.ECDSA(hashes.SHA256()))
    return {
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": {
            "publicKey": {"hint": hashlib.sha256(Path(f"{key}.pub").read_bytes()).hexdigest()},
            "tlogEntries": [],
        },
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"sig": base64.b64encode(value).decode(), "keyid": ""}],
        },
    }
