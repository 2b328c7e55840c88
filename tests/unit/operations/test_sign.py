"""Signing: no signature is lost, no key overwritten, and nothing is believed unsigned."""

from __future__ import annotations

import base64
import json
import os
import shutil
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlflow_exim_plugin import keygen, pack, repack, report, sign, verify
from mlflow_exim_plugin.container.signing.check import check_signatures
from mlflow_exim_plugin.container.signing.keys import public_key
from mlflow_exim_plugin.container.signing.statements import SIGNATURE_RULES
from mlflow_exim_plugin.errors import (
    ArchiveExistsError,
    EximError,
    NotFoundError,
    SignatureError,
    UsageError,
)
from mlflow_exim_plugin.options import KEY_PASSPHRASE_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Callable

SAMPLES = Path(__file__).parents[3] / "samples" / "v1"
MINIMAL = SAMPLES / "good" / "minimal.tar.zst"
ALICE = SAMPLES / "signatures" / "alice.sig.json"
ALICE_KEY = str(SAMPLES / "signatures" / "alice.pub")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("keys")
    names = [str(folder / f"{number}.pem") for number in range(3)]
    for name in names:
        keygen(name)
    return names


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return Path(shutil.copy(MINIMAL, tmp_path / "a.tar.zst"))


def names_beside(archive: Path) -> list[str]:
    return sorted(path.name for path in archive.parent.iterdir() if path != archive)


def public(*keys: str) -> list[str]:
    return [f"{key}.pub" for key in keys]


def test_signers_at_once_all_survive(archive: Path, keys: list[str]) -> None:
    with ThreadPoolExecutor(len(keys)) as pool:
        signed = list(pool.map(lambda key: sign(str(archive), key), keys))
    assert sorted(Path(one.file).name for one in signed) == names_beside(archive)
    assert verify(str(archive), keys=public(*keys), require=3).authentic


def test_the_archive_is_not_touched(archive: Path, keys: list[str]) -> None:
    archive.chmod(0o400)
    before = archive.stat()
    sign(str(archive), keys[0])
    after = archive.stat()
    assert archive.read_bytes() == MINIMAL.read_bytes()
    assert (before.st_mtime_ns, before.st_ino) == (after.st_mtime_ns, after.st_ino)


def test_a_key_signs_once_unless_it_is_to_sign_anew(archive: Path, keys: list[str]) -> None:
    first = Path(sign(str(archive), keys[0], meaning="seen").file).read_bytes()
    with pytest.raises(ArchiveExistsError):
        sign(str(archive), keys[0], meaning="approved")
    assert [Path(archive.parent / name).read_bytes() for name in names_beside(archive)] == [first]
    sign(str(archive), keys[0], meaning="approved", overwrite=True)
    [signature] = verify(str(archive), keys=public(keys[0])).signatures
    assert signature.meaning == "approved"


def test_a_signature_may_lie_elsewhere(archive: Path, keys: list[str], tmp_path: Path) -> None:
    (tmp_path / "ledger").mkdir()
    file = str(tmp_path / "ledger" / "approval")
    sign(str(archive), keys[0], signature=file)
    assert names_beside(archive) == ["ledger"]
    assert verify(str(archive), keys=public(keys[0])).signed is False
    assert verify(str(archive), keys=public(keys[0]), signatures=file).signed is True
    with pytest.raises(NotFoundError):
        verify(str(archive), keys=public(keys[0]), signatures=f"{file}s")


def test_a_signature_outlives_compression(archive: Path, keys: list[str], tmp_path: Path) -> None:
    """Members, and so the root, stay; frames, index and size are others."""
    file = sign(str(archive), keys[0]).file
    again = tmp_path / "again.tar.zst"
    repack(str(archive), str(again), level=19)
    assert again.read_bytes() != archive.read_bytes()
    assert verify(str(again), keys=public(keys[0]), signatures=file).authentic


def test_damage_is_invalid_and_not_a_matter_of_signatures(archive: Path, keys: list[str]) -> None:
    sign(str(archive), keys[0])
    data = bytearray(archive.read_bytes())
    data[50] ^= 1
    archive.write_bytes(data)
    result = verify(str(archive), keys=public(keys[0]))
    assert (result.valid, result.signed, result.authentic, result.ok) == (False, True, False, False)


