"""Skills of MLflow 3.18, with the files that a server keeps of them: packed, and put back."""

from __future__ import annotations

import io
import tarfile
from typing import TYPE_CHECKING, Any

import pytest
from mlflow import MlflowClient

from mlflow_exim_plugin import diff, pack, verify
from mlflow_exim_plugin import unpack as unpack_by_ids
from mlflow_exim_plugin.container.reader import ArchiveReader
from mlflow_exim_plugin.errors import ConflictError
from mlflow_exim_plugin.schema.canonical import parse_json
from mlflow_exim_plugin.schema.objects import Kind
from tests.compare import assert_count_law
from tests.new_ids import unpack
from tests.servers import new_sqlite_database

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import MakeServer
    from tests.servers import Server

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not hasattr(MlflowClient, "search_skills"), reason="no skills before 3.18"),
]

SKILL_MD = b"---\nname: review\ndescription: reads code\n---\nRead it aloud.\n"
FILES = {"SKILL.md": SKILL_MD, "scripts/run me.py": b"print('\xc3\xa9')\n", "empty.txt": b""}
MEMBERS = {f"{number}/{path}": data for number in (2, 4) for path, data in FILES.items()} | {
    "4/more.txt": b"more"
}


def _archive(path: Path, files: dict[str, bytes]) -> str:
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return str(path)


def _seed(server: Server, folder: Path) -> None:
    """Make a skill of an organization with every kind of version, and one without anything."""
    from mlflow.entities.skill import SkillStatus
    from mlflow.entities.skill_source import GitSource, OCISource, ZipSource

    client = MlflowClient(server.url, server.url)
    client.create_skill(name="review", organization="acme.eu", description="reads\n  code  aloud")
    client.create_skill(name="review")
    of = {"name": "review", "organization": "acme.eu"}
    git = GitSource("https://git.example.com/skills.git", ref="v1", subpath="review")
    client.create_skill_version(**of, source=git, digest="ab" * 32)
    whole = _archive(folder / "skill.tar.gz", FILES)
    client.create_skill_version(**of, source=whole)
    client.create_skill_version(**of, source=ZipSource("https://example.com/s.zip"), status="draft")
    client.delete_skill_version(**of, version=3)
    more = _archive(folder / "more.tar.gz", FILES | {"more.txt": b"more"})
    client.create_skill_version(**of, source=more)
    client.create_skill_version(**of, source=OCISource("example.com/skills:v1"), status="draft")
    client.update_skill_version(**of, version=2, status=SkillStatus.DEPRECATED)
    client.set_skill_tag(**of, key="team", value="gr\u00f6\u00dfe")
    client.set_skill_version_tag(**of, version=4, key="seen", value="yes")
    client.set_skill_alias(**of, alias="stable", version=2)
    client.set_skill_alias(**of, alias="next", version=5)


def _documents(archive: str) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return the skills of an archive, and the files of their versions."""
    documents, files = {}, {}
    with ArchiveReader.open(archive) as reader:
        for path in reader.paths("data/skills/"):
            if "/artifacts/" in path:
                files[path.partition("/artifacts/")[2]] = reader.read(path)
            else:
                skill = parse_json(reader.read(path), path)["mlflow"]["skill"]
                documents[skill["skill_id"]] = skill
    return documents, files


def _known(document: dict[str, Any]) -> dict[str, Any]:
    """Return a skill without what a target sets anew."""
    anew = {"created_by", "last_updated_by", "creation_timestamp", "last_updated_timestamp"}
    versions = []
    for version in document["versions"]:
        uploaded = str(version["source"]).startswith("mlflow-artifacts:/skills/@acme.eu/review/")
        its = {key: value for key, value in version.items() if key not in anew}
        versions.append(its | ({"source": "uploaded"} if uploaded else {}))
    return {key: v for key, v in document.items() if key not in anew} | {"versions": versions}


def _without_gap(document: dict[str, Any]) -> dict[str, Any]:
    """Return a skill with the numbers that a server gives its versions."""
    numbers = {v["version"]: n for n, v in enumerate(document["versions"], 1)}
    return document | {
        key: [entry | {"version": numbers[entry["version"]]} for entry in document[key]]
        for key in ("versions", "aliases")
    }


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server with skills, and where it keeps files."""
    from tests.servers import start_server

    folder = tmp_path_factory.mktemp("skills")
    with start_server(folder / "server") as server:
        _seed(server, folder)
        yield server


@pytest.fixture(scope="module")
def archive(source: Server, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("archive") / "skills.tar.zst")
    report = pack(path, tracking_uri=source.url)
    assert report.ok
    assert_count_law(report)
    assert report.counts[Kind.SKILL].written == 2
    assert report.counts[Kind.ARTIFACT].written == 7
    return path


def test_pack_takes_everything_that_a_server_shows(archive: str) -> None:
    documents, files = _documents(archive)

    assert verify(archive).findings == []
    assert files == MEMBERS
    skill = documents["@acme.eu/review"]
    assert [v["version"] for v in skill["versions"]] == [1, 2, 4, 5]
    assert [v["status"] for v in skill["versions"]] == ["active", "deprecated", "active", "draft"]
    assert [v["source_type"] for v in skill["versions"]] == ["git", "mlflow", "mlflow", "oci"]
    first = skill["versions"][0]
    assert (first["source"], first["ref"], first["subpath"], first["digest"]) == (
        "https://git.example.com/skills.git",
        "v1",
        "review",
        "ab" * 32,
    )
    assert skill["aliases"] == [{"alias": "next", "version": 5}, {"alias": "stable", "version": 2}]
    assert skill["tags"] == [{"key": "team", "value": "gr\u00f6\u00dfe"}]
    assert skill["versions"][2]["tags"] == [{"key": "seen", "value": "yes"}]
    assert documents["review"]["versions"] == []


