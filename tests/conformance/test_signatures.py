"""Signature files: the text, the rules, the samples and other people's programs say the same."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import shutil
import subprocess
import threading
from datetime import datetime, timedelta, timezone
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from mlflow_exim_plugin.errors import ServerError, SignatureError, UsageError
from tests.far_stores import absent
from tests.servers import CACHE, locked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

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
        if (FOLDER / f"{file}.tsr").exists():
            shutil.copy(FOLDER / f"{file}.tsr", f"{archive}.{file}.tsr")
    authority = str(FOLDER / case["authority"]) if "authority" in case else None
    keys = [str(FOLDER / f"{name}.pub") for name in case["keys"]]

    result = verify(str(archive), keys=keys, require=case["require"], authority=authority)

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


AUTHORITY = """
[tsa]
default_tsa = one
[one]
serial = serial
crypto_device = builtin
signer_cert = tsa.pem
signer_key = tsa.key
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = sha256
accuracy = secs:1
ess_cert_id_alg = sha256
"""
EXTENSIONS = "extendedKeyUsage=critical,timeStamping\nkeyUsage=critical,digitalSignature\n"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that OpenSSL needs to be a time-stamping authority."""
    folder = tmp_path_factory.mktemp("tsa")
    (folder / "tsa.conf").write_text(AUTHORITY)
    (folder / "ext").write_text(EXTENSIONS)
    (folder / "serial").write_text("01")
    new = "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
    for command in (
        f"{new} -x509 -keyout ca.key -out ca.pem -subj /CN=ca -days 2",
        f"{new} -keyout tsa.key -out tsa.csr -subj /CN=tsa",
        "x509 -req -in tsa.csr -CA ca.pem -CAkey ca.key -out tsa.pem -days 2 -extfile ext",
    ):
        subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True)
    return folder


def answering(answer: Callable[[bytes], bytes]) -> AbstractContextManager[str]:
    """Serve what a function makes of each question."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = answer(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

    return served(Handler)


@contextlib.contextmanager
def served(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def stamped(folder: Path, question: bytes) -> bytes:
    (folder / "question").write_bytes(question)
    command = ["openssl", "ts", "-reply", "-config", "tsa.conf", "-queryfile", "question"]
    done = subprocess.run([*command, "-out", "answer"], cwd=folder, capture_output=True, check=True)
    assert done.returncode == 0
    return (folder / "answer").read_bytes()


def test_openssl_verifies_the_time_that_an_authority_gave(
    authority: Path, signed: Path, tmp_path: Path
) -> None:
    archive = str(shutil.copy(ARCHIVE, tmp_path / "a.tar.zst"))
    with answering(partial(stamped, authority)) as url:
        made = sign(archive, str(signed / "alice.pem"), timestamp=url)
    assert made.timestamp == f"{made.file}.tsr"
    trusted = str(authority / "ca.pem")
    check = ["openssl", "ts", "-verify", "-in", made.timestamp, "-CAfile", trusted]
    done = subprocess.run([*check, "-data", made.file], capture_output=True, check=False)
    assert b"Verification: OK" in done.stdout
    done = subprocess.run([*check, "-data", archive], capture_output=True, check=False)
    assert done.returncode != 0
    assert verify(archive, keys=str(signed / "alice.pem.pub")).authentic


def test_only_what_an_authority_confirmed_counts_where_one_is_given(
    authority: Path, signed: Path, tmp_path: Path
) -> None:
    archive = str(shutil.copy(ARCHIVE, tmp_path / "a.tar.zst"))
    key, trusted = str(signed / "alice.pem.pub"), str(authority / "ca.pem")
    with answering(partial(stamped, authority)) as url:
        made = sign(archive, str(signed / "alice.pem"), timestamp=url)
    assert made.timestamp is not None
    answer = Path(made.timestamp)
    good = answer.read_bytes()

    result = verify(archive, keys=key, authority=trusted)
    assert result.authentic
    told = datetime.fromisoformat(result.signatures[0].confirmed.replace("Z", "+00:00"))
    assert abs(datetime.now(timezone.utc) - told) < timedelta(minutes=10)
    assert f"confirmed {result.signatures[0].confirmed}" in str(result.signatures[0])

    def codes(trusted: str) -> list[str]:
        result = verify(archive, keys=key, authority=trusted)
        assert not result.authentic
        return [finding.code for finding in result.findings]

    # Of another authority, another file, or damaged; and none.
    assert codes(str(FOLDER / "authority.pem")) == ["S008", "S007"]
    answer.write_bytes(stamped(authority, question_about(b"something else", tmp_path)))
    assert codes(trusted) == ["S008", "S007"]
    for position in range(0, len(good), 7):
        answer.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
        found = verify(archive, keys=key, authority=trusted)
        assert found.authentic or {f.code for f in found.findings} == {"S008", "S007"}
        # What is not signed of an answer is only its outermost shell.
        if found.authentic:
            assert found.signatures[0].confirmed == result.signatures[0].confirmed
    answer.unlink()
    assert codes(trusted) == ["S008", "S007"]
    with pytest.raises(UsageError, match="certificates"):
        verify(archive, keys=key, authority=key)
    with pytest.raises(UsageError, match="keys"):
        verify(archive, authority=trusted)


def question_about(data: bytes, folder: Path) -> bytes:
    (folder / "data").write_bytes(data)
    command = ["openssl", "ts", "-query", "-data", "data", "-sha256", "-cert", "-out", "query"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return (folder / "query").read_bytes()


@pytest.mark.parametrize("lie", ["another's", "junk", "nothing", "refused"])
def test_an_authority_that_lies_leaves_nothing(
    lie: str, authority: Path, signed: Path, tmp_path: Path
) -> None:
    archive = shutil.copy(ARCHIVE, tmp_path / "a.tar.zst")
    earlier: list[bytes] = []

    def answer(question: bytes) -> bytes:
        if lie == "another's" and not earlier:
            earlier.append(stamped(authority, question))
        return {
            "another's": earlier[0] if earlier else b"",
            "junk": b"\x30\x03\x02\x01\x00",
            "nothing": b"",
            "refused": bytes.fromhex("30053003020102"),
        }[lie]

    with answering(answer) as url:
        if lie == "another's":
            sign(str(archive), str(signed / "bob.pem"), timestamp=url)
        before = sorted(tmp_path.iterdir())
        with pytest.raises(SignatureError):
            sign(str(archive), str(signed / "alice.pem"), timestamp=url)
    assert sorted(tmp_path.iterdir()) == before
    with pytest.raises(ServerError):
        sign(str(archive), str(signed / "alice.pem"), timestamp=url)  # it has gone
    assert sorted(tmp_path.iterdir()) == before
