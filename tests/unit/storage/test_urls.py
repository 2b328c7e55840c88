from __future__ import annotations

from pathlib import Path

import pytest

from mlflow_exim_plugin.host.open.locations import is_database, store_folder
from mlflow_exim_plugin.storage.schemes import Publication, is_far, publication_of, scheme_of
from mlflow_exim_plugin.storage.urls import local_path, path_of_uri


def test_a_url_of_fsspec_is_local_or_not() -> None:
    home = str(Path("~").expanduser())
    assert local_path("a:b/c d.tar.zst") == "a:b/c d.tar.zst"
    assert local_path("~/a") == f"{home}/a"
    assert local_path("file:///a%20b") == local_path("local:///a%20b") == "/a%20b"
    for url in ("s3://bucket/a", "simplecache::file:///a", "memory://a", "unknown://a"):
        assert local_path(url) is None


def test_a_uri_of_mlflow_is_local_or_not() -> None:
    assert path_of_uri("file:///a%20b") == path_of_uri("file:/a%20b") == "/a b"
    assert path_of_uri("/a%20b#c?d") == "/a%20b#c?d"
    for uri in ("runs:/1/model", "mlflow-artifacts:/1", "s3://bucket/a", "dbfs:/a"):
        assert path_of_uri(uri) is None


def test_a_location_is_a_database_a_folder_or_neither() -> None:
    assert is_database("postgresql+psycopg2://u:p@h/d")
    assert not is_database("http://h")
    assert store_folder("./mlruns") == Path("mlruns")
    assert store_folder("file:///my%20runs") == Path("/my runs")
    for uri in ("databricks", "databricks-uc", "uc", "http://h", "sqlite:///a.db"):
        assert store_folder(uri) is None


@pytest.mark.parametrize(
    ("url", "package"),
    [
        ("s3://bucket/a", "mlflow-exim-plugin[s3]"),
        ("simplecache::abfss://c@account/a", "mlflow-exim-plugin[azure]"),
        ("https://host/a", "mlflow-exim-plugin[http]"),
        ("hf://datasets/a", "hf"),
    ],
)
def test_a_scheme_says_what_brings_it(url: str, package: str) -> None:
    assert scheme_of(url).package == package


def test_a_file_gets_its_name_as_its_file_system_can() -> None:
    assert publication_of(("s3", "s3a")) is Publication.PARTS_OF_S3
    assert publication_of("abfs") is Publication.BLOCKS_OF_AZURE
    assert publication_of(("file", "local")) is Publication.LINK
    assert publication_of("webdav") is Publication.MOVE_OF_WEBDAV
    assert publication_of("hf") is None
    assert scheme_of("a/b").is_local
    assert not scheme_of("sftp://h/a").is_local
    assert is_far("sftp://h/a")
    assert not is_far("http://h/a")