def test_a_database_gives_what_its_server_gives(
    source: Server, archive: str, tmp_path: Path
) -> None:
    packed = str(tmp_path / "database.tar.zst")
    report = pack(
        packed,
        tracking_uri=source.backend_uri,
        artifacts_destination=str(source.directory / "artifacts"),
    )

    assert report.ok
    assert _documents(packed) == _documents(archive)


def test_without_artifacts_no_file_is_packed(source: Server, tmp_path: Path) -> None:
    packed = str(tmp_path / "bare.tar.zst")
    assert pack(packed, tracking_uri=source.url, artifacts=False).ok
    assert _documents(packed)[1] == {}


def test_unpack_into_a_server(archive: str, make_server: MakeServer, tmp_path: Path) -> None:
    target = make_server()
    dry = unpack(archive, tracking_uri=target.url, dry_run=True)
    report = unpack(archive, tracking_uri=target.url)
    again = unpack(archive, tracking_uri=target.url)

    assert report.ok
    for each in (dry, report, again):
        assert_count_law(each)
    for each in (dry, report):
        assert each.counts[Kind.SKILL].written == 2
        assert each.counts[Kind.ARTIFACT].written == 7
    assert again.counts[Kind.SKILL].written == 0
    lost = {loss.what for loss in report.losses if loss.id == "@acme.eu/review"}
    assert lost == {"versions are renumbered: version 4 is 3, 5 is 4"}
    back = str(tmp_path / "back.tar.zst")
    pack(back, tracking_uri=target.url)
    documents, files = _documents(back)
    wanted = _documents(archive)[0]
    assert {name: _known(d) for name, d in documents.items()} == {
        name: _known(_without_gap(d)) for name, d in wanted.items()
    }
    assert files["3/more.txt"] == b"more"
    assert len(files) == 7


@pytest.mark.parametrize("is_new", [True, False])
def test_unpack_into_a_database(
    archive: str, make_server: MakeServer, tmp_path: Path, *, is_new: bool
) -> None:
    new_sqlite_database(tmp_path / "mlflow.db")
    files = tmp_path / "artifacts"
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    way = unpack if is_new else unpack_by_ids
    report = way(archive, tracking_uri=uri, artifacts_destination=str(files))
    again = way(archive, tracking_uri=uri, artifacts_destination=str(files))

    assert report.ok
    for each in (report, again):
        assert_count_law(each)
    assert report.counts[Kind.SKILL].written == 2
    assert report.counts[Kind.ARTIFACT].written == 7
    assert again.counts[Kind.SKILL].written == 0
    back = str(tmp_path / "back.tar.zst")
    served = make_server(tmp_path)
    pack(back, tracking_uri=served.url)
    wanted = _documents(archive)
    if is_new:
        assert {name: _known(d) for name, d in _documents(back)[0].items()} == {
            name: _known(_without_gap(d)) for name, d in wanted[0].items()
        }
    else:
        assert _documents(back) == wanted
        compared = diff(archive, served.url, rules="exact")
        assert [d for d in compared.differences if d.kind is Kind.SKILL] == []
    client = MlflowClient(served.url, served.url)
    found = client.search_skills(filter_string="search_text LIKE '%reads code aloud%'")
    assert [skill.organization for skill in found] == ["acme.eu"]


@pytest.mark.parametrize("policy", ["merge", "skip", "rename", "fail"])
def test_another_skill_of_that_name(archive: str, tmp_path: Path, policy: str) -> None:
    new_sqlite_database(tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    where: dict[str, Any] = {
        "tracking_uri": uri,
        "artifacts_destination": str(tmp_path / "artifacts"),
    }
    client = MlflowClient(uri, uri)
    client.create_skill(name="review", organization="acme.eu", description="another")

    if policy == "fail":
        with pytest.raises(ConflictError, match="another skill named 'review'"):
            unpack(archive, on_conflict=policy, **where)
        return
    report = unpack(archive, on_conflict=policy, **where)
    assert_count_law(report)
    found = {f"@{s.organization}/{s.name}": s for s in client.search_skills()}
    versions = {
        name: len(client.search_skill_versions(name=s.name, organization=s.organization))
        for name, s in found.items()
    }
    assert (
        versions
        == {
            "merge": {"@acme.eu/review": 4, "@/review": 0},
            "skip": {"@acme.eu/review": 0, "@/review": 0},
            "rename": {"@acme.eu/review": 0, "@acme.eu/review-2": 4, "@/review": 0},
        }[policy]
    )
    assert found["@acme.eu/review"].description == "another"


def test_a_target_without_skills(archive: str, make_server: MakeServer) -> None:
    target = make_server(mlflow_version="3.4.0")
    report = unpack(archive, tracking_uri=target.url)

    assert_count_law(report)
    assert report.counts[Kind.SKILL].skipped == 2
    (named,) = [loss for loss in report.losses if loss.kind is Kind.SKILL]
    assert named.what == "the target's MLflow does not have them: 2 left out"
