from __future__ import annotations

import pytest

from mlflow_exim_plugin.storage import object_stores
from mlflow_exim_plugin.storage.object_stores import Place, place_of, settings
from mlflow_exim_plugin.storage.objects import _line
from mlflow_exim_plugin.storage.schemes import Objects

HOST = "account.dfs.core.windows.net"


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("s3://b/1/r/artifacts/", Place(Objects.S3, "b", "1/r/artifacts")),
        ("s3://b/100%25/a b", Place(Objects.S3, "b", "100%25/a b")),
        ("gs://b/é", Place(Objects.GOOGLE, "b", "é")),
        (f"abfss://c@{HOST}/a%20b", Place(Objects.AZURE, "c", "a b", HOST)),
        (f"wasbs://c@{HOST}/a%20b", Place(Objects.AZURE, "c", "a%20b", HOST)),
        ("abfs://c/a", Place(Objects.AZURE, "c", "a")),
        *(
            (url, None)
            for url in ("s3://b", "s3://b//a", "s3://b/../a", "s3://b/a?x=1", "s3://b/a#b")
        ),
        *((url, None) for url in ("s3://user@b/a", "s3:///a", "simplecache::s3://b/a", "/b/a")),
        *((url, None) for url in ("sftp://h/a", "mlflow-artifacts:/1", "dbfs:/a", "az://c/a")),
    ],
)
def test_a_url_says_bucket_and_folder_as_mlflow_reads_it(url: str, place: Place | None) -> None:
    assert place_of(url) == place


def test_another_setting_is_another_store(monkeypatch: pytest.MonkeyPatch) -> None:
    before = settings()
    assert settings() == before
    monkeypatch.setenv("AWS_PROFILE", "other")
    assert settings() != before


def test_what_azure_is_told_in_one_string() -> None:
    told = object_stores._connection("AccountName=a;AccountKey=b==;BlobEndpoint=http://h/a;")
    assert told == {"AccountName": "a", "AccountKey": "b==", "BlobEndpoint": "http://h/a"}
    emulated = object_stores._connection("UseDevelopmentStorage=true")
    assert emulated["BlobEndpoint"].endswith("/devstoreaccount1")


def test_errors_are_one_line_without_secrets() -> None:
    said = (
        "Generic MicrosoftAzure error: Error performing GET https://a.blob.core.windows.net/c/k?"
        "sv=2021&sig=SECRET in 1ms - Server returned non-2xx status code: 403 Forbidden: "
        "<Error><Code>No</Code>\n</Error>\n\nDebug source:\nGeneric { sig=SECRET }"
    )
    line = _line(RuntimeError(said))
    assert "SECRET" not in line
    assert "Debug" not in line
    assert line.endswith("403 Forbidden: No")
    assert _line(ValueError()) == "ValueError"