def test_pack_signs_what_it_packed(archive: Path, keys: list[str], tmp_path: Path) -> None:
    out = str(tmp_path / "out" / "b.tar.zst")
    Path(out).parent.mkdir()
    report = pack(out, tracking_uri=str(archive), sign=keys[0])
    assert report.signature is not None
    assert verify(out, keys=public(keys[0]), expected_root=report.root).authentic
    sign(out, keys[1])
    for file in (report.signature, *map(str, Path(out).parent.glob("*.sig.json"))):
        payload = base64.b64decode(json.loads(Path(file).read_text())["payload"])
        assert json.loads(payload)["predicate"]["content_root"] == report.content_root
    pack(out, tracking_uri=str(archive), sign=keys[0], overwrite=True, artifacts=False)
    assert verify(out, keys=public(keys[0])).authentic
    assert len(os.listdir(tmp_path / "out")) == 3  # noqa: PTH208


def test_a_key_that_does_not_open_costs_no_pack(archive: Path, tmp_path: Path) -> None:
    keygen(str(tmp_path / "k"), passphrase=lambda: "open sesame")
    out = tmp_path / "b.tar.zst"
    for key, error in ((str(tmp_path / "k"), UsageError), ("nowhere", NotFoundError)):
        with pytest.raises(error):
            pack(str(out), tracking_uri=str(archive), sign=key)
    assert not out.exists()


def test_what_is_packed_and_not_signed_says_so(
    archive: Path, keys: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "b.tar.zst"
    sign(str(archive), keys[0], signature=str(tmp_path / "stray"))
    key_id = json.loads((tmp_path / "stray").read_text())["signatures"][0]["keyid"]
    (tmp_path / f"b.tar.zst.{key_id[:16]}.sig.json").write_text("somebody's")
    with pytest.raises(SignatureError, match="packed and not signed"):
        pack(str(out), tracking_uri=str(archive), sign=keys[0])
    assert verify(str(out)).ok
    assert (tmp_path / f"b.tar.zst.{key_id[:16]}.sig.json").read_text() == "somebody's"


def test_nothing_is_signed_that_has_another_root(archive: Path, keys: list[str]) -> None:
    with pytest.raises(EximError):
        sign(str(archive), keys[0], expected_root="0" * 64)
    assert names_beside(archive) == []


def test_a_dry_run_signs_nothing(archive: Path, keys: list[str], tmp_path: Path) -> None:
    pack(str(tmp_path / "b.tar.zst"), tracking_uri=str(archive), sign=keys[0], dry_run=True)
    assert names_beside(archive) == []


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_keys_are_private_and_are_never_overwritten(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "k.pem"
    old = os.umask(0)
    try:
        made = keygen(str(path), kind=kind)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert public_key(made.public).id == made.key_id
    before = path.read_bytes()
    for taken in (path, Path(made.public)):
        with pytest.raises(ArchiveExistsError):
            keygen(str(path))
        assert path.read_bytes() == before
        taken.rename(tmp_path / "aside")
        if taken == path:
            with pytest.raises(ArchiveExistsError):
                keygen(str(path))
            assert not path.exists()
        (tmp_path / "aside").rename(taken)


def test_an_encrypted_key_opens_with_its_passphrase_alone(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "k.pem")
    keygen(path, passphrase=lambda: "open sesame")
    assert b"ENCRYPTED" in Path(path).read_bytes()
    with pytest.raises(UsageError, match="encrypted"):
        sign(str(archive), path)
    monkeypatch.setenv(KEY_PASSPHRASE_VARIABLE, "close sesame")
    with pytest.raises(UsageError) as refused:
        sign(str(archive), path)
    assert "sesame" not in str(refused.value)
    monkeypatch.setenv(KEY_PASSPHRASE_VARIABLE, "open sesame")
    sign(str(archive), path)
    monkeypatch.delenv(KEY_PASSPHRASE_VARIABLE)
    sign(str(archive), path, overwrite=True, passphrase=lambda: "open sesame")
    assert verify(str(archive), keys=public(path)).authentic


def test_keys_come_from_the_environment(
    archive: Path, keys: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIGNING_KEY", Path(keys[0]).read_text())
    monkeypatch.setenv("CHECKING_KEY", Path(f"{keys[0]}.pub").read_text())
    sign(str(archive), "env:SIGNING_KEY")
    assert verify(str(archive), keys="env:CHECKING_KEY").authentic
    with pytest.raises(NotFoundError):
        sign(str(archive), "env:NOWHERE")


@pytest.mark.parametrize("text", ["", "junk", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END", "{}"])
def test_what_is_no_key_is_told_so(text: str, archive: Path, tmp_path: Path) -> None:
    (tmp_path / "k").write_text(text)
    with pytest.raises(UsageError):
        verify(str(archive), keys=str(tmp_path / "k"))
    with pytest.raises(UsageError):
        sign(str(archive), str(tmp_path / "k"))


def test_a_private_key_is_no_key_to_verify_with(archive: Path, keys: list[str]) -> None:
    with pytest.raises(UsageError, match="private"):
        verify(str(archive), keys=keys[0])


def test_the_same_key_twice_is_one(archive: Path, keys: list[str], tmp_path: Path) -> None:
    again = shutil.copy(f"{keys[0]}.pub", tmp_path / "copy.pub")
    sign(str(archive), keys[0])
    assert verify(str(archive), keys=[f"{keys[0]}.pub", str(again)]).authentic
    with pytest.raises(UsageError):
        verify(str(archive), keys=[f"{keys[0]}.pub", str(again)], require=2)


def test_stores_keep_signatures_beside_archives(keys: list[str]) -> None:
    url = "memory://signing/a.tar.zst"
    store = fsspec.filesystem("memory")
    store.pipe_file("/signing/a.tar.zst", MINIMAL.read_bytes())
    for key in keys:
        sign(url, key)
    assert verify(url, keys=public(*keys)).authentic
    assert len(store.ls("/signing")) == 1 + len(keys)
    store.rm("/signing", recursive=True)


def test_what_a_signer_says_is_shown_without_control_characters(
    archive: Path, keys: list[str]
) -> None:
    from click.testing import CliRunner

    from mlflow_exim_plugin.cli.main import exim

    sign(str(archive), keys[0], signer="\x1b[2Jalice\nConsistent: all", meaning="\x07ok")
    shown = CliRunner().invoke(exim, ["verify", str(archive), "--key", f"{keys[0]}.pub"]).stdout
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert not any(line.startswith("Consistent: all") for line in shown.splitlines())


def test_who_looks_is_told_what_is_signed_and_that_nobody_checked(
    archive: Path, keys: list[str], tmp_path: Path
) -> None:
    from click.testing import CliRunner

    from mlflow_exim_plugin.cli.main import exim

    def shown() -> tuple[str, str]:
        page = str(tmp_path / "page.html")
        report(str(archive), page, overwrite=True)
        return (
            CliRunner().invoke(exim, ["show", str(archive)]).stdout,
            Path(page).read_text("utf-8"),
        )

    text, page = shown()
    assert "igned by" not in text
    assert "Not signed" in page
    sign(str(archive), keys[0], signer="<b>alice", role="steward", meaning="complete")
    (tmp_path / "a.tar.zst.junk.sig.json").write_text("{")
    (tmp_path / "a.tar.zst.other.sig.json").write_bytes(
        (SAMPLES / "signatures" / "S004_subject.sig.json").read_bytes()
    )
    text, page = shown()
    assert "Not checked, signed by <b>alice (steward), " in text
    assert text.count("signed by") == 1
    assert "&lt;b&gt;alice (steward), " in page
    assert "has not checked them" in page
    assert "Not signed" not in page


# Whatever a signature file holds.

junk: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9) | st.just("e30="),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["payload", "payloadType", "signatures", "keyid", "sig", "x"]), inner
        )
    ),
    max_leaves=8,
)


