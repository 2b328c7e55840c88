"""What a command costs before it does anything: requests to a store, and what is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
import pytest
from click.testing import CliRunner

from mlflow_exim_plugin.cli.main import exim
from tests.proxy import FaultyProxy
from tests.range_server import serving

if TYPE_CHECKING:
    from tests.conftest import Bucket

pytestmark = [
    pytest.mark.integration,
    # aiohttp's sockets of a session that fsspec keeps for later.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
SMALL = str(Path(__file__).parents[1] / "golden" / "everything.tar.zst")

RUN = """
import sys
from mlflow_exim_plugin.entrypoints import main
heavy, code, *arguments = sys.argv[1:]
sys.argv[1:] = arguments
try:
    ended = main() or 0
except SystemExit as end:
    ended = end.code
loaded = set(heavy.split(",")) & sys.modules.keys()
assert int(ended) == int(code), ended
assert not loaded, loaded
"""


def run(heavy: str, exit_code: int, *arguments: str) -> None:
    """Run a command in a process of its own, which must not load some modules."""
    command = [sys.executable, "-c", RUN, heavy, str(exit_code), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "arguments",
    ["--help", f"ls {SMALL}", f"cat {SMALL} exim.json", f"show {SMALL} -m agent", "extract -o ."],
)
def test_looking_loads_neither_mlflow_nor_arrow(
    arguments: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if arguments.startswith("extract"):
        arguments += f" {SMALL}"

    run("mlflow,pyarrow,numpy,pandas,sqlalchemy,alembic", 0, *arguments.split())


def test_a_taken_name_is_said_before_mlflow_is_loaded(tmp_path: Path, s3_bucket: Bucket) -> None:
    pytest.importorskip("s3fs")
    (tmp_path / "a.tar.zst").touch()
    client = boto3.client("s3", endpoint_url=s3_bucket.endpoint_url)
    client.put_object(Bucket=s3_bucket.name, Key="a.tar.zst", Body=b"mine")
    for where in (str(tmp_path / "a.tar.zst"), f"{s3_bucket.url}/a.tar.zst"):
        for source in ("http://127.0.0.1:9", f"sqlite:///{tmp_path}/mlflow.db"):
            run("mlflow,sqlalchemy,alembic", 8, "pack", where, "--tracking-uri", source)


def test_a_small_archive_is_listed_with_two_requests(
    s3_bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3 = pytest.importorskip("s3fs").S3FileSystem
    client = boto3.client("s3", endpoint_url=s3_bucket.endpoint_url)
    client.upload_file(SMALL, s3_bucket.name, "a.tar.zst")
    with serving() as (url, server):
        server.data = Path(SMALL).read_bytes()
        of_http = CliRunner().invoke(exim, ["ls", url])
        assert len(server.asked) <= 2, server.asked
    with FaultyProxy(s3_bucket.endpoint_url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        s3.clear_instance_cache()  # one that is remembered keeps the address that it began with
        of_s3 = CliRunner().invoke(exim, ["ls", f"{s3_bucket.url}/a.tar.zst"])
        s3.clear_instance_cache()
        assert 1 <= len(proxy.seen) <= 2, [(r.method, r.path) for r in proxy.seen]
    here = CliRunner().invoke(exim, ["ls", SMALL])
    assert of_http.stdout == of_s3.stdout == here.stdout
    assert of_http.exit_code == of_s3.exit_code == 0
