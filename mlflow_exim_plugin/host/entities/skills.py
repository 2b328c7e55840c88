"""Registered skills with their versions, tags and aliases: read and written."""

from __future__ import annotations

import tarfile
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import ServerError, ServerLostError, StoreError
from mlflow_exim_plugin.host.api.reading import pages
from mlflow_exim_plugin.host.documents import present, signed, sorted_entries
from mlflow_exim_plugin.host.errors import translated
from mlflow_exim_plugin.host.files.gate import path_problem
from mlflow_exim_plugin.host.open.absent import method
from mlflow_exim_plugin.schema.objects import Entity, Failure, Kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from mlflow_exim_plugin.host.open.host import Host
    from mlflow_exim_plugin.schema.objects import Artifact

__all__ = [
    "READS",
    "create_skill",
    "create_skill_version",
    "create_uploaded_version",
    "new_place",
    "set_skill_alias",
    "set_skill_tag",
    "set_skill_version_deprecated",
    "skills",
]

_PAGE = 1000


def skills(host: Host) -> Iterator[Entity | Failure]:
    """Yield the skills with all their parts, by name; MLflow shows no deleted versions."""
    with translated("listing the skills"):
        found = list(
            pages(
                lambda token: method(host.tracking, "search_skills")(
                    max_results=_PAGE, page_token=token
                )
            )
        )
    for skill in sorted(found, key=lambda skill: (skill.organization, skill.name)):
        identity = f"@{skill.organization}/{skill.name}" if skill.organization else skill.name
        try:
            yield Entity(Kind.SKILL, _skill(host, identity, skill))
        except ServerLostError:
            raise
        except ServerError as error:
            yield Failure(Kind.SKILL, identity, error.message)


def _skill(host: Host, identity: str, skill: Any) -> dict[str, Any]:
    with translated(f"reading skill {identity}"):
        versions = pages(
            lambda token: host.tracking.search_skill_versions(
                skill.name, skill.organization, max_results=_PAGE, page_token=token
            )
        )
        return present(
            {
                "skill_id": identity,
                "organization": skill.organization,
                "name": skill.name,
                "description": skill.description,
                "icons": skill.icons,
                **signed(skill),
                "tags": sorted_entries(skill.tags),
                "aliases": [
                    {"alias": alias, "version": number}
                    for alias, number in sorted(skill.aliases.items())
                ],
                "versions": sorted(map(_version, versions), key=lambda v: int(v["version"])),
            }
        )


def _version(version: Any) -> dict[str, Any]:
    # The names that REST has for what MLflow's own types call by the type of the source.
    source = version.source.to_dict() if hasattr(version.source, "to_dict") else {}
    names = [name for name in ("url", "image", "artifact_path") if name in source]
    return present(
        {
            "version": version.version,
            "status": version.status.value,
            "source_type": version.source_type.value if version.source_type else None,
            "source": source[names[0]] if names else version.source,
            "ref": source.get("ref"),
            "subpath": source.get("subpath"),
            "digest": version.digest,
            **signed(version),
            "tags": sorted_entries(version.tags),
        }
    )


def create_skill(host: Host, name: str, document: dict[str, Any]) -> None:
    """Create a skill without versions."""
    with translated(f"creating skill {name!r}"):
        method(host.tracking, "create_skill")(
            name,
            document["organization"],
            description=document.get("description"),
            icons=document.get("icons"),
        )


def create_skill_version(
    host: Host, name: str, organization: str, version: dict[str, Any]
) -> dict[str, Any]:
    """Create the next version of a skill, and return it; draft stays draft, others are active."""
    with translated(f"creating version {version['version']} of skill {name!r}"):
        created = method(host.tracking, "create_skill_version")(
            name,
            organization,
            **{f: version.get(f) for f in ("source_type", "source", "ref", "subpath", "digest")},
            status=_first_status(version),
        )
    return _version(created)


def create_uploaded_version(
    host: Host, name: str, organization: str, version: dict[str, Any], files: Iterable[Artifact]
) -> dict[str, Any]:
    """Create the next version of a skill from its files, which the server keeps and checks."""
    with (
        translated(f"uploading version {version['version']} of skill {name!r}"),
        tempfile.TemporaryDirectory(prefix="mlflow-exim-") as folder,
    ):
        from mlflow import MlflowClient

        packed = Path(folder) / "content.tar.gz"
        with tarfile.open(packed, "w:gz", format=tarfile.PAX_FORMAT) as tar:
            for file in files:
                if problem := path_problem(file.path):
                    raise StoreError(f"artifact path {file.path!r} is refused: {problem}")
                member = tarfile.TarInfo(file.path)
                member.size = file.size_bytes
                with file.open() as stream:
                    tar.addfile(member, stream)
        created = MlflowClient(host.tracking_uri, host.tracking_uri).create_skill_version(
            name=name,
            organization=organization,
            source=str(packed),
            digest=version.get("digest"),
            status=_first_status(version),
        )
    return _version(created)


def new_place(name: str, organization: str) -> str:
    """Return where the files of a new version are, as a server would say."""
    owner = f"@{organization}/{name}" if organization else name
    return f"mlflow-artifacts:/skills/{owner}/{uuid.uuid4().hex}"


def _first_status(version: dict[str, Any]) -> str:
    return "draft" if version["status"] == "draft" else "active"


def set_skill_version_deprecated(host: Host, name: str, organization: str, version: int) -> None:
    """Bring a version that was just created to its last status."""
    with translated(f"deprecating version {version} of skill {name!r}"):
        from mlflow.entities.skill import SkillStatus

        host.tracking.update_skill_version(
            name, version, organization, status=SkillStatus.DEPRECATED
        )


def set_skill_tag(
    host: Host, name: str, organization: str, version: int | None, tag: dict[str, str]
) -> None:
    """Set one tag of a skill or of one of its versions."""
    key, value = tag["key"], tag.get("value", "")
    with translated(f"tagging skill {name!r}"):
        if version is None:
            host.tracking.set_skill_tag(name, key, value, organization)
        else:
            host.tracking.set_skill_version_tag(name, version, key, value, organization)


def set_skill_alias(host: Host, name: str, organization: str, alias: str, version: int) -> None:
    """Point an alias at a version of a skill."""
    with translated(f"setting alias {alias!r} of skill {name!r}"):
        host.tracking.set_skill_alias(name, alias, version, organization)


READS = {
    Kind.SKILL: skills,
}
"""What reads each kind."""
