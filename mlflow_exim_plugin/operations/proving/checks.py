"""How an archive is held against the format and its signers, and what comes of it."""

from __future__ import annotations

import os
import secrets
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.container.signing.check import TOO_FEW
from mlflow_exim_plugin.container.signing.keys import public_key, text_of
from mlflow_exim_plugin.container.signing.timestamps import Authority
from mlflow_exim_plugin.errors import UsageError
from mlflow_exim_plugin.operations.proving.sign import signatures_of
from mlflow_exim_plugin.verification.archive import verify_archive, verify_tail
from mlflow_exim_plugin.verification.objects import verify_objects
from mlflow_exim_plugin.verification.sample import choose_members, verify_members

if TYPE_CHECKING:
    from mlflow_exim_plugin.container.reader import ArchiveReader
    from mlflow_exim_plugin.container.signing.check import Signature
    from mlflow_exim_plugin.options import Checking, Opening
    from mlflow_exim_plugin.schema.rules import Finding

__all__ = ["Signers", "Verification", "broken", "look", "seeded"]

_MUSTS = "EN"
"""What codes of requirements begin with: of archives, and of sets."""


@dataclass(frozen=True)
class Verification:
    """What ``verify`` found.

    Attributes:
        claimed_root: Root digest that the archive says it has, hex.
        members: Number of members in the archive.
        size_bytes: Size of the archive.
        expected_root: The one it was asked to have, None when none was given.
        findings: Broken rules of the spec, in the order of the file, then those of signatures.
        damaged: Names of the members that break a MUST: all others that were looked at are as they
            were packed.
        level: ``full``, ``sample`` or ``quick``.
        looked_at: Names of the members whose bytes were looked at, None for all of them.
        seed: What they were chosen by.
        content_root: What the archive holds in one digest, hex, where all of it was looked at and
            is sound.
        signed: Whether as many keys as were asked for have signed it; None when none was given.
        signatures: What those say who did.
        limits: Those that it was read with and that are not the format's.
    """

    claimed_root: str
    members: int
    size_bytes: int
    expected_root: str | None = None
    findings: list[Finding] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    level: str = "full"
    looked_at: list[str] | None = None
    seed: str | None = None
    content_root: str | None = None
    signed: bool | None = None
    signatures: list[Signature] = field(default_factory=list)
    limits: dict[str, int] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """True when no MUST is broken as far as was looked, and all have signed who had to."""
        return self.valid and self.signed is not False

    @property
    def valid(self) -> bool:
        """True when no MUST of the format is broken, as far as was looked."""
        return not broken(self.findings)

    @property
    def root(self) -> str | None:
        """Root digest, hex, to compare with one you trust; a damaged archive has none."""
        return self.claimed_root if self.valid else None

    @property
    def authentic(self) -> bool | None:
        """Whether it is what the expected root or the keys say, as far as was looked.

        None when neither was given.
        """
        has_root = None if self.expected_root is None else self.root == self.expected_root
        is_signed = None if self.signed is None else self.valid and self.signed
        asked = [answer for answer in (has_root, is_signed) if answer is not None]
        return all(asked) if asked else None

    @property
    def not_looked_at(self) -> str:
        """What this level passes over, in words; empty for ``full``."""
        if self.level == "full":
            return ""
        unread = self.members - len(self.looked_at or ())
        members = f"{unread} of {self.members} members, " if unread else ""
        return f"{members}what documents and tables say, and the tar stream between members"

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return {
            "ok": self.ok,
            "root": self.root,
            "claimed_root": self.claimed_root,
            "content_root": self.content_root,
            "members": self.members,
            "damaged_members": self.damaged,
            "size_bytes": self.size_bytes,
            "authentic": self.authentic,
            "level": self.level,
            "looked_at": self.looked_at,
            "seed": self.seed,
            "not_looked_at": self.not_looked_at,
            "signed": self.signed,
            "signatures": [asdict(signature) for signature in self.signatures],
            "limits": self.limits,
            "findings": [asdict(finding) for finding in self.findings],
        }


def seeded(checking: Checking) -> Checking:
    """Return the same with a seed, where a sample needs one and none was given."""
    if checking.sample is None or checking.seed is not None:
        return checking
    return replace(checking, seed=secrets.token_hex(8))


def look(
    reader: ArchiveReader, checking: Checking
) -> tuple[list[str] | None, str | None, list[Finding]]:
    """Look at as much of an archive as is asked for.

    Returns:
        The members whose bytes were looked at, None for all; what chose them; findings.
    """
    if checking.quick:
        return [], None, verify_tail(reader)
    if checking.sample is not None:
        seed = str(seeded(checking).seed)
        chosen = choose_members(reader, checking.sample, seed)
        findings = verify_tail(reader)
        findings += verify_members(reader, chosen, jobs=checking.jobs, progress=checking.progress)
        return chosen, seed, findings
    jobs = min(checking.jobs, os.cpu_count() or 1)
    findings = verify_archive(reader, jobs=jobs, progress=checking.progress)
    return None, None, findings + verify_objects(reader, broken(findings))


class Signers:
    """Who must have signed.

    Args:
        checking: Their keys, and how many of them.

    Raises:
        NotFoundError: There is no such key.
        UsageError: More are asked for than there are.
    """

    def __init__(self, checking: Checking) -> None:
        self._keys = {key.id: key for key in map(public_key, checking.keys)}
        self._required = checking.require or len(self._keys)
        self._files = checking.signatures
        self._authority = None
        if checking.authority is not None:
            self._authority = Authority(text_of(checking.authority))
        if self._required > len(self._keys):
            raise UsageError(
                f"{self._required} signatures are asked for, and there are {len(self._keys)} keys"
            )

    def check(
        self, location: str, root: str, opening: Opening
    ) -> tuple[list[Signature], list[Finding], bool | None]:
        """Return what is signed of a root, what is wrong with it, and whether it is enough.

        Args:
            location: Beside which the signatures are.
            root: The root.
            opening: How the store is opened.
        """
        if not self._keys:
            return [], [], None
        signatures, problems = signatures_of(
            location,
            root,
            list(self._keys.values()),
            self._required,
            self._files,
            opening.storage_options,
            self._authority,
        )
        return signatures, problems, not any(found.code == TOO_FEW for found in problems)


def broken(findings: list[Finding]) -> set[str]:
    """Return the places where a MUST is broken."""
    return {finding.path for finding in findings if finding.code[0] in _MUSTS}
