from __future__ import annotations

import pytest

from mlflow_exim_plugin.container.paths import (
    MAX_ENCODED_PATH_BYTES,
    MAX_PATH_BYTES,
    MAX_SEGMENT_BYTES,
    PathRegister,
    base_directory_for,
    check_member_path,
    decode_segment,
    encode_path,
    encode_segment,
)
from mlflow_exim_plugin.errors import UnsafePathError


@pytest.mark.parametrize(
    "path",
    [
        "a",
        "data/experiments/1/runs/0a/artifacts/model/MLmodel",
        "data/epoch=3-val_loss=0.21 (best) [v2].ckpt",
        "data/\u65e5\u672c\u8a9e/\u00e9t\u00e9/\U0001f600.png",
        "data/.hidden/..more/a..b",
        "data/console/com10/auxiliary",
        "a" * MAX_SEGMENT_BYTES,
        "/".join(["abc"] * 256),
    ],
)
def test_good_paths(path: str) -> None:
    check_member_path(path)


@pytest.mark.parametrize(
    ("code", "path"),
    [
        ("E001", ""), ("E001", "/a"), ("E001", "a/"), ("E001", "a//b"), ("E001", "."),
        ("E001", "a/.."),
        ("E002", "a\\b"), ("E002", "C:x"), ("E002", "a%b"), ("E002", "a\nb"), ("E002", "a\x7f"),
        ("E002", "a\x9f"), ("E002", "a\u2028b"), ("E002", 'a"'), ("E002", "a?"), ("E002", "<a>"),
        ("E003", "a."), ("E003", "a "), ("E003", " a"), ("E003", "a./b"), ("E003", "a\u00a0"),
        ("E004", "CON"), ("E004", "a/nul.tar.gz"), ("E004", "Com1"), ("E004", "LPT\u00b2"),
        ("E004", "aux .txt"), ("E004", "CONIN$"),
        ("E005", "e\u0301"), ("E005", "\u212b"),
        ("E006", "a" * 241), ("E006", "\u00e9" * 121), ("E006", "/".join(["abc"] * 257)),
        ("E009", "a\ud800"),
    ],
)  # fmt: skip
def test_bad_paths(code: str, path: str) -> None:
    with pytest.raises(UnsafePathError) as caught:
        check_member_path(path)
    assert [finding.code for finding in caught.value.findings] == [code]
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("name", "segment"),
    [
        ("loss", "loss"),
        ("val loss_2-a.b", "val loss_2-a.b"),
        ("\u65e5\u672c", "\u65e5\u672c"),
        ("epoch=3.ckpt", "epoch=3.ckpt"),
        ("", "!"),
        ("a/b", "a!2Fb"),
        ("50%", "50!25"),
        ("!", "!21"),
        (".", "!2E"),
        ("..", ".!2E"),
        ("CON", "!43ON"),
        ("e\u0301", "e!CC!81"),
        (":\u0301", "!3A!CC!81"),
        ("\ud800", "!ED!A0!80"),
        ("x~" + "0" * 64, "x!7E" + "0" * 64),
    ],
)
def test_encoded_segments_are_a_promise(name: str, segment: str) -> None:
    """Archives hold these names: a change here makes old ones unreadable."""
    assert encode_segment(name) == segment
    assert decode_segment(segment) == name
    check_member_path(segment)


def test_long_names_keep_a_readable_start_and_stay_different() -> None:
    first, second = encode_segment("model" * 100), encode_segment("model" * 101)
    assert first != second
    assert first.startswith("modelmodel")
    for segment in (first, second):
        assert len(segment.encode()) <= MAX_SEGMENT_BYTES
        assert decode_segment(segment) is None
        check_member_path(segment)
    # An escape is never cut in the middle.
    assert "!" not in encode_segment("a" * 173 + "/" * 50).partition("~")[0]


@pytest.mark.parametrize("segment", ["a!", "a!zz", "!2f", "!41", "!FF", "a/b", "a:", "e\u0301"])
def test_what_encode_never_makes_has_no_name(segment: str) -> None:
    assert decode_segment(segment) is None


def test_encoded_paths_leave_room_for_folders() -> None:
    assert encode_path("model/MLmodel") == "model/MLmodel"
    assert encode_path("../a:b") == ".!2E/a!3Ab"
    deep = "/".join(["folder"] * 300)
    encoded = encode_path(deep)
    assert encoded.startswith("folder/folder/")
    assert len(encoded.encode()) <= MAX_ENCODED_PATH_BYTES
    assert encode_path(deep + "x") != encoded
    check_member_path("f" * MAX_SEGMENT_BYTES + "/" + encoded)
    assert len(encoded) + MAX_SEGMENT_BYTES < MAX_PATH_BYTES


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("backup.tar.zst", "backup"),
        ("/a/b/My Backup.TAR.ZST", "My Backup"),
        ("s3://bucket/nightly/2026-11-21.tar.zst?versionId=3", "2026-11-21"),
        ("simplecache::https://host/x.tzst#part", "x"),
        ("C:\\archives\\a.tar.zst", "a"),
        ("a:b.tar.zst", "a_b"),
        ("con.tar.zst", "_con"),
        ("e\u0301.tar.zst", "\u00e9"),
        (".tar.zst", "archive"),
        ("", "archive"),
        ("dots....tar.zst", "dots"),
        ("x" * 300 + ".tar.zst", "x" * 239),
    ],
)
def test_base_directory(url: str, name: str) -> None:
    assert base_directory_for(url) == name
    check_member_path(name)


def test_register_finds_collisions_and_folders() -> None:
    register = PathRegister()
    register.add("a/b/c", 0)
    for code, path in (("E007", "A/b/C"), ("E008", "a/B"), ("E008", "a/b/c/d"), ("E008", "A")):
        with pytest.raises(UnsafePathError) as caught:
            register.add(path, 1)
        assert caught.value.findings[0].code == code
    register.add("a/b/d", 1)
    assert (len(register), register.row("A/B/D"), register.row("x")) == (2, 1, None)
