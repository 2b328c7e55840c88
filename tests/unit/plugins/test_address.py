from __future__ import annotations

import pytest
from mlflow.utils.uri import append_to_uri_path

from mlflow_exim_plugin.errors import UsageError
from mlflow_exim_plugin.plugins.address import Address

ARCHIVES = [
    "/backups/nightly.tar.zst",
    "/a folder/100% #1?!/ünï.tar.zst",
    "s3://bucket/a/nightly.tar.zst",
    "https://host/a.tar.zst?signature=a%2Fb&x=1#top",
    "simplecache::s3://bucket/nightly.tar.zst",
    "/a, b.tar.zst",
]


@pytest.mark.parametrize("archive", ARCHIVES)
def test_what_is_written_is_read(archive: str) -> None:
    address = Address.of(archive)
    folder = Address((archive,), "data/experiments/1/runs/a%20b/artifacts")

    assert Address.parse(str(address)) == address
    assert Address.parse(str(folder)) == folder
    # MLflow makes the URI of a file of that of its folder.
    joined = append_to_uri_path(str(folder), "model", "a b#c.txt")
    assert Address.parse(joined) == Address((archive,), f"{folder.folder}/model/a b#c.txt")
    assert Address.parse(append_to_uri_path(address.members, "data/x")) == Address(
        (archive,), "data/x"
    )


def test_a_path_may_be_written_in_other_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    expected = Address(("/backups/nightly.tar.zst",))

    for uri in (
        "exim:///backups/nightly.tar.zst",
        "exim:/backups/nightly.tar.zst",
        "EXIM:///backups/nightly.tar.zst",
        "exim:backups/nightly.tar.zst",
        "exim:file:///backups/nightly.tar.zst",
        "exim:///backups/nightly.tar.zst!/",
    ):
        assert Address.parse(uri) == expected, uri


def test_several_archives_have_one_address() -> None:
    address = Address.of(*ARCHIVES)

    assert Address.parse(str(address)) == address == Address(tuple(ARCHIVES))
    assert Address.parse("exim:///a,///b,s3://c/d!/ROOT/data") == Address(
        ("/a", "/b", "s3://c/d"), "ROOT/data"
    )


@pytest.mark.parametrize(
    "uri", ["exim:", "exim://", "exim://host/a.tar.zst", "s3://a", "", "!/x", "exim:///a,"]
)
def test_what_names_no_archive_is_refused(uri: str) -> None:
    with pytest.raises(UsageError, match="archive"):
        Address.parse(uri)
