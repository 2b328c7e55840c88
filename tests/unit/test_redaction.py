"""Nothing that leaves us holds a secret."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from mlflow_exim_plugin.errors import EximError
from mlflow_exim_plugin.redaction import redact, redact_text, redact_url
from mlflow_exim_plugin.schema.objects import Failure, Kind, Loss


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("/data/a?b=c@d.tar.zst", "/data/a?b=c@d.tar.zst"),
        ("s3://bucket/a.tar.zst", "s3://bucket/a.tar.zst"),
        ("s3://bucket/a:b/c@d", "s3://bucket/a:b/c@d"),
        ("http://host:5000/a@b/c", "http://host:5000/a@b/c"),
        ("http://[::1]:80/a@b", "http://[::1]:80/a@b"),
        ("sqlite:////a/b@c.db", "sqlite:////a/b@c.db"),
        ("https://user:p@ss@host/a", "https://***@host/a"),
        ("https://user:p/ss@host/a", "https://***@host/a"),
        ("s3://AK:SEC/RE+T@bucket/a", "s3://***@bucket/a"),
        ("postgresql://u:SE@/C#RET@h:5432/db", "postgresql://***@h:5432/db"),
        ("mysql+pymysql://u:SEC?RET@h/db", "mysql+pymysql://***@h/db"),
        ("https://host/a?X-Amz-Signature=SECRET&sig=SECRET", "https://host/a?X-Amz-Signature=***&sig=***"),
        ("s3://b/a?versionId=7", "s3://b/a?versionId=7"),
        ("simplecache::ftp://u:SECRET@h/a", "simplecache::ftp://***@h/a"),
        ("zip://x::https://u:SECRET@h/a?t=SECRET::memory://y", "zip://x::https://***@h/a?t=***::memory://y"),
    ],
)  # fmt: skip
def test_a_url_is_shown_without_its_secrets(url: str, shown: str) -> None:
    assert redact_url(url) == shown
    if "::" not in url and "/data" not in url:
        assert redact(f"opening '{url}': no") == f"opening '{shown}': no"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("exceeded with url: /a?token=SECRET&x=1", "exceeded with url: /a?token=***&x=1"),
        ("{'Authorization': 'Bearer SECRET', 'a': 1}", "{'Authorization': '***', 'a': 1}"),
        ("Authorization: Basic SECRET\nHost: h", "Authorization: ***\nHost: h"),
        ("authorization: AWS4-HMAC-SHA256 Credential=SECRET, x=SECRET", "authorization: ***"),
        ("Bearer SECRETSECRET", "Bearer ***"),
        ("host=h password=SECRET user=u", "host=h password=*** user=u"),
        ("password='SEC RET'", "password=***"),
        ("AccountName=a;AccountKey=SECRET==;x", "AccountName=a;AccountKey=***;x"),
        ("{'key': 'AK', 'secret': 'SECRET'}", "{'key': 'AK', 'secret': '***'}"),
        ('{"password": "SEC\'RET"}', '{"password": "***"}'),
        # What is no secret stays as it is.
        ("the gateway secret: it needs a token", "the gateway secret: it needs a token"),
        ("max_tokens=7, run 'a  b'\nset MLFLOW_TRACKING_TOKEN", None),
    ],
)  # fmt: skip
def test_a_text_is_shown_without_its_secrets(text: str, shown: str | None) -> None:
    assert redact(text) == (text if shown is None else shown)


def test_a_url_that_is_known_may_hold_any_character() -> None:
    url = "s3://k y:se'cret@b/a"
    assert redact_text(f"cannot read\n {url}: no", url) == "cannot read s3://***@b/a: no"


@pytest.mark.parametrize("piece", ["x", "token", "'token", "token'", "a://", "?token=", "http://@"])
def test_a_long_text_of_a_hostile_source_takes_no_time(piece: str) -> None:
    began = time.process_time()

    redact(piece * 20_000)

    assert time.process_time() - began < 1


def test_errors_and_reports_hold_no_secrets() -> None:
    said = "reading s3://k:SECRET@b/a"
    error = EximError(said, f"try {said}")
    assert "SECRET" not in f"{error.message} {error.hint} {error!r}"
    assert Failure(Kind.RUN, "r", said).reason == "reading s3://***@b/a"
    assert Loss(Kind.RUN, "r", said).what == "reading s3://***@b/a"


NOWHERE = "127.0.0.1:9"


@pytest.mark.parametrize(
    "arguments",
    [
        ["pack", "a.tar.zst", "--tracking-uri", f"postgresql://u:SEC/SECRET@{NOWHERE}/db"],
        ["pack", "a.tar.zst", "--tracking-uri", f"mysql+pymysql://u:p@SECRET@{NOWHERE}/db"],
        ["pack", "a.tar.zst", "--tracking-uri", f"http://u:SECRET@{NOWHERE}"],
        ["pack", "a.tar.zst", "--tracking-uri", f"http://u:x/SECRET@{NOWHERE}"],
        ["pack", f"http://u:SECRET@{NOWHERE}/a.tar.zst?sig=SECRET"],
        ["ls", f"http://{NOWHERE}/a.tar.zst?token=SECRET&sig=SECRET"],
        ["ls", "s3://AK:SECRET@bucket", "s3://AK:SEC/SECRET@bucket"],
        ["ls", "nowhere://AK:SECRET@bucket/a.tar.zst"],
        ["verify", "a.tar.zst", "--jobs", "https://h/?password=SECRET"],
        ["diff", f"http://u:SECRET@{NOWHERE}/a.tar.zst", f"http://{NOWHERE}/?code=SECRET"],
    ],
)
def test_no_command_shows_a_secret(arguments: list[str], tmp_path: object) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "mlflow_exim_plugin", *arguments, "--verbose", "--output", "json"],
        capture_output=True,
        text=True,
        cwd=str(tmp_path),
        env={
            **os.environ,
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
            "MLFLOW_TRACKING_TOKEN": "SECRET",
            "MLFLOW_TRACKING_URI": f"http://{NOWHERE}",
        },
        check=False,
    )
    assert ended.returncode not in {0, 3}
    assert json.loads(ended.stdout)["ok"] is False
    assert "SECRET" not in ended.stdout + ended.stderr
