"""Nothing of a secret is left in a redacted archive, and the archive is one like any other."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest

from mlflow_exim_plugin import diff, pack, scan, unpack, verify
from mlflow_exim_plugin.cli.main import exim
from mlflow_exim_plugin.container.reader import ArchiveReader
from mlflow_exim_plugin.errors import UsageError
from mlflow_exim_plugin.kinds import Kind
from mlflow_exim_plugin.sources.archive.archive import Archive
from tests.compare import assert_count_law
from tests.filled import once_a_session
from tests.pinned import ARCHIVE
from tests.planted import KEPT, PATTERN, SECRET, WITH_UMLAUT, plant

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow_exim_plugin import Report

pytestmark = pytest.mark.integration

TRACES = (SECRET.encode(), WITH_UMLAUT.encode(), b"Zq7Geh")
RULES = """
rules:
  - {field: "*", match: "PATTERN", action: ACTION}
  - {field: "*.artifacts.*", match: "PATTERN", action: drop}
"""


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> str:
    def make(folder: Path) -> str:
        archive = str(folder / "planted.tar.zst")
        plant(archive)
        return archive

    return once_a_session(tmp_path_factory, "planted", make)


@pytest.fixture(autouse=True)
def salt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_EXIM_SALT", "0123456789abcdef")


def rules(folder: Path, action: str) -> str:
    path = folder / "rules.yaml"
    path.write_text(RULES.replace("PATTERN", PATTERN).replace("ACTION", action))
    return str(path)


def with_secrets(archive: str, traces: tuple[bytes, ...] = TRACES) -> Iterator[str]:
    """Yield the members whose name or bytes, or values of whose table, have a secret in them."""
    with ArchiveReader.open(archive) as reader:
        for member in reader.members():
            with reader.open_member(member.path) as stream:
                data = stream.read()
            if member.path.endswith(".parquet"):
                data = repr(pq.read_table(io.BytesIO(data)).to_pylist()).encode()
            if any(trace in data or trace in member.path.encode() for trace in traces):
                yield member.path


def assert_nothing_is_said(report: Report) -> None:
    told = json.dumps(report.to_dict()).encode()
    assert not [trace for trace in TRACES if trace in told]


@pytest.mark.parametrize("action", ["replace", "hash", "drop"])
def test_no_byte_of_a_secret_is_left(planted: str, tmp_path: Path, action: str) -> None:
    assert len([*with_secrets(planted)]) > 100
    archive = str(tmp_path / "left.tar.zst")

    report = pack(archive, tracking_uri=planted, redact=(rules(tmp_path, action),))

    assert list(with_secrets(archive)) == []
    assert_nothing_is_said(report)
    assert_count_law(report)
    assert report.failures == []
    assert verify(archive).findings == []
    with Archive.open(archive) as left:
        (told,) = left.summary.info.redacted
        assert told == report.redacted[0]
        assert [rule["action"] for rule in told["rules"]] == [action, "drop"]
        dropped = [rule["files_dropped"]["run"] for rule in told["rules"]]
        assert sum(dropped) == 2 * report.counts[Kind.RUN].written + 1
        kept = [a for run in left.runs() for a in run.info.artifacts if a.path == "kept.txt"]
        assert len(KEPT) in {a.size_bytes for a in kept}


def test_what_is_left_arrives_at_a_database(planted: str, tmp_path: Path) -> None:
    archive, target = str(tmp_path / "left.tar.zst"), f"sqlite:///{tmp_path}/target.db"
    pack(archive, tracking_uri=planted, redact=(rules(tmp_path, "hash"),))

    report = unpack(archive, tracking_uri=target, artifact_location=str(tmp_path / "files"))

    assert report.failures == []
    assert_nothing_is_said(report)
    # What was planted in names alone leads nowhere in others, redacted or not.
    whole = {Kind.EXPERIMENT, Kind.RUN, Kind.LOGGED_MODEL, Kind.TRACE, Kind.EVALUATION_DATASET}
    assert not {d.kind for d in diff(archive, target).differences} & whole
    assert not [trace for trace in TRACES if trace in (tmp_path / "target.db").read_bytes()]


def test_nothing_is_left_at_a_server_that_objects_come_to_redacted(
    planted: str, tmp_path: Path
) -> None:
    target = f"sqlite:///{tmp_path}/target.db"

    report = unpack(
        planted,
        tracking_uri=target,
        artifact_location=str(tmp_path / "files"),
        preserve_ids=False,
        import_source_tags=True,
        experiments=("*agent*",),
        redact=(rules(tmp_path, "replace"),),
    )

    assert report.counts[Kind.TRACE].written
    assert_nothing_is_said(report)
    assert not [trace for trace in TRACES if trace in (tmp_path / "target.db").read_bytes()]


def test_rules_that_meet_nothing_leave_every_object_as_it_was(tmp_path: Path) -> None:
    archive = str(tmp_path / "same.tar.zst")

    report = pack(archive, tracking_uri=str(ARCHIVE), redact=(rules(tmp_path, "drop"),))

    result = diff(str(ARCHIVE), archive, rules="exact")
    assert result.equal, result.differences
    assert report.redacted[0]["rules"][0]["fields_changed"] == {}


def test_an_archive_taken_from_a_redacted_one_says_so_too(tmp_path: Path) -> None:
    first, second, third = (str(tmp_path / f"{n}.tar.zst") for n in range(3))
    pack(first, tracking_uri=str(ARCHIVE), redact=("users",))
    pack(second, tracking_uri=first)
    pack(third, tracking_uri=second, redact=("trace-content",))

    with Archive.open(second) as archive:
        assert [told["name"] for told in archive.summary.info.redacted] == ["users"]
    with Archive.open(third) as archive:
        named = [told["name"] for told in archive.summary.info.redacted]
        assert named == ["trace-content", "users"]
        assert archive.summary.info.taken_from[1]["root"] == Archive.open(first).reader.root
        spans = [span for trace in archive.traces() for span in trace.spans or ()]
    assert spans
    assert not [key for span in spans for key in span["attributes"] if "Inputs" in key]


def test_what_was_begun_without_the_rules_is_not_gone_on_with(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="other rules"):
        pack(str(tmp_path / "a.tar.zst"), tracking_uri=str(ARCHIVE), redact=("users",), resume=True)


def test_rules_that_a_scan_writes_take_out_what_it_found(
    planted: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rules_file, left = str(tmp_path / "rules.yaml"), str(tmp_path / "left.tar.zst")
    command = ["scan", planted, "--find", "token", "--output"]

    with pytest.raises(SystemExit) as ended:
        exim([*command, "json", "--write-rules", rules_file, "--limit", "5"])
    told = json.loads(capsys.readouterr().out)
    with pytest.raises(SystemExit):
        exim([*command, "text"])
    said = capsys.readouterr().out

    assert ended.value.code == 1
    assert SECRET not in said
    assert SECRET not in json.dumps(told)
    assert SECRET not in Path(rules_file).read_text()
    assert len(told["findings"]) == 5
    places = sum(count for counts in told["counts"].values() for count in counts.values())
    assert len([line for line in said.splitlines() if "AKIA… (20 characters)" in line]) > 0
    assert places > 500
    assert {"token"} == {detector for counts in told["counts"].values() for detector in counts}

    pack(left, tracking_uri=planted, redact=(rules_file,))

    assert list(with_secrets(left, (SECRET.encode(),))) == []
    assert scan(left, find=("token",)).clean
