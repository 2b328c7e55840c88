"""``verify``: an archive against every rule of the spec."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.container.reader import ArchiveReader
from mlflow_exim_plugin.errors import UsageError
from mlflow_exim_plugin.verification.archive import verify_archive
from mlflow_exim_plugin.verification.objects import verify_objects

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mlflow_exim_plugin.schema.rules import Finding

__all__ = ["Verification", "verify"]


@dataclass(frozen=True)
class Verification:
    """What ``verify`` found.

    Attributes:
        claimed_root: Root digest that the archive says it has, hex.
        members: Number of members checked.
        size_bytes: Size of the archive.
        expected_root: The one it was asked to have, None when none was given.
        findings: Broken rules of the spec, in the order of the file.
        damaged: Names of the members that break a MUST: all others are as they were packed.
    """

    claimed_root: str
    members: int
    size_bytes: int
    expected_root: str | None = None
    findings: list[Finding] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True when no MUST of the spec is broken."""
        return not any(finding.code.startswith("E") for finding in self.findings)

    @property
    def root(self) -> str | None:
        """Root digest, hex, to compare with one you trust; a damaged archive has none."""
        return self.claimed_root if self.ok else None

    @property
    def authentic(self) -> bool | None:
        """Whether all of it is what has the expected root, None when none was given."""
        return None if self.expected_root is None else self.root == self.expected_root

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return {
            "ok": self.ok,
            "root": self.root,
            "claimed_root": self.claimed_root,
            "members": self.members,
            "damaged_members": self.damaged,
            "size_bytes": self.size_bytes,
            "authentic": self.authentic,
            "findings": [asdict(finding) for finding in self.findings],
        }


def verify(
    archive: str,
    *,
    expected_root: str | None = None,
    jobs: int = 4,
    storage_options: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Verification:
    """Check an archive's bytes and documents against every rule of the spec.

    Args:
        archive: Path or fsspec URL.
        expected_root: Root digest it must have, hex; without it authenticity is not checked.
        jobs: Threads that decompress.
        storage_options: Given to the fsspec file system.
        progress: Called with the bytes of the file done and their total.

    Raises:
        NotFoundError: There is nothing at ``archive``.
        InvalidArchiveError: It cannot be opened at all; ``findings`` say why.
        UnsupportedFormatError: It needs a newer reader.
        StoreError: It cannot be read.
    """
    if jobs < 1:
        raise UsageError(f"jobs is at least 1, not {jobs}")
    if expected_root is not None:
        expected_root = expected_root.removeprefix("sha256:").lower()
    with ArchiveReader.open(
        archive, storage_options=storage_options, expected_root=expected_root
    ) as reader:
        findings = verify_archive(reader, jobs=min(jobs, os.cpu_count() or 1), progress=progress)
        damaged = {finding.path for finding in findings if finding.code.startswith("E")}
        findings += verify_objects(reader, damaged)
        bad = {finding.path for finding in findings if finding.code.startswith("E")}
        names = [member.path for member in reader.members()]
        return Verification(
            claimed_root=reader.root,
            members=len(names),
            size_bytes=reader.size_bytes,
            expected_root=expected_root,
            findings=findings,
            damaged=[name for name in names if name in bad],
        )