def bent(change: Callable[[dict[str, Any]], None]) -> bytes:
    document = json.loads(ALICE.read_text())
    change(document)
    return json.dumps(document).encode()


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_no_file_is_believed_or_brings_anything_down(data: st.DataObject) -> None:
    key = public_key(ALICE_KEY)
    root = json.loads(base64.b64decode(json.loads(ALICE.read_text())["payload"]))["subject"][0][
        "digest"
    ]["sha256"]
    whole = ALICE.read_bytes()
    place = data.draw(
        st.sampled_from(["payload", "payloadType", "signatures", "sig", "bytes", "all"])
    )
    if place == "bytes":
        at = data.draw(st.integers(0, len(whole)))
        file = whole[:at] + data.draw(st.binary(max_size=9)) + whole[at + 1 :]
    elif place == "all":
        file = data.draw(st.binary(max_size=99) | junk.map(lambda v: json.dumps(v).encode()))
    else:
        value = data.draw(junk)

        def change(document: dict[str, Any]) -> None:
            (document["signatures"][0] if place == "sig" else document)[place] = value

        file = bent(change)
    signatures, findings = check_signatures({"f": file}, [key], root, 1)
    assert {finding.code for finding in findings} <= set(SIGNATURE_RULES)
    if signatures:  # what still is believed says the same
        # Base64 has several texts for some bytes, and it is the bytes that are signed.
        said, signed = (base64.b64decode(json.loads(of)["payload"]) for of in (file, whole))
        assert said == signed
        assert findings == []
    else:
        assert "S007" in {finding.code for finding in findings}
